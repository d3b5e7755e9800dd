"""Latency of several models, interleaved in one process, with ratios that carry their confidence interval."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from onnxprune.errors import UsageError
from onnxprune.runtime.session import Session

_SLICE_SECONDS = 0.025
_RESAMPLES = 2000

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class LatencyOptions:
    """How long to measure: per model, at least ``seconds`` of running and ``minimum_runs`` runs after the warm-up."""

    warmup_ms: float = 200
    seconds: float = 3
    minimum_runs: int = 10
    seed: int = 0


@dataclass(frozen=True)
class Latency:
    """Latency of one run in milliseconds; throughput in samples per second.

    A run holds as many samples as the first axes of its inputs say where all agree, else one.
    """

    min: float
    mean: float
    median: float
    p90: float
    p95: float
    p99: float
    max: float
    throughput: float
    samples_ms: tuple[float, ...]

    def to_dict(self) -> dict[str, float]:
        """Returns the figures of the JSON report."""
        names = ("min", "mean", "median", "p90", "p95", "p99", "max", "throughput")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Ratio:
    """Latency divided by the baseline's, with a 95 % confidence interval; below 1 is faster."""

    median: float
    low: float
    high: float

    @property
    def significant(self) -> bool:
        """Whether the interval excludes 1."""
        return not self.low <= 1 <= self.high


@dataclass(frozen=True)
class LatencyComparison:
    """Latencies by model name in the order given, and the ratio of every later model to the first."""

    latencies: dict[str, Latency]
    ratios: dict[str, Ratio]


def measure(
    sessions: Mapping[str, Session],
    feeds: Mapping[str, Mapping[str, np.ndarray]],
    options: LatencyOptions | None = None,
    progress: Progress | None = None,
) -> LatencyComparison:
    """Returns the latencies of the sessions on their feeds; the first session is the baseline.

    Models take turns in slices of equal time, in an order that rotates from round to round, so that drift of the
    machine meets all alike and each runs with its own caches warm. A round gives one median per model; the ratio is
    the median over rounds of candidate / baseline, its interval a percentile bootstrap over rounds (Efron 1979).

    Raises:
        UsageError: There is nothing to measure, or the options are negative.
        ModelError: A model does not run on its feeds.
    """
    options = options or LatencyOptions()
    _check(sessions, options)
    runners = {name: session.prepare(feeds[name]) for name, session in sessions.items()}
    for run_once in runners.values():
        _run_for(run_once, options.warmup_ms / 1000)
    rounds = _rounds(runners, options, progress)
    latencies = {name: _latency(rounds[name], _samples_per_run(feeds[name])) for name in runners}
    medians = {name: np.array([np.median(times) for times in slices]) for name, slices in rounds.items()}
    baseline, *candidates = medians
    ratios = {name: _ratio(medians[name] / medians[baseline], options.seed) for name in candidates}
    return LatencyComparison(latencies, ratios)


def _check(sessions: Mapping[str, Session], options: LatencyOptions) -> None:
    if not sessions:
        raise UsageError("there is no model to measure: give at least one")
    if options.warmup_ms < 0 or options.seconds < 0 or options.minimum_runs < 1:
        raise UsageError("warm-up and seconds must not be negative, and minimum_runs must be at least 1")


def _rounds(
    runners: Mapping[str, Callable[[], None]], options: LatencyOptions, progress: Progress | None
) -> dict[str, list[list[float]]]:
    """Returns the seconds of every run, by model and round."""
    names = list(runners)
    slices: dict[str, list[list[float]]] = {name: [] for name in names}
    spent = dict.fromkeys(names, 0.0)
    turn = min(_SLICE_SECONDS, options.seconds / options.minimum_runs)
    count = 0
    while count < options.minimum_runs or min(spent.values()) < options.seconds:
        first = count % len(names)
        for name in names[first:] + names[:first]:
            times = _run_for(runners[name], turn)
            slices[name].append(times)
            spent[name] += sum(times)
        count += 1
        if progress is not None:
            progress("latency", _fraction(count, min(spent.values()), options))
    return slices


def _fraction(count: int, spent: float, options: LatencyOptions) -> float:
    done = min(count / options.minimum_runs, 1.0)
    return min(done, spent / options.seconds) if options.seconds else done


def _run_for(run_once: Callable[[], None], seconds: float) -> list[float]:
    """Returns the seconds of each run: at least one run, then as many as begin within the given time."""
    times: list[float] = []
    start = end = perf_counter()
    while not times or end - start < seconds:
        begin = perf_counter()
        run_once()
        end = perf_counter()
        times.append(end - begin)
    return times


def _latency(slices: Sequence[Sequence[float]], samples_per_run: int) -> Latency:
    times = np.concatenate([np.asarray(one) for one in slices]) * 1000
    p90, p95, p99 = np.percentile(times, [90, 95, 99])
    mean = float(times.mean())
    return Latency(
        min=float(times.min()),
        mean=mean,
        median=float(np.median(times)),
        p90=float(p90),
        p95=float(p95),
        p99=float(p99),
        max=float(times.max()),
        throughput=samples_per_run * 1000 / mean,
        samples_ms=tuple(times.tolist()),
    )


def _samples_per_run(feeds: Mapping[str, np.ndarray]) -> int:
    sizes = {array.shape[0] for array in feeds.values() if array.ndim}
    return sizes.pop() if len(sizes) == 1 else 1


def _ratio(ratios: np.ndarray, seed: int) -> Ratio:
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, len(ratios), (_RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(ratios[drawn], axis=1), [2.5, 97.5])
    return Ratio(float(np.median(ratios)), float(low), float(high))
