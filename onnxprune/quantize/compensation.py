"""Rows of weights that make up for the rounding of those before them (Frantar et al. 2022, GPTQ).

The update of Optimal Brain Quantization in a fixed order: rows of large moments first, whose inverses all lie in one
Cholesky factor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

DAMPINGS = (1e-3, 1e-2, 1e-1)
"""Ridges on the second moments that compete, as fractions of their mean."""

SILENT = 1e-100
"""Mean squares up to here are those of inputs that were always the same."""

LAZY = 128
"""Rows between two updates of all rows below."""

Rounded = Callable[[int, Array], Array]
"""What a row, by its number, is rounded to: [g, m] to [g, m]."""


@dataclass(frozen=True, slots=True, eq=False)
class Compensation:
    """What is known of the inputs of an operator.

    ``order`` is that in which rows are rounded, [n], ``importance`` are mean squares of the inputs [g, n], and
    ``factor`` is the upper Cholesky factor of the inverse of their second moments [g, n, n], rows in order.
    """

    order: NDArray[np.intp]
    importance: Array
    factor: Array

    @classmethod
    def of(cls, moments: Array, damping: float) -> Compensation:
        """Returns what second moments [g, n, n] say; ``damping`` is added to them, as a fraction of their mean.

        Where no input ever changed nothing is known of them, and all are alike.
        """
        diagonal = np.einsum("gii->gi", moments)
        mean = diagonal.mean(axis=1)
        ridge = np.where(mean > SILENT, damping * mean, 1.0)
        order = np.argsort(-diagonal.sum(axis=0), kind="stable")
        stable = (moments + ridge[:, None, None] * np.eye(moments.shape[1]))[:, order][:, :, order]
        factor = np.linalg.cholesky(np.linalg.inv(stable)).swapaxes(1, 2)
        return cls(order, diagonal + ridge[:, None], factor)

    @classmethod
    def each(cls, moments: Array) -> Iterator[Compensation]:
        """Yields the same for every damping that leaves the moments an inverse."""
        for damping in DAMPINGS:
            with suppress(np.linalg.LinAlgError):
                yield cls.of(moments, damping)

    def compensated(self, matrix: Array, rounded: Rounded) -> Array:
        """Returns a matrix [g, n, m] rounded row by row, while later rows make up for the error."""
        wanted, count = matrix[:, self.order].astype(np.float64), matrix.shape[1]
        result = np.empty_like(wanted)
        for first in range(0, count, LAZY):
            stop = min(first + LAZY, count)
            errors = np.empty_like(wanted[:, first:stop])
            for row in range(first, stop):
                result[:, row] = rounded(int(self.order[row]), wanted[:, row])
                errors[:, row - first] = (wanted[:, row] - result[:, row]) / self.factor[:, row, row, None]
                wanted[:, row + 1 : stop] -= self.factor[:, row, row + 1 : stop, None] * errors[:, None, row - first]
            wanted[:, stop:] -= self.factor[:, first:stop, stop:].swapaxes(1, 2) @ errors
        return np.asarray(result[:, np.argsort(self.order)])
