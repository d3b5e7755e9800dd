"""The report on a terminal."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import TYPE_CHECKING

from onnxprune.errors import SelectorError
from onnxprune.report import summary, units

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from onnxprune.report.schema import GroupRow, Report

_GROUPS_SHOWN = 12
_REASONS_SHOWN = 8
_STYLES = {"bad": "bold red", "warn": "yellow", "info": "cyan"}


def render(report: Report, console: Console) -> None:
    """Print what changed: figures before and after, the proof, the fidelity, the groups, and what is in doubt."""
    if report.command == "bench":
        render_latencies(report, console)
        return
    if report.after is None:
        render_inspection(report, console)
        return
    _line(console, f"{_name(report.before.path)} -> {_name(report.after.path)}", "bold")
    table = _table("", "before", "after", "change")
    for row in summary.comparison(report):
        table.add_row(
            _text(row.label, console), _text(row.before, console), _text(row.after, console), _text(row.change, console)
        )
    console.print(table)
    if summary.wants_proof(report):
        _line(console, summary.proof_sentence(report), "red" if report.proof.passed is False else "")
    fidelity = summary.fidelity_sentence(report)
    if fidelity is not None:
        _line(console, fidelity)
    touched = [group for group in report.groups if group.removed > 0]
    _groups(sorted(touched, key=lambda group: -group.removed), console, removed=True)
    _frozen(report, console)
    _notices(report, console)


def render_inspection(report: Report, console: Console) -> None:
    """Print what a model holds, what of it can go, and what is frozen and why."""
    _line(console, _name(report.before.path), "bold")
    table = _table("", "")
    for row in summary.comparison(report):
        if row.before != units.NOT_MEASURED:
            table.add_row(_text(row.label, console), _text(row.before, console))
    console.print(table)
    free = [group for group in report.groups if group.frozen is None]
    if report.groups:
        _line(console, summary.headline(report), "" if free else "yellow")
    _groups(sorted(free, key=lambda group: -group.units), console, removed=False)
    _frozen(report, console)
    _notices(report, console)


def render_trees(report: Report, console: Console, patterns: Sequence[str]) -> None:
    """Print what ties each group whose name matches a pattern, and the reason where it is frozen.

    Raises:
        SelectorError: a pattern matches no group.
    """
    for pattern in patterns:
        chosen = [group for group in report.groups if fnmatch.fnmatchcase(group.name, pattern)]
        if not chosen:
            raise SelectorError(f"no group is called {pattern!r}: --json lists all names")
        for group in chosen:
            channels = f"{group.unit_size} channel" + ("" if group.unit_size == 1 else "s")
            _line(console, f"{group.name}: {group.units:,} units of {channels}", "bold")
            if group.frozen is not None:
                _line(console, f"  cannot go: {group.frozen}", "yellow")
            for role, title in (("writes", "written by"), ("passes", "passed on by"), ("sums", "summed over by")):
                links = [link for link in group.links if link.role == role]
                for number, link in enumerate(links):
                    prefix = f"  {title:<15}" if number == 0 else " " * 17
                    _line(console, f"{prefix}{link.node} ({link.op}): {', '.join(link.axes)}")


def render_latencies(report: Report, console: Console) -> None:
    """Print the latency of every model of ``bench`` in milliseconds, and its ratio to the first."""
    columns = ("min", "mean", "median", "p90", "p95", "p99", "max")
    table = _table("model", *(f"{name} ms" for name in columns), "per second", "ratio to the first")
    for row in report.models:
        figures = [f"{getattr(row.latency_ms, name):.3f}" for name in columns]
        ratio = "baseline"
        if row.ratio.median is not None and row.ratio.low is not None and row.ratio.high is not None:
            ratio = f"{row.ratio.median:.3f} ({row.ratio.low:.3f} to {row.ratio.high:.3f})"
            if row.ratio.low <= 1 <= row.ratio.high:
                ratio += ", no significant difference"
        table.add_row(_text(row.name, console), *figures, f"{row.latency_ms.throughput:.1f}", ratio)
    console.print(table)
    found = report.environment
    threads = f"{found.threads} thread" + ("s" if found.threads != 1 else "")
    _line(console, f"{found.provider}, {threads}, {found.cpu}, ONNX Runtime {found.onnxruntime}", "dim")
    _warnings(report, console)


def _groups(groups: list[GroupRow], console: Console, removed: bool) -> None:
    if not groups:
        return
    table = _table("group", "units", "left", "removed", "") if removed else _table("group", "units", "axes", "")
    for group in groups[:_GROUPS_SHOWN]:
        note = _text("" if group.exact else "inexact", console)
        cells = [f"{group.units:,}", f"{group.axes:,}"]
        if removed:
            share = group.removed / max(1, group.units)
            cells = [f"{group.units:,}", f"{group.units - group.removed:,}", units.percent(share, 0)]
        table.add_row(_text(group.name, console), *cells, note)
    console.print(table)
    more = len(groups) - _GROUPS_SHOWN
    if more > 0:
        _line(console, f"... and {more:,} more (see --report)", "dim")


def _frozen(report: Report, console: Console) -> None:
    reasons = summary.frozen_reasons(report)
    if not reasons:
        return
    frozen = sum(len(item.groups) for item in reasons)
    _line(console, f"frozen: {frozen:,} group{'' if frozen == 1 else 's'}")
    for item in reasons[:_REASONS_SHOWN]:
        _line(console, f"  {len(item.groups):>4} x {item.reason}", "dim")
    more = len(reasons) - _REASONS_SHOWN
    if more > 0:
        _line(console, f"  ... and {more:,} more reasons (see --report)", "dim")


def _notices(report: Report, console: Console) -> None:
    for notice in summary.notices(report):
        prefix = "note" if notice.level == "info" else "warning"
        _line(console, f"{prefix}: {notice.text}", _STYLES[notice.level])
    _warnings(report, console)


def _warnings(report: Report, console: Console) -> None:
    for warning in report.warnings:
        _line(console, f"warning: {warning}", "yellow")


def _table(*columns: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, show_header=any(columns), pad_edge=False, show_edge=False)
    for position, column in enumerate(columns):
        table.add_column(column, justify="left" if position == 0 else "right", overflow="fold")
    return table


def _text(text: str, console: Console) -> Text:
    """Text that rich does not read as markup: names come from the model file."""
    from rich.text import Text

    return Text(_sayable(text, console))


def _sayable(text: str, console: Console) -> str:
    """``text`` in the letters that the terminal's encoding has."""
    return units.printable(text).encode(console.encoding, "replace").decode(console.encoding)


def _line(console: Console, text: str, style: str = "") -> None:
    console.print(
        _sayable(text, console), style=style or None, markup=False, highlight=False, emoji=False, soft_wrap=True
    )


def _name(path: str | None) -> str:
    return "(model in memory)" if path is None else path
