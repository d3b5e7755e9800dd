"""Which groups cost more to remove exactly than their removal saves.

A statistic over channels stays exact at a price. Zeros that stand in for removed channels (``Restore``) are one pass
over the data before the node and one behind it. A mean that is multiplied afterwards (``Rescale``) is small itself, but
keeps ONNX Runtime from joining a normalization that is written out into a single node, which is about one pass over
what each mean reads.

On one and two cores of a server processor a pass costs 0.3 to 0.5 ns for an element, as long as 15 to 35
multiply-accumulates take. Removing a quarter of the channels of a group saves a quarter of the multiply-accumulates
around it: it pays if there are ``MACS_PER_ELEMENT`` of them for each element of each pass. The blocks of a transformer
of width C have 3 C, those of a ConvNeXt 4 C. In vision transformers of width 64, which are near the limit, removing a
quarter of the width neither gained nor lost time, and removing half of it gained 3 to 7 percent.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import onnx_graphsurgeon as gs

from onnxprune.channels.collect import Edit
from onnxprune.channels.facts import Axis, Rescale, Restore, Result
from onnxprune.model.cost import macs_of
from onnxprune.model.shapes import Shapes, node_name

if TYPE_CHECKING:
    from onnxprune.channels.groups import ChannelGroup

MACS_PER_ELEMENT = 96


def overpriced(
    graph: gs.Graph, shapes: Shapes, groups: Sequence["ChannelGroup"], edits: Sequence[Edit]
) -> dict[str, str]:
    """Returns the groups that cost more than they save, by name, and why."""
    passes = _passes(edits)
    moved: dict[str, int] = {}
    reasons: dict[str, str] = {}
    shares: dict[Axis, dict[str, float]] = {}
    for group in groups:
        axes = {axis for member in group.members for axis in member.axes}
        priced = [axis for axis in axes if axis in passes]
        if not priced:
            continue
        first = graph.nodes[min(passes[axis][0] for axis in priced)]
        reasons[group.name] = (
            f"{node_name(first)!r} ({first.op}) takes a statistic over it, "
            "which costs more to keep exact than the removal saves"
        )
        moved[group.name] = sum(passes[axis][1] * math.prod(shapes.shapes[axis.tensor]) for axis in priced)
        for member in group.members:
            for axis in member.axes:
                share = len(member.channels) / max(shapes.shapes[axis.tensor][axis.dim], 1)
                shares.setdefault(axis, {})[group.name] = share
    around = _macs_around(graph, shapes, shares) if moved else {}
    return {name: reasons[name] for name, count in moved.items() if count * MACS_PER_ELEMENT > around.get(name, 0.0)}


def _passes(edits: Sequence[Edit]) -> dict[Axis, tuple[int, int]]:
    """Returns the first node with a price and the number of passes, by the axis that a statistic runs over."""
    passes: dict[Axis, tuple[int, int]] = {}
    for edit in edits:
        match edit.fact:
            case Restore(axis) if not edit.fact.in_place:
                count = 2
            case Rescale(axis, Result()):
                count = 1
            case _:
                continue
        first, before = passes.get(axis, (edit.node, 0))
        passes[axis] = first, before + count
    return passes


def _macs_around(graph: gs.Graph, shapes: Shapes, shares: Mapping[Axis, Mapping[str, float]]) -> dict[str, float]:
    """Returns the multiply-accumulates of the nodes that read or write a group, as far as they are its own."""
    by_tensor: dict[str, list[Axis]] = {}
    for axis in shares:
        by_tensor.setdefault(axis.tensor, []).append(axis)
    around: dict[str, float] = {}
    for node in graph.nodes:
        touched: dict[str, float] = {}
        for name in {tensor.name for tensor in (*node.inputs, *node.outputs)}:
            for axis in by_tensor.get(name, ()):
                for group, share in shares[axis].items():
                    touched[group] = max(touched.get(group, 0.0), share)
        macs = macs_of(graph, node, shapes) if touched else 0
        for group, share in touched.items():
            around[group] = around.get(group, 0.0) + share * (macs or 0)
    return around
