"""What a report says, in rows and sentences: shared by the console, Markdown and HTML."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass

from onnxprune.channels.facts import SPATIAL
from onnxprune.report import findings, grains, integers, patterns, units
from onnxprune.report.schema import FrozenRow, GroupRow, Report, Side

_PREFERRED_METRICS = ("top1", "accuracy", "top5", "agreement", "cosine")
_LOWER_IS_BETTER = ("mse", "mae", "rmse", "loss", "error", "perplexity", "wer", "cer", "max_abs")
MACS = "MACs per sample"
_SHAPES_SHOWN = 3
_NODE = re.compile(r"'[^']*' \((\w+)\)")
_NAME = re.compile(r"'[^']*'")
_METRIC_LABELS = {"top1": "top-1 accuracy", "top5": "top-5 accuracy", "mse": "mean squared error"}
# Points of the metric: from the first on it is said, from the second on it is a warning, from the third on an alarm.
_DROPS = (0.0005, 0.01, 0.05)


@dataclass(frozen=True)
class Row:
    """One line of the comparison, in words; ``ratio`` is after ÷ before where that is the figure to look at."""

    label: str
    before: str
    after: str
    change: str
    ratio: float | None = None


@dataclass(frozen=True)
class Notice:
    """Something that a reader must not miss; ``level`` is bad, warn or info."""

    level: str
    text: str


@dataclass(frozen=True)
class FrozenReason:
    """All groups that are frozen for one reason; where nodes differ in nothing but their names, it is one reason."""

    reason: str
    groups: tuple[GroupRow, ...]


def main_metric(report: Report) -> str | None:
    """The name of the metric that the verdict is about, None where no metric was measured."""
    names = list(dict.fromkeys([*report.before.metrics, *(report.after.metrics if report.after else ())]))
    asked = report.options.get("metric")
    if isinstance(asked, str) and asked in names:
        return asked
    return next((name for name in _PREFERRED_METRICS if name in names), names[0] if names else None)


def metric_label(name: str) -> str:
    """The name of a metric in words."""
    return _METRIC_LABELS.get(name, name)


def higher_is_better(name: str) -> bool:
    """False for metrics that are an error."""
    return name.lower() not in _LOWER_IS_BETTER


def comparison(report: Report) -> tuple[Row, ...]:
    """Before against after: parameters, MACs, size, nodes, latency, then each metric; what says nothing is left out."""
    before, after = report.before, report.after or Side()
    rows = [
        Row("parameters", units.count(before.parameters), units.count(after.parameters), *_change(report, "parameters"))
    ]
    if any(units.count(side.nonzero_parameters) != units.count(side.parameters) for side in (before, after)):
        left = _divided(after.nonzero_parameters, before.nonzero_parameters)
        rows.append(
            Row(
                "parameters not zero",
                units.count(before.nonzero_parameters),
                units.count(after.nonzero_parameters),
                units.change(left),
                left,
            )
        )
    nodes = _divided(after.nodes, before.nodes)
    rows += [
        Row(MACS, units.macs(before.macs), units.macs(after.macs), *_change(report, "macs")),
        Row("file size", units.size(before.bytes), units.size(after.bytes), *_change(report, "bytes")),
        *_compressed(before, after),
        Row("nodes", units.count(before.nodes), units.count(after.nodes), units.change(nodes), nodes),
        latency_row(report),
    ]
    return tuple(rows + metric_rows(report))


def _compressed(before: Side, after: Side) -> list[Row]:
    if before.compressed_bytes is None and after.compressed_bytes is None:
        return []
    ratio = _divided(after.compressed_bytes, before.compressed_bytes)
    old, new = units.size(before.compressed_bytes), units.size(after.compressed_bytes)
    return [Row("compressed", old, new, units.change(ratio), ratio)]


def latency_row(report: Report) -> Row:
    """Median latency before and after, and the speed with its interval."""
    ratio = report.ratios.latency
    change = units.speed(ratio.median)
    if ratio.low and ratio.high and ratio.median is not None:
        change += f" ({1 / ratio.high:.2f}x to {1 / ratio.low:.2f}x)"
    after = report.after or Side()
    return Row(
        "latency (median)",
        units.milliseconds(_median(report.before)),
        units.milliseconds(_median(after)),
        change,
        ratio.median,
    )


def metric_rows(report: Report) -> list[Row]:
    """One row for each metric, the main one first."""
    main = main_metric(report)
    if main is None:
        return []
    after = report.after.metrics if report.after else {}
    names = list(dict.fromkeys([main, *report.before.metrics, *after]))
    rows = []
    for name in names:
        old, new = report.before.metrics.get(name), after.get(name)
        rows.append(Row(metric_label(name), units.metric(name, old), units.metric(name, new), _points(name, old, new)))
    return rows


def prunable_units(report: Report) -> tuple[int, int]:
    """How many units could go and how many went."""
    free = [group for group in report.groups if group.frozen is None]
    return sum(group.units for group in free), sum(group.removed for group in free)


def frozen_reasons(report: Report) -> tuple[FrozenReason, ...]:
    """Frozen groups by reason, the most frequent reason first."""
    by_kind: dict[str, list[GroupRow]] = defaultdict(list)
    for group in report.groups:
        if group.frozen is not None:
            by_kind[_NAME.sub("'...'", _NODE.sub(r"\1", group.frozen))].append(group)
    optional = {row.group for row in report.frozen if row.inexact}
    found = []
    for kind, groups in by_kind.items():
        reason = kind if len({group.frozen for group in groups}) > 1 else str(groups[0].frozen)
        hint = " (--inexact lets it go)" if all(group.name in optional for group in groups) else ""
        found.append(FrozenReason(reason + hint, tuple(groups)))
    return tuple(sorted(found, key=lambda item: (-len(item.groups), item.reason)))


def places(report: Report) -> dict[str, str]:
    """Where each frozen group is held, by its name: the first node, the axis of its weight, and how many follow."""
    rows: dict[str, list[FrozenRow]] = defaultdict(list)
    for row in report.frozen:
        rows[row.group].append(row)
    found = {}
    for name, axes in rows.items():
        first, others = axes[0], len(axes) - 1
        more = f" and {others:,} other ax{'is' if others == 1 else 'es'}" if others else ""
        found[name] = f"{first.node} ({first.op}): {first.tensor}[{first.axis}]{more}"
    return found


def spatial_sentence(report: Report) -> str | None:
    """How many axes of kernels there are, which never go; None where there is none."""
    rows = [row for row in report.frozen if row.reason == SPATIAL]
    nodes = len({row.node for row in rows})
    return f"spatial or kernel axes: {len(rows):,}, of {nodes:,} node{_s(nodes)}" if rows else None


def sizes_words(report: Report) -> str | None:
    """The input sizes at which MACs were counted; None where the model leaves none free, or nothing was counted."""
    if not report.input_shapes or report.before.macs is None:
        return None
    shapes = [f"{name}:{'x'.join(map(str, shape)) or 'scalar'}" for name, shape in report.input_shapes.items()]
    more = len(shapes) - _SHAPES_SHOWN
    return ", ".join(shapes[:_SHAPES_SHOWN]) + (f" and {more:,} more input{_s(more)}" if more > 0 else "")


def wants_proof(report: Report) -> bool:
    """True where a proof was run, or should have been because units or blocks went."""
    return report.proof.checked or prunable_units(report)[1] > 0 or any(block.dropped for block in report.blocks)


def proof_sentence(report: Report) -> str:
    """What was proved, how closely, and on what."""
    proof = report.proof
    if not proof.checked:
        return "proof: not run"
    found = f"{units.small(proof.relative)} of the largest output"
    limit = "" if proof.limit is None else f" (limit {units.small(proof.limit)})"
    again = "" if proof.float64 is None else f", in float64 by {units.small(proof.float64)}"
    verb = (
        "FAILED: masked original and sliced model differ"
        if proof.passed is False
        else ("masked original and sliced model differ")
    )
    return f"proof: {verb} by at most {found}{limit}{again}{_proof_inputs(report)}"


def fidelity_sentence(report: Report) -> str | None:
    """How close the outputs of the result are to those of the original; None where it was not measured."""
    fidelity = report.fidelity
    parts = []
    if fidelity.agreement is not None:
        parts.append(f"same answer on {units.percent(fidelity.agreement)} of the samples")
    if fidelity.cosine is not None:
        parts.append(f"cosine {fidelity.cosine:.4f}")
    if fidelity.sqnr_db is not None:
        parts.append(f"signal to noise {fidelity.sqnr_db:.1f} dB")
    if fidelity.max_abs is not None:
        parts.append(f"largest difference {units.small(fidelity.max_abs)}")
    return f"fidelity to the original: {', '.join(parts)}" if parts else None


def allocation_sentence(report: Report) -> str | None:
    """Which allocation won, and what the others came to; None where none competed."""
    rows = sorted(report.allocations, key=lambda row: (not row.chosen, row.divergence is None, row.divergence or 0.0))
    if not rows:
        return None
    words = [f"{row.name} {units.small(row.divergence)}" for row in rows if row.divergence is not None]
    words += [f"{row.name} not finite" for row in rows if row.divergence is None]
    return f"allocation by the error left on held-out samples, relative to the outputs' variance: {', '.join(words)}"


def check_sentences(report: Report) -> list[str]:
    """What came of each thing that a file was held against."""
    words = [findings.sentence(report)] if findings.wants_findings(report) else []
    return words + ([patterns.sentence(report)] if patterns.wants_pattern(report) else [])


def headline(report: Report) -> str:
    """The result in one line."""
    if report.command == "check":
        return "; ".join(check_sentences(report))
    if report.after is None:
        free, _ = prunable_units(report)
        groups = sum(group.frozen is None for group in report.groups)
        words = f"{free:,} unit{_s(free)} in {groups:,} channel group{_s(groups)} can be pruned"
        return ", ".join([words, *grains.headline_parts(report)]) if report.groups else "the model as it is"
    parts = [*grains.headline_parts(report), *integers.headline_parts(report)]
    if report.ratios.latency.median is not None:
        parts.append(units.speed(report.ratios.latency.median))
    if report.ratios.macs is not None:
        parts.append(f"{units.change(report.ratios.macs)} MACs")
    if report.ratios.bytes is not None:
        parts.append(f"{units.change(report.ratios.bytes)} size")
    name = main_metric(report)
    if name is not None:
        old, new = report.before.metrics.get(name), report.after.metrics.get(name)
        if old is not None and new is not None:
            parts.append(f"{metric_label(name)} {units.metric(name, old)} to {units.metric(name, new)}")
    return ", ".join(parts) or "nothing was measured"


def notices(report: Report) -> tuple[Notice, ...]:
    """What must be said before any figure is shown, the worst first."""
    if report.after is None:
        return ()
    found = [_proof_notice(report), metric_notice(report), _latency_notice(report)]
    order = {"bad": 0, "warn": 1, "info": 2}
    return tuple(sorted((notice for notice in found if notice is not None), key=lambda item: order[item.level]))


def _proof_notice(report: Report) -> Notice | None:
    proof = report.proof
    if proof.checked and proof.passed is False:
        return Notice("bad", "The proof failed: the sliced model is not the masked original. Do not use this file.")
    if not proof.checked and wants_proof(report):
        return Notice("warn", "The proof was not run: nothing shows that the surgery did what the plan says.")
    if proof.inexact_groups:
        number = len(proof.inexact_groups)
        return Notice("info", f"{number} inexact group{_s(number)} took part and {_are(number)} outside the proof.")
    return None


def metric_notice(report: Report) -> Notice | None:
    """How far the main metric moved for the worse; None where it did not move."""
    name = main_metric(report)
    if name is None or report.after is None:
        return Notice("info", "No metric was measured: give samples to see what the result is worth.")
    old, new = report.before.metrics.get(name), report.after.metrics.get(name)
    if name == "agreement" and old is None:
        old = 1.0  # the original agrees with itself
    if new is None or old is None:
        return None
    drop = old - new if higher_is_better(name) else new - old
    scale = 1.0 if units.is_percent(name) or old == 0 else abs(old)
    if drop / scale < _DROPS[0]:
        return None
    level = "bad" if drop / scale >= _DROPS[2] else ("warn" if drop / scale >= _DROPS[1] else "info")
    verb = "fell" if higher_is_better(name) else "rose"
    label = metric_label(name)
    text = f"{label} {verb} from {units.metric(name, old)} to {units.metric(name, new)}: {_repair(report)}."
    return Notice(level, text[0].upper() + text[1:])


def _repair(report: Report) -> str:
    layers = report.recovery.layers
    if report.recovery.method is None:
        return "no repair was applied"
    return f"{report.recovery.method} repaired {sum(layer.kept for layer in layers)} of {len(layers)} operators"


def _latency_notice(report: Report) -> Notice | None:
    ratio = report.ratios.latency
    if ratio.median is None:
        return Notice("info", "Latency was not measured.")
    high = ratio.high or ratio.median
    where = f" on {report.environment.provider}" if report.environment.provider else ""
    if ratio.slower:
        return Notice("bad", f"The result is {units.speed(ratio.median)}{where}.")
    if high >= 1.0:
        return Notice("warn", f"The result is not measurably faster{where}.")
    return None


def _proof_inputs(report: Report) -> str:
    proof = report.proof
    samples = "" if proof.samples is None else f"{proof.samples:,} "
    if proof.random_inputs:
        return f", on {samples}random input{_s(proof.samples)}"
    return "" if proof.samples is None else f", on {samples}sample{_s(proof.samples)}"


def _change(report: Report, name: str) -> tuple[str, float | None]:
    ratio: float | None = getattr(report.ratios, name)
    return units.change(ratio), ratio


def _points(name: str, old: float | None, new: float | None) -> str:
    if old is None or new is None:
        return units.NOT_MEASURED
    if units.is_percent(name):
        points = 100 * (new - old)
        return "no change" if abs(points) < 0.05 else f"{'-' if points < 0 else '+'}{abs(points):.1f} points"
    return "no change" if new == old else f"{'-' if new < old else '+'}{abs(new - old):.2g}"


def _median(side: Side) -> float | None:
    return None if side.latency_ms is None else side.latency_ms.median


def _divided(after: float | None, before: float | None) -> float | None:
    return None if after is None or not before else after / before


def _s(number: int | None) -> str:
    return "" if number == 1 else "s"


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


def environment_rows(report: Report) -> list[tuple[str, str]]:
    """What the figures were measured with, in words; what is unknown is left out."""
    environment = report.environment
    rows = [
        ("onnxprune", environment.onnxprune),
        ("onnx", environment.onnx),
        ("onnxruntime", environment.onnxruntime),
        ("provider", environment.provider),
        ("processor", environment.cpu),
        ("threads", environment.threads),
        ("seed", environment.seed),
    ]
    return [(name, str(value)) for name, value in rows if value is not None]


def option_rows(report: Report) -> list[tuple[str, str]]:
    """The options that were set, as text."""
    return [(name, _words(value)) for name, value in report.options.items() if value not in (None, (), [], {})]


def _words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
