"""Metrics of model outputs. NaN and infinity in a candidate never count as agreement.

Arrays have samples on their first axis. Values that are NaN or equally infinite at the same place in both arrays tell
nothing and are left out.
"""

import numpy as np

from onnxprune.errors import CalibrationError


def class_axis(rank: int) -> int:
    """Returns the axis of the classes: the last, or axis 1 of maps such as [batch, class, height, width]."""
    return 1 if rank >= 4 else rank - 1


def top1(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the share of samples whose largest logit is at the label."""
    return topk(logits, labels, 1)


def topk(logits: np.ndarray, labels: np.ndarray, k: int = 5) -> float:
    """Returns the share of samples whose label is among the ``k`` largest logits.

    Raises:
        CalibrationError: The logits are not one row per label.
    """
    hits = topk_hits(logits, labels, k)
    return float(hits.mean()) if hits.size else float("nan")


def topk_hits(logits: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Returns for each sample whether the label is among the ``k`` largest logits; a row with NaN is a miss.

    Equal logits are ranked by class number, as argmax does.

    Raises:
        CalibrationError: The logits are not one row per label.
    """
    rows = _rows(logits, labels)
    known = ~np.isnan(rows).any(axis=1) & (labels >= 0) & (labels < rows.shape[1])
    safe = np.where(known, labels, 0).astype(np.int64)
    own = np.take_along_axis(rows, safe[:, None], axis=1)
    classes = np.arange(rows.shape[1])
    ahead = (rows > own) | ((rows == own) & (classes < safe[:, None]))
    return np.asarray(known & (ahead.sum(axis=1) < k))


def agreement(base: np.ndarray, candidate: np.ndarray) -> float:
    """Returns the share of positions where both arrays have the same largest class."""
    same = agreement_hits(base, candidate)
    return float(same.mean()) if same.size else float("nan")


def agreement_hits(base: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """Returns for each position whether both arrays have the same largest class, and NaN at the same classes."""
    if base.shape != candidate.shape:
        return np.zeros(base.shape[:1], dtype=np.bool_)
    axis = class_axis(base.ndim)
    missing = np.isnan(base)
    alike = (missing == np.isnan(candidate)).all(axis=axis)
    left = np.where(missing, -np.inf, base).argmax(axis=axis)
    right = np.where(np.isnan(candidate), -np.inf, candidate).argmax(axis=axis)
    return np.asarray(alike & (left == right))


def cosine(base: np.ndarray, candidate: np.ndarray) -> float:
    """Returns the mean cosine of the angle between the samples of both arrays."""
    values = cosines(base, candidate)
    return float(values.mean()) if values.size else 1.0


def cosines(base: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """Returns the cosine of each sample: 1 where both are zero, 0 where one is, or where the candidate broke."""
    if base.shape != candidate.shape:
        return np.zeros(len(base) if base.ndim else 1)
    left, right, broken = _paired(base, candidate)
    samples = base.shape[0] if base.ndim else 1
    left, right, broken = (array.reshape(samples, -1) for array in (left, right, broken))
    left, right = _normalized(left), _normalized(right)
    zero_left, zero_right = ~left.any(axis=1), ~right.any(axis=1)
    result = np.clip((left * right).sum(axis=1), -1.0, 1.0)
    result[zero_left & zero_right] = 1.0
    result[broken.any(axis=1)] = 0.0
    return np.asarray(result)


def sqnr_db(base: np.ndarray, candidate: np.ndarray) -> float:
    """Returns the signal to noise ratio in decibels: inf where both are equal, -inf where the candidate broke."""
    return decibels(*power(base, candidate))


def decibels(signal: float, noise: float) -> float:
    """Returns ten times the logarithm of signal / noise."""
    if noise == 0:
        return float("inf")
    if signal == 0 or np.isinf(noise):
        return float("-inf")
    return float(10 * np.log10(signal / noise))


def mse(base: np.ndarray, candidate: np.ndarray) -> float:
    """Returns the mean squared error: inf where the candidate broke."""
    _, noise = power(base, candidate)
    return noise / base.size if base.size else 0.0


def power(base: np.ndarray, candidate: np.ndarray) -> tuple[float, float]:
    """Returns the sums of squares of the base and of the error, in float64; the error is inf if the candidate broke."""
    if base.shape != candidate.shape:
        return 0.0, float("inf")
    left, right, broken = _paired(base, candidate)
    noise = float("inf") if broken.any() else float(np.square(left - right).sum())
    return float(np.square(left).sum()), noise


def max_abs(base: np.ndarray, candidate: np.ndarray) -> float:
    """Returns the largest absolute difference: inf where the candidate broke."""
    if base.shape != candidate.shape:
        return float("inf")
    left, right, broken = _paired(base, candidate)
    if broken.any():
        return float("inf")
    return float(np.abs(left - right).max(initial=0.0))


def _paired(base: np.ndarray, candidate: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns both arrays in float64 with their common non-finite values zeroed, and where only one is non-finite."""
    left, right = base.astype(np.float64), candidate.astype(np.float64)
    same = (np.isnan(left) & np.isnan(right)) | (np.isinf(left) & (left == right))
    broken = ~same & ~(np.isfinite(left) & np.isfinite(right))
    usable = ~same & ~broken
    return np.where(usable, left, 0.0), np.where(usable, right, 0.0), broken


def _normalized(rows: np.ndarray) -> np.ndarray:
    """Returns rows of length one; rows of zeros stay. The largest entry goes first, against overflow."""
    peak = np.abs(rows).max(axis=1, keepdims=True, initial=0.0)
    scaled = rows / np.where(peak == 0, 1.0, peak)
    length = np.linalg.norm(scaled, axis=1, keepdims=True)
    return np.asarray(scaled / np.where(length == 0, 1.0, length))


def _rows(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    axis = class_axis(logits.ndim)
    classes = logits.shape[axis] if logits.ndim >= 2 else 0
    if logits.ndim < 2 or logits.size != len(labels) * classes:
        shape = "x".join(map(str, logits.shape))
        raise CalibrationError(
            f"the classifying output has the shape {shape} for {len(labels)} labels, but labels need one row of classes"
            " per sample: leave the labels out and compare by agreement"
        )
    return np.moveaxis(logits, axis, -1).reshape(len(labels), classes)
