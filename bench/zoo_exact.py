"""The proof in float64, for networks whose rounding errors grow beyond the limit of float32."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxprune.channels.groups import Channels
from onnxprune.model.io import to_proto
from onnxprune.surgery.gates import silence
from onnxprune.surgery.slice import Removals, slice_channels

LIMIT = 1e-9


def exact_difference(channels: Channels, removals: Removals, feed: Mapping[str, np.ndarray]) -> float:
    """Returns the largest relative difference between the outputs of the masked and of the sliced model in float64."""
    wide = {k: v.astype(np.float64) if v.dtype == np.float32 else v for k, v in feed.items()}
    graphs = (silence(channels, removals), slice_channels(channels, removals))
    first, second = (ReferenceEvaluator(_doubled(to_proto(graph))).run(None, wide) for graph in graphs)
    return max(
        float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-30))
        for a, b in zip(first, second, strict=True)
        if np.issubdtype(a.dtype, np.floating)
    )


def _doubled(model: onnx.ModelProto) -> onnx.ModelProto:
    model = onnx.ModelProto.FromString(model.SerializeToString())
    for tensor in model.graph.initializer:
        _widen(tensor)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                _widen(attribute.t)
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.DOUBLE
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    del model.graph.value_info[:]
    return model


def _widen(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == TensorProto.FLOAT:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
