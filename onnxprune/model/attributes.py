"""Attributes of nodes: what graphsurgeon holds of them, and back to protobuf where that changed."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import defs, helper

from onnxprune.errors import ModelError
from onnxprune.model.values import TensorValues, element_type, write_tensor

Attribute = onnx.AttributeProto


def import_attribute(attribute: onnx.AttributeProto) -> Any:
    """Return the value that graphsurgeon holds for an attribute, or None if it can hold none.

    Bodies (type GRAPH) are not handled here. Strings that are not UTF-8 stay bytes.
    """
    if attribute.ref_attr_name:
        return None
    match attribute.type:
        case Attribute.FLOAT:
            return attribute.f
        case Attribute.INT:
            return attribute.i
        case Attribute.STRING:
            return _decoded(attribute.s)
        case Attribute.TENSOR:
            return gs.Constant(attribute.t.name, TensorValues(attribute.t))
        case Attribute.FLOATS:
            return list(attribute.floats)
        case Attribute.INTS:
            return list(attribute.ints)
        case Attribute.STRINGS:
            return [_decoded(item) for item in attribute.strings]
    return None


def is_body(attribute: onnx.AttributeProto) -> bool:
    """Return whether the attribute holds one graph."""
    return attribute.type == Attribute.GRAPH and not attribute.ref_attr_name


def export_attribute(value: Any, original: onnx.AttributeProto, target: onnx.AttributeProto) -> None:
    """Write an attribute that the model had into an empty message; unless its value changed, it stays as it was."""
    value = _plain(value)
    if isinstance(value, gs.Constant) and original.type == Attribute.TENSOR:
        for field, content in original.ListFields():
            if field.name != "t":
                setattr(target, field.name, content)
        write_tensor(value, original.t, target.t)
        return
    if _unchanged(value, original):
        target.CopyFrom(original)
        return
    new_attribute(original.name, _conform(value, original.type), original.type, target)
    if original.HasField("doc_string"):
        target.doc_string = original.doc_string


def new_attribute(name: str, value: Any, kind: Any, target: onnx.AttributeProto) -> None:
    """Write an attribute into an empty message.

    Args:
        name: Name of the attribute.
        value: What graphsurgeon holds: a number, text, a list, a constant, a NumPy type; no graph.
        kind: The type of the attribute where it is known (an empty list does not show it).
        target: The message to fill.

    Raises:
        ModelError: ONNX has no attribute that holds such a value.
    """
    value = _plain(value)
    if isinstance(value, gs.Constant):
        target.name, target.type = name, Attribute.TENSOR
        write_tensor(value, None, target.t)
        return
    if isinstance(value, list) and not value:
        target.name, target.type = name, kind or Attribute.INTS
        return
    try:
        target.CopyFrom(helper.make_attribute(name, value))
    except (TypeError, ValueError) as error:
        message = f"attribute '{name}' cannot hold {value!r}"
        raise ModelError(f"{message}: use numbers, text, lists of one kind, constants or graphs") from error


def schema_kind(node: gs.Node, name: str, opset: int) -> int | None:
    """Return the type that the standard gives an attribute of a node, or None if the operator is not standard."""
    try:
        schema = defs.get_schema(node.op, opset, node.domain or "")
    except defs.SchemaError:
        return None
    attribute = schema.attributes.get(name)
    return None if attribute is None else Attribute.AttributeType.Value(str(attribute.type).rpartition(".")[2])


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, np.dtype | type):
        return element_type(value)
    return list(value) if isinstance(value, tuple) else value


def _conform(value: Any, kind: int) -> Any:
    """Return the value as the type wants it: an integer written for a float is a float."""
    if kind == Attribute.FLOAT and isinstance(value, int):
        return float(value)
    if kind == Attribute.FLOATS and isinstance(value, list):
        return [float(item) for item in value]
    return value


def _unchanged(value: Any, original: onnx.AttributeProto) -> bool:
    """Return whether the message says the same, floats compared in the 32 bits in which they are stored."""
    before = import_attribute(original)
    if original.type in (Attribute.FLOAT, Attribute.FLOATS):
        try:
            after = np.asarray(value, np.float32)
        except (TypeError, ValueError):
            return False
        return np.ndim(before) == after.ndim and np.asarray(before, np.float32).tobytes() == after.tobytes()
    return type(before) is type(value) and bool(before == value)


def _decoded(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value
