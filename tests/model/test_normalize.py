"""What is computed from stored tensors alone becomes stored where rules could only freeze it, and nothing else does."""

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_text import model, random_feeds, with_measured_outputs

from onnxprune.channels.groups import Channels, analyze
from onnxprune.model import fold
from onnxprune.model.io import to_proto
from onnxprune.runtime.session import SessionOptions, open_session
from onnxprune.surgery.slice import slice_channels
from onnxprune.validate.proof import prove

STANDARDIZED = """
  centre = Sub(flat, middle) square = Mul(centre, centre)
  variance = ReduceMean<axes=[0,2], keepdims=0>(square) m = ReduceMean<axes=[0,2], keepdims=0>(flat)
  s, n, u = BatchNormalization<training_mode=1>(flat, gain, shift, m, variance)
  weight = Reshape(s, back) a = Conv(x, weight) r = Relu(a) y = Conv(r, w2)
"""
TENSORS = "x:N,3,6,6 flat=1,8,27 middle=1,8,1 gain=8 shift=8 back={8,3,3,3} w2=5,8,1,1"


def analyzed(tensors: str, text: str, opset: int = 17) -> tuple[onnx.ModelProto, Channels]:
    """Returns a model with the single output y, and what analysis finds in it."""
    proto = model(tensors, text, opset)
    proto = with_measured_outputs(proto) if opset > 13 else proto
    for output in [value for value in proto.graph.output if value.name != "y"]:
        proto.graph.output.remove(output)
    return proto, analyze(proto)


