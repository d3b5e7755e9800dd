"""Channel groups: everything that has to be removed together, found in integer arrays.

Axes that correspond one to one form a *class*, so that a chain of a thousand element-wise operators costs one class.
The remaining ties relate channels of classes; their connected components are the units, and units that touch the same
classes equally often are one group. Classes and units both come from ``scipy.sparse.csgraph.connected_components``.
"""

from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from onnxprune.channels.collect import Contraction, Edit, Statements, collect
from onnxprune.channels.factors import Factor, Factoring, Part, blocks
from onnxprune.channels.facts import Axis, Index
from onnxprune.model.inline import without_functions
from onnxprune.model.io import load
from onnxprune.model.normalize import normalize
from onnxprune.model.shapes import Shape, Shapes, ShapeWalk, node_name
from onnxprune.model.sizes import generic_shapes
from onnxprune.model.states import drop_zero_states
from onnxprune.model.untie import untie
from onnxprune.ops import operator

INTEGERS = {2, 3, 4, 5, 6, 7, 8, 9, 12, 13}
"""ONNX element types that hold no weights: integers, strings and truth values."""


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """Axes of a group that share their channels: ``channels[i]`` of each belongs to unit ``units[i]``."""

    axes: tuple[Axis, ...]
    channels: Index
    units: Index


@dataclass(frozen=True, slots=True, eq=False)
class ChannelGroup:
    """Units that can be removed one by one, each with everything that hangs on it.

    ``weights`` are the axes of stored tensors; ``frozen`` says why nothing can go, ``None`` where units can go;
    ``exact`` is false where a statistic runs over the channels, and ``inexact`` says which.
    """

    name: str
    units: int
    members: tuple[Member, ...]
    weights: tuple[Axis, ...]
    frozen: str | None
    exact: bool
    inexact: str | None = None

    @property
    def width(self) -> int:
        """Channels of the widest weight axis that go with one unit: what rounding has to count."""
        stored = set(self.weights)
        widths = [len(m.channels) for m in self.members if any(axis in stored for axis in m.axes)]
        return max(widths, default=self.units) // self.units

    @property
    def axes(self) -> int:
        """Number of axes that the group touches."""
        return sum(len(member.axes) for member in self.members)


@dataclass(frozen=True, slots=True, eq=False)
class Channels:
    """What analysis found in a graph: groups, and what has to follow when their units go."""

    graph: gs.Graph
    shapes: Shapes
    groups: tuple[ChannelGroup, ...]
    contractions: tuple[Contraction, ...]
    edits: tuple[Edit, ...]
    sizes: dict[str, Shape]

    @property
    def prunable(self) -> tuple[ChannelGroup, ...]:
        """The groups whose units can go."""
        return tuple(group for group in self.groups if group.frozen is None)

    @property
    def frozen(self) -> dict[Axis, str]:
        """The axes of stored weights of which nothing can go, and why."""
        return {axis: group.frozen for group in self.groups if group.frozen is not None for axis in group.weights}

    def group(self, name: str) -> ChannelGroup:
        """Returns the group of that name; ``KeyError`` where there is none."""
        return {group.name: group for group in self.groups}[name]


def analyze(
    model: object, sizes: dict[str, Shape] | None = None, *, inexact: bool = False, boundary: bool = True
) -> Channels:
    """Returns the channel groups of a model (path, ``ModelProto`` or graph).

    ``sizes`` are concrete input shapes by name; without them free dimensions get sizes that suit the graph. With
    ``inexact`` groups may shrink although a normalization takes a statistic over their channels, which changes the
    function. Without ``boundary`` the inputs and outputs of the graph may change too: what an operator alone says about
    its axes.

    Raises:
        ModelError: the model cannot be read.
    """
    graph = without_functions(load(model))
    drop_zero_states(graph)
    untie(graph)
    shapes, inputs = generic_shapes(graph, sizes)
    if normalize(graph, shapes):
        shapes = ShapeWalk(graph, inputs).run()
    found = collect(graph, shapes, boundary=boundary)
    stored = _stored(graph, shapes) | (set() if boundary else set(inputs))
    groups = _groups(found, stored, _producers(graph), inexact=inexact)
    return Channels(graph, shapes, groups, tuple(found.contractions), tuple(found.edits), inputs)


