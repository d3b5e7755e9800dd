"""Equal graphs in which channels share a range more fairly: what is divided in front is multiplied behind.

A tensor that is rounded has one scale, the weights that make it one for each of its channels. A channel that is small
beside others can therefore be made larger at no cost where it is made, and what reads it gets smaller weights instead
(Nagel et al. 2019, cross-layer equalization; Xiao et al. 2022, SmoothQuant). Whether that pays is measured: factors
compete by what rounding changes in what the readers make of rows of samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune.channels.facts import Axis, Index
from onnxprune.model.io import Graph
from onnxprune.model.linear import Array
from onnxprune.model.weights import Weight
from onnxprune.quantize.calibrate import ROWS, Readings, exposed
from onnxprune.quantize.coupling import Coupling
from onnxprune.quantize.grids import SMALLEST, Grid, scale_of
from onnxprune.quantize.placement import Placement
from onnxprune.quantize.ranges import CANDIDATES, Histogram
from onnxprune.runtime.session import SessionOptions, open_session
from onnxprune.runtime.walk import Feeds

POWERS = (0.0, 0.25, 0.5, 0.75)
"""Powers of what a channel contributes at most that become its range; the rest becomes its weights. They compete."""

CUTS = ("minmax", "mse")
"""Ranges that candidates are judged with; the one that suits a candidate best counts."""

GAIN = 0.5
"""Factors stay where they bring the error on held-out rows below this fraction of what it was."""

COMPENSATED = 0.25
"""What is left of the error of rounded weights where they are fitted to samples; a sixth to a half, as a rule."""

LEAST = 2.0**-20
"""The smallest factor beside the largest, which is 1: nothing under- or overflows."""

CHOOSING, HOLDING = slice(0, None, 4), slice(1, None, 2)
"""Rows on which factors are chosen, and rows on which they have to hold."""

RUNS = 8
"""Most runs in which tensors are read that no operator with weights reads."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Equalized:
    """Channels that got factors.

    Attributes:
        readers: Names of the operators with rounded weights that read them.
        channels: How many they are.
        spread: The largest factor over the smallest.
        before: Relative squared error of what the readers make of held-out rows, rounded, without the factors.
        after: The same with them.
    """

    readers: tuple[str, ...]
    channels: int
    spread: float
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class Grids:
    """What numbers will be rounded to; ``compensated`` weights are fitted to samples rather than the nearest ones."""

    activations: Grid
    weights: Grid
    compensated: bool = True


@dataclass(frozen=True, slots=True)
class Samples:
    """What to run for more than the rows of operators with weights."""

    feeds: Sequence[Feeds]
    options: SessionOptions | None = None
    seed: int = 0


def equalized(
    graph: Graph, placement: Placement, readings: Readings, grids: Grids, samples: Samples | None = None
) -> tuple[Graph, tuple[Equalized, ...]]:
    """Returns an equal graph whose channels suit rounding better, and what was gained where.

    The structure stays as it is, and so do the names of all computed tensors. Factors that do not clearly pay stay 1:
    they are chosen on some of the rows that were read, and have to hold on others.

    Args:
        graph: A float graph with stored weights, which is not changed.
        placement: What of it will be rounded.
        readings: Rows of the operators with weights that read rounded tensors.
        grids: What tensors and weights will be rounded to.
        samples: Where rows of all others come from; without them, what these read stays as it is.

    Raises:
        ModelError: ONNX Runtime cannot run the graph.
    """
    coupling = Coupling.of(graph)
    if coupling is None or not coupling.free.any() or not readings.rows:
        return graph, ()
    readers = _weighing(coupling, placement, readings)
    judge = _Judge([*readers, *_others(graph, coupling, placement, samples, readers)], grids)
    factors = np.ones(coupling.free.size)
    found: list[Equalized] = []
    for members in coupling.groups():
        chosen = judge.choose(members, factors)
        if chosen is not None:
            factors, report = chosen
            found.append(report)
    return (coupling.scaled(factors), tuple(found)) if found else (graph, ())


