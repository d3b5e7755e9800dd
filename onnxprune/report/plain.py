"""Dataclasses as the plain values of JSON, and back."""

from __future__ import annotations

import dataclasses
import math
import numbers
import types
import typing
from collections.abc import Mapping
from typing import Any

NOT_IN_JSON = {"json": False}
"""Metadata of a field that stays out of JSON."""


def plain(value: Any) -> Any:
    """``value`` in the types of JSON, numbers that JSON does not know as None."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if dataclasses.is_dataclass(value):
        stored = [item.name for item in dataclasses.fields(value) if item.metadata.get("json", True)]
        return {name: plain(getattr(value, name)) for name in stored}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((plain(item) for item in value), key=str)
    return _plain_scalar(value)


def _plain_scalar(value: Any) -> Any:
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    if hasattr(value, "tolist"):  # numpy arrays and the scalars that no abstract number type covers
        return plain(value.tolist())
    return str(value)


def built(kind: Any, value: Any) -> Any:
    """``value`` as the annotated type ``kind``: the inverse of ``plain`` for the types of this module."""
    if isinstance(kind, types.UnionType):
        if value is None:
            return None
        kind = next(item for item in typing.get_args(kind) if item is not types.NoneType)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, Mapping):
            raise TypeError(f"{kind.__name__} is {type(value).__name__}, not an object")
        hints = typing.get_type_hints(kind)
        known = [item.name for item in dataclasses.fields(kind) if item.metadata.get("json", True)]
        return kind(**{name: built(hints[name], value[name]) for name in known if name in value})
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, (list, tuple)):
            raise TypeError(f"a list is {type(value).__name__}")
        return tuple(built(typing.get_args(kind)[0], item) for item in value)
    if typing.get_origin(kind) is dict:
        inner = typing.get_args(kind)[1]
        return {name: built(inner, item) for name, item in dict(value).items()}
    return value
