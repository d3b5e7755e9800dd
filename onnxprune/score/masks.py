"""Which weights a mask keeps: the patterns of zeros, and the scores that say what goes first.

Weights come as [g, n, m]: in each of g groups a matrix from n inputs to m outputs. Rows are arranged so that input
channels are consecutive at each kernel position (:func:`arranged`), which is how sparse kernels read them.
"""

import re
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import UsageError

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

LARGEST_GROUP = 32
"""Longest group of an N:M pattern, and longest side of a block."""


class Pattern(Protocol):
    """Where zeros may stand."""

    @property
    def inputs(self) -> int:
        """Number of consecutive input channels that are decided together."""

    @property
    def outputs(self) -> int:
        """Number of consecutive output channels that are decided together."""

    def zeros(self, size: int, fraction: float) -> int:
        """Returns how many of so many weights become zero where a fraction is asked for."""

    def keep(self, scores: Array, zeros: int, spare: bool = True) -> Mask:
        """Returns which weights stay: those of the highest scores, ties to the later ones.

        Args:
            scores: Importance of every weight, [g, n, m]; those of weights that share a decision are added.
            zeros: Number of weights to take.
            spare: Whether each output keeps at least its best.
        """

    def spared(self, scores: Array) -> Mask:
        """Returns the best weights of every output, without which it could be empty."""


@dataclass(frozen=True, slots=True)
class Unstructured:
    """Zeros anywhere."""

    inputs: int = 1
    outputs: int = 1

    def __str__(self) -> str:
        return "unstructured"

    def zeros(self, size: int, fraction: float) -> int:
        """Returns the nearest number."""
        return round(size * fraction)

    def keep(self, scores: Array, zeros: int, spare: bool = True) -> Mask:
        """Returns all but the lowest."""
        return _all_but_lowest(scores, zeros, spare)

    def spared(self, scores: Array) -> Mask:
        """Returns the best weight of every output."""
        return _all_but_lowest(scores, scores.size, spare=True)


