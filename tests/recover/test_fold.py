"""Repair without samples: channels that are gone are folded into those that are like them."""

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from law import random_units
from onnx import numpy_helper
from onnx_text import model, random_feeds, with_measured_outputs

import onnxprune as op
from onnxprune.channels.facts import Axis
from onnxprune.channels.groups import ChannelGroup, Channels
from onnxprune.errors import UsageError
from onnxprune.model.io import to_proto
from onnxprune.recover.expectation import HERMITE, NODES, expected_inputs
from onnxprune.recover.fold import fold
from onnxprune.runtime.session import SessionOptions, open_session
from onnxprune.surgery.slice import slice_channels

sys.path.append(str(Path(__file__).parents[1] / "surgery"))
from networks import NETWORKS

MODELS = Path(__file__).parents[2] / "models"
OPTIONS = SessionOptions(threads=1)
CONV = "c = Conv<pads=[1,1,1,1]>({0}, w2) p = GlobalAveragePool(c) f = Flatten(p) y = Gemm<transB=1>(f, w3)"
WIDE = "x:N,3,6,6 w=8,3,3,3 b=8 w2=5,8,3,3 w3=4,5"
NORM = " s=8 t=8 m=8 v=+8"
SAME = [1.0] * 8
SCALED = [1.0, 1.0, 1.0, 1.0, 0.5, 2.0, 3.0, 0.7]


def doubled(proto: onnx.ModelProto, factors: list[float], *names: str) -> onnx.ModelProto:
    """Makes the last four channels (axis 0) of stored tensors multiples of the first four."""
    for tensor in proto.graph.initializer:
        if tensor.name in names:
            values = np.array(numpy_helper.to_array(tensor))
            values[4:] = (values[:4].T * np.array(factors[4:], values.dtype)).T
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return proto