@dataclass(frozen=True, slots=True, eq=False)
class _Reader:
    """What reads a rounded tensor: rows [g, R, n] in ``parts``, and the units of its inputs, [g, n].

    Without ``weight`` it is an operator that computes from integers and counts as one that copies every channel.
    """

    scale: str
    factor: float
    units: Index
    parts: Sequence[Array]
    weight: Weight | None = None

    def rows(self) -> Floats:
        """Returns all rows."""
        return np.concatenate(self.parts, axis=1).astype(np.float32)

    def matrix(self) -> Floats:
        """Returns the weights, [g, n, m]."""
        return np.ones((*self.units.shape, 1), np.float32) if self.weight is None else _single(self.weight.matrix())

    def reads(self, members: Index) -> bool:
        """Whether it reads any of some units."""
        return bool(np.isin(self.units, members).any())


def _weighing(coupling: Coupling, placement: Placement, readings: Readings) -> list[_Reader]:
    """Returns the readers with weights."""
    found = []
    for weight in placement.weights:
        if weight.result in readings.rows:
            groups, rows, _ = weight.shape
            into = coupling.into(weight)
            units = into.reshape(groups, -1).repeat(groups * rows // into.size, axis=1)
            scale, factor = placement.scale(weight.data), placement.factor(weight.data)
            found.append(_Reader(scale, factor, units, readings.rows[weight.result], weight))
    return found


def _others(
    graph: Graph, coupling: Coupling, placement: Placement, samples: Samples | None, readers: Sequence[_Reader]
) -> Iterator[_Reader]:
    """Yields one reader for each rounded tensor that no operator with weights reads."""
    read = {one.weight.data for one in readers if one.weight is not None}
    axes = {name: axis for name in placement.tensors if name not in read and (axis := coupling.axis(name)) is not None}
    parts = _vectors(graph, axes, samples) if axes and samples is not None else {}
    for name, axis in axes.items():
        units = coupling.units(axis)[:, None]
        yield _Reader(placement.scale(name), placement.factor(name), units, parts.get(name, ()))


def _vectors(graph: Graph, axes: Mapping[str, Axis], samples: Samples) -> dict[str, list[Array]]:
    """Returns vectors [C, R, 1] along axes of tensors, from single samples of a few runs."""
    session = open_session(exposed(graph, axes), samples.options)
    random = np.random.default_rng(samples.seed)
    parts: dict[str, list[Array]] = {name: [] for name in axes}
    single = all(tensor.shape and not isinstance(tensor.shape[0], int) for tensor in graph.inputs)
    for feed in samples.feeds[:: max(-(-len(samples.feeds) // RUNS), 1)]:
        part = {name: array[:1] if single and array.ndim else array for name, array in feed.items()}
        values = {**session.run(part, [name for name in axes if name not in part]), **part}
        for name, axis in axes.items():
            moved = np.moveaxis(values[name], axis.dim, -1)
            vectors = moved.reshape(-1, moved.shape[-1])
            chosen = random.choice(len(vectors), min(len(vectors), ROWS // RUNS), replace=False)
            parts[name].append(vectors[chosen].T[:, :, None])
    return parts


class _Judge:
    """What rounding changes in what the readers of rounded tensors make, for any factors."""

    def __init__(self, readers: Sequence[_Reader], grids: Grids) -> None:
        self._grids = grids
        self._by_scale: dict[str, list[_Reader]] = {}
        for one in readers:
            self._by_scale.setdefault(one.scale, []).append(one)

    def choose(self, members: Index, factors: Array) -> tuple[Array, Equalized] | None:
        """Returns better factors, if there are any for some units."""
        near = [ones for ones in self._by_scale.values() if any(one.reads(members) for one in ones)]
        if any(not one.parts for ones in near for one in ones):
            return None  # nothing is known about it
        known = [[_Known.of(one) for one in ones] for ones in near]
        candidates = [factors, *_candidates([one for ones in known for one in ones], members, factors)]
        names = tuple(one.weight.operator for ones in near for one in ones
                      if one.weight is not None and one.reads(members))  # fmt: skip
        if len(candidates) == 1 or not names:
            return None
        losses = [self._loss(known, one, CHOOSING) for one in candidates]
        best = candidates[int(np.argmin(losses))]
        if not min(losses) < GAIN * losses[0]:
            return None
        before, after = (self._loss(known, one, HOLDING) for one in (factors, best))
        if not after < GAIN * before:
            return None
        chosen = best[members]
        return best, Equalized(names, members.size, float(chosen.max() / chosen.min()), before, after)

    def _loss(self, readers: Sequence[Sequence[_Known]], factors: Array, half: slice) -> float:
        """Returns the relative squared errors of all readers; those of one list have one scale."""
        return sum(self._loss_of_one(ones, factors, half) for ones in readers)

    def _loss_of_one(self, readers: Sequence[_Known], factors: Array, half: slice) -> float:
        pairs = [(one.divided(factors, half), one.multiplied(factors)) for one in readers]
        seen = Histogram.empty()
        for one, (rows, _) in zip(readers, pairs, strict=True):
            seen.add(rows / np.float32(one.factor))
        losses = []
        for low, high in dict.fromkeys(CANDIDATES[cut](seen, self._grids.activations) for cut in CUTS):
            scales = [scale_of(low * one.factor, high * one.factor, self._grids.activations) for one in readers]
            losses.append(sum(_energy((scale.rounded(rows) - rows) @ matrix) / one.whole
                              for one, scale, (rows, matrix) in zip(readers, scales, pairs, strict=True)))  # fmt: skip
        share = COMPENSATED if self._grids.compensated else 1.0
        wrong = (_energy(rows @ self._error(matrix)) / one.whole
                 for one, (rows, matrix) in zip(readers, pairs, strict=True))  # fmt: skip
        return min(losses) + share * sum(wrong)

    def _error(self, matrix: Floats) -> Floats:
        """Returns what rounding adds to weights."""
        steps = np.maximum(np.abs(matrix).max(axis=1, keepdims=True) / self._grids.weights.high, SMALLEST)
        return _single(np.rint(matrix / steps) * steps - matrix)


@dataclass(frozen=True, slots=True, eq=False)
class _Known:
    """A reader, its rows and its weights as they are without factors, and the mean square of what they make."""

    factor: float
    units: Index
    rows: Floats
    matrix: Floats
    whole: float

    @classmethod
    def of(cls, reader: _Reader) -> _Known:
        """Returns what is known of a reader."""
        rows, matrix = reader.rows(), reader.matrix()
        return cls(reader.factor, reader.units, rows, matrix, _energy(rows[:, CHOOSING] @ matrix) or 1.0)

    def divided(self, factors: Array, half: slice) -> Floats:
        """Returns rows as they are with factors."""
        return _single(self.rows[:, half] / factors[self.units][:, None])

    def multiplied(self, factors: Array) -> Floats:
        """Returns weights as they are with factors."""
        return _single(self.matrix * factors[self.units][:, :, None])


def _single(values: NDArray[np.floating]) -> Floats:
    return np.asarray(values, np.float32)


def _energy(values: Floats) -> float:
    return float(np.square(values).mean()) if values.size else 0.0


def _candidates(readers: Sequence[_Known], members: Index, factors: Array) -> Iterator[Array]:
    """Yields factors that leave activations, and so weights, more and more as large as what channels contribute.

    They do not depend on the factors that there are.
    """
    data, shares = np.zeros(factors.size), np.zeros(factors.size)
    for one in readers:
        rows = np.abs(one.rows).max(axis=1)
        parts = np.abs(one.matrix) * rows[:, :, None]
        parts = parts / np.maximum(parts.max(axis=1, keepdims=True), SMALLEST)
        np.maximum.at(data, one.units, rows / max(float(rows.max()), SMALLEST))
        np.maximum.at(shares, one.units, parts.max(axis=2))
    live = members[(data[members] > 0) & (shares[members] > 0)]
    for power in POWERS if live.size else ():
        found = data[live] / shares[live] ** power
        result = factors.copy()
        result[live] = np.maximum(found / found.max(), LEAST)
        yield result
