"""Operators that read or write at positions computed at run time, and other moves of single elements.

The axes that positions count along stay; the others correspond one to one.
"""

import numpy as np

from onnxprune.channels.facts import Balance, Count, Facts, Freeze, Operand, Tie
from onnxprune.channels.registry import Array, NodeView, Value, channel_rule, value_rule
from onnxprune.ops.convolution import block_size


@channel_rule("GatherElements")
def gather_elements(node: NodeView) -> Facts:
    """Picks along ``axis``, elsewhere at the place of the index itself."""
    x, indices, y = node.data, node.weight(1), node.result
    axis = node.attribute("axis", 0) % x.rank
    for dim in range(x.rank):
        yield Tie(indices.axis(dim), y.axis(dim))
    yield from _aligned(x, indices, axis)


@channel_rule("Scatter", "ScatterElements")
def scatter_elements(node: NodeView) -> Facts:
    """Writes along ``axis``, elsewhere at the place of the index itself."""
    x, indices, updates, y = node.data, node.weight(1), node.weight(2), node.result
    axis = node.attribute("axis", 0) % x.rank
    for dim in set(range(x.rank)) - {axis}:
        yield Tie(x.axis(dim), y.axis(dim))
        yield Tie(indices.axis(dim), updates.axis(dim))
    yield from _aligned(x, indices, axis)


@channel_rule("GatherND")
def gather_nd(node: NodeView) -> Facts:
    """Tuples of positions replace the axes after ``batch_dims``; the axes that they do not name are taken whole."""
    x, indices, y = node.data, node.weight(1), node.result
    batch = node.attribute("batch_dims", 0)
    for dim in range(indices.rank - 1):
        yield Tie(indices.axis(dim), y.axis(dim))
    for dim in range(batch):
        yield Tie(x.axis(dim), y.axis(dim))
    named = batch + indices.shape[-1]
    for dim in range(named, x.rank):
        yield Tie(x.axis(dim), y.axis(dim - named + indices.rank - 1))


@channel_rule("ScatterND")
def scatter_nd(node: NodeView) -> Facts:
    """Tuples of positions name the first axes; the others are written whole."""
    x, indices, updates, y = node.data, node.weight(1), node.weight(2), node.result
    named = indices.shape[-1]
    for dim in range(named, x.rank):
        yield Tie(x.axis(dim), y.axis(dim))
        yield Tie(updates.axis(dim - named + indices.rank - 1), y.axis(dim))


@channel_rule("OneHot", operands=(1,))
def one_hot(node: NodeView) -> Facts:
    """A new axis of classes appears at ``axis``."""
    indices, y = node.data, node.result
    axis = node.attribute("axis", -1) % y.rank
    for dim in range(indices.rank):
        yield Tie(indices.axis(dim), y.axis(dim + (dim >= axis)))


@channel_rule("Trilu", operands=(1,))
def trilu(node: NodeView) -> Facts:
    """Half of every matrix in the last two axes."""
    for dim in range(node.data.rank - 2):
        yield Tie(node.data.axis(dim), node.result.axis(dim))


@channel_rule("Det")
def determinant(node: NodeView) -> Facts:
    """One number for every matrix in the last two axes."""
    for dim in range(node.result.rank):
        yield Tie(node.data.axis(dim), node.result.axis(dim))


@value_rule("NonZero")
def nonzero_value(node: NodeView, inputs: list[Array]) -> list[Array]:
    """The positions of what is not zero, one column each."""
    return [np.array(np.nonzero(np.atleast_1d(inputs[0])), np.int64)]


@channel_rule("ReverseSequence")
def reverse_sequence(node: NodeView) -> Facts:
    """Reverses ``time_axis``, for every place on ``batch_axis`` up to a length of its own."""
    x, y = node.data, node.result
    for dim in set(range(x.rank)) - {node.attribute("time_axis", 0)}:
        yield Tie(x.axis(dim), y.axis(dim))
    yield Tie(node.weight(1).axis(0), x.axis(node.attribute("batch_axis", 1)))


