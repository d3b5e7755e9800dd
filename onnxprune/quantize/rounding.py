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
from onnxprune.quantize.grids import Scale
from onnxprune.recover.clipping import Fit
from onnxprune.recover.least_squares import Solution, shift
from onnxprune.recover.moments import Moments

DAMPINGS = (1e-3, 1e-2, 1e-1)
"""Ridges on the second moments that compete, as fractions of their mean."""


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
            for damping in DAMPINGS:
                candidates += self.compensated(aims, sums, damping)
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

    def compensated(self, aims: Sequence[Array], sums: Moments, damping: float) -> list[Array]:
        """Returns rounded weights for each aim, in which later rows make up for the rounding of earlier ones.

        The update of Optimal Brain Quantization in a fixed order (Frantar et al. 2022, GPTQ): rows of large moments
        first, whose inverses all lie in one Cholesky factor, which is the same for all aims.
        """
        covariance = sums.centered()[0]
        size = covariance.shape[1]
        diagonal = np.einsum("gii->gi", covariance)
        order = np.argsort(-diagonal.sum(axis=0), kind="stable")
        mean = diagonal.mean(axis=1)
        mean[mean <= 0] = 1.0  # what was always the same has no moments
        moments = (covariance + damping * mean[:, None, None] * np.eye(size))[:, order][:, :, order]
        factor = np.linalg.cholesky(np.linalg.inv(moments)).swapaxes(1, 2)
        left = np.concatenate(aims, axis=2)[:, order]
        result = np.empty_like(left)
        gone = np.tile(self.matrix[:, order] == 0, len(aims))
        low, high = self.scale.grid.low, self.scale.grid.high
        steps = np.tile(self.steps[:, 0], len(aims))
        for start in range(0, size, BLOCK):
            stop = min(start + BLOCK, size)
            errors = np.empty((left.shape[0], stop - start, left.shape[2]))
            for row in range(start, stop):
                rounded = np.clip(np.rint(left[:, row] / steps), low, high) * steps
                result[:, row] = np.where(gone[:, row], 0.0, rounded)
                error = (left[:, row] - result[:, row]) / factor[:, row, row, None]
                errors[:, row - start] = error
                left[:, row:stop] -= factor[:, row, row:stop, None] * error[:, None]
            left[:, stop:] -= factor[:, start:stop, stop:].swapaxes(1, 2) @ errors
        return np.split(result[:, np.argsort(order)], len(aims), axis=2)


BLOCK = 128
"""Rows whose corrections are added up before they reach the rows behind them."""
