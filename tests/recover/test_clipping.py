"""Behind Relu and Clip a target is an interval: the fit has more freedom, and what is let through comes out better."""

import sys

import numpy as np
import pytest
from onnx_text import model

from onnxprune.channels.groups import analyze
from onnxprune.model.io import load
from onnxprune.model.linear import Holders, linear_nodes
from onnxprune.recover.clipping import Clipping, clipping_of
from onnxprune.recover.least_squares import solve
from onnxprune.recover.sequential import Calibration, Settings, readers_of, repair
from onnxprune.runtime.session import open_session
from onnxprune.surgery.gone import Gone
from onnxprune.surgery.slice import slice_channels

TENSORS = "x:N,6,6,6 w1=24,6,3,3 b1=24 w2=8,24,3,3 b2=8 lo=f#0 hi=f#60 half=f#0.25"
BODY = "a = Conv<pads=[1,1,1,1]>(x, w1, b1) r = Relu(a) c = Conv<pads=[1,1,1,1]>(r, w2, b2) "


def test_the_nearest_target_is_in_the_interval_and_never_further() -> None:
    rng = np.random.default_rng(0)
    wanted, made = rng.normal(0, 4, (2, 2000))
    for clipping in (Clipping(0, np.inf), Clipping(0, 6), Clipping(-1, 1)):
        near = clipping.nearest(wanted, made)
        np.testing.assert_array_equal(clipping.of(near), clipping.of(wanted))
        assert (np.abs(near - made) <= np.abs(wanted - made) + 1e-12).all()
        inside = (wanted > clipping.low) & (wanted < clipping.high)
        np.testing.assert_array_equal(near[inside], wanted[inside])


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("y = Relu(c)", (0, np.inf)),
        ("y = Clip(c, lo, hi)", (0, 60)),
        ("y = Clip(c, , hi)", (-np.inf, 60)),
        ("e = Relu(c) f = Relu(c) y = Add(e, f)", (0, np.inf)),
        ("e = Relu(c) y = Add(e, c)", None),
        ("e = Relu(c) f = Clip(c, lo, hi) y = Add(e, f)", None),
        ("e = Mul(x, half) l = ReduceMax<keepdims=0>(e) y = Clip(c, l, hi)", None),
        ("y = Sigmoid(c)", None),
    ],
)
def test_what_counts_as_clipping(text: str, limits: tuple[float, float] | None) -> None:
    graph = load(model(TENSORS, BODY + text))
    found = clipping_of(readers_of(graph).get("c", ()), Holders(graph))
    assert (None if found is None else (found.low, found.high)) == limits


def test_an_output_of_the_graph_is_a_target_as_it_is() -> None:
    graph = load(model(TENSORS, BODY + "y = Relu(c)"))
    graph.outputs.append(graph.tensors()["c"])
    assert clipping_of(readers_of(graph).get("c", ()), Holders(graph)) is None


@pytest.mark.parametrize("end", ["y = Relu(c)", "y = Clip(c, lo, hi)", "s = Conv(x, w3) d = Add(c, s) y = Relu(d)"])
def test_what_is_let_through_comes_nearer_than_with_plain_targets(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = load(model(TENSORS + " w3=8,6,1,1", BODY + end))
    rng = np.random.default_rng(1)
    feeds = [{"x": rng.standard_normal((24, 6, 6, 6), np.float32)} for _ in range(3)]
    deviation = np.sqrt(2 * np.square(open_session(graph).run(feeds[0])["y"]).mean())
    graph.tensors()["b2"].values -= np.float32(deviation)  # most of what is computed is thrown away
    channels = analyze(graph)
    removals = {channels.prunable[0].name: list(range(12))}
    sliced = slice_channels(channels, removals)
    expected = open_session(channels.graph).run(feeds[2])["y"]

    def error() -> float:
        result, layers = repair(
            sliced, channels.graph, Gone(channels, removals), Calibration(feeds[:2], feeds[2:]), Settings(solve)
        )
        assert all(layer.after <= layer.before for layer in layers)
        return float(np.square(open_session(result).run(feeds[2])["y"] - expected).mean())

    behind = error()
    monkeypatch.setattr(sys.modules["onnxprune.recover.sequential"], "clipping_of", lambda *_: None)
    assert behind < 0.985 * error()


def test_a_summand_that_is_the_same_for_all_samples() -> None:
    """It is broadcast against what the operator computes, behind a Relu too."""
    tensors = "x:N,6,6 w1=6,12 b1=12 w2=12,8 b2=8 w3=6,8 one=f#1"
    text = (
        "a = MatMul(x, w1) r0 = Add(a, b1) r = Relu(r0) c = MatMul(r, w2) cb = Add(c, b2) s = MatMul(x, w3) "
        "m = ReduceMean<axes=[0,1], keepdims=1>(s) d = Add(cb, m) y = Relu(d)"
    )
    channels = analyze(model(tensors, text))
    rng = np.random.default_rng(1)
    feeds = [{"x": rng.standard_normal((24, 6, 6), np.float32)} for _ in range(3)]
    removals = {channels.prunable[0].name: list(range(6))}
    sliced = slice_channels(channels, removals)
    _, layers = repair(
        sliced, channels.graph, Gone(channels, removals), Calibration(feeds[:2], feeds[2:]), Settings(solve)
    )
    assert len(layers) == 1
    assert layers[0].kept


def test_a_product_of_stored_tensors_alone_is_left_alone() -> None:
    """Such as a table of relative positions: it has no rows that samples could change."""
    tensors = "x:N,6,6 w1=6,12 w2=12,6 t=6,6 wt=6,6 b=6"
    text = "a = MatMul(x, w1) r = Relu(a) c = MatMul(r, w2) p = MatMul(t, wt) d = Add(c, p) y = Relu(d)"
    proto = model(tensors, text)
    graph = load(proto)
    names = {one.result for one in linear_nodes(graph, analyze(proto).shapes, Holders(graph))}
    assert names == {"a", "c"}
