"""Weights in blocks: integers that share a scale with the few rows beside them, and the search for good ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

CLIPPING = np.linspace(1.0, 0.6, 17)
"""Fractions of the range of a block that compete; 7/8 puts the far end of a signed range of 4 bits to use."""

SILENT = 1e-100
"""Mean squares up to here are those of inputs that were never other than zero."""

LAZY = 128
"""Rows between two updates of all rows below."""

CHUNK = 2**18
"""Numbers that the search looks at together: few enough for the cache of a core."""


@dataclass(frozen=True, slots=True)
class BlockGrid:
    """What a block is rounded to: ``bits``-wide integers, around zero or from a zero point on.

    ``rows`` are the inputs of an output that share a scale; ``real`` is the type of scales.
    """

    bits: int
    rows: int
    symmetric: bool
    real: np.dtype[Any]

    @property
    def low(self) -> int:
        """Smallest integer."""
        return -(1 << self.bits - 1) if self.symmetric else 0

    @property
    def high(self) -> int:
        """Largest integer."""
        return self.low + (1 << self.bits) - 1


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """Integers [g, n, m], and scales and zero points [g, blocks, m]; the last block may have fewer rows."""

    grid: BlockGrid
    integers: Array
    scale: Array
    zero: Array

    def numbers(self) -> Array:
        """Returns what the integers stand for, as DequantizeLinear computes it."""
        scale, zero = (spread(part, self.grid.rows, self.integers.shape[1]) for part in (self.scale, self.zero))
        return np.asarray((self.integers - zero).astype(self.grid.real) * scale)


def spread(part: Array, rows: int, count: int) -> Array:
    """Returns one row [g, count, m] for every input, from one [g, blocks, m] for every block."""
    return part.repeat(rows, axis=1)[:, :count]


def nearest(matrix: Array, grid: BlockGrid) -> Blocks:
    """Returns a matrix [g, n, m] rounded to the nearest, with the whole range of every block."""
    return _rounded(matrix, grid, *_scales(_split(matrix, grid.rows), grid, 1.0))


def searched(matrix: Array, grid: BlockGrid, importance: Array | None = None) -> Blocks:
    """Returns a matrix rounded with the scales of least squared error, for every block by itself.

    Args:
        matrix: [g, n, m].
        grid: What it is rounded to.
        importance: Mean squares of the inputs, [g, n], with which errors count; all alike where there are none.
    """
    weight = None if importance is None else _split(importance[:, :, None].astype(matrix.dtype), grid.rows)
    width = max(CHUNK // max(matrix.shape[0] * matrix.shape[1], 1), 1)
    starts = range(0, matrix.shape[2], width)
    parts = [_searched(_split(matrix[:, :, start : start + width], grid.rows), grid, weight) for start in starts]
    scale, zero = (np.concatenate(part, axis=2) for part in zip(*parts, strict=True))
    return _rounded(matrix, grid, scale, zero)


@dataclass(frozen=True, slots=True, eq=False)
class Compensation:
    """How rows make up for the rounding of those before them, in the ``order`` in which they are rounded, [n].

    ``importance`` are mean squares of the inputs [g, n], and ``factor`` the upper Cholesky factor of the inverse of
    their second moments [g, n, n], rows in order.
    """

    order: NDArray[np.intp]
    importance: Array
    factor: Array

    @classmethod
    def of(cls, moments: Array, damping: float) -> Compensation:
        """Returns what second moments [g, n, n] say; ``damping`` is added to them, as a fraction of their mean.

        Where no input was ever other than zero nothing is known of them, and all are alike.
        """
        diagonal = np.einsum("gii->gi", moments)
        mean = diagonal.mean(axis=1)
        ridge = np.where(mean > SILENT, damping * mean, 1.0)
        order = np.argsort(-diagonal.sum(axis=0), kind="stable")
        stable = (moments + ridge[:, None, None] * np.eye(moments.shape[1]))[:, order][:, :, order]
        factor = np.linalg.cholesky(np.linalg.inv(stable)).swapaxes(1, 2)
        return cls(order, diagonal + ridge[:, None], factor)

    def rounded(self, matrix: Array, start: Blocks, free: NDArray[np.bool_]) -> Blocks:
        """Returns a matrix rounded row by row, while later rows make up for the error (Frantar et al. 2022, GPTQ).

        Args:
            matrix: [g, n, m].
            start: Its scales and zero points.
            free: Where numbers may be other than zero, [g, n, m].
        """
        grid, count = start.grid, matrix.shape[1]
        scale, zero = (spread(part, grid.rows, count)[:, self.order] for part in (start.scale, start.zero))
        step, may = scale.astype(np.float64), free[:, self.order]
        wanted, integers = matrix[:, self.order].astype(np.float64), np.empty(matrix.shape, np.int16)
        for first in range(0, count, LAZY):
            stop = min(first + LAZY, count)
            errors = np.empty_like(wanted[:, first:stop])
            for row in range(first, stop):
                made = np.clip(np.rint(wanted[:, row] / step[:, row]) + zero[:, row], grid.low, grid.high)
                made = np.where(may[:, row], made, zero[:, row])
                integers[:, self.order[row]] = made
                error = wanted[:, row] - (made - zero[:, row]) * step[:, row]
                errors[:, row - first] = error / self.factor[:, row, row, None]
                wanted[:, row + 1 : stop] -= self.factor[:, row, row + 1 : stop, None] * errors[:, None, row - first]
            wanted[:, stop:] -= self.factor[:, first:stop, stop:].swapaxes(1, 2) @ errors
        return Blocks(grid, integers, start.scale, start.zero)


def _split(matrix: Array, rows: int) -> Array:
    """Returns [g, n, m] as [g, blocks, rows, m]; zeros fill up the last block."""
    groups, count, columns = matrix.shape
    whole = np.pad(matrix, ((0, 0), (0, -count % rows), (0, 0))) if count % rows else np.ascontiguousarray(matrix)
    return whole.reshape(groups, -1, rows, columns)


def _searched(matrix: Array, grid: BlockGrid, weight: Array | None) -> tuple[Array, Array]:
    best = _scales(matrix, grid, CLIPPING[0])
    least = _errors(matrix, grid, weight, *best)
    for fraction in CLIPPING[1:]:
        found = _scales(matrix, grid, fraction)
        error = _errors(matrix, grid, weight, *found)
        better = error < least
        best = np.where(better, found[0], best[0]), np.where(better, found[1], best[1])
        least = np.minimum(least, error)
    return best


def _errors(matrix: Array, grid: BlockGrid, weight: Array | None, scale: Array, zero: Array) -> Array:
    """Returns the squared error of every block, [g, blocks, m]."""
    step = scale[:, :, None].astype(matrix.dtype)
    shift = 0 if grid.symmetric else zero[:, :, None]
    wrong = matrix / step
    np.rint(wrong, out=wrong)
    np.clip(wrong, grid.low - shift, grid.high - shift, out=wrong)
    wrong *= step
    wrong -= matrix
    np.square(wrong, out=wrong)
    if weight is not None:
        wrong *= weight
    return np.asarray(wrong.sum(axis=2))


def _scales(matrix: Array, grid: BlockGrid, fraction: float) -> tuple[Array, Array]:
    """Returns scales and zero points [g, blocks, m] over a fraction of every block's range, which takes in zero.

    A scale is never less than the smallest normal number, so that a block of zeros divides by none.
    """
    top, bottom = (np.asarray(end, np.float64) for end in (matrix.max(axis=2), matrix.min(axis=2)))
    top, bottom = np.maximum(top, 0) * fraction, np.minimum(bottom, 0) * fraction
    span = np.maximum(top, -bottom) if grid.symmetric else top - bottom
    numbers = np.finfo(grid.real)
    scale = span / (grid.high if grid.symmetric else grid.high - grid.low)
    scale = np.clip(scale, float(numbers.tiny), float(numbers.max)).astype(grid.real)
    if grid.symmetric:
        return scale, np.zeros(scale.shape, np.int32)
    return scale, np.clip(np.rint(-bottom / scale.astype(np.float64)), grid.low, grid.high).astype(np.int32)


def _rounded(matrix: Array, grid: BlockGrid, scale: Array, zero: Array) -> Blocks:
    step, shift = (spread(part, grid.rows, matrix.shape[1]) for part in (scale.astype(matrix.dtype), zero))
    integers = np.clip(np.rint(matrix / step) + shift, grid.low, grid.high)
    return Blocks(grid, integers.astype(np.int16), scale, zero)
