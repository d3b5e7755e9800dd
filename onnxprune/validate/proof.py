"""The proof: the masked original and the sliced model compute the same, on ONNX Runtime.

Both run with graph optimizations off. The masked original silences removed channels where they are summed
(``surgery.gates``), activations are not rounded to integers in either; every difference is held against the largest
magnitude of its tensor. Where that is too much for rounding, both run once more in float64 (``exact``): a network that
amplifies rounding agrees there, and one that was cut wrongly does not.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper

from onnxprune.channels.groups import Channels
from onnxprune.errors import CalibrationError, ValidationError
from onnxprune.model.graph import captured
from onnxprune.model.io import Graph
from onnxprune.runtime.session import Session, SessionOptions, open_session
from onnxprune.surgery.gates import silence
from onnxprune.surgery.gone import Gone, Removals
from onnxprune.validate.unrounded import take_out_rounding

TOLERANCE = 1e-4
TOLERANCE_HALF = 1e-2

TOLERANCE_EXACT = 1e-9
"""Limit in float64."""

TAIL_SCALE = 1e-2
"""Smallest scale of outputs behind the touched part: differences of 1e-6 are rounding of a function of range 1."""

COMPARED = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE}
"""Element types of the tensors that are compared: the floating-point types that ONNX Runtime computes with."""

Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class ProofResult:
    """The largest difference, absolute and relative to the largest magnitude of its output, and the limit for it.

    Where it is beyond the limit, ``float64`` is the largest relative difference in float64, and ``None`` where that
    could not be found, for the reason in ``untried``.
    """

    max_abs: float
    relative: float
    limit: float
    output: str
    runs: int
    float64: float | None = None
    untried: str | None = None

    @property
    def within(self) -> bool:
        """Whether the difference is within the limit as ONNX Runtime computes."""
        return self.relative <= self.limit

    @property
    def passed(self) -> bool:
        """Whether the difference is within the limit, in float64 where it was needed."""
        return self.within or (self.float64 is not None and self.float64 <= TOLERANCE_EXACT)


@dataclass(frozen=True, slots=True)
class Places:
    """The tensors at which two models are held against each other, strictly and up to rounding near zero."""

    gone: Gone
    strict: Sequence[str]
    loose: Sequence[str]

    @property
    def names(self) -> list[str]:
        """The names of all of them."""
        return [*self.strict, *self.loose]

    def largest(self, expected: Feeds, found: Feeds) -> ProofResult:
        """Returns the largest difference of one run, against its limit."""
        worst = ProofResult(0.0, 0.0, TOLERANCE, "", 1)
        for name in self.names:
            floor = TAIL_SCALE if name in self.loose else 0.0
            worst = worse(worst, _difference(name, self.gone.take(name, expected[name]), found[name], floor))
        return worst


def worse(left: ProofResult, right: ProofResult) -> ProofResult:
    """Returns the result that is nearer to its limit or further beyond it."""
    return right if right.relative / right.limit >= left.relative / left.limit else left


def prove(
    channels: Channels,
    removals: Removals,
    sliced: Graph,
    feeds: Iterable[Feeds],
    options: SessionOptions | None = None,
) -> ProofResult:
    """Returns the largest difference between the masked original and the sliced model over all feeds.

    Both are held against each other where the touched part ends and at the outputs, see :func:`compared_tensors`. The
    feeds that put them further apart than the limit are run once more in float64, see :func:`in_float64`.

    Raises:
        CalibrationError: there are no feeds.
        ModelError: ONNX Runtime cannot run the original.
        ValidationError: ONNX Runtime cannot run the sliced model, though it runs the original.
    """
    options = options or SessionOptions()
    plain = SessionOptions(options.provider, options.threads, optimize=False)
    reference, candidate = silence(channels, removals), sliced.copy()
    gone = Gone(channels, removals)
    places = Places(gone, *compared_tensors(channels, gone))
    for graph in (reference, candidate):
        take_out_rounding(graph)
        expose(graph, channels, places.names)
    masked = open_session(reference, plain)
    small = open_result(candidate, plain)
    worst = ProofResult(0.0, 0.0, TOLERANCE, "", 0)
    runs = 0
    beyond = []
    for feed in feeds:
        runs += 1
        result = places.largest(masked.run(feed, places.names), small.run(feed, places.names))
        worst = worse(worst, result)
        if not result.within:
            beyond.append(feed)
    if runs == 0:
        raise CalibrationError("the proof needs at least one run: give feeds, one dict of arrays for each")
    return in_float64(replace(worst, runs=runs), (reference, candidate), beyond, places)


def in_float64(result: ProofResult, graphs: tuple[Graph, Graph], feeds: Sequence[Feeds], places: Places) -> ProofResult:
    """Returns the result with what float64 finds on the given feeds, where it is beyond its limit."""
    if result.within:
        return result
    if not np.isfinite(result.relative):
        return replace(result, untried="no rounding makes an infinite difference")
    from onnxprune.validate import exact

    try:
        chosen = exact.affordable(graphs[0], feeds)
        expected, found = (exact.values(graph, chosen, places.names) for graph in graphs)
    except exact.CannotRepeatError as error:
        return replace(result, untried=str(error))
    differences = [places.largest(*pair).relative for pair in zip(expected, found, strict=True)]
    return replace(result, float64=max(differences))


def compared_tensors(channels: Channels, gone: Gone) -> tuple[list[str], list[str]]:
    """Returns the names of the tensors at which the models are compared: strictly, and up to rounding near zero.

    Behind the last node that surgery touched both models are the same graph. What enters that part is compared
    strictly. The outputs behind it are compared as well, but a sigmoid near zero is all rounding, so their scale
    counts as at least ``TAIL_SCALE``; outputs that go through indices, comparisons or control flow may flip and are
    left out.
    """
    produced = {tensor.name: node for node in channels.graph.nodes for tensor in node.outputs if tensor.name}
    strict: list[str] = []
    loose: list[str] = []
    for output in channels.graph.outputs:
        entries, smooth = _entries(output.name, produced, channels, gone)
        strict += [name for name in entries if name not in strict]
        if output.name in produced and output.name not in entries and smooth:
            loose.append(output.name)
    if not strict and not loose:
        return [tensor.name for tensor in channels.graph.outputs if tensor.name in produced], []
    return strict, [name for name in loose if name not in strict]


def _entries(output: str, produced: Mapping[str, gs.Node], channels: Channels, gone: Gone) -> tuple[list[str], bool]:
    """Returns where the touched part ends on the way to an output, and whether the way from there is smooth."""
    shapes = channels.shapes
    entries: list[str] = []
    smooth = True
    seen: set[str] = set()
    waiting = [output]
    while waiting:
        name = waiting.pop(0)
        node = produced.get(name)
        if node is None or name in seen or node.op in ("Shape", "Size"):
            continue
        touched = any(gone.fewer(tensor.name) for tensor in (*node.inputs, *node.outputs))
        if name in shapes.values and not touched:
            continue
        seen.add(name)
        number = shapes.types.get(name, 0) in COMPARED
        if number and touched:
            entries.append(name)
            continue
        bodies = [value for value in node.attrs.values() if isinstance(value, gs.Graph)]
        smooth = smooth and number and not bodies
        waiting += [tensor.name for tensor in node.inputs]
        waiting += [outer for body in bodies for outer in sorted(captured(body))]
    return entries, smooth


def expose(graph: Graph, channels: Channels, names: Sequence[str]) -> None:
    """Makes outputs of the named tensors, in place."""
    outputs = {tensor.name for tensor in graph.outputs}
    wanted = set(names) - outputs
    for node in graph.nodes:
        for tensor in node.outputs:
            if tensor.name in wanted:
                tensor.dtype = helper.tensor_dtype_to_np_dtype(channels.shapes.types[tensor.name])
                graph.outputs.append(tensor)


def open_result(model: Graph, options: SessionOptions) -> Session:
    """Returns a session of what surgery made.

    Raises:
        ValidationError: ONNX Runtime does not load it.
    """
    from onnxprune.errors import ModelError

    try:
        return open_session(model, options)
    except ModelError as error:
        raise ValidationError(
            f"the pruned model does not load though the original does ({error}): please report the model"
        ) from error


def _difference(name: str, expected: np.ndarray, found: np.ndarray, floor: float) -> ProofResult:
    if not isinstance(expected, np.ndarray):
        return ProofResult(0.0, 0.0, TOLERANCE, name, 0)  # a sequence or a map
    limit = TOLERANCE_HALF if expected.dtype == np.float16 else TOLERANCE
    if expected.shape != found.shape:
        return ProofResult(np.inf, np.inf, limit, name, 0)
    if not expected.size or not np.issubdtype(expected.dtype, np.number):
        return ProofResult(0.0, 0.0, limit, name, 0)
    expected, found = expected.astype(np.float64), found.astype(np.float64)
    same = (expected == found) | (np.isnan(expected) & np.isnan(found))
    with np.errstate(invalid="ignore"):
        apart = np.where(same, 0.0, np.abs(expected - found))
    largest = float(np.max(np.where(np.isnan(apart), np.inf, apart)))
    finite = np.abs(expected[np.isfinite(expected)])
    scale = max(float(finite.max()) if finite.size else 1.0, floor)
    return ProofResult(largest, largest / scale if scale else largest, limit, name, 0)
