"""Settings files: the part of YAML that settings need, read strictly.

Keys with text, with lists (``[a, b]`` or one ``- a`` a line) or with more keys below them. All values stay text.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from onnxprune.errors import UsageError

Setting: TypeAlias = "str | list[str] | dict[str, Setting]"

_BEYOND = tuple("{}&*!|>%@`?")
"""How those parts of YAML begin that are not read here."""


@dataclass(frozen=True)
class _Line:
    number: int
    indent: int
    text: str


def read_settings(path: str | os.PathLike[str]) -> Mapping[str, Setting]:
    """Returns the settings of a file.

    Raises:
        UsageError: The file cannot be read, or holds what is not understood.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise UsageError(f"{os.fspath(path)}: the settings cannot be read ({reason}): give a YAML file") from error
    return parse_settings(text, os.fspath(path))


def parse_settings(text: str, origin: str) -> dict[str, Setting]:
    """Returns the settings that a text holds.

    Raises:
        UsageError: The text holds what is not understood.
    """
    lines = [
        _Line(number, len(line) - len(line.lstrip()), line.strip())
        for number, line in enumerate(map(_without_comment, text.splitlines()), 1)
        if line.strip() and not (number == 1 and line.strip() == "---")
    ]
    if any("\t" in line[: len(line) - len(line.lstrip())] for line in text.splitlines()):
        raise UsageError(f"{origin}: a line begins with a tab: use spaces")
    return _keys(lines, origin) if lines else {}


def _without_comment(line: str) -> str:
    """Returns a line up to a ``#`` that stands at its start or after a space, outside quotes."""
    quote = ""
    for place, letter in enumerate(line):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter == "#" and (place == 0 or line[place - 1].isspace()):
            return line[:place]
    return line


def _keys(lines: list[_Line], origin: str) -> dict[str, Setting]:
    result: dict[str, Setting] = {}
    start = 0
    while start < len(lines):
        line = lines[start]
        end = start + 1
        while end < len(lines) and (lines[end].indent > line.indent or _continues(line, lines[end])):
            end += 1
        key, found, value = line.text.partition(":")
        if not found or (value and not value.startswith(" ")) or line.indent != lines[0].indent:
            raise _refused(line, origin)
        name = _text(key.strip(), line, origin)
        if not name or name in result:
            raise UsageError(f"{origin}, line {line.number}: the key {name!r} is empty or stands there twice")
        result[name] = _value(value.strip(), line, lines[start + 1 : end], origin)
        start = end
    return result


def _continues(key: _Line, line: _Line) -> bool:
    """Whether a line is an item of the list under a key, which need not be indented."""
    return line.indent == key.indent and line.text.startswith("- ") and key.text.endswith(":")


def _value(text: str, line: _Line, below: list[_Line], origin: str) -> Setting:
    if text.startswith(_BEYOND):
        raise _refused(line, origin)
    if text and below:
        raise _refused(below[0], origin)
    if text.startswith("["):
        if not text.endswith("]"):
            raise _refused(line, origin)
        return [_text(item.strip(), line, origin) for item in text[1:-1].split(",") if item.strip()]
    if text:
        return _text(text, line, origin)
    if below and below[0].text.startswith("- "):
        for item in below:
            if item.indent != below[0].indent or not item.text.startswith("- "):
                raise _refused(item, origin)
        return [_text(item.text[2:].strip(), item, origin) for item in below]
    return _keys(below, origin) if below else ""


def _text(text: str, line: _Line, origin: str) -> str:
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    if text.startswith(_BEYOND) or text.startswith(("[", "'", '"')):
        raise _refused(line, origin)
    return text


def _refused(line: _Line, origin: str) -> UsageError:
    return UsageError(
        f"{origin}, line {line.number}: {line.text[:60]!r} is not understood: write 'key: value' or 'key: [a, b]'"
    )
