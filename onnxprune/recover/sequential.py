"""Repair in graph order: every operator is fitted to the original on what the network repaired so far feeds it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, repeat

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.model.fold import store_moved
from onnxprune.model.graph import read_by
from onnxprune.model.io import Graph, read_values
from onnxprune.model.linear import Array, Holders, Linear, bias_of, linear_nodes
from onnxprune.model.recurrent import Recurrent, recurrent_nodes
from onnxprune.model.shapes import Shapes, ShapeWalk
from onnxprune.model.sizes import generic_shapes
from onnxprune.ops.forms import Index, draw, finite, rows_per_run
from onnxprune.plan.masks import MaskPlan
from onnxprune.recover.clipping import Batch, Decision, Fit, clipping_of
from onnxprune.recover.differences import Correspondence, Differences
from onnxprune.recover.least_squares import Method
from onnxprune.recover.masking import DEFAULT, masked_graph
from onnxprune.recover.moments import Moments
from onnxprune.recover.projection import Projection, projections
from onnxprune.recover.recurrent import Passage, Task, refit, run_alone
from onnxprune.recover.targets import Goal, Residual, residual_of
from onnxprune.runtime.session import SessionOptions
from onnxprune.runtime.walk import Feeds, Memory, Progress, Walk

EXACT = 1e-10
"""Squared error, relative to the variance, below which there is nothing to repair: float32 rounds to about 1e-13."""

REPLAYED, TARGETS = 32, 4
"""Bytes of the limit that must be there for each number of a row that is held, most of them for others; a target, in
float64 and with what is added to it, counts as four."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Runs to fit, and other runs to judge by."""

    fitted: Sequence[Feeds]
    held_out: Sequence[Feeds]
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Settings:
    """How to repair.

    ``residual`` fits the sum behind an operator whose result is only added to something else; ``memory`` is in bytes;
    ``progress`` hears after every operator how much is done. ``masks`` are put in on the way, by a ``criterion``;
    ``decisions`` are others, by the result of the operator. Where ``only`` names results, no others are repaired. A
    ``quick`` repair reads fewer rows, and does not look at what functions behind operators let through.
    """

    method: Method
    residual: bool = True
    memory: int = 2 << 30
    options: SessionOptions | None = None
    progress: Progress | None = None
    masks: MaskPlan | None = None
    criterion: str = DEFAULT
    decisions: Mapping[str, Decision] = field(default_factory=dict)
    only: frozenset[str] | None = None
    quick: bool = False


@dataclass(frozen=True, slots=True)
class Repaired:
    """What became of one operator: mean squared error on held-out rows, relative to the variance of the target.

    Behind an operator whose result goes through Relu or Clip it is the error of what they let through.
    """

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
    """Returns a repaired copy of the pruned graph, and what became of every operator that differs or reads what does.

    Tensors of the original that the pruned graph lacks, or has in another shape, are no targets.

    Raises:
        ModelError: ONNX Runtime cannot run a part of a graph.
    """
    result, original = pruned.copy(), original.copy()
    store_moved(result)
    store_moved(original)
    result, maskings = masked_graph(result, settings.masks, settings.criterion)
    sequence = _Sequence(result, original, left, calibration, settings)
    sequence.decisions = {**settings.decisions, **maskings}
    names = list(sequence.waiting)
    for number, name in enumerate(names, 1):
        sequence.repair(name)
        if settings.progress is not None:
            settings.progress("recover", number / len(names))
    return result, sequence.found


