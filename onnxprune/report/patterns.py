"""What the check of a pattern of zeros found, in rows and sentences."""

from __future__ import annotations

from onnxprune.report import units
from onnxprune.report.schema import Report, SparseTensor

COLUMNS = ("weights", "operator", "axis", "groups", "violations", "zeros")


def wants_pattern(report: Report) -> bool:
    """Whether a file was held against a pattern of zeros."""
    return report.command == "check" and report.sparsity.pattern is not None


def conforms(report: Report) -> bool:
    """Whether every operator that is held to the pattern keeps to it."""
    return not any(row.violations for row in held(report))


def held(report: Report) -> list[SparseTensor]:
    """The rows that are held to the pattern, those with most violations first."""
    rows = [row for row in report.sparsity.tensors if row.reason is None]
    return sorted(rows, key=lambda row: -(row.violations or 0))


def dense(report: Report) -> list[SparseTensor]:
    """The rows that are not held to the pattern, and say why."""
    return [row for row in report.sparsity.tensors if row.reason is not None]


def cells(row: SparseTensor) -> tuple[str, ...]:
    """One row in words, as ``COLUMNS``."""
    numbers = ("" if value is None else f"{value:,}" for value in (row.axis, row.groups, row.violations))
    zeros = "" if row.fraction is None else units.percent(row.fraction, 0)
    return (row.name, row.node or "", *numbers, zeros)


def sentence(report: Report) -> str:
    """The result in one line."""
    rows, pattern = held(report), report.sparsity.pattern
    violating = [row for row in rows if row.violations]
    if not rows:
        return f"no operator is held to {pattern}"
    if not violating:
        return f"{pattern} holds in {_counted(len(rows), 'operator')}, {len(dense(report)):,} may be dense"
    groups = sum(row.groups or 0 for row in rows)
    broken = sum(row.violations or 0 for row in rows)
    return (
        f"{pattern} does not hold in {len(violating):,} of {_counted(len(rows), 'operator')}: "
        f"{broken:,} of {_counted(groups, 'group')} of weights hold more"
    )


def _counted(number: int, one: str) -> str:
    return f"{number:,} {one}{'' if number == 1 else 's'}"
