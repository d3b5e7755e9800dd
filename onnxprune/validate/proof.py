"""The proof: the masked original and the sliced model compute the same, on ONNX Runtime.

Both run with graph optimizations off. The masked original silences removed channels where they are summed
(``surgery.gates``); every difference is held against the largest magnitude of its tensor.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper

from onnxprune.channels.groups import Channels
from onnxprune.errors import ValidationError
from onnxprune.model.graph import captured
from onnxprune.model.io import Graph, to_proto
from onnxprune.runtime.session import Session, SessionOptions, open_session
from onnxprune.surgery.gates import silence
from onnxprune.surgery.slice import Gone, Removals, take

TOLERANCE = 1e-4
TOLERANCE_HALF = 1e-2

Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class ProofResult:
    """The largest difference, absolute and relative to the largest magnitude of its output, and the limit for it."""

    max_abs: float
    relative: float
    limit: float
    output: str
    runs: int

    @property
    def passed(self) -> bool:
        """Whether the difference is within the limit."""
        return self.relative <= self.limit


def prove(
    channels: Channels,
    removals: Removals,
    sliced: Graph,
    feeds: Iterable[Feeds],
    options: SessionOptions | None = None,
) -> ProofResult:
    """Returns the largest difference between the masked original and the sliced model over all feeds.

    Both are held against each other where the last touched nodes end, see :func:`compared_tensors`.

    Raises:
        ModelError: ONNX Runtime cannot run the original.
        ValidationError: ONNX Runtime cannot run the sliced model, though it runs the original.
    """
    options = options or SessionOptions()
    plain = SessionOptions(options.provider, options.threads, optimize=False)
    reference, candidate = silence(channels, removals), sliced.copy()
    gone = Gone(channels, removals)
    names = compared_tensors(channels, gone)
    for graph in (reference, candidate):
        _expose(graph, channels, names)
    masked = open_session(to_proto(reference), plain)
    small = _open_sliced(to_proto(candidate), plain)
    worst = ProofResult(0.0, 0.0, TOLERANCE, "", 0)
    runs = 0
    for feed in feeds:
        runs += 1
        expected, found = masked.run(feed, names), small.run(feed, names)
        for name in names:
            result = _difference(name, take(expected[name], gone.by_tensor.get(name, {})), found[name])
            if result.relative / result.limit >= worst.relative / worst.limit:
                worst = result
    return ProofResult(worst.max_abs, worst.relative, worst.limit, worst.output, runs)


def compared_tensors(channels: Channels, gone: Gone) -> list[str]:
    """Returns the names of the tensors at which the models are compared.

    Behind the last node that surgery touched both models are the same graph, so they are compared at what enters that
    part: the output itself where its node was touched, else what indices, saturation (a sigmoid near zero is all
    rounding) and the bodies of control flow compute it from.
    """
    graph, types = channels.graph, channels.shapes.types
    produced = {tensor.name: node for node in graph.nodes for tensor in node.outputs if tensor.name}
    names: list[str] = []
    seen: set[str] = set()
    waiting = [tensor.name for tensor in graph.outputs]
    while waiting:
        name = waiting.pop(0)
        node = produced.get(name)
        if node is None or name in seen:
            continue
        seen.add(name)
        touched = any(tensor.name in gone.by_tensor for tensor in (*node.inputs, *node.outputs))
        if touched and is_float(types.get(name, 0)):
            names.append(name)
            continue
        bodies = [value for value in node.attrs.values() if isinstance(value, gs.Graph)]
        waiting += [tensor.name for tensor in node.inputs]
        waiting += [outer for body in bodies for outer in sorted(captured(body))]
    return names or [tensor.name for tensor in graph.outputs if tensor.name in produced]


def is_float(element_type: int) -> bool:
    """Returns whether an ONNX element type is one of the floating-point types that ONNX Runtime computes with."""
    return element_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)


def _expose(graph: Graph, channels: Channels, names: list[str]) -> None:
    outputs = {tensor.name for tensor in graph.outputs}
    wanted = set(names) - outputs
    for node in graph.nodes:
        for tensor in node.outputs:
            if tensor.name in wanted:
                tensor.dtype = helper.tensor_dtype_to_np_dtype(channels.shapes.types[tensor.name])
                graph.outputs.append(tensor)


def _open_sliced(model: onnx.ModelProto, options: SessionOptions) -> Session:
    from onnxprune.errors import ModelError

    try:
        return open_session(model, options)
    except ModelError as error:
        raise ValidationError(
            f"the pruned model does not load though the original does ({error}): please report the model"
        ) from error


def _difference(name: str, expected: np.ndarray, found: np.ndarray) -> ProofResult:
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
    scale = float(finite.max()) if finite.size else 1.0
    return ProofResult(largest, largest / scale if scale else largest, limit, name, 0)
