"""Operators that rearrange elements without computing: reshape, transpose, stretch, pad, resize."""

import math

import numpy as np

from onnxprune.channels.facts import SPATIAL, Attribute, Count, Facts, Freeze, Operand, Regroup, Tie, free
from onnxprune.channels.registry import Array, NodeView, channel_rule, value_rule
from onnxprune.ops.broadcasting import broadcast


@channel_rule("Reshape", operands=(1,))
def reshape(node: NodeView) -> Facts:
    """Row-major order stays; the operand holds the new sizes, with 0 for "as the input" and -1 for "the rest"."""
    x, y = node.data, node.result
    if node.known(1) is None:
        return
    yield Regroup(tuple(map(x.axis, range(x.rank))), tuple(map(y.axis, range(y.rank))))
    for dim in range(y.rank):
        yield Count(y.axis(dim), Operand(1, dim))


@channel_rule("Flatten")
def flatten(node: NodeView) -> Facts:
    """Two blocks: the dimensions before ``axis``, and the others."""
    x, y = node.data, node.result
    axis = node.attribute("axis", 1)
    axis = axis + x.rank if axis < 0 else axis
    axes = tuple(map(x.axis, range(x.rank)))
    yield Regroup(axes[:axis], (y.axis(0),))
    yield Regroup(axes[axis:], (y.axis(1),))


@channel_rule("Transpose")
def transpose(node: NodeView) -> Facts:
    """Dimensions in another order."""
    x, y = node.data, node.result
    for place, dim in enumerate(permutation(node)):
        yield Tie(x.axis(dim), y.axis(place))


@channel_rule("Squeeze", "Unsqueeze", operands=(1,))
def squeeze(node: NodeView) -> Facts:
    """Dimensions of size 1 go or come; the others correspond in order."""
    x, y = node.data, node.result
    longer = x if node.op == "Squeeze" else y
    axes = node.integers("axes", 1)
    if axes is None and (node.op == "Unsqueeze" or node.input(1) is not None):
        return
    ones = {dim % longer.rank for dim in axes} if axes is not None else {d for d, n in enumerate(x.shape) if n == 1}
    others = [dim for dim in range(longer.rank) if dim not in ones]
    for short, long in enumerate(others):
        yield Tie(x.axis(long if longer is x else short), y.axis(short if longer is x else long))


@channel_rule("Expand", operands=(1,))
def expand(node: NodeView) -> Facts:
    """Sizes of 1 stretch to those of the operand."""
    x, y, sizes = node.data, node.result, node.known(1)
    if sizes is None:
        return
    yield from broadcast([x], y)
    for element, size in enumerate(np.ravel(sizes)):
        dim = y.rank - sizes.size + element
        if size == y.shape[dim]:
            yield free(y.axis(dim))
            yield Count(y.axis(dim), Operand(1, element))


@channel_rule("Tile", operands=(1,))
def tile(node: NodeView) -> Facts:
    """Each axis is repeated as a whole."""
    x, y, repeats = node.data, node.result, node.known(1)
    if repeats is None:
        return
    for dim, repeat in enumerate(np.ravel(repeats)):
        if x.shape[dim] == 1:
            yield free(y.axis(dim))
            yield Count(y.axis(dim), Operand(1, dim))
        else:
            places = np.arange(y.shape[dim])
            yield (
                Tie(x.axis(dim), y.axis(dim))
                if repeat == 1
                else Tie(x.axis(dim), y.axis(dim), places % x.shape[dim], places)
            )


@channel_rule("ConstantOfShape", operands=(0,))
def constant_of_shape(node: NodeView) -> Facts:
    """All elements are equal; the sizes come from the operand."""
    y = node.result
    for dim in range(y.rank) if node.known(0) is not None else ():
        yield free(y.axis(dim))
        yield Count(y.axis(dim), Operand(0, dim))


@channel_rule("DepthToSpace", "SpaceToDepth")
def depth_space(node: NodeView) -> Facts:
    """Blocks of pixels move between channels and space: DCR counts channels innermost, CRD outermost."""
    x, y = node.data, node.result
    deep, shallow = (x, y) if node.op == "DepthToSpace" else (y, x)
    channels = shallow.shape[1]
    every = np.arange(deep.shape[1])
    mode = node.attribute("mode", "DCR")
    columns_first = node.op == "SpaceToDepth" or mode in ("DCR", b"DCR")
    yield Tie(
        deep.axis(1), shallow.axis(1), every, every % channels if columns_first else every // (every.size // channels)
    )
    yield Tie(x.axis(0), y.axis(0))
    for dim in (2, 3):
        yield Freeze(x.axis(dim), SPATIAL)
        yield Freeze(y.axis(dim), SPATIAL)