def _stored(graph: gs.Graph, shapes: Shapes) -> set[str]:
    """Names of the tensors kept in the file that hold weights: floating-point numbers, or quantized ones."""
    names: set[str] = set()
    quantized: set[str] = set()
    for node in graph.nodes:
        operands = operator(node.op, node.domain).operands
        for slot, tensor in enumerate(node.inputs):
            if slot not in operands and (isinstance(tensor, gs.Constant) or _is_constant_node(tensor)):
                names.add(tensor.name)
        if node.op == "DequantizeLinear":
            quantized.add(node.inputs[0].name)
    return {n for n in names if n in shapes.shapes and (shapes.types.get(n) not in INTEGERS or n in quantized)}


def _is_constant_node(tensor: gs.Tensor) -> bool:
    """Whether a node makes the tensor from the file alone: Constant, or ConstantOfShape of a stored shape."""
    producer = tensor.inputs[0] if tensor.inputs else None
    if producer is None or producer.op not in ("Constant", "ConstantOfShape"):
        return False
    return all(isinstance(source, gs.Constant) or _is_constant_node(source) for source in producer.inputs)


def _producers(graph: gs.Graph) -> dict[str, str]:
    return {tensor.name: node_name(node) for node in graph.nodes for tensor in node.outputs if node.op != "Constant"}


@dataclass(slots=True)
class _Space:
    """All channels of all classes, side by side: channel c of class k is ``offsets[k] + c``."""

    classes: Index
    lengths: Index
    offsets: Index
    rows: list[Index]
    columns: list[Index]
    frozen: dict[int, str]
    inexact: dict[int, str]

    def tie(self, left: int, right: int, left_index: Index, right_index: Index) -> None:
        self.rows.append(self.offsets[left] + left_index)
        self.columns.append(self.offsets[right] + right_index)


def _groups(
    found: Statements, stored: set[str], producers: dict[str, str], *, inexact: bool = False
) -> tuple[ChannelGroup, ...]:
    if not any(found.lengths):
        return ()
    refined = []
    for left, right in found.regroups:
        minimal, odd = blocks(left, right, found.lengths)
        for axis in odd:
            found.freeze(axis, "a Reshape rearranges it in sizes that have no common factors")
        for block in minimal:
            if len(block.factors) == 1 and len(block.axes) == 2:
                found.same.append((block.axes[0][0], block.axes[1][0]))
            else:
                refined.append(block)
    classes = _components(len(found.axes), found.same)
    factoring = Factoring(found, refined, classes, inexact=inexact)
    decisions, reasons, factors = factoring.decide()
    space = _space(found, classes, factors, decisions, reasons)
    groups = _split(space, found, stored)
    if not inexact:
        groups = [replace(group, frozen=group.frozen or group.inexact) for group in groups]
    return _name(groups, producers)