def run(graph: object, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return open_session(graph, OPTIONS).run(feeds)


def group_of(channels: Channels, axis: Axis) -> ChannelGroup:
    return next(one for one in channels.prunable if any(axis in member.axes for member in one.members))


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


LAW = {
    "plain": (WIDE, "a = Conv(x, w, b) " + CONV.format("a"), SCALED, "w b"),
    "relu": (WIDE, "a = Conv(x, w, b) r = Relu(a) " + CONV.format("r"), SCALED, "w b"),
    "leaky, pooled": (WIDE, "a = Conv(x, w, b) l = LeakyRelu<alpha=0.2>(a) "
                      "r = MaxPool<kernel_shape=[2,2]>(l) " + CONV.format("r"), SCALED, "w b"),
    "slopes": (WIDE + " k=8,1,1", "a = Conv(x, w, b) r = PRelu(a, k) " + CONV.format("r"), SAME, "w b k"),
    "sigmoid": (WIDE, "a = Conv(x, w, b) g = Sigmoid(a) r = Mul(a, g) " + CONV.format("r"), SAME, "w b"),
    "normalized": (WIDE + NORM, "a = Conv(x, w) n = BatchNormalization(a, s, t, m, v) r = Relu(n) " + CONV.format("r"),
                   SAME, "w s t m v"),
    "depthwise": (WIDE + " d=8,1,3,3", "a = Conv(x, w, b) q = Relu(a) r = Conv<group=8>(q, d) " + CONV.format("r"),
                  SAME, "w b d"),
    "residual": ("x:N,8,6,6 w=8,8,3,3 b=8 k=8,8,1,1 w2=5,8,3,3 w3=4,5", "a = Conv<pads=[1,1,1,1]>(x, w, b) "
                 "k1 = Conv(x, k) d = Add(a, k1) r = Relu(d) " + CONV.format("r"), SCALED, "w b k"),
    "gated": (WIDE + " g1=8,3,1,1 g2=8", "a = Conv(x, w, b) z = GlobalAveragePool(x) e = Conv(z, g1, g2) "
              "h = Sigmoid(e) r = Mul(a, h) " + CONV.format("r"), SAME, "w b g1 g2"),
    "flattened": (WIDE.replace("w2=5,8,3,3", "w2=128,5"), "a = Conv(x, w, b) q = Relu(a) r = Flatten(q) "
                  "c = MatMul(r, w2) f = Relu(c) y = Gemm<transB=1>(f, w3)", SCALED, "w b"),
    "transposed": (WIDE.replace("w2=5,8,3,3", "w2=8,5,3,3"), "a = Conv(x, w, b) r = Relu(a) "
                   "c = ConvTranspose<strides=[2,2]>(r, w2) p = GlobalAveragePool(c) f = Flatten(p) "
                   "y = Gemm<transB=1>(f, w3)", SCALED, "w b"),
    "padded": (WIDE.replace("w2=5,8,3,3", "w2=5,12,3,3") + " z={0,2,0,0,0,2,0,0}",
               "a = Conv(x, w, b) q = Relu(a) r = Pad(q, z) " + CONV.format("r"), SCALED, "w b"),
    "beside another": (WIDE.replace("w2=5,8,3,3", "w2=5,14,3,3") + " o=6,3,3,3",
                       "a = Conv(x, w, b) q = Relu(a) i = Conv(x, o) r = Concat<axis=1>(q, i) " + CONV.format("r"),
                       SCALED, "w b"),
}  # fmt: skip


@pytest.mark.parametrize("name", LAW)
def test_duplicates_are_folded_into_what_they_repeat(name: str) -> None:
    tensors, text, factors, names = LAW[name]
    proto = doubled(model(tensors, text), factors, *names.split())
    channels = op.analyze(proto)
    group = group_of(channels, Axis("w", 0))
    removals = {group.name: [4, 5, 2, 7]}  # of 2 and 6, the repeated one goes
    small = slice_channels(channels, removals)
    folded, found = fold(small, channels, removals)
    feeds = random_feeds(proto, np.random.default_rng(0), {"N": 4})
    expected = run(proto, feeds)["y"]
    assert relative(run(small, feeds)["y"], expected) > 1e-2
    assert relative(run(folded, feeds)["y"], expected) < 1e-4
    assert any(one.kept for one in found)
    assert all(one.after < 1e-6 for one in found if one.kept)


def test_the_last_axis_of_a_transformer_with_gelu_written_out() -> None:
    text = (
        "h = MatMul(x, w1) i = Add(h, b1) j = Div(i, root) e = Erf(j) k = Add(e, one) l = Mul(i, k) m = Mul(l, half) "
        "o = MatMul(m, w2) y = Add(o, b2)"
    )
    proto = model("x:N,5,6 w1=6,8 b1=8 w2=8,7 b2=7 root=f#1.4142135 one=f#1 half=f#0.5", text)
    for tensor in proto.graph.initializer:
        if tensor.name in ("w1", "b1"):
            values = np.array(numpy_helper.to_array(tensor))
            values[..., 4:] = values[..., :4]
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    channels = op.analyze(proto)
    removals = {group_of(channels, Axis("w1", 1)).name: [4, 1, 6]}
    folded, _ = fold(slice_channels(channels, removals), channels, removals)
    feeds = random_feeds(proto, np.random.default_rng(0))
    assert relative(run(folded, feeds)["y"], run(proto, feeds)["y"]) < 1e-4


def test_grouped_convolutions_fold_within_their_groups() -> None:
    text = "a = Conv(x, w, b) r = Relu(a) " + CONV.format("r").replace("<", "<group=2, ", 1)
    proto = model("x:N,3,6,6 w=8,3,3,3 b=8 w2=6,4,3,3 w3=4,6", text)
    for tensor in proto.graph.initializer:
        if tensor.name in ("w", "b"):
            values = np.array(numpy_helper.to_array(tensor))
            values[[1, 6]] = 2 * values[[0, 7]]
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    channels = op.analyze(proto)
    feeds = random_feeds(proto, np.random.default_rng(0))
    removals = {group_of(channels, Axis("w", 0)).name: [1, 6]}
    folded, _ = fold(slice_channels(channels, removals), channels, removals)
    assert relative(run(folded, feeds)["y"], run(proto, feeds)["y"]) < 1e-4


def test_constants_go_into_the_bias() -> None:
    """Removed units that are always the same number: no other channel could do what they did."""
    proto = model("x:N,6 w=6,8 b=8 w2=8,4 b2=4", "a = Gemm(x, w, b) r = Relu(a) y = Gemm(r, w2, b2)")
    for tensor in proto.graph.initializer:
        values = np.array(numpy_helper.to_array(tensor))
        if tensor.name in ("w", "b"):
            values[..., 5:] = 0.0 if tensor.name == "w" else 3.0
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    channels = op.analyze(proto)
    removals = {group_of(channels, Axis("w", 1)).name: [5, 6, 7]}
    folded, _ = fold(slice_channels(channels, removals), channels, removals)
    feeds = random_feeds(proto, np.random.default_rng(0))
    np.testing.assert_allclose(run(folded, feeds)["y"], run(proto, feeds)["y"], rtol=1e-5, atol=1e-5)


def test_masked_weights_stay_zero() -> None:
    proto = model("x:N,6 w=6,8 b=8 w2=8,4", "a = Gemm(x, w, b) r = Relu(a) y = Gemm(r, w2)")
    channels = op.analyze(proto)
    removals = {group_of(channels, Axis("w", 1)).name: [2, 3]}
    small = slice_channels(channels, removals)
    held = next(tensor for node in small.nodes for tensor in node.inputs if tensor.name == "w2")
    mask = np.random.default_rng(0).random(held.shape) < 0.5
    held.values = np.where(mask, 0, held.values).astype(np.float32)
    folded, _ = fold(small, channels, removals)
    after = next(tensor for node in folded.nodes for tensor in node.inputs if tensor.name == "w2").values
    assert (after[mask] == 0).all()
    assert np.abs(after - held.values).max() > 1e-3


def test_what_is_expected_is_what_samples_show() -> None:
    """With inputs of mean 0 and variance 1, and kernels of one place, the series alone is cut off."""
    proto = model(
        "x:N,256 w=256,6 b=6 w2=6,4", "a = Gemm(x, w, b) r = Relu(a) s = Sigmoid(a) q = Mul(r, s) y = MatMul(q, w2)"
    )
    channels = op.analyze(proto)
    found = {linear.data: data for linear, data in expected_inputs(channels)}
    mean, covariance = found["q"].moments
    x = np.random.default_rng(0).standard_normal((100_000, 256), np.float32)
    w, b = (numpy_helper.to_array(one) for one in proto.graph.initializer if one.name in ("w", "b"))
    a = x @ w + b
    q = np.maximum(a, 0) / (1 + np.exp(-a))
    np.testing.assert_allclose(mean, q.mean(axis=0), rtol=0.02)
    np.testing.assert_allclose(covariance, np.cov(q.T), atol=0.04 * q.var())


@pytest.mark.parametrize(("name", "joined"), [("Add", np.add), ("Sub", np.subtract), ("Mul", np.multiply)])
def test_what_two_tensors_make_together(name: str, joined: np.ufunc) -> None:
    text = f"a = Gemm(x, w, b) r = Relu(a) c = Gemm(z, v, e) s = Tanh(c) q = {name}(r, s) y = MatMul(q, w2)"
    proto = model("x:N,64 z:N,64 w=64,5 b=5 v=64,5 e=5 w2=5,4", text)
    for tensor in proto.graph.initializer:
        if tensor.name in "wv":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) / 8, tensor.name))
    stored = {one.name: numpy_helper.to_array(one) for one in proto.graph.initializer}
    found = {linear.data: data for linear, data in expected_inputs(op.analyze(proto))}
    mean, covariance = found["q"].moments
    x, z = np.random.default_rng(0).standard_normal((2, 100_000, 64), np.float32)
    left, right = np.maximum(x @ stored["w"] + stored["b"], 0), np.tanh(z @ stored["v"] + stored["e"])
    q = joined(left, right)
    np.testing.assert_allclose(mean, q.mean(axis=0), atol=0.03 * q.std())
    np.testing.assert_allclose(covariance, np.cov(q.T), atol=0.04 * q.var())


