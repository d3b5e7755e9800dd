"""The report as one self-contained HTML page: no script, no address of any other file."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from onnxprune.errors import UsageError
from onnxprune.report import findings, grains, integers, patterns, summary, units
from onnxprune.report.schema import Latency, NodeRow, Report, Side

_GROUPS_SHOWN = 40
_NODES_SHOWN = 25


@dataclass(frozen=True)
class Card:
    """One big figure and the small word behind it; the widths are percent of the wider bar, None for no bar."""

    label: str
    big: str
    before: str
    after: str
    tone: str
    before_width: float | None = None
    after_width: float | None = None
    word: str = ""


@dataclass(frozen=True)
class Bar:
    """One row of a bar chart; widths in percent of the chart, None for no bar."""

    name: str
    note: str
    before: str
    after: str
    change: str
    before_width: float | None
    after_width: float | None


@dataclass(frozen=True)
class Chart:
    """A bar chart: the rows that are shown and those that can be unfolded."""

    title: str
    text: str
    bars: tuple[Bar, ...]
    folded: tuple[Bar, ...] = ()


def to_html(report: Report) -> str:
    """The whole page.

    Raises:
        UsageError: jinja2 or matplotlib is not installed.
    """
    try:
        import jinja2

        from onnxprune.report.charts import latency_svg

        drawing = latency_svg(report.latency_samples)
    except ImportError as error:
        raise UsageError(f'HTML needs {error.name}: install "onnxprune[report]" to write HTML reports') from error

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("onnxprune.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["pretty"] = _pretty
    environment.filters["printable"] = units.printable
    environment.filters["block_cells"] = grains.block_cells
    environment.filters["pattern_cells"] = patterns.cells
    return environment.get_template("report.html.j2").render(_context(report, drawing)) + "\n"


def _context(report: Report, drawing: str | None) -> dict[str, Any]:
    return {
        "report": report,
        "units": units,
        "patterns": patterns,
        "grains": grains,
        "integers": integers,
        "findings": findings,
        "rows_shown": _GROUPS_SHOWN,
        "title": _title(report),
        "headline": summary.headline(report),
        "notices": summary.notices(report),
        "cards": cards(report),
        "rows": summary.comparison(report),
        "drawing": drawing,
        "latencies": _latencies(report),
        "groups": group_chart(report),
        "nodes": node_charts(report),
        "sizes": summary.sizes_words(report),
        "frozen": summary.frozen_reasons(report),
        "places": summary.places(report),
        "spatial": summary.spatial_sentence(report),
        "wants_proof": summary.wants_proof(report),
        "proof": summary.proof_sentence(report),
        "fidelity": summary.fidelity_sentence(report),
        "allocation": summary.allocation_sentence(report),
        "environment_rows": summary.environment_rows(report),
        "option_rows": summary.option_rows(report),
    }


def cards(report: Report) -> tuple[Card, ...]:
    """Parameters, MACs, size, latency and the main metric, the figures that a reader came for."""
    rows = {row.label: row for row in summary.comparison(report)}
    shown = [
        ("Parameters", rows["parameters"]),
        ("MACs", rows[summary.MACS]),
        ("File size", rows["file size"]),
        ("Latency", rows["latency (median)"]),
    ]
    if report.after is None:
        return tuple(Card(label, row.before, "", "", "plain") for label, row in shown if row.before != _UNKNOWN)
    result = []
    for label, row in shown:
        big, word = row.change, ""
        if label == "Latency":
            big, _, word = units.speed(row.ratio).partition(" ")
        result.append(Card(label, big, row.before, row.after, _tone(row.ratio), *_widths(row.ratio), word))
    metric = summary.metric_rows(report)
    if metric:
        name = metric[0].label
        big = metric[0].change if metric[0].after == _UNKNOWN else metric[0].after
        result.append(Card(name[0].upper() + name[1:], big, metric[0].before, metric[0].after, _metric_tone(report)))
    return tuple(result)


_UNKNOWN = units.NOT_MEASURED


def group_chart(report: Report) -> Chart | None:
    """Units of each prunable group before and after, in the order of the model; None where there is no group."""
    free = [group for group in report.groups if group.frozen is None]
    if not free:
        return None
    widest = max(max(group.units for group in free), 1)
    inspected = report.after is None
    bars = []
    for group in free:
        left = group.units - group.removed
        bars.append(
            Bar(
                name=group.name,
                note="" if group.exact else "inexact",
                before=f"{group.units:,}",
                after="" if inspected else f"{left:,}",
                change="" if inspected else units.change(left / max(1, group.units)),
                before_width=100 * group.units / widest,
                after_width=None if inspected else 100 * left / widest,
            )
        )
    total, removed = summary.prunable_units(report)
    text = f"{total:,} units in {len(free):,} group{'' if len(free) == 1 else 's'} can be pruned"
    if not inspected:
        text = f"{removed:,} of {total:,} prunable units were removed ({units.percent(removed / max(1, total), 0)})"
    return Chart("Channel groups", text, tuple(bars[:_GROUPS_SHOWN]), tuple(bars[_GROUPS_SHOWN:]))


def node_charts(report: Report) -> tuple[Chart, ...]:
    """MACs and, where it was measured, time of the most expensive nodes; all others are one row."""
    charts = [
        _node_chart(report, "MACs per node", units.macs, lambda node: (node.macs_before, node.macs_after)),
        _node_chart(report, "Time per node", units.milliseconds, lambda node: (node.ms_before, node.ms_after)),
    ]
    return tuple(chart for chart in charts if chart is not None)


_Pair = tuple[float | None, float | None]
_Priced = tuple[NodeRow, float | None, float | None]


def _node_chart(
    report: Report, title: str, words: Callable[[float | None], str], cost: Callable[[NodeRow], _Pair]
) -> Chart | None:
    priced = [(node, *cost(node)) for node in report.nodes]
    priced = [item for item in priced if item[1] or item[2]]
    if not priced:
        return None
    priced.sort(key=lambda item: -max(item[1] or 0, item[2] or 0))
    shown, rest = priced[:_NODES_SHOWN], priced[_NODES_SHOWN:]
    widest = max(shown[0][1] or 0, shown[0][2] or 0)
    bars = [_node_bar(report, words, item, widest) for item in shown]
    text = "every node that costs anything, the most expensive first"
    if rest:
        others = (NodeRow(f"the other {len(rest):,} nodes", ""), _sum([i[1] for i in rest]), _sum([i[2] for i in rest]))
        # The sum of the others would squeeze all bars: it stands there as a figure alone.
        bars.append(replace(_node_bar(report, words, others, widest), before_width=None, after_width=None))
        total = _sum([item[1] for item in priced])
        share = units.percent((_sum([item[1] for item in shown]) or 0) / total if total else None, 0)
        text = f"the {len(shown)} most expensive nodes take {share} of the total"
        text += "" if report.after is None else " before"
    return Chart(title, text, tuple(bars))


def _node_bar(report: Report, words: Callable[[float | None], str], priced: _Priced, widest: float) -> Bar:
    node, before, after = priced
    one_sided = report.after is None
    return Bar(
        name=node.name,
        note=node.op,
        before=words(before),
        after="" if one_sided else words(after),
        change="" if one_sided or not before or after is None else units.change(after / before),
        before_width=100 * (before or 0) / widest,
        after_width=None if one_sided or after is None else 100 * after / widest,
    )


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _latencies(report: Report) -> list[tuple[str, Latency]]:
    sides = [("before", report.before), ("after", report.after or Side())]
    return [(name, side.latency_ms) for name, side in sides if side.latency_ms is not None]


def _title(report: Report) -> str:
    side = report.after or report.before
    return units.printable(PurePath(side.path).name) if side.path else "onnxprune report"


def _tone(ratio: float | None) -> str:
    if ratio is None or 0.995 < ratio < 1.005:
        return "plain"
    return "good" if ratio < 1 else "bad"


def _metric_tone(report: Report) -> str:
    notice = summary.metric_notice(report)
    if notice is None:
        return "good"
    return notice.level if notice.level in ("warn", "bad") else "plain"


def _widths(ratio: float | None) -> tuple[float | None, float | None]:
    if ratio is None:
        return None, None
    widest = max(1.0, ratio)
    return 100 / widest, 100 * ratio / widest


def _pretty(text: str) -> str:
    """Our own words with a real minus and multiplication sign, which a terminal may not have."""
    text = re.sub(r"(?<![\w.])-(?=\d)", "\N{MINUS SIGN}", text)
    text = re.sub(r"(?<=\d )us\b", "\N{MICRO SIGN}s", text)
    text = re.sub(r"(?<=\d)x\b", "\N{MULTIPLICATION SIGN}", text)
    return re.sub(r"(?<=\d) (?=[A-Za-z%\N{MICRO SIGN}]{1,4}\b|%)", "\N{NO-BREAK SPACE}", text)
