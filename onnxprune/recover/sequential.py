"""Repair in graph order: every operator is fitted to the original on what the network repaired so far feeds it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.model.graph import read_by
from onnxprune.model.io import Graph, read_values
from onnxprune.model.linear import Array, Holders, Linear, bias_of, linear_nodes
from onnxprune.model.sizes import generic_shapes
from onnxprune.ops.forms import draw, rows_per_run
from onnxprune.recover.least_squares import Solution
from onnxprune.recover.moments import Moments
from onnxprune.recover.targets import Residual, residual_of
from onnxprune.runtime.session import SessionOptions
from onnxprune.runtime.walk import Feeds, Memory, Walk

Method = Callable[[Moments, Moments, Array, Array], Solution]
"""Fits moments, judges by held-out ones, starts from a matrix [g, n, m] and a bias [g, m]."""


class Correspondence(Protocol):
    """What of an original tensor is left in the pruned graph."""

    def take(self, name: str, values: np.ndarray) -> np.ndarray:
        """Returns the part of the values that stays."""

    def fewer(self, name: str) -> Mapping[int, int]:
        """Returns by how many channels each dimension of a tensor shrinks."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Runs to fit, and other runs to judge by."""

    fitted: Sequence[Feeds]
    held_out: Sequence[Feeds]
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Settings:
    """How to repair.

    ``residual`` fits the sum behind an operator whose result is only added to something else; ``memory`` is in bytes.
    """

    method: Method
    residual: bool = True
    memory: int = 2 << 30
    options: SessionOptions | None = None


@dataclass(frozen=True, slots=True)
class Repaired:
    """What became of one operator: mean squared error on held-out rows, relative to the variance of the target."""

    node: str
    before: float
    after: float

    @property
    def kept(self) -> bool:
        """Whether the repair was kept."""
        return self.after < self.before


def repair(
    pruned: Graph, original: Graph, left: Correspondence, calibration: Calibration, settings: Settings
) -> tuple[Graph, list[Repaired]]:
    """Returns a repaired copy of the pruned graph, and what became of every operator behind the first change.

    Raises:
        ModelError: ONNX Runtime cannot run a part of a graph.
    """
    result = pruned.copy()
    sequence = _Sequence(result, original, left, calibration, settings)
    for name in list(sequence.waiting):
        sequence.repair(name)
    return result, sequence.found


