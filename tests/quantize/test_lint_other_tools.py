"""Files of another quantizer, in each of its forms, break the rules of TensorRT that they do and no others."""

import numpy as np
import onnx
import pytest
from onnx_text import model

from onnxprune.model.io import load
from onnxprune.model.sizes import infer_shapes
from onnxprune.quantize.lint import lint
from onnxprune.quantize.targets import TARGETS

quantization = pytest.importorskip("onnxruntime.quantization")
Format, Type = quantization.QuantFormat, quantization.QuantType

NETWORK = ("x:N,16,8,8 w=16,16,3,3 b=16 u=16,16,3,3 v=16,16 k=16,24 o=24",
           "a = Conv <pads = [1, 1, 1, 1]> (x, w, b) r = Relu (a) c = Conv <pads = [1, 1, 1, 1]> (r, u, b) "
           "s = Add (c, r) t = Relu (s) q = GlobalAveragePool (t) f = Flatten (q) m = MatMul (f, v) "
           "h = Softmax (m) y = Gemm (h, k, o)")  # fmt: skip

ALWAYS = {"tensorrt/bias", "tensorrt/fusion", "tensorrt/float", "tensorrt/graph-output", "tensorrt/residual"}
"""Rules that files with Q/DQ break, whatever the integers: biases, outputs and Softmax in integers, Q behind all."""
HINT = {"tensorrt/per-channel"}


class Reader(quantization.CalibrationDataReader):
    """Samples, once."""

    def __init__(self):
        self._left = [{"x": np.random.default_rng(0).normal(size=(4, 16, 8, 8)).astype(np.float32)}]

    def get_next(self):
        return self._left.pop() if self._left else None


def broken(proto, level="violation"):
    graph = load(proto)
    found = lint(graph, infer_shapes(graph), TARGETS["tensorrt"])
    return {one.rule for one in found if one.level == level and one.rule.startswith("tensorrt/")}, found


def quantized(tmp_path, **settings):
    path = tmp_path / "made.onnx"
    quantization.quantize_static(model(*NETWORK), path, Reader(), **settings)
    return onnx.load(path)


SYMMETRIC = {"ActivationSymmetric": True}


@pytest.mark.parametrize(
    ("settings", "rules", "hints"),
    [
        ({}, ALWAYS | {"tensorrt/zero-point"}, HINT),
        ({"per_channel": True}, ALWAYS | {"tensorrt/zero-point"}, set()),
        ({"activation_type": Type.QUInt8}, ALWAYS | {"tensorrt/zero-point", "tensorrt/type"}, HINT),
        ({"weight_type": Type.QUInt8, "activation_type": Type.QUInt8},
         ALWAYS | {"tensorrt/zero-point", "tensorrt/type"}, HINT),
        ({"per_channel": True, "extra_options": SYMMETRIC}, ALWAYS, set()),
        ({"extra_options": {**SYMMETRIC, "QuantizeBias": False}}, ALWAYS - {"tensorrt/bias"}, HINT),
        ({"extra_options": {**SYMMETRIC, "DedicatedQDQPair": True}}, ALWAYS | {"tensorrt/fan-out"}, HINT),
        ({"quant_format": Format.QOperator},
         {"tensorrt/operator", "tensorrt/pair", "tensorrt/zero-point"}, set()),
        ({"quant_format": Format.QOperator, "activation_type": Type.QUInt8},
         {"tensorrt/operator", "tensorrt/pair", "tensorrt/zero-point", "tensorrt/type"}, set()),
    ],
)  # fmt: skip
def test_files_of_static_quantization(tmp_path, settings, rules, hints):
    proto = quantized(tmp_path, **settings)
    assert broken(proto)[0] == rules
    assert broken(proto, "hint")[0] >= hints


def test_what_is_refused_is_named(tmp_path):
    details = {one.detail for one in broken(quantized(tmp_path, quant_format=Format.QOperator))[1]}
    assert {"QLinearConv of ai.onnx", "QLinearMatMul of ai.onnx", "QGemm of com.microsoft"} <= details


def test_files_of_dynamic_quantization(tmp_path):
    path = tmp_path / "made.onnx"
    quantization.quantize_dynamic(model(*NETWORK), path)
    rules, found = broken(onnx.load(path))
    assert rules == {"tensorrt/operator"}
    assert {one.detail.split()[0] for one in found} >= {"DynamicQuantizeLinear", "ConvInteger", "MatMulInteger"}
    assert all("--target tensorrt" in one.fix for one in found)


def test_weights_alone_lack_a_pair_on_the_data(tmp_path):
    proto = quantized(tmp_path, per_channel=True, extra_options=SYMMETRIC)
    graph = proto.graph
    pairs = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            step = pairs[node.input[0]]
            made = next(one for one in graph.node if step.input[0] in one.output)
            node.input[0] = made.input[0]
    found = [one for one in broken(proto)[1] if one.rule == "tensorrt/inputs"]
    assert len(found) == 4
    assert all("is float" in one.detail for one in found)
