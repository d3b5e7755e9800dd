"""Criteria that change weights while they choose a mask."""

from collections.abc import Callable

import numpy as np
import pytest

from onnxprune.score.masks import Array, Block, Mask, Pattern, PerGroup, Unstructured, magnitude
from onnxprune.score.masks_update import alps, sparsegpt

PATTERNS = [Unstructured(), PerGroup(2, 4), PerGroup(1, 8), Block(1, 4), Block(4, 1)]


def problem(groups: int = 2, rows: int = 32, outputs: int = 8) -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    mixed = rng.standard_normal((groups, 400, rows)) @ rng.standard_normal((groups, rows, rows)) / rows**0.5
    moments = mixed.swapaxes(1, 2) @ mixed / 400 + 0.01 * np.eye(rows)
    return rng.standard_normal((groups, rows, outputs)), moments


def loss(found: Array, weights: Array, moments: Array) -> float:
    gap = found - weights
    return float(np.einsum("gim,gij,gjm->", gap, moments, gap))


def fitted(weights: Array, moments: Array, kept: Mask) -> Array:
    """Returns the best weights on a mask, column by column."""
    found = np.zeros_like(weights)
    for group, column in np.ndindex(weights.shape[0], weights.shape[2]):
        stay = np.flatnonzero(kept[group, :, column])
        goal = moments[group][stay] @ weights[group, :, column]
        found[group, stay, column] = np.linalg.solve(moments[group][np.ix_(stay, stay)], goal)
    return found


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("criterion", [sparsegpt, alps])
def test_exact_counts_and_less_loss_than_magnitude(
    criterion: Callable[[Array, Array, Pattern, int], tuple[Array, Mask]], pattern: Pattern
) -> None:
    weights, moments = problem()
    zeros = pattern.zeros(weights.size, 0.5)
    found, kept = criterion(weights, moments, pattern, zeros)
    assert np.count_nonzero(~kept) == zeros
    assert (found[~kept] == 0).all()
    assert kept.any(axis=1).all()
    plain = pattern.keep(magnitude(weights), zeros)
    assert loss(found, weights, moments) < loss(np.where(plain, weights, 0.0), weights, moments)
    if criterion is alps:
        best, other = (fitted(weights, moments, mask) for mask in (kept, plain))
        assert loss(best, weights, moments) < loss(other, weights, moments)


def test_sparsegpt_is_the_optimal_update_row_by_row() -> None:
    """With the mask that it found, each step is the update of Optimal Brain Surgeon on the rows not yet decided."""
    weights, moments = problem(1, 10, 3)
    found, kept = sparsegpt(weights, moments, Unstructured(), 15)
    expected = weights[0].copy()
    for row in range(10):
        rest = np.arange(row, 10)
        inverse = np.linalg.inv(moments[0][np.ix_(rest, rest)])
        gone = ~kept[0, row]
        expected[row:, gone] -= inverse[:, :1] * expected[row, gone] / inverse[0, 0]
    assert found[0] == pytest.approx(np.where(kept[0], expected, 0.0), abs=1e-9)


def test_nothing_to_take_changes_nothing() -> None:
    weights, moments = problem()
    for criterion in (sparsegpt, alps):
        found, kept = criterion(weights, moments, Unstructured(), 0)
        assert kept.all()
        assert found == pytest.approx(weights, abs=1e-6)


def test_alps_is_near_the_best_mask_of_a_small_problem() -> None:
    weights, moments = problem(1, 10, 1)
    _, kept = alps(weights, moments, Unstructured(), 5)
    masks = (np.isin(np.arange(10), places) for places in _choices(10, 5))
    best = min(loss(fitted(weights, moments, mask[None, :, None]), weights, moments) for mask in masks)
    assert loss(fitted(weights, moments, kept), weights, moments) <= 1.5 * best


def _choices(total: int, count: int) -> list[list[int]]:
    return [
        [place for place in range(total) if bits >> place & 1]
        for bits in range(1 << total)
        if bits.bit_count() == count
    ]
