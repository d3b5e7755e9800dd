"""Repair without samples: what a removed channel did is done by the channels that are most like it.

A channel that goes is replaced by the combination of those that stay that comes nearest to it, and the operators that
read it add its weights to theirs accordingly. How alike channels are follows from the weights that make them
(``recover.expectation``). Duplicates go back to Srinivas and Babu 2015 (Data-free Parameter Pruning for Deep Neural
Networks), folding with a repair of the variance to Wang et al. 2025 (Forget the Data and Fine-Tuning! Just Fold the
Network to Compress).
"""

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxprune.channels.facts import Axis, Index
from onnxprune.channels.groups import Channels
from onnxprune.model.fold import store_moved
from onnxprune.model.io import Graph, read_values, write_values
from onnxprune.model.linear import Array, Bias, Holders, Linear, bias_of, linear_nodes
from onnxprune.model.sizes import generic_shapes
from onnxprune.ops.forms import Product
from onnxprune.recover.expectation import CORRELATION, Expected, expected_inputs, rows_by_channel
from onnxprune.recover.sequential import Repaired
from onnxprune.surgery.gone import Gone, Removals

RIDGE = 1e-6
"""Ridge on the second moment of every channel, as a fraction of it: duplicates among those that stay are no harm."""

CONSTANT = 1e-6
"""Variance, relative to the second moment, below which a channel is a constant."""


def fold(pruned: gs.Graph, channels: Channels, removals: Removals) -> tuple[Graph, list[Repaired]]:
    """Returns a copy of the pruned graph with removed channels folded into the others, and what is expected of it.

    Operators whose inputs cannot be followed to the weights that make them stay as they are, and so do those of which
    no gain is expected. The errors are expectations too, relative to what the original computes.

    Args:
        pruned: The graph without the units, with the names of the original.
        channels: Analysis of the original.
        removals: The units that are gone.

    Raises:
        PlanError: the removals do not fit the groups.
    """
    gone = Gone(channels, removals)
    result: Graph = pruned.copy()
    store_moved(result)
    holders = Holders(result)
    left = {one.result: one for one in linear_nodes(result, generic_shapes(result)[0], holders)}
    found: list[Repaired] = []
    for linear, data in expected_inputs(channels):
        lost = gone.lost(Axis(linear.data, data.dim))
        small = left.get(linear.result)
        if not lost.size or linear.scales or small is None or not _same_layout(linear, small, gone):
            continue
        removed = np.zeros(len(data.values) * data.repeat, bool)
        removed[lost] = True
        place = bias_of(small, holders)
        with np.errstate(all="ignore"):
            folded = _folded(linear, data, removed.reshape(-1, data.repeat), shifts=place is not None)
        if folded is None:
            continue
        found.append(Repaired(linear.name, folded.before, folded.after))
        if found[-1].kept:
            dim = linear.form.output % len(channels.shapes.shapes[linear.result])
            _store(folded, linear, small, place, gone.lost(Axis(linear.result, dim)), gone)
    return result, found


@dataclass(frozen=True, slots=True, eq=False)
class _Folded:
    """What is added to the weights [g, n, m] and to the result [g * m], and the errors expected before and after."""

    change: Array
    shift: Array
    before: float
    after: float


