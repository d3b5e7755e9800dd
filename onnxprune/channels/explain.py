"""Why a group is what it is: the nodes that tie its axes, what each does with them, and what holds frozen ones."""

from dataclasses import dataclass

import onnx_graphsurgeon as gs

from onnxprune.channels.facts import Axis
from onnxprune.channels.groups import ChannelGroup, Channels
from onnxprune.model.shapes import node_name

ROLES = ("writes", "passes", "sums")
"""In the order in which a tree shows them."""

FORMS = {
    "Cast", "Constant", "DequantizeLinear", "Identity", "QuantizeLinear", "Reshape", "Squeeze", "Transpose",
    "Unsqueeze",
}  # fmt: skip
"""Operators between a stored weight and the node that computes with it."""


@dataclass(frozen=True, slots=True)
class Link:
    """A node that ties axes of a group.

    ``role`` is ``writes`` where the node makes the channels with weights of its own, ``sums`` where it sums over them,
    ``passes`` otherwise. ``axes`` are the axes of the group that it touches, weights first, as ``name[dim]``.
    """

    node: str
    op: str
    role: str
    axes: tuple[str, ...]


def links(channels: Channels) -> dict[str, tuple[Link, ...]]:
    """Returns the nodes that tie each group, by group name, those that write first and those that sum last."""
    owners: dict[str, list[tuple[int, ChannelGroup]]] = {}
    for group in channels.groups:
        for axis in {*group.weights, *(axis for member in group.members for axis in member.axes)}:
            owners.setdefault(axis.tensor, []).append((axis.dim, group))
    nodes = channels.graph.nodes
    sums = {(item.node, nodes[item.node].inputs[item.slot].name, item.dim) for item in channels.contractions}
    found: dict[str, list[Link]] = {group.name: [] for group in channels.groups}
    for position, node in enumerate(nodes):
        touched: dict[str, list[Axis]] = {}
        for tensor in {tensor.name: tensor for tensor in (*node.inputs, *node.outputs)}.values():
            for dim, group in owners.get(tensor.name, ()):
                touched.setdefault(group.name, []).append(Axis(tensor.name, dim))
        for name, axes in touched.items():
            found[name].append(_link(node, position, axes, sums, channels))
    return {name: tuple(sorted(items, key=lambda link: ROLES.index(link.role))) for name, items in found.items()}


@dataclass(frozen=True, slots=True)
class FrozenAxis:
    """An axis of a stored tensor that stays as it is: the node that reads it, and why.

    ``inexact`` says that nothing but a statistic over the channels holds it.
    """

    node: str
    op: str
    tensor: str
    axis: int
    size: int
    group: str
    reason: str
    inexact: bool


def frozen_axes(channels: Channels) -> tuple[FrozenAxis, ...]:
    """Returns every axis of a stored tensor of which nothing can go, by the nodes that read them, matrices first."""
    readers = _readers(channels.graph)
    found: list[tuple[int, FrozenAxis]] = []
    for group in channels.groups:
        for tensor, dim in group.weights if group.frozen is not None else ():
            position, node = readers[tensor]
            size = channels.shapes.shapes[tensor][dim]
            inexact = group.frozen == group.inexact
            row = FrozenAxis(node_name(node), node.op, tensor, dim, size, group.name, str(group.frozen), inexact)
            found.append((position, row))
    ranks = {name: len(shape) for name, shape in channels.shapes.shapes.items()}
    found.sort(key=lambda item: (item[0], -ranks[item[1].tensor], item[1].tensor, item[1].axis))
    return tuple(row for _, row in found)


def _readers(graph: gs.Graph) -> dict[str, tuple[int, gs.Node]]:
    """Returns the first node that uses each tensor, past those that only bring a stored one into another form."""
    stored: set[str] = {t.name for node in graph.nodes for t in node.inputs if isinstance(t, gs.Constant)}
    alone: set[int] = set()
    for position, node in enumerate(graph.nodes):
        if node.op in FORMS and all(tensor.name in stored or not tensor.name for tensor in node.inputs):
            alone.add(position)
            stored.update(tensor.name for tensor in node.outputs)
    readers: dict[str, tuple[int, gs.Node]] = {}
    for position, node in reversed(list(enumerate(graph.nodes))):
        users = [readers[tensor.name] for tensor in node.outputs if tensor.name in readers]
        user = min(users, key=lambda item: item[0]) if position in alone and users else (position, node)
        names = [tensor.name for tensor in node.inputs]
        readers.update(dict.fromkeys(names, user))
        if not names:
            readers.update({tensor.name: user for tensor in node.outputs if tensor.name not in readers})
    return readers


def _link(node: gs.Node, position: int, axes: list[Axis], sums: set[tuple[int, str, int]], channels: Channels) -> Link:
    stored = {tensor.name for tensor in node.inputs if isinstance(tensor, gs.Constant)}
    written = {tensor.name for tensor in node.outputs}
    role = "passes"
    if any((position, axis.tensor, axis.dim) in sums for axis in axes):
        role = "sums"
    elif any(_is_matrix(axis, stored, channels) for axis in axes) and any(axis.tensor in written for axis in axes):
        role = "writes"
    ordered = sorted(axes, key=lambda axis: (axis.tensor not in stored, axis))
    return Link(node_name(node), node.op, role, tuple(f"{axis.tensor}[{axis.dim}]" for axis in ordered))


def _is_matrix(axis: Axis, stored: set[str], channels: Channels) -> bool:
    return axis.tensor in stored and len(channels.shapes.shapes[axis.tensor]) > 1
