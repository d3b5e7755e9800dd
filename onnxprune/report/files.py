"""Write a report to a file, whole or not at all."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from onnxprune.errors import OutputError, UsageError

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
    write_whole(path, _rendered(report, path.suffix.lower()))


def write_whole(path: Path, text: str) -> None:
    """Put ``text`` at ``path`` through a temporary file beside it and one rename.

    Raises:
        OutputError: the folder is missing or closed, the disk is full, or ``path`` is a folder.
    """
    temporary = path.with_name(f".{path.name[:60]}.{secrets.token_hex(6)}.tmp")
    try:
        # "x" and not mkstemp: the file gets the permissions that the user's umask gives, and is never somebody else's.
        with temporary.open("x", encoding="utf-8", errors="backslashreplace", newline="\n") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(
            f"report file '{path}' cannot be written ({error.strerror or error}): name a file in a writable folder"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _rendered(report: Report, suffix: str) -> str:
    if suffix == ".json":
        return report.to_json()
    if suffix == ".md":
        from onnxprune.report.markdown import to_markdown

        return to_markdown(report)
    from onnxprune.report.html import to_html

    return to_html(report)
