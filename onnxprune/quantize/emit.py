"""Q and DQ written into a graph: pairs on what is computed, DQ behind stored integers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableSequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.model.graph import read_outside
from onnxprune.model.io import Graph, read_values
from onnxprune.model.weights import Weight
from onnxprune.ops.forms import Product, TransposedConvolution
from onnxprune.quantize.grids import BIASES, UNSIGNED, Array, Grid, Scale, scale_of
from onnxprune.quantize.placement import Placement
from onnxprune.quantize.targets import Target

LARGEST_BIAS = 2**30
"""Integers that a bias may reach: sums are of 32 bits, and need room above it."""


@dataclass(frozen=True, slots=True)
class Scales:
    """Scales of computed tensors by name, and of weights by the result of their operator."""

    tensors: Mapping[str, Scale]
    weights: Mapping[str, Scale]


def operand(weight: Weight) -> Array:
    """Returns the stored weights as their operator reads them."""
    source = weight.source
    return np.asarray(read_values(source.stored).transpose(source.order))


def output_axis(weight: Weight) -> int:
    """Returns the axis of the operand that has a scale for each index."""
    form = weight.form
    if isinstance(form, Product):
        return 0 if form.transposed else len(weight.source.order) - 1
    return 1 if isinstance(form, TransposedConvolution) else 0


def weight_scale(weight: Weight, grid: Grid, least: Array | float = 0.0) -> Scale:
    """Returns the scales that take in all weights of an operator, one for each output channel, at least ``least``."""
    values, axis = operand(weight), output_axis(weight)
    others = tuple(dim for dim in range(values.ndim) if dim != axis)
    largest = np.abs(values).max(axis=others, initial=0.0)
    largest = np.maximum(largest, np.broadcast_to(least, largest.shape) * grid.high)
    return scale_of(-largest, largest, grid, axis)


def least_steps(weight: Weight, data: Scale, target: Target) -> Array | float:
    """Returns the least scales of weights with which the bias fits into its integers."""
    bias = _bias(weight.node)
    if not target.integer_bias or bias is None:
        return 0.0
    values = np.abs(read_values(bias).astype(np.float64)).reshape(-1)
    return np.asarray(values / (float(data.step) * LARGEST_BIAS))


def weight_scales(placement: Placement, tensors: Mapping[str, Scale], grid: Grid, target: Target) -> dict[str, Scale]:
    """Returns the scales of all weights by the result of their operator; operators that share weights share them."""
    least: dict[tuple[str, int], Array] = {}
    read = [(one.node.inputs[one.form.weight].name, output_axis(one)) for one in placement.weights]
    for key, weight in zip(read, placement.weights, strict=True):
        steps = least_steps(weight, scale_for(weight.data, placement, tensors), target)
        least[key] = np.maximum(least.get(key, np.zeros(())), steps)
    found = zip(read, placement.weights, strict=True)
    return {weight.result: weight_scale(weight, grid, least[key]) for key, weight in found}


def scale_for(name: str, placement: Placement, scales: Mapping[str, Scale]) -> Scale:
    """Returns the scale of a computed tensor."""
    scale, factor = scales[placement.scale(name)], placement.factor(name)
    return scale if factor == 1 else replace(scale, step=np.asarray(scale.step * factor, np.float32))


def with_pairs(graph: Graph, placement: Placement, scales: Mapping[str, Scale]) -> Graph:
    """Returns a copy of a graph in which computed tensors are rounded, weights still float."""
    result = graph.copy()
    _Writer(result, placement, scales).write_pairs()
    return result


def with_integers(graph: Graph, placement: Placement, scales: Scales, target: Target) -> Graph:
    """Returns a copy of a graph with integers for weights, biases and stored operands, as the target wants them.

    Args:
        graph: A graph with pairs; its weights may lie on their grids already.
        placement: Where Q/DQ go.
        scales: What is rounded how.
        target: What it runs on.
    """
    result = graph.copy()
    _Writer(result, placement, scales.tensors).write_integers(scales.weights, target)
    return result


class _Writer:
    def __init__(self, graph: Graph, placement: Placement, scales: Mapping[str, Scale]) -> None:
        self._graph, self._placement, self._scales = graph, placement, scales
        self._nodes: list[gs.Node] = list(graph.nodes)
        self._by_result = {tensor.name: node for node in self._nodes for tensor in node.outputs if tensor.name}
        self._before: dict[int, list[gs.Node]] = {}
        self._behind: dict[int | None, list[gs.Node]] = {}
        self._stored: dict[str, tuple[gs.Constant, gs.Constant]] = {}
        self._made: dict[tuple[str, int | None], gs.Tensor] = {}
        self._grid = next(iter(scales.values())).grid if scales else UNSIGNED
        self._dropped: set[int] = set()
        self._results = {tensor.name: tensor for node in self._nodes for tensor in node.outputs}
        self._taken = set(graph.tensors(check_duplicates=False))
        self._outside = read_outside(graph)

    def write_pairs(self) -> None:
        """Puts Q/DQ pairs onto computed tensors, and DQ behind stored operands."""
        for edge in self._placement.stored:
            node = self._nodes[edge.node]
            held = node.inputs[edge.slot]
            values = read_values(held)
            scale = scale_of(values.min(initial=0.0), values.max(initial=0.0), self._grid)
            node.inputs[edge.slot] = self._dequantized(node, f"{held.name}_{edge.node}", scale.integers(values), scale)
        for name in self._placement.scaled:
            node = self._by_result[name]
            node.inputs.clear()
            node.outputs.clear()
            self._dropped.add(id(node))
        for name in self._placement.tensors:
            self._pair(name)
        self._graph.nodes[:] = list(self._ordered())

    def write_integers(self, weights: Mapping[str, Scale], target: Target) -> None:
        """Stores weights as integers, and biases where the target wants that."""
        for weight in self._placement.weights:
            node, slot = self._by_result[weight.result], weight.form.weight
            scale = weights[weight.result]
            held = node.inputs[slot]
            node.inputs[slot] = self._shared(node, held, operand(weight), scale)
            bias = _bias(node)
            if target.integer_bias and bias is not None:
                data = scale_for(weight.data, self._placement, self._scales)
                node.inputs[2] = self._integer_bias(node, bias, data, scale)
        for name in self._placement.whole:
            self._settle(name)
        self._graph.nodes[:] = list(self._ordered())

    def _settle(self, name: str) -> None:
        """Gives what is read outside by the name of a tensor the rounded numbers; operators kept theirs until now."""
        tensor = self._results[name]
        quantize = next(node for node in tensor.outputs if node.name == f"{name}/quantize")
        dequantize = next((node for node in quantize.outputs[0].outputs if node.name == f"{name}/dequantize"), None)
        if dequantize is None or self._outside.isdisjoint((name, dequantize.outputs[0].name)):
            return
        floats = dequantize.outputs[0]
        raw = gs.Variable(self._fresh(f"{name}_float"), np.float32)
        for node in (self._by_result[name], quantize):
            _swap(node.inputs, tensor, raw)
            _swap(node.outputs, tensor, raw)
        _swap(dequantize.outputs, floats, tensor)
        for reader in list(floats.outputs):
            _swap(reader.inputs, floats, tensor)
        _swap(self._graph.outputs, floats, tensor)

    def _shared(self, node: gs.Node, held: gs.Tensor, moved: Array, scale: Scale) -> gs.Tensor:
        """Returns dequantized weights, once for all operators that read the same with the same scales."""
        key = held.name, scale.axis
        if key not in self._made:
            values = read_values(held) if isinstance(held, gs.Constant) else moved
            name = held.name if all(other != held.name for other, _ in self._made) else f"{held.name}_axis{scale.axis}"
            self._made[key] = self._dequantized(node, name, scale.integers(values), scale)
        return self._made[key]

    def _integer_bias(self, node: gs.Node, bias: gs.Constant, data: Scale, weights: Scale) -> gs.Tensor:
        steps = (np.float32(data.step) * weights.step).astype(np.float32)
        numbers = np.broadcast_to(read_values(bias).reshape(-1), steps.shape).astype(np.float64)
        scale = Scale(BIASES, steps, np.zeros(steps.shape, np.int32), 0)
        return self._dequantized(node, f"{node.outputs[0].name}_bias", scale.integers(numbers), scale)

    def _pair(self, name: str) -> None:
        producer = self._by_result.get(name)
        tensor = next(t for t in (producer.outputs if producer is not None else self._graph.inputs) if t.name == name)
        step, zero = self._constants(name)
        integers = gs.Variable(self._fresh(f"{name}_quantized"))
        floats = gs.Variable(self._fresh(f"{name}_dequantized"), np.float32)
        whole = name in self._placement.whole
        readers = list(tensor.outputs) if whole else []
        edges = [] if whole else [(self._nodes[edge.node], edge.slot) for edge in self._placement.read[name]]
        for reader in readers:
            edges += [(reader, slot) for slot, one in enumerate(reader.inputs) if one is tensor]
        for reader, slot in edges:
            reader.inputs[slot] = floats
        if whole:
            floats.shape = tensor.shape
            _swap(self._graph.outputs, tensor, floats)
        pair = [gs.Node("QuantizeLinear", f"{name}/quantize", {}, [tensor, step, zero], [integers])]
        if floats.outputs or name in self._outside:
            pair.append(gs.Node("DequantizeLinear", f"{name}/dequantize", {}, [integers, step, zero], [floats]))
        for scaled, (root, _) in self._placement.scaled.items():
            if root == name:
                step, zero = self._constants(scaled)
                result = [self._results[scaled]]
                pair.append(gs.Node("DequantizeLinear", f"{scaled}/dequantize", {}, [integers, step, zero], result))
        self._behind.setdefault(None if producer is None else id(producer), []).extend(pair)

    def _constants(self, tensor: str) -> tuple[gs.Constant, gs.Constant]:
        name = tensor if tensor in self._placement.scaled else self._placement.scale(tensor)
        if name not in self._stored:
            scale = scale_for(tensor, self._placement, self._scales)
            self._stored[name] = (
                gs.Constant(self._fresh(f"{name}_scale"), np.asarray(scale.step, np.float32)),
                gs.Constant(self._fresh(f"{name}_zero_point"), np.asarray(scale.zero)),
            )
        return self._stored[name]

    def _dequantized(self, reader: gs.Node, name: str, integers: Array, scale: Scale) -> gs.Tensor:
        result = gs.Variable(self._fresh(f"{name}_dequantized"), np.float32)
        parts = {"quantized": integers, "scale": scale.step, "zero_point": scale.zero}
        if integers.dtype == np.int32:
            del parts["zero_point"]
        operands = [gs.Constant(self._fresh(f"{name}_{part}"), values) for part, values in parts.items()]
        attributes = {} if scale.axis is None else {"axis": scale.axis}
        node = gs.Node("DequantizeLinear", f"{name}/dequantize", attributes, operands, [result])
        self._before.setdefault(id(reader), []).append(node)
        return result

    def _fresh(self, name: str) -> str:
        """Returns a name that no tensor has."""
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name

    def _ordered(self) -> Iterator[gs.Node]:
        yield from self._behind.get(None, ())
        for node in self._nodes:
            yield from self._before.get(id(node), ())
            if id(node) not in self._dropped:
                yield node
            yield from self._behind.get(id(node), ())


def _swap(tensors: MutableSequence[gs.Tensor], old: gs.Tensor, new: gs.Tensor) -> None:
    """Puts a tensor in the place of another."""
    for slot, tensor in enumerate(list(tensors)):
        if tensor is old:
            tensors[slot] = new


def _bias(node: gs.Node) -> gs.Constant | None:
    """Returns the stored bias of an operator."""
    held = node.inputs[2] if node.op in ("Conv", "ConvTranspose", "Gemm") and len(node.inputs) > 2 else None
    return held if isinstance(held, gs.Constant) else None
