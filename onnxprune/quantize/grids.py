"""Grids that numbers are rounded to: integers from a zero point on, times a scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

SMALLEST = float(np.finfo(np.float32).tiny)
"""The smallest normal number: a scale of zero divides by zero in one runtime, and fails the build in another."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Integers from ``low`` to ``high``; the zero point of a symmetric grid is 0, so that scales alone tell it."""

    dtype: np.dtype[Any]
    low: int
    high: int
    symmetric: bool

    @property
    def steps(self) -> int:
        """Number of steps between the ends; equally many on both sides of zero where the grid is symmetric."""
        return 2 * self.high if self.symmetric else self.high - self.low


UNSIGNED = Grid(np.dtype(np.uint8), 0, 255, symmetric=False)
SIGNED = Grid(np.dtype(np.int8), -128, 127, symmetric=True)
BIASES = Grid(np.dtype(np.int32), -(2**31) + 1, 2**31 - 1, symmetric=True)
WEIGHTS = Grid(np.dtype(np.int8), -127, 127, symmetric=True)
REDUCED = Grid(np.dtype(np.int8), -64, 64, symmetric=True)
"""Weights of 7 bits: two products with unsigned activations fit into 16 bits, where x86 without VNNI adds them."""


@dataclass(frozen=True, slots=True, eq=False)
class Scale:
    """A grid laid over real numbers; ``step`` and ``zero`` are scalars, or vectors along ``axis``."""

    grid: Grid
    step: Array
    zero: Array
    axis: int | None = None

    def integers(self, values: Array) -> Array:
        """Returns the nearest integers, halves to even as QuantizeLinear does, ends where the grid ends."""
        step, zero = self._along(self.step, values.ndim), self._along(self.zero, values.ndim)
        with np.errstate(over="ignore"):  # the ends are where the grid ends; quotients are of float32, as there
            rounded = np.rint(values / step) + zero
        return np.asarray(np.clip(rounded, self.grid.low, self.grid.high), self.grid.dtype)

    def numbers(self, integers: Array) -> Array:
        """Returns what integers stand for, float32."""
        step, zero = self._along(self.step, integers.ndim), self._along(self.zero, integers.ndim)
        return np.asarray((integers.astype(np.float32) - zero.astype(np.float32)) * step, np.float32)

    def rounded(self, values: Array) -> Array:
        """Returns the nearest numbers on the grid, float32."""
        return self.numbers(self.integers(values))

    def _along(self, vector: Array, rank: int) -> Array:
        if self.axis is None:
            return vector
        return vector.reshape([-1 if dim == self.axis % rank else 1 for dim in range(rank)])


def scale_of(low: Array | float, high: Array | float, grid: Grid, axis: int | None = None) -> Scale:
    """Returns the grid over ranges, which always take in zero: it stands for padding, and for weights that are gone.

    Args:
        low: Smallest numbers, a scalar or one for each index of ``axis``.
        high: Largest numbers.
        grid: The integers.
        axis: The axis of vectors.
    """
    low, high = np.minimum(np.asarray(low, np.float64), 0.0), np.maximum(np.asarray(high, np.float64), 0.0)
    width = 2 * np.maximum(-low, high) if grid.symmetric else high - low
    step = np.asarray(np.maximum(width / grid.steps, SMALLEST), np.float32)
    zero = np.zeros(step.shape) if grid.symmetric else np.clip(np.rint(grid.low - low / step), grid.low, grid.high)
    return Scale(grid, step, np.asarray(zero, grid.dtype), axis)
