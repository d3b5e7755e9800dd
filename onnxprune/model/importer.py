"""From protobuf to the graph in memory, and the checks that a model must pass on the way."""

from __future__ import annotations

import heapq
from collections import ChainMap
from collections.abc import Iterable, Iterator
from typing import Any

import onnx
import onnx_graphsurgeon as gs
from google.protobuf.message import Message
from onnx import numpy_helper

from onnxprune.errors import ModelError
from onnxprune.model.attributes import import_attribute, is_body
from onnxprune.model.graph import Graph, copy_domains
from onnxprune.model.values import TensorValues, densify, numpy_type

DEFAULT_DOMAINS = ("", "ai.onnx")
# What graphsurgeon knows of a value: element type, shape (None: unknown rank) and kind of type.
Declared = tuple[Any, list[int | str | None] | None, str]
UNDECLARED: Declared = (None, None, "tensor_type")
HOLDS_TENSORS = frozenset(
    f"{name}Proto"
    for name in ("Attribute", "Function", "Graph", "Model", "Node", "SparseTensor", "Tensor", "TrainingInfo")
)


def import_model(model: onnx.ModelProto) -> Graph:
    """Return the graph of a model, which it keeps as ``origin`` and whose weights it shares.

    Sparse initializers become dense ones; ``sparse`` remembers that there were some.

    Raises:
        ModelError: the graph is not a valid ONNX graph.
    """
    dense = densified(model)
    header = {"opset": model_opset(dense), "import_domains": copy_domains(dense.opset_import)}
    graph = _import_graph(dense.graph, ChainMap(), header)
    graph.producer_name, graph.producer_version = dense.producer_name, dense.producer_version
    graph.ir_version = dense.ir_version
    graph.origin = dense
    graph.sparse = dense is not model
    return graph


