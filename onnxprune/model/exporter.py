"""From the graph in memory back to protobuf: what did not change is taken from the model that was read."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import onnx
import onnx_graphsurgeon as gs
from google.protobuf.message import Message
from onnx import helper
from onnx_graphsurgeon.logger import G_LOGGER

from onnxprune.errors import ModelError
from onnxprune.model.attributes import export_attribute, is_body, new_attribute, schema_kind
from onnxprune.model.graph import Graph, graph_tensors
from onnxprune.model.importer import (
    DEFAULT_DOMAINS,
    UNDECLARED,
    Declared,
    bodies,
    declared_types,
    local_names,
    model_opset,
)
from onnxprune.model.valueinfo import new_value_info, write_value_info
from onnxprune.model.values import write_tensor

# From this version on an initializer need not be listed among the graph inputs.
FIRST_IR_WITH_OWN_INITIALIZERS = 4
OLDEST_IR_WRITTEN = 8


@dataclass(frozen=True)
class _Scope:
    """What a graph knows of itself and of the graphs around it."""

    opset: int
    ir_version: int
    declared: ChainMap[str, Declared]
    constants: frozenset[int]  # identities of the constants that these graphs write
    depth: int = 0

    @property
    def is_root(self) -> bool:
        return self.depth == 1


def export_model(graph: gs.Graph) -> onnx.ModelProto:
    """Return a new model with everything that the graph says, and the rest from the model it was read from.

    Raises:
        ModelError: the graph holds something that ONNX cannot express.
    """
    origin = graph.origin if isinstance(graph, Graph) else None
    model = onnx.ModelProto()
    if origin is not None:
        copy_fields(origin, model, ("graph", "opset_import"))
    _write_header(graph, origin or onnx.ModelProto(), model)
    _export_graph(graph, _Scope(graph.opset, model.ir_version, ChainMap(), frozenset()), model.graph)
    return model


def copy_fields(source: Message, target: Any, skip: Collection[str]) -> None:
    """Copy the fields that are set in a message, except those named in ``skip``."""
    for field, value in source.ListFields():
        if field.name in skip:
            continue
        if isinstance(value, Message):
            getattr(target, field.name).CopyFrom(value)
        elif isinstance(value, str | bytes | int | float):
            setattr(target, field.name, value)
        else:
            getattr(target, field.name).extend(value)


def _write_header(graph: gs.Graph, origin: onnx.ModelProto, model: onnx.ModelProto) -> None:
    _write_opsets(graph, origin, model)
    if graph.ir_version is not None and graph.ir_version != origin.ir_version:
        model.ir_version = graph.ir_version
    elif not origin.HasField("graph"):
        needed = helper.find_min_ir_version_for(list(model.opset_import), ignore_unknown=True)
        model.ir_version = max(needed, OLDEST_IR_WRITTEN)
    for name in ("producer_name", "producer_version"):
        if getattr(graph, name) != getattr(origin, name):
            setattr(model, name, getattr(graph, name))
    if graph.functions:
        from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

        with G_LOGGER.suppress():
            model.functions.extend(OnnxExporter.export_function(function) for function in graph.functions)


def _write_opsets(graph: gs.Graph, origin: onnx.ModelProto, model: onnx.ModelProto) -> None:
    domains = graph.import_domains
    model.opset_import.extend(origin.opset_import if domains is None else domains)
    standard = next((item for item in model.opset_import if item.domain in DEFAULT_DOMAINS), None)
    opset_before = model_opset(origin) if origin.HasField("graph") else None
    if standard is None and (opset_before is None or graph.opset != opset_before):
        model.opset_import.append(helper.make_opsetid("", graph.opset))
    elif standard is not None and graph.opset not in (opset_before, standard.version):
        standard.version = graph.opset
    known = {item.domain for item in model.opset_import} | set(DEFAULT_DOMAINS)
    before = set(_domains(origin.graph))
    for domain in dict.fromkeys(node.domain or "" for node in _all_nodes(graph)):
        if domain not in known and domain not in before:
            model.opset_import.append(helper.make_opsetid(domain, 1))


def _domains(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield node.domain
        for body in bodies(node):
            yield from _domains(body)


def _all_nodes(graph: gs.Graph) -> Iterator[gs.Node]:
    for node in graph.nodes:
        yield node
        for value in node.attrs.values():
            if isinstance(value, gs.Graph):
                yield from _all_nodes(value)


def _source_of(graph: gs.Graph) -> onnx.GraphProto | None:
    return graph.source if isinstance(graph, Graph) else None


def _export_graph(graph: gs.Graph, outer: _Scope, target: onnx.GraphProto) -> None:
    source = _source_of(graph) or onnx.GraphProto()
    copy_fields(
        source,
        target,
        ("node", "initializer", "input", "output", "value_info", "quantization_annotation"),
    )
    for name in ("name", "doc_string"):
        if (getattr(graph, name) or "") != getattr(source, name):
            setattr(target, name, getattr(graph, name) or "")
    values = {tensor.name: tensor for tensor in graph_tensors(graph) if tensor.name}
    constants = _own_constants(graph, source, outer.constants)
    declared = declared_types(source)
    inner = _Scope(
        opset=outer.opset,
        ir_version=outer.ir_version,
        declared=outer.declared.new_child(declared),
        constants=outer.constants | {id(constant) for constant in constants.values()},
        depth=outer.depth + 1,
    )
    _export_nodes(graph, source, inner, target)
    values.update(constants)
    unused = set(local_names(source)) | {info.name for info in source.value_info}
    unused -= _mentioned(source) | set(values)
    _export_initializers(constants, source, unused, target)
    _export_ends(graph, source, values, inner, target)
    _export_value_infos(graph, source, values, unused, inner, target)
    gone = set(local_names(source)) - set(values) - unused
    target.quantization_annotation.extend(
        item for item in source.quantization_annotation if item.tensor_name not in gone
    )


def _own_constants(graph: gs.Graph, source: onnx.GraphProto, outer: frozenset[int]) -> dict[str, gs.Constant]:
    """Return the constants that this graph has to write: its own, and those it held for the bodies in it.

    Raises:
        ModelError: two constants have one name.
    """
    held = {tensor.name for tensor in source.initializer}
    result: dict[str, gs.Constant] = {}
    for tensor in graph_tensors(graph):
        if isinstance(tensor, gs.Constant) and tensor.name and (tensor.name in held or id(tensor) not in outer):
            known = result.setdefault(tensor.name, tensor)
            if known._values is not tensor._values:
                raise ModelError(f"two initializers are named '{tensor.name}': give one of them another name")
    for tensor in _body_constants(graph):
        if tensor.name in held:
            result.setdefault(tensor.name, tensor)
    return result


def _body_constants(graph: gs.Graph) -> Iterator[gs.Constant]:
    """Yield the constants that bodies in this graph read and do not hold themselves."""
    for node in graph.nodes:
        for body in node.attrs.values():
            if not isinstance(body, gs.Graph):
                continue
            source = _source_of(body)
            held = set() if source is None else set(local_names(source))
            for tensor in (*graph_tensors(body), *_body_constants(body)):
                if isinstance(tensor, gs.Constant) and tensor.name not in held:
                    yield tensor


def _mentioned(source: onnx.GraphProto) -> set[str]:
    """Return every name that nodes read or write, bodies included, and the graph outputs."""
    names = {value.name for value in source.output}
    for node in source.node:
        names.update(node.input)
        names.update(node.output)
        for body in bodies(node):
            names |= _mentioned(body)
    return names


def _key(op: str, outputs: Any) -> tuple[str, str]:
    return op, next((name for name in outputs if name), "")


def _export_nodes(graph: gs.Graph, source: onnx.GraphProto, scope: _Scope, target: onnx.GraphProto) -> None:
    originals = {_key(node.op_type, node.output): node for node in source.node}
    for node in graph.nodes:
        outputs = [tensor.name for tensor in node.outputs]
        original = originals.get(_key(node.op, outputs)) or onnx.NodeProto()
        message = target.node.add()
        copy_fields(original, message, ("input", "output", "attribute"))
        message.input.extend(tensor.name for tensor in node.inputs)
        message.output.extend(outputs)
        if node.op != original.op_type:
            message.op_type = node.op
        if (node.name or "") != original.name:
            message.name = node.name or ""
        if (node.domain or "") != original.domain:
            message.domain = node.domain or ""
        _export_attributes(node, original, scope, message)


def _export_attributes(node: gs.Node, original: onnx.NodeProto, scope: _Scope, message: onnx.NodeProto) -> None:
    written = set()
    for attribute in original.attribute:
        written.add(attribute.name)
        if attribute.name in node.attrs:
            _export_attribute(node.attrs[attribute.name], attribute, scope, message.attribute.add())
        elif not _was_imported(attribute):
            message.attribute.add().CopyFrom(attribute)
    for name, value in node.attrs.items():
        if name in written:
            continue
        attribute = message.attribute.add()
        if isinstance(value, gs.Graph):
            attribute.name, attribute.type = name, onnx.AttributeProto.GRAPH
            _export_graph(value, scope, attribute.g)
        elif isinstance(value, gs.Node.AttributeRef):
            raise ModelError(f"attribute '{name}' refers to a function's attribute outside of one: give it a value")
        else:
            new_attribute(name, value, schema_kind(node, name, scope.opset), attribute)


def _was_imported(attribute: onnx.AttributeProto) -> bool:
    kinds = onnx.AttributeProto
    held = (kinds.FLOAT, kinds.INT, kinds.STRING, kinds.TENSOR, kinds.GRAPH, kinds.FLOATS, kinds.INTS, kinds.STRINGS)
    return not attribute.ref_attr_name and attribute.type in held


def _export_attribute(value: Any, original: onnx.AttributeProto, scope: _Scope, target: onnx.AttributeProto) -> None:
    if isinstance(value, gs.Graph):
        if is_body(original):
            copy_fields(original, target, ("g",))
        target.name, target.type = original.name, onnx.AttributeProto.GRAPH
        _export_graph(value, scope, target.g)
    else:
        export_attribute(value, original, target)


def _export_initializers(
    constants: dict[str, gs.Constant], source: onnx.GraphProto, unused: set[str], target: onnx.GraphProto
) -> None:
    """Write initializers in their original order, the new ones after them."""
    left = dict(constants)
    for tensor in source.initializer:
        if tensor.name in left:
            write_tensor(left.pop(tensor.name), tensor, target.initializer.add())
        elif tensor.name in unused:
            target.initializer.add().CopyFrom(tensor)
    for constant in left.values():
        write_tensor(constant, None, target.initializer.add())


def _export_ends(
    graph: gs.Graph, source: onnx.GraphProto, values: dict[str, gs.Tensor], inner: _Scope, target: onnx.GraphProto
) -> None:
    """Write graph inputs and outputs; those of the model itself stay as they were."""
    inputs = {value.name: value for value in source.input}
    outputs = {value.name: value for value in source.output}

    def write(tensor: gs.Tensor, original: onnx.ValueInfoProto | None, keep: bool, target: onnx.ValueInfoProto) -> None:
        if original is None:
            new_value_info(tensor, target)
        elif keep or not write_value_info(original, tensor, inner.declared, target):
            target.CopyFrom(original)

    for name in _input_names(graph, source, inner, target):
        if name in values:
            keep = inner.is_root and not isinstance(values[name], gs.Constant)
            write(values[name], inputs.get(name), keep, target.input.add())
        else:
            target.input.add().CopyFrom(inputs[name])
    for tensor in graph.outputs:
        write(tensor, outputs.get(tensor.name), inner.is_root, target.output.add())


def _input_names(graph: gs.Graph, source: onnx.GraphProto, inner: _Scope, target: onnx.GraphProto) -> list[str]:
    """Return the inputs in their original order, initializers among them where the model lists those."""
    initializers = [tensor.name for tensor in target.initializer]
    defaults = set(initializers)
    real = [tensor.name for tensor in graph.inputs if tensor.name not in defaults]
    known = defaults | set(real)
    names = [value.name for value in source.input if value.name in known]
    if [name for name in names if name not in defaults] != real:
        names = real + [name for name in names if name in defaults]
    if inner.is_root and 0 < inner.ir_version < FIRST_IR_WITH_OWN_INITIALIZERS:
        before = set(local_names(source))
        names += [name for name in initializers if name not in before]
    return names


def _export_value_infos(
    graph: gs.Graph,
    source: onnx.GraphProto,
    values: dict[str, gs.Tensor],
    unused: set[str],
    scope: _Scope,
    target: onnx.GraphProto,
) -> None:
    for info in source.value_info:
        tensor = values.get(info.name)
        if tensor is not None:
            message = onnx.ValueInfoProto()
            if write_value_info(info, tensor, scope.declared, message):
                target.value_info.append(message)
        elif info.name in unused:
            target.value_info.append(info)
    ends = {tensor.name for tensor in (*graph.inputs, *graph.outputs)}
    written = ends | {info.name for info in source.value_info}
    for node in graph.nodes:
        for tensor in node.outputs:
            if tensor.name and tensor.name not in written and _says_more(tensor, scope.declared):
                new_value_info(tensor, target.value_info.add())


def _says_more(tensor: gs.Tensor, declared: ChainMap[str, Declared]) -> bool:
    """Return whether type and shape are known now and were not when the model was read."""
    if tensor.dtype is None or tensor.shape is None:
        return False
    dtype, shape, _ = declared.get(tensor.name, UNDECLARED)
    return dtype != tensor.dtype or shape != list(tensor.shape)
