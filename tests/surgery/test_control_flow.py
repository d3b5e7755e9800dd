"""Bodies of If, Loop and Scan read outer tensors: those stay whole, and everything else can still be pruned."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxprune.channels.groups import Channels, analyze
from onnxprune.model.io import to_proto
from onnxprune.runtime.session import SessionOptions, open_session
from onnxprune.surgery.gates import silence
from onnxprune.surgery.slice import slice_channels
from onnxprune.validate.proof import prove

IF = """
  a = MatMul(x, w) r = Relu(a) h = MatMul(r, v)
  z = If (c) <then_branch = t () => (float[N,7] p) { k = MatMul(h, s) p = Relu(k) },
              else_branch = e () => (float[N,7] q) { q = MatMul(h, s) }>
  y = MatMul(z, u)
"""
LOOP = """
  a = MatMul(x, w) r = Relu(a) h = MatMul(r, v) k = MatMul(h, s)
  z = Loop (n, c, k) <body = b (int64 i, bool go, float[N,7] state) => (bool on, float[N,7] next) {
      on = Identity(go) m = MatMul(state, l) next = Add(m, k) }>
  y = MatMul(z, u)
"""
SCAN = """
  a = MatMul(x, w) r = Relu(a) h = MatMul(r, v) k = MatMul(h, s)
  z0, z = Scan<num_scan_inputs=1, body = b (float[7] state, float[7] row) => (float[7] next, float[7] out) {
      next = Add(state, row) out = Mul(next, f) }> (f, k)
  y = MatMul(z, u)
"""
LENGTH = """
  a = MatMul(x, w) r = Relu(a) shape = Shape(r) count = Gather(shape, one) number = Cast<to=1>(count)
  h = MatMul(r, v) k = MatMul(h, s)
  z = If (c) <then_branch = t () => (float[N,7] p) { p = Div(k, number) },
              else_branch = e () => (float[N,7] q) { q = Identity(k) }>
  y = MatMul(z, u)
"""
SHAPE = """
  a = MatMul(x, w) r = Relu(a) shape = Shape(r) h = MatMul(r, v) k = MatMul(h, s)
  z = If (c) <then_branch = t () => (float[N,7] p) {
                  count = Gather(shape, one) number = Cast<to=1>(count) p = Div(k, number) },
              else_branch = e () => (float[N,7] q) { q = Identity(k) }>
  y = MatMul(z, u)
"""
SHAPES = {"w": (6, 8), "v": (8, 5), "s": (5, 7), "l": (7, 7), "f": (7,), "u": (7, 4)}


def flowing(body: str) -> onnx.ModelProto:
    header = f'<ir_version: 8, opset_import: ["": 17]> g (float[N,6] x, bool c) => (float[N,4] y) {{ {body} }}'
    model = parser.parse_model(header)
    rng = np.random.default_rng(0)
    for name, shape in SHAPES.items():
        model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape, np.float32), name))
    for name, value in (("n", 3), ("one", 1)):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
    for position, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{position}"
    return model


def reason_of(channels: Channels, tensor: str, dim: int) -> str:
    return str(channels.frozen[next(axis for axis in channels.frozen if axis == (tensor, dim))])


@pytest.mark.parametrize("body", [IF, LOOP, SCAN])
def test_what_no_body_reads_is_pruned(body: str) -> None:
    model = flowing(body)
    channels = analyze(model, {"x": (2, 6), "c": ()})
    assert 8 in {group.units for group in channels.prunable}
    rng = np.random.default_rng(0)
    for seed in range(3):
        chosen = {
            group.name: np.random.default_rng(seed).choice(group.units, group.units // 2, replace=False).tolist()
            for group in channels.prunable
        }
        feeds = [{"x": rng.standard_normal((3, 6), np.float32), "c": np.array(value)} for value in (True, False)]
        sliced = slice_channels(channels, chosen)
        result = prove(channels, chosen, sliced, feeds, SessionOptions(threads=1))
        assert result.passed, result


def test_captured_tensors_stay_whole() -> None:
    channels = analyze(flowing(IF), {"x": (2, 6), "c": ()})
    assert reason_of(channels, "v", 1) == "is used inside the body of 'If_3' (If)"
    assert {group.units for group in channels.prunable} == {8}


@pytest.mark.parametrize("body", [LENGTH, SHAPE])
@pytest.mark.parametrize("branch", [True, False])
def test_a_length_that_a_body_reads_is_the_original(body: str, branch: bool) -> None:
    channels = analyze(flowing(body), {"x": (2, 6), "c": ()})
    removals = {group.name: [0, 2, 3] for group in channels.prunable if group.units == 8}
    assert removals
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 6), np.float32), "c": np.array(branch)}
    options = SessionOptions(threads=1, optimize=False)
    graphs = silence(channels, removals), slice_channels(channels, removals)
    expected, found = (open_session(to_proto(graph), options).run(feeds)["y"] for graph in graphs)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
