"""Repair of a linear operator from moments, and of a network in graph order."""

import numpy as np
import pytest
from onnx_text import model

import onnxprune as op
from onnxprune import recover
from onnxprune.errors import PlanError, UsageError
from onnxprune.model.io import load
from onnxprune.recover.least_squares import shift, solve, statistics
from onnxprune.recover.matching import find_removals
from onnxprune.recover.moments import Moments
from onnxprune.recover.sequential import Calibration, Settings, repair
from onnxprune.runtime.session import SessionOptions, open_session
from onnxprune.surgery.gone import Gone
from onnxprune.surgery.slice import slice_channels

NET = (
    "x:N,3,8,8 w1=16,3,3,3 b1=16 w2=16,16,3,3 b2=16 w3=10,16",
    "a = Conv<pads=[1,1,1,1]>(x, w1, b1) r = Relu(a) c = Conv<pads=[1,1,1,1]>(r, w2, b2) q = Relu(c) s = Add(q, r) "
    "p = GlobalAveragePool(s) f = Flatten(p) y = Gemm<transB=1>(f, w3)",
)


def moments(rng: np.random.Generator, truth: np.ndarray, rows: int) -> Moments:
    x = rng.standard_normal((truth.shape[0], rows, truth.shape[1])) + 0.5
    found = Moments.empty(*truth.shape)
    found.add(x, x @ truth + 0.3)
    return found


def test_the_solution_is_found_and_the_error_is_that_of_the_rows() -> None:
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((2, 5, 3))
    fitted, held_out = moments(rng, truth, 400), moments(rng, truth, 200)
    found = solve(fitted, held_out, np.zeros_like(truth), np.zeros((2, 3)), strengths=[1e-9])
    np.testing.assert_allclose(found.matrix, truth, atol=1e-6)
    np.testing.assert_allclose(found.bias, 0.3, atol=1e-6)
    x = rng.standard_normal((2, 50, 5))
    y = rng.standard_normal((2, 50, 3))
    one = Moments.empty(2, 5, 3)
    one.add(x, y)
    bias = rng.standard_normal((2, 3))
    expected = np.square(x @ truth + bias[:, None] - y).sum() / 50
    assert one.error(truth, bias) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("method", [solve, statistics, shift])
@pytest.mark.parametrize("rows", [2, 8, 1000])
def test_held_out_rows_never_lose(method: object, rows: int) -> None:
    rng = np.random.default_rng(1)
    truth = rng.standard_normal((1, 40, 6))
    start = truth + 0.1 * rng.standard_normal(truth.shape)
    found = method(moments(rng, truth, rows), moments(rng, truth, 100), start, np.zeros((1, 6)))
    assert np.isfinite(found.matrix).all()
    assert found.after <= found.before


def test_a_pruned_network_comes_back_toward_the_original() -> None:
    proto = model(*NET)
    channels = op.analyze(proto)
    removals = dict(op.plan(channels, op.score(channels), 0.4, round_to=1).removals)
    small = slice_channels(channels, removals)
    x = np.random.default_rng(0).standard_normal((96, 3, 8, 8), np.float32)
    other = {"x": np.random.default_rng(1).standard_normal((64, 3, 8, 8), np.float32)}
    options = SessionOptions(threads=1)
    expected = open_session(proto, options).run(other)["y"]

    def error(graph: object) -> float:
        return float(np.square(open_session(graph, options).run(other)["y"] - expected).mean())

    assert find_removals(channels, small) == removals
    before = error(small)
    errors = {method: error(recover(small, proto, x, method)) for method in ("bias", "statistics", "least-squares")}
    assert errors["bias"] < before
    assert errors["least-squares"] < 0.5 * errors["bias"]
    assert errors["least-squares"] < errors["statistics"]


