"""What a model costs: parameters, multiply-accumulates and bytes, in all and for each node."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.model.io import read_values
from onnxprune.model.shapes import Shape, Shapes, node_name, opset_of, stored_tensor
from onnxprune.model.sizes import infer_shapes
from onnxprune.model.values import element_type, is_float
from onnxprune.ops import MacRule, NodeView, operator


@dataclass(frozen=True, slots=True)
class NodeCost:
    """Multiply-accumulates of one node for one sample, and the stored numbers that it reads."""

    name: str
    op: str
    macs: int
    parameters: int


@dataclass(frozen=True, slots=True)
class Cost:
    """Totals: stored floating-point numbers, those that are not zero, multiply-accumulates for one sample, nodes.

    ``uncounted`` is the number of nodes that multiply but whose shapes are unknown.
    """

    parameters: int
    nonzero_parameters: int
    macs: int
    nodes: int
    per_node: tuple[NodeCost, ...]
    uncounted: int = 0


def cost(graph: gs.Graph, sizes: Mapping[str, Shape] | None = None, shapes: Shapes | None = None) -> Cost:
    """Returns the cost of a graph for one sample.

    MACs are counted for Conv, ConvTranspose, Gemm, MatMul (also between activations), Einsum and recurrent operators,
    at the given input shapes, divided by the batch size where the first axis of the inputs is free.
    """
    shapes = shapes if shapes is not None else infer_shapes(graph, sizes)
    batch = batch_of(graph, shapes)
    parameters = nonzero = 0
    weights: dict[str, int] = {}
    for name, values in weight_tensors(graph):
        weights[name] = values.size
        parameters += values.size
        nonzero += int(np.count_nonzero(values))
    per_node = []
    uncounted = 0
    for node in graph.nodes:
        if node.op == "Constant":
            continue
        macs = macs_of(graph, node, shapes)
        uncounted += macs is None
        owned = sum(weights.get(tensor.name, 0) for tensor in node.inputs)
        per_node.append(NodeCost(node_name(node), node.op, (macs or 0) // batch, owned))
    return Cost(parameters, nonzero, sum(item.macs for item in per_node), len(graph.nodes), tuple(per_node), uncounted)


def macs_of(graph: gs.Graph, node: gs.Node, shapes: Shapes) -> int | None:
    """Returns the multiply-accumulates of a node at these shapes; ``None`` where it multiplies unknown ones."""
    rule = operator(node.op, node.domain).macs
    if rule is None:
        return 0
    view = shapes.view(node, opset_of(graph, node.domain))
    if any(value is None for value in (*view.inputs[:2], *view.outputs[:1])):
        return None
    return _counted(rule, view)


def _counted(rule: MacRule, view: NodeView) -> int:
    try:
        return rule(view)
    except (ArithmeticError, LookupError, TypeError, ValueError):
        return 0  # the node is not valid, and does not run


def batch_of(graph: gs.Graph, shapes: Shapes) -> int:
    """Returns how many samples the shapes stand for: the first axis of the inputs, or of those that free it."""
    free: set[int] = set()
    every: set[int] = set()
    for tensor in graph.inputs:
        shape = shapes.shapes.get(tensor.name)
        if tensor.shape and shape:
            every.add(shape[0])
            if not isinstance(tensor.shape[0], int):
                free.add(shape[0])
    sizes = free or every
    return max(sizes.pop(), 1) if len(sizes) == 1 else 1


def weight_tensors(graph: gs.Graph) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the stored weights of a graph and its bodies once each, by the name that nodes read.

    They are floating-point tensors, and integers that DequantizeLinear reads, less their zero point; scales are none.
    """
    seen: set[str] = set()
    for node in graph.nodes:
        scaled = node.op in ("DequantizeLinear", "QuantizeLinear")
        for slot, tensor in enumerate(node.inputs):
            if not isinstance(tensor, gs.Constant) or tensor.name in seen or (scaled and slot > 0):
                continue
            seen.add(tensor.name)
            if is_float(element_type(tensor.dtype)):
                yield tensor.name, read_values(tensor)
            elif scaled:
                yield tensor.name, _less_zero(node)
        if node.op == "Constant":
            values = stored_tensor(node)
            if values is not None and is_float(element_type(values.dtype)):
                yield node.outputs[0].name, values
        for body in node.attrs.values():
            if isinstance(body, gs.Graph):
                yield from weight_tensors(body)


def _less_zero(node: gs.Node) -> np.ndarray:
    """Returns stored integers less their zero point, in blocks where it is stored so."""
    values = read_values(node.inputs[0]).astype(np.int64)
    if len(node.inputs) < 3 or not isinstance(node.inputs[2], gs.Constant):
        return values
    zero = read_values(node.inputs[2]).astype(np.int64)
    axis = int(node.attrs.get("axis", 1)) % max(values.ndim, 1)
    if zero.size == 1:
        return np.asarray(values - zero.reshape(-1)[0])
    if zero.ndim == values.ndim:
        block = -(-values.shape[axis] // zero.shape[axis])
        return np.asarray(values - np.take(zero.repeat(block, axis), np.arange(values.shape[axis]), axis))
    return np.asarray(values - zero.reshape([-1 if dim == axis else 1 for dim in range(values.ndim)]))
