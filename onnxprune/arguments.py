"""What a caller gives, made plain: numbers of numpy become Python's, one pattern becomes a list of one.

Every function returns the plain value or raises a ``UsageError`` with the way out; ``what`` is the name under which the
caller knows the argument.
"""

import math
import numbers
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from onnxprune.errors import UsageError

Value = TypeVar("Value")

LONGEST_PATTERN = 32
"""Largest M of N:M."""


def optional(check: Callable[[object, str], Value], value: object, what: str) -> Value | None:
    """Returns what ``check`` makes of a value, ``None`` where there is none."""
    return None if value is None else check(value, what)


def fraction(value: object, what: str) -> float:
    """Returns a fraction to remove, from 0 up to but not including 1."""
    number = _number(value)
    if number is None or not 0 <= number < 1:
        raise UsageError(f"{what} {_is(value)}: give the fraction to remove, from 0 up to but not including 1")
    return number


def drop(value: object, what: str) -> float:
    """Returns what may be lost of a metric, from 0 up to but not including 1."""
    number = _number(value)
    if number is None or not 0 <= number < 1:
        raise UsageError(f"{what} {_is(value)}: give what may be lost of the metric as a fraction, such as 0.01")
    return number


def positive(value: object, what: str) -> float:
    """Returns a finite number above 0."""
    number = _number(value)
    if number is None or not 0 < number < math.inf:
        raise UsageError(f"{what} {_is(value)}: give a number above 0")
    return number


def whole(value: object, what: str, least: int = 0) -> int:
    """Returns a whole number that is not below ``least``."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
        raise UsageError(f"{what} {_is(value)}: give a whole number from {least} on")
    return int(value)


def count(value: object, what: str) -> int:
    """Returns a whole number from 1 on."""
    return whole(value, what, 1)


def size(value: object, what: str) -> int:
    """Returns bytes from a whole number or from text such as ``512MB`` or ``2GB``."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?\s*", str(value), re.IGNORECASE)
    if isinstance(value, str) and found is not None:
        return count(round(float(found[1]) * 1000 ** " kmgt".index(found[2].lower() or " ")), what)
    try:
        return count(value, what)
    except UsageError as error:
        raise UsageError(f"{what} {_is(value)}: give bytes, or a size such as 512MB or 2GB") from error


def amount_of_macs(value: object, what: str) -> float:
    """Returns what may stay of the multiply-accumulates, as :func:`amount` does; the unit is MAC."""
    return amount(value, what, "mac", "3GMAC")


def amount_of_parameters(value: object, what: str) -> float:
    """Returns what may stay of the parameters, as :func:`amount` does."""
    return amount(value, what, "param", "10M")


def amount(value: object, what: str, unit: str, example: str) -> float:
    """Returns a fraction above 0 and up to 1, or an absolute number above 1, from a number or from text with a unit."""
    found = re.fullmatch(rf"\s*(\d*\.?\d+(?:e\d+)?)\s*([kmg]?)({unit}s?)?\s*", str(value), re.IGNORECASE)
    number = _number(value)
    if isinstance(value, str) and found is not None:
        number = float(found[1]) * 1000 ** " kmg".index(found[2].lower() or " ")
        if (found[2] or found[3]) and number < 2:
            number = None  # nothing can be so small, and below 1 it would read as a fraction
    if number is None or not 0 < number < math.inf:
        raise UsageError(
            f"{what} {_is(value)}: give a fraction of the original such as 0.5, or a number like {example}"
        )
    return number


def kept_of(value: object, what: str) -> tuple[int, int]:
    """Returns N and M of ``N:M``, N kept of every M."""
    found = re.fullmatch(r"\s*(\d{1,2})\s*:\s*(\d{1,2})\s*", value) if isinstance(value, str) else None
    kept, size = (int(found[1]), int(found[2])) if found is not None else (0, 0)
    if not 1 <= kept < size <= LONGEST_PATTERN:
        raise UsageError(
            f"{what} {_is(value)}: give N:M such as 2:4, N kept of every M, 1 <= N < M <= {LONGEST_PATTERN}"
        )
    return kept, size


