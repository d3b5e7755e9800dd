"""Weights in blocks: integers that share a scale with the few rows beside them, and the search for good ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.quantize.compensation import Compensation

Array = NDArray[Any]

CLIPPING = np.linspace(1.0, 0.6, 17)
"""Fractions of the range of a block that compete; 7/8 puts the far end of a signed range of 4 bits to use."""

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


def compensated(known: Compensation, matrix: Array, start: Blocks, free: NDArray[np.bool_]) -> Blocks:
    """Returns a matrix rounded row by row, while later rows make up for the error.

    Args:
        known: What is known of the inputs.
        matrix: [g, n, m].
        start: Its scales and zero points.
        free: Where numbers may be other than zero, [g, n, m].
    """
    grid = start.grid
    scale, zero = (spread(part, grid.rows, matrix.shape[1]) for part in (start.scale, start.zero))
    step, integers = scale.astype(np.float64), np.empty(matrix.shape, np.int16)

    def rounded(row: int, wanted: Array) -> Array:
        made = np.clip(np.rint(wanted / step[:, row]) + zero[:, row], grid.low, grid.high)
        integers[:, row] = np.where(free[:, row], made, zero[:, row])
        return np.asarray((integers[:, row] - zero[:, row]) * step[:, row])

    known.compensated(matrix, rounded)
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
