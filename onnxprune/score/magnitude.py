"""Magnitude of the weights: L1 and L2 norms of everything a unit owns, and the scale of its BatchNormalization.

Norms of filters go back to Li et al. 2017 (Pruning Filters for Efficient ConvNets), scales of BatchNormalization to Liu
et al. 2017 (Network Slimming).
"""

from collections.abc import Callable

import numpy as np

from onnxprune.channels.balance import Grid
from onnxprune.channels.facts import Axis
from onnxprune.channels.groups import ChannelGroup, Channels
from onnxprune.model.cost import weight_tensors
from onnxprune.score.scores import Vector


def l1(channels: Channels, seed: int) -> dict[str, Vector]:
    """Returns the sum of magnitudes of all weights that go with a unit."""
    return _owned(channels, np.abs)


def l2(channels: Channels, seed: int) -> dict[str, Vector]:
    """Returns the Euclidean norm of all weights that go with a unit."""
    return {name: np.sqrt(total) for name, total in _owned(channels, np.square).items()}


def batchnorm(channels: Channels, seed: int) -> dict[str, Vector]:
    """Returns the magnitude of the BatchNormalization scales of a unit; the L2 norm for groups that have none."""
    scales = {node.inputs[1].name for node in channels.graph.nodes if node.op == "BatchNormalization"}
    stored = {
        name: np.abs(values.astype(np.float64)) for name, values in weight_tensors(channels.graph) if name in scales
    }
    totals = l2(channels, seed)
    for group in channels.prunable:
        found = np.zeros(group.units)
        for member in group.members:
            for axis in member.axes:
                if axis.tensor in stored:
                    found += np.bincount(member.units, stored[axis.tensor][member.channels], group.units)
        if found.any():
            totals[group.name] = found
    return totals


def _owned(channels: Channels, measure: Callable[[Vector], Vector]) -> dict[str, Vector]:
    """Sums a measure of the weights over each unit; vectors (biases, statistics) count where there is nothing else."""
    wanted = _axes(channels.prunable)
    stored = {axis for group in channels.prunable for axis in group.weights} & set(wanted)
    grids = {grid.tensor: grid for grid in channels.grids if grid.axis in wanted}
    matrices = {group.name: np.zeros(group.units) for group in channels.prunable}
    vectors = {group.name: np.zeros(group.units) for group in channels.prunable}
    for name, values in weight_tensors(channels.graph):
        dims = [dim for dim in range(values.ndim) if Axis(name, dim) in stored]
        if not dims and name not in grids:
            continue
        with np.errstate(over="ignore", invalid="ignore"):
            measured = measure(values if values.dtype == np.float32 else values.astype(np.float64))
        for dim in dims:
            others = tuple(place for place in range(values.ndim) if place != dim)
            along = measured.sum(axis=others, dtype=np.float64)
            for group, channel, unit in wanted[Axis(name, dim)]:
                totals = matrices if values.ndim > 1 else vectors
                totals[group.name] += np.bincount(unit, along[channel], group.units)
        if name in grids:
            length = channels.shapes.shapes[grids[name].axis.tensor][grids[name].axis.dim]
            along = _by_block(measured, grids[name], length // grids[name].size)
            for group, channel, unit in wanted[grids[name].axis]:
                matrices[group.name] += np.bincount(unit, along[channel], group.units)
    return {name: total if total.any() else vectors[name] for name, total in matrices.items()}


def _by_block(measured: Vector, grid: Grid, blocks: int) -> Vector:
    """Returns the sums over a weight for every channel of the grid's axis."""
    moved = np.moveaxis(measured, (grid.rows, grid.columns), (0, 1))
    table = moved.reshape(*moved.shape[:2], -1).sum(axis=2, dtype=np.float64)
    totals: Vector = table.reshape(blocks, -1, grid.size).sum(axis=1).ravel()
    return totals


def _axes(
    groups: tuple[ChannelGroup, ...],
) -> dict[Axis, list[tuple[ChannelGroup, np.ndarray, np.ndarray]]]:
    found: dict[Axis, list[tuple[ChannelGroup, np.ndarray, np.ndarray]]] = {}
    for group in groups:
        for member in group.members:
            for axis in member.axes:
                found.setdefault(axis, []).append((group, member.channels, member.units))
    return found
