"""Operators that join, cut and pick along an axis."""

import numpy as np

from onnxprune.channels.facts import Attribute, Count, Facts, Freeze, Operand, Positions, Tie
from onnxprune.channels.registry import Array, NodeView, Value, channel_rule, value_rule


@channel_rule("Concat")
def concat(node: NodeView) -> Facts:
    """Inputs stand side by side along ``axis``; elsewhere they correspond one to one."""
    y = node.result
    axis = node.attribute("axis") % y.rank
    offset = 0
    for value in node.inputs:
        if value is None:
            continue
        for dim in range(y.rank):
            places = np.arange(value.shape[dim])
            yield (
                Tie(value.axis(dim), y.axis(dim))
                if dim != axis
                else Tie(value.axis(dim), y.axis(dim), places, places + offset)
            )
        offset += value.shape[axis]


@channel_rule("Split", operands=(1,))
def split(node: NodeView) -> Facts:
    """Pieces follow one another along ``axis``; sizes that the file leaves implied are written out where they must."""
    x = node.data
    axis = node.attribute("axis", 0) % x.rank
    offset = 0
    if node.input(1) is not None and node.known(1) is None:
        return
    for piece, y in enumerate(node.outputs):
        if y is None:
            return
        for dim in range(x.rank):
            places = np.arange(y.shape[dim])
            yield (
                Tie(x.axis(dim), y.axis(dim)) if dim != axis else Tie(x.axis(dim), y.axis(dim), places + offset, places)
            )
        yield Count(y.axis(axis), Operand(1, piece) if node.opset >= 13 else Attribute("split", piece))
        offset += y.shape[axis]


@channel_rule("Slice", operands=(1, 2, 3, 4))
def slices(node: NodeView) -> Facts:
    """A range along some axes; starts and ends count the channels before them."""
    x, y = node.data, node.result
    starts, ends = node.integers("starts", 1), node.integers("ends", 2)
    axes, steps = node.integers("axes", 3), node.integers("steps", 4)
    computed = any(node.input(slot) is not None and node.known(slot) is None for slot in range(1, len(node.inputs)))
    if starts is None or ends is None or computed:
        return
    axes = list(range(len(starts))) if axes is None else [axis % x.rank for axis in axes]
    for dim in range(x.rank):
        if dim not in axes:
            yield Tie(x.axis(dim), y.axis(dim))
    for element, dim in enumerate(axes):
        step = steps[element] if steps is not None else 1
        taken = np.arange(x.shape[dim])[starts[element] : ends[element] : step]
        if step != 1 and taken.size:
            yield Freeze(x.axis(dim), f"{node.name!r} (Slice) takes every {step}th position of it")
            continue
        yield (
            Tie(x.axis(dim), y.axis(dim))
            if taken.size == x.shape[dim]
            else Tie(x.axis(dim), y.axis(dim), taken, np.arange(taken.size))
        )
        for name, slot, bound in (("starts", 1, starts[element]), ("ends", 2, ends[element])):
            where = Attribute(name, element) if name in node.attributes else Operand(slot, element)
            yield from _bound(x, dim, where, bound)


@channel_rule("Gather")
def gather(node: NodeView) -> Facts:
    """Picks positions of one axis. Stored positions are renumbered; computed ones may name any, so nothing can go."""
    x, indices, y = node.data, node.weight(1), node.result
    axis = node.attribute("axis", 0) % x.rank
    for dim in range(x.rank):
        if dim != axis:
            yield Tie(x.axis(dim), y.axis(dim if dim < axis else dim + indices.rank - 1))
    for dim in range(indices.rank):
        yield Tie(indices.axis(dim), y.axis(axis + dim))
    if not indices.stored or indices.known is None:
        yield Freeze(x.axis(axis), f"{node.name!r} (Gather) picks positions that are computed at run time")
    elif indices.rank != 1:
        yield Freeze(x.axis(axis), f"{node.name!r} (Gather) picks single positions of it")
    else:
        taken = indices.known % x.shape[axis]
        yield Tie(x.axis(axis), y.axis(axis), taken, np.arange(taken.size))
        yield Positions(x.axis(axis), 1)


@value_rule("Concat", moves=True)
def concat_value(node: NodeView, inputs: list[Array]) -> list[Array]:
    """The values side by side."""
    return [np.concatenate(inputs, node.attribute("axis"))]


@value_rule("Split", moves=True)
def split_value(node: NodeView, inputs: list[Array]) -> list[Array]:
    """The pieces of a value."""
    axis = node.attribute("axis", 0)
    sizes = node.attribute("split") if len(inputs) < 2 else inputs[1].tolist()
    if sizes is None:
        longest = -(-inputs[0].shape[axis] // len(node.outputs))
        return np.split(inputs[0], [longest * (i + 1) for i in range(len(node.outputs) - 1)], axis)
    return np.split(inputs[0], np.cumsum(sizes)[:-1], axis)


@value_rule("Slice", moves=True)
def slice_value(node: NodeView, inputs: list[Array]) -> list[Array]:
    """A range of a value."""
    source = inputs[0]
    if "starts" in node.attributes:
        starts, ends = node.attribute("starts"), node.attribute("ends")
        axes, steps = node.attribute("axes") or range(len(starts)), [1] * len(starts)
    else:
        known = {slot: node.known(slot) for slot in range(1, len(node.inputs))}
        operands = {slot: np.ravel(values) for slot, values in known.items() if values is not None}
        starts, ends = operands[1].tolist(), operands[2].tolist()
        axes = operands[3].tolist() if 3 in operands else range(len(starts))
        steps = operands[4].tolist() if 4 in operands else [1] * len(starts)
    ranges = [slice(None)] * source.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        ranges[axis] = slice(start, None if step < 0 and end < -source.shape[axis] else end, step)
    return [source[tuple(ranges)]]


@value_rule("Gather", moves=True)
def gather_value(node: NodeView, inputs: list[Array]) -> list[Array]:
    """Some positions of a value."""
    return [np.asarray(np.take(inputs[0], inputs[1], node.attribute("axis", 0)))]


def _bound(x: Value, dim: int, where: Attribute | Operand, bound: int) -> Facts:
    """The integer counts the channels before a start or end, or from it to the end where negative.

    A zero may have been computed from the length of the axis, and stays zero when that shrinks.
    """
    size = x.shape[dim]
    if 0 < bound < size or (bound == 0 and isinstance(where, Operand)):
        yield Count(x.axis(dim), where, np.arange(bound))
    elif -size < bound < 0:
        yield Count(x.axis(dim), where, np.arange(size + bound, size), negative=True)
