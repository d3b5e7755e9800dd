"""One pass over samples: histograms of all tensors that are to be rounded, and rows of the operators that read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
from onnxprune.quantize.ranges import AUTO, CANDIDATES, METHODS, Histogram, Range
from onnxprune.runtime.session import SessionOptions, open_session
from onnxprune.runtime.walk import Feeds, Progress

ROWS = 512
"""Rows of every operator that ranges are judged on, over all samples."""


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

    Raises:
        ModelError: ONNX Runtime cannot run the graph.
    """
    names = sorted(set(placement.tensors))
    weights = {weight.result: weight for weight in placement.weights}
    share = _share(weights.values(), len(feeds), memory)
    read_too = sorted({weight.data for weight in weights.values()}.difference(names)) if share else []
    session = open_session(exposed(graph, [*names, *read_too]), options)
    found, random = Readings(), np.random.default_rng(seed)
    fed = {tensor.name for tensor in graph.inputs}
    shapes = _Sizes(graph)
    for number, feed in enumerate(feeds, 1):
        values = {**session.run(feed, [name for name in (*names, *read_too) if name not in fed]), **feed}
        for name in names:
            found.histograms.setdefault(placement.scale(name), Histogram.empty()).add(values[name])
        for name, weight in weights.items() if share else ():
            result = np.broadcast_to(np.float32(0), shapes.of(feed)[name])  # its places count, not what it holds
            chosen = draw(weight.form, result, share, random)
            found.rows.setdefault(name, []).append(weight.form.rows(values[weight.data], result, chosen)[0])
        if progress is not None:
            progress("calibrate", number / len(feeds))
    return found


class _Sizes:
    """Shapes of all tensors by the shapes of what is fed."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._known: dict[tuple[tuple[str, Shape], ...], dict[str, Shape]] = {}

    def of(self, feed: Feeds) -> dict[str, Shape]:
        """Returns the shapes of a run."""
        sizes = {name: tuple(array.shape) for name, array in feed.items()}
        key = tuple(sorted(sizes.items()))
        if key not in self._known:
            self._known[key] = infer_shapes(self._graph, sizes).shapes
        return self._known[key]


def _share(weights: Iterable[Weight], runs: int, memory: int) -> int:
    """Returns how many rows of each operator to keep of each run; none where they would not fit."""
    numbers = sum(weight.shape[0] * weight.shape[1] for weight in weights)
    rows = min(ROWS, memory // max(4 * numbers, 1))
    return -(-rows // runs) if rows >= runs else 0


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


def choose_ranges(readings: Readings, placement: Placement, grid: Grid, method: str) -> dict[str, Range]:
    """Returns the range of every scale, by the tensor that it is named after.

    Where methods compete, the one wins whose rounding changes least what the operators compute that read the tensor;
    where no operator with weights does, the least squared error decides.

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
    return {
        name: _best(
            found, [one for one in readers.get(name, ()) if one.result in readings.rows], readings, placement, grid
        )
        for name, found in readings.histograms.items()
    }


def _best(found: Histogram, readers: Sequence[Weight], readings: Readings, placement: Placement, grid: Grid) -> Range:
    if not readers:
        return CANDIDATES["mse"](found, grid)
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