def assert_same(proto: onnx.ModelProto, channels: Channels) -> None:
    """The normalized graph computes what the model does, also where half of all units went."""
    options = SessionOptions(threads=1)
    feeds = random_feeds(proto, np.random.default_rng(0), {"N": 2})
    expected, found = (open_session(m, options).run(feeds) for m in (proto, to_proto(channels.graph)))
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5)
    removals = {group.name: list(range(group.units // 2)) for group in channels.prunable}
    assert prove(channels, removals, slice_channels(channels, removals), [feeds], options).passed


def test_standardized_weights_become_stored() -> None:
    proto, channels = analyzed(TENSORS, STANDARDIZED)
    assert [node.op for node in channels.graph.nodes] == ["Reshape", "Conv", "Relu", "Conv"]
    assert [group.units for group in channels.prunable] == [8]
    assert_same(proto, channels)


def test_standardized_weights_of_old_exports_become_stored() -> None:
    """Before opset 14 a BatchNormalization with five outputs is in training: the statistics are its own."""
    text = STANDARDIZED.replace("s, n, u = BatchNormalization<training_mode=1>", "s, n, u, i, j = BatchNormalization")
    proto, channels = analyzed(TENSORS, text, 13)
    assert [node.op for node in channels.graph.nodes] == ["Reshape", "Conv", "Relu", "Conv"]
    assert [group.units for group in channels.prunable] == [8]
    assert_same(proto, channels)


def test_second_outputs_that_are_read_become_stored_too() -> None:
    text = """
      s, places = TopK<axis=0>(flat, k) p = Cast<to=1>(places) v = Add(s, p) a = MatMul(x, v) y = MatMul(a, w)
    """
    proto, channels = analyzed("x:N,3 flat=5,8 k={3} w=8,5", text)
    assert [node.op for node in channels.graph.nodes] == ["Cast", "Add", "MatMul", "MatMul"]
    assert [group.units for group in channels.prunable] == [8]
    assert_same(proto, channels)


def test_a_range_without_a_rule_becomes_stored() -> None:
    text = "r = Range(zero, four, one) a = MatMul(x, w) q = Gather<axis=1>(a, r) y = MatMul(q, w2)"
    proto, channels = analyzed("x:N,3 zero=#0 four=#4 one=#1 w=3,8 w2=4,5", text)
    assert [group.units for group in channels.prunable] == [4, 4]
    assert_same(proto, channels)


IF = "If<then_branch = t () => (float[5] b1) { b1 = Relu(m) }, else_branch = e () => (float[5] b2) { b2 = Neg(m) }>"
STAYS = {
    "moved": ("x:N,3 v=8,3 w=8,5", "q = Transpose(v) a = MatMul(x, q) y = MatMul(a, w)"),
    "scaled": ("x:N,3 v=8,3 g=8,1 w=8,5", "q = Mul(v, g) t = Transpose(q) a = MatMul(x, t) y = MatMul(a, w)"),
    "random": (
        "x:N,3 v=3,8 w=8,5",
        "n = RandomNormalLike<seed=1.0>(v) q = Softmax(n) a = MatMul(x, q) y = MatMul(a, w)",
    ),
    "output": ("x:N,3 v=3,8", "y = Softmax(v)"),
    "input": ("x:N,3 v=3,8 w=8,5", "q = Softmax(x) a = MatMul(q, v) y = MatMul(a, w)"),
    "body": (
        "x:N,3 c:b1 v=4,5 w=3,5",
        f"m = ReduceMax<axes=[0], keepdims=0>(v) i = {IF}(c) a = MatMul(x, w) y = Add(a, i)",
    ),
}


@pytest.mark.parametrize("name", STAYS)
def test_what_rules_can_follow_and_what_is_not_stored_stays(name: str) -> None:
    tensors, text = STAYS[name]
    proto, channels = analyzed(tensors, text)
    assert [node.op for node in channels.graph.nodes] == [node.op_type for node in proto.graph.node]
    assert_same(proto, channels) if name != "random" else None


def test_what_the_caller_may_override_stays() -> None:
    proto = model("x:N,3 v=3,8 w=8,5", "q = Softmax(v) a = MatMul(x, q) y = MatMul(a, w)")
    proto.graph.input.append(helper.make_tensor_value_info("v", onnx.TensorProto.FLOAT, [3, 8]))
    assert [node.op for node in analyze(proto).graph.nodes] == ["Softmax", "MatMul", "MatMul"]


def test_large_results_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fold, "LARGEST_FOLD", 100)
    _, channels = analyzed(TENSORS, STANDARDIZED)
    assert "BatchNormalization" in [node.op for node in channels.graph.nodes]


def test_long_chains_of_stored_tensors() -> None:
    steps = " ".join(f"s{n + 1} = Mul(s{n}, g)" for n in range(1500))
    text = steps + " m = ReduceMax<axes=[1], keepdims=0>(s1500) a = MatMul(x, w) b = Add(a, m) y = MatMul(b, w2)"
    _, channels = analyzed("x:N,8 s0=8,3 g=8,1 w=8,8 w2=8,5", text)
    assert [node.op for node in channels.graph.nodes] == ["MatMul", "Add", "MatMul"]


GRID = """
  a = MatMul(x, w) u = Relu(a) s = Shape(a)
  n = Gather(s, i0) t = Gather(s, i1) c = Gather(s, i2)
  rn = Range(i0, n, i1) rt = Range({start}, t, i1) rc = Range(i0, c, i1)
  gn = Reshape(rn, column3) gt = Reshape(rt, column2) sum1 = Add(gn, gt) sum2 = Add(sum1, rc) grid = Shape(sum2)
  en = Expand({n}, grid) et = Expand(gt, grid) ec = Expand(rc, grid)
  un = Unsqueeze(en, last) ut = Unsqueeze(et, last) uc = Unsqueeze(ec, last)
  indices = Concat<axis=-1>(un, ut, uc)
  z = ScatterND{reduction}(a, indices, {updates}) y = MatMul(z, w2)
"""
NUMBERS = "x:N,5,6 w=6,8 w2=8,5 i0=#0 i1=#1 i2=#2 column3={-1,1,1} column2={-1,1} last={-1} tail={1} far={9} cut=v"
WRITES = {
    "whole": ({}, True),
    "a part": ({"start": "i1", "updates": "u2"}, False),
    "in another order": ({"n": "turned"}, False),
    "added": ({"reduction": '<reduction="add">'}, False),
}


@pytest.mark.parametrize("name", WRITES)
def test_a_tensor_that_is_overwritten_whole(name: str) -> None:
    changes, whole = WRITES[name]
    text = GRID.format(**{"start": "i0", "n": "gn", "reduction": "", "updates": "u", **changes})
    text = text.replace("{start}", "i0")
    if name == "a part":
        text = text.replace("indices =", "u2 = Slice(u, tail, far, tail) indices =")
    if name == "in another order":
        text = text.replace("en =", "n1 = Sub(n, i1) turned = Sub(n1, gn) en =")
    proto, channels = analyzed(NUMBERS.replace(" cut=v", ""), text)
    ops = [node.op for node in channels.graph.nodes]
    assert ops == ["MatMul", "Relu", "Identity", "MatMul"] if whole else "ScatterND" in ops
    assert [group.units for group in channels.prunable] == ([8] if whole else [])
    assert_same(proto, channels)
