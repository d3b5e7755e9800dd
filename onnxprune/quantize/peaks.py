"""How far tensors reach on samples, in one pass: two reductions in the graph behind each, so that no tensor is kept.

Constants that stand for infinity are read as numbers that float16 holds: what they mask says nothing about the data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.model.graph import graph_tensors, stored_tensors
from onnxprune.model.io import Graph, read_values, write_values
from onnxprune.model.shapes import Shapes
from onnxprune.quantize.float16_numbers import outside, stand_for_infinity
from onnxprune.quantize.float16_rules import FLOAT, PEAK_LIMIT
from onnxprune.quantize.opset import all_graphs
from onnxprune.runtime.session import SessionOptions, open_session
from onnxprune.runtime.walk import Feeds, Progress

EXTREMES = ("ReduceMax", "ReduceMin")
SOURCES = ("Constant", "ConstantOfShape")


def peaks_of(
    graph: Graph,
    shapes: Shapes,
    feeds: Sequence[Feeds],
    options: SessionOptions | None = None,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Returns the largest finite magnitudes of the float32 tensors of a graph on samples, by name.

    Tensors within the bodies of control flow are not read, and infinite ends of a tensor do not count.

    Args:
        graph: The graph.
        shapes: Its shapes and types.
        feeds: The samples.
        options: Where to run it.
        progress: Hears how much is done.

    Raises:
        ModelError: ONNX Runtime cannot run the graph.
    """
    reading, ends = _with_extremes(graph, shapes)
    peaks = dict.fromkeys(ends.values(), 0.0)
    session = open_session(reading, options)
    for number, feed in enumerate(feeds, 1):
        found = [(ends[name], value) for name, value in session.run(feed, list(ends)).items()] if ends else []
        for name, value in (*found, *_of_inputs(feed)):
            magnitude = abs(float(value))
            peaks[name] = max(peaks.get(name, 0.0), magnitude if math.isfinite(magnitude) else 0.0)
        if progress is not None:
            progress("calibrate", number / len(feeds))
    return peaks


def _of_inputs(feed: Feeds) -> Iterator[tuple[str, Any]]:
    for name, values in feed.items():
        if values.dtype == np.float32:
            finite = values[np.isfinite(values)]
            yield from ((name, end(initial=0.0)) for end in (finite.max, finite.min))


def _with_extremes(graph: Graph, shapes: Shapes) -> tuple[Graph, dict[str, str]]:
    """Returns a copy whose outputs are the ends of its float32 tensors, and the names of the tensors by theirs."""
    result, ends = graph.copy(), {}
    _hide_infinity(result)
    taken = {tensor.name for body in all_graphs(result) for tensor in graph_tensors(body)}
    read = [tensor for node in result.nodes if node.op not in SOURCES for tensor in node.outputs if tensor.name]
    result.outputs.clear()
    for tensor in read:
        if shapes.types.get(tensor.name) != FLOAT:
            continue
        for operator in EXTREMES:
            name = f"{tensor.name}_{operator}"
            while name in taken:
                name += "_"
            taken.add(name)
            out = gs.Variable(name, np.dtype(np.float32), [])
            result.nodes.append(gs.Node(operator, "", {"keepdims": 0}, [tensor], [out]))
            result.outputs.append(out)
            ends[name] = tensor.name
    return result, ends


def _hide_infinity(graph: Graph) -> None:
    made = (node.attrs.get("value") for node in graph.nodes if node.op == "ConstantOfShape")
    stored = (constant for _, constant in stored_tensors(graph))
    for constant in (*stored, *made):
        if not isinstance(constant, gs.Constant) or constant.dtype != np.float32:
            continue
        values = read_values(constant)
        beyond = outside(values)
        if beyond.size and stand_for_infinity(beyond):
            held = np.clip(values, -PEAK_LIMIT / 2, PEAK_LIMIT / 2)
            write_values(constant, np.where(np.isinf(values), values, held).astype(values.dtype))
