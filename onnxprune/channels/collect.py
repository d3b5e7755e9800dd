"""Runs every channel rule over a graph and gathers what the operators say, with axes as integers."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import onnx_graphsurgeon as gs

from onnxprune.channels.facts import (
    Axis,
    Balance,
    Bound,
    Count,
    Fact,
    Freeze,
    Index,
    Positions,
    Regroup,
    Rescale,
    Restore,
    Result,
    Tie,
)
from onnxprune.channels.registry import MICROSOFT, NodeView
from onnxprune.model.graph import captured, overridable
from onnxprune.model.shapes import Shapes, node_name, opset_of
from onnxprune.model.values import is_float
from onnxprune.ops import operator

INVALID = (ArithmeticError, LookupError, TypeError, ValueError)
"""What a rule raises on a node whose attributes or shapes make no sense; such nodes freeze what they touch."""


@dataclass(frozen=True, slots=True)
class Contraction:
    """A node, by its position in the graph, that sums over a dimension of its input ``slot``."""

    node: int
    slot: int
    dim: int


@dataclass(frozen=True, slots=True)
class Edit:
    """Something stored in a node, by its position in the graph, that follows the channels of an axis."""

    node: int
    fact: Bound | Count | Positions | Rescale | Restore


class Blocks(NamedTuple):
    """A :class:`Balance` between numbered axes."""

    axis: int
    size: int
    offsets: int | None
    rows: int | None


@dataclass(slots=True)
class Statements:
    """All facts about a graph. Axes are numbered: dimension d of a tensor is ``base[tensor] + d``."""

    base: dict[str, int] = field(default_factory=dict)
    axes: list[Axis] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    same: list[tuple[int, int]] = field(default_factory=list)
    ties: list[tuple[int, int, Index, Index]] = field(default_factory=list)
    regroups: list[tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    balances: list[Blocks] = field(default_factory=list)
    frozen: dict[int, str] = field(default_factory=dict)
    inexact: dict[int, str] = field(default_factory=dict)
    contracted: set[int] = field(default_factory=set)
    contractions: list[Contraction] = field(default_factory=list)
    edits: list[Edit] = field(default_factory=list)
    position: int = 0
    types: dict[str, int] = field(default_factory=dict)

    def number(self, axis: Axis) -> int:
        """Returns the number of an axis."""
        return self.base[axis.tensor] + axis.dim

    def freeze(self, axis: int, reason: str) -> None:
        """Freezes an axis; the first reason stays."""
        self.frozen.setdefault(axis, reason)

    def freeze_tensor(self, name: str, reason: str) -> None:
        """Freezes every axis of a tensor."""
        if name in self.base:
            for axis in range(self.base[name], self.base[name] + self._rank(name)):
                self.freeze(axis, reason)

    def _rank(self, name: str) -> int:
        rank, start = 0, self.base[name]
        while start + rank < len(self.axes) and self.axes[start + rank].tensor == name:
            rank += 1
        return rank


def collect(graph: gs.Graph, shapes: Shapes, *, boundary: bool = True) -> Statements:
    """Returns the facts that the operators of a graph state about its axes.

    With ``boundary`` the inputs and outputs of the graph are frozen, which is the contract with the caller; without it
    the operators alone speak.
    """
    found = Statements(types=shapes.types)
    for name, shape in shapes.shapes.items():
        found.base[name] = len(found.axes)
        for dim, size in enumerate(shape):
            found.axes.append(Axis(name, dim))
            found.lengths.append(size)
    for tensor in graph.inputs if boundary else ():
        found.freeze_tensor(tensor.name, f"is the graph input {tensor.name!r}")
    for tensor in graph.outputs if boundary else ():
        found.freeze_tensor(tensor.name, f"is the graph output {tensor.name!r}")
    for name in overridable(graph):
        found.freeze_tensor(name, f"{name!r} may be overridden by the caller")
    versions: dict[str | None, int] = {}
    for found.position, node in enumerate(graph.nodes):
        version = versions.setdefault(node.domain, opset_of(graph, node.domain))
        _collect_node(found, node, shapes, version)
    return found


def _collect_node(found: Statements, node: gs.Node, shapes: Shapes, version: int) -> None:
    tensors = [tensor for tensor in (*node.inputs, *node.outputs) if tensor.name]
    for body in (value for value in node.attrs.values() if isinstance(value, gs.Graph)):
        for name in captured(body):
            found.freeze_tensor(name, f"is used inside the body of {node_name(node)!r} ({node.op})")
    rule = operator(node.op, node.domain).channels
    unread = {t.name for t in node.outputs[1:] if not t.outputs}
    unknown = next((t.name for t in tensors if t.name not in shapes.shapes and t.name not in unread), None)
    view = shapes.view(node, version)
    if rule is None:
        reason = f"no channel rule for {node.op} ({node_name(node)!r})"
        if str(node.domain).startswith(MICROSOFT):
            reason += ": prune before runtime optimization"
    elif unknown is not None:
        reason = f"the shape of {unknown!r} is unknown"
    elif not any(view.outputs):
        reason = f"{node_name(node)!r} ({node.op}) has no output"
    else:
        try:
            facts = list(rule(view))
        except INVALID as error:
            reason = f"{node_name(node)!r} ({node.op}) is not valid: {type(error).__name__}, {error}"
        else:
            mentioned = _record(found, node, view, facts)
            reason = f"the channel rule for {node.op} says nothing about this axis of {node_name(node)!r}"
            _freeze_silent(found, tensors, mentioned, reason)
            return
    _freeze_silent(found, tensors, set(), reason)


def _freeze_silent(found: Statements, tensors: Iterable[gs.Tensor], mentioned: set[int], reason: str) -> None:
    for tensor in tensors:
        start = found.base.get(tensor.name)
        if start is None:
            continue
        axis = start
        while axis < len(found.axes) and found.axes[axis].tensor == tensor.name:
            if axis not in mentioned and found.lengths[axis] > 1:
                found.freeze(axis, reason)
            axis += 1


def _record(found: Statements, node: gs.Node, view: NodeView, facts: Iterable[Fact]) -> set[int]:
    """Stores the facts about one node and returns the axes that they mention."""
    mentioned: set[int] = set()
    for fact in facts:
        match fact:
            case Tie():
                _record_tie(found, node, fact, mentioned)
            case Regroup():
                left, right = (tuple(found.number(axis) for axis in side) for side in (fact.left, fact.right))
                found.regroups.append((left, right))
                mentioned.update(left, right)
            case Balance():
                _record_balance(found, node, fact, mentioned)
            case Freeze():
                axis = found.number(fact.axis)
                mentioned.add(axis)
                (found.inexact if fact.inexact else found.frozen).setdefault(axis, fact.reason)
            case Restore():
                _record_tie(found, node, Tie(fact.source, fact.target, contracts=True), mentioned)
                found.edits.append(Edit(found.position, fact))
            case Rescale(axis, Result(slot)) if not is_float(found.types.get(node.outputs[slot].name, 0)):
                found.freeze(found.number(axis), f"{node_name(node)!r} ({node.op}) takes a mean of integers over it")
            case Bound(axis) if not is_float(found.types.get(node.outputs[0].name, 0)):
                found.freeze(found.number(axis), f"{node_name(node)!r} ({node.op}) reduces integers over it")
            case Bound() | Count() | Positions() | Rescale():
                found.edits.append(Edit(found.position, fact))
    return mentioned


def _record_balance(found: Statements, node: gs.Node, fact: Balance, mentioned: set[int]) -> None:
    axis = found.number(fact.axis)
    offsets, rows = (None if other is None else found.number(other) for other in (fact.offsets, fact.rows))
    mentioned.update((axis,) if offsets is None else (axis, offsets))
    if fact.size < 1 or found.lengths[axis] % fact.size:
        found.freeze(axis, f"{node_name(node)!r} ({node.op}) has groups of unequal size")
        return
    found.balances.append(Blocks(axis, fact.size, offsets, rows))
    if fact.contracts:
        _contract(found, node, fact.axis)


def _record_tie(found: Statements, node: gs.Node, tie: Tie, mentioned: set[int]) -> None:
    left, right = found.number(tie.left), found.number(tie.right)
    mentioned.update((left, right))
    if tie.left_index is not None and tie.right_index is not None:
        found.ties.append((left, right, tie.left_index, tie.right_index))
    elif found.lengths[left] == found.lengths[right]:
        if left != right:
            found.same.append((left, right))
    elif 1 not in (found.lengths[left], found.lengths[right]):
        for axis in (left, right):
            found.freeze(axis, f"{node_name(node)!r} ({node.op}) relates axes of different lengths")
    if tie.contracts:
        _contract(found, node, tie.left)
        if tie.right != tie.left:
            _contract(found, node, tie.right)


def _contract(found: Statements, node: gs.Node, axis: Axis) -> None:
    found.contracted.add(found.number(axis))
    for slot, tensor in enumerate(node.inputs):
        if tensor.name == axis.tensor:
            found.contractions.append(Contraction(found.position, slot, axis.dim))
