"""The report as Markdown, for a pull request or a model card."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from onnxprune.report import findings, grains, integers, patterns, summary, units
from onnxprune.report.schema import Report, Side

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#~$&])")


def to_markdown(report: Report) -> str:
    """The whole report as GitHub-flavoured Markdown; every name is quoted so that it cannot become markup."""
    parts = [
        [f"# onnxprune {_escaped(report.command)}", _escaped(summary.headline(report))],
        [f"> **{_WORDS[notice.level]}**: {_escaped(notice.text)}" for notice in summary.notices(report)],
        [f"> **Warning**: {_escaped(warning)}" for warning in report.warnings],
        _figures(report),
        _proof(report),
        _blocks(report),
        _groups(report),
        _zeros(report),
        _integers(report),
        _frozen(report),
        _findings(report),
        _patterns(report),
        _provenance(report),
    ]
    return "\n\n".join(part for group in parts for part in group) + "\n"


_WORDS = {"bad": "Warning", "warn": "Warning", "info": "Note"}


def _figures(report: Report) -> list[str]:
    rows = summary.comparison(report)
    sizes = summary.sizes_words(report)
    note = [] if sizes is None else [f"MACs are counted at {_code(sizes)}."]
    if report.after is None:
        known = [(row.label, row.before) for row in rows if row.before != units.NOT_MEASURED]
        return [_table(("", "model"), known), *note]
    cells = [(_escaped(row.label), row.before, row.after, row.change) for row in rows]
    return ["## Before and after", _table(("", "before", "after", "change"), cells), *note]


def _proof(report: Report) -> list[str]:
    parts = []
    if summary.wants_proof(report):
        parts.append(_sentence(summary.proof_sentence(report)))
    fidelity = summary.fidelity_sentence(report)
    if fidelity is not None:
        parts.append(_sentence(fidelity))
    allocation = summary.allocation_sentence(report)
    if allocation is not None:
        parts.append(_sentence(allocation))
    if report.proof.inexact_groups:
        parts.append("Outside the proof: " + ", ".join(map(_code, report.proof.inexact_groups)) + ".")
    return ["## Proof and fidelity", *parts] if parts else []


def _blocks(report: Report) -> list[str]:
    sentence = grains.blocks_sentence(report)
    if sentence is None:
        return []
    columns = grains.BLOCK_COLUMNS[: 2 if report.after is None else 3]
    cells = [grains.block_cells(row)[: len(columns)] for row in grains.shown_blocks(report)]
    table = [_table(columns, [(_code(name), *others) for name, *others in cells])] if cells else []
    refused = [(_code(row.name), _escaped(row.reason)) for row in report.blocks if row.reason is not None]
    parts = ["## Blocks", _sentence(_escaped(sentence)), *table]
    return [*parts, _table(("cannot be dropped", "reason"), refused)] if refused else parts


def _zeros(report: Report) -> list[str]:
    if not grains.wants_zeros(report):
        return []
    rows = [(_code(name), _code(node), *others) for name, node, *others in grains.zero_rows(report)]
    dense = [(_escaped(reason), ", ".join(map(_code, nodes))) for reason, nodes in grains.dense_reasons(report)]
    parts = ["## Zeros in weights", _sentence(_escaped(grains.zeros_sentence(report)))]
    parts += [_table(grains.ZERO_COLUMNS, rows)] if rows else []
    return parts + ([_table(("stays dense because", "operators"), dense)] if dense else [])


def _integers(report: Report) -> list[str]:
    if not integers.wants_integers(report):
        return []
    left = [(_escaped(reason), ", ".join(map(_code, nodes))) for reason, nodes in integers.left_reasons(report)]
    parts = ["## Integers", _sentence(_escaped(integers.integers_sentence(report)))]
    return parts + ([_table(integers.LEFT_COLUMNS, left)] if left else [])


def _findings(report: Report) -> list[str]:
    if not findings.wants_findings(report):
        return []
    rows = [
        (_code(row.title), ", ".join(_place(*place) for place in row.places), _escaped(row.why), _escaped(row.fix))
        for row in findings.rules(report)
    ]
    parts = ["## Rules of the target", _sentence(_escaped(findings.sentence(report)))]
    return parts + ([_table(findings.COLUMNS, rows)] if rows else [])


def _place(node: str, detail: str) -> str:
    return _code(node) + (f" ({_escaped(detail)})" if detail else "")


def _groups(report: Report) -> list[str]:
    free = [group for group in report.groups if group.frozen is None]
    if not free:
        return []
    rows = [
        (
            _code(group.name),
            f"{group.units:,}",
            f"{group.units - group.removed:,}",
            units.percent(group.removed / max(1, group.units), 0),
            "" if group.exact else "inexact",
        )
        for group in free
    ]
    return ["## Channel groups", _table(("group", "units before", "units after", "removed", ""), rows)]


def _frozen(report: Report) -> list[str]:
    reasons = summary.frozen_reasons(report)
    if not reasons:
        return []
    places = summary.places(report)
    rows = [
        (
            _escaped(item.reason),
            str(len(item.groups)),
            ", ".join(_code(places.get(group.name, group.name)) for group in item.groups),
        )
        for item in reasons
    ]
    spatial = summary.spatial_sentence(report)
    note = [] if spatial is None else [_sentence(spatial)]
    return ["## Frozen, and why", _table(("reason", "groups", "where"), rows), *note]


def _patterns(report: Report) -> list[str]:
    if not patterns.wants_pattern(report):
        return []
    held = [(*map(_code, patterns.cells(row)[:2]), *patterns.cells(row)[2:]) for row in patterns.held(report)]
    dense = [(_code(row.node), _escaped(row.reason or "")) for row in patterns.dense(report)]
    parts = ["## Held to the pattern", _table(patterns.COLUMNS, held)] if held else []
    return parts + (["## May be dense", _table(("operator", "reason"), dense)] if dense else [])


def _provenance(report: Report) -> list[str]:
    rows = [*_file_rows("before", report.before), *(_file_rows("after", report.after) if report.after else [])]
    rows += [(name, _code(value)) for name, value in summary.environment_rows(report)]
    rows += [(f"option {_code(name)}", _code(value)) for name, value in summary.option_rows(report)]
    rows += [(f"seconds: {_escaped(name)}", units.seconds(value)) for name, value in report.seconds.items()]
    return ["## Provenance", _table(("", ""), rows)]


def _file_rows(label: str, side: Side) -> list[tuple[str, str]]:
    rows = [(label, _code(side.path or "(model in memory)"))]
    return [*rows, (f"{label}, sha256", _code(side.sha256))] if side.sha256 else rows


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["---:" if name in _RIGHT else "---" for name in head[1:]], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


_RIGHT = frozenset(
    [
        *("before", "after", "change", "model", "groups"),
        *("units before", "units after", "removed"),
        *patterns.COLUMNS[2:],
        *grains.BLOCK_COLUMNS[1:],
    ]
)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _escaped(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", units.printable(text))


def _code(text: object) -> str:
    """``text`` as a code span that no backtick or table bar inside of it can end."""
    content = units.printable(text).replace("|", "\\|") or " "
    longest = max((len(run) for run in re.findall("`+", content)), default=0)
    fence = "`" * (longest + 1)
    space = " " if longest else ""
    return f"{fence}{space}{content}{space}{fence}"
