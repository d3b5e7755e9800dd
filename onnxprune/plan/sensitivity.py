"""What the outputs lose when one group shrinks alone and what reads it makes up for it: measured, group by group."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.channels.groups import Channels
from onnxprune.model.io import Graph, read_values
from onnxprune.model.linear import Array, Holders, bias_of, linear_nodes
from onnxprune.plan.plan import lowest
from onnxprune.runtime.session import SessionOptions, open_session
from onnxprune.runtime.walk import Feeds
from onnxprune.score.obs import DAMPING
from onnxprune.score.readings import Reading, Runs, readings
from onnxprune.score.scores import Scores

LEVELS = (0.2, 0.4, 0.6, 0.8)
"""Fractions of a group at which the loss is measured."""


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Loss of the outputs by number of removed units; the loss is relative to the variance of each output."""

    counts: tuple[int, ...]
    losses: tuple[float, ...]

    def at(self, count: float) -> float:
        """Returns the loss between the measured points; the steepest slope goes on behind the last."""
        return float(np.interp(count, self.counts, self.losses))


def sensitivity(channels: Channels, scores: Scores, runs: Runs, held_out: Sequence[Feeds]) -> dict[str, Curve]:
    """Returns the curve of every prunable group that linear operators read.

    The units of the lowest scores go, as a plan takes them. Weights are fitted to ``runs``, losses are those of
    ``held_out``.
    """
    removals = {
        group.name: [_units(channels, group.name, scores, level) for level in LEVELS] for group in channels.prunable
    }
    edits: dict[str, list[list[tuple[Reading, Array]]]] = {name: [[] for _ in LEVELS] for name in removals}
    for one in readings(channels, runs):
        for level, gone in enumerate(removals[one.group]):
            edits[one.group][level].append((one, _made_up(one, gone)))
    trial = _Trial(channels, held_out, runs.options)
    curves = {}
    for group in channels.prunable:
        if not edits[group.name][0]:
            continue
        losses = [trial.loss(changes) for changes in edits[group.name]]
        counts = [len(gone) for gone in removals[group.name]]
        curves[group.name] = _curve(counts, losses, group.units)
    return curves


def _units(channels: Channels, name: str, scores: Scores, level: float) -> np.ndarray:
    group = channels.group(name)
    count = min(round(group.units * level / group.block_count), group.units // group.block_count - 1)
    return np.array(lowest(group, scores.values[name], max(count, 0) * group.block_count), np.int64)


def _curve(counts: Sequence[int], losses: Sequence[float], units: int) -> Curve:
    found: dict[int, float] = {0: 0.0}
    for count, loss in zip(counts, losses, strict=True):
        found[count] = max(loss, *found.values())
    found.setdefault(units, 2.5 * max(found.values()))
    return Curve(tuple(sorted(found)), tuple(found[count] for count in sorted(found)))


def _made_up(reading: Reading, gone: np.ndarray) -> Array:
    """Returns the weights without the rows of some units, the others fitted to make up for them."""
    lost = reading.rows[np.isin(reading.units, gone)].ravel()
    weights = np.zeros_like(reading.weights)
    stay = np.delete(np.arange(len(weights)), lost)
    covariance = reading.covariance
    damping = DAMPING * max(float(np.trace(covariance)) / len(covariance), 1e-30)
    inner = covariance[np.ix_(stay, stay)] + damping * np.eye(stay.size)
    weights[stay] = reading.weights[stay]
    if lost.size and stay.size:
        weights[stay] += np.linalg.solve(inner, covariance[np.ix_(stay, lost)] @ reading.weights[lost])
    return weights


class _Trial:
    """The original with other weights in some operators, against the original as it is."""

    def __init__(self, channels: Channels, feeds: Sequence[Feeds], options: SessionOptions | None) -> None:
        self._graph: Graph = channels.graph
        self._shapes = channels.shapes
        self._feeds, self._options = feeds, options
        session = open_session(self._graph, options)
        self._expected = [session.run(feed) for feed in feeds]

    def loss(self, changes: Sequence[tuple[Reading, Array]]) -> float:
        graph = self._graph.copy()
        holders = Holders(graph)
        linear = {one.result: one for one in linear_nodes(graph, self._shapes, holders)}
        matrices: dict[str, Array] = {}
        shifts: dict[str, Array] = {}
        for reading, weights in changes:
            result = reading.result
            if result not in matrices:
                matrices[result] = linear[result].matrix()
                shifts[result] = np.zeros((matrices[result].shape[0], matrices[result].shape[2]))
            matrices[result][reading.part] = weights
            shifts[result][reading.part] += reading.means @ (reading.weights - weights)
        for result, matrix in matrices.items():
            one = linear[result]
            one.write(matrix)
            place = bias_of(one, holders)
            if place is not None:
                place.add(shifts[result].reshape(-1), read_values(one.stored).dtype)
        session = open_session(graph, self._options)
        found = [session.run(feed) for feed in self._feeds]
        return divergence(self._expected, found)


def divergence(expected: Sequence[Mapping[str, np.ndarray]], found: Sequence[Mapping[str, np.ndarray]]) -> float:
    """Returns the squared difference of float outputs relative to their variance, the mean over outputs."""
    losses = []
    for name, first in expected[0].items():
        if not np.issubdtype(first.dtype, np.floating):
            continue
        before = np.concatenate([run[name].ravel() for run in expected]).astype(np.float64)
        after = np.concatenate([run[name].ravel() for run in found]).astype(np.float64)
        losses.append(float(np.square(before - after).mean() / max(before.var(), 1e-30)))
    return float(np.mean(losses)) if losses else 0.0
