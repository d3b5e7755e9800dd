"""Descriptions of values: name, element type and dimensions, written where they changed."""

from __future__ import annotations

from collections import ChainMap
from typing import Any

import onnx
import onnx_graphsurgeon as gs

from onnxprune.model.importer import Declared, declared_type
from onnxprune.model.values import element_type


def write_value_info(
    original: onnx.ValueInfoProto,
    tensor: gs.Tensor,
    declared: ChainMap[str, Declared],
    target: onnx.ValueInfoProto,
) -> bool:
    """Write what is known of a value now into an empty message; False if nothing is known any more."""
    shape = None if tensor.shape is None else list(tensor.shape)
    dtype_before, shape_before, kind = declared.get(tensor.name) or declared_type(original.type)
    if shape is None and shape_before is not None:
        return False
    target.CopyFrom(original)
    if original.type.WhichOneof("value") != "tensor_type" or kind != "tensor_type":
        return True
    if tensor.dtype is not None and tensor.dtype != dtype_before:
        target.type.tensor_type.elem_type = element_type(tensor.dtype)
    if shape is not None and shape != shape_before:
        _write_shape(shape, target.type.tensor_type)
    return True


def _write_shape(shape: list[Any], target: onnx.TypeProto.Tensor) -> None:
    """Write dimensions; the denotation of a dimension stays as long as the rank does."""
    target.shape.SetInParent()
    dims = target.shape.dim
    if len(dims) != len(shape):
        del dims[:]
        for _ in shape:
            dims.add()
    for dim, value in zip(dims, shape, strict=True):
        if isinstance(value, str):
            dim.dim_param = value
        elif value is None or value < 0:
            dim.ClearField("dim_value")
            dim.ClearField("dim_param")
        else:
            dim.dim_value = int(value)


def new_value_info(tensor: gs.Tensor, target: onnx.ValueInfoProto) -> None:
    """Write what the graph says of a value that the model did not describe."""
    target.name = tensor.name
    if tensor.dtype is None:
        return
    described = target.type
    if getattr(tensor, "type", "tensor_type") == "sequence_type":
        described = described.sequence_type.elem_type
    described.tensor_type.elem_type = element_type(tensor.dtype)
    if tensor.shape is not None:
        _write_shape(list(tensor.shape), described.tensor_type)
