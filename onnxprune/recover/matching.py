"""Which channels a smaller model still has, found by comparing its weights with those of the original."""

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.channels.facts import Axis, Index
from onnxprune.channels.groups import ChannelGroup, Channels
from onnxprune.errors import PlanError
from onnxprune.model.fold import store_moved
from onnxprune.model.graph import copy_graph, stored_tensors
from onnxprune.model.io import read_values

Removed = dict[str, tuple[int, ...]]


def find_removals(channels: Channels, pruned: gs.Graph) -> Removed:
    """Returns the units that a smaller model lacks, by group.

    Tensors are compared under equal names, those first of which one dimension alone shrank; what is found there tells
    more dimensions of others.

    Raises:
        PlanError: a tensor shrank in a way that no removal of units explains.
    """
    original = copy_graph(channels.graph)
    store_moved(original)
    before = {name: read_values(tensor) for name, tensor in stored_tensors(original)}
    after = {name: read_values(tensor) for name, tensor in stored_tensors(pruned)}
    shrunk = {
        Axis(name, dim): size
        for name, values in after.items()
        if name in before and before[name].ndim == values.ndim
        for dim, size in enumerate(values.shape)
        if size != before[name].shape[dim]
    }
    open_groups = [
        group for group in channels.prunable if any(axis in shrunk for member in group.members for axis in member.axes)
    ]
    kept: dict[Axis, Index] = {}
    found: Removed = {}
    while open_groups:
        solved = []
        for group in open_groups:
            units = _units_left(group, before, after, shrunk, kept)
            if units is not None:
                solved.append(group)
                found[group.name] = tuple(np.delete(np.arange(group.units), units).tolist())
                kept.update(_kept(channels, found))
        if not solved:
            names = ", ".join(repr(group.name) for group in open_groups[:3])
            raise PlanError(
                f"it cannot be told which channels of {names} are left: give the plan, or a model with the weights "
                "and the names of the original"
            )
        open_groups = [group for group in open_groups if group.name not in found]
    return found


def _kept(channels: Channels, found: Removed) -> dict[Axis, Index]:
    lengths = channels.shapes.shapes
    return {
        axis: np.delete(np.arange(lengths[axis.tensor][axis.dim]), lost) for axis, lost in channels.lost(found).items()
    }


def _units_left(
    group: ChannelGroup,
    before: dict[str, np.ndarray],
    after: dict[str, np.ndarray],
    shrunk: dict[Axis, int],
    kept: dict[Axis, Index],
) -> Index | None:
    for member in group.members:
        for axis in member.axes:
            if axis not in shrunk or member.channels.size != before[axis.tensor].shape[axis.dim]:
                continue
            others = [Axis(axis.tensor, dim) for dim in range(before[axis.tensor].ndim) if dim != axis.dim]
            if any(other in shrunk and other not in kept for other in others):
                continue
            whole = before[axis.tensor]
            for other in others:
                if other in kept:
                    whole = np.take(whole, kept[other], other.dim)
            channels = _subsequence(whole, after[axis.tensor], axis.dim)
            if channels is not None:
                return np.unique(member.units[np.isin(member.channels, channels)])
    return None


def _subsequence(whole: np.ndarray, part: np.ndarray, dim: int) -> Index | None:
    """Returns the slices of the one array that the other consists of, in order; ``None`` where it does not."""
    left = np.moveaxis(whole, dim, 0).reshape(whole.shape[dim], -1).astype(np.float64)
    right = np.moveaxis(part, dim, 0).reshape(part.shape[dim], -1).astype(np.float64)
    if left.shape[1] != right.shape[1]:
        return None
    distance = np.square(right).sum(axis=1)[:, None] - 2 * right @ left.T + np.square(left).sum(axis=1)
    nearest = np.argmin(distance, axis=1)
    return nearest if (np.diff(nearest) > 0).all() else None
