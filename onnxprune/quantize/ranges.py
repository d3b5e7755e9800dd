"""Ranges of tensors: histograms that grow with what they see, and the ways to cut them.

A histogram has a fixed number of bins, whose width doubles whenever a number lies outside: one pass is enough, and the
memory is the same for eight samples and for a million.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune import arguments
from onnxprune.errors import UsageError
from onnxprune.quantize.grids import SMALLEST, Grid, scale_of

Array = NDArray[np.float64]

BINS = 4096
"""Bins of a histogram; at least half of them are in use."""

MOST_READ = 1 << 15
"""Numbers of a tensor that one run adds to its histogram; the ends of the range see all of them."""

Range = tuple[float, float]


@dataclass(slots=True)
class Histogram:
    """Counts of numbers from ``-width * BINS / 2`` on; ``low`` and ``high`` are the ends of all numbers seen."""

    counts: Array
    width: float = 0.0
    low: float = 0.0
    high: float = 0.0

    @classmethod
    def empty(cls) -> Histogram:
        """Returns a histogram of no numbers; zero is in every range."""
        return cls(np.zeros(BINS))

    def add(self, values: NDArray[Any]) -> None:
        """Counts numbers; those that are not finite are left out."""
        flat = values.reshape(-1)
        if flat.size == 0:
            return
        low, high = float(flat.min()), float(flat.max())
        if not np.isfinite(low + high):
            flat = flat[np.isfinite(flat)]
            low, high = float(flat.min(initial=0.0)), float(flat.max(initial=0.0))
        self._cover(low, high)
        sample = flat[:: -(-flat.size // MOST_READ)] if flat.size else flat
        if self.width == 0:
            self.counts[BINS // 2] += sample.size
            return
        places = np.floor(sample * np.float64(1 / self.width)).astype(np.int64) + BINS // 2
        self.counts += np.bincount(np.clip(places, 0, BINS - 1), minlength=BINS)

    def join(self, other: Histogram) -> None:
        """Counts what another histogram has counted."""
        self._cover(other.low, other.high)
        while self.width < other.width:
            self._widen()
        counts, width = other.counts, other.width
        while 0 < width < self.width:
            counts, width = _halved(counts), 2 * width
        self.counts += counts

    def centres(self) -> Array:
        """Returns the middle of every bin."""
        return np.asarray((np.arange(BINS) - BINS // 2 + 0.5) * self.width, np.float64)

    def _cover(self, low: float, high: float) -> None:
        self.low, self.high = min(self.low, low), max(self.high, high)
        largest = max(-self.low, self.high)
        if self.width == 0 and largest > 0:
            self.width = 2.0 ** np.ceil(np.log2(largest / (BINS // 2)))
        while self.width * (BINS // 2) < largest:
            self._widen()

    def _widen(self) -> None:
        self.counts, self.width = _halved(self.counts), 2 * self.width


def _halved(counts: Array) -> Array:
    """Returns the counts in bins of twice the width, zero still in the middle."""
    quarter = BINS // 4
    result = np.zeros(BINS)
    result[quarter : 3 * quarter] = counts[0::2] + counts[1::2]
    return result


def minmax(found: Histogram, grid: Grid) -> Range:
    """Returns the ends."""
    return found.low, found.high


def percentile(share: float) -> Callable[[Histogram, Grid], Range]:
    """Returns what cuts off as many numbers at both ends together as lie beyond a share, such as 0.9999."""

    def cut(found: Histogram, grid: Grid) -> Range:
        below = np.cumsum(found.counts)
        total = max(float(below[-1]), 1.0)
        beyond = (1 - share) / 2 * total
        first, last = int(np.searchsorted(below, beyond, "right")), int(np.searchsorted(below, total - beyond))
        edges = (np.arange(BINS + 1) - BINS // 2) * found.width
        low, high = max(found.low, float(edges[first])), min(found.high, float(edges[min(last + 1, BINS)]))
        return min(low, 0.0), max(high, 0.0)

    return cut


CLIPS = np.linspace(0.2, 1.0, 41)
"""Fractions of the range that are tried for the least squared error."""


Losses = Callable[[Histogram, Array, Array, Grid], Array]
"""What rounding to the grid loses over each of several ranges, given by their ends."""


ADDED_UP = 100.0
"""Numbers that readers add: the errors of rounding cancel each other there, those of cutting have one sign."""

Through = Callable[[Array], Sequence[Array]]
"""What readers see of numbers, each of them."""


def least_squares(found: Histogram, grid: Grid) -> Range:
    """Returns the range whose rounding has the least squared error."""
    return _cut(found, grid, _squared_errors)


def least_squares_behind(found: Histogram, grid: Grid, through: Through) -> Range:
    """Returns the range whose rounding has the least squared error in what readers see of the numbers."""
    filled = found.counts > 0
    centres, counts = found.centres()[filled], found.counts[filled]
    wanted = through(centres)

    def losses(found: Histogram, low: Array, high: Array, grid: Grid) -> Array:
        rounded = scale_of(low, high, grid, 0).rounded(np.broadcast_to(centres, (len(low), centres.size)))
        sums = np.zeros(len(low))
        for seen, right in zip(through(rounded), wanted, strict=True):
            wrong = seen - right
            squares = np.square(wrong) @ counts + ADDED_UP * np.square(wrong @ counts) / counts.sum()
            sums += squares / max(float(np.square(right) @ counts), SMALLEST)
        return np.nan_to_num(sums, nan=np.inf)

    return _cut(found, grid, losses)


def _cut(found: Histogram, grid: Grid, losses: Losses) -> Range:
    """Returns the range that loses least: both ends cut alike, then one at a time where the grid lets them differ."""

    def tried(low: Array, high: Array) -> float:
        lost = losses(found, found.low * low, found.high * high, grid)
        return float(CLIPS[len(CLIPS) - 1 - int(np.argmin(lost[::-1]))])  # of equal ones the widest

    low = high = tried(CLIPS, CLIPS)
    if found.low < 0 < found.high and not grid.symmetric:
        high = tried(np.full(CLIPS.shape, low), CLIPS)
        low = tried(CLIPS, np.full(CLIPS.shape, high))
    return found.low * low, found.high * high


def _squared_errors(found: Histogram, low: Array, high: Array, grid: Grid) -> Array:
    filled = found.counts > 0
    centres = np.broadcast_to(found.centres()[filled], (len(low), int(filled.sum())))
    rounded = scale_of(low, high, grid, 0).rounded(centres)
    return np.asarray(np.square(centres - rounded) @ found.counts[filled])


def entropy(found: Histogram, grid: Grid) -> Range:
    """Returns the range whose rounding loses the least information (Migacz 2017, the divergence that TensorRT took).

    What lies outside counts at the ends of the reference; each step of the grid spreads its counts over its bins that
    are not empty.
    """
    return _cut(found, grid, _divergences)


def _divergences(found: Histogram, low: Array, high: Array, grid: Grid) -> Array:
    return np.array([_divergence(found, *ends, grid) for ends in zip(low, high, strict=True)])


def _divergence(found: Histogram, low: float, high: float, grid: Grid) -> float:
    centres, scale = found.centres(), scale_of(low, high, grid)
    ends = scale.numbers(np.array([grid.low, grid.high]))
    inside = (centres >= ends[0]) & (centres <= ends[1])
    if not inside.any():
        return np.inf
    reference = found.counts[inside].copy()
    reference[0] += found.counts[: np.argmax(inside)].sum()
    reference[-1] += found.counts[len(inside) - np.argmax(inside[::-1]) :].sum()
    steps = scale.integers(centres[inside]).astype(np.int64) - grid.low
    filled = found.counts[inside] > 0
    size = grid.high - grid.low + 1
    bins, sums = np.bincount(steps, filled, size), np.bincount(steps, found.counts[inside], size)
    spread = np.where(filled, sums[steps] / np.maximum(bins[steps], 1), 0.0)
    p, q = reference / max(reference.sum(), 1), spread / max(spread.sum(), 1)
    both = p > 0
    return float(np.sum(p[both] * np.log(p[both] / np.maximum(q[both], 1e-9))))


METHODS: Mapping[str, Callable[[Histogram, Grid], Range]] = {
    "minmax": minmax,
    "percentile": percentile(0.9999),
    "entropy": entropy,
    "mse": least_squares,
}
"""Ways to choose a range, by name."""

AUTO = "auto"
"""All of them compete."""

CANDIDATES: Mapping[str, Callable[[Histogram, Grid], Range]] = {**METHODS, "percentile 99.9": percentile(0.999)}
"""Ranges that compete."""


def method_of(name: str) -> str:
    """Returns the name of a way to choose ranges.

    Raises:
        UsageError: there is none of that name.
    """
    chosen = arguments.word(name, "--calibration")
    if chosen not in (*METHODS, AUTO):
        known = ", ".join((*METHODS, AUTO))
        raise UsageError(f"there is no way {chosen!r} to choose ranges: choose one of {known}")
    return chosen
