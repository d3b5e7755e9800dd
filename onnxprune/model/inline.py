"""Local functions: calls are replaced by bodies, so that the weights inside can be pruned like all others."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

import onnx
import onnx.inliner
from onnx import defs

from onnxprune.model.exporter import export_model
from onnxprune.model.graph import Graph
from onnxprune.model.importer import bodies, import_model

LOG = logging.getLogger("onnxprune")
WEIGHTS = ("initializer", "sparse_initializer")


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with bodies in place of calls to local functions; the model itself if it has no functions.

    A function that imports another version of an operator set is inlined where all its operators mean the same in the
    version of the model, and stays a call otherwise. Weights are left out of the work, which protobuf limits to 2 GiB.

    Args:
        model: The model, which is not changed.
    """
    if not model.functions:
        return model
    shell = _without_weights(model)
    _align_versions(shell)
    try:
        result = onnx.inliner.inline_local_functions(shell)
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        LOG.warning("the local functions of the model stay as they are: %s", error)
        return model
    for name in WEIGHTS:
        result.graph.ClearField(name)
        getattr(result.graph, name).MergeFrom(getattr(model.graph, name))
    _keep_properties(model, result)
    _import_domains(model, result)
    _name_apart(result.graph.node, set())
    return result


def without_functions(graph: Graph) -> Graph:
    """Return the graph with bodies in place of calls to local functions; the graph itself if it calls none."""
    if graph.origin is None or not graph.origin.functions:
        return graph
    result = import_model(inlined(export_model(graph)))
    result.external, result.sparse = graph.external, graph.sparse
    return result


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every weight is but a name, so that the names stay taken."""
    shell = onnx.ModelProto()
    for source, target, left_out in ((model, shell, ("graph",)), (model.graph, shell.graph, WEIGHTS)):
        for field, value in source.ListFields():
            if field.name in left_out:
                continue
            if field.is_repeated:
                getattr(target, field.name).MergeFrom(value)
            elif field.message_type is not None:
                getattr(target, field.name).CopyFrom(value)
            else:
                setattr(target, field.name, value)
    for tensor in model.graph.initializer:
        shell.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=[0])
    for sparse in model.graph.sparse_initializer:
        shell.graph.initializer.add(name=sparse.values.name, data_type=sparse.values.data_type, dims=[0])
    return shell


def _align_versions(model: onnx.ModelProto) -> None:
    """Sets the operator sets that functions import to those of the model, where no operator in them changed between."""
    versions = {entry.domain: entry.version for entry in model.opset_import}
    for function in model.functions:
        for entry in function.opset_import:
            wanted = versions.get(entry.domain, entry.version)
            used = {node.op_type for node in _all_nodes(function.node) if node.domain == entry.domain}
            if wanted != entry.version and all(_same(op, entry.domain, entry.version, wanted) for op in used):
                entry.version = wanted


def _same(op: str, domain: str, left: int, right: int) -> bool:
    try:
        found = [defs.get_schema(op, version, domain).since_version for version in (left, right)]
    except defs.SchemaError:
        return False
    return found[0] == found[1]


def _all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for body in bodies(node):
            yield from _all_nodes(body.node)


def _keep_properties(model: onnx.ModelProto, result: onnx.ModelProto) -> None:
    """Puts back what the inliner does not carry over."""
    for source, target in ((model, result), (model.graph, result.graph)):
        if not target.metadata_props:
            target.metadata_props.MergeFrom(source.metadata_props)


def _import_domains(model: onnx.ModelProto, result: onnx.ModelProto) -> None:
    """Adds the operator sets that only functions imported."""
    present = {entry.domain for entry in result.opset_import}
    for node in _all_nodes(result.graph.node):
        if node.domain in present:
            continue
        found = (e for function in model.functions for e in function.opset_import if e.domain == node.domain)
        version = next(found, None)
        if version is not None:
            result.opset_import.append(version)
            present.add(node.domain)


def _name_apart(nodes: Iterable[onnx.NodeProto], taken: set[str]) -> None:
    """Numbers the nodes that have the name of another; a function that is called twice brings each name twice."""
    for node in _all_nodes(nodes):
        name, number = node.name, 1
        while node.name and node.name in taken:
            number += 1
            node.name = f"{name}_{number}"
        taken.add(node.name)