def test_hermite_series_are_orthonormal() -> None:
    weights = HERMITE[0]
    np.testing.assert_allclose((HERMITE / weights) @ HERMITE.T, np.eye(len(HERMITE)), atol=1e-8)
    assert weights @ np.square(NODES) == pytest.approx(1, rel=1e-9)


PRUNABLE = [network for network in NETWORKS if network.units]


@pytest.mark.parametrize("network", PRUNABLE, ids=lambda network: network.name)
def test_every_pattern_runs_as_before(network: object) -> None:
    proto = with_measured_outputs(model(network.tensors, network.text, network.opset))
    channels = op.analyze(proto)
    rng = np.random.default_rng(0)
    removals = {group.name: random_units(group, 0.4, rng) for group in channels.prunable}
    small = slice_channels(channels, removals)
    folded, found = fold(small, channels, removals)
    before, after = (to_proto(graph).graph for graph in (small, folded))
    assert list(after.input) == list(before.input)
    assert list(after.output) == list(before.output)
    computed = [{name for node in graph.node for name in node.output} for graph in (before, after)]
    assert computed[1] <= computed[0]  # without what only moves a stored weight
    feeds = random_feeds(proto, rng, {"N": 2, "T": 5, "H": 6})
    expected, results = run(small, feeds), run(folded, feeds)
    for name, values in results.items():
        assert values.shape == expected[name].shape
        assert not np.isfinite(expected[name]).all() or np.isfinite(values).all()
    assert all(np.isfinite((one.before, one.after)).all() for one in found)


def test_a_trained_network_keeps_more_of_its_accuracy() -> None:
    """A quarter of the channels of a network with depthwise convolutions, gates and folded BatchNormalization."""
    channels = op.analyze(str(MODELS / "mobilenet.onnx"))
    data = np.load(MODELS / "validation.npz")
    images, labels = data["image"][:300], data["labels"][:300]
    removals = dict(op.plan(channels, op.score(channels, "l2"), 0.25, round_to=1).removals)
    small = slice_channels(channels, removals)
    graphs = (small, fold(small, channels, removals)[0])
    before, after = (float(np.mean(run(one, {"image": images})["logits"].argmax(axis=1) == labels)) for one in graphs)
    assert before < 0.3
    assert after > 0.75


def test_the_public_repair_needs_no_samples_to_fold() -> None:
    tensors, text, factors, names = LAW["relu"]
    proto = doubled(model(tensors, text), factors, *names.split())
    channels = op.analyze(proto)
    small = slice_channels(channels, {group_of(channels, Axis("w", 0)).name: [4, 5, 6, 7]})
    feeds = random_feeds(proto, np.random.default_rng(0))
    expected = run(proto, feeds)["y"]
    before = run(small, feeds)["y"]
    for data in (None, feeds["x"]):
        assert relative(run(op.recover(small, proto, data, "fold"), feeds)["y"], expected) < 1e-4
    np.testing.assert_array_equal(run(small, feeds)["y"], before)
    with pytest.raises(UsageError, match="is fitted to samples: give data, or choose 'fold'"):
        op.recover(small, proto)
    with pytest.raises(UsageError, match="there is no repair 'crease'"):
        op.recover(small, proto, method="crease")
