"""The vocabulary in which operators speak about channels.

An *axis* is (tensor, dimension); a *channel* is one index along it. A channel rule is a pure function that yields the
facts below about one node and never edits anything. An axis about which no fact is stated stays as it is.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.int64]


class Axis(NamedTuple):
    """One dimension of one tensor."""

    tensor: str
    dim: int


class Attribute(NamedTuple):
    """An integer in a node attribute; ``element`` is its position where the attribute is a list."""

    name: str
    element: int | None = None


class Operand(NamedTuple):
    """One element of an integer tensor that a node reads as its shape, sizes, pads, starts, ends or repeats."""

    slot: int
    element: int


class Result(NamedTuple):
    """An output of a node, by its position: every number in it."""

    slot: int


@dataclass(frozen=True, slots=True)
class Tie:
    """Channels that live and die together: ``left[left_index[i]]`` with ``right[right_index[i]]``.

    Without indices the two axes correspond one to one. ``contracts`` says that the node sums over these channels, so
    that silencing them at its input equals removing them; such ties name the summed activation on the left.
    """

    left: Axis
    right: Axis
    left_index: Index | None = None
    right_index: Index | None = None
    contracts: bool = False


@dataclass(frozen=True, slots=True)
class Regroup:
    """A row-major block: the axes on the left, taken together, are the axes on the right, taken together.

    Channels of a merged axis can go only in whole factors (a head, a channel with its pixels); the engine decides
    which.
    """

    left: tuple[Axis, ...]
    right: tuple[Axis, ...]


@dataclass(frozen=True, slots=True)
class Balance:
    """Every block of ``size`` consecutive channels of the axis keeps as many channels as every other.

    ``offsets`` is an axis of a weight that runs over the places within a block; which block, the weight's axis ``rows``
    tells: as many blocks of consecutive rows.
    """

    axis: Axis
    size: int
    offsets: Axis | None = None
    rows: Axis | None = None
    contracts: bool = False


@dataclass(frozen=True, slots=True)
class Freeze:
    """Nothing on this axis may go. The reason completes the sentence "cannot be pruned: ..."."""

    axis: Axis
    reason: str
    inexact: bool = False
    """The node takes a statistic over the axis: slicing is possible but changes the function."""


@dataclass(frozen=True, slots=True)
class Restore:
    """The node needs the axis at full width: zeros stand in for what was removed.

    It reads the axis of its first input and writes the same axis of its first output, and silent channels do not
    disturb the others. With ``in_place`` channels keep their places; without, as a statistic does not see the order,
    zeros stand behind them. ``along`` are (input, dimension) of other inputs with the axis, which become as wide.
    """

    source: Axis
    target: Axis
    in_place: bool = True
    along: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Count:
    """A stored integer that equals the number of channels of the axis (within ``index`` where given) and follows it.

    ``negative`` marks integers that count from the end, such as a Slice end of -8.
    """

    axis: Axis
    where: Attribute | Operand
    index: Index | None = None
    negative: bool = False


@dataclass(frozen=True, slots=True)
class Positions:
    """The stored integer tensor at input ``slot`` holds positions along the axis, renumbered when channels go."""

    axis: Axis
    slot: int


@dataclass(frozen=True, slots=True)
class Rescale:
    """A number that goes with a power of the fraction of the axis' channels that stay.

    A mean over silenced channels is the mean over the others times that fraction. The number is an attribute, a stored
    tensor at an input, or a floating-point result of the node, which is then multiplied. ``default`` is the value of an
    attribute that the file leaves out.
    """

    axis: Axis
    where: Attribute | Result | int
    power: float
    default: float = 0.0


@dataclass(frozen=True, slots=True)
class Bound:
    """The node's first result is the extreme of all channels of the axis: silent ones put a zero among them.

    ``op`` is Max or Min, which takes that zero in where channels went.
    """

    axis: Axis
    op: str


Fact = Tie | Regroup | Balance | Freeze | Restore | Rescale | Bound | Count | Positions
Facts = Iterator[Fact]

SPATIAL = "spatial or kernel axis"


def free(axis: Axis) -> Tie:
    """Returns the fact that this node puts no condition on the axis."""
    return Tie(axis, axis)
