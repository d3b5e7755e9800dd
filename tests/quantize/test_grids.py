"""Grids round as ONNX Runtime does, hold zero exactly, and never have a scale of zero."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from onnxprune.quantize.grids import BIASES, REDUCED, SIGNED, SMALLEST, UNSIGNED, WEIGHTS, Grid, Scale, scale_of
from onnxprune.runtime.session import SessionOptions, open_session

GRIDS = [UNSIGNED, SIGNED, WEIGHTS, REDUCED]


@functools.cache
def runtime(dtype: np.dtype, axis: int | None):
    """Returns what ONNX Runtime makes of numbers, scales and zero points: integers, and the numbers they stand for."""
    kind = helper.np_dtype_to_tensor_dtype(dtype)
    attributes = {} if axis is None else {"axis": axis}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **attributes),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **attributes),
    ]
    dims = [] if axis is None else ["c"]
    inputs = [
        helper.make_tensor_value_info("x", 1, None),
        helper.make_tensor_value_info("s", 1, dims),
        helper.make_tensor_value_info("z", kind, dims),
    ]
    outputs = [helper.make_tensor_value_info("q", kind, None), helper.make_tensor_value_info("y", 1, None)]
    graph = helper.make_graph(nodes, "pair", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    session = open_session(model, SessionOptions(threads=1, optimize=False))
    return lambda x, s, z: tuple(session.run({"x": x, "s": s, "z": z}).values())


def agrees(values: np.ndarray, scale: Scale) -> None:
    """ONNX knows no narrower grids than the type has: what lies beyond their ends is cut off here alone."""
    integers, numbers = runtime(scale.grid.dtype, scale.axis)(values, scale.step, scale.zero)
    found = scale.integers(values)
    np.testing.assert_array_equal(found, np.clip(integers, scale.grid.low, scale.grid.high))
    np.testing.assert_array_equal(scale.numbers(integers), numbers)


ends = st.floats(-1e4, 1e4, width=32)


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid.dtype}-{grid.high}")
@settings(max_examples=20, deadline=None)
@given(low=ends, high=ends, seed=st.integers(0, 2**32 - 1))
def test_one_scale_rounds_as_the_runtime(grid: Grid, low: float, high: float, seed: int) -> None:
    low, high = sorted((low, high))
    wide = 1.5 * max(-low, high, 1e-6)
    values = np.random.default_rng(seed).uniform(-wide, wide, 4096).astype(np.float32)
    scale = scale_of(low, high, grid)
    halves = (np.arange(grid.low - 2, grid.high + 2) + 0.5).astype(np.float32) * scale.step
    agrees(np.concatenate([values, halves, [0.0, low, high]]).astype(np.float32), scale)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid.dtype}-{grid.high}")
def test_scales_along_an_axis_round_as_the_runtime(grid: Grid, axis: int) -> None:
    random = np.random.default_rng(axis)
    values = (random.normal(size=(5, 6, 7)) * np.exp(random.normal(size=(5, 6, 7)))).astype(np.float32)
    others = tuple(dim for dim in range(3) if dim != axis)
    scale = scale_of(values.min(others), values.max(others), grid, axis)
    assert scale.step.shape == scale.zero.shape == (values.shape[axis],)
    agrees(values, scale)
    for index in range(values.shape[axis]):
        one = Scale(grid, scale.step[index], scale.zero[index])
        slices = np.take(values, index, axis), np.take(scale.rounded(values), index, axis)
        np.testing.assert_array_equal(one.rounded(slices[0]), slices[1])


@pytest.mark.parametrize("seed", range(2))
def test_quotients_next_to_halves_round_as_in_float32(seed: int) -> None:
    random = np.random.default_rng(seed)
    scale = scale_of(-random.uniform(0.5, 2), random.uniform(0.5, 2), UNSIGNED)
    near = random.integers(-100, 100, 2**14) + 0.5
    values = (near * scale.step).astype(np.float32)
    for moved in (values, np.nextafter(values, np.float32(np.inf)), np.nextafter(values, np.float32(-np.inf))):
        agrees(moved, scale)


@pytest.mark.parametrize("grid", [*GRIDS, BIASES], ids=lambda grid: f"{grid.dtype}-{grid.high}")
@settings(max_examples=50, deadline=None)
@given(
    low=st.floats(allow_nan=False, allow_infinity=False, width=32),
    high=st.floats(allow_nan=False, allow_infinity=False, width=32),
)
def test_zero_is_on_every_grid_and_no_scale_is_zero(grid: Grid, low: float, high: float) -> None:
    scale = scale_of(*sorted((low, high)), grid)
    assert scale.rounded(np.zeros(1, np.float32))[0] == 0
    assert SMALLEST <= scale.step < np.inf
    assert scale.zero.dtype == grid.dtype
    assert grid.low <= scale.zero <= grid.high
    if grid.symmetric:
        assert scale.zero == 0


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid.dtype}-{grid.high}")
@settings(max_examples=40, deadline=None)
@given(low=ends, high=ends)
def test_the_grid_takes_in_its_range(grid: Grid, low: float, high: float) -> None:
    """Both ends and zero are rounded by half a step at most, up to float32 and the rounding of the zero point."""
    low, high = min(low, high, 0.0), max(low, high, 0.0)
    scale = scale_of(low, high, grid)
    found = scale.rounded(np.array([low, high], np.float32))
    margin = 0.5 if grid.symmetric else 1.0
    assert np.abs(found - np.array([low, high])).max() <= margin * scale.step * 1.001 + 1e-6 * max(-low, high)


def test_channels_of_zeros_and_of_tiny_numbers() -> None:
    largest = np.array([0.0, 1e-45, 1e-38, 1.0], np.float32)
    for grid in GRIDS:
        scale = scale_of(-largest, largest, grid, 0)
        assert (scale.step >= np.finfo(np.float32).tiny).all()
        values = np.stack([-largest, largest], axis=1)
        found = scale.rounded(values)
        assert np.isfinite(found).all()
        np.testing.assert_array_equal(found[0], 0)
        assert np.abs(found - values).max() <= 0.51 * scale.step.max()


def test_numbers_stay_what_they_are_on_the_grid() -> None:
    for grid in GRIDS:
        scale = scale_of(-0.7, 1.9, grid)
        integers = np.arange(grid.low, grid.high + 1).astype(grid.dtype)
        np.testing.assert_array_equal(scale.integers(scale.numbers(integers)), integers)
        assert scale.numbers(integers).dtype == np.float32


def test_seven_bits_leave_room_for_two_products_in_sixteen() -> None:
    assert 2 * UNSIGNED.high * max(REDUCED.high, -REDUCED.low) < 2**15 <= 2 * UNSIGNED.high * WEIGHTS.high
