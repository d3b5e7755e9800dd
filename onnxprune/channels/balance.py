"""Grouped operators: every group keeps as many channels as the others, whichever they are.

Such an operator does not tie the channels of one group to those of another; it asks the plan to take as many from
each. The weight then loses other columns in every block of rows. Where the graph leaves no such freedom, because the
weight is rearranged on its way or the groups of two operators cross (a channel shuffle between them), the operator's
groups lose the same offsets, which are ties like any other.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from onnxprune.channels.collect import Blocks, Statements
from onnxprune.channels.facts import Axis, Index

ROUNDS = 8
"""Rounds in which one operator of a group gives way; in the next one all do that are still in conflict."""


@dataclass(frozen=True, slots=True)
class Grid:
    """A tensor of which every block of rows has its own columns: the places within that block of ``axis``."""

    tensor: str
    rows: int
    columns: int
    axis: Axis
    size: int


def independent(found: Statements, classes: Index) -> set[int]:
    """Returns the positions of the balances whose groups may lose different offsets, as far as weights go."""
    if not found.balances:
        return set()
    bound = _bound(found, classes)
    owners: dict[int, set[tuple[int, int]]] = {}
    for balance in found.balances:
        if balance.offsets is not None:
            key = (int(classes[balance.axis]), balance.size)
            owners.setdefault(int(classes[balance.offsets]), set()).add(key)
    members = _members(classes, set(owners))
    free = set()
    for position, balance in enumerate(found.balances):
        if balance.size == 1:
            continue
        if balance.offsets is not None:
            number = int(classes[balance.offsets])
            alone = number not in bound and len(owners[number]) == 1
            if not alone or not all(_in_rows(found, classes, balance, axis) for axis in members[number]):
                continue
        free.add(position)
    return free


def grids(found: Statements, classes: Index, free: set[int]) -> Iterator[Grid]:
    """Yields the weights that lose other columns in every block."""
    chosen = [found.balances[position] for position in sorted(free)]
    members = _members(classes, {int(classes[b.offsets]) for b in chosen if b.offsets is not None})
    done: set[int] = set()
    for balance in chosen:
        if balance.offsets is None or balance.rows is None or int(classes[balance.offsets]) in done:
            continue
        number, rows = int(classes[balance.offsets]), found.axes[balance.rows].dim
        done.add(number)
        for axis in members[number]:
            tensor, dim = found.axes[axis]
            yield Grid(tensor, rows, dim, found.axes[balance.axis], balance.size)


def partitions(
    balances: Mapping[int, tuple[Blocks, Index]], groups: Index, frozen: set[int]
) -> tuple[dict[int, Index], set[int]]:
    """Returns the block of every unit, and the balances that have to become ties.

    The blocks are by the lowest label of a group, units in the order of their labels.

    Args:
        balances: By position, the free balances, each with the unit labels of the channels of its axis.
        groups: The group of every unit label.
        frozen: Groups that stay as they are.
    """
    found: dict[int, list[tuple[int, Index]]] = {}
    broken: dict[int, set[int]] = {}
    for position, (balance, labels) in balances.items():
        owners = np.unique(groups[labels])
        if frozen.issuperset(owners.tolist()):
            continue
        blocks = _blocks_of_units(labels, np.arange(labels.size) // balance.size, labels.size // balance.size)
        if owners.size > 1 or blocks is None:
            broken.setdefault(int(owners[0]), set()).add(position)
        elif blocks.size:
            found.setdefault(int(labels.min()), []).append((position, blocks))
    finest: dict[int, Index] = {}
    for lowest, items in found.items():
        items.sort(key=lambda item: (-int(item[1].max()), item[0]))
        finest[lowest] = items[0][1]
        crossing = {position for position, other in items[1:] if not _refines(finest[lowest], other)}
        if crossing:
            broken.setdefault(int(groups[lowest]), set()).update(crossing)
    return finest, {min(positions) for positions in broken.values()}


def _bound(found: Statements, classes: Index) -> set[int]:
    """Returns the classes of which more is said than that other axes correspond to them one to one."""
    axes = {*found.frozen, *found.inexact, *found.contracted}
    for left, right, *_ in found.ties:
        axes.update((left, right))
    for sides in found.regroups:
        axes.update(axis for side in sides for axis in side)
    axes.update(balance.axis for balance in found.balances)
    for edit in found.edits:
        fact = edit.fact
        axes.add(found.number(fact.source if hasattr(fact, "source") else fact.axis))
    return {int(classes[axis]) for axis in axes}


def _members(classes: Index, wanted: set[int]) -> dict[int, list[int]]:
    places = np.flatnonzero(np.isin(classes, list(wanted)))
    members: dict[int, list[int]] = {number: [] for number in wanted}
    for axis in places.tolist():
        members[int(classes[axis])].append(axis)
    return members


def _in_rows(found: Statements, classes: Index, balance: Blocks, axis: int) -> bool:
    """Whether a tensor lies like the weight of the operator: the same rows, the same columns."""
    if balance.offsets is None or balance.rows is None:
        return False
    tensor, dim = found.axes[axis]
    rows = found.base[tensor] + found.axes[balance.rows].dim
    alike = rows < len(found.axes) and found.axes[rows].tensor == tensor and found.axes[balance.offsets].dim == dim
    return alike and int(classes[rows]) == int(classes[balance.rows])


def _blocks_of_units(labels: Index, blocks: Index, count: int) -> Index | None:
    """Returns the block of every unit; nothing where every unit lies in all blocks; ``None`` where neither holds."""
    unit = np.unique(labels, return_inverse=True)[1]
    pairs, often = np.unique(unit * count + blocks, return_counts=True)
    per_unit = np.bincount(pairs // count)
    if often.min() != often.max():
        return None
    if (per_unit == count).all():
        return np.zeros(0, np.int64)
    sizes = np.bincount(pairs % count, minlength=count)
    if (per_unit == 1).all() and sizes.min() > 1:
        return np.asarray(pairs % count, np.int64)
    return None


def _refines(fine: Index, coarse: Index) -> bool:
    """Whether every block of the one lies within a block of the other, as many in each."""
    pairs = np.unique(fine * (int(coarse.max()) + 1) + coarse)
    return pairs.size == int(fine.max()) + 1
