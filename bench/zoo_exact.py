"""The proof in float64, for networks whose rounding errors grow beyond the limit of float32."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxprune.channels.groups import Channels
from onnxprune.model.io import to_proto
from onnxprune.surgery.gates import silence
from onnxprune.surgery.slice import Gone, Removals, slice_channels

LIMIT = 1e-9


def exact_difference(
    channels: Channels, removals: Removals, feeds: Iterable[Mapping[str, np.ndarray]], tensor: str
) -> float:
    """Returns the largest relative difference in float64, over all feeds, at all outputs and at the given tensor.

    The tensor is the one at which the proof failed in float32, so that both look at the same place. It is infinite
    or not a number where float64 has no finite answer.
    """
    gone = Gone(channels, removals)
    models = [to_proto(silence(channels, removals)), to_proto(slice_channels(channels, removals))]
    names = list(dict.fromkeys([*(output.name for output in models[0].graph.output), tensor]))
    evaluators = [ReferenceEvaluator(_doubled(model, names)) for model in models]
    worst = [0.0]
    for feed in feeds:
        wide = {k: v.astype(np.float64) if v.dtype == np.float32 else v for k, v in feed.items()}
        first, second = (evaluator.run(names, wide) for evaluator in evaluators)
        for name, masked, sliced in zip(names, first, second, strict=True):
            expected = gone.take(name, masked)
            if not np.issubdtype(expected.dtype, np.floating) or not expected.size:
                continue
            worst.append(float(np.abs(expected - sliced).max() / max(float(np.abs(expected).max()), 1e-30)))
    return float(np.max(worst))  # unlike max(), keeps what is not a number


def _doubled(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    model = onnx.ModelProto.FromString(model.SerializeToString())
    present = {output.name for output in model.graph.output}
    for name in names:
        if name not in present:
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
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
