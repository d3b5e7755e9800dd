"""What a plan removes, seen from every axis."""

from collections.abc import Mapping, Sequence

import numpy as np

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
        self._by_axis: dict[Axis, Index] = {}
        self.by_tensor: dict[str, dict[int, Index]] = {}
        known = {group.name: group for group in channels.groups}
        parts: dict[Axis, list[Index]] = {}
        for name, units in removals.items():
            group = known.get(name)
            if group is None:
                raise PlanError(f"the plan names group {name!r}, which the model does not have: make the plan anew")
            chosen = np.unique(np.asarray(list(units), np.int64))
            if chosen.size and (chosen[0] < 0 or chosen[-1] >= group.units):
                raise PlanError(f"the plan removes unit {chosen[-1]} of group {name!r}, which has {group.units}")
            if chosen.size and group.frozen is not None:
                raise PlanError(f"the plan removes units of group {name!r}, which is frozen: {group.frozen}")
            for member in group.members if chosen.size else ():
                lost = member.channels[np.isin(member.units, chosen)]
                for axis in member.axes:
                    parts.setdefault(axis, []).append(lost)
        for axis, lost_parts in parts.items():
            lost = np.unique(np.concatenate(lost_parts))
            if lost.size == channels.shapes.shapes[axis.tensor][axis.dim]:
                raise PlanError(f"the plan removes every channel of {axis.tensor!r}: lower the ratio")
            if lost.size:
                self._by_axis[axis] = lost
                self.by_tensor.setdefault(axis.tensor, {})[axis.dim] = lost

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
        lost = self.by_tensor.get(name, {})
        return tuple(size - len(lost.get(dim, ())) for dim, size in enumerate(shape))


def take(values: np.ndarray, lost: Mapping[int, Index]) -> np.ndarray:
    """Returns a copy of an array without the given positions of some dimensions."""
    for dim, places in sorted(lost.items(), key=lambda item: -len(item[1])):
        values = np.take(values, np.delete(np.arange(values.shape[dim]), places), dim)
    return values
