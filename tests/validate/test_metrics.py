import math

import numpy as np
import pytest

from onnxprune.errors import CalibrationError
from onnxprune.validate import metrics

NAN = float("nan")
INF = float("inf")


def test_top1_and_topk_count_hits():
    logits = np.array([[0.1, 0.7, 0.2], [0.9, 0.0, 0.1], [0.3, 0.3, 0.4], [0.2, 0.5, 0.3]], dtype=np.float32)
    labels = np.array([1, 1, 2, 0])
    assert metrics.top1(logits, labels) == 0.5
    assert metrics.topk(logits, labels, 2) == 0.5
    assert metrics.topk(logits, labels, 3) == 1.0


def test_top1_breaks_ties_like_argmax():
    logits = np.zeros((4, 3))
    labels = np.array([0, 1, 2, 0])
    assert metrics.top1(logits, labels) == np.mean(logits.argmax(axis=1) == labels)
    assert metrics.topk(logits, labels, 2) == 0.75


def test_top1_never_counts_nan_or_labels_out_of_range():
    logits = np.array([[NAN, 1.0], [1.0, NAN], [0.0, 1.0], [1.0, 0.0]])
    assert metrics.top1(logits, np.array([1, 0, 5, -1])) == 0.0


def test_top1_takes_maps_of_size_one():
    logits = np.array([[0.0, 1.0], [1.0, 0.0]]).reshape(2, 2, 1, 1)
    assert metrics.top1(logits, np.array([1, 0])) == 1.0


@pytest.mark.parametrize("shape", [(4,), (4, 2, 3), (3, 5)])
def test_topk_refuses_logits_that_are_not_a_row_per_label(shape):
    with pytest.raises(CalibrationError, match="one row of classes"):
        metrics.topk(np.zeros(shape), np.zeros(4, dtype=np.int64), 1)


def test_agreement_is_the_share_of_equal_decisions():
    base = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    candidate = np.array([[2.0, 1.0], [3.0, 1.0], [5.0, 0.0], [9.0, 8.0]])
    assert metrics.agreement(base, candidate) == 0.75


def test_agreement_of_maps_compares_along_the_channels():
    base = np.zeros((1, 2, 2, 2))
    base[0, 1, 0, 0] = 1
    candidate = base.copy()
    candidate[0, 1, 1, 1] = 1
    assert metrics.agreement(base, candidate) == 0.75
    tokens = np.zeros((1, 4, 3))
    other = tokens.copy()
    other[0, 0, 2] = 1
    assert metrics.agreement(tokens, other) == 0.75


def test_agreement_is_lost_where_only_the_candidate_has_nan():
    base = np.array([[1.0, 0.0], [1.0, NAN]])
    assert metrics.agreement(base, base) == 1.0
    assert metrics.agreement(base, np.array([[1.0, NAN], [1.0, NAN]])) == 0.5
    assert metrics.agreement(base, np.array([[NAN, 0.0], [1.0, 0.0]])) == 0.0


def test_agreement_of_other_shapes_is_zero():
    assert metrics.agreement(np.zeros((2, 3)), np.zeros((2, 4))) == 0.0


def test_cosine_is_the_mean_over_samples():
    base = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    candidate = np.array([[3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    assert metrics.cosine(base, candidate) == pytest.approx(0.0, abs=1e-12)
    np.testing.assert_allclose(metrics.cosines(base, candidate), [1, 0, -1], atol=1e-12)


def test_cosine_survives_zeros_and_huge_values():
    zero, one = np.zeros((1, 3)), np.ones((1, 3))
    assert metrics.cosine(zero, zero) == 1.0
    assert metrics.cosine(zero, one) == 0.0
    assert metrics.cosine(one * 1e300, one * 1e-300) == pytest.approx(1.0)


@pytest.mark.parametrize("bad", [NAN, INF])
def test_a_broken_candidate_is_never_silent(bad):
    base = np.ones((2, 3), dtype=np.float32)
    candidate = base.copy()
    candidate[0, 1] = bad
    np.testing.assert_allclose(metrics.cosines(base, candidate), [0.0, 1.0])
    assert metrics.max_abs(base, candidate) == INF
    assert metrics.mse(base, candidate) == INF
    assert metrics.sqnr_db(base, candidate) == -INF
    assert metrics.max_abs(candidate, base) == INF


def test_values_that_are_equally_missing_in_both_tell_nothing():
    base = np.array([[1.0, NAN, INF], [1.0, 2.0, -INF]])
    candidate = base.copy()
    candidate[1, 1] = 2.5
    assert metrics.cosine(base, base) == pytest.approx(1.0)
    assert metrics.max_abs(base, candidate) == 0.5
    assert metrics.max_abs(base, -base) == INF


def test_mse_and_max_abs():
    base, candidate = np.array([[1.0, 2.0]]), np.array([[1.5, 1.0]])
    assert metrics.mse(base, candidate) == pytest.approx(0.625)
    assert metrics.max_abs(base, candidate) == 1.0
    assert metrics.max_abs(base, np.zeros((1, 3))) == INF


def test_sqnr_is_in_decibels():
    base = np.full((4, 10), 1.0)
    assert metrics.sqnr_db(base, base * 1.1) == pytest.approx(20.0)
    assert metrics.sqnr_db(base, base) == INF
    assert metrics.sqnr_db(base * 0, base) == -INF


def test_float16_does_not_overflow():
    base = np.full((1, 8), 60000, dtype=np.float16)
    assert metrics.max_abs(base, -base) == pytest.approx(120000, rel=1e-3)
    assert math.isfinite(metrics.mse(base, -base))
