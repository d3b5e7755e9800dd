"""Ridge regression toward the weights that a repaired operator has, with the strength that held-out rows choose.

Channel pruning by least squares goes back to He et al. 2017 (Channel Pruning for Accelerating Very Deep Neural
Networks) and Luo et al. 2017 (ThiNet).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from onnxprune.recover.moments import Array, Moments

Mask = NDArray[np.bool_]

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)
"""Candidates for the ridge, as fractions of the mean variance of an input."""

STEPS = 200
TOLERANCE = 1e-4
"""Conjugate gradients end there, or where the residual is this fraction of what it was."""


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """A matrix [g, n, m] and a bias [g, m], with the mean squared error on held-out rows before and after."""

    matrix: Array
    bias: Array
    before: float
    after: float

    @property
    def better(self) -> bool:
        """Whether held-out rows gain."""
        return self.after < self.before


class Method(Protocol):
    """A way of repair."""

    def __call__(
        self, fitted: Moments, held_out: Moments, matrix: Array, bias: Array, free: Mask | None = None, /
    ) -> Solution:
        """Fits moments and judges by held-out ones.

        Starts from a matrix [g, n, m] and a bias [g, m]; the matrix changes only where it is ``free``.
        """


def solve(
    fitted: Moments,
    held_out: Moments,
    matrix: Array,
    bias: Array,
    free: Mask | None = None,
    strengths: Sequence[float] = STRENGTHS,
) -> Solution:
    """Returns the best of several ridge solutions, judged on held-out rows.

    Args:
        fitted: Moments of the rows to fit.
        held_out: Moments of other rows.
        matrix: What the operator has now, [g, n, m]; the ridge pulls toward it.
        bias: What it adds now, [g, m].
        free: Where the matrix may change, [g, n, m]; everywhere by default.
        strengths: Strengths of the ridge to try.
    """
    covariance, cross, x_mean, y_mean = fitted.centered()
    before = held_out.error(matrix, bias)
    shifted = y_mean - np.einsum("gi,gim->gm", x_mean, matrix)
    best = Solution(matrix, shifted, before, held_out.error(matrix, shifted))
    scale = np.einsum("gii->g", covariance) / max(covariance.shape[1], 1)
    gap = cross - covariance @ matrix
    for strength in strengths:
        ridge = np.maximum(strength * scale, np.finfo(np.float64).tiny)
        damped = covariance + ridge[:, None, None] * np.eye(covariance.shape[1])
        found = matrix + (_solved(damped, gap) if free is None else _solved_where(free, damped, gap))
        offset = y_mean - np.einsum("gi,gim->gm", x_mean, found)
        error = held_out.error(found, offset)
        if error < best.after:
            best = Solution(found, offset, before, error)
    return best if best.better else Solution(matrix, bias, before, before)


def statistics(fitted: Moments, held_out: Moments, matrix: Array, bias: Array, free: Mask | None = None) -> Solution:
    """Returns the matrix with the deviation of every output channel set right, and its mean (Jordan et al. 2022).

    Where what is computed says little about the target, the scale stays near 1; zeros stay zero, ``free`` or not.
    """
    covariance, cross, x_mean, y_mean = fitted.centered()
    made = np.einsum("gim,gij,gjm->gm", matrix, covariance, matrix)
    wanted = np.maximum(fitted.energy / max(fitted.count, 1.0) - np.square(y_mean), 0.0)
    shared = np.einsum("gim,gim->gm", matrix, cross)
    trust = np.clip(np.square(shared) / np.maximum(made * wanted, 1e-30), 0.0, 1.0)
    scale = 1 + trust * (np.sqrt(wanted / np.maximum(made, 1e-30)) - 1)
    scaled = matrix * scale[:, None]
    return _judged(held_out, (matrix, bias), (scaled, y_mean - np.einsum("gi,gim->gm", x_mean, scaled)))


def shift(fitted: Moments, held_out: Moments, matrix: Array, bias: Array, free: Mask | None = None) -> Solution:
    """Returns the matrix as it is, ``free`` or not, and the bias that sets the mean of every output channel right."""
    _, _, x_mean, y_mean = fitted.centered()
    return _judged(held_out, (matrix, bias), (matrix, y_mean - np.einsum("gi,gim->gm", x_mean, matrix)))


def _judged(held_out: Moments, before: tuple[Array, Array], after: tuple[Array, Array]) -> Solution:
    errors = held_out.error(*before), held_out.error(*after)
    return Solution(*after, *errors) if errors[1] < errors[0] else Solution(*before, errors[0], errors[0])


def _solved(damped: Array, gap: Array) -> Array:
    try:
        found = np.asarray(np.linalg.solve(damped, gap), np.float64)
    except np.linalg.LinAlgError:
        found = np.full_like(gap, np.nan)
    if np.isfinite(found).all():
        return found
    values, vectors = np.linalg.eigh(damped)
    floor = np.maximum(values[:, -1:] * 1e-12, np.finfo(np.float64).tiny)
    inverse = np.where(values > floor, 1 / np.maximum(values, floor), 0.0)
    return np.asarray((vectors * inverse[:, None]) @ (vectors.transpose(0, 2, 1) @ gap))


def _solved_where(free: Mask, damped: Array, gap: Array) -> Array:
    """Solves for the free entries of every column, by conjugate gradients on all columns at once.

    The systems of the columns differ in the rows and columns of ``damped`` that they keep, and in nothing else; steps
    that are zero elsewhere keep to them.
    """
    scale = free * _inverse(np.einsum("gii->gi", damped))[:, :, None]
    found = np.zeros_like(gap)
    left = gap.copy()
    step = scale * left
    size = np.einsum("gim,gim->gm", left, step)
    enough = TOLERANCE**2 * size
    for _ in range(STEPS):
        if (size <= enough).all():
            break
        moved = damped @ step
        length = size * _inverse(np.einsum("gim,gim->gm", step, moved))
        found += length[:, None] * step
        left -= length[:, None] * moved
        turned = scale * left
        before, size = size, np.einsum("gim,gim->gm", left, turned)
        step = turned + (size * _inverse(before))[:, None] * step
    return found


def _inverse(values: Array) -> Array:
    """Returns 1 / values, and 0 where rounding left nothing positive."""
    safe = values > 1e-150
    return np.where(safe, 1 / np.where(safe, values, 1.0), 0.0)
