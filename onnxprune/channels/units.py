"""Which channels go together: all of them side by side, tied, and sorted into units and groups."""

from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from onnxprune.channels.balance import ROUNDS, Grid, grids, independent, partitions
from onnxprune.channels.collect import Blocks, Statements
from onnxprune.channels.factors import Block, Factor, Factoring, Part, blocks
from onnxprune.channels.facts import Index


@dataclass(slots=True)
class Space:
    """All channels of all classes, side by side: channel c of class k is ``offsets[k] + c``."""

    classes: Index
    lengths: Index
    offsets: Index
    rows: list[Index]
    columns: list[Index]
    frozen: dict[int, str]
    inexact: dict[int, str]

    def tie(self, left: int, right: int, left_index: Index, right_index: Index) -> None:
        """Ties channels of two classes, one to one."""
        self.rows.append(self.offsets[left] + left_index)
        self.columns.append(self.offsets[right] + right_index)


class Units(NamedTuple):
    """The unit of every channel, the group of every unit, and the class of every channel.

    ``partitions`` has the blocks of the units of a group, by its lowest unit; ``grids`` are the weights that lose other
    columns in every block.
    """

    space: Space
    label: Index
    groups: Index
    number: Index
    partitions: dict[int, Index]
    grids: tuple[Grid, ...]


def find_units(found: Statements, stored: set[str], *, inexact: bool) -> Units:
    """Returns the units of everything that was stated about axes which hang together with those of stored tensors.

    Grouped operators start without ties between their groups; those that are in conflict with others get them.
    """
    refined = _refined(found)
    classes = _components(len(found.axes), found.same)
    _freeze_undivided(found, classes, refined)
    free = independent(found, classes)
    owned = {int(classes[place]) for place, axis in enumerate(found.axes) if axis.tensor in stored}
    roots = owned | {int(classes[balance.axis]) for balance in found.balances}
    for attempt in count():
        tied = [balance for position, balance in enumerate(found.balances) if position not in free]
        decisions, reasons, factors = Factoring(found, refined, classes, tied, owned, inexact=inexact).decide()
        space = _space(found, classes, factors, decisions, reasons, roots)
        label, groups, number = _labels(space)
        frozen = set(groups[label[np.isin(number, list(space.frozen))]].tolist())
        balanced, broken = partitions(_balanced(space, label, found, free), groups, frozen)
        if not broken:
            break
        free = free - broken if attempt < ROUNDS else set()
    return Units(space, label, groups, number, balanced, tuple(grids(found, classes, free)))


def _refined(found: Statements) -> list[Block]:
    refined = []
    for left, right in found.regroups:
        minimal, odd = blocks(left, right, found.lengths)
        for axis in odd:
            found.freeze(axis, "a Reshape rearranges it in sizes that have no common factors")
        for block in minimal:
            if len(block.factors) == 1 and len(block.axes) == 2:
                found.same.append((block.axes[0][0], block.axes[1][0]))
            else:
                refined.append(block)
    return refined


def _freeze_undivided(found: Statements, classes: Index, refined: list[Block]) -> None:
    """Freezes factors of merged axes of which no unit has another one like it.

    So it is where an axis is added to itself shifted, or taken apart position by position. Another factor of the merged
    axis may go instead.
    """
    frozen = {int(classes[axis]) for axis in found.frozen}
    factors = {int(classes[axis]): axis for block in refined for axis, own in block.axes if len(own) == 1}
    axes = {number: axis for number, axis in factors.items() if number not in frozen}
    pairs = [(int(classes[left]), int(classes[right])) for left, right, _, _ in found.ties]
    parts = _components(int(classes.max()) + 1, pairs)
    lengths = np.zeros(len(parts), np.int64)
    np.maximum.at(lengths, classes, np.array(found.lengths, np.int64))
    lengths = np.where(np.isin(parts, parts[list(axes)]), lengths, 0)
    space = Space(classes, lengths, np.concatenate([[0], np.cumsum(lengths)]), [], [], {}, {})
    for (left, right), (_, _, left_index, right_index) in zip(pairs, found.ties, strict=True):
        if lengths[left]:
            space.tie(left, right, left_index, right_index)
    if not space.rows:
        return
    label, groups, _ = _labels(space)
    alike = np.bincount(groups)[groups]
    for number, axis in axes.items():
        units = label[space.offsets[number] : space.offsets[number + 1]]
        if units.size > 1 and alike[units].max() == 1:
            found.freeze(axis, "it has only one unit")


