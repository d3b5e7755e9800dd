"""Weights on their grid, chosen on samples operator by operator: each rounding makes up for those before it.

The network so far feeds the operator rounded numbers; what it should compute is what the original computes. Candidates
are judged on held-out rows, and the nearest numbers stay where nothing is better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.model.linear import Array
from onnxprune.model.weights import Weight
from onnxprune.ops.forms import TransposedConvolution
from onnxprune.quantize.compensation import Compensation
from onnxprune.quantize.grids import Scale
from onnxprune.recover.clipping import Fit
from onnxprune.recover.least_squares import Solution, shift


@dataclass(frozen=True, slots=True, eq=False)
class Rounding:
    """The grid of one operator; ``matrix`` are its weights before any rounding, [g, n, m]."""

    scale: Scale
    matrix: Array
    steps: Array

    @classmethod
    def of(cls, weight: Weight, scale: Scale) -> Rounding:
        """Returns the rounding of the weights of an operator to the grid of a scale."""
        matrix = weight.matrix()
        groups, _, columns = matrix.shape
        shared = isinstance(weight.form, TransposedConvolution)
        steps = scale.step.reshape(1 if shared else groups, 1, columns) if scale.step.size > 1 else scale.step
        return cls(scale, matrix, np.broadcast_to(steps, (groups, 1, columns)).astype(np.float64))

    def decide(self, fit: Fit, matrix: Array, bias: Array) -> Solution:
        """Returns the best rounding that was found, with the bias that sets the mean right.

        Args:
            fit: How to fit the operator.
            matrix: The nearest numbers on the grid, [g, n, m].
            bias: What the operator adds, [g, m].
        """
        before = fit.error(matrix, bias)
        best = Solution(matrix, bias, before, before)
        sums = fit.sums[0]
        candidates = [matrix]
        if sums.count > matrix.shape[1]:
            free = self.matrix != 0
            aims = [self.matrix, fit.method(*fit.sums, self.matrix, bias, None if free.all() else free).matrix]
            for known in Compensation.each(sums.centered()[0]):
                candidates += self.compensated(aims, known)
        for candidate in candidates:
            found = shift(*fit.sums, candidate, bias)
            error = fit.error(candidate, found.bias)
            if error < best.after:
                best = Solution(candidate, found.bias, before, error)
        return best

    def nearest(self, weights: Array) -> Array:
        """Returns the nearest numbers on the grid; zeros of the original stay zero."""
        grid = self.scale.grid
        return np.where(self.matrix == 0, 0.0, np.clip(np.rint(weights / self.steps), grid.low, grid.high) * self.steps)

    def compensated(self, aims: Sequence[Array], known: Compensation) -> list[Array]:
        """Returns rounded weights for each aim, in which later rows make up for the rounding of earlier ones."""
        grid, steps = self.scale.grid, np.tile(self.steps[:, 0], len(aims))
        free = np.tile(self.matrix != 0, len(aims))

        def rounded(row: int, wanted: Array) -> Array:
            return np.where(free[:, row], np.clip(np.rint(wanted / steps), grid.low, grid.high) * steps, 0.0)

        return np.split(known.compensated(np.concatenate(aims, axis=2), rounded), len(aims), axis=2)