@dataclass(frozen=True, slots=True)
class Block:
    """Zeros in blocks of ``outputs`` x ``inputs`` consecutive channels at one kernel position.

    ``1x4`` is one output channel and four of those that are summed over, ``4x1`` four output channels and one input.
    """

    outputs: int
    inputs: int

    def __str__(self) -> str:
        return f"{self.outputs}x{self.inputs}"

    def zeros(self, size: int, fraction: float) -> int:
        """Returns the nearest number of weights in whole blocks."""
        block = self.inputs * self.outputs
        return round(size * fraction / block) * block

    def keep(self, scores: Array, zeros: int, spare: bool = True) -> Mask:
        """Returns all but the blocks of the lowest sums."""
        groups, rows, columns = scores.shape
        blocks = scores.reshape(groups, rows // self.inputs, self.inputs, columns // self.outputs, self.outputs)
        kept = _all_but_lowest(blocks.sum(axis=(2, 4)), zeros // (self.inputs * self.outputs), spare)
        return kept.repeat(self.inputs, axis=1).repeat(self.outputs, axis=2)

    def spared(self, scores: Array) -> Mask:
        """Returns the best block of every output."""
        return self.keep(scores, scores.size)


@dataclass(frozen=True, slots=True)
class PerGroup:
    """N:M: ``kept`` of every ``size`` consecutive input channels stay, for each output channel and kernel position.

    2:4 is what sparse tensor cores multiply (Mishra et al. 2021, Accelerating Sparse Deep Neural Networks).
    """

    kept: int
    size: int

    def __str__(self) -> str:
        return f"{self.kept}:{self.size}"

    @property
    def inputs(self) -> int:
        """Number of consecutive input channels that are decided together."""
        return self.size

    @property
    def outputs(self) -> int:
        """Every output is decided alone."""
        return 1

    def zeros(self, size: int, fraction: float = 0.0) -> int:
        """Returns the number that the pattern fixes."""
        return size // self.size * (self.size - self.kept)

    def keep(self, scores: Array, zeros: int = 0, spare: bool = True) -> Mask:
        """Returns the best of each group; the other arguments do not matter."""
        groups, rows, columns = scores.shape
        split = scores.reshape(groups, rows // self.size, self.size, columns)
        order = np.argsort(split, axis=2, kind="stable")
        kept = np.ones(split.shape, np.bool_)
        np.put_along_axis(kept, order[:, :, : self.size - self.kept], False, axis=2)
        return kept.reshape(scores.shape)

    def spared(self, scores: Array) -> Mask:
        """Returns none: no group becomes empty."""
        return np.zeros(scores.shape, np.bool_)


def pattern_of(text: str) -> Pattern:
    """Returns the pattern that a word means: ``unstructured``, ``2:4`` or ``1x4``, as patterns print themselves.

    Raises:
        UsageError: there is no such pattern.
    """
    found = re.fullmatch(r"(\d{1,4})([:x])(\d{1,4})", text.strip())
    if text.strip() == "unstructured":
        return Unstructured()
    left, right = (int(found[1]), int(found[3])) if found else (0, 0)
    if found and found[2] == ":" and 0 < left < right <= LARGEST_GROUP:
        return PerGroup(left, right)
    if found and found[2] == "x" and min(left, right) > 0 and max(left, right) <= LARGEST_GROUP:
        return Block(left, right)
    raise UsageError(
        f"there is no pattern {text!r} of zeros: give N:M with 0 < N < M <= {LARGEST_GROUP} for N kept of every M, or "
        f"KxL for blocks of K output and L input channels, up to {LARGEST_GROUP} each"
    )


def arranged(matrix: Array, spread: int) -> Array:
    """Returns rows (channel, position) of [g, n, m] in the order (position, channel); ``spread`` positions each."""
    groups, rows, columns = matrix.shape
    return matrix.reshape(groups, rows // spread, spread, columns).swapaxes(1, 2).reshape(matrix.shape)


def arranged_back(matrix: NDArray[Any], spread: int) -> NDArray[Any]:
    """Returns rows (position, channel) of [g, n, m] in the order (channel, position)."""
    groups, rows, columns = matrix.shape
    return matrix.reshape(groups, spread, rows // spread, columns).swapaxes(1, 2).reshape(matrix.shape)


def magnitude(weights: Array) -> Array:
    """Returns the squares of the weights (LeCun et al. 1990; Han et al. 2015)."""
    return np.square(weights)


def lamp(weights: Array) -> Array:
    """Returns squares of weights as parts of the sum of those that are no smaller (Lee et al. 2021, LAMP).

    They compare across tensors: the largest of each is 1.
    """
    flat = np.square(weights).ravel()
    order = np.argsort(flat, kind="stable")
    scores = np.empty_like(flat)
    scores[order] = flat[order] / np.maximum(np.cumsum(flat[order][::-1])[::-1], np.finfo(np.float64).tiny)
    return scores.reshape(weights.shape)


def wanda(weights: Array, moments: Array) -> Array:
    """Returns the squares of |w| times the norm of the input that it multiplies (Sun et al. 2023, Wanda).

    Args:
        weights: [g, n, m].
        moments: Second moments of the inputs, [g, n, n].
    """
    return np.asarray(np.square(weights) * np.einsum("gii->gi", moments)[:, :, None])


def _all_but_lowest(scores: Array, count: int, spare: bool) -> Mask:
    if spare:
        best = np.argmax(scores, axis=1, keepdims=True)
        alive = np.take_along_axis(scores, best, axis=1) > 0
        scores = scores.copy()
        np.put_along_axis(scores, best, np.where(alive, np.inf, np.take_along_axis(scores, best, axis=1)), axis=1)
        count = min(count, int(np.count_nonzero(np.isfinite(scores))))
    kept = np.ones(scores.size, np.bool_)
    if count > 0:
        flat = scores.ravel()
        limit = np.partition(flat, count - 1)[count - 1]
        kept = flat >= limit
        kept[np.flatnonzero(flat == limit)[: count - np.count_nonzero(~kept)]] = False
    return kept.reshape(scores.shape)
