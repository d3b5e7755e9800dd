"""Patterns of zeros: exact counts, ties, outputs that stay alive."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.errors import UsageError
from onnxprune.score.masks import (
    Block,
    PerGroup,
    Unstructured,
    arranged,
    arranged_back,
    lamp,
    magnitude,
    pattern_of,
    wanda,
)

PAIRS = [(kept, size) for size in range(2, 33) for kept in range(1, size)]


@pytest.mark.parametrize("size", range(2, 33))
def test_every_group_of_every_pattern_holds_exactly_as_many(size: int) -> None:
    rng = np.random.default_rng(size)
    for kept in range(1, size):
        shape = (int(rng.integers(1, 3)), size * int(rng.integers(1, 4)), int(rng.integers(1, 6)))
        scores = rng.integers(0, 3, shape).astype(np.float64)  # many ties, many zeros
        found = PerGroup(kept, size).keep(scores)
        split = found.reshape(shape[0], -1, size, shape[2])
        assert (split.sum(axis=2) == kept).all()
        highest_gone = np.where(split, -1, scores.reshape(split.shape)).max(axis=2)
        lowest_kept = np.where(split, scores.reshape(split.shape), np.inf).min(axis=2)
        assert (highest_gone <= lowest_kept).all()


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(PAIRS), st.integers(1, 9), st.integers(1, 3), st.integers(1, 2), st.integers(1, 5), st.data())
def test_groups_lie_along_the_input_channels(
    pair: tuple[int, int], positions: int, channels: int, groups: int, outputs: int, data: st.DataObject
) -> None:
    """Counted in the layout of a convolution, (channel, position), for each output and position."""
    kept, size = pair
    seed = data.draw(st.integers(0, 99))
    weights = np.random.default_rng(seed).standard_normal((groups, channels * size * positions, outputs))
    mask = arranged_back(PerGroup(kept, size).keep(magnitude(arranged(weights, positions))), positions)
    split = mask.reshape(groups, channels, size, positions, outputs)
    assert (split.sum(axis=2) == kept).all()


def test_arranging_and_back() -> None:
    matrix = np.arange(2 * 12 * 3.0).reshape(2, 12, 3)
    assert (arranged(matrix, 4)[0, :, 0] == matrix[0, [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11], 0]).all()
    assert (arranged_back(arranged(matrix, 4), 4) == matrix).all()


@settings(deadline=None, max_examples=60)
@given(st.floats(0, 1), st.integers(1, 2), st.integers(1, 12), st.integers(1, 6), st.integers(0, 99))
def test_unstructured_counts_and_keeps_outputs_alive(
    fraction: float, groups: int, rows: int, outputs: int, seed: int
) -> None:
    scores = np.random.default_rng(seed).integers(1, 4, (groups, rows, outputs)).astype(np.float64)
    zeros = Unstructured().zeros(scores.size, fraction)
    kept = Unstructured().keep(scores, zeros)
    assert np.count_nonzero(~kept) == min(zeros, scores.size - groups * outputs)
    assert kept.any(axis=1).all()
    assert (np.where(kept, scores, 0).max(axis=1) == scores.max(axis=1)).all()


def test_ties_go_in_order() -> None:
    kept = Unstructured().keep(np.ones((1, 5, 1)), 2, spare=False)
    assert kept[0, :, 0].tolist() == [False, False, True, True, True]
    assert PerGroup(1, 2).keep(np.ones((1, 4, 1)))[0, :, 0].tolist() == [False, True, False, True]


def test_outputs_that_are_dead_already_are_not_kept_alive() -> None:
    scores = np.array([[[0.0, 1.0], [0.0, 2.0], [0.0, 3.0]]])
    kept = Unstructured().keep(scores, 4)
    assert kept[0].tolist() == [[False, False], [False, True], [False, True]]


@pytest.mark.parametrize(("outputs", "inputs"), [(1, 4), (4, 1), (2, 3)])
def test_blocks_go_as_a_whole(outputs: int, inputs: int) -> None:
    """``1x4`` is one output channel and four inputs."""
    scores = np.random.default_rng(0).random((2, 12, 8))
    pattern = Block(outputs, inputs)
    zeros = pattern.zeros(scores.size, 0.6)
    kept = pattern.keep(scores, zeros)
    blocks = kept.reshape(2, 12 // inputs, inputs, 8 // outputs, outputs)
    assert (blocks.all(axis=(2, 4)) == blocks.any(axis=(2, 4))).all()
    assert zeros % (outputs * inputs) == 0
    assert np.count_nonzero(~kept) == zeros == pytest.approx(0.6 * scores.size, abs=outputs * inputs / 2)
    assert kept.any(axis=1).all()


@pytest.mark.parametrize("text", ["unstructured", "2:4", "1:32", "31:32", "1x4", "4x1", "16x16"])
def test_patterns_are_read_as_they_print(text: str) -> None:
    assert str(pattern_of(text)) == text


@pytest.mark.parametrize("text", ["4:4", "0:4", "2:33", "2:", "0x4", "1x64", "x", "2-4", "", "-1:4"])
def test_there_are_no_such_patterns(text: str) -> None:
    with pytest.raises(UsageError, match="there is no pattern"):
        pattern_of(text)


def test_scores() -> None:
    weights = np.array([[[1.0, -2.0], [3.0, 0.5]]])
    assert magnitude(weights).tolist() == [[[1.0, 4.0], [9.0, 0.25]]]
    assert wanda(weights, np.array([[[4.0, 1.0], [1.0, 1.0]]])).tolist() == [[[4.0, 16.0], [9.0, 0.25]]]
    flat = sorted([1.0, 4.0, 9.0, 0.25])
    expected = {value: value / sum(other for other in flat if other >= value) for value in flat}
    assert lamp(weights).ravel() == pytest.approx([expected[value] for value in (1.0, 4.0, 9.0, 0.25)])
