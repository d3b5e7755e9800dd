"""What the outputs lose when one group shrinks: measured, rising, and the least where nothing is lost."""

from dataclasses import replace

import numpy as np
import pytest
from onnx_text import model

from onnxprune.channels.groups import Channels, analyze
from onnxprune.errors import CalibrationError
from onnxprune.model.io import load
from onnxprune.recover.divergence import Reference
from onnxprune.recover.sensitivity import LEVELS, sensitivity
from onnxprune.runtime.walk import Memory
from onnxprune.score.readings import Runs
from onnxprune.score.scores import score

TEXT = (
    "x:N,4,6,6 w1=10,4,3,3 w2=10,10,3,3 w3=10,10,3,3 w4=5,10",
    "a = Conv<pads=[1,1,1,1]>(x, w1) r = Relu(a) b = Conv<pads=[1,1,1,1]>(r, w2) s = Relu(b) "
    "c = Conv<pads=[1,1,1,1]>(s, w3) t = Relu(c) p = GlobalAveragePool(t) f = Flatten(p) y = Gemm<transB=1>(f, w4)",
)


def network(duplicates: str | None = None) -> Channels:
    """With ``duplicates``, a weight of which the second half of the outputs repeats the first."""
    graph = load(model(*TEXT))
    for node in graph.nodes:
        for tensor in node.inputs[1:2]:
            if tensor.name == duplicates:
                tensor.values[5:] = tensor.values[:5]
    return analyze(graph)


def runs() -> Runs:
    rng = np.random.default_rng(0)
    return Runs([{"x": rng.standard_normal((16, 4, 6, 6), np.float32)} for _ in range(2)])


def test_losses_rise_and_are_convex() -> None:
    channels = network()
    fine, coarse = sensitivity(channels, score(channels, "obs", runs()), runs())
    for losses in (fine, coarse):
        assert losses.keys() == {group.name for group in channels.prunable}
        for group in channels.prunable:
            curve = losses[group.name]
            assert curve.shape == (group.units + 1,)
            assert curve[0] == 0
            steps = np.diff(curve)
            assert (steps >= -1e-12).all()
            assert (np.diff(steps) >= -1e-9 * steps.max()).all()
    assert all((fine[name] <= coarse[name] * (1 + 1e-9)).all() for name in fine)  # a chord lies above the curve
    assert any((fine[name] < coarse[name]).any() for name in fine)


def test_what_the_others_can_make_up_for_costs_nothing() -> None:
    channels = network("w2")
    losses, _ = sensitivity(channels, score(channels, "obs", runs()), runs())
    doubled = next(
        group for group in channels.prunable if any(axis.tensor == "w2" and axis.dim == 0 for axis in group.weights)
    )
    half = {name: curve[round(LEVELS[1] * 10)] for name, curve in losses.items()}
    others = [loss for name, loss in half.items() if name != doubled.name]
    assert half[doubled.name] < 0.05 * min(others)


def test_only_the_groups_that_are_asked_for() -> None:
    channels = network()
    group = channels.prunable[0]
    assert sensitivity(channels, score(channels, "l2"), runs(), [group])[0].keys() == {group.name}


def test_progress_reaches_the_end() -> None:
    seen: list[tuple[str, float]] = []
    channels = network()
    sensitivity(channels, score(channels, "l2"), replace(runs(), progress=lambda *step: seen.append(step)))
    assert seen[-1] == ("measure groups", 1.0)


class Fixed:
    """A session that gives the same outputs for each run."""

    def __init__(self, *outputs: np.ndarray) -> None:
        self.outputs = {f"y{number}": value for number, value in enumerate(outputs)}

    def run(self, feeds: object) -> dict[str, np.ndarray]:
        return self.outputs


def reference(*outputs: np.ndarray) -> Reference:
    return Reference(Fixed(*outputs), [{}, {}], Memory(10**9))


def test_divergence_is_relative_to_the_variance_of_each_output() -> None:
    values = np.random.default_rng(0).standard_normal((50, 3)) + 5
    assert reference(values).divergence(Fixed(values)) == 0
    found = reference(values, np.arange(3)).divergence(Fixed(values * 1.1, np.arange(3)))
    assert found == pytest.approx(0.01 * np.square(values).mean() / values.var())
    assert reference(values * 100).divergence(Fixed(values * 110)) == pytest.approx(found)
    assert reference(values, values).divergence(Fixed(values * 1.1, values)) == pytest.approx(found / 2)


def test_what_cannot_be_judged_is_left_out() -> None:
    assert not reference(np.arange(3)).judges
    assert not reference(np.full(3, np.nan)).judges
    holes = np.array([1.0, np.nan, 3.0, -np.inf])
    assert reference(holes).divergence(Fixed(np.array([1.0, 7.0, 3.0, 7.0]))) == 0
    assert reference(holes).divergence(Fixed(np.array([np.nan, 7.0, 3.0, 7.0]))) == np.inf
    constant = reference(np.full(4, 2.0)).divergence(Fixed(np.full(4, 2.002)))
    assert constant == pytest.approx(1.0)


def test_nothing_to_judge_by_is_said() -> None:
    tensors, text = TEXT
    graph = load(model(tensors, text.replace("y = Gemm<transB=1>(f, w4)", "g = Gemm<transB=1>(f, w4) y = ArgMax(g)")))
    channels = analyze(graph)
    with pytest.raises(CalibrationError, match="no output holds finite floats"):
        sensitivity(channels, score(channels, "l2"), runs())
