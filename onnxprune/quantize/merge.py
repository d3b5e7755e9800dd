"""Equal graphs in which operators with weights have taken in what only scales and shifts their results.

Q and DQ stand behind an operator, so what a runtime would fuse into it has to be in it before: BatchNormalization, and
Mul, Div, Add, Sub with a stored number for each channel. Weights that Constant nodes hold, or that Transpose and
Identity move, become stored tensors.
"""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.model.fold import remove, store_constants, store_moved
from onnxprune.model.graph import overridable, read_outside
from onnxprune.model.io import Graph, read_values, write_values
from onnxprune.model.linear import Array, Holders, Linear, linear_nodes, only_reader
from onnxprune.model.shapes import Shapes
from onnxprune.model.sizes import infer_shapes
from onnxprune.model.weights import STANDARD
from onnxprune.ops.forms import Scaling, scaling_of

Affine = tuple[Array, Array]
"""What a result is multiplied with, and what is added to it: [m] each."""


def merged(graph: Graph) -> Graph:
    """Returns an equal graph, weights stored and operators behind them merged into them."""
    result = graph.copy()
    store_constants(result)
    store_moved(result)
    outside, given = read_outside(result), overridable(result)
    shapes = infer_shapes(result)
    dropped: set[int] = set()
    _take_in_sums(result, shapes, (outside, given), dropped)
    remove(result, dropped)
    holders = Holders(result)
    dropped = set()
    for linear in list(linear_nodes(result, shapes, holders)):
        if not linear.scales and given.isdisjoint(tensor.name for tensor in linear.node.inputs):
            _merge(linear, holders, outside, dropped)
    remove(result, dropped)
    return result


def _take_in_sums(graph: Graph, shapes: Shapes, kept: tuple[set[str], set[str]], dropped: set[int]) -> None:
    """Makes MatMul and Add one Gemm where what they compute is a matrix.

    ONNX Runtime does so too, but after the integers in front of it were told by a MatMul. Behind tensors of more
    dimensions, where it does so with a bias of one, the bias gets as many.
    """
    (outside, given), holders = kept, Holders(graph)
    for node in graph.nodes:
        if node.op != "MatMul" or node.domain not in STANDARD:
            continue
        reader = only_reader(node)
        rank = len(shapes.shapes.get(node.inputs[0].name, ()))
        weights = holders.get(node.inputs[1])
        if reader is None or reader.op != "Add" or weights is None or len(weights.shape) != 2 or rank < 2:
            continue
        slot = 1 if reader.inputs[0] is node.outputs[0] else 0
        held = holders.get(reader.inputs[slot])
        width = int(weights.shape[1])
        if held is None or held.name in given or node.outputs[0].name in outside:
            continue
        if tuple(held.shape)[-1:] != (width,) or prod(held.shape) != width:
            continue
        values = read_values(held)
        if rank > 2:
            reader.inputs[slot] = gs.Constant(
                f"{reader.outputs[0].name}_bias", values.reshape((1,) * (rank - 1) + (-1,))
            )
            continue
        node.op = "Gemm"
        node.inputs.append(gs.Constant(f"{reader.outputs[0].name}_bias", values.reshape(-1)))
        result = reader.outputs[0]
        reader.inputs.clear()
        reader.outputs.clear()
        node.outputs[0] = result
        dropped.add(id(reader))


def _merge(linear: Linear, holders: Holders, outside: set[str], dropped: set[int]) -> None:
    node, bias = linear.node, linear.bias().reshape(-1)
    shifts = node.op != "MatMul"
    gain, shift = np.ones(bias.size), bias
    while (affine := _behind(node, linear, holders, outside, shifts=shifts)) is not None:
        reader = node.outputs[0].outputs[0]
        gain, shift = gain * affine[0], shift * affine[0] + affine[1]
        result = reader.outputs[0]
        reader.inputs.clear()
        reader.outputs.clear()
        node.outputs[0] = result
        dropped.add(id(reader))
    factors = [node.attrs.pop(name, 1.0) if node.op == "Gemm" else 1.0 for name in ("alpha", "beta")]
    values = read_values(linear.stored)
    if factors[0] != 1 or (gain != 1).any():
        groups, _, columns = linear.matrix().shape
        write_values(linear.stored, linear.form.weights(linear.matrix() * gain.reshape(groups, 1, columns), values))
        write_values(linear.stored, (read_values(linear.stored) * factors[0]).astype(values.dtype))
    if factors[1] != 1 or (shift != bias).any():  # others may read the stored bias
        while len(node.inputs) > 2:
            node.inputs.pop()
        node.inputs.append(gs.Constant(f"{node.outputs[0].name}_bias", shift.astype(values.dtype)))


def _behind(node: gs.Node, linear: Linear, holders: Holders, outside: set[str], *, shifts: bool) -> Affine | None:
    """Returns what the only reader of a result does to it, if that is to scale and shift its channels."""
    reader = only_reader(node)
    if reader is None or reader.domain not in STANDARD or node.outputs[0].name in outside:
        return None
    if reader.op == "BatchNormalization":
        if (linear.form.output != 1 and node.op != "Gemm") or not shifts:
            return None
        held = [holders.get(tensor) for tensor in reader.inputs[1:5]]
        vectors = [None if one is None else read_values(one) for one in held]
        form = scaling_of(reader, vectors)
        return None if form is None else _normalization(form, vectors)
    return _arithmetic(node, reader, linear, holders, shifts=shifts)


def _normalization(form: Scaling, vectors: list[np.ndarray | None]) -> Affine | None:
    scale, bias = vectors[0], vectors[1]
    if scale is None or bias is None:
        return None
    gain = scale.astype(np.float64) / form.deviation
    return gain, bias.astype(np.float64) - form.mean * gain


def _arithmetic(node: gs.Node, reader: gs.Node, linear: Linear, holders: Holders, *, shifts: bool) -> Affine | None:
    if reader.op not in ("Add", "Div", "Mul", "Sub") or len(reader.inputs) != 2:
        return None
    slot = 1 if reader.inputs[0] is node.outputs[0] else 0
    held = holders.get(reader.inputs[slot])
    if held is None or (slot == 0 and reader.op in ("Div", "Sub")) or (not shifts and reader.op in ("Add", "Sub")):
        return None
    vector = _by_channel(read_values(held), linear)
    if vector is None:
        return None
    ones, zeros = np.ones(vector.size), np.zeros(vector.size)
    if reader.op in ("Add", "Sub"):
        return ones, vector if reader.op == "Add" else -vector
    return (vector, zeros) if reader.op == "Mul" else (1 / np.where(vector == 0, np.nan, vector), zeros)


def _by_channel(values: np.ndarray, linear: Linear) -> Array | None:
    """Returns a stored operand as one number for each channel of a result, if it has no more."""
    groups, _, columns = linear.matrix().shape
    width = groups * columns
    if values.size == 1 and values.ndim <= 1:
        return np.full(width, float(values.reshape(-1)[0]))
    rank = len(linear.node.outputs[0].shape or ()) or (2 + len(getattr(linear.form, "kernel", ())))
    shape = (1,) * (rank - values.ndim) + values.shape
    dim = linear.form.output % rank
    if values.size != width or values.ndim > rank or shape[dim] != width:
        return None
    return values.reshape(-1).astype(np.float64)
