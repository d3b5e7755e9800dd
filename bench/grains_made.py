"""What ``depth.py``, ``masks.py`` and ``grains.py`` share: results with their verdict, and blocks in order."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
from accuracy_sheet import Outcome, Sizes, Subject, cifar, judged, small

from onnxprune.channels.blocks import Block
from onnxprune.channels.groups import Channels, analyze
from onnxprune.commands.bench import bench
from onnxprune.commands.inputs import Inputs
from onnxprune.commands.slim import run
from onnxprune.model.cost import cost
from onnxprune.plan.plan import Plan
from onnxprune.recover.depth import choose_blocks, trial_samples
from onnxprune.report.schema import LatencyRatio, Report
from onnxprune.score.readings import Runs, feeds_of
from onnxprune.slim import Recipe
from onnxprune.surgery.drop import drop_blocks

SMALL_SAMPLES = 384
"""Calibration samples for networks of models/, which have 512 to draw from."""


@dataclass(frozen=True)
class Made:
    """A result and the verdict on it; the seconds are those of ranking, plan and repair."""

    model: onnx.ModelProto
    report: Report
    plan: Plan
    outcome: Outcome

    @property
    def accuracy(self) -> float:
        """In percent."""
        return self.outcome.accuracy


def made(subject: Subject, recipe: Recipe) -> Made:
    """Returns what ``slim`` makes of a network."""
    result = run(str(subject.path), recipe)
    report = result.report
    seconds = sum(report.seconds.get(stage, 0.0) for stage in ("layers", "plan", "recover"))
    found = judged(report, 1.0 if report.ratios.macs is None else report.ratios.macs)
    return Made(result.model, report, result.plan, replace(found, seconds=seconds, plan=result.plan))


def without(subject: Subject, sizes: Sizes, names: Sequence[str], *, recover: str | None = None, seed: int = 0) -> Made:
    """Returns a network without blocks of given names."""
    recipe = replace(subject.recipe(sizes, seed), plan=Plan({}, {}, blocks=tuple(names)), recover=recover)
    return made(subject, replace(recipe, round_to="auto"))


def draws(sizes: Sizes, make: Callable[[int], Made]) -> list[Made]:
    """Returns one result for every draw of the calibration samples."""
    return [make(seed) for seed in range(sizes.seeds)]


def subjects(
    nets: Path | None, depths: Sequence[int], models: Sequence[str], sizes: Sizes
) -> Iterator[tuple[Subject, Sizes]]:
    """Yields trained CIFAR-10 networks of a folder and those of models/, which have fewer images to draw from."""
    for subject in [] if nets is None else cifar(nets, depths, sizes):
        yield subject, sizes
    for subject in small(models, sizes):
        yield subject, replace(sizes, samples=min(sizes.samples, SMALL_SAMPLES))


def outcomes(found: Sequence[Made]) -> list[Outcome]:
    """Returns the verdicts alone."""
    return [one.outcome for one in found]


@dataclass(frozen=True)
class Ladder:
    """The blocks of a network in the order in which they go, ranked once on a draw of the calibration samples."""

    subject: Subject
    sizes: Sizes
    seed: int = 0
    most: int | None = None

    @cached_property
    def order(self) -> tuple[Block, ...]:
        """The blocks that can be dropped, the first one first, all or as many as are wanted."""
        channels, given = self._channels, self._inputs.given
        blocks = [block for block in channels.blocks if block.counts]
        count = len(blocks) if self.most is None else min(self.most, len(blocks))
        if not count or given is None:
            return ()
        samples = given.split()[0].draw(trial_samples(self._whole, len(blocks), count), self.seed)
        runs = Runs(feeds_of(samples, channels.graph, channels.shapes), seed=self.seed)
        return tuple(drop.block for drop in choose_blocks(channels.graph, blocks, count, runs=runs))

    def names(self, count: int) -> tuple[str, ...]:
        """Returns the names of the first blocks that go."""
        return tuple(block.name for block in self.order[:count])

    @cached_property
    def macs(self) -> tuple[float, ...]:
        """What is left of the multiply-accumulates without the first 0, 1, 2 ... blocks."""
        graph, sizes = self._channels.graph, self._inputs.sizes
        counts = range(len(self.order) + 1)
        return tuple(cost(drop_blocks(graph, self.order[:count]), sizes).macs / self._whole for count in counts)

    def nearest(self, share: float) -> int:
        """Returns how many blocks have to go, one at least, for what is left to be nearest to a share."""
        return min(range(1, len(self.macs)), key=lambda count: abs(self.macs[count] - share))

    @cached_property
    def _inputs(self) -> Inputs:
        return self.subject.inputs(self.subject.recipe(self.sizes, self.seed))

    @cached_property
    def _channels(self) -> Channels:
        return analyze(str(self.subject.path), self._inputs.sizes)

    @cached_property
    def _whole(self) -> int:
        return cost(self._channels.graph, self._inputs.sizes).macs


@dataclass(frozen=True)
class Timing:
    """How models are timed: one sample at a time, the models in turns."""

    threads: int
    seconds: float
    provider: str


def timed(models: Sequence[object], timing: Timing) -> tuple[list[float], list[LatencyRatio]]:
    """Returns the median milliseconds of models, and the ratio of each to the first."""
    rows = bench(list(models), ep=timing.provider, threads=timing.threads, seconds=timing.seconds).models
    whole = LatencyRatio(1.0, 1.0, 1.0)
    return [float(row.latency_ms.median or np.nan) for row in rows], [whole, *(row.ratio for row in rows[1:])]


def interval(ratio: LatencyRatio) -> str:
    """Returns a ratio with its confidence interval."""
    if ratio.median is None or ratio.low is None or ratio.high is None:
        return "not measured"
    return f"{ratio.median:.3f} ({ratio.low:.3f}..{ratio.high:.3f})"
