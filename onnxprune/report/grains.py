"""What can go besides channels, and what went, in rows and sentences: blocks, and weights that are zero."""

from __future__ import annotations

from collections import defaultdict

from onnxprune.report import units
from onnxprune.report.schema import BlockRow, Report

BLOCK_COLUMNS = ("block", "parameters", "score")
ZERO_COLUMNS = ("weights", "operator", "pattern", "zeros")


def free_blocks(report: Report) -> list[BlockRow]:
    """The blocks of which a fraction or number can be dropped."""
    return [row for row in report.blocks if row.parent is None and row.reason is None]


def shown_blocks(report: Report) -> list[BlockRow]:
    """The blocks that a reader looks for: those that went, the cheapest loss first; before that, all that can go."""
    if report.after is None:
        return free_blocks(report)
    gone = [row for row in report.blocks if row.dropped]
    return sorted(gone, key=lambda row: (row.score is None, row.score or 0.0))


def other_blocks(report: Report) -> list[BlockRow]:
    """All others: those that stay, that lie within others, or that cannot go."""
    shown = {row.name for row in shown_blocks(report)}
    return [row for row in report.blocks if row.name not in shown]


def block_cells(row: BlockRow) -> tuple[str, str, str]:
    """One row in words, as ``BLOCK_COLUMNS``."""
    score = "" if row.score is None else f"{row.score:,.0f}" if row.score >= 1000 else units.small(row.score)
    return (row.name, "" if row.parameters is None else units.count(row.parameters), score)


def block_note(row: BlockRow) -> str:
    """Why a block is not among those that are shown."""
    if row.reason is not None:
        return f"cannot be dropped: {row.reason}"
    return "stays" if row.parent is None else f"lies within {row.parent}"


def blocks_sentence(report: Report) -> str | None:
    """How many blocks went, or can go; None where the report speaks of none."""
    free, gone = len(free_blocks(report)), sum(row.dropped for row in report.blocks)
    if not report.blocks or (report.after is not None and not gone):
        return None
    if report.after is not None:
        return f"dropped {gone:,} of {_counted(max(free, gone), 'block')}"
    words = f"{_counted(free, 'block')} can be dropped"
    within = sum(row.parent is not None and row.reason is None for row in report.blocks)
    refused = sum(row.reason is not None for row in report.blocks)
    words += f", {within:,} more lie{'s' if within == 1 else ''} within them" if within else ""
    return words + (f", {refused:,} cannot" if refused else "")


def wants_zeros(report: Report) -> bool:
    """Whether weights were masked; ``check`` has a table of its own."""
    return report.command != "check" and report.sparsity.pattern is not None


def zeros_sentence(report: Report) -> str:
    """How many weights are zero, in which pattern, and how many operators stay dense."""
    found = report.sparsity
    whole = f"{units.percent(found.fraction)} of the weights of {_counted(len(found.tensors), 'tensor')} are zero"
    dense = len(found.dense)
    left = f", {_counted(dense, 'operator')} stay{'s' if dense == 1 else ''} dense" if dense else ""
    return f"{whole} ({found.pattern}){left}"


def zero_rows(report: Report) -> list[tuple[str, ...]]:
    """The masked tensors in words, as ``ZERO_COLUMNS``."""
    return [
        (row.name, row.node or "", row.pattern or "", "" if row.fraction is None else units.percent(row.fraction))
        for row in report.sparsity.tensors
    ]


def dense_reasons(report: Report) -> list[tuple[str, list[str]]]:
    """The operators that stay dense by reason, the most frequent reason first."""
    found: dict[str, list[str]] = defaultdict(list)
    for row in report.sparsity.dense:
        found[row.reason].append(row.node)
    return sorted(found.items(), key=lambda item: -len(item[1]))


def headline_parts(report: Report) -> list[str]:
    """What went besides channels, for the line that says all; before that, what can go."""
    free, gone = len(free_blocks(report)), sum(row.dropped for row in report.blocks)
    if report.after is None:
        return [f"{_counted(free, 'block')} can be dropped"] if free else []
    parts = [f"{gone:,} of {_counted(max(free, gone), 'block')} dropped"] if gone else []
    if wants_zeros(report):
        parts.append(f"{units.percent(report.sparsity.fraction, 0)} zeros ({report.sparsity.pattern})")
    return parts


def _counted(number: int, one: str) -> str:
    return f"{number:,} {one}{'' if number == 1 else 's'}"
