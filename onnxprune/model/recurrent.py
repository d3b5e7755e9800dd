"""LSTM, GRU and RNN as linear operators: every step multiplies the input and the state before it with weights."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.model.io import read_values, write_values
from onnxprune.model.linear import Array, Holders
from onnxprune.model.shapes import node_name
from onnxprune.ops.recurrent import BIAS, GATES, LENGTHS

INITIAL = 5
"""Input slot of the state before the first step."""

REVERSED = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
"""Which directions run from the last step to the first."""


@dataclass(frozen=True, slots=True, eq=False)
class Recurrent:
    """An operator whose weights no other reads, and whose states of all steps are an output.

    ``inputs`` are [D, G*H, I], ``states`` [D, G*H, H], ``bias`` [D, 2*G*H] or ``None``.
    """

    position: int
    node: gs.Node
    inputs: gs.Constant
    states: gs.Constant
    bias: gs.Constant | None

    @property
    def name(self) -> str:
        """Name of the node."""
        return node_name(self.node)

    @property
    def data(self) -> str:
        """Name of the tensor that it reads."""
        return str(self.node.inputs[0].name)

    @property
    def result(self) -> str:
        """Name of the states of all steps."""
        return str(self.node.outputs[0].name)

    @property
    def gates(self) -> int:
        """Number of gates."""
        return GATES[self.node.op]

    def weights(self) -> tuple[Array, Array, Array]:
        """Returns the weights of the inputs and of the states, and the bias of each: [2, D, G*H]."""
        inputs, states = (read_values(one).astype(np.float64) for one in (self.inputs, self.states))
        if self.bias is None:
            return inputs, states, np.zeros((2, *inputs.shape[:2]))
        bias = read_values(self.bias).astype(np.float64)
        return inputs, states, np.stack(np.split(bias, 2, axis=1))

    def write(self, inputs: Array, states: Array, bias: Array) -> None:
        """Stores weights, and biases where there is a place for them."""
        kind = read_values(self.inputs).dtype
        write_values(self.inputs, inputs.astype(kind))
        write_values(self.states, states.astype(kind))
        if self.bias is not None:
            write_values(self.bias, np.concatenate(list(bias), axis=1).astype(kind))

    def rows(self, data: np.ndarray, result: np.ndarray) -> tuple[Array, Array]:
        """Returns the inputs [D, R, I] of all steps, and the states before them [D, R, H].

        Steps that start from a given state are left out.
        """
        batch_first = bool(self.node.attrs.get("layout", 0))
        x = data.swapaxes(0, 1) if batch_first else data
        y = result.transpose(1, 2, 0, 3) if batch_first else result
        given = len(self.node.inputs) > INITIAL and bool(self.node.inputs[INITIAL].name)
        inputs, states = [], []
        for direction, backward in enumerate(REVERSED[_word(self.node.attrs.get("direction", "forward"))]):
            order = slice(None, None, -1 if backward else 1)
            steps, own = x[order], y[order, direction]
            before = np.concatenate([np.zeros_like(own[:1]), own[:-1]])
            inputs.append(steps[given:].reshape(-1, x.shape[-1]))
            states.append(before[given:].reshape(-1, y.shape[-1]))
        return np.stack(inputs), np.stack(states)


def recurrent_nodes(graph: gs.Graph, holders: Holders) -> Iterator[Recurrent]:
    """Yields the recurrent operators of a graph, in graph order; those with lengths of their own are left out."""
    for position, node in enumerate(graph.nodes):
        if node.op not in GATES or not node.outputs or not node.outputs[0].name:
            continue
        if len(node.inputs) > LENGTHS and node.inputs[LENGTHS].name:
            continue
        inputs, states = holders.own(node.inputs[1]), holders.own(node.inputs[2])
        given = len(node.inputs) > BIAS and bool(node.inputs[BIAS].name)
        bias = holders.own(node.inputs[BIAS]) if given else None
        if inputs is not None and states is not None and (bias is not None) == given:
            yield Recurrent(position, node, inputs, states, bias)


def _word(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