def _folded(linear: Linear, data: Expected, removed: NDArray[np.bool_], *, shifts: bool) -> _Folded | None:
    """Returns the best combinations of the channels that stay, scaled as the second moment of the results asks for.

    Combinations lose some of it; the scale stays near 1 where what is made says little about what was.
    """
    rows = rows_by_channel(linear, data)
    if rows is None:
        return None
    moments = _Moments.of(data, len(rows))
    gone = np.asarray(removed.all(axis=1)).reshape(moments.mean.shape)
    constant = gone & moments.constant if shifts else np.zeros_like(gone)
    shift = np.einsum("gsm,gs->gm", rows.sum(axis=2), moments.mean * constant)
    target, stay = rows * ~constant[:, :, None, None], rows * ~gone[:, :, None, None]
    combined = stay + np.einsum("gsp,gpom->gsom", moments.combinations(~gone, gone & ~constant), rows)
    wanted, made = moments.products(target, target), moments.products(combined, combined)
    trust = np.clip(np.square(moments.products(target, combined)) / np.maximum(made * wanted, 1e-300), 0, 1)
    ratio = np.sqrt(wanted / np.maximum(made, 1e-12 * wanted + 1e-300))
    combined *= (1 + trust * (ratio - 1))[:, None, None]
    whole = max(float(moments.products(rows, rows).sum()), 1e-300)
    before, after = (float(moments.products(error, error).sum()) / whole for error in (rows - stay, target - combined))
    if not np.isfinite((before, after)).all():
        return None
    return _Folded((combined - stay).reshape(linear.matrix().shape), shift.reshape(-1), before, after)


@dataclass(frozen=True, slots=True, eq=False)
class _Moments:
    """Mean [g, s] and covariance [g, s, s] of the channels that each product of an operator reads."""

    mean: Array
    covariance: Array

    @classmethod
    def of(cls, data: Expected, groups: int) -> "_Moments":
        mean, covariance = data.moments
        every = np.arange(groups)
        blocks = covariance.reshape(groups, len(mean) // groups, groups, -1)[every, :, every]
        return cls(mean.reshape(groups, -1), blocks)

    @property
    def constant(self) -> NDArray[np.bool_]:
        """Which channels do not vary."""
        return np.asarray(np.einsum("gss->gs", self.covariance) <= CONSTANT * np.square(self.mean))

    def combinations(self, stay: NDArray[np.bool_], gone: NDArray[np.bool_]) -> Array:
        """Returns how much [g, s, p] of every channel that stays comes nearest to each that goes; 0 elsewhere.

        Means count in full, as a shift by expected means alone would rest on what is known least.
        """
        squares = self.covariance + self.mean[:, :, None] * self.mean[:, None]
        system = squares * (stay[:, :, None] & stay[:, None])
        ridge = np.maximum(RIDGE * np.einsum("gss->gs", squares), np.finfo(np.float64).tiny)
        system += np.where(stay, ridge, 1.0)[:, :, None] * np.eye(stay.shape[1])
        return np.asarray(np.linalg.solve(system, squares * (stay[:, :, None] & gone[:, None])))

    def products(self, left: Array, right: Array) -> Array:
        """Returns the mean product [g, m] of two results, with weights [g, s, rows, m]."""
        left_total, right_total = left.sum(axis=2), right.sum(axis=2)
        apart = np.einsum("gsom,gsom->gm", left, self._times(right))
        together = np.einsum("gsm,gsm->gm", left_total, self._times(right_total))
        means = [np.einsum("gsm,gs->gm", total, self.mean) for total in (left_total, right_total)]
        return np.asarray((1 - CORRELATION) * apart + CORRELATION * together + means[0] * means[1])

    def _times(self, rows: Array) -> Array:
        return (self.covariance @ rows.reshape(*rows.shape[:2], -1)).reshape(rows.shape)


def _store(folded: _Folded, linear: Linear, small: Linear, place: Bias | None, lost: Index, gone: Gone) -> None:
    """Adds what is left of a change; zeros that the original does not have are a mask and stay."""
    name, whole = linear.node.inputs[linear.form.weight].name, read_values(linear.stored)
    change = gone.take(name, linear.form.weights(folded.change, whole.astype(np.float64)))
    now = read_values(small.stored)
    free = (now != 0) | (gone.take(name, whole) == 0)
    write_values(small.stored, (now + change * free).astype(now.dtype))
    if place is not None and folded.shift.any():
        place.add(np.delete(folded.shift, lost), now.dtype)


def _same_layout(linear: Linear, small: Linear, gone: Gone) -> bool:
    shape = gone.shape(linear.node.inputs[linear.form.weight].name, linear.shape)
    alike = not isinstance(linear.form, Product) or linear.form == small.form
    return alike and linear.node.op == small.node.op and shape == small.shape
