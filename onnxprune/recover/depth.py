"""Which blocks go: the ones without which the outputs change least, or that change least what they read.

``divergence`` drops a block, measures the outputs, and ranks again after every drop (SLEB, Song et al. 2024).
``repaired`` does the same behind a quick repair of what is left: what a repair cannot make up for says more than what
is lost before it, and early blocks, with much of the network behind them, cost less than they seem to.
``cosine`` compares what a block reads and makes, in one walk (block influence of ShortGPT, Men et al. 2024).
``parameters`` needs no samples: the smallest blocks first, of equal ones the deepest (Gromov et al. 2024).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.channels.blocks import Block
from onnxprune.errors import ModelError, PlanError, UsageError
from onnxprune.model.io import Graph
from onnxprune.model.linear import Holders, linear_nodes
from onnxprune.model.sizes import infer_shapes
from onnxprune.ops.forms import rows_per_run
from onnxprune.recover.differences import Unchanged
from onnxprune.recover.divergence import Reference
from onnxprune.recover.least_squares import solve
from onnxprune.recover.sequential import Calibration, Settings, repair
from onnxprune.runtime.session import open_session
from onnxprune.runtime.walk import Memory, Progress, Walk
from onnxprune.score.readings import Runs
from onnxprune.surgery.drop import drop_blocks

LOG = logging.getLogger("onnxprune")

REPAIRED, DIVERGENCE, COSINE, PARAMETERS = METHODS = ("repaired", "divergence", "cosine", "parameters")
"""How blocks are ranked; all but the last need samples."""

REPASSES = 3
"""Runs of a network that a trial behind a repair takes: the original, the one that is repaired, and its outputs."""

FALL, FALL_REPAIRED = 0.5, 0.8
"""What becomes, at the least, of the cost of a block when another one goes; a repair leaves little to chance."""

TRIAL_SAMPLES = (8, 128)
"""Fewest and most samples to try blocks with; a repair has as many to fit, and as many to judge by."""

TRIAL_MACS = 2e12
"""Multiply-accumulates that trials may take with more than the fewest samples."""

REPAIR_MACS = 2e13
"""Multiply-accumulates that repairs of trials may take, where nobody asked for them: a few minutes on two cores."""


@dataclass(frozen=True, slots=True)
class Drop:
    """A block that goes, and why it does.

    Attributes:
        block: The block.
        score: How much it matters: the divergence of the outputs without it and all that went before, one minus the
            cosine of what it reads and makes, or its number of parameters.
    """

    block: Block
    score: float


def choose_blocks(
    graph: Graph, blocks: Sequence[Block], amount: float, method: str | None = None, runs: Runs | None = None
) -> tuple[Drop, ...]:
    """Returns which blocks go, in the order in which they do.

    Args:
        graph: The graph in which they were found.
        blocks: The candidates; those within others and those that cannot be dropped are left out.
        amount: A fraction of them, 0 <= amount < 1, or a whole number.
        method: One of ``METHODS``; by default by divergence with samples, and by parameters without.
        runs: Samples to rank by, few of them (``trial_samples``), and others held out where repairs are tried.

    Raises:
        UsageError: there is no such method, it needs samples, or there are fewer blocks.
        PlanError: no block can be dropped, or ONNX Runtime does not run the graph without them.
    """
    method = method or (DIVERGENCE if runs is not None else PARAMETERS)
    if method not in METHODS:
        raise UsageError(f"there is no ranking of blocks {method!r}: choose one of {', '.join(METHODS)}")
    if runs is None and method != PARAMETERS:
        raise UsageError(f"ranking blocks by {method} needs samples: give --data, or rank by {PARAMETERS}")
    candidates = [block for block in blocks if block.counts]
    number = number_of_blocks(amount, len(candidates))
    if runs is not None and method in (REPAIRED, DIVERGENCE):
        trials = RepairedTrials(graph, runs) if method == REPAIRED else Trials(graph, runs)
        return _greedy(trials, candidates, number, runs.progress)
    scores = [float(block.parameters) for block in candidates]
    if runs is not None and method == COSINE:
        scores = _distances(graph, candidates, runs)
    places = sorted(range(len(candidates)), key=lambda place: (scores[place], -place))[:number]
    return tuple(Drop(candidates[place], scores[place]) for place in places)


def number_of_blocks(amount: float, count: int) -> int:
    """Returns how many of ``count`` blocks a fraction or a number means.

    Raises:
        UsageError: there are fewer.
        PlanError: there are none.
    """
    if amount < 0 or (amount >= 1 and amount != int(amount)):
        raise UsageError(f"--layers is {amount}: give a fraction from 0 to 1, or a whole number of blocks")
    if not count:
        raise PlanError(
            "no block of the model can be dropped: 'onnxprune inspect' says why; --exclude and --include may say less"
        )
    number = int(amount) if amount >= 1 else math.floor(amount * count + 0.5)
    if number > count:
        raise UsageError(f"--layers asks for {number} blocks, and {count} can be dropped: ask for fewer")
    return number


def trial_samples(macs: int, count: int, number: int) -> int:
    """Returns with how many samples to rank ``count`` blocks, of which ``number`` go, in a network of that cost."""
    least, most = TRIAL_SAMPLES
    trials = max(count * max(number, 1), 1)
    return int(min(max(TRIAL_MACS / (max(macs, 1) * trials), least), most))


def affordable(graph: Graph, macs: int, count: int, number: int) -> bool:
    """Returns whether to try ``count`` blocks, of which ``number`` go, behind repairs, in a network of that cost."""
    shapes, holders = infer_shapes(graph), Holders(graph)
    work = 0.0
    for linear in linear_nodes(graph, shapes, holders):
        groups, inputs, outputs = linear.matrix().shape
        rows = rows_per_run(inputs, 1, few=True)
        work += groups * inputs * (inputs + outputs) * (rows + inputs)
    return (work + REPASSES * 2 * TRIAL_SAMPLES[1] * macs) * _trials(count, number) < REPAIR_MACS


def _trials(count: int, number: int) -> int:
    """Returns about how many trials it takes to find which of so many blocks go."""
    return count + number * count // 3


def _greedy(trials: Trials, candidates: Sequence[Block], number: int, progress: Progress | None) -> tuple[Drop, ...]:
    """Ranks again after every drop, but for blocks of which even ``fall`` times the old cost is too much.

    What a block costs grows as others go, as a rule: a lazy greedy choice (Minoux 1978) with a margin.
    """
    dropped: list[Drop] = []
    costs = dict.fromkeys(candidates, -np.inf)
    while len(dropped) < number:
        base = dropped[-1].score if dropped else 0.0
        best: Drop | None = None
        for block in sorted(costs, key=costs.__getitem__):
            if best is not None and base + trials.fall * costs[block] >= best.score:
                break
            score = trials.divergence([*(one.block for one in dropped), block])
            costs[block] = score - base
            if best is None or score < best.score:
                best = Drop(block, score)
        if best is None or not np.isfinite(best.score):
            raise PlanError(f"the model does not run without more than {len(dropped)} of its blocks: ask for fewer")
        dropped.append(best)
        del costs[best.block]
        if progress is not None:
            progress("depth", len(dropped) / number)
    return tuple(dropped)


class Trials:
    """Outputs of the graph without blocks, held against those of the whole."""

    fall = FALL

    def __init__(self, graph: Graph, runs: Runs) -> None:
        self._graph, self._runs = graph, runs
        feeds = runs.held_out or runs.feeds
        self._reference = Reference(open_session(graph, runs.options), feeds, Memory(runs.memory))

    def divergence(self, blocks: Sequence[Block]) -> float:
        """Returns the squared error of the outputs relative to their variance; infinite where it does not run."""
        try:
            return self._reference.divergence(open_session(self._without(blocks), self._runs.options))
        except ModelError as error:
            LOG.debug("without %s: %s", blocks[-1].name, error)
            return math.inf

    def _without(self, blocks: Sequence[Block]) -> Graph:
        return drop_blocks(self._graph, blocks)


class RepairedTrials(Trials):
    """The same, with what is left repaired on other samples than those that judge."""

    fall = FALL_REPAIRED

    def __init__(self, graph: Graph, runs: Runs) -> None:
        super().__init__(graph, runs)
        part = -(-len(runs.feeds) // 4)
        self._calibration = Calibration(runs.feeds[:-part] or runs.feeds, runs.feeds[-part:], runs.seed)
        self._settings = Settings(solve, memory=runs.memory, options=runs.options, quick=True)

    def _without(self, blocks: Sequence[Block]) -> Graph:
        small = super()._without(blocks)
        return repair(small, self._graph, Unchanged(), self._calibration, self._settings)[0]


def _distances(graph: Graph, candidates: Sequence[Block], runs: Runs) -> list[float]:
    """Returns one minus the cosine of what every block reads and makes, the mean over samples."""
    walk = Walk(graph.copy(), runs.feeds, Memory(runs.memory), runs.options)
    found = []
    for number, block in enumerate(candidates, 1):
        ends = [block.entry, block.exit]
        walk.reach(ends)
        cosines = [_cosine(*pair) for pair in zip(*map(walk.values, ends), strict=True)]
        walk.release(ends)
        found.append(1.0 - float(np.mean(np.concatenate(cosines))))
        if runs.progress is not None:
            runs.progress("depth", number / len(candidates))
    return found


def _cosine(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Returns the cosine of every sample."""
    rows = [np.reshape(values, (max(len(values), 1) if values.ndim else 1, -1)) for values in (left, right)]
    one, other = (values.astype(np.float64) for values in rows)
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return np.asarray((one * other).sum(axis=1) / np.maximum(lengths, np.finfo(np.float64).tiny))
