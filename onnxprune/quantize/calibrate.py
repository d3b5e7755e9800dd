"""One pass over samples: histograms of all tensors that are to be rounded, and rows of the operators that read them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxprune.errors import CalibrationError
from onnxprune.model.io import Graph
from onnxprune.model.linear import Array
from onnxprune.model.shapes import Shape
from onnxprune.model.sizes import infer_shapes
from onnxprune.model.weights import Weight
from onnxprune.ops.forms import draw
from onnxprune.quantize.grids import Grid, scale_of
from onnxprune.quantize.placement import Placement
from onnxprune.quantize.ranges import AUTO, CANDIDATES, METHODS, Histogram, Range, Through, least_squares_behind
from onnxprune.runtime.session import SessionOptions, open_session
from onnxprune.runtime.walk import Feeds, Progress

ROWS = 512
"""Rows of every operator that ranges are judged on, over all samples."""

ROWS_AT_ONCE = 16
"""Fewest rows that a run is asked for: to get at one takes almost as long as to get at a few."""

AT_ONCE = 64 << 20
"""Bytes of tensors that a run gives back, where it can be of fewer samples: more of them only take longer to write."""


@dataclass(slots=True)
class Readings:
    """What samples say: a histogram for each scale, and rows [g, R, n] for each operator by the name of its result."""

    histograms: dict[str, Histogram] = field(default_factory=dict)
    rows: dict[str, list[Array]] = field(default_factory=dict)


def read(
    graph: Graph,
    placement: Placement,
    feeds: Sequence[Feeds],
    memory: int,
    options: SessionOptions | None = None,
    progress: Progress | None = None,
    seed: int = 0,
) -> Readings:
    """Returns what runs of a float graph say about the tensors that are to be rounded.

    What is held grows neither with the samples nor, above ``memory``, with the tensors: those that would not fit wait
    for another pass.

    Raises:
        ModelError: ONNX Runtime cannot run the graph.
    """
    rows = _rows(placement.weights, memory)
    step = max(min(rows, ROWS_AT_ONCE), 1)
    readers: dict[str, list[Weight]] = {}
    for weight in placement.weights if rows else ():
        readers.setdefault(weight.data, []).append(weight)
    rounded = set(placement.tensors)
    found, random, runs = Readings(), np.random.default_rng(seed), _Runs(graph, feeds, memory)
    parts = runs.parts(sorted(rounded.union(readers)))
    for place, part in enumerate(parts):
        session = open_session(exposed(graph, part), options)
        before = 0
        for feed, done in runs.of(part):
            computed = [name for name in part if name not in feed]
            values = {**(session.run(feed, computed) if computed else {}), **feed}
            for name in (name for name in part if name in rounded):
                found.histograms.setdefault(placement.scale(name), Histogram.empty()).add(values[name])
            due = int(rows * done) // step * step
            share, before = due - before, due
            for weight in (one for name in part for one in readers.get(name, ()) if share):
                shape = runs.shapes(feed)[weight.result]
                result = np.broadcast_to(np.float32(0), shape)  # its places count, not what it holds
                chosen = draw(weight.form, result, share, random)
                found.rows.setdefault(weight.result, []).append(
                    weight.form.rows(values[weight.data], result, chosen)[0]
                )
            del values  # before the next run asks for as much
            if progress is not None:
                progress("calibrate", (place + done) / len(parts))
    return found


def _rows(weights: Iterable[Weight], memory: int) -> int:
    """Returns how many rows of each operator to keep: fewer where they would not fit."""
    numbers = sum(weight.shape[0] * weight.shape[1] for weight in weights)
    return min(ROWS, memory // max(4 * numbers, 1))


class _Runs:
    """The runs of a graph: feeds, of fewer samples where all at once would give back too much."""

    def __init__(self, graph: Graph, feeds: Sequence[Feeds], memory: int) -> None:
        self._graph, self._feeds, self._memory = graph, feeds, memory
        self._free = {tensor.name for tensor in graph.inputs if tensor.shape and not isinstance(tensor.shape[0], int)}
        self._known: dict[tuple[tuple[str, Shape], ...], dict[str, Shape]] = {}

    def shapes(self, feed: Feeds) -> dict[str, Shape]:
        """Returns the shapes of all tensors by what is fed."""
        sizes = {name: tuple(array.shape) for name, array in feed.items()}
        key = tuple(sorted(sizes.items()))
        if key not in self._known:
            self._known[key] = infer_shapes(self._graph, sizes).shapes
        return self._known[key]

    def parts(self, names: Sequence[str]) -> list[list[str]]:
        """Returns tensors in parts that fit into memory, one sample of each; what is fed is there in any case."""
        parts: list[list[str]] = [[]]
        held = 0
        first = self._feeds[0]
        for name in names:
            size = 0 if name in first else self._bytes([name], first) // self._count(first)
            if parts[-1] and held + size > self._memory:
                parts.append([])
                held = 0
            parts[-1].append(name)
            held += size
        return parts

    def of(self, names: Sequence[str]) -> Iterator[tuple[Feeds, float]]:
        """Yields what is fed, run by run, and the fraction of all that is done with it, to read some tensors."""
        for number, feed in enumerate(self._feeds):
            count = self._count(feed)
            step = max(count * min(AT_ONCE, self._memory) // max(self._bytes(names, feed), 1), 1)
            for start in range(0, count, step):
                part = feed if step >= count else {name: _some(array, start, step) for name, array in feed.items()}
                yield part, (number + min((start + step) / count, 1)) / len(self._feeds)

    def _count(self, feed: Feeds) -> int:
        """Returns how many samples a feed has that may run one by one; 1 where the graph fixes their number."""
        counts = {len(array) if name in self._free else 0 for name, array in feed.items() if array.ndim}
        return max(counts.pop(), 1) if len(counts) == 1 else 1

    def _bytes(self, names: Sequence[str], feed: Feeds) -> int:
        shapes = self.shapes(feed)
        return sum(4 * math.prod(shapes.get(name, ())) for name in names)


def _some(array: Array, start: int, count: int) -> Array:
    return array[start : start + count] if array.ndim else array


def exposed(graph: Graph, names: Iterable[str]) -> Graph:
    """Returns a copy of a graph with tensors as outputs."""
    result = graph.copy()
    known = {tensor.name for tensor in (*result.outputs, *result.inputs)}
    tensors = {tensor.name: tensor for node in result.nodes for tensor in node.outputs}
    for name in dict.fromkeys(names):
        if name not in known:
            tensor = tensors[name]
            tensor.dtype = np.dtype(np.float32)
            result.outputs.append(tensor)
    return result


def choose_ranges(
    readings: Readings, placement: Placement, grid: Grid, method: str, functions: Mapping[str, Through] | None = None
) -> dict[str, Range]:
    """Returns the range of every scale, by the tensor that it is named after.

    Where methods compete, the one wins whose rounding changes least what the operators compute that read the tensor;
    where no operator with weights does, the least squared error decides, behind functions that saturate.

    Args:
        readings: What was seen.
        placement: What is rounded.
        grid: What it is rounded to.
        method: A name of ``METHODS``, or ``auto``.
        functions: What readers see of a tensor, by its name, where that is a function of its numbers.

    Raises:
        CalibrationError: a tensor was never seen.
    """
    empty = [name for name, one in readings.histograms.items() if not one.counts.any()]
    if empty:
        raise CalibrationError(f"no sample reaches the tensor {empty[0]!r}: give samples that the model computes on")
    if method != AUTO:
        return {name: METHODS[method](found, grid) for name, found in readings.histograms.items()}
    readers: dict[str, list[Weight]] = {}
    for weight in placement.weights:
        readers.setdefault(placement.scale(weight.data), []).append(weight)
    chosen = {}
    for name, found in readings.histograms.items():
        weights = [one for one in readers.get(name, ()) if one.result in readings.rows]
        if weights:
            chosen[name] = _best(found, weights, readings, placement, grid)
        elif functions is not None and name in functions:
            chosen[name] = least_squares_behind(found, grid, functions[name])
        else:
            chosen[name] = CANDIDATES["mse"](found, grid)
    return chosen


def _best(found: Histogram, readers: Sequence[Weight], readings: Readings, placement: Placement, grid: Grid) -> Range:
    candidates = list(dict.fromkeys(cut(found, grid) for cut in CANDIDATES.values()))
    losses = np.zeros(len(candidates))
    for weight in readers:
        factor = placement.factor(weight.data)
        rows = np.concatenate(readings.rows[weight.result], axis=1)
        matrix = weight.matrix().astype(np.float32)
        whole = float(np.square(rows @ matrix).sum()) or 1.0
        for number, (low, high) in enumerate(candidates):
            wrong = scale_of(low * factor, high * factor, grid).rounded(rows) - rows
            losses[number] += float(np.square(wrong @ matrix).sum()) / whole
    return candidates[int(np.argmin(losses))]
