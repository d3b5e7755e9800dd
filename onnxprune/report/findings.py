"""What the rules of a target found in a file, in rows and sentences."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from onnxprune.report.schema import FindingRow, Report

COLUMNS = ("rule", "nodes", "why it matters", "how to fix it")
HINT = "hint"


@dataclass(frozen=True)
class RuleRow:
    """All findings of one rule."""

    rule: str
    level: str
    why: str
    fix: str
    findings: tuple[FindingRow, ...]

    @property
    def title(self) -> str:
        """The rule, how much it matters, and how often it was broken."""
        named = [row for row in self.findings if row.node]
        places = f" at {_counted(len(named), 'node')}" if named else ""
        return f"{self.rule}{' (hint)' if self.level == HINT else ''}{places}"

    @property
    def places(self) -> tuple[tuple[str, str], ...]:
        """Names of the nodes, and what is wrong at each."""
        return tuple((row.node, row.detail) for row in self.findings if row.node)


def wants_findings(report: Report) -> bool:
    """Whether a file was held against the rules of a target."""
    return report.command == "check" and report.options.get("target") is not None


def accepted(report: Report) -> bool:
    """Whether no rule is broken; hints are none."""
    return all(row.level == HINT for row in report.findings)


def rules(report: Report) -> list[RuleRow]:
    """The rules that something was found by: broken ones first, in the order in which they were found."""
    found: dict[tuple[str, str, str, str], list[FindingRow]] = defaultdict(list)
    for row in report.findings:
        found[row.rule, row.level, row.why, row.fix].append(row)
    rows = [RuleRow(*key, tuple(places)) for key, places in found.items()]
    return sorted(rows, key=lambda row: row.level == HINT)


def sentence(report: Report) -> str:
    """The result in one line."""
    target, found = report.options.get("target"), rules(report)
    broken = [row for row in found if row.level != HINT]
    hints = sum(len(row.findings) for row in found if row.level == HINT)
    more = f", {_counted(hints, 'hint')}" if hints else ""
    if not broken:
        return f"no rule of {target} is broken{more}"
    places = len({row.node for one in broken for row in one.findings})
    verb = "is" if len(broken) == 1 else "are"
    return f"{_counted(len(broken), 'rule')} of {target} {verb} broken, at {_counted(places, 'node')}{more}"


def _counted(number: int, one: str) -> str:
    return f"{number:,} {one}{'' if number == 1 else 's'}"
