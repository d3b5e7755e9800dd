"""What every source of samples becomes: parts of named arrays that are read when they are needed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import EllipsisType
from typing import Protocol, TypeAlias

import numpy as np

UNNAMED = ""
"""The name of an array that came without one; ONNX admits no such name for an input."""


class Rows(Protocol):
    """An array whose first axis counts samples: numpy's, one in a file, or images that are decoded when read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes, known without reading."""

    def __getitem__(self, rows: "slice | np.ndarray | EllipsisType", /) -> np.ndarray:
        """Returns the values of some rows."""


Part: TypeAlias = Mapping[str, Rows]


@dataclass(frozen=True)
class Source:
    """Where samples come from.

    Attributes:
        origin: ``"array"``, or the path.
        parts: Named arrays.
        sized: Whether all parts can be counted before one is read; if not, they are taken one by one, up to the limit.
        ordered: Whether the order of the samples is anybody's intention; files in folders of classes have none.
        notes: What the caller should know.
    """

    origin: str
    parts: Iterable[Part]
    sized: bool = True
    ordered: bool = True
    notes: tuple[str, ...] = ()
