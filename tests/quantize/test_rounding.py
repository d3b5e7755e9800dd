"""Weights on their grid: later rows make up for earlier ones, held-out rows judge, zeros stay zero."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_text import model

from onnxprune.model.io import load
from onnxprune.model.sizes import infer_shapes
from onnxprune.model.weights import weights_of
from onnxprune.quantize.compensation import Compensation
from onnxprune.quantize.emit import output_axis, weight_scale
from onnxprune.quantize.grids import REDUCED, WEIGHTS, Grid
from onnxprune.quantize.rounding import Rounding
from onnxprune.recover.clipping import Fit
from onnxprune.recover.least_squares import solve
from onnxprune.recover.moments import Moments

COARSE = Grid(np.dtype(np.int8), -7, 7, symmetric=True)
CASES = [
    ("x:2,20 w=20,12", "y = MatMul (x, w)"),
    ("x:2,6,9,9 w=8,6,3,3", "y = Conv (x, w)"),
    ("x:2,6,9,9 w=8,3,3,3", "y = Conv <group = 2> (x, w)"),
    ("x:2,8,9,9 w=8,1,3,3", "y = Conv <group = 8> (x, w)"),
    ("x:2,6,5,5 w=6,4,3,3", "y = ConvTranspose <group = 2> (x, w)"),
    ("x:2,20 w=12,20", "y = Gemm <transB = 1> (x, w)"),
]


def rounding(case: tuple[str, str], grid: Grid = WEIGHTS, mask: float = 1.0) -> Rounding:
    graph = load(model(*case))
    (weight,) = weights_of(graph, infer_shapes(graph))
    if mask < 1:
        groups, rows, columns = weight.shape
        weight.clear(np.random.default_rng(3).random((groups, rows, columns)) < mask)
    return Rounding.of(weight, weight_scale(weight, grid))


def correlated(groups: int, count: int, size: int, seed: int = 0) -> np.ndarray:
    """Rows [g, R, n] of a few factors, some noise, and inputs of very different size."""
    random = np.random.default_rng(seed)
    few = max(size // 4, 1)
    factors = random.normal(size=(groups, count, few)) @ random.normal(size=(groups, few, size))
    return (factors + 0.3 * random.normal(size=factors.shape)) * np.exp(random.normal(size=size)) + 0.5


def known_of(sums: Moments, damping: float) -> Compensation:
    return Compensation.of(sums.centered()[0], damping)


def moments(rows: np.ndarray, wanted: np.ndarray) -> Moments:
    sums = Moments.empty(rows.shape[0], rows.shape[2], wanted.shape[2])
    sums.add(rows, wanted)
    return sums


def is_on_grid(found: np.ndarray, given: Rounding) -> bool:
    integers = found / given.steps
    low, high = given.scale.grid.low, given.scale.grid.high
    return bool(np.abs(integers - np.rint(integers)).max() < 1e-9) and low <= integers.min() <= integers.max() <= high


@pytest.mark.parametrize("grid", [WEIGHTS, REDUCED, COARSE], ids=lambda grid: str(grid.high))
@pytest.mark.parametrize("case", CASES, ids=lambda case: case[1])
def test_the_nearest_numbers_are_those_of_the_file(case: tuple[str, str], grid: Grid) -> None:
    graph = load(model(*case))
    (weight,) = weights_of(graph, infer_shapes(graph))
    scale = weight_scale(weight, grid)
    given = Rounding.of(weight, scale)
    assert scale.axis == output_axis(weight)
    rounded = scale.rounded(weight.source.stored.values)
    same = np.isclose(given.nearest(given.matrix), weight.form.matrix(rounded), rtol=1e-5, atol=0)
    assert same.mean() > 0.99, "all but what lies in the middle, as far as float32 can tell"
    assert is_on_grid(given.nearest(given.matrix), given)
    assert np.abs(given.nearest(given.matrix) - given.matrix).max() <= 0.5001 * given.steps.max()


@pytest.mark.parametrize(("grid", "factor"), [(WEIGHTS, 0.6), (REDUCED, 0.6), (COARSE, 0.6)], ids=["8", "7", "4"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case[1])
def test_compensation_beats_the_nearest_on_correlated_rows(case: tuple[str, str], grid: Grid, factor: float) -> None:
    given = rounding(case, grid)
    groups, size, _ = given.matrix.shape
    rows = correlated(groups, 2000, size)
    sums = moments(rows, rows @ given.matrix)
    centered = rows - rows.mean(axis=1, keepdims=True)
    nearest = given.nearest(given.matrix)
    errors = []
    for damping in (1e-3, 1e-2):
        found = given.compensated([given.matrix], known_of(sums, damping))[0]
        assert is_on_grid(found, given)
        errors.append(np.square(centered @ (found - given.matrix)).sum())
    assert min(errors) < factor * np.square(centered @ (nearest - given.matrix)).sum()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[1])
def test_zeros_stay_zero(case: tuple[str, str]) -> None:
    given = rounding(case, COARSE, mask=0.5)
    gone = given.matrix == 0
    assert 0.2 < gone.mean() < 0.8
    rows = correlated(given.matrix.shape[0], 800, given.matrix.shape[1])
    wanted = rows @ given.matrix + 0.1
    sums = moments(rows[:, :600], wanted[:, :600]), moments(rows[:, 600:], wanted[:, 600:])
    fit = Fit(solve, sums)
    moved = given.matrix + 0.1  # as a fit makes of them
    decided = given.decide(fit, given.nearest(given.matrix), np.zeros(given.matrix[:, 0].shape))
    for found in (given.nearest(moved), given.compensated([moved], known_of(sums[0], 1e-2))[0], decided.matrix):
        assert not found[gone].any()
        assert is_on_grid(found, given)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(2, 300), noise=st.sampled_from([0.0, 0.1, 10.0]))
def test_held_out_rows_never_lose(seed: int, count: int, noise: float) -> None:
    """Also where rows are too few, or say something else than those that are held out."""
    given = rounding(CASES[0], COARSE)
    random = np.random.default_rng(seed)
    rows = correlated(1, count, 20, seed)
    wanted = rows @ given.matrix + noise * random.normal(size=(1, count, 12))
    cut = max(count // 5, 1)
    sums = moments(rows[:, cut:], wanted[:, cut:]), moments(rows[:, :cut], wanted[:, :cut])
    nearest, bias = given.nearest(given.matrix), random.normal(size=(1, 12))
    found = given.decide(Fit(solve, sums), nearest, bias)
    assert found.before == sums[1].error(nearest, bias)
    assert found.after <= found.before
    assert sums[1].error(found.matrix, found.bias) == pytest.approx(found.after)
    assert is_on_grid(found.matrix, given)
    if count - cut <= 20:
        np.testing.assert_array_equal(found.matrix, nearest)


def test_the_bias_takes_the_mean_error() -> None:
    """Nearest numbers, too few rows for more: the bias alone sets the mean right."""
    given = rounding(CASES[0], COARSE)
    rows = 5 + 0.1 * np.random.default_rng(0).normal(size=(1, 20, 20))
    wanted = rows @ given.matrix
    sums = moments(rows[:, :16], wanted[:, :16]), moments(rows[:, 16:], wanted[:, 16:])
    nearest = given.nearest(given.matrix)
    found = given.decide(Fit(solve, sums), nearest, np.zeros((1, 12)))
    np.testing.assert_array_equal(found.matrix, nearest)
    fitted = rows[:, :16] @ found.matrix + found.bias[:, None]
    np.testing.assert_allclose(fitted.mean(axis=1), wanted[:, :16].mean(axis=1), rtol=1e-9)
    assert found.after < 0.01 * found.before


def test_inputs_that_say_nothing() -> None:
    """Inputs that are always zero, and rows of zeros alone, change nothing and divide nothing by zero."""
    given = rounding(CASES[0])
    rows = correlated(1, 300, 20)
    rows[..., ::3] = 0
    found = given.compensated([given.matrix], known_of(moments(rows, rows @ given.matrix), 1e-2))[0]
    assert is_on_grid(found, given)
    nothing = moments(np.zeros_like(rows), np.zeros((1, 300, 12)))
    nearest = given.nearest(given.matrix)
    decided = given.decide(Fit(solve, (nothing, nothing)), nearest, np.zeros((1, 12)))
    np.testing.assert_array_equal(decided.matrix, nearest)
