"""Write a report to a file, whole or not at all."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from onnxprune.errors import UsageError
from onnxprune.model.writing import write_whole

if TYPE_CHECKING:
    from onnxprune.report.schema import Report

SUFFIXES = (".json", ".md", ".html")


def check_suffix(path: Path) -> None:
    """Refuse a report file whose kind cannot be told, before any work is done.

    Raises:
        UsageError: the suffix is none of ``SUFFIXES``.
    """
    if path.suffix.lower() not in SUFFIXES:
        known = ", ".join(SUFFIXES)
        raise UsageError(f"report file '{path}' has the suffix '{path.suffix}': use one of {known}")
    if path.suffix.lower() == ".html" and importlib.util.find_spec("jinja2") is None:
        raise UsageError(f"report file '{path}' needs jinja2: install \"onnxprune[report]\" to write HTML reports")


def save(report: Report, path: Path) -> None:
    """Write ``report`` in the format that the suffix of ``path`` names.

    Raises:
        UsageError: unknown suffix, or the packages that write HTML are missing.
        OutputError: the file cannot be written; an earlier file of that name is then unchanged.
    """
    check_suffix(path)
    text = _rendered(report, path.suffix.lower())
    write_whole(path, text.encode("utf-8", "backslashreplace"))


def _rendered(report: Report, suffix: str) -> str:
    if suffix == ".json":
        return report.to_json()
    if suffix == ".md":
        from onnxprune.report.markdown import to_markdown

        return to_markdown(report)
    from onnxprune.report.html import to_html

    return to_html(report)