def densified(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with dense initializers in place of sparse ones; the model itself if it has none.

    Raises:
        ModelError: a sparse initializer does not hold what its dimensions promise.
    """
    if not any(graph.sparse_initializer for graph in _graphs(model.graph)):
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for graph in _graphs(result.graph):
        for sparse in graph.sparse_initializer:
            tensor = graph.initializer.add()
            tensor.CopyFrom(numpy_helper.from_array(densify(sparse), sparse.values.name))
            if sparse.values.HasField("doc_string"):
                tensor.doc_string = sparse.values.doc_string
            tensor.metadata_props.extend(sparse.values.metadata_props)
        graph.ClearField("sparse_initializer")
    return result


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and the bodies that are imported with it, at any depth."""
    yield graph
    for node in graph.node:
        for attribute in filter(is_body, node.attribute):
            yield from _graphs(attribute.g)


def model_opset(model: onnx.ModelProto) -> int:
    """Return the version of the standard domain that the model imports; 1 where it imports none."""
    return next((int(item.version) for item in model.opset_import if item.domain in DEFAULT_DOMAINS), 1)


def bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs in the attributes of a node."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            yield from attribute.graphs


def captured(graph: onnx.GraphProto) -> set[str]:
    """Return the names that a body reads from the graphs around it."""
    read = {output.name for output in graph.output}
    for node in graph.node:
        read.update(node.input)
        for body in bodies(node):
            read |= captured(body)
    return read - set(local_names(graph)) - {""}


def local_names(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield the names that a graph itself defines: inputs, initializers and node outputs."""
    for value in graph.input:
        yield value.name
    for tensor in graph.initializer:
        yield tensor.name
    for node in graph.node:
        yield from (name for name in node.output if name)


def declared_types(graph: onnx.GraphProto) -> dict[str, Declared]:
    """Return what the graph says of the values that it defines, by name; initializers speak for themselves."""
    result: dict[str, Declared] = {}
    for tensor in graph.initializer:
        result[tensor.name] = (numpy_type(tensor.data_type), list(tensor.dims), "tensor_type")
    fixed = set(result)
    local = set(local_names(graph))
    for values in (graph.value_info, graph.input, graph.output):
        for value in values:
            if value.name in local and value.name not in fixed:
                result[value.name] = _merged(result.get(value.name), declared_type(value.type))
    return result


def declared_type(message: onnx.TypeProto) -> Declared:
    """Return element type, shape and kind of a type; what is not a tensor has no shape."""
    kind = message.WhichOneof("value") or "tensor_type"
    if kind in ("tensor_type", "sparse_tensor_type"):
        tensor = message.tensor_type if kind == "tensor_type" else message.sparse_tensor_type
        shape = [_dimension(dim) for dim in tensor.shape.dim] if tensor.HasField("shape") else None
        return numpy_type(tensor.elem_type), shape, kind
    inner = message
    while inner.WhichOneof("value") in ("sequence_type", "optional_type"):
        inner = getattr(inner, str(inner.WhichOneof("value"))).elem_type
    return numpy_type(inner.tensor_type.elem_type), None, kind


def _dimension(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    which = dim.WhichOneof("value")
    return None if which is None else getattr(dim, which)


def _merged(first: Declared | None, second: Declared) -> Declared:
    if first is None:
        return second
    return (second[0] if first[0] is None else first[0], second[1] if first[1] is None else first[1], first[2])


def describe(node: onnx.NodeProto) -> str:
    """Return words by which a reader finds the node."""
    if node.name:
        return f"node '{node.name}'"
    output = next((name for name in node.output if name), "nothing")
    return f"the {node.op_type} node that produces '{output}'"


def _import_graph(source: onnx.GraphProto, outer: ChainMap[str, gs.Tensor], header: dict[str, Any]) -> Graph:
    local = _local_tensors(source)
    scope = outer.new_child(local)
    nodes = [_import_node(node, scope, header) for node in _sorted_nodes(source, scope)]
    graph = Graph(
        nodes=nodes,
        inputs=[local[value.name] for value in source.input if not isinstance(local[value.name], gs.Constant)],
        outputs=[_graph_output(value.name, scope) for value in source.output],
        name=source.name,
        doc_string=source.doc_string,
        opset=header["opset"],
        import_domains=header["import_domains"],
    )
    graph.source = source
    return graph


def _local_tensors(source: onnx.GraphProto) -> dict[str, gs.Tensor]:
    """Return a tensor for every name that the graph defines.

    Raises:
        ModelError: a name is defined twice.
    """
    tensors: dict[str, gs.Tensor] = {}
    for tensor in source.initializer:
        _define(tensors, gs.Constant(tensor.name, TensorValues(tensor)), "initializers")
    constants = set(tensors)
    declared = declared_types(source)
    for value in source.input:
        # An initializer that is listed as an input as well is its default value (or a habit of old files).
        if value.name not in constants:
            _define(tensors, gs.Variable(value.name, *declared[value.name]), "graph inputs")
    for node in source.node:
        for name in node.output:
            if name:
                _define(tensors, gs.Variable(name, *declared.get(name, UNDECLARED)), "values")
    return tensors


def _define(tensors: dict[str, gs.Tensor], tensor: gs.Tensor, what: str) -> None:
    if tensor.name in tensors:
        message = f"the graph is not in single assignment form: '{tensor.name}' is defined twice among its {what}"
        raise ModelError(f"{message}: rename one of them")
    tensors[tensor.name] = tensor


def _graph_output(name: str, scope: ChainMap[str, gs.Tensor]) -> gs.Tensor:
    if name not in scope:
        raise ModelError(f"graph output '{name}' is produced by no node: remove the output or export the model again")
    return scope[name]


def _import_node(node: onnx.NodeProto, scope: ChainMap[str, gs.Tensor], header: dict[str, Any]) -> gs.Node:
    attributes: dict[str, Any] = {}
    for attribute in node.attribute:
        value = _import_graph(attribute.g, scope, header) if is_body(attribute) else import_attribute(attribute)
        if value is not None:
            attributes[attribute.name] = value
    return gs.Node(
        op=node.op_type,
        name=node.name,
        attrs=attributes,
        inputs=[scope[name] if name else gs.Variable.empty() for name in node.input],
        outputs=[scope.maps[0][name] if name else gs.Variable.empty() for name in node.output],
        domain=node.domain if node.HasField("domain") else None,
    )


def _sorted_nodes(source: onnx.GraphProto, scope: ChainMap[str, gs.Tensor]) -> list[onnx.NodeProto]:
    """Return the nodes in an order in which they can run: their own, if it is one.

    Raises:
        ModelError: a node reads what nothing produces, or the nodes form a cycle.
    """
    nodes = list(source.node)
    producer = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    needs: list[set[int]] = []
    for node in nodes:
        read = {name for name in node.input if name}
        for body in bodies(node):
            read |= captured(body)
        missing = sorted(name for name in read if name not in scope)
        if missing:
            message = f"{describe(node)} reads '{missing[0]}', which nothing produces"
            raise ModelError(f"{message}: export the model again or add the missing input")
        needs.append({producer[name] for name in read if name in producer})
    if all(max(before, default=-1) < index for index, before in enumerate(needs)):
        return nodes
    order = _topological_order(needs)
    if len(order) < len(nodes):
        looping = nodes[_on_a_cycle(needs, set(range(len(nodes))) - set(order))]
        raise ModelError(f"the graph has a cycle through {describe(looping)}: export the model again")
    return [nodes[index] for index in order]


def _topological_order(needs: list[set[int]]) -> list[int]:
    """Return the indices that can be ordered, the smallest first wherever there is a choice."""
    followers: list[list[int]] = [[] for _ in needs]
    waiting = [len(before) for before in needs]
    for index, before in enumerate(needs):
        for earlier in before:
            followers[earlier].append(index)
    ready = [index for index, count in enumerate(waiting) if count == 0]
    order = []
    while ready:
        order.append(heapq.heappop(ready))
        for index in followers[order[-1]]:
            waiting[index] -= 1
            if waiting[index] == 0:
                heapq.heappush(ready, index)
    return order


def _on_a_cycle(needs: list[set[int]], stuck: set[int]) -> int:
    """Return a node of a cycle: every stuck node waits for a stuck one, so going back must come round."""
    seen: set[int] = set()
    index = min(stuck)
    while index not in seen:
        seen.add(index)
        index = min(needs[index] & stuck)
    return index


def all_tensors(messages: Iterable[Any]) -> Iterator[onnx.TensorProto]:
    """Yield every TensorProto inside models, graphs, nodes, functions or attributes, at any depth."""
    for message in messages:
        for field, value in message.ListFields():
            if field.message_type is None or field.message_type.name not in HOLDS_TENSORS:
                continue
            items = [value] if isinstance(value, Message) else value
            if field.message_type.name == "TensorProto":
                yield from items
            else:
                yield from all_tensors(items)
