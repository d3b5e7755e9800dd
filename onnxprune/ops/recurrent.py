"""Recurrent operators. They have no channel rule yet, so their hidden units stay."""

from onnxprune.channels.registry import NodeView, mac_rule

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@mac_rule("LSTM", "GRU", "RNN")
def recurrent_macs(node: NodeView) -> int:
    """Every step multiplies the input and the hidden state with one matrix for each gate and direction."""
    x, w = node.data, node.weight(1)
    directions, rows, inputs = w.shape
    hidden = rows // GATES[node.op]
    steps = x.shape[0] * x.shape[1]
    return steps * directions * rows * (inputs + hidden)