def _components(count: int, edges: list[tuple[int, int]]) -> Index:
    pairs = np.array(edges, np.int64).reshape(-1, 2)
    matrix = coo_matrix((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return connected_components(matrix, directed=False)[1].astype(np.int64)


def _space(
    found: Statements,
    classes: Index,
    factors: list[Factor],
    decisions: list[tuple[int, Part, int]],
    reasons: dict[int, str],
) -> _Space:
    """Lays out the channels of every class, then of every factor, and ties them."""
    count = int(classes.max()) + 1
    lengths = np.zeros(count, np.int64)
    np.maximum.at(lengths, classes, np.array(found.lengths, np.int64))
    own = [factor.length or max((int(lengths[n]) for n in factor.classes), default=1) for factor in factors]
    lengths = np.concatenate([lengths, np.array(own, np.int64)])
    space = _Space(classes, lengths, np.concatenate([[0], np.cumsum(lengths)]), [], [], {}, {})
    for source, target in ((found.frozen, space.frozen), (found.inexact, space.inexact)):
        for axis, reason in source.items():
            target.setdefault(int(classes[axis]), reason)
    for number, reason in reasons.items():
        space.frozen.setdefault(number, reason)
    for position, factor in enumerate(factors):
        if factor.dead is not None:
            space.frozen.setdefault(count + position, factor.dead)
        for number in factor.classes:
            every = np.arange(own[position])
            space.tie(number, count + position, every, every)
    for number, (stride, length), position in decisions:
        every = np.arange(lengths[number])
        space.tie(number, count + position, every, every // stride % length)
    for left, right, left_index, right_index in found.ties:
        space.tie(int(classes[left]), int(classes[right]), left_index, right_index)
    return space


def _split(space: _Space, found: Statements, stored: set[str]) -> list[ChannelGroup]:
    """Finds the units and sorts them into groups by the classes that they touch."""
    total = int(space.offsets[-1])
    edges = (np.concatenate(space.rows), np.concatenate(space.columns)) if space.rows else (np.zeros(0, int),) * 2
    matrix = coo_matrix((np.ones(len(edges[0]), np.int8), edges), shape=(total, total))
    count, components = connected_components(matrix, directed=False)
    label = components.astype(np.int64)
    number = np.repeat(np.arange(len(space.lengths)), space.lengths)
    signature = _signatures(label, number, count)
    _, group_of_unit = np.unique(signature, return_inverse=True)
    group = group_of_unit[label]

    order = np.lexsort((np.arange(total), number, group))
    group, number, label = group[order], number[order], label[order]
    channel = order - space.offsets[number]
    starts = np.flatnonzero(np.diff(group, prepend=-1) | np.diff(number, prepend=-1))
    ends = np.append(starts[1:], total)
    axes_of: list[list[int]] = [[] for _ in space.lengths]
    for axis, owner in enumerate(space.classes):
        axes_of[owner].append(axis)
    pieces: dict[int, list[tuple[int, int, int]]] = {}
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        pieces.setdefault(int(group[start]), []).append((int(number[start]), start, end))
    weighted = {int(space.classes[i]) for i, axis in enumerate(found.axes) if axis.tensor in stored}
    return [
        _group(space, found, stored, axes_of, [(n, channel[s:e], label[s:e]) for n, s, e in parts])
        for parts in pieces.values()
        if any(part[0] in weighted for part in parts)
    ]


def _signatures(label: Index, number: Index, count: int) -> Index:
    """A 64-bit sum for each unit of the classes that it touches and how often."""
    pairs, often = np.unique(label * (int(number.max()) + 1) + number, return_counts=True)
    unit, touched = np.divmod(pairs, int(number.max()) + 1)
    random = np.random.default_rng(0).integers(1, 2**62, int(number.max()) + 1, np.uint64)
    mixed = random[touched] * (2 * often.astype(np.uint64) + np.uint64(1))
    total = np.zeros(count, np.uint64)
    np.add.at(total, unit, mixed ^ (mixed >> np.uint64(29)))
    return total.astype(np.int64)


def _group(
    space: _Space,
    found: Statements,
    stored: set[str],
    axes_of: list[list[int]],
    parts: list[tuple[int, Index, Index]],
) -> ChannelGroup:
    labels, first = np.unique(parts[0][2], return_index=True)
    rank = np.argsort(np.argsort(first))
    members, weights = [], []
    for number, channels, label in parts:
        axes = tuple(found.axes[axis] for axis in axes_of[number]) if number < len(axes_of) else ()
        units = rank[np.searchsorted(labels, label)]
        if axes:
            members.append(Member(axes, channels, units))
            weights += [axis for axis in axes if axis.tensor in stored]
    frozen = next((space.frozen[number] for number, _, _ in parts if number in space.frozen), None)
    inexact = next((space.inexact[number] for number, _, _ in parts if number in space.inexact), None)
    if frozen is None and len(labels) == 1:
        frozen = "it has only one unit"
    return ChannelGroup("", len(labels), tuple(members), tuple(weights), frozen, inexact is None, inexact)


def _name(groups: list[ChannelGroup], producers: dict[str, str]) -> tuple[ChannelGroup, ...]:
    """Names every group after the first node that writes one of its axes, else after its first tensor."""
    order = {name: position for position, name in enumerate(producers)}
    named: list[tuple[int, ChannelGroup]] = []
    taken: dict[str, int] = {}
    for group in groups:
        tensors = {axis.tensor for member in group.members for axis in member.axes}
        first = min(tensors, key=lambda name: (order.get(name, len(order)), name))
        named.append((order.get(first, len(order)), _renamed(group, producers.get(first, first))))
    result = []
    for _, group in sorted(named, key=lambda item: (item[0], item[1].name)):
        taken[group.name] = taken.get(group.name, 0) + 1
        often = taken[group.name]
        result.append(group if often == 1 else _renamed(group, f"{group.name}#{often}"))
    return tuple(result)


def _renamed(group: ChannelGroup, name: str) -> ChannelGroup:
    return replace(group, name=name)
