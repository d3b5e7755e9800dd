"""The report on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from onnxprune.report import findings, grains, integers, patterns, summary, units

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from onnxprune.report.schema import BlockRow, GroupRow, LinkRow, Report

_GROUPS_SHOWN = 12
_BLOCKS_SHOWN = 8
_REASONS_SHOWN = 8
_PLACES_SHOWN = 3
_LINKS_SHOWN = 6
_AXES_SHOWN = 3
_STYLES = {"bad": "bold red", "warn": "yellow", "info": "cyan"}
_ROLES = (("writes", "written by"), ("passes", "passed on by"), ("sums", "summed over by"))
_ALL = 10**9


def render(report: Report, console: Console, *, full: bool = False) -> None:
    """Print what changed: figures before and after, the proof, the fidelity, what went, and what is in doubt.

    Long lists are folded unless ``full``.
    """
    if report.command == "bench":
        render_latencies(report, console)
        return
    if report.command == "check":
        render_check(report, console, full=full)
        return
    if report.after is None:
        render_inspection(report, console, full=full)
        return
    _line(console, f"{_name(report.before.path)} -> {_name(report.after.path)}", "bold")
    table = _table("", "before", "after", "change")
    for row in summary.comparison(report):
        table.add_row(
            _text(row.label, console), _text(row.before, console), _text(row.after, console), _text(row.change, console)
        )
    console.print(table)
    sizes = summary.sizes_words(report)
    if sizes is not None:
        _line(console, f"MACs are counted at {sizes}")
    if summary.wants_proof(report):
        _line(console, summary.proof_sentence(report), "red" if report.proof.passed is False else "")
    fidelity = summary.fidelity_sentence(report)
    if fidelity is not None:
        _line(console, fidelity)
    allocation = summary.allocation_sentence(report)
    if allocation is not None:
        _line(console, allocation)
    _blocks(report, console, full=full)
    touched = [group for group in report.groups if group.removed > 0]
    _groups(sorted(touched, key=lambda group: -group.removed), console, removed=True, full=full)
    _zeros(report, console, full=full)
    _integers(report, console, full=full)
    _frozen(report, console, full=full)
    _notices(report, console)


def render_inspection(report: Report, console: Console, *, full: bool = False) -> None:
    """Print what a model holds, what can go, and what is frozen and why; long lists are folded unless ``full``."""
    _line(console, _name(report.before.path), "bold")
    table = _table("", "")
    sizes = summary.sizes_words(report)
    for row in summary.comparison(report):
        if row.before != units.NOT_MEASURED:
            at = f" at {sizes}" if row.label == summary.MACS and sizes is not None else ""
            table.add_row(_text(row.label, console), _text(row.before + at, console))
    table.columns[1].justify = "left"
    console.print(table)
    free = [group for group in report.groups if group.frozen is None]
    if report.groups:
        _line(console, summary.headline(report), "" if free else "yellow")
    widest = sorted(free, key=lambda group: -group.units * (group.unit_size or 1))
    _groups(widest, console, removed=False, full=full)
    _blocks(report, console, full=full)
    _frozen(report, console, full=full)
    _notices(report, console)


def render_trees(report: Report, console: Console, *, full: bool = False) -> None:
    """Print what ties each selected group, and the reason where it is frozen; long lists are folded unless ``full``."""
    chosen = [group for group in report.groups if group.name in report.selected]
    shown = len(chosen) if full else _GROUPS_SHOWN
    for group in chosen[:shown]:
        size = "" if group.unit_size is None else f" of {_counted(group.unit_size, 'channel')}"
        size += f", as many from each of {group.blocks} blocks" if group.blocks > 1 else ""
        words = f"{_counted(group.units, 'unit')}{size}, on {_counted(group.axes, 'axis', 'axes')}"
        _line(console, f"{group.name}: {words}{'' if group.exact else ', inexact'}", "bold")
        if group.frozen is not None:
            _line(console, f"  cannot go: {group.frozen}", "yellow")
        for role, title in _ROLES:
            _branch(title, [link for link in group.links if link.role == role], console, full=full)
    _more(console, len(chosen) - shown, " groups")


def render_check(report: Report, console: Console, *, full: bool = False) -> None:
    """Print which rules a file breaks, and where a pattern of zeros holds; long lists are folded unless ``full``."""
    _line(console, _name(report.before.path), "bold")
    if findings.wants_findings(report):
        _findings(report, console, full=full)
    if patterns.wants_pattern(report):
        _pattern(report, console, full=full)
    _warnings(report, console)


def _findings(report: Report, console: Console, *, full: bool) -> None:
    for row in findings.rules(report):
        _line(console, row.title, "yellow" if row.level == findings.HINT else "bold red")
        _line(console, f"  why: {row.why}")
        _line(console, f"  fix: {row.fix}")
        shown = len(row.places) if full else _PLACES_SHOWN
        for node, detail in row.places[:shown]:
            _line(console, f"    {node}{': ' if detail else ''}{detail}", "dim")
        _more(console, len(row.places) - shown, "", " " * 4)
    _line(console, findings.sentence(report), "green" if findings.accepted(report) else "bold red")


def _pattern(report: Report, console: Console, *, full: bool) -> None:
    rows, dense = patterns.held(report), patterns.dense(report)
    shown = _ALL if full else _GROUPS_SHOWN
    table = _table(*patterns.COLUMNS)
    table.columns[1].justify = "left"
    for row in rows[:shown]:
        table.add_row(*(_text(cell, console) for cell in patterns.cells(row)))
    if rows:
        console.print(table)
    _more(console, len(rows) - shown, " operators")
    for row in dense[:shown]:
        _line(console, f"may be dense: {row.node}: {row.reason}", "dim")
    _more(console, len(dense) - shown, " that may be dense")
    _line(console, patterns.sentence(report), "green" if patterns.conforms(report) else "bold red")


def _branch(title: str, links: Sequence[LinkRow], console: Console, *, full: bool) -> None:
    shown = len(links) if full else _LINKS_SHOWN
    for number, link in enumerate(links[:shown]):
        axes = ", ".join(link.axes if full else link.axes[:_AXES_SHOWN])
        if not full and len(link.axes) > _AXES_SHOWN:
            axes += f" and {len(link.axes) - _AXES_SHOWN:,} more"
        prefix = f"  {title:<15}" if number == 0 else " " * 17
        _line(console, f"{prefix}{link.node} ({link.op}): {axes}")
    _more(console, len(links) - shown, "", " " * 17)


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


def _groups(groups: Sequence[GroupRow], console: Console, *, removed: bool, full: bool) -> None:
    if not groups:
        return
    heads = ("units", "left", "removed") if removed else ("units", "channels each", "axes")
    table = _table("group", *heads, "")
    shown = len(groups) if full else _GROUPS_SHOWN
    for group in groups[:shown]:
        note = _text("" if group.exact else "inexact", console)
        cells = [f"{group.units:,}", "" if group.unit_size is None else f"{group.unit_size:,}", f"{group.axes:,}"]
        if removed:
            share = group.removed / max(1, group.units)
            cells = [f"{group.units:,}", f"{group.units - group.removed:,}", units.percent(share, 0)]
        table.add_row(_text(group.name, console), *cells, note)
    console.print(table)
    _more(console, len(groups) - shown)


def _blocks(report: Report, console: Console, *, full: bool) -> None:
    """Print the blocks that went, or that can go, and with ``full`` the others and why they are not among them."""
    sentence = grains.blocks_sentence(report)
    if sentence is None:
        return
    _line(console, sentence)
    rows = grains.shown_blocks(report)
    shown = len(rows) if full else _BLOCKS_SHOWN
    columns = grains.BLOCK_COLUMNS[: 2 if report.after is None else 3]
    if rows:
        table = _table(*columns)
        for row in rows[:shown]:
            table.add_row(*(_text(cell, console) for cell in grains.block_cells(row)[: len(columns)]))
        console.print(table)
    _more(console, len(rows) - shown, " blocks")
    others: list[BlockRow] = grains.other_blocks(report) if full else []
    for row in others:
        _line(console, f"  {row.name}: {grains.block_note(row)}", "dim")


def _zeros(report: Report, console: Console, *, full: bool) -> None:
    if not grains.wants_zeros(report):
        return
    _line(console, grains.zeros_sentence(report))
    rows, reasons = grains.zero_rows(report), grains.dense_reasons(report)
    shown = len(rows) if full else _GROUPS_SHOWN
    table = _table(*grains.ZERO_COLUMNS)
    table.columns[1].justify = table.columns[2].justify = "left"
    for cells in rows[:shown]:
        table.add_row(*(_text(cell, console) for cell in cells))
    if rows:
        console.print(table)
    _more(console, len(rows) - shown, " tensors")
    _reasons("dense", reasons, console, full=full)


def _integers(report: Report, console: Console, *, full: bool) -> None:
    if integers.wants_integers(report):
        _line(console, integers.integers_sentence(report))
        _reasons("as it was", integers.left_reasons(report), console, full=full)


def _reasons(what: str, reasons: Sequence[tuple[str, list[str]]], console: Console, *, full: bool) -> None:
    """Print what was left alone by reason, some names of each unless ``full``."""
    most = _ALL if full else _REASONS_SHOWN
    for reason, nodes in reasons[:most]:
        names = nodes if full else nodes[:_PLACES_SHOWN]
        more = "" if len(names) == len(nodes) else f" and {len(nodes) - len(names):,} more"
        _line(console, f"  {what}: {', '.join(names)}{more}: {reason}", "dim")
    _more(console, len(reasons) - most, " reasons", "  ")


def _frozen(report: Report, console: Console, *, full: bool) -> None:
    """Print the reasons, each with some of the places where it holds groups."""
    reasons, places = summary.frozen_reasons(report), summary.places(report)
    shown = len(reasons) if full else _REASONS_SHOWN
    most = _ALL if full else 1 if len(reasons) > _PLACES_SHOWN else _PLACES_SHOWN
    if reasons:
        _line(console, f"frozen: {_counted(sum(len(item.groups) for item in reasons), 'group')}")
    for item in reasons[:shown]:
        _line(console, f"  {_counted(len(item.groups), 'group')}: {item.reason}")
        known = [places[group.name] for group in item.groups if group.name in places]
        for place in known[:most]:
            _line(console, f"    {place}", "dim")
        _more(console, len(known) - most, "", " " * 4)
    _more(console, len(reasons) - shown, " reasons", "  ")
    spatial = summary.spatial_sentence(report)
    if spatial is not None:
        _line(console, spatial, "dim")


def _more(console: Console, number: int, what: str = "", indent: str = "") -> None:
    """Say how much a folded list leaves out, and how to see it."""
    if number > 0:
        _line(console, f"{indent}... and {number:,} more{what}: -v lists all", "dim")


def _counted(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


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
