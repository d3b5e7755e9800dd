"""Products that read units, as every operator that contracts channels describes them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from onnxprune.channels.facts import Axis
from onnxprune.model.linear import Array
from onnxprune.runtime.walk import Walk

Index = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """One product: ``width`` rows for every channel of the axis from ``first`` on.

    ``covariance`` is [n, n], ``weights`` [n, m], ``energy`` the variance of everything that the operator computes.
    Where the weights are those of a linear operator, ``result`` is what it writes, ``part`` which of its products this
    is, and ``means`` [n] are those of what it reads.
    """

    axis: Axis
    covariance: Array
    weights: Array
    energy: float
    first: int = 0
    width: int = 1
    result: str = ""
    part: int = 0
    means: Array | None = None

    def rows(self, channels: Index, units: Index) -> tuple[Index, Index] | None:
        """Returns the units that the product reads, and the rows of each; both are in the order of the units."""
        place = channels - self.first
        inside = (place >= 0) & (place < len(self.weights) // self.width)
        if not inside.any():
            return None
        found = np.unique(units[inside])
        rows = place[inside][:, None] * self.width + np.arange(self.width)
        return found, rows.reshape(found.size, -1)


class Source(Protocol):
    """An operator that contracts channels."""

    @property
    def position(self) -> int:
        """Its place in the graph."""

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The axes whose units it reads."""

    def blocks(self, walk: Walk, random: np.random.Generator) -> Iterator[Block]:
        """Yields its products.

        Raises:
            ModelError: ONNX Runtime cannot run a part of the graph.
        """
