"""Weight-only quantization: weights of 8 or 4 bits that are numbers again where an operator reads them.

Every eligible weight becomes integers with a DequantizeLinear, in the form that ONNX Runtime fuses into one kernel
(MatMulNBits): weights [K, N] on the right of a MatMul, scales [K/block, N], blocks along K. A Gemm becomes MatMul and
Add. Each operator has integers of its own, because the runtime fuses none that others read too. Convolutions have no
such kernel: their weights are computed anew at every run, so that the file is smaller and a run is not faster.

A zero point is stored only where it is not zero. Zeros stay zero: zero is on every grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import helper

from onnxprune.errors import UsageError
from onnxprune.model.fold import drop_unread, remove
from onnxprune.model.graph import Graph, captured, graph_tensors, overridable
from onnxprune.model.io import read_values
from onnxprune.model.linear import Holders
from onnxprune.model.shapes import Shapes, node_name
from onnxprune.model.values import bits as bits_of
from onnxprune.model.values import element_type
from onnxprune.model.weights import OPERATORS, WAYS, Weight, weights_of
from onnxprune.ops.forms import Product
from onnxprune.quantize.block_rounding import BlockRounding, OnSamples, rounded_on
from onnxprune.quantize.blocks import BlockGrid, Blocks
from onnxprune.quantize.fusable import keep_from_joining, without_clip
from onnxprune.quantize.opset import all_graphs, raised
from onnxprune.quantize.placement import Left

Array = NDArray[Any]
Wanted = Callable[[str, str], bool]

SMALLEST_BLOCK = 16
"""Rows that share a scale at least in the kernels of ONNX Runtime; there, their number is a power of 2."""

NODE_BYTES = 256
"""About what a DequantizeLinear and the names around it add to a file."""

REALS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
"""Types of scales that ONNX Runtime has kernels for."""

TYPES = {
    (8, True): np.dtype(np.int8), (8, False): np.dtype(np.uint8),
    (4, True): np.dtype(ml_dtypes.int4), (4, False): np.dtype(ml_dtypes.uint4),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Stored:
    """A weight that became integers: the operators that read it, bytes before and after, and the relative error.

    The error is the sum of the squares of what rounding changed, over that of the weights; ``fitted`` says that samples
    chose the rounding.
    """

    nodes: tuple[str, ...]
    name: str
    bytes_before: int
    bytes_after: int
    error: float
    fitted: bool = False


@dataclass(frozen=True, slots=True)
class WeightOnly:
    """What weight-only quantization did; ``group_size`` 0 stands for one scale for every output."""

    bits: int
    group_size: int
    stored: tuple[Stored, ...]
    left: tuple[Left, ...]

    @property
    def quantized(self) -> tuple[str, ...]:
        """Names of the operators that read integers now."""
        return tuple(name for one in self.stored for name in one.nodes)

    @property
    def fitted(self) -> tuple[str, ...]:
        """Names of those whose rounding samples chose."""
        return tuple(name for one in self.stored if one.fitted for name in one.nodes)


def weight_only(
    graph: Graph,
    bits: int,
    group_size: int,
    shapes: Shapes,
    *,
    symmetric: bool = True,
    wanted: Wanted | None = None,
    samples: OnSamples | None = None,
) -> tuple[Graph, WeightOnly]:
    """Returns a copy in which stored weights are integers, raised to the opset that they need, and what was done.

    A weight that another operator reads as floats, such as an embedding that is also the last layer, stays as it is:
    integers beside it would make the file larger. So does a weight that integers, scales and nodes would outweigh.
    With samples, later rows of a weight make up for the rounding of earlier ones, and operators with their biases for
    those before them; a weight that several operators read is rounded by itself.

    Args:
        graph: The graph; it is not changed.
        bits: 8 or 4. Convolutions take 8 alone, with a scale for every output channel.
        group_size: How many rows of a weight [K, N] share a scale: a power of 2, 16 at least. 0: all of them.
        shapes: Shapes of the graph.
        symmetric: Whether integers are signed, around zero; otherwise unsigned, with zero points.
        wanted: Tells by name and operator which nodes take part; by default all.
        samples: What the weights are rounded on; by themselves where there is nothing.

    Raises:
        UsageError: ``bits`` or ``group_size`` is impossible.
        UnsupportedOpError: the graph cannot be raised to the opset.
        ModelError: ONNX Runtime cannot run a part of the graph.
    """
    width = _Width(bits, group_size, symmetric)
    halves = any(shapes.types.get(weight.result) == onnx.TensorProto.FLOAT16 for weight in weights_of(graph, shapes))
    result = raised(graph, 21 if group_size or bits < 8 else 19 if halves else 13)
    wanted = wanted or (lambda name, operator: True)
    roundings: dict[str, BlockRounding] = {}
    if samples is not None:
        roundings = _Task(result, width, shapes).roundings(wanted)
        result = rounded_on(result, shapes, roundings, samples)
    stored, left = _Task(result, width, shapes).run(wanted, roundings)
    return result, WeightOnly(bits, group_size, tuple(stored), tuple(left))


@dataclass(frozen=True, slots=True)
class _Width:
    """What integers are stored, and how many rows share a scale."""

    bits: int
    group_size: int
    symmetric: bool

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise UsageError(f"weights of {self.bits} bits are not supported: choose int8 or int4")
        size = self.group_size
        if size and (size < SMALLEST_BLOCK or size & (size - 1)):
            message = f"the group size is {size}, and kernels take powers of 2 from {SMALLEST_BLOCK} on"
            raise UsageError(f"{message}: choose 16, 32, 64 or 128, or 0 for one scale for every output")

    def grid(self, weight: Weight, real: int) -> BlockGrid:
        """Returns what a weight is rounded to."""
        rows = self.group_size if self.group_size and weight.node.op != "Conv" else max(weight.shape[1], 1)
        return BlockGrid(self.bits, rows, self.symmetric, np.dtype(helper.tensor_dtype_to_np_dtype(real)))


class _Task:
    """One quantization of a graph, in place."""

    def __init__(self, graph: Graph, width: _Width, shapes: Shapes) -> None:
        self.graph, self.width, self.shapes = graph, width, shapes
        self.holders, self.kept = Holders(graph), _kept(graph)
        self.taken = {tensor.name for body in all_graphs(graph) for tensor in graph_tensors(body)}
        self.made = {id(node): [node] for node in graph.nodes}
        self.former: list[gs.Tensor] = []
        self.readers: dict[str, list[gs.Node]] = {}
        for node in graph.nodes:
            for tensor in node.inputs:
                self.readers.setdefault(tensor.name, []).append(node)

    def roundings(self, wanted: Wanted) -> dict[str, BlockRounding]:
        """Returns how every weight is rounded by itself, by the result of its operator."""
        parts, _ = self._chosen(wanted)
        made = [(same, self._rounding(same[0])) for same in parts]
        return {weight.result: rounding for same, rounding in made for weight in same}

    def run(self, wanted: Wanted, roundings: Mapping[str, BlockRounding]) -> tuple[list[Stored], list[Left]]:
        """Returns what was stored anew and what was left; what has no rounding yet is rounded by itself."""
        parts, left = self._chosen(wanted)
        stored = [self._store(same, roundings.get(same[0].result) or self._rounding(same[0])) for same in parts]
        for weight in (weight for same in parts for weight in same if weight.node.op == "MatMul"):
            keep_from_joining(weight.node, self.kept, self.shapes)
            self.made.update(without_clip(weight.node, self.kept, self.shapes, self._fresh))
        self.graph.nodes[:] = [made for node in list(self.graph.nodes) for made in self.made[id(node)]]
        dropped: set[int] = set()
        drop_unread(self.former, self.kept, dropped)
        remove(self.graph, dropped)
        return stored, left

    def _chosen(self, wanted: Wanted) -> tuple[list[list[Weight]], list[Left]]:
        """Returns the weights that become integers, those together that are the same matrix, and what is left."""
        parts, left = [], list(_in_bodies(self.graph))
        taking: dict[int, list[Weight]] = {}
        weights = list(weights_of(self.graph, self.shapes))
        left += self._without_form({id(weight.node) for weight in weights})
        for weight in weights:
            reason = self._unfit(weight) if wanted(weight.operator, str(weight.node.op)) else "it is excluded"
            if reason is None:
                taking.setdefault(id(weight.source.stored), []).append(weight)
            else:
                left.append(Left(weight.operator, reason))
        for readers in taking.values():
            reason = self._needed(readers) or self._outweighed(readers)
            if reason is not None:
                left += [Left(weight.operator, reason) for weight in readers]
            else:
                parts += _alike(readers)
        return parts, left

    def _rounding(self, weight: Weight) -> BlockRounding:
        return BlockRounding.of(weight, self.width.grid(weight, self._real(weight)))

    def _without_form(self, known: set[int]) -> Iterator[Left]:
        for node in self.graph.nodes:
            held = [self.holders.get(tensor) is not None for tensor in node.inputs[:2]]
            if node.op in OPERATORS and id(node) not in known and any(held) and not all(held):
                yield Left(node_name(node), "its weights are not one matrix, or its shapes are unknown")

    def _unfit(self, weight: Weight) -> str | None:
        """Returns why a weight cannot become integers."""
        node, source = weight.node, weight.source
        gemm, is_conv = node.op == "Gemm", node.op == "Conv"
        reasons = (
            (node.op == "ConvTranspose", "no kernel reads integer weights of a ConvTranspose"),
            (is_conv and self.width.bits < 8, "no kernel reads weights of less than 8 bits in a convolution"),
            (source.scale is not None, "its weights are quantized already"),
            (self._real(weight) not in REALS, "its weights are not float32 or float16"),
            (
                not is_conv and len(source.order) != 2,
                "its weights are not one matrix, as kernels want",
            ),
            (weight.form.weight != 1, "its weights are on the left, and kernels take them on the right"),
            (gemm and bool(node.attrs.get("transA", 0)), "it transposes its data, which no kernel does"),
            (gemm and self._is_scaled(node), "what it adds is computed, and scaled"),
        )
        return next((reason for applies, reason in reasons if applies), None)

    def _is_scaled(self, node: gs.Node) -> bool:
        added = _added(node)
        return added is not None and _beta(node) != 1 and self.holders.get(added) is None

    def _real(self, weight: Weight) -> int:
        return self.shapes.types.get(weight.node.inputs[weight.form.weight].name, 0)

    def _needed(self, weights: Sequence[Weight]) -> str | None:
        """Returns who else reads a stored tensor, so that the floats would have to stay beside the integers."""
        nodes = {id(weight.node) for weight in weights}
        waiting, seen = [weights[0].source.name], set()
        while waiting:
            name = waiting.pop()
            seen.add(name)
            if name in self.kept:
                return f"'{name}' is also an output, a default, or read by a body, which keeps the floats in the file"
            for node in self.readers.get(name, ()):
                if id(node) not in nodes and node.op not in WAYS:
                    return f"{node.op} '{node_name(node)}' reads the same weights, which keeps the floats in the file"
                if id(node) not in nodes:
                    waiting += [tensor.name for tensor in node.outputs if tensor.name not in seen]
        return None

    def _outweighed(self, weights: Sequence[Weight]) -> str | None:
        before = _bytes(weights[0].source.stored)
        parts = [(same[0], self.width.grid(same[0], self._real(same[0])), len(same)) for same in _alike(weights)]
        after = sum(_size(*part) for part in parts) + NODE_BYTES * len(weights)
        return None if after < before else f"it takes {before} bytes, and with integers and scales {after}"

    def _store(self, weights: Sequence[Weight], rounding: BlockRounding) -> Stored:
        """Stores integers with a DequantizeLinear for every operator: the runtime fuses none that others read too."""
        first, matrix, blocks = weights[0], rounding.weight.matrix(), rounding.blocks
        grid = blocks.grid
        base = f"{first.source.name}_quantized"
        parts = {"": self._integers(first, blocks), "_scale": blocks.scale}
        if not grid.symmetric:
            parts["_zero_point"] = blocks.zero.astype(TYPES[grid.bits, grid.symmetric])
        for name in list(parts)[1:]:
            parts[name] = parts[name][0] if self._is_blocked(first) else parts[name].reshape(-1)
        for weight in weights:
            self._read(weight, [gs.Constant(self._fresh(base + name), part) for name, part in parts.items()])
        wrong = float(np.square(blocks.numbers().astype(np.float64) - matrix).sum())
        error = wrong / max(float(np.square(matrix, dtype=np.float64).sum()), float(np.finfo(np.float64).tiny))
        names = tuple(weight.operator for weight in weights)
        sizes = _bytes(first.source.stored), _size(first, grid, len(weights))
        return Stored(names, base, *sizes, error, rounding.fitted)

    def _is_blocked(self, weight: Weight) -> bool:
        return bool(self.width.group_size) and isinstance(weight.form, Product)

    def _integers(self, weight: Weight, blocks: Blocks) -> Array:
        """Returns integers in the layout in which the operator reads them."""
        if isinstance(weight.form, Product):
            integers = blocks.integers[0]
        else:
            like = np.empty([weight.source.stored.shape[axis] for axis in weight.source.order], np.int32)
            integers = weight.form.weights(blocks.integers, like)
        return np.ascontiguousarray(integers).astype(TYPES[blocks.grid.bits, blocks.grid.symmetric])

    def _read(self, weight: Weight, constants: Sequence[gs.Constant]) -> None:
        """Lets an operator read integers, through a DequantizeLinear that no other operator reads."""
        node, slot = weight.node, weight.form.weight
        self.former += node.inputs[1:]
        out = gs.Variable(self._fresh(f"{constants[0].name}_read"), node.inputs[slot].dtype, list(constants[0].shape))
        attributes = {"axis": 1 if isinstance(weight.form, Product) else 0}
        if self._is_blocked(weight):
            attributes = {"axis": 0, "block_size": self.width.group_size}
        name = f"{node.name}_weights" if node.name else ""
        self.made[id(node)] = [gs.Node("DequantizeLinear", name, attributes, list(constants), [out])]
        node.inputs[slot] = out
        self.made[id(node)] += self._as_product(node) if node.op == "Gemm" else [node]

    def _as_product(self, node: gs.Node) -> list[gs.Node]:
        """Makes a Gemm, whose weights contain alpha and are transposed already, a MatMul, and an Add behind it."""
        added, beta = _added(node), _beta(node)
        node.op, node.attrs, node.inputs = "MatMul", {}, list(node.inputs[:2])
        if added is None:
            return [node]
        held = self.holders.get(added)
        if beta != 1 and held is not None:
            values = read_values(held)
            added = gs.Constant(self._fresh(f"{added.name}_scaled"), np.asarray(values * beta, values.dtype))
        result = node.outputs[0]
        product = gs.Variable(self._fresh(f"{result.name}_product"), result.dtype, result.shape)
        node.outputs[0] = product
        return [node, gs.Node("Add", f"{node.name}_add" if node.name else "", {}, [product, added], [result])]

    def _fresh(self, name: str) -> str:
        number, wanted = 0, name
        while name in self.taken:
            number += 1
            name = f"{wanted}_{number}"
        self.taken.add(name)
        return name


def _added(node: gs.Node) -> gs.Tensor | None:
    """Returns what a Gemm adds, if anything."""
    added = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None
    return None if _beta(node) == 0 else added


def _beta(node: gs.Node) -> float:
    return float(node.attrs.get("beta", 1.0))


def _kept(graph: Graph) -> set[str]:
    """Names of what is read from outside of the nodes of the graph, or may be given from there."""
    kept = {tensor.name for tensor in graph.outputs} | overridable(graph)
    for body in all_graphs(graph):
        if body is not graph:
            kept |= captured(body)
    return kept


def _in_bodies(graph: Graph) -> Iterator[Left]:
    for body in all_graphs(graph):
        if body is graph:
            continue
        holders = Holders(body)
        for node in body.nodes:
            if node.op in OPERATORS and any(holders.get(tensor) is not None for tensor in node.inputs[:2]):
                yield Left(node_name(node), "it stands in the body of a control-flow operator")


def _alike(weights: Sequence[Weight]) -> list[list[Weight]]:
    """Returns the weights of one stored tensor in parts whose operators read the same matrix."""
    parts: dict[tuple[Any, ...], list[Weight]] = {}
    for weight in weights:
        form = weight.form
        key = (form.transposed, form.scale) if isinstance(form, Product) else (form.groups,)
        parts.setdefault((type(form), weight.source.order, weight.node.inputs[1].dtype, *key), []).append(weight)
    return list(parts.values())


def _bytes(stored: gs.Constant) -> int:
    return math.ceil(int(math.prod(stored.shape)) * bits_of(element_type(stored.dtype)) / 8)


def _size(weight: Weight, grid: BlockGrid, readers: int) -> int:
    """Returns the bytes of integers, scales and zero points, once for every operator that reads them."""
    groups, rows, columns = weight.shape
    scales = groups * columns * math.ceil(rows / grid.rows)
    zeros = 0 if grid.symmetric else math.ceil(scales * grid.bits / 8)
    return readers * (math.ceil(groups * rows * columns * grid.bits / 8) + scales * grid.real.itemsize + zeros)