def test_models_that_do_not_belong_together() -> None:
    proto = model(*NET)
    channels = op.analyze(proto)
    other = load(model(*NET, seed=1))
    removals = dict(op.plan(channels, op.score(channels), 0.4, round_to=1).removals)
    small = slice_channels(op.analyze(other), removals)
    with pytest.raises(PlanError, match="cannot be told which channels"):
        find_removals(channels, small)
    with pytest.raises(UsageError, match="there is no repair 'magic'"):
        recover(small, proto, np.zeros((4, 3, 8, 8), np.float32), "magic")


BRANCHES = (
    "x:N,3,8,8 w=12,3,3,3 s=12,12,1,1 w1=12,12,3,3 w2=12,12,3,3 b=12 w3=10,12",
    "i = Conv<pads=[1,1,1,1]>(x, w) a = Relu(i) k = Conv(a, s) c = Conv<pads=[1,1,1,1]>(a, w1) r = Relu(c) "
    "d = Conv<pads=[1,1,1,1]>(r, w2, b) t = Add(d, k) q = Relu(t) "
    "p = GlobalAveragePool(q) f = Flatten(p) y = Gemm<transB=1>(f, w3)",
)


@pytest.mark.parametrize("order", ["shortcut first", "main branch first"])
def test_two_branches_of_a_sum_are_repaired(order: str) -> None:
    """Each is a summand of the other's target: the shorter one comes first."""
    tensors, text = BRANCHES
    if order == "main branch first":
        text = text.replace("k = Conv(a, s) ", "").replace("t = Add", "k = Conv(a, s) t = Add")
    proto = model(tensors, text)
    channels = op.analyze(proto)
    small = slice_channels(channels, dict(op.plan(channels, op.score(channels), 0.3, round_to=1).removals))
    x = np.random.default_rng(0).standard_normal((96, 3, 8, 8), np.float32)
    other = {"x": np.random.default_rng(1).standard_normal((64, 3, 8, 8), np.float32)}
    expected = open_session(proto, SessionOptions(threads=1)).run(other)["y"]
    errors = [
        float(np.square(open_session(graph, SessionOptions(threads=1)).run(other)["y"] - expected).mean())
        for graph in (small, recover(small, proto, x))
    ]
    assert errors[1] < 0.3 * errors[0]


def test_an_operator_that_cannot_store_a_shift_is_judged_without_it() -> None:
    """Nothing adds a vector to the product, so a fitted mean would be lost, and the outputs be worse."""
    text = "a = MatMul(x, w) r = Relu(a) c = MatMul(r, v) q = Relu(c) y = MatMul(q, u)"
    proto = model("x:N,8 w=8,24 v=24,16 u=16,5", text)
    channels = op.analyze(proto)
    small = slice_channels(channels, dict(op.plan(channels, op.score(channels), 0.5, round_to=1).removals))
    x = np.random.default_rng(0).standard_normal((400, 8), np.float32) + 1
    runs = Calibration([{"x": x[:300]}], [{"x": x[300:]}])
    left = Gone(channels, find_removals(channels, small))
    repaired, found = repair(small, channels.graph, left, runs, Settings(shift))
    assert [one.kept for one in found] == [False, False]
    better, found = repair(small, channels.graph, left, runs, Settings(solve))
    other = {"x": np.random.default_rng(1).standard_normal((400, 8), np.float32) + 1}
    options = SessionOptions(threads=1)
    expected, before, same, after = (
        open_session(graph, options).run(other)["y"] for graph in (proto, small, repaired, better)
    )
    np.testing.assert_array_equal(same, before)
    ratio = np.square(after - expected).mean() / expected.var()
    assert ratio < 0.8 * np.square(before - expected).mean() / expected.var()
    assert all(one.kept for one in found)


def test_moments_without_a_shift_are_those_of_the_rest() -> None:
    rng = np.random.default_rng(0)
    x, y, matrix = rng.standard_normal((2, 30, 4)), rng.standard_normal((2, 30, 3)), rng.standard_normal((2, 4, 3))
    bias = rng.standard_normal((2, 3))
    whole = Moments.empty(2, 4, 3)
    whole.add(x, y)
    assert whole.fixed(bias).error(matrix, np.zeros((2, 3))) == pytest.approx(whole.error(matrix, bias), rel=1e-9)
