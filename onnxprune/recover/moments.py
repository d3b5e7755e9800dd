"""Second moments of the rows of a linear operator and of what they should make, streamed in float64."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(slots=True)
class Moments:
    """Sums over rows: [x 1]'[x 1] as [g, n+1, n+1], [x 1]'y as [g, n+1, m], and y squared as [g, m]."""

    gram: Array
    cross: Array
    energy: Array

    @classmethod
    def empty(cls, groups: int, inputs: int, outputs: int) -> "Moments":
        """Returns the sums over no rows."""
        return cls(
            np.zeros((groups, inputs + 1, inputs + 1)),
            np.zeros((groups, inputs + 1, outputs)),
            np.zeros((groups, outputs)),
        )

    def add(self, rows: NDArray[np.floating], targets: NDArray[np.floating]) -> None:
        """Adds rows [g, R, n] and their targets [g, R, m]."""
        wide = _wide(rows)
        self.gram += wide.transpose(0, 2, 1) @ wide
        self._aim(wide, targets)

    def aimed_anew(self) -> "Moments":
        """Returns the sums of the same rows without targets, for :meth:`aim`."""
        return Moments(self.gram, np.zeros_like(self.cross), np.zeros_like(self.energy))

    def aim(self, rows: NDArray[np.floating], targets: NDArray[np.floating]) -> None:
        """Adds targets [g, R, m] of rows [g, R, n] that are in the sums already; products in the precision of rows."""
        goal = targets.astype(rows.dtype)
        self.cross[:, :-1] += rows.transpose(0, 2, 1) @ goal
        self.cross[:, -1] += goal.sum(axis=1, dtype=np.float64)
        self.energy += np.square(goal, dtype=np.float64).sum(axis=1)

    def _aim(self, wide: Array, targets: NDArray[np.floating]) -> None:
        goal = targets.astype(np.float64)
        self.cross += wide.transpose(0, 2, 1) @ goal
        self.energy += np.square(goal).sum(axis=1)

    @property
    def count(self) -> float:
        """Number of rows."""
        return float(self.gram[0, -1, -1])

    def fixed(self, bias: Array) -> "Moments":
        """Returns the sums for ``y - bias`` with means of zero, so that nothing fitted to them adds a shift."""
        gram, cross = self.gram.copy(), self.cross - self.gram[:, -1, :, None] * bias[:, None]
        energy = self.energy - 2 * bias * self.cross[:, -1] + self.count * np.square(bias)
        gram[:, -1, :-1] = gram[:, :-1, -1] = cross[:, -1] = 0
        return Moments(gram, cross, energy)

    @property
    def variance(self) -> float:
        """Sum of the variances of y."""
        count = max(self.count, 1.0)
        means = self.cross[:, -1] / count
        return max(float(self.energy.sum() / count - np.square(means).sum()), 1e-30)

    def error(self, matrix: Array, bias: Array) -> float:
        """Returns the mean squared error of ``x @ matrix + bias``; shapes [g, n, m] and [g, m]."""
        wide = np.concatenate([matrix, bias[:, None]], axis=1)
        fitted = np.einsum("gim,gim->", self.gram @ wide, wide)
        total = self.energy.sum() - 2 * np.einsum("gim,gim->", self.cross, wide) + fitted
        return max(float(total), 0.0) / max(self.count, 1.0)

    def centered(self) -> tuple[Array, Array, Array, Array]:
        """Returns covariance [g, n, n], cross covariance [g, n, m], and the means of x and y."""
        count = max(self.count, 1.0)
        x_mean, y_mean = self.gram[:, -1, :-1] / count, self.cross[:, -1] / count
        covariance = self.gram[:, :-1, :-1] / count - x_mean[:, :, None] * x_mean[:, None]
        return covariance, self.cross[:, :-1] / count - x_mean[:, :, None] * y_mean[:, None], x_mean, y_mean


def _wide(rows: NDArray[np.floating]) -> Array:
    return np.concatenate([rows, np.ones((*rows.shape[:2], 1), rows.dtype)], axis=2).astype(np.float64)
