"""What the outputs lose when one group shrinks: measured, rising, and the least where nothing is lost."""

from dataclasses import replace

import numpy as np
from onnx_text import model

from onnxprune.channels.groups import Channels, analyze
from onnxprune.model.io import load
from onnxprune.recover.sensitivity import LEVELS, divergence, sensitivity
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
    losses = sensitivity(channels, score(channels, "obs", runs()), runs())
    assert losses.keys() == {group.name for group in channels.prunable}
    for group in channels.prunable:
        curve = losses[group.name]
        assert curve.shape == (group.units + 1,)
        assert curve[0] == 0
        steps = np.diff(curve)
        assert (steps >= -1e-12).all()
        assert (np.diff(steps) >= -1e-9 * steps.max()).all()


def test_what_the_others_can_make_up_for_costs_nothing() -> None:
    channels = network("w2")
    losses = sensitivity(channels, score(channels, "obs", runs()), runs())
    doubled = next(
        group for group in channels.prunable if any(axis.tensor == "w2" and axis.dim == 0 for axis in group.weights)
    )
    half = {name: curve[round(LEVELS[1] * 10)] for name, curve in losses.items()}
    others = [loss for name, loss in half.items() if name != doubled.name]
    assert half[doubled.name] < 0.05 * min(others)


def test_only_the_groups_that_are_asked_for() -> None:
    channels = network()
    group = channels.prunable[0]
    assert sensitivity(channels, score(channels, "l2"), runs(), [group]).keys() == {group.name}


def test_progress_reaches_the_end() -> None:
    seen: list[tuple[str, float]] = []
    channels = network()
    sensitivity(channels, score(channels, "l2"), replace(runs(), progress=lambda *step: seen.append(step)))
    assert seen[-1] == ("measure groups", 1.0)


def test_divergence_is_relative_to_the_variance_of_each_output() -> None:
    rng = np.random.default_rng(0)
    first = [{"y": rng.standard_normal((50, 3)), "n": np.arange(3)}]
    assert divergence(first, first) == 0
    second = [{"y": first[0]["y"] * 1.1, "n": np.arange(3)}]
    scaled = [[{"y": one[0]["y"] * 100, "n": np.arange(3)}] for one in (first, second)]
    assert np.isclose(divergence(first, second), divergence(*scaled))