@channel_rule("GridSample")
def grid_sample(node: NodeView) -> Facts:
    """X [N, C, ...] sampled at grid [N, ..., places]."""
    x, grid, y = node.data, node.weight(1), node.result
    yield Tie(x.axis(0), y.axis(0))
    yield Tie(grid.axis(0), y.axis(0))
    yield Tie(x.axis(1), y.axis(1))
    for dim in range(2, x.rank):
        yield Tie(grid.axis(dim - 1), y.axis(dim))


@channel_rule("RoiAlign")
def roi_align(node: NodeView) -> Facts:
    """X [N, C, H, W] pooled over regions [R, 4] of images [R] to y [R, C, h, w]."""
    x, y = node.data, node.result
    yield Tie(x.axis(1), y.axis(1))
    yield Tie(node.weight(1).axis(0), y.axis(0))
    yield Tie(node.weight(2).axis(0), y.axis(0))


@channel_rule("Col2Im", operands=(1, 2))
def col2im(node: NodeView) -> Facts:
    """X [N, C * block, L] to y [N, C, ...]: a channel comes with all places of its block."""
    x, y = node.data, node.result
    block = x.shape[1] // y.shape[1]
    every = np.arange(x.shape[1])
    yield Tie(x.axis(0), y.axis(0))
    yield Tie(x.axis(1), y.axis(1), every, every // block)


@channel_rule("CenterCropPad", operands=(1,))
def center_crop_pad(node: NodeView) -> Facts:
    """Axes that change their size are space; the others correspond one to one."""
    x, y = node.data, node.result
    axes = [axis % x.rank for axis in node.attribute("axes") or range(x.rank)]
    for dim in range(x.rank) if node.known(1) is not None else ():
        if x.shape[dim] == y.shape[dim]:
            yield Tie(x.axis(dim), y.axis(dim))
            if dim in axes:
                yield Count(y.axis(dim), Operand(1, axes.index(dim)))


@channel_rule("AffineGrid", operands=(1,))
def affine_grid(node: NodeView) -> Facts:
    """Theta [N, ...] to a grid [N, ...]; the operand holds N, channels that nobody reads, and space."""
    if node.known(1) is None:
        return
    yield Tie(node.data.axis(0), node.result.axis(0))
    yield Count(node.result.axis(0), Operand(1, 0))


@channel_rule("DeformConv")
def deform_conv(node: NodeView) -> Facts:
    """As Conv; offsets and masks belong to kernel places, one set for each of the offset groups."""
    x, w, y = node.data, node.weight(1), node.result
    group = node.attribute("group", 1)
    for value in (x, node.weight(2), node.input(4)):
        if value is not None:
            yield Tie(value.axis(0), y.axis(0))
    yield Tie(w.axis(0), y.axis(1))
    bias = node.input(3)
    if bias is not None:
        yield Tie(bias.axis(0), y.axis(1))
    if group > 1:
        yield Balance(y.axis(1), block_size(y, group))
    if node.attribute("offset_group", 1) > 1:
        yield Freeze(x.axis(1), f"{node.name!r} (DeformConv) has several groups of offsets")
    elif group == 1:
        yield Tie(x.axis(1), w.axis(1), contracts=True)
    else:
        yield Balance(x.axis(1), block_size(x, group), w.axis(1), w.axis(0), contracts=True)


@channel_rule("DFT", operands=(1,))
def fourier(node: NodeView) -> Facts:
    """Transforms one axis of complex numbers, whose parts are the last axis."""
    x, y = node.data, node.result
    if node.opset < 20:
        axis = node.attribute("axis", 1)
    else:
        stored = node.known(2)
        if node.input(2) is not None and stored is None:
            return
        axis = -2 if stored is None else int(np.ravel(stored)[0])
    for dim in set(range(x.rank - 1)) - {axis % x.rank}:
        yield Tie(x.axis(dim), y.axis(dim))


def _aligned(x: Value, indices: Value, axis: int) -> Facts:
    for dim in set(range(x.rank)) - {axis}:
        if x.shape[dim] == indices.shape[dim]:
            yield Tie(indices.axis(dim), x.axis(dim))
        else:
            yield Freeze(x.axis(dim), "indices cover a part of it")
            yield Freeze(indices.axis(dim), "it covers a part of the data")
