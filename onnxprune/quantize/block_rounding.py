"""Weights in blocks, rounded on samples operator by operator: each rounding makes up for those before it.

The network so far feeds the operator rounded numbers; what it should compute is what the original computes. Candidates
are judged on held-out rows, and what was found without samples stays where nothing is better.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from onnxprune.model.io import Graph, write_values
from onnxprune.model.linear import Array
from onnxprune.model.shapes import Shapes
from onnxprune.model.weights import Weight, weights_of
from onnxprune.quantize.blocks import BlockGrid, Blocks, compensated, searched
from onnxprune.quantize.compensation import Compensation
from onnxprune.recover import sequential as recover
from onnxprune.recover.clipping import Fit
from onnxprune.recover.differences import Unchanged
from onnxprune.recover.least_squares import Solution, solve
from onnxprune.recover.sequential import Calibration
from onnxprune.runtime.session import SessionOptions
from onnxprune.runtime.walk import Progress


@dataclass(frozen=True, slots=True)
class OnSamples:
    """What weights are rounded on; ``memory`` is in bytes."""

    runs: Calibration
    memory: int = 2 << 30
    options: SessionOptions | None = None
    progress: Progress | None = None


@dataclass(slots=True, eq=False)
class BlockRounding:
    """Weights before any rounding, and what they are rounded to; ``fitted`` says that samples chose that."""

    weight: Weight
    blocks: Blocks
    fitted: bool = False

    @classmethod
    def of(cls, weight: Weight, grid: BlockGrid) -> BlockRounding:
        """Returns the rounding of the weights of an operator by themselves."""
        return cls(weight, searched(weight.matrix().astype(np.float32), grid))

    def decide(self, fit: Fit, matrix: Array, bias: Array) -> Solution:
        """Returns the best rounding that was found, with the bias that sets the mean right; on few rows what is given.

        Args:
            fit: How to fit the operator.
            matrix: What it is rounded to by itself, [g, n, m].
            bias: What the operator adds, [g, m].
        """
        before = fit.error(matrix, bias)
        best = Solution(matrix, bias, before, before)
        if fit.sums[0].count <= matrix.shape[1]:
            return best
        covariance, _, x_mean, y_mean = fit.sums[0].centered()
        for blocks in (self.blocks, *self._candidates(fit, bias, covariance)):
            numbers = blocks.numbers().astype(np.float64)
            shifted = y_mean - np.einsum("gi,gim->gm", x_mean, numbers)
            error = fit.error(numbers, shifted)
            if error < best.after:
                best = Solution(numbers, shifted, before, error)
                self.blocks, self.fitted = blocks, True
        return best

    def _candidates(self, fit: Fit, bias: Array, covariance: Array) -> Iterator[Blocks]:
        """Yields roundings that make up for themselves, of the original and of what fits best."""
        matrix = self.weight.matrix()
        free = matrix != 0
        aims = [matrix, fit.method(*fit.sums, matrix, bias, None if free.all() else free).matrix]
        for known in Compensation.each(covariance):
            for aim in aims:
                start = searched(aim.astype(np.float32), self.blocks.grid, known.importance)
                yield compensated(known, aim, start, free)


@dataclass(frozen=True, slots=True)
class _Kept:
    """The decision to change nothing."""

    def decide(self, fit: Fit, matrix: Array, bias: Array) -> Solution:
        """Returns what is given."""
        return Solution(matrix, bias, 0.0, 0.0)


def rounded_on(graph: Graph, shapes: Shapes, roundings: Mapping[str, BlockRounding], samples: OnSamples) -> Graph:
    """Returns a copy in which weights lie on their grids, biases make up for it, and other weights are what they were.

    Args:
        graph: The original.
        shapes: Its shapes.
        roundings: How weights are rounded, by the result of their operator; those that samples change are changed.
        samples: What they are rounded on.

    Raises:
        ModelError: ONNX Runtime cannot run a part of the graph.
    """
    start = graph.copy()
    for weight in weights_of(start, shapes):
        if weight.result in roundings:
            _write(weight, roundings[weight.result].blocks.numbers())
    others = {tensor.name: _Kept() for node in start.nodes for tensor in node.outputs}
    settings = recover.Settings(
        solve, False, samples.memory, samples.options, samples.progress, decisions={**others, **roundings}
    )
    return recover.repair(start, graph, Unchanged(), samples.runs, settings)[0]


def _write(weight: Weight, matrix: Array) -> None:
    """Stores a matrix [g, n, m] where the weights come from."""
    source = weight.source
    like = np.empty([source.stored.shape[axis] for axis in source.order], source.stored.dtype)
    write_values(source.stored, weight.form.weights(matrix, like).transpose(np.argsort(source.order)))


class _Same:
    """Nothing is gone: every tensor of the original is there as a whole."""

    def take(self, name: str, values: np.ndarray) -> np.ndarray:
        """Returns all of it."""
        return values

    def fewer(self, name: str) -> Mapping[int, int]:
        """Returns that no dimension shrinks."""
        return {}
