"""Why a group is what it is: the nodes that tie its axes, and what each does with them."""

from dataclasses import dataclass

import onnx_graphsurgeon as gs

from onnxprune.channels.facts import Axis
from onnxprune.channels.groups import ChannelGroup, Channels
from onnxprune.model.shapes import node_name

ROLES = ("writes", "passes", "sums")
"""In the order in which a tree shows them."""


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
