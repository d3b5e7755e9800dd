"""What reads the units of every group: second moments of the rows that linear operators read, and their weights."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.channels.facts import Axis
from onnxprune.channels.groups import Channels
from onnxprune.data.samples import Samples, load_samples
from onnxprune.model.io import Graph, to_proto
from onnxprune.model.linear import Array, Holders, Linear, linear_nodes
from onnxprune.model.shapes import Shapes
from onnxprune.ops.forms import draw, finite, rows_per_channel, rows_per_run
from onnxprune.runtime.session import SessionOptions, input_specs
from onnxprune.runtime.walk import Feeds, Memory, Progress, Walk, run_size
from onnxprune.score.blocks import Block, Index, Source
from onnxprune.score.contracted import contracted
from onnxprune.score.recurrent import steps


@dataclass(frozen=True, slots=True)
class Runs:
    """Feeds of the original, and how much memory may be used for what it computes, in bytes.

    ``held_out`` are others to judge by, where something is fitted. ``progress`` hears after every operator how much
    is done.
    """

    feeds: Sequence[Feeds]
    memory: int = 2 << 30
    options: SessionOptions | None = None
    seed: int = 0
    progress: Progress | None = None
    held_out: Sequence[Feeds] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """One product that reads units of a group: ``rows[i]`` of its inputs belong to ``units[i]``.

    ``covariance`` is [n, n], ``weights`` [n, m], ``energy`` the variance of everything that the operator computes.
    Where the weights are stored, ``result`` is what the linear operator writes, ``part`` which of its products this is,
    and ``means`` [n] are those of what it reads.
    """

    group: str
    covariance: Array
    weights: Array
    units: Index
    rows: Index
    energy: float
    result: str = ""
    part: int = 0
    means: Array | None = None


def readings(channels: Channels, runs: Runs) -> Iterator[Reading]:
    """Yields every product that reads units of prunable groups, in graph order; one walk over the original.

    Raises:
        ModelError: ONNX Runtime cannot run a part of the graph.
    """
    return (one for one in _walk(channels, runs) if isinstance(one, Reading))


def readings_by_group(channels: Channels, runs: Runs) -> Iterator[tuple[str, list[Reading]]]:
    """Yields all readings of one group after the other, each as soon as its last operator is reached.

    No more are held than those of groups that are being read, whatever the size of the model.
    """
    held: dict[str, list[Reading]] = {}
    for one in _walk(channels, runs):
        if isinstance(one, Reading):
            held.setdefault(one.group, []).append(one)
        elif one in held:
            yield one, held.pop(one)


def _walk(channels: Channels, runs: Runs) -> Iterator[Reading | str]:
    """Yields readings in graph order, and the name of each group behind its last one."""
    graph, holders = channels.graph, Holders(channels.graph)
    owners = _owners(channels)
    walk = Walk(graph, runs.feeds, Memory(runs.memory), runs.options)
    random = np.random.default_rng(runs.seed)
    sources: list[Source] = [*_products(channels, holders), *contracted(channels, holders), *steps(channels, holders)]
    sources = [source for source in sources if not owners.keys().isdisjoint(source.axes)]
    sources.sort(key=lambda one: one.position)
    last = {
        name: number
        for number, source in enumerate(sources, 1)
        for axis in source.axes
        for name, *_ in owners.get(axis, ())
    }
    for number, source in enumerate(sources, 1):
        for block in source.blocks(walk, random):
            for name, members, units in owners.get(block.axis, ()):
                found = block.rows(members, units)
                if found is not None:
                    matrices = block.covariance, block.weights
                    yield Reading(name, *matrices, *found, block.energy, block.result, block.part, block.means)
        yield from (name for name, final in last.items() if final == number)
        if runs.progress is not None:
            runs.progress("score", number / len(sources))


@dataclass(frozen=True, slots=True, eq=False)
class _Product:
    """A linear operator with stored weights."""

    linear: Linear
    axes: tuple[Axis]

    @property
    def position(self) -> int:
        return self.linear.position

    def blocks(self, walk: Walk, random: np.random.Generator) -> Iterator[Block]:
        linear, matrix = self.linear, self.linear.matrix()
        walk.reach([linear.data, linear.result])
        covariance, means = _covariance(walk, linear, matrix.shape, random)
        walk.release([linear.data, linear.result])
        energy = float(np.einsum("gim,gij,gjm->", matrix, covariance, matrix))
        width = rows_per_channel(linear.form, linear.shape)
        for part, (one, weights) in enumerate(zip(covariance, matrix, strict=True)):
            first = part * len(weights) // width
            yield Block(self.axes[0], one, weights, energy, first, width, linear.result, part, means[part])


def _products(channels: Channels, holders: Holders) -> Iterator[_Product]:
    summed = {(item.node, item.slot): item.dim for item in channels.contractions}
    for linear in linear_nodes(channels.graph, channels.shapes, holders):
        dim = summed.get((linear.position, linear.form.data))
        if dim is not None:
            yield _Product(linear, (Axis(linear.data, dim),))


def runs_of(channels: Channels, data: object, seed: int, memory: int) -> Runs:
    """Returns samples as runs of the model, without the last fifth, which is held out from every estimate.

    Raises:
        CalibrationError: the samples do not fit the model.
    """
    if isinstance(data, Runs):
        return data
    samples = load_samples(data, input_specs(to_proto(channels.graph)), seed=seed)  # type: ignore[arg-type]
    return Runs(feeds_of(samples.split()[0], channels.graph, channels.shapes), memory, None, seed)


def feeds_of(samples: Samples, graph: Graph, shapes: Shapes) -> list[Feeds]:
    """Returns samples as feeds of several runs, of a size that depends on the model alone."""
    return list(samples.batches(run_size(graph, shapes, next(samples.batches(1)))))


def _owners(channels: Channels) -> Mapping[Axis, list[tuple[str, Index, Index]]]:
    found: dict[Axis, list[tuple[str, Index, Index]]] = {}
    for group in channels.prunable:
        for member in group.members:
            order = np.argsort(member.units, kind="stable")
            for axis in member.axes:
                found.setdefault(axis, []).append((group.name, member.channels[order], member.units[order]))
    return found


def _covariance(walk: Walk, linear: Linear, shape: tuple[int, ...], random: np.random.Generator) -> tuple[Array, Array]:
    groups, inputs, _ = shape
    squares, sums, count = np.zeros((groups, inputs, inputs)), np.zeros((groups, inputs)), 0
    share = rows_per_run(inputs, walk.runs)
    for data, result in zip(walk.values(linear.data), walk.values(linear.result), strict=True):
        chosen = draw(linear.form, result, share, random)
        read, made = linear.form.rows(data, result, chosen)
        rows = read[:, finite(read, made)].astype(np.float64)
        squares += rows.transpose(0, 2, 1) @ rows
        sums += rows.sum(axis=1)
        count += rows.shape[1]
    means = sums / max(count, 1)
    return np.asarray(squares / max(count, 1) - means[:, :, None] * means[:, None]), means
