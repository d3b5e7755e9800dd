"""How far the outputs of a graph are from those of the original: what judges allocations."""

from collections.abc import Sequence

import numpy as np

from onnxprune.runtime.session import Session
from onnxprune.runtime.walk import Feeds, Kept, Memory, read

FLOOR = 1e-6
"""Smallest variance of an output that counts, as a fraction of its mean square: what is constant has none."""


class Reference:
    """Outputs of the original on some runs; what does not fit into memory lies in files.

    Arrays of floats are judged, where the original's numbers are finite.
    """

    def __init__(self, session: Session, feeds: Sequence[Feeds], memory: Memory) -> None:
        self._feeds = feeds
        self._memory = memory  # whose files go with it
        self._expected: list[dict[str, Kept]] = []
        sums: dict[str, np.ndarray] = {}
        for feed in feeds:
            found = {name: value for name, value in session.run(feed).items() if _judged(value)}
            self._expected.append({name: memory.keep(value) for name, value in found.items()})
            for name, value in found.items():
                numbers = value[np.isfinite(value)].astype(np.float64)
                moments = np.array([numbers.size, numbers.sum(), np.square(numbers).sum()])
                sums[name] = sums.get(name, np.zeros(3)) + moments
        self._scales: dict[str, float] = {}
        for name, (count, total, squares) in sums.items():
            mean, square = total / max(count, 1), squares / max(count, 1)
            if square > 0:
                self._scales[name] = count * max(square - mean * mean, FLOOR * square)

    @property
    def judges(self) -> bool:
        """Whether there is any output to judge by."""
        return bool(self._scales)

    def divergence(self, session: Session) -> float:
        """Returns the squared error relative to the variance of each output, the mean over outputs.

        It is infinite where an output is not finite and the original's is.
        """
        errors = dict.fromkeys(self._scales, 0.0)
        for feed, expected in zip(self._feeds, self._expected, strict=True):
            found = session.run(feed)
            for name in errors:
                wanted = read(expected[name])
                good = np.isfinite(wanted)
                difference = found[name][good].astype(np.float64) - wanted[good]
                errors[name] += float(np.square(difference).sum()) if np.isfinite(difference).all() else np.inf
        return float(np.mean([error / self._scales[name] for name, error in errors.items()])) if errors else 0.0


def _judged(value: object) -> bool:
    return isinstance(value, np.ndarray) and bool(np.issubdtype(value.dtype, np.floating))
