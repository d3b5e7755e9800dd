"""What analysis prepares before anything is removed computes what the model as given computes."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.channels.groups import Channels, analyze
from onnxprune.errors import ModelError, ValidationError
from onnxprune.model.io import Graph, load, read_values, to_proto
from onnxprune.runtime.session import SessionOptions, open_session
from onnxprune.surgery.gone import Gone, Removals
from onnxprune.validate.proof import (
    TOLERANCE,
    Feeds,
    Places,
    ProofResult,
    compared_tensors,
    expose,
    in_float64,
    worse,
)
from onnxprune.validate.unrounded import take_out_rounding


def prove_preparation(
    given: Graph, channels: Channels, removals: Removals, feeds: Sequence[Feeds], options: SessionOptions
) -> ProofResult | None:
    """Returns the largest difference between a model as given and the graph of its analysis, with nothing removed.

    ``None`` where analysis changed no node, or nothing that both have follows from it. They are held against each other
    where the proof of these removals looks, as far as both have these tensors.

    Raises:
        ModelError: ONNX Runtime cannot run the model as given.
        ValidationError: ONNX Runtime cannot run the graph of the analysis, though it runs the model.
    """
    if _outline(given) == _outline(channels.graph):
        return None
    places = _places(given, channels, removals)
    if not places.names:
        return None
    plain = SessionOptions(options.provider, options.threads, optimize=False)
    graphs = (_comparable(given, channels, places), _comparable(channels.graph, channels, places))
    session = open_session(graphs[0], plain)
    expected = [session.run(feed, places.names) for feed in feeds]
    worst = ProofResult(0.0, 0.0, TOLERANCE, "", 0)
    beyond = []
    for feed, values, found in zip(feeds, expected, _prepared_runs(graphs[1], plain, feeds, places), strict=True):
        result = places.largest(values, found)
        worst = worse(worst, result)
        if not result.within:
            beyond.append(feed)
    worst = replace(worst, runs=len(feeds))
    return worst if worst.within else _in_float64(worst, given, channels, (beyond, places))


def _prepared_runs(
    graph: Graph, options: SessionOptions, feeds: Sequence[Feeds], places: Places
) -> Iterator[dict[str, np.ndarray]]:
    try:
        session = open_session(graph, options)
        for feed in feeds:
            yield session.run(feed, places.names)
    except ModelError as error:
        raise ValidationError(
            f"the graph prepared for pruning does not run though the model does ({error}): please report the model"
        ) from error


def _places(given: Graph, channels: Channels, removals: Removals) -> Places:
    computed = {tensor.name for node in given.nodes for tensor in node.outputs}
    strict, loose = compared_tensors(channels, Gone(channels, removals))
    kept = [name for name in strict if name in computed], [name for name in loose if name in computed]
    return Places(Gone(channels, {}), *kept)


def _comparable(graph: Graph, channels: Channels, places: Places) -> Graph:
    copy: Graph = graph.copy()
    take_out_rounding(copy)
    expose(copy, channels, places.names)
    return copy


def _in_float64(
    result: ProofResult, given: Graph, channels: Channels, compared: tuple[Sequence[Feeds], Places]
) -> ProofResult:
    """Returns the result with what float64 finds for the same preparation, made of the model in float64.

    What the graph stores was computed in float32. It is stored anew in float64, and must be the same up to rounding.
    """
    from onnxprune.validate.exact import widen

    feeds, places = compared
    wide = load(widen(to_proto(given)))
    again = analyze(wide, channels.sizes)
    if _outline(again.graph) != _outline(channels.graph):
        return replace(result, untried="analysis prepares it otherwise")
    if any(name not in again.shapes.types for name in places.names):
        return replace(result, untried="the types of its tensors are not known there")
    if not _store_the_same(again.graph, channels.graph):
        return replace(result, untried="its stored tensors are not those that float64 finds")
    graphs = (_comparable(wide, again, places), _comparable(again.graph, again, places))
    return in_float64(result, graphs, feeds, places)


def _outline(graph: Graph) -> list[tuple[object, ...]]:
    """What the nodes of a graph are and how they are connected; stored tensors have no names here, they are copied."""
    return [
        (
            node.op,
            node.domain or "",
            tuple(None if isinstance(tensor, gs.Constant) else tensor.name for tensor in node.inputs),
            tuple(tensor.name for tensor in node.outputs),
        )
        for node in graph.nodes
    ]


def _store_the_same(left: Graph, right: Graph) -> bool:
    """Whether nodes in the same order read the same stored tensors, up to rounding."""
    pairs = [
        (first, second)
        for one, other in zip(left.nodes, right.nodes, strict=True)
        for first, second in zip(one.inputs, other.inputs, strict=True)
        if isinstance(first, gs.Constant)
    ]
    return all(_close(read_values(first), read_values(second)) for first, second in pairs)


def _close(left: np.ndarray, right: np.ndarray) -> bool:
    if left.shape != right.shape:
        return False
    if not np.issubdtype(left.dtype, np.floating):
        return np.array_equal(left, right)
    left, right = left.astype(np.float64), right.astype(np.float64)
    scale = float(np.max(np.abs(left), initial=0.0))
    return np.allclose(left, right, rtol=0.0, atol=TOLERANCE * scale, equal_nan=True)
