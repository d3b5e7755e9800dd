"""What became integers or halves and what stayed as it was, in rows and sentences."""

from __future__ import annotations

from collections import defaultdict

from onnxprune.report.schema import Report

LEFT_COLUMNS = ("stays as it was because", "nodes")


def wants_integers(report: Report) -> bool:
    """Whether operators were quantized."""
    return report.quantization.target is not None


def integers_sentence(report: Report) -> str:
    """How many operators became integers for which target, and how many the runtime really computes so."""
    found = report.quantization
    words = f"{found.form or 'int8'} for {found.target}"
    if found.eligible:
        words += f": {_share(report)} with weights"
    if found.fusion.fused is not None:
        verb = "runs" if found.fusion.fused == 1 else "run"
        words += f", {found.fusion.fused:,} {verb} on integers in ONNX Runtime"
    return words


def left_reasons(report: Report) -> list[tuple[str, list[str]]]:
    """The nodes that stay as they were by reason, the most frequent reason first."""
    found: dict[str, list[str]] = defaultdict(list)
    for row in report.quantization.left:
        found[row.reason].append(row.node)
    return sorted(found.items(), key=lambda item: -len(item[1]))


def headline_parts(report: Report) -> list[str]:
    """What became integers, for the line that says all."""
    found = report.quantization
    if not wants_integers(report):
        return []
    return [f"{found.form or 'int8'} in {_share(report)}" if found.eligible else str(found.form)]


def _share(report: Report) -> str:
    found = report.quantization
    quantized, eligible = found.quantized or 0, found.eligible or 0
    return f"{quantized:,} of {eligible:,} operator{'' if eligible == 1 else 's'}"
