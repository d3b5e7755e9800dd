"""Settings files: the part of YAML that settings need, read strictly.

Keys with text, with lists (``[a, b]`` or one ``- a`` a line) or with more keys below them; items of a list may hold
keys of their own. All values stay text.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from onnxprune.errors import UsageError

Setting: TypeAlias = "str | list[str] | list[dict[str, Setting]] | dict[str, Setting]"

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
        raise _refused(line, origin, "put text that begins with a sign in quotes")
    if text and below:
        raise _refused(below[0], origin)
    if text.startswith("["):
        if not text.endswith("]"):
            raise _refused(line, origin)
        return [_text(item.strip(), line, origin) for item in text[1:-1].split(",") if item.strip()]
    if text:
        return _text(text, line, origin)
    if below and below[0].text.startswith("- "):
        return _items(below, origin)
    return _keys(below, origin) if below else ""


def _items(lines: list[_Line], origin: str) -> list[str] | list[dict[str, Setting]]:
    """Returns what stands after each dash, the lines below it that are further in included."""
    starts = [number for number, line in enumerate(lines) if line.indent == lines[0].indent]
    items = [lines[start:end] for start, end in zip(starts, [*starts[1:], len(lines)], strict=True)]
    for item in items:
        if not item[0].text.startswith("- "):
            raise _refused(item[0], origin)
        content = item[0].text[2:].lstrip()
        inside = item[0].indent + len(item[0].text) - len(content)
        item[0] = _Line(item[0].number, inside, content)
    plain = [item for item in items if not _has_key(item[0].text)]
    wrong = next((item[1] for item in plain if len(item) > 1), plain[0][0] if 0 < len(plain) < len(items) else None)
    if wrong is not None:
        raise _refused(wrong, origin)
    if plain:
        return [_text(item[0].text, item[0], origin) for item in items]
    return [_keys(item, origin) for item in items]


def _has_key(text: str) -> bool:
    """Whether a line begins with ``key:``; text in quotes and selectors such as ``op:Conv`` do not."""
    key, found, rest = text.partition(":")
    return bool(found) and (not rest or rest.startswith(" ")) and (key[:1] not in ("'", '"') or key[0] == key[-1])


def _text(text: str, line: _Line, origin: str) -> str:
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    if text.startswith(_BEYOND):
        raise _refused(line, origin, "put text that begins with a sign in quotes")
    if text.startswith(("[", "'", '"')):
        raise _refused(line, origin)
    return text


def _refused(line: _Line, origin: str, way: str = "write 'key: value' or 'key: [a, b]'") -> UsageError:
    return UsageError(f"{origin}, line {line.number}: {line.text[:60]!r} is not understood: {way}")
