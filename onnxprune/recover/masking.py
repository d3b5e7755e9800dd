"""Masks that samples choose, operator by operator in the order of the graph.

First all weights are fitted to the original on what the masked network feeds them; a criterion chooses those that go
and lets the others make up for them; then the others are fitted alone. What is fitted to matters more than the
criterion: a mask that is chosen on the weights of the original ignores what earlier masks have done to its inputs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from onnxprune.model.io import Graph
from onnxprune.model.sizes import infer_shapes
from onnxprune.model.weights import Weight, weights_of
from onnxprune.plan.masks import MaskPlan
from onnxprune.recover.clipping import Fit
from onnxprune.recover.least_squares import Mask, Solution
from onnxprune.recover.moments import Array, Moments
from onnxprune.score.masks import Pattern, arranged, arranged_back, magnitude, wanda
from onnxprune.score.masks_update import alps, sparsegpt
from onnxprune.surgery.mask import mask_weights

Criterion = Callable[[Array, Array, Pattern, int], tuple[Array, Mask]]

DAMPING = 0.1
"""Ridge on the second moments, as a fraction of their mean: with less, masks trust correlations that do not last."""

MOST_WORK = 5e8
"""Inputs squared times outputs above which ALPS gives way to SparseGPT, which goes over the rows once."""


@dataclass(frozen=True, slots=True, eq=False)
class Masking:
    """What is asked of one operator; ``weight`` is what it multiplies with before anything is zero."""

    weight: Weight
    pattern: Pattern
    zeros: int
    criterion: Criterion

    def decide(self, fit: Fit, matrix: Array, bias: Array) -> Solution:
        """Returns the masked weights that were found, or those that are given where held-out rows do not gain.

        Args:
            fit: How to fit the operator.
            matrix: Its weights [g, n, m], masked by magnitude.
            bias: What it adds, [g, m].
        """
        before = fit.error(matrix, bias)
        dense = fit.method(*fit.sums, self.weight.matrix(), bias)
        chosen, kept = choose(dense.matrix, damped(fit.sums[0]), self)
        _, _, x_mean, y_mean = fit.sums[0].centered()
        found = fit.solve(chosen, y_mean - np.einsum("gi,gim->gm", x_mean, chosen), kept)
        if found.after < before:
            return Solution(found.matrix, found.bias, before, found.after)
        return Solution(matrix, bias, before, before)


def masked_graph(dense: Graph, plan: MaskPlan | None, criterion: str) -> tuple[Graph, dict[str, Masking]]:
    """Returns the graph with masks by magnitude, and by the results of operators what samples are to decide."""
    if plan is None:
        return dense, {}
    shapes = infer_shapes(dense)
    weights = {one.result: one for one in weights_of(dense, shapes)}
    decided = {
        name: Masking(weights[name], one.pattern, one.zeros, CRITERIA[one.criterion or criterion])
        for one in plan.tensors
        if not one.fixed
        for name in one.results
        if name in weights
    }
    return mask_weights(dense, plan, shapes), decided


def choose(weights: Array, moments: Array, task: Masking) -> tuple[Array, Mask]:
    """Returns masked weights [g, n, m], and which of them stay."""
    rows, spread = weights.shape[1], task.weight.spread
    order = np.arange(rows).reshape(-1, spread).T.ravel()
    heavy = task.criterion is alps and rows * weights.size > MOST_WORK
    criterion = sparsegpt if heavy else task.criterion
    made, kept = criterion(arranged(weights, spread), moments[:, order][:, :, order], task.pattern, task.zeros)
    return arranged_back(made, spread), arranged_back(kept, spread)


def damped(sums: Moments) -> Array:
    """Returns second moments [g, n, n] about the mean that have an inverse."""
    covariance = sums.centered()[0]
    size = covariance.shape[1]
    mean = np.maximum(np.einsum("gii->g", covariance) / size, 1e-30)
    return np.asarray(covariance + DAMPING * mean[:, None, None] * np.eye(size))


def _without_update(scores: Callable[[Array, Array], Array]) -> Criterion:
    def criterion(weights: Array, moments: Array, pattern: Pattern, zeros: int) -> tuple[Array, Mask]:
        kept = pattern.keep(scores(weights, moments), zeros)
        return np.where(kept, weights, 0.0), kept

    return criterion


CRITERIA: Mapping[str, Criterion] = {
    "alps": alps,
    "magnitude": _without_update(lambda weights, moments: magnitude(weights)),
    "sparsegpt": sparsegpt,
    "wanda": _without_update(wanda),
}
"""Ways to choose with samples, by name."""

DEFAULT = "alps"