class _Sequence:
    """Two walks side by side.

    ``waiting`` are the operators to repair by the name of their result, ``decisions`` who decides where.
    """

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
        expected, sizes = generic_shapes(original)
        shapes = ShapeWalk(pruned, sizes).run()
        self._shapes = shapes.shapes
        self._targets = _targets(pruned, shapes, expected, left)
        self._holders = Holders(pruned)
        self._readers = readers_of(pruned)
        self._differences = Differences(pruned, original, left)
        self._twins = {one.result: one for one in linear_nodes(original, expected, Holders(original))}
        self._graph = pruned
        self._recurrent = {one.result: one for one in recurrent_nodes(original, Holders(original))}
        linear = [one for one in linear_nodes(pruned, shapes, self._holders) if one.result in self._targets]
        self._fitted = len(calibration.fitted)
        self._sides: dict[str, list[Projection]] = {}
        for side in projections(pruned, original, expected, left):
            self._sides.setdefault(side.result, []).append(side)
        fitted = {one.result for one in linear}  # a normalization of these alone has nothing left to make up for
        other = self._differences.results
        recurrent = recurrent_nodes(pruned, self._holders)
        touched = (
            one for one in linear if one.result in self._sides or self._differences.touch(one) or self._sums_anew(one)
        )
        found: list[Linear | Recurrent] = [
            *(one for one in touched if not one.scales or one.data not in fitted or one.result in other),
            *(one for one in recurrent if one.result in self._recurrent and one.result in self._differences.tensors),
        ]
        wanted = [one for one in found if settings.only is None or one.result in settings.only]
        self.waiting = {one.result: one for one in sorted(wanted, key=lambda one: one.position)}
        self.found: list[Repaired] = []
        self.decisions: Mapping[str, Decision] = {}
        self._active: set[str] = set()

    def repair(self, name: str) -> None:
        """Repairs an operator, after those that make what its result is added to."""
        linear = self.waiting.pop(name, None)
        if linear is None:
            return
        if isinstance(linear, Recurrent):
            self._refit(linear, self._recurrent[name])
            return
        self._active.add(name)
        goal = self._goal(linear)
        for above in self._unsolved(goal.pruned):
            self.repair(above)
        self._active.remove(name)
        wanted = [linear.data, *goal.pruned]
        self._pruned.reach(wanted)
        self._original.reach(goal.original)
        self._fit(linear, goal)
        self._pruned.release(wanted)
        self._original.release(goal.original)

    def _refit(self, recurrent: Recurrent, original: Recurrent) -> None:
        read, wanted = sorted(read_by(recurrent.node)), [original.data, original.result]
        self._pruned.reach(read)
        self._original.reach(wanted)
        feeds = [dict(zip(read, values, strict=True)) for values in zip(*map(self._pruned.values, read), strict=True)]
        pairs = zip(*map(self._original.values, wanted), strict=True)
        passages = [
            Passage(feed[recurrent.data], data, result, self._left.take(original.result, result))
            for feed, (data, result) in zip(feeds, pairs, strict=True)
        ]
        weights = original.node.inputs[2].name
        rows = np.broadcast_to(np.arange(original.states.shape[1])[:, None], original.states.shape)
        task = Task(
            recurrent,
            original,
            self._left.take(weights, rows)[0, :, 0],
            passages,
            self._fitted,
            lambda: run_alone(self._graph, recurrent, feeds, self._settings.options),
        )
        before, after = refit(task, self._settings.method, self._random)
        self.found.append(Repaired(recurrent.name, before, after))
        self._pruned.release(read)
        self._original.release(wanted)

    def _fit(self, linear: Linear, goal: Goal) -> None:
        chosen, fitted, held_out = self._moments(linear, goal)
        matrix, bias, spread = linear.matrix(), linear.bias(), held_out.variance
        place = bias_of(linear, self._holders)
        if place is None:  # a shift could not be stored
            fitted, held_out, bias = fitted.fixed(bias), held_out.fixed(bias), np.zeros_like(bias)
        before = held_out.error(matrix, bias) / spread
        if before < EXACT:
            return
        free = self._differences.free(linear, self._twins.get(linear.result))
        readers = () if place is None or self._settings.quick else self._readers.get(goal.total, ())
        clipping = clipping_of(readers, self._holders)
        task = None if clipping is None else (clipping, self._replayed(linear, goal, chosen))
        fit = Fit(self._settings.method, (fitted, held_out), task)
        decision = self.decisions.get(linear.result)
        found = fit.solve(matrix, bias, free) if decision is None else decision.decide(fit, matrix, bias)
        self.found.append(Repaired(linear.name, found.before / spread, found.after / spread))
        if not found.better:
            return
        linear.write(found.matrix)
        shift = (found.bias - bias).reshape(-1)
        if place is not None and shift.any():
            place.add(shift, read_values(linear.stored).dtype)

    def _moments(self, linear: Linear, goal: Goal) -> tuple[list[Index], Moments, Moments]:
        """Returns the places that were drawn of every run, and the moments of their rows to fit and held out."""
        shape = linear.matrix().shape
        sums = Moments.empty(*shape), Moments.empty(*shape)
        share = rows_per_run(shape[1], self._pruned.runs, few=self._settings.quick)
        drawn = []
        for number, (data, target) in enumerate(self._pairs(linear, goal)):
            chosen = draw(linear.form, target, share, self._random)
            rows, wanted = linear.form.rows(data, target, chosen)
            good = finite(rows, wanted)
            drawn.append(chosen[good])
            sums[number >= self._fitted].add(rows[:, good], wanted[:, good])
        return drawn, *sums

    def _replayed(self, linear: Linear, goal: Goal, drawn: Sequence[Index]) -> Callable[[], Iterator[Batch]]:
        """Returns what yields the same rows as often as it is asked; they are read once where they fit into memory."""
        groups, inputs, outputs = linear.matrix().shape
        numbers = sum(map(len, drawn)) * groups * (inputs + TARGETS * outputs)
        if REPLAYED * numbers > self._settings.memory:
            return lambda: self._batches(linear, goal, drawn)
        held = list(self._batches(linear, goal, drawn))
        return lambda: iter(held)

    def _batches(self, linear: Linear, goal: Goal, drawn: Sequence[Index]) -> Iterator[Batch]:
        """Yields the same rows once more, with what counts behind the operator."""
        form, groups = linear.form, linear.matrix().shape[0]
        residual = goal.residual
        others = repeat(None) if residual is None else self._pruned.values(residual.other)
        for number, ((data, target), other, chosen) in enumerate(
            zip(self._pairs(linear, goal), others, drawn, strict=False)
        ):
            rows, result = form.rows(data, target, chosen)
            scale, offset = np.ones((groups, 1, 1)), np.zeros((groups, 1, 1))
            if residual is not None and other is not None:
                scale = residual.scale.reshape(groups, 1, -1)
                added = form.outputs(np.broadcast_to(other, target.shape), chosen)
                offset = added + residual.shift.reshape(groups, 1, -1)
            yield Batch(rows, result * scale + offset, scale, offset, number >= self._fitted)

    def _pairs(self, linear: Linear, goal: Goal) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields data of the pruned network and what should be made of it, run by run."""
        pairs = zip(self._pruned.values(linear.data), self._original.values(goal.total), strict=True)
        others = iter(()) if goal.residual is None else self._pruned.values(goal.residual.other)
        maps = [self._maps(side) for side in goal.sides]
        for data, total in pairs:
            target = self._left.take(goal.total, total)
            if goal.residual is not None:
                target = goal.residual.wanted(target, next(others), linear.form.output)
            for side, one in zip(goal.sides, maps, strict=True):
                target = side.wanted(total, target, one, linear.form.output)
            yield data, target

    def _maps(self, side: Projection) -> Array:
        walks = self._original, self._original if side.joint else self._pruned
        return side.maps(*(islice(walk.values(side.other.tensor), self._fitted) for walk in walks))

    def _goal(self, linear: Linear) -> Goal:
        """Returns what to fit: vectors that keep a product, a sum, or what the operator itself made.

        Of two operators that make the sides of a product, the one that is repaired later keeps it.
        """
        sides = [
            side
            for side in self._sides.get(linear.result, ())
            if side.joint or self._active.isdisjoint(self._above(side.other.tensor))
            if side.facing not in self.waiting
        ]
        residual = None if linear.result in self._sides else self._residual(linear)
        return Goal(linear.result if residual is None else residual.total, residual, sides)

    def _residual(self, linear: Linear) -> Residual | None:
        """Returns the sum to fit, where the other summand can be computed first.

        Of two branches that are both to be repaired the shorter one comes first, and is fitted to its own target.
        """
        found = residual_of(linear, self._holders) if self._settings.residual else None
        if found is None or found.total not in self._targets or self._active & self._above(found.other):
            return None
        if self._shapes[found.total] != self._shapes[linear.result]:  # the result itself is broadcast
            return None
        return found if len(self._unsolved([found.other])) <= 1 else None

    def _sums_anew(self, linear: Linear) -> bool:
        """Whether the result is added in another sum than it was: what a block behind it added has to come from it."""
        other = self._differences.results
        found = residual_of(linear, self._holders) if self._settings.residual and other else None
        return found is not None and found.total in other

    def _unsolved(self, names: Sequence[str]) -> list[str]:
        """Returns what is to be repaired above tensors, in graph order."""
        above = set().union(*map(self._above, names))
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


def readers_of(graph: Graph) -> dict[str, list[gs.Node]]:
    """Returns the nodes that read each tensor, if they alone do: no output of the graph, nothing that a body reads."""
    found: dict[str, list[gs.Node]] = {}
    for node in graph.nodes:
        for name in read_by(node):
            found.setdefault(name, []).append(node)
    for tensor in graph.outputs:
        found.pop(tensor.name, None)
    return found


def _targets(pruned: Graph, shapes: Shapes, expected: Shapes, left: Correspondence) -> set[str]:
    """Returns the computed tensors that have the shape of what is left of the original's."""
    found = set()
    for name in (tensor.name for node in pruned.nodes for tensor in node.outputs):
        shape, whole = shapes.shapes.get(name), expected.shapes.get(name)
        fewer = left.fewer(name)
        if whole is not None and shape == tuple(size - fewer.get(dim, 0) for dim, size in enumerate(whole)):
            found.add(name)
    return found
