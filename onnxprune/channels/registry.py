"""Where operators are looked up: one channel rule, one MAC rule and one value rule at most for each."""

import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.channels.facts import Axis, Fact

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor as a rule sees it.

    ``known`` is its content where the content does not depend on the data (constants and shape arithmetic); ``stored``
    says that this content comes from constants alone, so that it may be edited.
    """

    name: str
    shape: tuple[int, ...]
    known: Array | None = None
    stored: bool = False

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def axis(self, dim: int) -> Axis:
        """Returns an axis; negative dimensions count from the end."""
        return Axis(self.name, dim % len(self.shape))


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node as a rule sees it: missing optional inputs and outputs are ``None``."""

    name: str
    op: str
    opset: int
    attributes: dict[str, Any]
    inputs: tuple[Value | None, ...]
    outputs: tuple[Value | None, ...]

    def attribute(self, name: str, default: Any = None) -> Any:
        """Returns an attribute, or the default of the ONNX specification."""
        return self.attributes.get(name, default)

    def input(self, slot: int) -> Value | None:
        """Returns an input, or ``None`` where it is absent."""
        return self.inputs[slot] if slot < len(self.inputs) else None

    @property
    def data(self) -> Value:
        """The first input, which every channel rule may take for granted."""
        return _present(self.inputs[0])

    @property
    def result(self) -> Value:
        """The first output."""
        return _present(self.outputs[0])

    def weight(self, slot: int) -> Value:
        """Returns an input that the specification requires."""
        return _present(self.inputs[slot])

    def known(self, slot: int) -> Array | None:
        """Returns the content of an input where it is known, else ``None``."""
        value = self.input(slot)
        return None if value is None else value.known

    def integers(self, name: str, slot: int) -> list[int] | None:
        """Returns integers that older opsets keep in an attribute and newer ones in an input."""
        if name in self.attributes:
            return [int(i) for i in self.attributes[name]]
        known = self.known(slot)
        return None if known is None else [int(i) for i in np.ravel(known)]


ChannelRule = Callable[[NodeView], Iterable[Fact]]
MacRule = Callable[[NodeView], int]
ValueRule = Callable[[NodeView, list[Array]], Sequence[Array]]
ShapeRule = Callable[[NodeView], Sequence[tuple[int, ...]]]

STANDARD = (None, "", "ai.onnx")
MICROSOFT = "com.microsoft"
"""The domain of the operators into which ONNX Runtime fuses others."""


@dataclass(slots=True)
class Operator:
    """What is known about one operator.

    ``operands`` are the inputs that it reads as shapes, not as data; ``shapes`` computes the shapes of its outputs from
    those of its inputs where onnx itself infers nothing.
    """

    channels: ChannelRule | None = None
    macs: MacRule | None = None
    values: ValueRule | None = None
    moves: bool = False
    shapes: ShapeRule | None = None
    operands: frozenset[int] = field(default_factory=frozenset)


_OPERATORS: dict[str, Operator] = {}


def channel_rule(*names: str, operands: Sequence[int] = (), domain: str = "") -> Callable[[ChannelRule], ChannelRule]:
    """Registers the channel rule of operators; a second rule for one of them is an error."""

    def register(rule: ChannelRule) -> ChannelRule:
        for found in _entries(names, domain, "channels", "channel"):
            found.channels = rule
            found.operands = frozenset(operands)
        return rule

    return register


def mac_rule(*names: str, domain: str = "") -> Callable[[MacRule], MacRule]:
    """Registers how operators count multiply-accumulates."""

    def register(rule: MacRule) -> MacRule:
        for found in _entries(names, domain, "macs", "MAC"):
            found.macs = rule
        return rule

    return register


def value_rule(*names: str, moves: bool = False, domain: str = "") -> Callable[[ValueRule], ValueRule]:
    """Registers how operators compute small integers of shape arithmetic; ``moves`` if they only rearrange elements."""

    def register(rule: ValueRule) -> ValueRule:
        for found in _entries(names, domain, "values", "value"):
            found.values, found.moves = rule, moves
        return rule

    return register


def shape_rule(*names: str, domain: str = "") -> Callable[[ShapeRule], ShapeRule]:
    """Registers the output shapes of operators for which onnx infers none; element types are those of their input."""

    def register(rule: ShapeRule) -> ShapeRule:
        for found in _entries(names, domain, "shapes", "shape"):
            found.shapes = rule
        return rule

    return register


def _entries(names: Iterable[str], domain: str, kind: str, words: str) -> Iterator[Operator]:
    for name in names:
        found = _OPERATORS.setdefault(full_name(name, domain), Operator())
        if getattr(found, kind) is not None:
            raise ValueError(f"operator {name!r} has two {words} rules")
        yield found


def full_name(name: str, domain: str | None) -> str:
    """Returns an operator's name with its domain, as ONNX text writes it; standard ones have none."""
    return name if domain in STANDARD else f"{domain}.{name}"


def operator(name: str, domain: str | None) -> Operator:
    """Returns what is known about an operator of a domain; nothing at all for unknown ones."""
    return operators().get(full_name(name, domain), Operator())


@functools.cache
def operators() -> dict[str, Operator]:
    """Returns every registered operator by name."""
    import onnxprune.ops

    for module in pkgutil.iter_modules(onnxprune.ops.__path__):
        importlib.import_module(f"onnxprune.ops.{module.name}")
    return _OPERATORS


def _present(value: Value | None) -> Value:
    if value is None:
        raise ValueError("a required input or output is missing")
    return value