def block(value: object, what: str) -> tuple[int, int]:
    """Returns K and L of ``KxL``, output channels and input channels."""
    found = re.fullmatch(r"\s*([1-9]\d{0,3})\s*x\s*([1-9]\d{0,3})\s*", value) if isinstance(value, str) else None
    if found is None:
        raise UsageError(f"{what} {_is(value)}: give KxL such as 1x4, K output channels and L input channels")
    return int(found[1]), int(found[2])


def kept_of_text(value: object, what: str) -> str:
    """Returns ``N:M`` in its shortest form."""
    return "{}:{}".format(*kept_of(value, what))


def block_text(value: object, what: str) -> str:
    """Returns ``KxL`` in its shortest form."""
    return "{}x{}".format(*block(value, what))


def fraction_or_count(value: object, what: str) -> float | int:
    """Returns a fraction from 0 up to but not including 1, or a whole number from 1 on."""
    number = _number(value)
    if isinstance(value, numbers.Integral) and number is not None and number >= 1:
        return int(number)
    try:
        return fraction(value, what)
    except UsageError as error:
        way = "give a fraction from 0 up to but not including 1, or a whole number from 1 on"
        raise UsageError(f"{what} {_is(value)}: {way}") from error


def multiple(value: object, what: str) -> int | str:
    """Returns ``auto`` or a whole number from 1 on."""
    if isinstance(value, str) and value == "auto":
        return "auto"
    try:
        return count(value, what)
    except UsageError as error:
        raise UsageError(f"{what} {_is(value)}: give 'auto' or a whole number from 1 on") from error


def word(value: object, what: str) -> str:
    """Returns a name, such as that of a score or a target."""
    if not isinstance(value, str):
        raise UsageError(f"{what} {_is(value)}: give a name as text")
    return str(value)


def flag(value: object, what: str) -> bool:
    """Returns a truth value, Python's or numpy's."""
    if not isinstance(value, bool) and type(value).__name__ not in ("bool", "bool_"):
        raise UsageError(f"{what} {_is(value)}: give True or False")
    return bool(value)


def path(value: object, what: str) -> str | os.PathLike[str]:
    """Returns the path of a file or a folder."""
    if not isinstance(value, str | os.PathLike):
        raise UsageError(f"{what} {_is(value)}: give a path as text or as pathlib.Path")
    return value


def patterns(value: object, what: str) -> tuple[str, ...]:
    """Returns selectors; a single one stands for a list of one."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, Sequence | set | frozenset) or not all(isinstance(item, str) for item in value):
        raise UsageError(f"{what} {_is(value)}: give a pattern, or a list of patterns, as text")
    return tuple(sorted(value) if isinstance(value, set | frozenset) else value)


def shapes(value: object, what: str) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of inputs by name; none where there is no value."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise UsageError(f"{what} {_is(value)}: give a dict such as {{'image': (1, 3, 224, 224)}}")
    return {word(name, f"a name in {what}"): _shape(shape, f"{what} of {name!r}") for name, shape in value.items()}


def _shape(value: object, what: str) -> tuple[int, ...]:
    sizes = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(sizes, str) or not isinstance(sizes, Sequence):
        raise UsageError(f"{what} {_is(value)}: give one size for each axis, such as (1, 3, 224, 224)")
    return tuple(count(size, f"a size in {what}") for size in sizes)


def _number(value: object) -> float | None:
    return None if isinstance(value, bool) or not isinstance(value, numbers.Real) else float(value)


def _is(value: object) -> str:
    """What a value is: itself where that is short, else its type."""
    short = value is None or isinstance(value, str | bool | numbers.Number)
    text = (repr(value) if isinstance(value, str) else str(value)) if short else ""
    return f"is {text}" if 0 < len(text) <= 60 else f"is of the type {type(value).__name__}"
