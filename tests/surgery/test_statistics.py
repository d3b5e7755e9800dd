"""Statistics over channels of which some went: what they mean, what they cost, and what happens if that is too much."""

import dataclasses

import numpy as np
import onnx
import pytest
from onnx_text import model

import onnxprune
from onnxprune.channels.groups import Channels, analyze
from onnxprune.channels.price import MACS_PER_ELEMENT
from onnxprune.model.io import to_proto
from onnxprune.runtime.session import SessionOptions, open_session
from onnxprune.surgery.slice import slice_channels
from onnxprune.validate.proof import prove

NORM = "a = MatMul(x, w) n = LayerNormalization<epsilon=0.01>(a, s, t) y = MatMul(n, v)"
IN_PARTS = (
    "a = MatMul(x, w) m = ReduceMean<axes=[-1]>(a) c = Sub(a, m) q = Mul(c, c) z = ReduceMean<axes=[-1]>(q) "
    "e = Add(z, eps) r = Sqrt(e) d = Div(c, r) g = Mul(d, s) n = Add(g, t) y = MatMul(n, v)"
)
WIDE = "x:5,400 w=400,8 s=8 t=8 eps=f#0.01 v=8,400"
NARROW = "x:5,50 w=50,8 s=8 t=8 v=8,50"
LOST = [0, 3, 4]
KEPT = [1, 2, 5, 6, 7]


def analyzed(tensors: str, text: str, *, inexact: bool = False) -> Channels:
    return analyze(model(tensors, text), inexact=inexact)


def run(graph: object, x: np.ndarray) -> np.ndarray:
    return open_session(to_proto(graph), SessionOptions(threads=1, optimize=False)).run({"x": x})["y"]


def weights(*names: str) -> list[np.ndarray]:
    stored = {item.name: onnx.numpy_helper.to_array(item) for item in model(WIDE, NORM).graph.initializer}
    return [stored[name].astype(np.float64) for name in names]


def sample() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((5, 400)).astype(np.float32)


def operators(graph: object) -> list[str]:
    return [node.op for node in graph.nodes]


def test_zeros_count_in_mean_and_variance_of_the_single_operator() -> None:
    w, s, t, v = weights("w", "s", "t", "v")
    a = sample() @ w
    a[:, LOST] = 0
    normal = (a - a.mean(-1, keepdims=True)) / np.sqrt(a.var(-1, keepdims=True) + 0.01) * s + t
    channels = analyzed(WIDE, NORM)
    found = run(slice_channels(channels, {"MatMul_0": LOST}), sample())
    assert np.abs(found - normal[:, KEPT] @ v[KEPT]).max() < 1e-4 * np.abs(found).max()


def test_written_out_removed_channels_count_in_the_mean_and_not_in_the_variance() -> None:
    w, s, t, v = weights("w", "s", "t", "v")
    a = (sample() @ w)[:, KEPT]
    centred = a - a.sum(-1, keepdims=True) / 8
    normal = centred / np.sqrt((centred**2).sum(-1, keepdims=True) / 8 + 0.01) * s[KEPT] + t[KEPT]
    channels = analyzed(WIDE, IN_PARTS)
    found = run(slice_channels(channels, {"MatMul_0": LOST}), sample())
    assert np.abs(found - normal @ v[KEPT]).max() < 1e-4 * np.abs(found).max()


def test_what_is_put_in() -> None:
    channels = analyzed(WIDE, NORM)
    sliced = slice_channels(channels, {"MatMul_0": LOST})
    assert operators(sliced) == ["MatMul", "Pad", "LayerNormalization", "Slice", "MatMul"]
    scale = sliced.nodes[2].inputs[1].values
    assert scale.shape == (8,)
    assert not scale[5:].any()
    assert scale[:5].tolist() == channels.graph.nodes[1].inputs[1].values[KEPT].tolist()
    assert operators(slice_channels(channels, {})) == operators(channels.graph)


def test_one_factor_for_a_mean_over_two_axes_that_shrink() -> None:
    text = "a = MatMul(x, w) b = Transpose<perm=[1,0,2]>(a) m = ReduceMean<axes=[0,2], keepdims=0>(b) y = Neg(m)"
    channels = analyze(model("x:5,4,6 w=6,8", text), boundary=False)
    groups = {group.units: group.name for group in channels.prunable}
    smaller = dataclasses.replace(channels, sizes={"x": (5, 3, 6)})
    sliced = slice_channels(smaller, {groups[4]: [0], groups[8]: [0, 1]})
    factors = [node.inputs[1].values for node in sliced.nodes if node.op == "Mul"]
    assert [float(factor) for factor in factors] == [pytest.approx(0.75 * 0.75)]


