"""What the outputs lose when one group shrinks alone and the operators that read it make up for it.

One trial for every group and level, on the original with the group silenced: the loss at the outputs ranks groups far
better than the loss of the operators next to them, which says nothing of what the rest of the network makes of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.channels.facts import Index
from onnxprune.channels.groups import ChannelGroup, Channels
from onnxprune.errors import CalibrationError
from onnxprune.model.io import Graph, read_values
from onnxprune.model.linear import Array, Holders, bias_of, linear_nodes
from onnxprune.plan.plan import lowest
from onnxprune.recover.divergence import Reference
from onnxprune.runtime.session import open_session
from onnxprune.runtime.walk import Memory
from onnxprune.score.obs import DAMPING
from onnxprune.score.readings import Reading, Runs, readings_by_group
from onnxprune.score.scores import Scores, Vector
from onnxprune.surgery.gates import silence

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
"""Fractions of a group at which the loss is measured."""

READINGS = (1, 2)
"""Every and every second level make a curve. By the fine one a little goes of many groups, whose errors then add up; by
the coarse one more of fewer groups. Neither is the better one on every model."""

BEYOND = 2.5
"""Loss of a whole group, as a multiple of the largest that was measured."""

LARGEST = 1e9
"""A loss that is larger, or not a number, counts as this."""


@dataclass(frozen=True, slots=True, eq=False)
class MadeUp:
    """Weights [n, m] of a product without the rows of some units, the others fitted, and the shift that this costs."""

    result: str
    part: int
    weights: Array
    shift: Array


def sensitivity(
    channels: Channels, scores: Scores, runs: Runs, groups: Sequence[ChannelGroup] | None = None
) -> tuple[dict[str, Vector], ...]:
    """Returns for every group what the outputs lose when the first 0, 1, 2, ... units of the lowest scores are gone.

    There is one such dictionary for each of ``READINGS``. Losses are squared errors relative to the variance of each
    output, on the runs that weights are fitted to; between the levels that are tried they are interpolated, as the
    largest convex function that does not exceed them.

    Raises:
        CalibrationError: no output holds floats to judge by.
        ModelError: ONNX Runtime cannot run the graph.
    """
    chosen = channels.prunable if groups is None else groups
    reference = Reference(open_session(channels.graph, runs.options), runs.feeds, Memory(runs.memory))
    if not reference.judges:
        raise CalibrationError("no output holds finite floats to measure a loss by: choose --allocation uniform")
    waiting = {group.name: group for group in chosen}
    found: tuple[dict[str, Vector], ...] = tuple({} for _ in READINGS)

    def measure(name: str, read: Sequence[Reading]) -> None:
        group = waiting.pop(name)
        losses = [0.0]
        counts = [0]
        for level in LEVELS:
            units = _units(group, scores.values[name], level)
            if units.size > counts[-1]:
                changes = [made_up(one, units) for one in read if one.result]
                trial = open_session(_trial(channels, changes, {name: units.tolist()}), runs.options)
                losses.append(min(reference.divergence(trial), LARGEST))
                counts.append(units.size)
        for curves, step in zip(found, READINGS, strict=True):
            curves[name] = _curve(counts[::step], losses[::step], group.units)
        if runs.progress is not None:
            runs.progress("measure groups", 1 - len(waiting) / len(chosen))

    for name, read in readings_by_group(channels, replace(runs, progress=None)):
        if name in waiting:
            measure(name, read)
    for name in list(waiting):  # nothing with stored weights reads them
        measure(name, [])
    return found


def made_up(reading: Reading, gone: Index) -> MadeUp:
    """Returns the weights that make up best for units that are gone."""
    lost = reading.rows[np.isin(reading.units, gone)].ravel()
    weights = np.zeros_like(reading.weights)
    stay = np.delete(np.arange(len(weights)), lost)
    covariance = reading.covariance
    damping = DAMPING * max(float(np.trace(covariance)) / len(covariance), 1e-30)
    inner = covariance[np.ix_(stay, stay)] + damping * np.eye(stay.size)
    weights[stay] = reading.weights[stay]
    if lost.size and stay.size:
        weights[stay] += np.linalg.solve(inner, covariance[np.ix_(stay, lost)] @ reading.weights[lost])
    shift = reading.means @ (reading.weights - weights) if reading.means is not None else np.zeros(weights.shape[1])
    return MadeUp(reading.result, reading.part, weights, shift)


def _units(group: ChannelGroup, values: Vector, level: float) -> Index:
    each = group.units // group.block_count
    count = min(round(each * level), each - 1) * group.block_count
    return np.array(lowest(group, values, count), np.int64)


def _trial(channels: Channels, changes: Sequence[MadeUp], removals: Mapping[str, list[int]]) -> Graph:
    """Returns the original with units silenced, and what makes up for them."""
    graph = channels.graph.copy()
    holders = Holders(graph)
    linear = {one.result: one for one in linear_nodes(graph, channels.shapes, holders)} if changes else {}
    matrices: dict[str, Array] = {}
    for change in changes:
        one = linear[change.result]
        matrices.setdefault(change.result, one.matrix())[change.part] = change.weights
    for result, matrix in matrices.items():
        linear[result].write(matrix)
    for result in matrices:
        place = bias_of(linear[result], holders)
        if place is not None:
            shift = np.zeros((matrices[result].shape[0], matrices[result].shape[2]))
            for change in changes:
                if change.result == result:
                    shift[change.part] += change.shift
            place.add(shift.reshape(-1), read_values(linear[result].stored).dtype)
    return silence(replace(channels, graph=graph), removals)


def _curve(counts: Sequence[int], losses: Sequence[float], units: int) -> Vector:
    x = np.array([*counts, units], np.float64)
    y = np.maximum.accumulate(np.array([*losses, 0.0]))
    y[-1] *= BEYOND
    corners = [0]
    while corners[-1] < x.size - 1:
        here = corners[-1]
        slopes = (y[here + 1 :] - y[here]) / (x[here + 1 :] - x[here])
        corners.append(here + 1 + int(np.flatnonzero(slopes <= slopes.min())[-1]))
    return np.interp(np.arange(units + 1), x[corners], y[corners])
