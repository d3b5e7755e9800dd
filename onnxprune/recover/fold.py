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

from onnxprune.channels.facts import Axis
from onnxprune.channels.groups import Channels
from onnxprune.model.fold import store_moved
from onnxprune.model.io import Graph, read_values
from onnxprune.model.linear import Array, Holders, Linear, bias_of, linear_nodes
from onnxprune.model.sizes import generic_shapes
from onnxprune.recover.expectation import CORRELATION, Expected, expected_inputs, rows_by_channel
from onnxprune.recover.sequential import Repaired
from onnxprune.surgery.gone import Gone, Removals

RIDGE = 1e-6
"""Ridge on second moments, as a fraction of their mean."""

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
        if small is None or linear.scales or not lost.size:
            continue
        removed = np.zeros(data.values.shape[0] * data.repeat, bool)
        removed[lost] = True
        folded = _folded(linear, data, removed.reshape(-1, data.repeat).all(axis=1))
        if folded is not None:
            found.append(Repaired(linear.name, folded.before, folded.after))
            if found[-1].kept:
                _store(folded, linear, small, holders, gone)
    return result, found


@dataclass(frozen=True, slots=True, eq=False)
class _Folded:
    """What is added to the weights [g, n, m] and to the result [g, m], and the errors expected before and after."""

    change: Array
    shift: Array
    before: float
    after: float


def _folded(linear: Linear, data: Expected, removed: NDArray[np.bool_]) -> _Folded | None:
    rows = rows_by_channel(linear, data)
    if rows is None:
        return None
    groups, count, _, _ = rows.shape
    every = np.arange(groups)
    gone = removed.reshape(groups, count)
    mean = data.moments[0].reshape(groups, count)
    covariance = data.moments[1].reshape(groups, count, groups, count)[every, :, every]
    squares = np.square(mean)
    constant = gone & (np.einsum("gss->gs", covariance) <= CONSTANT * squares)
    moments = covariance + mean[:, :, None] * mean[:, None]
    stay = ~gone
    combined = np.einsum("gsp,gpom->gsom", _combinations(moments, stay, gone & ~constant), rows)
    kept = rows * stay[:, :, None, None]
    ...
