from collections.abc import Callable, Mapping

import numpy as np
import pytest
from onnx import parser

from onnxprune.errors import ModelError, UsageError
from onnxprune.runtime import latency as module
from onnxprune.runtime.latency import LatencyOptions, Ratio, measure
from onnxprune.runtime.session import SessionOptions, open_session


class Clock:
    """A clock that only the models move, so that timings are exact."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now


class Model:
    """Stands for a session whose runs take the times that are given, over and over."""

    def __init__(self, clock: Clock, name: str, *milliseconds: float) -> None:
        self.clock, self.name, self.milliseconds, self.runs = clock, name, milliseconds, 0

    def prepare(self, feeds: Mapping[str, np.ndarray]) -> Callable[[], None]:
        def run_once() -> None:
            self.clock.now += self.milliseconds[self.runs % len(self.milliseconds)] / 1000
            self.clock.order.append(self.name)
            self.runs += 1

        return run_once


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    result = Clock()
    monkeypatch.setattr(module, "perf_counter", result)
    return result


FEEDS = {"x": np.zeros((4, 2), np.float32), "rate": np.array(1)}
SHORT = LatencyOptions(warmup_ms=0, seconds=1, minimum_runs=10)


def test_figures_in_milliseconds_and_samples_per_second(clock: Clock):
    result = measure({"a": Model(clock, "a", 10, 20, 30, 40)}, {"a": FEEDS}, SHORT)
    figures = result.latencies["a"]
    assert (figures.min, figures.max) == (pytest.approx(10), pytest.approx(40))
    assert figures.mean == pytest.approx(np.mean(figures.samples_ms))
    assert figures.median == pytest.approx(np.median(figures.samples_ms))
    assert figures.p90 <= figures.p95 <= figures.p99 <= figures.max
    assert figures.throughput == pytest.approx(4 * 1000 / figures.mean)
    assert list(figures.to_dict()) == ["min", "mean", "median", "p90", "p95", "p99", "max", "throughput"]
    assert result.ratios == {}


def test_the_ratio_is_candidate_over_baseline(clock: Clock):
    models = {"base": Model(clock, "base", 8), "half": Model(clock, "half", 4), "slow": Model(clock, "slow", 12)}
    result = measure(models, dict.fromkeys(models, FEEDS), SHORT)
    assert list(result.latencies) == ["base", "half", "slow"]
    assert set(result.ratios) == {"half", "slow"}
    assert result.ratios["half"].median == pytest.approx(0.5)
    assert result.ratios["slow"].median == pytest.approx(1.5)
    assert result.ratios["half"].significant
    assert result.ratios["half"].low <= result.ratios["half"].median <= result.ratios["half"].high


def test_equal_models_differ_without_significance(clock: Clock):
    generator = np.random.default_rng(0)
    models = {name: Model(clock, name, *(30 + 3 * generator.random(101))) for name in ("a", "b")}
    result = measure(models, dict.fromkeys(models, FEEDS), LatencyOptions(warmup_ms=0, seconds=5))
    ratio = result.ratios["b"]
    assert ratio.low < 1 < ratio.high
    assert not ratio.significant


def test_outliers_and_drift_do_not_move_the_ratio(clock: Clock):
    drift = [10 + 0.05 * step for step in range(400)]
    noisy = [time * 0.5 if step % 23 else 400.0 for step, time in enumerate(drift)]
    models = {"a": Model(clock, "a", *drift), "b": Model(clock, "b", *noisy)}
    options = LatencyOptions(warmup_ms=0, seconds=1.0)
    assert measure(models, dict.fromkeys(models, FEEDS), options).ratios["b"].median == pytest.approx(0.5, rel=0.15)


def test_every_model_runs_long_and_often_enough(clock: Clock):
    models = {"fast": Model(clock, "fast", 0.5), "slow": Model(clock, "slow", 400)}
    result = measure(models, dict.fromkeys(models, FEEDS), SHORT)
    for figures in result.latencies.values():
        assert sum(figures.samples_ms) >= 999
        assert len(figures.samples_ms) >= 10


def test_models_take_turns_in_rotating_order(clock: Clock):
    models = {name: Model(clock, name, 200) for name in "abc"}
    measure(models, dict.fromkeys(models, FEEDS), LatencyOptions(warmup_ms=0, seconds=0, minimum_runs=4))
    assert "".join(clock.order) == "abc" + "abc" + "bca" + "cab" + "abc"  # the first round is the warm-up


def test_slices_are_equally_long(clock: Clock):
    models = {"a": Model(clock, "a", 1.953125), "b": Model(clock, "b", 7.8125)}
    measure(models, dict.fromkeys(models, FEEDS), LatencyOptions(warmup_ms=0, seconds=1))
    assert "".join(clock.order[2:]).startswith("a" * 13 + "b" * 4 + "b" * 4 + "a" * 13)


def test_warm_up_is_not_counted(clock: Clock):
    model = Model(clock, "a", *[100.0] * 2, *[1.0] * 5000)
    result = measure({"a": model}, {"a": FEEDS}, LatencyOptions(warmup_ms=150, seconds=0.5))
    assert result.latencies["a"].max == pytest.approx(1.0)


def test_progress_rises_to_one(clock: Clock):
    seen: list[tuple[str, float]] = []
    measure({"a": Model(clock, "a", 3)}, {"a": FEEDS}, SHORT, progress=lambda *now: seen.append(now))
    fractions = [fraction for _, fraction in seen]
    assert {stage for stage, _ in seen} == {"latency"}
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert len(fractions) > 10


def test_the_seed_decides_the_interval(clock: Clock):
    ratios = np.random.default_rng(0).random(50)
    assert module._ratio(ratios, 1) == module._ratio(ratios, 1)
    assert module._ratio(ratios, 1) != module._ratio(ratios, 2)


def test_the_interval_covers_as_often_as_it_says():
    generator = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        ratio = module._ratio(1 + 0.1 * generator.standard_normal(60), seed)
        hits += ratio.low <= 1 <= ratio.high
    assert 180 <= hits <= 199


def test_significant_means_that_one_is_outside():
    assert Ratio(0.5, 0.4, 0.6).significant
    assert Ratio(1.5, 1.4, 1.6).significant
    assert not Ratio(0.9, 0.8, 1.0).significant


@pytest.mark.parametrize(
    "options", [LatencyOptions(seconds=-1), LatencyOptions(warmup_ms=-1), LatencyOptions(minimum_runs=0)]
)
def test_options_are_checked(options: LatencyOptions, clock: Clock):
    with pytest.raises(UsageError, match="must"):
        measure({"a": Model(clock, "a", 1)}, {"a": FEEDS}, options)
    with pytest.raises(UsageError, match="no model"):
        measure({}, {})


def chain(length: int) -> str:
    steps = "".join(f"t{i + 1} = MatMul (t{i}, t{i})\n" for i in range(length))
    return f"""<ir_version: 8, opset_import: ["": 17]>
        agraph (float[64, 64] t0) => (float[64, 64] t{length}) {{ {steps} }}"""


def test_real_sessions():
    options = SessionOptions(threads=1)
    sessions = {
        name: open_session(parser.parse_model(chain(length)), options) for name, length in (("long", 64), ("short", 4))
    }
    feeds = {"t0": np.eye(64, dtype=np.float32)}
    result = measure(
        sessions, dict.fromkeys(sessions, feeds), LatencyOptions(warmup_ms=20, seconds=0.3, minimum_runs=10)
    )
    assert result.ratios["short"].median < 0.7
    assert result.ratios["short"].significant
    with pytest.raises(ModelError):
        measure(sessions, {name: {} for name in sessions})
