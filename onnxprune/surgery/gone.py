"""What a plan removes, seen from every axis."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.channels.balance import Grid
from onnxprune.channels.facts import Axis, Count, Index
from onnxprune.channels.groups import Channels
from onnxprune.errors import PlanError

FURTHEST = 2**31 - 1
"""A Slice bound behind every axis, in either integer type."""

Removals = Mapping[str, Sequence[int]]
"""Units to remove, by the name of their group."""


class Gone:
    """The removed channels of every axis."""

    def __init__(self, channels: Channels, removals: Removals) -> None:
        _check(channels, removals)
        self._by_axis = channels.lost(removals)
        self._by_tensor: dict[str, dict[int, Index]] = {}
        self._grids: dict[str, _Columns] = {}
        for axis, lost in self._by_axis.items():
            if lost.size == channels.shapes.shapes[axis.tensor][axis.dim]:
                raise PlanError(f"the plan removes every channel of {axis.tensor!r}: lower the ratio")
            self._by_tensor.setdefault(axis.tensor, {})[axis.dim] = lost
        for grid in channels.grids:
            length = channels.shapes.shapes[grid.axis.tensor][grid.axis.dim]
            if self.lost(grid.axis).size:
                kept = self.kept(grid.axis, length).reshape(length // grid.size, -1) % grid.size
                self._grids[grid.tensor] = _Columns(grid, kept)

    def lost(self, axis: Axis) -> Index:
        """Returns the removed channels of an axis, in order."""
        return self._by_axis.get(axis, np.zeros(0, np.int64))

    def kept(self, axis: Axis, length: int) -> Index:
        """Returns the surviving channels of an axis, in order."""
        return np.delete(np.arange(length), self.lost(axis))

    def count(self, fact: Count, length: int) -> int:
        """Returns what a stored count becomes."""
        within = np.arange(length) if fact.index is None else fact.index
        count = int(within.size - np.isin(within, self.lost(fact.axis)).sum())
        if fact.negative:
            return -count if count else FURTHEST  # -0 would be the start
        return count

    def shape(self, name: str, shape: Sequence[int]) -> tuple[int, ...]:
        """Returns the shape of a tensor after surgery."""
        fewer = self.fewer(name)
        return tuple(size - fewer.get(dim, 0) for dim, size in enumerate(shape))

    def fewer(self, name: str) -> dict[int, int]:
        """Returns by how many channels each dimension of a tensor shrinks; empty where the tensor stays."""
        counts = {dim: lost.size for dim, lost in self._by_tensor.get(name, {}).items()}
        columns = self._grids.get(name)
        if columns is not None:
            counts[columns.grid.columns] = columns.grid.size - columns.kept.shape[1]
        return counts

    def take(self, name: str, values: np.ndarray) -> np.ndarray:
        """Returns what stays of the values of a tensor."""
        columns = self._grids.get(name)
        if columns is not None:
            values = columns.take(values)
        lost = self._by_tensor.get(name, {})
        for dim, places in sorted(lost.items(), key=lambda item: -len(item[1])):
            values = np.take(values, np.delete(np.arange(values.shape[dim]), places), dim)
        return values


@dataclass(frozen=True, slots=True, eq=False)
class _Columns:
    """The columns that stay in every block of rows: ``kept`` is [blocks, columns]."""

    grid: Grid
    kept: Index

    def take(self, values: np.ndarray) -> np.ndarray:
        rows, columns = self.grid.rows, self.grid.columns
        stay = np.repeat(self.kept, values.shape[rows] // len(self.kept), axis=0)
        shape = [1] * values.ndim
        shape[rows], shape[columns] = stay.shape
        if rows > columns:
            stay = stay.T
        return np.take_along_axis(values, stay.reshape(shape), columns)


def _check(channels: Channels, removals: Removals) -> None:
    known = {group.name: group for group in channels.groups}
    for name, units in removals.items():
        group = known.get(name)
        if group is None:
            raise PlanError(f"the plan names group {name!r}, which the model does not have: make the plan anew")
        chosen = np.unique(np.asarray(list(units), np.int64))
        if chosen.size and (chosen[0] < 0 or chosen[-1] >= group.units):
            raise PlanError(f"the plan removes unit {chosen[-1]} of group {name!r}, which has {group.units}")
        if chosen.size and group.frozen is not None:
            raise PlanError(f"the plan removes units of group {name!r}, which is frozen: {group.frozen}")
        if group.blocks is not None:
            counts = np.bincount(group.blocks[chosen], minlength=group.block_count)
            if counts.min() != counts.max():
                raise PlanError(
                    f"the plan removes from {counts.min()} to {counts.max()} units of the {counts.size} blocks of "
                    f"group {name!r}, and a grouped operator needs as many of each: make the plan anew"
                )
