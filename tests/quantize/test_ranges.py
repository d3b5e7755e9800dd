"""Histograms of streams, and the ranges that are cut from them."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.errors import UsageError
from onnxprune.quantize.grids import SIGNED, UNSIGNED, WEIGHTS, scale_of
from onnxprune.quantize.ranges import AUTO, BINS, CANDIDATES, METHODS, MOST_READ, Histogram, method_of

GRIDS = [UNSIGNED, SIGNED]


def histogram(*parts: np.ndarray) -> Histogram:
    found = Histogram.empty()
    for part in parts:
        found.add(part)
    return found


def numbers(seed: int, count: int = 5000) -> np.ndarray:
    """Normal numbers whose spread grows on the way, with outliers, and now and then all of one sign."""
    random = np.random.default_rng(seed)
    values = random.normal(size=count) * np.linspace(0.01, 1, count) * 10.0 ** random.integers(-6, 6)
    values[random.integers(count, size=5)] *= 20
    values = [values, np.abs(values), -np.abs(values), np.maximum(values, 0)][seed % 4]
    return values.astype(np.float32)


def same(left: Histogram, right: Histogram) -> None:
    np.testing.assert_array_equal(left.counts, right.counts)
    assert (left.width, left.low, left.high) == (right.width, right.low, right.high)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), cuts=st.lists(st.integers(0, 5000), max_size=8))
def test_the_same_numbers_in_other_batches(seed: int, cuts: list[int]) -> None:
    values = numbers(seed)
    found = histogram(*np.split(values, sorted(cuts)))
    same(found, histogram(values))
    assert found.counts.sum() == values.size
    assert found.low == min(0, values.min())
    assert found.high == max(0, values.max())


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), cut=st.integers(0, 5000))
def test_joined_histograms_are_that_of_all_numbers(seed: int, cut: int) -> None:
    values = numbers(seed)
    for parts in (np.split(values, [cut]), np.split(values, [cut])[::-1]):
        found = histogram(parts[0])
        found.join(histogram(parts[1]))
        same(found, histogram(values))
    empty = Histogram.empty()
    empty.join(histogram(values))
    same(empty, histogram(values))


def test_a_range_that_grows_moves_counts_and_loses_none() -> None:
    values = np.random.default_rng(0).uniform(-1, 1, 4000)
    found = histogram(values)
    for power in range(1, 40, 3):
        found.add(np.array([1.9 * 2.0**power]))
        edges = (np.arange(BINS + 1) - BINS // 2) * found.width
        everything = np.concatenate([values, 1.9 * 2.0 ** np.arange(1, power + 1, 3)])
        np.testing.assert_array_equal(found.counts, np.histogram(everything, edges)[0])
        assert found.high == 1.9 * 2.0**power
        assert found.high <= edges[-1]
        assert edges[-1] < 4 * found.high, "at least half of the bins are in use"


def test_the_size_is_the_same_for_any_number_of_samples() -> None:
    random = np.random.default_rng(0)
    few, many = histogram(random.normal(size=8)), Histogram.empty()
    for _ in range(200):
        many.add(random.normal(size=(4, 1000)) * 10.0 ** random.integers(-3, 4))
    assert few.counts.nbytes == many.counts.nbytes == BINS * 8
    assert sys.getsizeof(few) == sys.getsizeof(many)


def test_of_many_numbers_some_are_counted_and_the_ends_see_all() -> None:
    values = np.random.default_rng(0).normal(size=MOST_READ * 3 + 1)
    values[1] = 77.0
    found = histogram(values.reshape(1, -1))
    assert MOST_READ // 2 <= found.counts.sum() <= MOST_READ
    assert found.high == 77.0
    whole = histogram(*np.array_split(values, 5))
    shares = [np.cumsum(one.counts) / one.counts.sum() for one in (found, whole)]
    assert np.abs(shares[0] - shares[1]).max() < 0.01


def test_numbers_that_are_not_finite_are_left_out() -> None:
    values = numbers(0)
    mixed = values.copy()
    mixed[::7] = [np.nan, np.inf, -np.inf][0]
    mixed[3::7], mixed[5::7] = np.inf, -np.inf
    same(histogram(mixed), histogram(mixed[np.isfinite(mixed)]))
    nothing = histogram(np.full(8, np.nan), np.zeros(0), np.array([np.inf]))
    same(nothing, Histogram.empty())
    np.testing.assert_array_equal(histogram(np.zeros(5)).counts.sum(), 5)


@pytest.mark.parametrize("value", [0.0, 3.0, -2.5, 1e-30, -1e30])
@pytest.mark.parametrize("method", METHODS)
def test_constants(method: str, value: float) -> None:
    found = histogram(np.full(100, value, np.float32))
    for grid in GRIDS:
        low, high = METHODS[method](found, grid)
        assert low <= 0 <= high
        scale = scale_of(low, high, grid)
        assert scale.rounded(np.array([value]))[0] == pytest.approx(value, rel=0.2)


@pytest.mark.parametrize("method", CANDIDATES)
@pytest.mark.parametrize("grid", GRIDS, ids=["uint8", "int8"])
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_every_range_lies_within_the_ends_and_takes_in_zero(grid, method: str, seed: int) -> None:
    values = numbers(seed)
    found = histogram(values)
    low, high = CANDIDATES[method](found, grid)
    assert found.low <= low <= 0 <= high <= found.high
    assert high > low


@pytest.mark.parametrize("grid", [*GRIDS, WEIGHTS], ids=["uint8", "int8", "weights"])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_least_squares_is_no_worse_than_the_ends(grid, seed: int) -> None:
    values = numbers(seed, 20000)
    found = histogram(values)
    errors = [
        np.square(values - scale_of(*METHODS[method](found, grid), grid).rounded(values), dtype=np.float64).sum()
        for method in ("mse", "minmax")
    ]
    assert errors[0] <= 1.02 * errors[1]  # it is told of numbers by their bins, not of each


def test_least_squares_cuts_off_what_costs_more_than_it_gives() -> None:
    random = np.random.default_rng(0)
    values = np.concatenate([random.normal(size=100000), [60.0]])
    found = histogram(*np.array_split(values, 10))
    low, high = METHODS["mse"](found, UNSIGNED)
    assert high < 60
    uniform = histogram(random.uniform(-1, 1, 50000))
    low, high = METHODS["mse"](uniform, UNSIGNED)
    assert (low, high) == pytest.approx((uniform.low, uniform.high), rel=0.05)


def test_a_percentile_cuts_off_its_share() -> None:
    values = np.random.default_rng(0).normal(size=MOST_READ)
    found = histogram(values)
    for method, share in (("percentile", 0.9999), ("percentile 99.9", 0.999)):
        low, high = CANDIDATES[method](found, UNSIGNED)
        outside = np.mean((values < low - found.width) | (values > high + found.width))
        assert outside <= 1 - share
        assert np.mean((values <= low + 2 * found.width) | (values >= high - 2 * found.width)) >= (1 - share) / 2


def test_entropy_cuts_off_a_lonely_outlier() -> None:
    values = np.concatenate([np.random.default_rng(0).normal(size=50000), [40.0]])
    _, high = METHODS["entropy"](histogram(values), SIGNED)
    assert 2 < high < 30


def test_ways_by_name() -> None:
    assert [method_of(name) for name in (*METHODS, AUTO)] == ["minmax", "percentile", "entropy", "mse", "auto"]
    with pytest.raises(UsageError, match="no way 'luck' to choose ranges: choose one of minmax, percentile"):
        method_of("luck")


@pytest.mark.parametrize("name", ["mse", "entropy"])
def test_an_outlier_at_one_end_costs_nothing_at_the_other(name: str) -> None:
    """What Sigmoid times x makes lies above -0.3; cutting off one large number must not cut that off too."""
    values = np.random.default_rng(0).normal(size=20000).astype(np.float32)
    values = values / (1 + np.exp(-values))
    found = histogram(np.append(values, np.float32(12.0)))
    low, high = METHODS[name](found, UNSIGNED)
    assert high < (8 if name == "entropy" else 12.0)
    assert low < 0.8 * values.min()
