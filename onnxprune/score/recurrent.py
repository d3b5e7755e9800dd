"""Hidden units of LSTM, GRU and RNN, and their inputs: every step multiplies both with weights of all gates."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from onnxprune.channels.facts import Axis
from onnxprune.channels.groups import Channels
from onnxprune.model.linear import Holders
from onnxprune.model.recurrent import Recurrent, recurrent_nodes
from onnxprune.ops.forms import rows_per_run
from onnxprune.runtime.walk import Walk
from onnxprune.score.blocks import Block


@dataclass(frozen=True, slots=True, eq=False)
class Steps:
    """The steps of a recurrent operator. GRU may gate the states that one of its products reads; that is left out."""

    recurrent: Recurrent

    @property
    def position(self) -> int:
        """Its place in the graph."""
        return self.recurrent.position

    @property
    def axes(self) -> tuple[Axis, Axis]:
        """Inputs and hidden units."""
        inputs, states = self.recurrent.node.inputs[1:3]
        return Axis(inputs.name, 2), Axis(states.name, 2)

    def blocks(self, walk: Walk, random: np.random.Generator) -> Iterator[Block]:
        """Yields the products with the inputs and with the states before, in every direction.

        Raises:
            ModelError: ONNX Runtime cannot run a part of the graph.
        """
        names = [self.recurrent.data, self.recurrent.result]
        walk.reach(names)
        inputs, states, _ = self.recurrent.weights()
        weights = np.concatenate([inputs, states], axis=2).swapaxes(1, 2)
        width = weights.shape[1]
        share = rows_per_run(width, walk.runs)
        squares, sums, count = np.zeros((len(weights), width, width)), np.zeros((len(weights), width)), 0
        for data, result in zip(*map(walk.values, names), strict=True):
            rows = np.concatenate(self.recurrent.rows(data, result), axis=2)
            chosen = random.permutation(rows.shape[1])[:share]
            taken = rows[:, chosen].astype(np.float64)
            squares += taken.transpose(0, 2, 1) @ taken
            sums += taken.sum(axis=1)
            count += chosen.size
        walk.release(names)
        means = sums / max(count, 1)
        covariance = squares / max(count, 1) - means[:, :, None] * means[:, None]
        energy = float(np.einsum("gim,gij,gjm->", weights, covariance, weights))
        cut = inputs.shape[2]
        for one, matrix in zip(covariance, weights, strict=True):
            for axis, part in zip(self.axes, (slice(None, cut), slice(cut, None)), strict=True):
                yield Block(axis, one[part, part], matrix[part], energy)


def steps(channels: Channels, holders: Holders) -> Iterator[Steps]:
    """Yields the recurrent operators, in graph order."""
    return map(Steps, recurrent_nodes(channels.graph, holders))
