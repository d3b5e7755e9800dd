"""Channel groups: everything that has to be removed together, found in integer arrays.

Axes that correspond one to one form a *class*, so that a chain of a thousand element-wise operators costs one class.
The remaining ties relate channels of classes; their connected components are the units, and units that touch the same
classes equally often are one group. Classes and units both come from ``scipy.sparse.csgraph.connected_components``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.channels.balance import Grid
from onnxprune.channels.blocks import Block, find_blocks
from onnxprune.channels.collect import Contraction, Edit, Statements, collect
from onnxprune.channels.facts import Axis, Index
from onnxprune.channels.price import overpriced
from onnxprune.channels.units import Units, find_units
from onnxprune.model.inline import without_functions
from onnxprune.model.io import load
from onnxprune.model.normalize import prepare
from onnxprune.model.shapes import Shape, Shapes, node_name
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
    ``exact`` is false where a statistic over the channels is not kept as it was, and ``inexact`` says which. Where
    ``blocks`` has the block of every unit, a grouped operator needs as many units of each block to go.
    """

    name: str
    units: int
    members: tuple[Member, ...]
    weights: tuple[Axis, ...]
    frozen: str | None
    exact: bool
    inexact: str | None = None
    blocks: Index | None = None

    @property
    def block_count(self) -> int:
        """Number of blocks from which as many units have to go; 1 where there is no such condition."""
        return 1 if self.blocks is None else int(self.blocks.max()) + 1

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
    grids: tuple[Grid, ...] = ()

    @property
    def prunable(self) -> tuple[ChannelGroup, ...]:
        """The groups whose units can go."""
        return tuple(group for group in self.groups if group.frozen is None)

    @property
    def frozen(self) -> dict[Axis, str]:
        """The axes of stored weights of which nothing can go, and why."""
        return {axis: group.frozen for group in self.groups if group.frozen is not None for axis in group.weights}

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The parts of the graph that map a tensor to one of the same shape, those that can be dropped and others."""
        return find_blocks(self.graph, self.shapes)

    def lost(self, removals: Mapping[str, Sequence[int]]) -> dict[Axis, Index]:
        """Returns the channels of every axis that go with the given units, in order."""
        parts: dict[Axis, list[Index]] = {}
        for group in self.groups:
            units = np.asarray(list(removals.get(group.name, ())), np.int64)
            for member in group.members if units.size else ():
                channels = member.channels[np.isin(member.units, units)]
                for axis in member.axes if channels.size else ():
                    parts.setdefault(axis, []).append(channels)
        return {axis: np.unique(np.concatenate(channels)) for axis, channels in parts.items()}

    def group(self, name: str) -> ChannelGroup:
        """Returns the group of that name; ``KeyError`` where there is none."""
        return {group.name: group for group in self.groups}[name]


def analyze(
    model: object, sizes: dict[str, Shape] | None = None, *, inexact: bool = False, boundary: bool = True
) -> Channels:
    """Returns the channel groups of a model (path, ``ModelProto`` or graph).

    ``sizes`` are concrete input shapes by name; without them free dimensions get sizes that suit the graph. With
    ``inexact`` groups may shrink although a statistic over their channels is not kept as it was, because nothing can,
    or because that would cost more time than it saves (``channels.price``). Without ``boundary`` the inputs and outputs
    of the graph may change too, at any price: what an operator alone says about its axes.

    Raises:
        ModelError: the model cannot be read.
    """
    graph = without_functions(load(model))
    shapes, inputs = prepare(graph, sizes)
    found = collect(graph, shapes, boundary=boundary)
    stored = _stored(graph, shapes) | (set() if boundary else set(inputs))
    groups, grids = _groups(found, stored, _producers(graph), inexact=inexact)
    if boundary:
        reasons = overpriced(graph, shapes, groups, found.edits)
        groups = tuple(_outside(group, reasons.get(group.name), inexact=inexact) for group in groups)
    return Channels(graph, shapes, groups, tuple(found.contractions), tuple(found.edits), inputs, grids)


def _outside(group: ChannelGroup, reason: str | None, *, inexact: bool) -> ChannelGroup:
    """Returns the group as it is, or outside the law where there is a reason."""
    if reason is None or not group.exact:
        return group
    return replace(group, frozen=group.frozen or (None if inexact else reason), exact=False, inexact=reason)


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
    # A group is not called after the Identity that an exporter puts between a shared weight and its readers.
    copies = {id(node) for node in graph.nodes if node.op == "Identity" and isinstance(node.inputs[0], gs.Constant)}
    made = [node for node in graph.nodes if node.op != "Constant" and id(node) not in copies]
    return {tensor.name: node_name(node) for node in made for tensor in node.outputs}


def _groups(
    found: Statements, stored: set[str], producers: dict[str, str], *, inexact: bool = False
) -> tuple[tuple[ChannelGroup, ...], tuple[Grid, ...]]:
    if not any(length for axis, length in zip(found.axes, found.lengths, strict=True) if axis.tensor in stored):
        return (), ()
    units = find_units(found, stored, inexact=inexact)
    groups = _split(units, found, stored)
    if not inexact:
        groups = [replace(group, frozen=group.frozen or group.inexact) for group in groups]
    return _name(groups, producers), units.grids


def _split(units: Units, found: Statements, stored: set[str]) -> list[ChannelGroup]:
    """Returns the groups that have weights."""
    space, total = units.space, units.label.size
    group = units.groups[units.label]
    order = np.lexsort((np.arange(total), units.number, group))
    group, number, label = group[order], units.number[order], units.label[order]
    channel = order - space.offsets[number]
    starts = np.flatnonzero(np.diff(group, prepend=-1) | np.diff(number, prepend=-1))
    ends = np.append(starts[1:], total)
    pieces: dict[int, list[_Piece]] = {}
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        piece = _Piece(int(number[start]), channel[start:end], label[start:end])
        pieces.setdefault(int(group[start]), []).append(piece)
    axes: dict[int, list[Axis]] = {}
    weights: dict[int, list[Axis]] = {}
    columns = {Axis(grid.tensor, grid.columns): grid.axis for grid in units.grids}
    for place, axis in enumerate(found.axes):
        axes.setdefault(int(space.classes[place]), []).append(axis)
        if axis.tensor in stored:
            owner = found.number(columns[axis]) if axis in columns else place
            weights.setdefault(int(space.classes[owner]), []).append(axis)
    return [
        _group(units, parts, axes, weights)
        for parts in pieces.values()
        if any(piece.number in weights for piece in parts)
    ]


class _Piece(NamedTuple):
    """Channels of a class that belong to one group, and their units."""

    number: int
    channels: Index
    label: Index


def _group(
    units: Units, pieces: list[_Piece], axes: dict[int, list[Axis]], weights: dict[int, list[Axis]]
) -> ChannelGroup:
    labels = np.unique(pieces[0].label)
    rank = _ranks(pieces[0].label)
    members = tuple(
        Member(tuple(axes[piece.number]), piece.channels, rank[np.searchsorted(labels, piece.label)])
        for piece in pieces
        if piece.number in axes
    )
    numbers = [piece.number for piece in pieces]
    stored = tuple(axis for number in numbers for axis in weights.get(number, ()))
    frozen = next((units.space.frozen[number] for number in numbers if number in units.space.frozen), None)
    inexact = next((units.space.inexact[number] for number in numbers if number in units.space.inexact), None)
    if frozen is None and len(labels) == 1:
        frozen = "it has only one unit"
    partition, blocks = units.partitions.get(int(labels[0])), None
    if partition is not None:
        blocks = np.empty_like(rank)
        blocks[rank] = partition
    return ChannelGroup("", len(labels), members, stored, frozen, inexact is None, inexact, blocks)


def _ranks(label: Index) -> Index:
    """Returns the position of every unit, units in the order of their labels, among the units as they first appear."""
    first = np.unique(label, return_index=True)[1]
    return np.argsort(np.argsort(first))


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
