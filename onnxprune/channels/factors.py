"""Which factor of a merged axis goes: heads or head dimensions, groups or offsets, channels or pixels.

A Reshape merges and splits axes. A channel of the merged axis is a tuple of factor indices, and what can be removed is
a slice across one factor. The choice has to agree everywhere the factor appears, so factors that mean the same are
joined first, and then every merged axis takes, in this order: a factor that another axis has already taken, its only
live factor that no node sums over (heads rather than head dimensions), its only live factor, its outermost live factor
with stored weights of its own (channels rather than pixels), its outermost live factor.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from onnxprune.channels.collect import Blocks, Statements
from onnxprune.channels.facts import Index

Part = tuple[int, int]
"""Stride and length of a factor within its merged axis."""

Key = tuple[int, Part | None]
"""A factor where it appears: a part of a merged class, or a whole class (``None``)."""


@dataclass(frozen=True, slots=True)
class Block:
    """A minimal row-major block: its factor lengths, and for each axis on either side the factors it consists of."""

    factors: tuple[int, ...]
    axes: tuple[tuple[int, tuple[int, ...]], ...]

    def part(self, members: tuple[int, ...], factor: int) -> Part:
        """Returns stride and length of a factor within an axis."""
        inner = [self.factors[other] for other in members if other > factor]
        return int(np.prod(inner, dtype=np.int64)), self.factors[factor]


def blocks(left: Sequence[int], right: Sequence[int], lengths: Sequence[int]) -> tuple[list[Block], list[int]]:
    """Splits a regrouping into minimal blocks; also returns the axes whose sizes have no common factors.

    Axes of length 1 take no part.
    """
    left = [axis for axis in left if lengths[axis] != 1]
    right = [axis for axis in right if lengths[axis] != 1]
    found: list[Block] = []
    odd: list[int] = []
    i = j = 0
    while i < len(left) and j < len(right):
        start_left, start_right = i, j
        size_left, size_right = lengths[left[i]], lengths[right[j]]
        i, j = i + 1, j + 1
        while size_left != size_right and (i < len(left) if size_left < size_right else j < len(right)):
            if size_left < size_right:
                size_left, i = size_left * lengths[left[i]], i + 1
            else:
                size_right, j = size_right * lengths[right[j]], j + 1
        sides = left[start_left:i], right[start_right:j]
        block = _refine(sides, lengths) if size_left == size_right else None
        if block is None:
            odd += [*sides[0], *sides[1]]
        else:
            found.append(block)
    odd += [*left[i:], *right[j:]]
    return found, odd


def _refine(sides: tuple[list[int], list[int]], lengths: Sequence[int]) -> Block | None:
    cuts: set[int] = {1}
    for side in sides:
        cuts.update(np.cumprod([lengths[axis] for axis in reversed(side)]).tolist())
    order = sorted(cuts, reverse=True)
    if any(outer % inner for outer, inner in pairwise(order)):
        return None
    factors = tuple(outer // inner for outer, inner in pairwise(order))
    axes = []
    for side in sides:
        position = 0
        for axis in side:
            start, size = position, 1
            while size < lengths[axis]:
                size, position = size * factors[position], position + 1
            axes.append((axis, tuple(range(start, position))))
    return Block(factors, tuple(axes))


@dataclass(slots=True)
class Factor:
    """One factor, wherever it appears: alone on whole axes (classes), or as a part of merged ones."""

    length: int
    classes: set[int] = field(default_factory=set)
    dead: str | None = None
    summed: bool = False
    stored: bool = False
    taken: bool = False


@dataclass(slots=True)
class Merged:
    """An axis class that is a product of factors, outermost first; ``forced`` is the part that must be taken."""

    number: int
    parts: tuple[Part, ...]
    forced: Part | None = None


class Factoring:
    """Joins factors and decides which one every merged axis takes.

    Groups of ``tied`` operators lose the same offsets; ``stored`` are the classes with axes of stored weights.
    """

    def __init__(
        self,
        found: Statements,
        refined: list[Block],
        classes: Index,
        tied: Sequence[Blocks],
        stored: set[int],
        *,
        inexact: bool = False,
    ) -> None:
        self._parent: dict[Key, Key] = {}
        self._merged: dict[tuple[int, tuple[Part, ...]], Merged] = {}
        self._classes = classes
        for block in refined:
            self._add_block(block)
        for axis, size, offsets, _ in tied:
            self._add_balance(found, axis, size, offsets)
        self._factors = self._gather(found, stored, (found.frozen,) if inexact else (found.frozen, found.inexact))

    def decide(self) -> tuple[list[tuple[int, Part, int]], dict[int, str], list[Factor]]:
        """Returns (class, part, factor) for every decision, reasons for classes that freeze, and the factors."""
        order = list(self._factors)
        position = {root: number for number, root in enumerate(order)}
        decisions: list[tuple[int, Part, int]] = []
        reasons: dict[int, str] = {}
        self._freeze_parts_of_frozen()
        waiting = list(self._merged.values())
        while waiting:
            rest, progress = [], False
            for merged in waiting:
                part = self._choice(merged, settle=False)
                if part is None and any(self._factor(merged, p).dead is None for p in merged.parts):
                    rest.append(merged)
                    continue
                progress = True
                self._settle(merged, part, decisions, reasons, position)
            if not progress and rest:
                merged = rest.pop(0)
                self._settle(merged, self._choice(merged, settle=True), decisions, reasons, position)
            waiting = rest
        return decisions, reasons, [self._factors[root] for root in order]

    def _freeze_parts_of_frozen(self) -> None:
        """Nothing of a merged axis can go that cannot lose anything as a whole."""
        merged_of: dict[int, list[Merged]] = {}
        for merged in self._merged.values():
            merged_of.setdefault(merged.number, []).append(merged)
        for factor in self._factors.values():
            if factor.dead is not None:
                self._frozen.update(dict.fromkeys(factor.classes - self._frozen.keys(), factor.dead))
        waiting = list(self._frozen)
        while waiting:
            number = waiting.pop()
            for merged in merged_of.get(number, ()):
                for part in merged.parts:
                    factor = self._factor(merged, part)
                    factor.dead = factor.dead or self._frozen[number]
                    fresh = factor.classes - self._frozen.keys()
                    self._frozen.update(dict.fromkeys(fresh, factor.dead))
                    waiting += fresh

    def _settle(
        self,
        merged: Merged,
        part: Part | None,
        decisions: list[tuple[int, Part, int]],
        reasons: dict[int, str],
        position: dict[Key, int],
    ) -> None:
        if part is None:
            dead = next((self._factor(merged, p).dead for p in merged.parts if self._factor(merged, p).dead), None)
            reasons[merged.number] = dead or "its factors cannot be told apart"
            for other in merged.parts:
                factor = self._factor(merged, other)
                factor.dead = factor.dead or reasons[merged.number]
            return
        chosen = self._find((merged.number, part))
        self._factors[chosen].taken = True
        decisions.append((merged.number, part, position[chosen]))
        for other in merged.parts:
            factor = self._factor(merged, other)
            if other != part and factor.dead is None:
                factor.dead = "its axis is merged with another one whose channels go as a whole"

    def _choice(self, merged: Merged, *, settle: bool) -> Part | None:
        live = [part for part in merged.parts if self._factor(merged, part).dead is None]
        if merged.forced is not None:
            return merged.forced if merged.forced in live else None
        taken = [part for part in live if self._factor(merged, part).taken]
        unsummed = [part for part in live if not self._factor(merged, part).summed]
        if taken:
            return taken[0]
        if len(unsummed) == 1:
            return unsummed[0]
        if len(live) == 1:
            return live[0]
        options = unsummed or live
        owners = [part for part in options if self._factor(merged, part).stored]
        return (owners or options)[0] if settle and options else None

    def _factor(self, merged: Merged, part: Part) -> Factor:
        return self._factors[self._find((merged.number, part))]

    def _add_block(self, block: Block) -> None:
        for factor in range(len(block.factors)):
            keys: list[Key] = []
            for axis, members in block.axes:
                if factor in members:
                    number = int(self._classes[axis])
                    keys.append((number, None if len(members) == 1 else block.part(members, factor)))
            for key in keys[1:]:
                self._join(keys[0], key)
        for axis, members in block.axes:
            if len(members) > 1:
                self._add_merged(int(self._classes[axis]), tuple(block.part(members, f) for f in members), None)

    def _add_balance(self, found: Statements, axis: int, size: int, offsets: int | None) -> None:
        number, count = int(self._classes[axis]), found.lengths[axis] // size
        if size == 1:
            found.freeze(axis, "one channel in every group stays")
        forced = (1, size)
        parts = tuple(part for part in ((size, count), forced) if part[1] > 1)
        if len(parts) == 2:
            self._add_merged(number, parts, forced)
            if offsets is not None:
                self._join((number, forced), (int(self._classes[offsets]), None))

    def _add_merged(self, number: int, parts: tuple[Part, ...], forced: Part | None) -> None:
        for part in parts:
            self._find((number, part))
        merged = self._merged.setdefault((number, parts), Merged(number, parts))
        merged.forced = forced or merged.forced

    def _gather(self, found: Statements, stored: set[int], frozen: Sequence[dict[int, str]]) -> dict[Key, Factor]:
        factors: dict[Key, Factor] = {}
        by_root: dict[Key, list[Key]] = {}
        for key in list(self._parent):
            by_root.setdefault(self._find(key), []).append(key)
        dead: dict[int, str] = {}
        for source in frozen:
            for axis, cause in source.items():
                dead.setdefault(int(self._classes[axis]), cause)
        self._frozen = dead
        summed = {int(self._classes[axis]) for axis in found.contracted}
        for root, keys in by_root.items():
            numbers = {number for number, part in keys if part is None}
            length = next((part[1] for _, part in keys if part is not None), 0)
            reason = next((dead[number] for number, _ in keys if number in dead), None)
            factors[root] = Factor(length, numbers, reason, bool(numbers & summed), bool(numbers & stored))
        return factors

    def _find(self, key: Key) -> Key:
        parent = self._parent.setdefault(key, key)
        while parent != key:
            grand = self._parent[parent]
            self._parent[key] = grand
            key, parent = parent, grand
        return key

    def _join(self, left: Key, right: Key) -> None:
        self._parent[self._find(right)] = self._find(left)
