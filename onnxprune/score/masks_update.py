"""Masks that are chosen while the weights that stay make up for those that go: SparseGPT, and ALPS.

Both minimise the squared error of the operator, ``(w - d)' H (w - d)`` for every output, where d are the weights as
they come and H the second moments of the inputs.
"""

import numpy as np

from onnxprune.score.masks import Array, Mask, Pattern, PerGroup

BLOCK = 128
"""Rows between two choices of SparseGPT, where the pattern does not ask for fewer."""

START = 0.1
"""Penalty with which ALPS begins, where all inputs have the variance 1."""

GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))
"""Above these fractions of weights that still change sides, the penalty grows by these factors."""

INTERVAL = 3
"""Steps of ALPS between two looks at what has changed."""

MOST_STEPS = 300


def sparsegpt(weights: Array, moments: Array, pattern: Pattern, zeros: int) -> tuple[Array, Mask]:
    """Returns masked weights and which of them stay (Frantar and Alistarh 2023, SparseGPT).

    Row by row, what goes is made up for by the rows below: the update of Optimal Brain Surgeon (Hassibi and Stork
    1993) in the order of the rows, whose inverses all lie in one Cholesky factor.

    Args:
        weights: [g, n, m].
        moments: Positive definite second moments of the inputs, [g, n, n].
        pattern: Where zeros may stand.
        zeros: Number of weights to take.
    """
    rows = weights.shape[1]
    factor = np.linalg.cholesky(np.linalg.inv(moments)).swapaxes(1, 2)
    pivots = np.einsum("gii->gi", factor)[:, :, None]
    result = weights.copy()
    protected = pattern.spared(np.square(weights / pivots))
    kept = np.ones(weights.shape, np.bool_)
    step = pattern.inputs if isinstance(pattern, PerGroup) else BLOCK // pattern.inputs * pattern.inputs
    cell = pattern.inputs * pattern.outputs
    for start in range(0, rows, step):
        here = slice(start, min(start + step, rows))
        due = (zeros // cell * here.stop // rows - zeros // cell * here.start // rows) * cell
        scores = np.where(protected[:, here], np.inf, np.square(result[:, here] / pivots[:, here]))
        kept[:, here] = pattern.keep(scores, due, spare=False)
        errors = np.zeros_like(scores)
        for row in range(here.start, here.stop):
            gone = np.where(kept[:, row], 0.0, result[:, row]) / pivots[:, row]
            errors[:, row - start] = gone
            result[:, row : here.stop] -= factor[:, row, row : here.stop, None] * gone[:, None]
        result[:, here.stop :] -= factor[:, here, here.stop :].swapaxes(1, 2) @ errors
    return np.where(kept, result, 0.0), kept


def alps(weights: Array, moments: Array, pattern: Pattern, zeros: int) -> tuple[Array, Mask]:
    """Returns masked weights and which of them stay (Meng et al. 2024, ALPS).

    The alternating direction method of multipliers pulls weights that fit and weights that are masked together, with a
    penalty that grows until the mask stands still. One eigendecomposition serves all penalties.
    """
    scale = np.sqrt(np.maximum(np.einsum("gii->gi", moments), np.finfo(np.float64).tiny))[:, :, None]
    values, vectors = np.linalg.eigh(moments / (scale * scale.swapaxes(1, 2)))
    back = vectors.swapaxes(1, 2)
    dense = weights * scale
    goal = values[:, :, None] * (back @ dense)
    kept = pattern.keep(np.square(dense), zeros)
    masked, dual, penalty, before = np.where(kept, dense, 0.0), np.zeros_like(dense), START, kept
    for number in range(1, MOST_STEPS + 1):
        fitted = vectors @ ((goal + back @ (penalty * masked - dual)) / (values[:, :, None] + penalty))
        wanted = fitted + dual / penalty
        kept = pattern.keep(np.square(wanted), zeros)
        masked = np.where(kept, wanted, 0.0)
        dual += penalty * (fitted - masked)
        if number % INTERVAL == 0:
            moved = int((kept != before).sum()) / 2 / max(int(kept.sum()), 1)
            if moved == 0:
                break
            penalty *= next(factor for least, factor in GROWTH if moved > least)
            before = kept
    return masked / scale, kept
