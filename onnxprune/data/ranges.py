"""What the graph says about the values of its integer inputs: tables they index, constants they are compared to."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
from onnx import numpy_helper

# Operators that hand the values of their first input on, possibly in another shape or type.
_PASS_THROUGH = {
    "Cast", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze",
}  # fmt: skip
# Operators that pick some of the values of their first input, or put those of several inputs together.
_PICKING = {"Gather", "GatherElements", "GatherND", "Split"}
_INDEXING = {"Gather": 0, "GatherElements": 0, "GatherND": 0}
_LENGTHS = {"GRU": 4, "LSTM": 4, "RNN": 4, "ReverseSequence": 1}
_SMALL_CONSTANT = 65536


@dataclass(frozen=True)
class ValueUse:
    """How a graph uses the values of an input.

    Attributes:
        bound: The largest value that stays inside every table, or None where no table is indexed.
        equals: Single constants that the values are compared to.
        to_float: Whether the values are turned into floats or truth values, as masks are.
    """

    bound: int | None = None
    equals: tuple[int, ...] = ()
    to_float: bool = False


@dataclass(frozen=True)
class _Graph:
    consumers: dict[str, list[onnx.NodeProto]] = field(default_factory=dict)
    producers: dict[str, onnx.NodeProto] = field(default_factory=dict)
    initializers: dict[str, onnx.TensorProto] = field(default_factory=dict)
    shapes: dict[str, list[int]] = field(default_factory=dict)


def value_use(model: onnx.ModelProto, names: list[str]) -> dict[str, ValueUse]:
    """Returns how the graph uses the values of the named inputs; subgraphs are looked into."""
    graph = _Graph()
    _collect(model.graph, graph)
    return {name: _use_of(name, graph) for name in names}


def _collect(proto: onnx.GraphProto, graph: _Graph) -> None:
    graph.initializers.update({tensor.name: tensor for tensor in proto.initializer})
    for value in (*proto.input, *proto.value_info):
        graph.shapes[value.name] = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    for node in proto.node:
        graph.producers.update(dict.fromkeys(filter(None, node.output), node))
        for name in filter(None, dict.fromkeys(node.input)):
            graph.consumers.setdefault(name, []).append(node)
        for attribute in node.attribute:
            for subgraph in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                _collect(subgraph, graph)


def _use_of(name: str, graph: _Graph) -> ValueUse:
    use = ValueUse()
    for value, node in _readers(name, graph):
        if node.op_type == "Cast" and _is_float_or_bool(node):
            use = replace(use, to_float=True)
        bound = _bound(value, node, graph)
        if bound is not None:
            use = replace(use, bound=bound if use.bound is None else min(use.bound, bound))
        constant = _compared_constant(value, node, graph)
        if constant is None or not constant.size:
            continue
        if constant.size == 1:
            use = replace(use, equals=(*use.equals, int(constant.flat[0])))
        elif use.bound is None or int(constant.max()) < use.bound:
            use = replace(use, bound=int(constant.max()))
    return use


def _readers(name: str, graph: _Graph) -> Iterator[tuple[str, onnx.NodeProto]]:
    """Yields every (value, node that reads it) that carries the values of an input."""
    waiting, seen = [name], {name}
    while waiting:
        value = waiting.pop()
        for node in graph.consumers.get(value, []):
            yield value, node
            if node.op_type != "Concat" and (node.op_type not in _PASS_THROUGH | _PICKING or node.input[0] != value):
                continue
            fresh = set(node.output) - seen
            seen |= fresh
            waiting += sorted(fresh)


def _is_float_or_bool(node: onnx.NodeProto) -> bool:
    kinds = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BOOL)
    return any(attribute.name == "to" and attribute.i in kinds for attribute in node.attribute)


def _bound(value: str, node: onnx.NodeProto, graph: _Graph) -> int | None:
    """Returns the largest index that the node admits for the value, or None where it does not index with it."""
    if node.op_type == "OneHot" and node.input[0] == value:
        depth = _constant(node.input[1], graph)
        return None if depth is None or not depth.size else max(int(depth.flat[0]) - 1, 0)
    slot = _LENGTHS.get(node.op_type, 0)
    if 0 < slot < len(node.input) and node.input[slot] == value:
        return _steps(node, graph)
    if node.op_type not in _INDEXING or len(node.input) < 2 or node.input[1] != value:
        return None
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
    dims = _dims(node.input[0], graph)
    rows = dims[axis] if -len(dims) <= axis < len(dims) else 0
    return max(rows - 1, 0)  # a table of unknown height has at least its first row


def _steps(node: onnx.NodeProto, graph: _Graph) -> int:
    """Returns the longest length that every sequence of a node may have; 1 where that is not known."""
    names = ("layout", "time_axis")
    axis = next((attribute.i for attribute in node.attribute if attribute.name in names), 0)
    dims = _dims(node.input[0], graph)
    return max(dims[axis] if axis < len(dims) else 1, 1)


def _dims(name: str, graph: _Graph) -> list[int]:
    if name in graph.initializers:
        return list(graph.initializers[name].dims)
    node = graph.producers.get(name)
    if node is None:
        return graph.shapes.get(name, [])
    if node.op_type == "Constant":
        constant = _constant(name, graph)
        return [] if constant is None else list(constant.shape)
    if node.op_type in ("Cast", "DequantizeLinear", "Identity", "QuantizeLinear"):
        return _dims(node.input[0], graph)
    return graph.shapes.get(name, [])


def _compared_constant(value: str, node: onnx.NodeProto, graph: _Graph) -> np.ndarray | None:
    if node.op_type != "Equal":
        return None
    other = node.input[1] if node.input[0] == value else node.input[0]
    return _constant(other, graph)


def _constant(name: str, graph: _Graph) -> np.ndarray | None:
    """Returns a small constant: an initializer, a Constant or Range of constants, or one of them passed through."""
    if name in graph.initializers:
        tensor = graph.initializers[name]
        small = int(np.prod(tensor.dims)) <= _SMALL_CONSTANT and not tensor.external_data
        return numpy_helper.to_array(tensor) if small else None
    node = graph.producers.get(name)
    if node is None:
        return None
    if node.op_type == "Constant":
        return _constant_attribute(node)
    if node.op_type == "Range":
        limits = [_constant(operand, graph) for operand in node.input]
        known = [limit.flat[0] for limit in limits if limit is not None and limit.size == 1]
        return np.arange(*known) if len(known) == 3 and known[2] != 0 else None
    if node.op_type in _PASS_THROUGH:
        return _constant(node.input[0], graph)
    return None


def _constant_attribute(node: onnx.NodeProto) -> np.ndarray | None:
    for attribute in node.attribute:
        if attribute.name == "value":
            return numpy_helper.to_array(attribute.t)
        if attribute.name in ("value_int", "value_ints"):
            return np.asarray(onnx.helper.get_attribute_value(attribute))
    return None
