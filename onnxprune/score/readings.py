"""What reads the units of every group: second moments of the rows that linear operators read, and their weights."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune.channels.facts import Axis
from onnxprune.channels.groups import Channels
from onnxprune.data.samples import load_samples
from onnxprune.model.io import to_proto
from onnxprune.model.linear import Array, Holders, Linear, linear_nodes
from onnxprune.ops.forms import draw, rows_per_channel, rows_per_run
from onnxprune.runtime.session import SessionOptions, input_specs
from onnxprune.runtime.walk import Feeds, Memory, Walk

Index = NDArray[np.int64]

BATCH = 64
"""Samples in one run."""


@dataclass(frozen=True, slots=True)
class Runs:
    """Feeds of the original, and how much memory may be used for what it computes, in bytes."""

    feeds: Sequence[Feeds]
    memory: int = 2 << 30
    options: SessionOptions | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """One product that reads units of a group: ``rows[i]`` of its inputs belong to ``units[i]``.

    ``covariance`` is [n, n], ``weights`` [n, m], ``energy`` the variance of everything that the operator computes.
    """

    group: str
    covariance: Array
    weights: Array
    units: Index
    rows: Index
    energy: float


def readings(channels: Channels, runs: Runs) -> Iterator[Reading]:
    """Yields every product that reads units of prunable groups, in graph order; one walk over the original.

    Raises:
        ModelError: ONNX Runtime cannot run a part of the graph.
    """
    graph = channels.graph
    owners = _owners(channels)
    summed = {(item.node, item.slot): item.dim for item in channels.contractions}
    walk = Walk(graph, runs.feeds, Memory(runs.memory), runs.options)
    random = np.random.default_rng(runs.seed)
    for linear in linear_nodes(graph, channels.shapes, Holders(graph)):
        dim = summed.get((linear.position, linear.form.data))
        owned = owners.get(Axis(linear.data, dim)) if dim is not None else None
        if not owned:
            continue
        matrix = linear.matrix()
        walk.reach([linear.data, linear.result])
        covariance = _covariance(walk, linear, matrix.shape, random)
        walk.release([linear.data, linear.result])
        energy = float(np.einsum("gim,gij,gjm->", matrix, covariance, matrix))
        for name, members, units in owned:
            for part in range(len(matrix)):
                found = _rows(linear, matrix.shape, part, members, units)
                if found is not None:
                    yield Reading(name, covariance[part], matrix[part], *found, energy)


def runs_of(channels: Channels, data: object, seed: int, memory: int) -> Runs:
    """Returns samples as runs of the model.

    Raises:
        CalibrationError: the samples do not fit the model.
    """
    if isinstance(data, Runs):
        return data
    samples = load_samples(data, input_specs(to_proto(channels.graph)), seed=seed)  # type: ignore[arg-type]
    return Runs(list(samples.batches(BATCH)), memory, None, seed)


def _owners(channels: Channels) -> Mapping[Axis, list[tuple[str, Index, Index]]]:
    found: dict[Axis, list[tuple[str, Index, Index]]] = {}
    for group in channels.prunable:
        for member in group.members:
            order = np.argsort(member.units, kind="stable")
            for axis in member.axes:
                found.setdefault(axis, []).append((group.name, member.channels[order], member.units[order]))
    return found


def _covariance(walk: Walk, linear: Linear, shape: tuple[int, ...], random: np.random.Generator) -> Array:
    groups, inputs, _ = shape
    squares, sums, count = np.zeros((groups, inputs, inputs)), np.zeros((groups, inputs)), 0
    share = rows_per_run(inputs, walk.runs)
    for data, result in zip(walk.values(linear.data), walk.values(linear.result), strict=True):
        chosen = draw(linear.form, result, share, random)
        rows = linear.form.rows(data, result, chosen)[0].astype(np.float64)
        squares += rows.transpose(0, 2, 1) @ rows
        sums += rows.sum(axis=1)
        count += chosen.size
    means = sums / max(count, 1)
    return np.asarray(squares / max(count, 1) - means[:, :, None] * means[:, None])


def _rows(
    linear: Linear, shape: tuple[int, ...], group: int, members: Index, units: Index
) -> tuple[Index, Index] | None:
    """Returns the units that one product reads, and the rows of each."""
    width = rows_per_channel(linear.form, linear.shape)
    size = shape[1] // width
    inside = members // size == group
    if not inside.any():
        return None
    found = np.unique(units[inside])
    rows = (members[inside] % size)[:, None] * width + np.arange(width)
    return found, rows.reshape(found.size, -1)
