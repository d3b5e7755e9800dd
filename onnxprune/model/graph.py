"""The graph in memory: a graphsurgeon graph that remembers the protobuf messages it came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import onnx
import onnx_graphsurgeon as gs


class Graph(gs.Graph):  # type: ignore[misc]
    """A graphsurgeon graph with the messages that graphsurgeon has no place for.

    Attributes:
        origin: The model that was read; shared between copies, never modified, None for a graph built by hand.
        source: The part of ``origin`` that this graph was made from (a body of If, Loop or Scan has its own).
        external: Whether the weights lay in files beside the model.
        sparse: Whether initializers were stored in sparse form.
    """

    origin: onnx.ModelProto | None = None
    source: onnx.GraphProto | None = None
    external: bool = False
    sparse: bool = False

    def copy(self, tensor_map: Mapping[str, gs.Tensor] | None = None) -> Graph:
        """Return a copy with its own nodes, tensors and attributes; weights and ``origin`` are shared.

        Args:
            tensor_map: Tensors of the outer graph by name, when the body of a node is copied alone.
        """
        return copy_graph(self, tensor_map)


def graph_tensors(graph: gs.Graph) -> Iterator[gs.Tensor]:
    """Yield the tensors that the graph itself names, bodies of its nodes left out; tensors come repeatedly."""
    yield from graph.inputs
    for node in graph.nodes:
        yield from node.inputs
        yield from node.outputs
    yield from graph.outputs


def stored_tensors(graph: gs.Graph) -> Iterator[tuple[str, gs.Constant]]:
    """Yields every stored tensor once, with the name under which nodes read it."""
    seen: set[int] = set()
    for node in graph.nodes:
        for tensor in node.inputs:
            if isinstance(tensor, gs.Constant) and id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor.name, tensor
        if node.op == "Constant":
            content = next(iter(node.attrs.values()))
            if isinstance(content, gs.Constant):
                yield node.outputs[0].name, content


def captured(body: gs.Graph) -> set[str]:
    """Returns the names of the outer tensors that a body and the bodies within it read."""
    names: set[str] = set()
    inner = {tensor.name for tensor in body.inputs}
    for node in body.nodes:
        inner.update(tensor.name for tensor in node.outputs)
        names.update(tensor.name for tensor in node.inputs if tensor.name)
        for value in node.attrs.values():
            if isinstance(value, gs.Graph):
                names.update(captured(value))
    names.update(tensor.name for tensor in body.outputs)
    return names - inner


def read_by(node: gs.Node) -> set[str]:
    """Returns the names of the computed tensors that a node and its bodies read."""
    names = {tensor.name for tensor in node.inputs if tensor.name and not isinstance(tensor, gs.Constant)}
    for value in node.attrs.values():
        if isinstance(value, gs.Graph):
            names |= captured(value)
    return names


def read_outside(graph: gs.Graph) -> set[str]:
    """Returns the names of the tensors that others than the nodes of a graph read: outputs, and what bodies read."""
    names = {tensor.name for tensor in graph.outputs}
    for node in graph.nodes:
        for value in node.attrs.values():
            if isinstance(value, gs.Graph):
                names |= captured(value)
    return names


def overridable(graph: gs.Graph) -> set[str]:
    """Returns the initializers that are also graph inputs, which callers may override from IR version 4 on."""
    origin = getattr(graph, "origin", None)
    if origin is None or origin.ir_version < 4:
        return set()
    stored = {tensor.name for tensor in origin.graph.initializer}
    return {value.name for value in origin.graph.input if value.name in stored}


def copy_graph(graph: gs.Graph, tensor_map: Mapping[str, gs.Tensor] | None = None) -> Graph:
    """Return a copy of any graphsurgeon graph as a :class:`Graph`; weights are shared.

    Args:
        graph: The graph, which is not changed.
        tensor_map: Tensors of the outer graph by name, when the body of a node is copied alone.
    """
    memo: dict[int, gs.Tensor] = {}
    if tensor_map:
        local = {id(tensor) for tensor in graph.inputs}
        local.update(id(tensor) for node in graph.nodes for tensor in node.outputs)
        for tensor in graph_tensors(graph):
            if id(tensor) not in local and tensor.name in tensor_map:
                memo[id(tensor)] = tensor_map[tensor.name]
    return _copy_graph(graph, memo)


def _copy_graph(graph: gs.Graph, memo: dict[int, gs.Tensor]) -> Graph:
    def copied(tensors: list[gs.Tensor]) -> list[gs.Tensor]:
        for tensor in tensors:
            if id(tensor) not in memo:
                memo[id(tensor)] = _copy_tensor(tensor)
        return [memo[id(tensor)] for tensor in tensors]

    inputs = copied(graph.inputs)
    outputs_of = [copied(node.outputs) for node in graph.nodes]
    nodes = []
    for node, node_outputs in zip(graph.nodes, outputs_of, strict=True):
        node_inputs = copied(node.inputs)
        attributes = {name: _copy_attribute(value, memo) for name, value in node.attrs.items()}
        nodes.append(gs.Node(node.op, node.name, attributes, node_inputs, node_outputs, node.domain))
    result = Graph(
        nodes=nodes,
        inputs=inputs,
        outputs=copied(graph.outputs),
        name=graph.name,
        doc_string=graph.doc_string,
        opset=graph.opset,
        import_domains=copy_domains(graph.import_domains),
        producer_name=graph.producer_name,
        producer_version=graph.producer_version,
        functions=list(graph.functions),
        ir_version=graph.ir_version,
    )
    if isinstance(graph, Graph):
        result.origin, result.source = graph.origin, graph.source
        result.external, result.sparse = graph.external, graph.sparse
    return result


def copy_domains(domains: Any) -> list[onnx.OperatorSetIdProto] | None:
    """Return the operator sets as new messages, or None if there are none given."""
    if domains is None:
        return None
    result = []
    for domain in domains:
        result.append(onnx.OperatorSetIdProto())
        result[-1].CopyFrom(domain)
    return result


def _copy_tensor(tensor: gs.Tensor) -> gs.Tensor:
    if isinstance(tensor, gs.Constant):
        constant = gs.Constant(tensor.name, tensor._values, tensor.data_location)
        constant._export_dtype = tensor._export_dtype
        return constant
    shape = None if tensor.shape is None else list(tensor.shape)
    return gs.Variable(tensor.name, tensor.dtype, shape, tensor.type)


def _copy_attribute(value: Any, memo: dict[int, gs.Tensor]) -> Any:
    if isinstance(value, gs.Graph):
        return _copy_graph(value, memo)
    if isinstance(value, gs.Tensor):
        return _copy_tensor(value)
    return list(value) if isinstance(value, list) else value
