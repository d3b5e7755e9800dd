"""How a demand is shared among groups: the order in which blocks of units go, taken until the demand is met.

``uniform`` takes the same fraction everywhere, ``global`` the lowest scores of all groups, ``per-mac`` the lowest
scores for what they save, ``measured`` the smallest loss of the outputs for what it saves.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from onnxprune.channels.facts import Index
from onnxprune.channels.groups import ChannelGroup, Channels
from onnxprune.errors import UsageError
from onnxprune.model.shapes import Shape
from onnxprune.plan.demand import Demand
from onnxprune.plan.rounding import kept
from onnxprune.plan.sizes import Savings, Sizes, Vector
from onnxprune.score.scores import Scores

ALLOCATIONS = ("uniform", "global", "per-mac", "measured")

LEAST = 0.1
"""Fraction of a group below which it goes only after all others have reached theirs; not for ``uniform``."""

LAST = 1e9
"""Added to the loss of what goes last."""

NEAR = 0.02
"""A budget is met well enough where no more than this fraction of it is left."""

TRADES = 1_000
"""Exchanges of steps that are looked at where it is not."""

ROUND = 0.02
"""Fraction of the cost that is saved before what the next units save is looked at again."""


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """Groups that may shrink, each by ``blocks`` units at once, and what speaks for keeping them.

    ``losses`` are what the outputs lose when the first 0, 1, 2, ... units of a group are gone, where that was measured;
    ``input_shape`` the sizes of the inputs at which multiply-accumulates are counted.
    """

    channels: Channels
    groups: Sequence[ChannelGroup]
    blocks: Sequence[int]
    scores: Scores
    losses: Mapping[str, Vector] | None = None
    input_shape: Mapping[str, Shape] | None = None


def allocate(task: Task, allocation: str, demand: Demand) -> tuple[Index, bool]:
    """Returns how many units of each group go, and whether the demand is met without any.

    A ratio is met before rounding to the nearest multiples, a budget after it: never above, as near as blocks allow.

    Raises:
        UsageError: there is no such allocation.
    """
    if allocation not in ALLOCATIONS:
        raise UsageError(f"there is no allocation {allocation!r}: choose {', '.join(ALLOCATIONS)}")
    units = np.array([group.units for group in task.groups], np.int64)
    if demand.ratio is not None and allocation == "uniform":
        return _rounded(task, (1 - demand.ratio) * units), not demand.asks
    sizes = Sizes(task.channels, task.groups, task.input_shape)
    excess = demand.excess(sizes)
    if excess(units * 0) <= 1:
        return units * 0, True
    if demand.ratio is None:
        return _ordered(task, allocation, task.blocks, demand.savings(sizes)).until(excess), False
    single = [group.block_count for group in task.groups]
    order = _ordered(task, allocation, single, sizes.macs_saved())
    return _rounded(task, (units - order.until(excess)) * 1.0), False


def _ordered(task: Task, allocation: str, blocks: Sequence[int], savings: Savings) -> "Steps":
    if allocation == "uniform":
        return uniform(task.groups, blocks)
    if allocation == "measured":
        if task.losses is None:
            raise UsageError("the allocation 'measured' needs samples: give --data, or choose per-mac")
        if any(len(task.losses.get(group.name, ())) != group.units + 1 for group in task.groups):
            raise UsageError(
                "the losses are not those of this model: give one number for 0, 1, 2, ... units of each group"
            )
        return paid(task.groups, blocks, task.losses, savings)
    losses = {group.name: _accumulated(task.scores.values[group.name]) for group in task.groups}
    if allocation == "global":
        return pooled(task.groups, blocks, losses)
    return paid(task.groups, blocks, losses, savings)


def _rounded(task: Task, wanted: NDArray[np.floating]) -> Index:
    stay = [
        kept(group, float(number), block) if number < group.units else group.units
        for group, number, block in zip(task.groups, wanted, task.blocks, strict=True)
    ]
    return np.array([group.units - number for group, number in zip(task.groups, stay, strict=True)], np.int64)


def _accumulated(scores: Vector) -> Vector:
    return np.concatenate([[0.0], np.cumsum(np.sort(scores))])


@dataclass(frozen=True, slots=True, eq=False)
class Steps:
    """Blocks of units in the order in which they go: step ``i`` takes ``sizes[i]`` units of ``groups[i]``.

    ``keys`` is what they are ordered by.
    """

    groups: Index
    sizes: Index
    keys: Vector
    count: int

    def after(self, number: int) -> Index:
        """Returns how many units of every group are gone after the first steps."""
        return self._sum(np.arange(number))

    def until(self, excess: Callable[[Index], float]) -> Index:
        """Returns what the fewest steps remove that bring the excess to 1 or below; all of them where none do.

        Last steps of groups are then taken back where they are not needed, the latest first. Where blocks are so
        coarse that more than ``NEAR`` is still missing, last steps give way to next steps of other groups.
        """
        low, high = 0, self.groups.size
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if excess(self.after(middle)) <= 1 else (middle + 1, high)
        taken, looks = self._needed(np.arange(low), excess)
        reached = excess(self._sum(taken))
        while reached < 1 - NEAR and looks > 0:
            best = taken
            for other in self._neighbours(taken):
                now = excess(self._sum(other))
                looks -= 1
                if reached < now <= 1:
                    best, reached = other, now
                if reached >= 1 - NEAR or looks == 0:
                    break
            if best is taken:
                break
            taken = best
        return self._sum(taken)

    def _needed(self, taken: Index, excess: Callable[[Index], float]) -> tuple[Index, int]:
        """Returns the steps without those that the demand is met without, and how many looks are left."""
        looks, before = TRADES, -1
        while before != taken.size:
            before = taken.size
            for out in self._last(taken)[::-1][:looks]:
                fewer = taken[taken != out]
                looks -= 1
                if excess(self._sum(fewer)) <= 1:
                    taken = fewer
        return taken, looks

    def _neighbours(self, taken: Index) -> Iterator[Index]:
        """Yields the steps with one less, with one or two exchanged for one, or with one exchanged for two."""
        last = self._last(taken)[::-1]
        rest = np.setdiff1d(np.arange(self.groups.size), taken)
        following = rest[np.sort(np.unique(self.groups[rest], return_index=True)[1])]
        for out in last:
            yield taken[taken != out]
        for out in last:
            for new in following[self.groups[following] != self.groups[out]]:
                yield np.append(taken[taken != out], new)
        for first, second in combinations(last, 2):
            for new in following:
                yield np.append(taken[(taken != first) & (taken != second)], new)
        for out in last:
            for pair in combinations(following, 2):
                yield np.append(taken[taken != out], pair)

    def _last(self, taken: Index) -> Index:
        """Returns the last step of every group, in order."""
        places = taken.size - 1 - np.unique(self.groups[taken][::-1], return_index=True)[1]
        return taken[np.sort(places)]

    def _sum(self, taken: Index) -> Index:
        sums = np.bincount(self.groups[taken], self.sizes[taken], self.count)
        return np.asarray(sums, np.int64)


def uniform(groups: Sequence[ChannelGroup], blocks: Sequence[int]) -> Steps:
    """Returns the steps that keep all groups at the same fraction, by the ratio above which rounding takes each."""

    def ratios(number: int, rungs: Index) -> Vector:
        above = np.concatenate([[-(-rungs[0] // blocks[number]) * blocks[number]], rungs[1:-1]])
        return np.asarray(1 - (above + rungs[1:]) / 2 / rungs[0])

    return _sorted(groups, blocks, ratios)


def pooled(groups: Sequence[ChannelGroup], blocks: Sequence[int], losses: Mapping[str, Vector]) -> Steps:
    """Returns the steps from the smallest loss for a unit to the largest.

    Args:
        groups: Groups that may shrink.
        blocks: Number of units of each that go at once.
        losses: The loss when the first 0, 1, 2, ... units of a group are gone.
    """
    return _sorted(groups, blocks, lambda number, rungs: _slopes(losses[groups[number].name], rungs))


def paid(
    groups: Sequence[ChannelGroup], blocks: Sequence[int], losses: Mapping[str, Vector], savings: Savings
) -> Steps:
    """Returns the steps from the smallest loss for what is saved to the largest; arguments as in :func:`pooled`.

    What a unit saves depends on what is gone already, and is brought up to date after each part of the cost.
    """
    steps = pooled(groups, blocks, losses)
    left = np.arange(steps.groups.size)
    removed = np.zeros(steps.count, np.int64)
    order, keys = [], []
    while left.size:
        saved = np.maximum(savings.next_unit(removed), 1e-9)[steps.groups[left]]
        key = steps.keys[left] / saved
        rank = np.argsort(key, kind="stable")
        worth = np.cumsum((saved * steps.sizes[left])[rank])
        number = int(np.searchsorted(worth, ROUND * worth[-1])) + 1
        chosen = left[rank[:number]]
        order.append(chosen)
        keys.append(key[rank[:number]])
        left = np.sort(left[rank[number:]])
        np.add.at(removed, steps.groups[chosen], steps.sizes[chosen])
    ordered = np.concatenate(order) if order else left
    return Steps(steps.groups[ordered], steps.sizes[ordered], np.concatenate([*keys, np.zeros(0)]), steps.count)


def _sorted(groups: Sequence[ChannelGroup], blocks: Sequence[int], keys: Callable[[int, Index], Vector]) -> Steps:
    rungs = [_rungs(group, block) for group, block in zip(groups, blocks, strict=True)]
    key = np.concatenate([keys(number, one) for number, one in enumerate(rungs)])
    order = np.argsort(key, kind="stable")
    owner = np.repeat(np.arange(len(groups)), [one.size - 1 for one in rungs])
    sizes = np.concatenate([-np.diff(one) for one in rungs])
    return Steps(owner[order], sizes[order], key[order], len(groups))


def _rungs(group: ChannelGroup, block: int) -> Index:
    """Returns the numbers of units that may stay, from all of them down to one block."""
    lower = np.arange((group.units - 1) // block, 0, -1, dtype=np.int64) * block
    return np.concatenate([[group.units], lower])


def _slopes(losses: Vector, rungs: Index) -> Vector:
    """Returns the loss for a unit from rung to rung, never less than before."""
    slopes = np.maximum.accumulate(np.diff(losses[rungs[0] - rungs]) / -np.diff(rungs))
    return np.asarray(np.where(rungs[1:] < LEAST * rungs[0], slopes + LAST, slopes))
