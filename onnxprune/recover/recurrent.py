"""Repair of LSTM, GRU and RNN: what every gate adds up before its activation function is fitted to the original.

A state that changes changes those behind it. The weights are fitted to the states of the original first and then, in a
few rounds, to those that the last ones led to; the states of all steps that the operator makes of held-out samples
judge.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.model.graph import read_by
from onnxprune.model.io import Graph
from onnxprune.model.linear import Array
from onnxprune.model.recurrent import Recurrent
from onnxprune.ops.forms import rows_per_run
from onnxprune.recover.least_squares import Method
from onnxprune.recover.moments import Moments
from onnxprune.runtime.session import SessionOptions, open_session
from onnxprune.runtime.walk import Feeds

ROUNDS = 4
"""Times at which weights are fitted."""

Weights = tuple[Array, Array, Array]
"""Of the inputs [D, G*H, I] and of the states [D, G*H, H], and the bias of each [2, D, G*H]."""


@dataclass(frozen=True, slots=True)
class Part:
    """Gates that are fitted together, and which of the two products they add up.

    ``reset`` says that the states are multiplied with the second gate before.
    """

    gates: slice
    inputs: bool = True
    states: bool = True
    reset: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Passage:
    """What a run feeds to both operators, what the original makes of it, and ``wanted``, what stays of that."""

    data: np.ndarray
    original: np.ndarray
    result: np.ndarray
    wanted: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """An operator to repair: ``rows`` are the rows of all gates of the original that it still has.

    The first ``fitted`` passages are to fit, the others judge. ``run`` makes the states of every passage anew.
    """

    pruned: Recurrent
    original: Recurrent
    rows: np.ndarray
    passages: Sequence[Passage]
    fitted: int
    run: Callable[[], Sequence[np.ndarray]]


def refit(task: Task, method: Method, random: np.random.Generator) -> tuple[float, float]:
    """Stores better weights where there are some; returns the error of held-out states relative to their variance."""
    kept = task.pruned.weights()
    before = best = _error(task, task.run())
    states: Sequence[np.ndarray] = [passage.wanted for passage in task.passages]
    for _ in range(ROUNDS):
        task.pruned.write(*fit(task, states, method, random))
        states = task.run()
        error = _error(task, states)
        if not error < best:
            break
        best, kept = error, task.pruned.weights()
    task.pruned.write(*kept)
    return before, best


def run_alone(
    graph: Graph, recurrent: Recurrent, feeds: Sequence[Feeds], options: SessionOptions | None
) -> list[np.ndarray]:
    """Returns the states of all steps for every one of the feeds of the node, with the weights that it has now.

    Raises:
        ModelError: ONNX Runtime cannot run the node.
    """
    node = recurrent.node
    names = read_by(node)
    read = {tensor.name: tensor for tensor in node.inputs if tensor.name in names}
    piece = Graph([node], list(read.values()), [node.outputs[0]], opset=graph.opset)
    piece.import_domains, piece.ir_version = graph.import_domains, graph.ir_version
    piece = piece.copy()
    for tensor in piece.inputs:
        tensor.dtype, tensor.shape = feeds[0][tensor.name].dtype, [None] * feeds[0][tensor.name].ndim
    piece.outputs[0].dtype = feeds[0][recurrent.data].dtype
    session = open_session(piece, options or SessionOptions())
    return [session.run(feed, [recurrent.result])[recurrent.result] for feed in feeds]


def _error(task: Task, states: Sequence[np.ndarray]) -> float:
    wanted = [passage.wanted for passage in task.passages[task.fitted :]]
    gaps = sum(float(np.square(own - one).sum()) for own, one in zip(states[task.fitted :], wanted, strict=True))
    count, total = sum(one.size for one in wanted), sum(float(one.sum()) for one in wanted)
    spread = sum(float(np.square(one - total / count).sum()) for one in wanted)
    return gaps / max(spread, 1e-30)


def fit(task: Task, states: Sequence[np.ndarray], method: Method, random: np.random.Generator) -> Weights:
    """Returns weights that make what the gates of the original add up, from the states of every passage."""
    inputs, recurrence, bias = (one.copy() for one in task.pruned.weights())
    parts = _parts(task.pruned)
    sums = [_empty(part, inputs, recurrence, task.pruned.gates) for part in parts]
    share = rows_per_run(inputs.shape[2] + recurrence.shape[2], len(task.passages))
    for number, (passage, own) in enumerate(zip(task.passages, states, strict=True)):
        x, h = task.pruned.rows(passage.data, own)
        chosen = random.permutation(x.shape[1])[:share]
        inner, states_inner = task.original.rows(passage.original, passage.result)
        pairs, originals = (x[:, chosen], h[:, chosen]), (inner[:, chosen], states_inner[:, chosen])
        gate = _reset(task.original, *originals) if parts[-1].reset else np.ones(1)
        for part, moments in zip(parts, sums, strict=True):
            moments[number >= task.fitted].add(*_rows(task, part, pairs, originals, gate))
    width, cut = recurrence.shape[1] // task.pruned.gates, inputs.shape[2]
    for part, (fitted, held_out) in zip(parts, sums, strict=True):
        place = slice(part.gates.start * width, part.gates.stop * width)
        matrix = _joined(part, inputs[:, place], recurrence[:, place]).swapaxes(1, 2)
        used = [part.inputs, part.states]
        own = bias[used, :, place].sum(axis=0)
        if task.pruned.bias is None:  # a shift could not be stored
            fitted, held_out = fitted.fixed(own), held_out.fixed(own)
        free = None if matrix.all() else matrix != 0  # zeros may be a mask
        found = method(fitted, held_out, matrix, own, free)
        turned = found.matrix.swapaxes(1, 2)
        if part.inputs:
            inputs[:, place] = turned[..., :cut]
        if part.states:
            recurrence[:, place] = turned[..., cut if part.inputs else 0 :]
        bias[used.index(True), :, place] += found.bias - own
    return inputs, recurrence, bias


def _parts(recurrent: Recurrent) -> list[Part]:
    """Returns what adds up before activation functions; the last gate of GRU resets states, or one of two products."""
    if recurrent.node.op != "GRU":
        return [Part(slice(0, recurrent.gates))]
    if recurrent.node.attrs.get("linear_before_reset", 0):
        return [Part(slice(0, 2)), Part(slice(2, 3), states=False), Part(slice(2, 3), inputs=False)]
    if recurrent.node.attrs.get("activations"):
        return [Part(slice(0, 2)), Part(slice(2, 3), states=False)]
    return [Part(slice(0, 2)), Part(slice(2, 3), reset=True)]


def _empty(part: Part, inputs: Array, states: Array, gates: int) -> tuple[Moments, Moments]:
    count = inputs.shape[2] * part.inputs + states.shape[2] * part.states
    outputs = states.shape[1] // gates * (part.gates.stop - part.gates.start)
    return Moments.empty(len(inputs), count, outputs), Moments.empty(len(inputs), count, outputs)


def _reset(recurrent: Recurrent, inputs: Array, states: Array) -> Array:
    """Returns the second gate, [D, R, H]."""
    weights, recurrence, bias = recurrent.weights()
    gate = slice(states.shape[2], 2 * states.shape[2])
    added = inputs @ weights[:, gate].swapaxes(1, 2) + states @ recurrence[:, gate].swapaxes(1, 2)
    return np.asarray(1 / (1 + np.exp(-np.clip(added + bias[:, :, None, gate].sum(axis=0), -60, 60))))


def _joined(part: Part, inputs: Array, states: Array) -> Array:
    used = [one for one, wanted in ((inputs, part.inputs), (states, part.states)) if wanted]
    return np.concatenate(used, axis=2)


def _rows(
    task: Task, part: Part, pruned: tuple[Array, Array], original: tuple[Array, Array], reset: Array
) -> tuple[Array, Array]:
    """Returns what a part reads [D, R, n] and what it should add up [D, R, m]; resets are those of the original."""
    weights, recurrence, bias = task.original.weights()
    width = task.rows.size // task.original.gates
    rows = task.rows[part.gates.start * width : part.gates.stop * width]
    used = [part.inputs, part.states]
    matrix = _joined(part, weights[:, rows], recurrence[:, rows]).swapaxes(1, 2)
    (x, h), (inputs, states) = pruned, original
    if part.reset:
        h, states = h * reset[:, :, task.rows[:width]], states * reset
    target = _joined(part, inputs, states) @ matrix + bias[used][:, :, rows].sum(axis=0)[:, None]
    return _joined(part, x, h), target
