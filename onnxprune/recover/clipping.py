"""Targets behind Relu and Clip: what the function makes the same of is as good as the target itself.

Half of what a convolution computes before a Relu is thrown away, and least squares should not spend itself on it. The
target is an interval there, and the nearest point of it to what is computed now takes its place, round by round, as
in the nonlinear reconstruction of Zhang et al. 2015 (Accelerating Very Deep Convolutional Networks).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxprune.model.io import read_values
from onnxprune.model.linear import Array, Holders
from onnxprune.recover.least_squares import Mask, Method, Solution
from onnxprune.recover.moments import Moments

ROUNDS = 3
"""Most times that the targets move."""


@dataclass(frozen=True, slots=True)
class Clipping:
    """A function that keeps what lies between two limits and sets the rest to them."""

    low: float
    high: float

    def of(self, values: Array) -> Array:
        """Returns what the function makes of values."""
        return np.clip(values, self.low, self.high)

    def nearest(self, wanted: Array, made: Array) -> Array:
        """Returns the nearest to ``made`` of all values of which the function makes the same as of ``wanted``."""
        above = np.where(wanted >= self.high, np.maximum(made, self.high), wanted)
        return np.where(wanted <= self.low, np.minimum(made, self.low), above)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Rows [g, R, n] and what the result should be behind the clipping, [g, R, m]: result * scale + offset."""

    rows: NDArray[np.floating]
    wanted: Array
    scale: Array
    offset: Array
    held_out: bool

    def made(self, matrix: Array, bias: Array) -> Array:
        """Returns what a matrix makes of the rows."""
        made = self.rows @ matrix.astype(self.rows.dtype)
        return (made + bias[:, None]) * self.scale + self.offset

    def result(self, total: Array) -> Array:
        """Returns what the operator has to compute for it."""
        return (total - self.offset) / self.scale


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """A method of repair, with moments of the rows of one operator to fit and held out.

    ``task`` is the function behind the operator, if any, and the same rows once more, run by run.
    """

    method: Method
    sums: tuple[Moments, Moments]
    task: tuple[Clipping, Callable[[], Iterator[Batch]]] | None = None

    def error(self, matrix: Array, bias: Array) -> float:
        """Returns the mean squared error on held-out rows, behind the function."""
        if self.task is None:
            return self.sums[1].error(matrix, bias)
        return _tried((matrix, bias), self.sums, self.task[0], self.task[1]())[0]

    def solve(self, matrix: Array, bias: Array, free: Mask | None = None) -> Solution:
        """Returns the best weights that were found, from those that are given; they change where they are ``free``."""
        if self.task is None:
            return self.method(*self.sums, matrix, bias, free)
        return refined(self.method, self.sums, (matrix, bias), free, self.task)


class Decision(Protocol):
    """What decides about the weights of one operator where they cannot be any: masks, or a grid."""

    def decide(self, fit: Fit, matrix: Array, bias: Array, /) -> Solution:
        """Returns admitted weights [g, n, m] and a bias [g, m], those that are given where nothing better is found."""


def clipping_of(readers: Sequence[gs.Node], holders: Holders) -> Clipping | None:
    """Returns the function that all readers of a tensor apply to it, if it is one Relu or Clip."""
    found = {_limits(node, holders) for node in readers}
    limits = found.pop() if len(found) == 1 else None
    return None if limits is None else Clipping(*limits)


def refined(
    method: Method,
    sums: tuple[Moments, Moments],
    start: tuple[Array, Array],
    free: Mask | None,
    task: tuple[Clipping, Callable[[], Iterator[Batch]]],
) -> Solution:
    """Returns the best of several rounds, judged by the error on held-out rows behind the clipping.

    Args:
        method: Fits moments.
        sums: Moments of the rows to fit and of the held-out ones, with the plain targets.
        start: Matrix [g, n, m] and bias [g, m] that the operator has.
        free: Where the matrix may change.
        task: The function behind the operator, and the same rows once more, run by run.
    """
    clipping, batches = task
    before, _ = _tried(start, sums, clipping, batches())
    best = Solution(*start, before, before)
    found = method(*sums, *start, free)
    for _ in range(ROUNDS):
        error, aimed = _tried((found.matrix, found.bias), sums, clipping, batches())
        if error >= best.after:
            break
        best = Solution(found.matrix, found.bias, before, error)
        found = method(*aimed, best.matrix, best.bias, free)
    return best


def _tried(
    weights: tuple[Array, Array], sums: tuple[Moments, Moments], clipping: Clipping, batches: Iterator[Batch]
) -> tuple[float, tuple[Moments, Moments]]:
    """Returns the held-out error behind the clipping, and the sums with targets that are nearest to what is made."""
    aimed = sums[0].aimed_anew(), sums[1].aimed_anew()
    error, count = 0.0, 0
    for batch in batches:
        made = batch.made(*weights)
        aimed[batch.held_out].aim(batch.rows, batch.result(clipping.nearest(batch.wanted, made)))
        if batch.held_out:
            error += float(np.square(clipping.of(made) - clipping.of(batch.wanted)).sum())
            count += batch.rows.shape[1]
    return error / max(count, 1), aimed


def _limits(node: gs.Node, holders: Holders) -> tuple[float, float] | None:
    if node.op == "Relu":
        return 0.0, np.inf
    if node.op != "Clip":
        return None
    limits = []
    for slot, (name, default) in enumerate((("min", -np.inf), ("max", np.inf)), 1):
        given = slot < len(node.inputs) and node.inputs[slot].name
        held = holders.get(node.inputs[slot]) if given else None
        if given and held is None:
            return None
        limits.append(float(node.attrs.get(name, default)) if held is None else float(read_values(held).reshape(-1)[0]))
    return limits[0], limits[1]