class _Sequence:
    """Two walks side by side; ``waiting`` are the operators to repair by the name of their result."""

    def __init__(
        self, pruned: Graph, original: Graph, left: Correspondence, calibration: Calibration, settings: Settings
    ) -> None:
        self._settings, self._left, self._calibration = settings, left, calibration
        memory = Memory(settings.memory)
        feeds = [*calibration.fitted, *calibration.held_out]
        self._pruned = Walk(pruned, feeds, memory, settings.options)
        self._original = Walk(original, feeds, memory, settings.options)
        self._random = np.random.default_rng(calibration.seed)
        self._producers = {tensor.name: node for node in pruned.nodes for tensor in node.outputs}
        self._known = {tensor.name for node in original.nodes for tensor in node.outputs}
        self._holders = Holders(pruned)
        changed = _changed(pruned, left)
        self.waiting: dict[str, Linear] = {
            linear.result: linear
            for linear in linear_nodes(pruned, generic_shapes(pruned)[0], self._holders)
            if linear.result in self._known and linear.data in changed
        }
        self.found: list[Repaired] = []
        self._active: set[str] = set()

    def repair(self, name: str) -> None:
        """Repairs an operator, after those that make what its result is added to."""
        linear = self.waiting.pop(name, None)
        if linear is None:
            return
        self._active.add(name)
        residual = self._residual(linear)
        if residual is not None:
            for above in self._unsolved(residual.other):
                self.repair(above)
        self._active.remove(name)
        wanted = [linear.data] if residual is None else [linear.data, residual.other]
        goal = name if residual is None else residual.total
        self._pruned.reach(wanted)
        self._original.reach([goal])
        fitted, held_out = self._moments(linear, goal, residual)
        self._pruned.release(wanted)
        self._original.release([goal])
        self._fit(linear, fitted, held_out)

    def _fit(self, linear: Linear, fitted: Moments, held_out: Moments) -> None:
        matrix, bias, spread = linear.matrix(), _own_bias(linear), held_out.variance
        place = bias_of(linear, self._holders)
        if place is None:  # a shift could not be stored
            fitted, held_out, bias = fitted.fixed(bias), held_out.fixed(bias), np.zeros_like(bias)
        found = self._settings.method(fitted, held_out, matrix, bias)
        self.found.append(Repaired(linear.name, found.before / spread, found.after / spread))
        if not found.better:
            return
        linear.write(found.matrix)
        shift = (found.bias - bias).reshape(-1)
        if place is not None and shift.any():
            place.add(shift, read_values(linear.stored).dtype)

    def _moments(self, linear: Linear, goal: str, residual: Residual | None) -> tuple[Moments, Moments]:
        shape = linear.matrix().shape
        sums = Moments.empty(*shape), Moments.empty(*shape)
        share = rows_per_run(shape[1], self._pruned.runs)
        for number, (data, target) in enumerate(self._pairs(linear, goal, residual)):
            chosen = draw(linear.form, target, share, self._random)
            sums[number >= len(self._calibration.fitted)].add(*linear.form.rows(data, target, chosen))
        return sums

    def _pairs(self, linear: Linear, goal: str, residual: Residual | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields data of the pruned network and what should be made of it, run by run."""
        pairs = zip(self._pruned.values(linear.data), self._original.values(goal), strict=True)
        others = iter(()) if residual is None else self._pruned.values(residual.other)
        for data, total in pairs:
            target = self._left.take(goal, total)
            if residual is not None:
                target = residual.wanted(target, next(others), linear.form.output)
            yield data, target

    def _residual(self, linear: Linear) -> Residual | None:
        """Returns the sum to fit, where the other summand can be computed first.

        Of two branches that are both to be repaired the shorter one comes first, and is fitted to its own target.
        """
        found = residual_of(linear, self._holders) if self._settings.residual else None
        if found is None or found.total not in self._known or self._active & self._above(found.other):
            return None
        return found if len(self._unsolved(found.other)) <= 1 else None

    def _unsolved(self, name: str) -> list[str]:
        """Returns what is to be repaired above a tensor, in graph order."""
        above = self._above(name)
        return [result for result in self.waiting if result in above]

    def _above(self, name: str) -> set[str]:
        """Returns a tensor and all that it is computed from."""
        seen: set[str] = set()
        waiting = [name]
        while waiting:
            one = waiting.pop()
            if one not in seen:
                seen.add(one)
                node = self._producers.get(one)
                waiting += read_by(node) if node is not None else ()
        return seen


def _own_bias(linear: Linear) -> Array:
    """Returns what the operator itself adds, [g, m]."""
    matrix = linear.matrix()
    node = linear.node
    width = matrix.shape[0] * matrix.shape[2]
    vector = np.zeros(width)
    if node.op != "MatMul" and len(node.inputs) > 2 and isinstance(node.inputs[2], gs.Constant):
        vector = vector + read_values(node.inputs[2]).reshape(-1) * float(node.attrs.get("beta", 1.0))
    return vector.reshape(matrix.shape[0], -1)


def _changed(graph: Graph, left: Correspondence) -> set[str]:
    """Returns the tensors that lack channels, and those that are computed from them."""
    changed: set[str] = set()
    for node in graph.nodes:
        if not changed.isdisjoint(read_by(node)) or any(left.fewer(tensor.name) for tensor in node.outputs):
            changed.update(tensor.name for tensor in node.outputs)
    return changed