@pytest.mark.parametrize("text", [NORM, IN_PARTS])
def test_float16(text: str) -> None:
    proto = model(WIDE.replace("f#0.01", "()"), text.replace("Add(z, eps)", "Abs(z)"), dtype=np.float16)
    channels = analyze(proto)
    removals = {"MatMul_0": LOST}
    feeds = [{"x": sample().astype(np.float16)}]
    proof = prove(channels, removals, slice_channels(channels, removals), feeds, SessionOptions(threads=1))
    assert proof.passed
    assert proof.limit == 1e-2


@pytest.mark.parametrize("keepdims", [0, 1])
def test_a_mean_that_is_an_output_keeps_its_name(keepdims: int) -> None:
    text = f"a = MatMul(x, w) y = ReduceMean<axes=[1], keepdims={keepdims}>(a)"
    channels = analyzed("x:5,400 w=400,8", text)
    sliced = slice_channels(channels, {"MatMul_0": LOST})
    assert [tensor.name for tensor in sliced.outputs] == ["y"]
    expected = (sample() @ weights("w")[0])[:, KEPT].sum(-1) / 8
    assert np.allclose(run(sliced, sample()).ravel(), expected, atol=1e-4)


def test_a_price_above_the_gain_freezes_and_says_so() -> None:
    frozen = analyzed(NARROW, NORM).group("MatMul_0")
    assert not frozen.exact
    assert frozen.frozen == (
        "'LayerNormalization_1' (LayerNormalization) takes a statistic over it, "
        "which costs more to keep exact than the removal saves"
    )
    free = analyzed(WIDE, NORM).group("MatMul_0")
    assert free.exact
    assert free.frozen is None


@pytest.mark.parametrize(("width", "exact"), [(MACS_PER_ELEMENT - 1, False), (MACS_PER_ELEMENT, True)])
def test_the_price_of_a_norm_is_two_passes(width: int, exact: bool) -> None:
    """A MatMul before and one behind have 2 * width multiply-accumulates for each element."""
    group = analyzed(f"x:5,{width} w={width},8 s=8 t=8 v=8,{width}", NORM).group("MatMul_0")
    assert group.exact is exact


def test_sizes_of_free_dimensions_do_not_change_the_price() -> None:
    proto = model(NARROW.replace("x:5", "x:N"), NORM)
    assert [analyze(proto, sizes).group("MatMul_0").exact for sizes in (None, {"x": (1, 50)}, {"x": (64, 50)})] == [
        False
    ] * 3


@pytest.mark.parametrize("text", [NORM, IN_PARTS])
def test_on_demand_what_costs_too_much_is_sliced_plainly(text: str) -> None:
    channels = analyzed(NARROW + " eps=f#0.01", text, inexact=True)
    assert not channels.group("MatMul_0").exact
    assert channels.group("MatMul_0").frozen is None
    sliced = slice_channels(channels, {"MatMul_0": LOST})
    assert operators(sliced) == operators(channels.graph)
    assert {tensor.values.shape for tensor in sliced.tensors().values() if tensor.name in ("s", "t")} == {(5,)}


def test_what_is_exact_stays_so_on_demand() -> None:
    channels = analyzed(WIDE, NORM, inexact=True)
    assert channels.group("MatMul_0").exact
    assert "Pad" in operators(slice_channels(channels, {"MatMul_0": LOST}))


JOINED = "a = MatMul(x, w) b = MatMul(z, u) c = Concat<axis=-1>(a, b) n = LayerNormalization(c, s, t) y = MatMul(n, v)"


def test_a_norm_of_exact_and_inexact_channels() -> None:
    """With the exact ones alone it stays exact; with the others too, it is sliced as it is."""
    channels = analyzed("x:5,900 w=900,8 z:5,20 u=20,6 s=14 t=14 v=14,100", JOINED, inexact=True)
    exact, other = channels.group("MatMul_0"), channels.group("MatMul_1")
    assert (exact.exact, other.exact) == (True, False)
    alone = slice_channels(channels, {exact.name: LOST})
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((5, 900), np.float32), "z": rng.standard_normal((5, 20), np.float32)}]
    assert prove(channels, {exact.name: LOST}, alone, feeds, SessionOptions(threads=1)).passed
    both = slice_channels(channels, {exact.name: LOST, other.name: [1]})
    assert "Pad" not in operators(both)


def test_a_mean_of_integers_is_frozen() -> None:
    text = "a = MatMul(x, w) i = Cast<to=7>(a) m = ReduceMean<axes=[-1]>(i) y = Neg(m)"
    reasons = [group.frozen for group in analyzed("x:5,6 w=6,8", text).groups if group.units == 8]
    assert reasons == ["'ReduceMean_2' (ReduceMean) takes a mean of integers over it"]


def test_the_whole_line_names_no_group_inexact() -> None:
    result = onnxprune.slim(model(WIDE, NORM), 0.5, round_to=1, no_latency=True)
    assert result.report.proof.passed
    assert result.report.proof.inexact_groups == ()
    assert [row.removed for row in result.report.groups if row.units == 8] == [4]
