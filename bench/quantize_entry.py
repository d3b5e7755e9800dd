"""A file that a quantizer made, and what it is worth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from onnxprune.report.schema import Report
from onnxprune.runtime.latency import LatencyOptions, measure
from onnxprune.runtime.session import SessionOptions, open_session


@dataclass(frozen=True)
class Entry:
    """One file of a network, and what it is worth."""

    name: str
    model: onnx.ModelProto
    report: Report


def likeness(entry: Entry) -> float:
    """Returns the signal to noise of the outputs, in decibels."""
    return entry.report.fidelity.sqnr_db or -np.inf


def accuracies(entry: Entry) -> str:
    """Returns the accuracy before and after where there are labels, else the agreement."""
    report = entry.report
    values = [
        f"{100 * side.metrics[name]:.1f}"
        for side in (report.before, report.after)
        for name in ("top1", "agreement")
        if side is not None and side.metrics.get(name) is not None
    ]
    return " -> ".join(values[:2]) or f"{100 * (report.fidelity.agreement or 0):.1f}"


def timed(models: Sequence[onnx.ModelProto], feed: Mapping[str, np.ndarray], seconds: float) -> list[float]:
    """Returns how much faster each model is than the first."""
    sessions = {str(number): open_session(model, SessionOptions(threads=1)) for number, model in enumerate(models)}
    found = measure(sessions, dict.fromkeys(sessions, feed), LatencyOptions(seconds=seconds))
    return [1 / found.ratios[str(number)].median for number in range(1, len(models))]
