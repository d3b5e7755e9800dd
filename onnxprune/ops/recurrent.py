"""LSTM, GRU and RNN: a hidden unit is one row block in every gate, and one column of the recurrent weights."""

import numpy as np

from onnxprune.channels.facts import Attribute, Axis, Count, Facts, Freeze, Tie, free
from onnxprune.channels.registry import NodeView, Value, channel_rule, mac_rule

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
BIAS, LENGTHS, PEEPHOLES = 3, 4, 7
"""Input slots; 5 and 6 are the initial states."""


@channel_rule("LSTM", "GRU", "RNN")
def recurrent(node: NodeView) -> Facts:
    """X [T, N, I], w [D, G*H, I], r [D, G*H, H] to y [T, D, N, H]; with ``layout=1`` the batch axis comes first.

    The state is summed over inside the node, where no gate can be put; the columns of r stand for it, and silencing
    them keeps a removed unit from all others. Both directions share their hidden units, as they share ``hidden_size``.
    """
    x, w, r = node.data, node.weight(1), node.weight(2)
    hidden = r.axis(2)
    batch = x.axis(0 if node.attribute("layout", 0) else 1)
    yield Tie(x.axis(2), w.axis(2), contracts=True)
    yield Tie(hidden, hidden, contracts=True)
    yield Count(hidden, Attribute("hidden_size"))
    yield free(batch)
    time = x.axis(1 if node.attribute("layout", 0) else 0)
    yield Freeze(time, f"{node.name!r} ({node.op}) runs along it")
    for value in (w, r, node.input(BIAS), node.input(PEEPHOLES)):
        if value is not None:
            yield from _blocks(value, hidden, r.shape[2])
    yield from _states(node, batch, hidden)


@mac_rule("LSTM", "GRU", "RNN")
def recurrent_macs(node: NodeView) -> int:
    """Every step multiplies the input and the hidden state with one matrix for each gate and direction."""
    x, w = node.data, node.weight(1)
    directions, rows, inputs = w.shape
    hidden = rows // GATES[node.op]
    steps = x.shape[0] * x.shape[1]
    return steps * directions * rows * (inputs + hidden)


def _blocks(value: Value, hidden: Axis, units: int) -> Facts:
    """Blocks of one row for each hidden unit: gates, both halves of the bias, peepholes."""
    rows = np.arange(value.shape[1])
    yield Tie(value.axis(1), hidden, rows, rows % units)


def _states(node: NodeView, batch: Axis, hidden: Axis) -> Facts:
    """Sequence lengths, initial and last states, and the states of all steps: [..., batch, ..., hidden]."""
    place = 0 if node.attribute("layout", 0) else 1
    lengths = node.input(LENGTHS)
    if lengths is not None:
        yield Tie(lengths.axis(0), batch)
    for value in (node.input(5), node.input(6), *node.outputs[1:]):
        if value is not None:
            yield Tie(value.axis(place), batch)
            yield Tie(value.axis(2), hidden)
    y = node.outputs[0]
    if y is not None:
        yield Tie(y.axis(0 if place == 0 else 2), batch)
        yield Tie(y.axis(3), hidden)