@channel_rule("Pad", operands=(1, 3))
def pad(node: NodeView) -> Facts:
    """Padded places are channels too: constant ones, which go with whatever they are tied to further on.

    A pad of zero may have been computed from the length of the axis, and stays zero when that shrinks.
    """
    x, y = node.data, node.result
    pads = node.integers("pads", 1)
    axes = node.known(3)
    if pads is None or (node.input(3) is not None and axes is None):
        return
    dims = [int(dim) % x.rank for dim in np.ravel(axes)] if axes is not None else list(range(x.rank))
    constant = node.attribute("mode", "constant") in ("constant", b"constant")
    stored = "pads" in node.attributes
    for dim in set(range(x.rank)) - set(dims):
        yield Tie(x.axis(dim), y.axis(dim))
    for element, dim in enumerate(dims):
        begin, end, size = pads[element], pads[element + len(dims)], x.shape[dim]
        if (constant and min(begin, end) >= 0) or begin == end == 0:
            for position, index in ((element, np.arange(begin)), (element + len(dims), np.arange(end) + begin + size)):
                yield Count(y.axis(dim), Attribute("pads", position) if stored else Operand(1, position), index)
        if begin == 0 and end == 0:
            yield Tie(x.axis(dim), y.axis(dim))
        elif not constant or begin < 0 or end < 0:
            yield Freeze(x.axis(dim), f"{node.name!r} (Pad) repeats or crops along it")
        else:
            places = np.arange(size)
            yield Tie(x.axis(dim), y.axis(dim), places, places + begin)


@channel_rule("Resize", "Upsample", operands=(1, 2, 3))
def resize(node: NodeView) -> Facts:
    """Axes that keep their size are untouched, unless a scale is so small that it rounds away; others are space."""
    x, y = node.data, node.result
    slots = (1,) if len(node.inputs) == 2 else (2, 3)
    if any(node.input(slot) is not None and node.known(slot) is None for slot in slots):
        return
    sizes = node.known(3)
    axes = [dim % x.rank for dim in node.attribute("axes") or range(x.rank)]
    scales = node.attribute("scales") or node.known(slots[0])
    scaled = {dim for dim, scale in zip(axes, () if scales is None else scales, strict=False) if scale != 1}
    if _couples_axes(node):
        scaled.update(axes)
    for dim in range(x.rank):
        if x.shape[dim] != y.shape[dim] or dim in scaled:
            yield Freeze(x.axis(dim), SPATIAL)
            yield Freeze(y.axis(dim), SPATIAL)
            continue
        yield Tie(x.axis(dim), y.axis(dim))
        if sizes is not None and sizes.size and dim in axes:
            yield Count(y.axis(dim), Operand(3, axes.index(dim)))


@value_rule("Reshape", moves=True)
def reshape_value(node: NodeView, inputs: list[Array]) -> list[Array]:
    """The value in another shape."""
    source, sizes = inputs
    copied = [
        source.shape[dim] if size == 0 and not node.attribute("allowzero", 0) else int(size)
        for dim, size in enumerate(np.ravel(sizes))
    ]
    return [source.reshape(copied)]


@value_rule("Flatten", moves=True)
def flatten_value(node: NodeView, inputs: list[Array]) -> list[Array]:
    """The value as a matrix."""
    axis = node.attribute("axis", 1)
    return [inputs[0].reshape(math.prod(inputs[0].shape[:axis]), -1)]


@value_rule("Transpose", moves=True)
def transpose_value(node: NodeView, inputs: list[Array]) -> list[Array]:
    """The value with its dimensions in another order."""
    return [np.transpose(inputs[0], node.attribute("perm"))]


@value_rule("Squeeze", moves=True)
def squeeze_value(node: NodeView, inputs: list[Array]) -> list[Array]:
    """The value without dimensions of size 1."""
    axes = node.attribute("axes") if len(inputs) < 2 else inputs[1].tolist()
    return [np.squeeze(inputs[0], tuple(int(axis) for axis in axes) if axes else None)]


@value_rule("Unsqueeze", moves=True)
def unsqueeze_value(node: NodeView, inputs: list[Array]) -> list[Array]:
    """The value with new dimensions of size 1."""
    axes = node.attribute("axes") if len(inputs) < 2 else np.ravel(inputs[1]).tolist()
    return [np.expand_dims(inputs[0], tuple(int(axis) for axis in axes))]


@value_rule("Expand", moves=True)
def expand_value(node: NodeView, inputs: list[Array]) -> list[Array]:
    """The value stretched."""
    return [np.broadcast_to(inputs[0], np.broadcast_shapes(inputs[0].shape, tuple(inputs[1].tolist())))]


@value_rule("Tile", moves=True)
def tile_value(node: NodeView, inputs: list[Array]) -> list[Array]:
    """The value repeated."""
    return [np.tile(inputs[0], inputs[1].tolist())]


def permutation(node: NodeView) -> list[int]:
    """Returns the order of dimensions of a Transpose; reversed by default."""
    return list(node.attribute("perm") or reversed(range(node.data.rank)))


def _couples_axes(node: NodeView) -> bool:
    """Whether a Resize crops, or derives one scale from the sizes of all its axes."""
    words = [node.attribute(name) for name in ("coordinate_transformation_mode", "keep_aspect_ratio_policy")]
    mode, policy = (word.decode() if isinstance(word, bytes) else word for word in words)
    return mode == "tf_crop_and_resize" or policy in ("not_larger", "not_smaller")