def _components(count: int, edges: list[tuple[int, int]]) -> Index:
    pairs = np.array(edges, np.int64).reshape(-1, 2)
    matrix = coo_matrix((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return connected_components(matrix, directed=False)[1].astype(np.int64)


def _space(
    found: Statements,
    classes: Index,
    factors: list[Factor],
    decisions: list[tuple[int, Part, int]],
    reasons: dict[int, str],
    roots: set[int],
) -> Space:
    """Lays out the channels of every class, then of every factor, and ties them.

    Classes that no tie connects with ``roots`` get none: a batch has many channels, and nobody asks for its units.
    """
    count = int(classes.max()) + 1
    lengths = np.zeros(count, np.int64)
    np.maximum.at(lengths, classes, np.array(found.lengths, np.int64))
    own = [factor.length or max((int(lengths[n]) for n in factor.classes), default=1) for factor in factors]
    pairs = [(number, count + position) for position, factor in enumerate(factors) for number in factor.classes]
    pairs += [(number, count + position) for number, _, position in decisions]
    pairs += [(int(classes[left]), int(classes[right])) for left, right, _, _ in found.ties]
    parts = _components(count + len(factors), pairs)
    asked = np.isin(parts, parts[list(roots)])
    lengths = np.where(asked, np.concatenate([lengths, np.array(own, np.int64)]), 0)
    space = Space(classes, lengths, np.concatenate([[0], np.cumsum(lengths)]), [], [], {}, {})
    for source, target in ((found.frozen, space.frozen), (found.inexact, space.inexact)):
        for axis, reason in source.items():
            target.setdefault(int(classes[axis]), reason)
    for number, reason in reasons.items():
        space.frozen.setdefault(number, reason)
    for position, factor in enumerate(factors):
        if factor.dead is not None:
            space.frozen.setdefault(count + position, factor.dead)
        for number in factor.classes if asked[count + position] else ():
            every = np.arange(own[position])
            space.tie(number, count + position, every, every)
    for number, (stride, length), position in decisions:
        every = np.arange(lengths[number])
        space.tie(number, count + position, every, every // stride % length)
    for left, right, left_index, right_index in found.ties:
        if asked[classes[left]]:
            space.tie(int(classes[left]), int(classes[right]), left_index, right_index)
    return space


def _labels(space: Space) -> tuple[Index, Index, Index]:
    """Finds the units and sorts them into groups by the classes that they touch."""
    total = int(space.offsets[-1])
    edges = (np.concatenate(space.rows), np.concatenate(space.columns)) if space.rows else (np.zeros(0, int),) * 2
    matrix = coo_matrix((np.ones(len(edges[0]), np.int8), edges), shape=(total, total))
    units, components = connected_components(matrix, directed=False)
    label = components.astype(np.int64)
    number = np.repeat(np.arange(len(space.lengths)), space.lengths)
    signature = _signatures(label, number, units)
    _, group_of_unit = np.unique(signature, return_inverse=True)
    return label, group_of_unit.astype(np.int64), number


def _balanced(space: Space, label: Index, found: Statements, free: set[int]) -> dict[int, tuple[Blocks, Index]]:
    labels: dict[int, tuple[Blocks, Index]] = {}
    for position in sorted(free):
        balance = found.balances[position]
        start = int(space.offsets[space.classes[balance.axis]])
        labels[position] = balance, label[start : start + found.lengths[balance.axis]]
    return labels


def _signatures(label: Index, number: Index, count: int) -> Index:
    """A 64-bit sum for each unit of the classes that it touches and how often."""
    pairs, often = np.unique(label * (int(number.max()) + 1) + number, return_counts=True)
    unit, touched = np.divmod(pairs, int(number.max()) + 1)
    random = np.random.default_rng(0).integers(1, 2**62, int(number.max()) + 1, np.uint64)
    mixed = random[touched] * (2 * often.astype(np.uint64) + np.uint64(1))
    total = np.zeros(count, np.uint64)
    np.add.at(total, unit, mixed ^ (mixed >> np.uint64(29)))
    return total.astype(np.int64)
