"""Normalizations, and softmax."""

from collections.abc import Sequence

import numpy as np

from onnxprune.channels.facts import SPATIAL, Attribute, Count, Facts, Freeze, Rescale, Restore, Tie
from onnxprune.channels.registry import NodeView, channel_rule, shape_rule
from onnxprune.ops.broadcasting import broadcast


@channel_rule("BatchNormalization")
def batch_normalization(node: NodeView) -> Facts:
    """X [N, C, ...] with one scale, shift and pair of statistics for each channel, or each place (``spatial=0``)."""
    x, y = node.data, node.result
    for dim in range(x.rank):
        yield Tie(x.axis(dim), y.axis(dim))
        if dim != 1 and (node.attribute("training_mode", 0) or len(node.outputs) > 1):
            yield Freeze(x.axis(dim), f"{node.name!r} (BatchNormalization) takes a statistic over it", inexact=True)
    for value in (*node.inputs[1:], *node.outputs[1:]):
        for dim in range(value.rank if value is not None else 0):
            if value is not None:
                yield Tie(value.axis(dim), x.axis(dim + 1))


@channel_rule("InstanceNormalization")
def instance_normalization(node: NodeView) -> Facts:
    """X [N, C, ...] with one scale and shift for each channel, and statistics over space."""
    x, y = node.data, node.result
    yield Tie(x.axis(0), y.axis(0))
    yield Tie(x.axis(1), y.axis(1))
    for slot in (1, 2):
        yield Tie(node.weight(slot).axis(0), x.axis(1))
    for dim in range(2, x.rank):
        yield Freeze(x.axis(dim), SPATIAL)
        yield Freeze(y.axis(dim), SPATIAL)


@channel_rule("GroupNormalization")
def group_normalization(node: NodeView) -> Facts:
    """Whole groups go, which leaves the statistics of the others alone.

    Scale and bias are per group up to opset 20 and per channel from 21.
    """
    x, y = node.data, node.result
    groups, channels = node.attribute("num_groups"), x.shape[1]
    every = np.arange(channels)
    yield Tie(x.axis(0), y.axis(0))
    yield Tie(x.axis(1), y.axis(1))
    yield Tie(x.axis(1), x.axis(1), every, every - every % (channels // groups))
    yield Count(x.axis(1), Attribute("num_groups"), np.arange(0, channels, channels // groups))
    for slot in (1, 2):
        vector = node.weight(slot)
        if vector.shape[0] == channels:
            yield Tie(vector.axis(0), x.axis(1))
        else:
            yield Tie(vector.axis(0), x.axis(1), every // (channels // groups), every)
    for dim in range(2, x.rank):
        yield Freeze(x.axis(dim), SPATIAL)
        yield Freeze(y.axis(dim), SPATIAL)


@channel_rule("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
def layer_normalization(node: NodeView) -> Facts:
    """The statistics run over every axis from ``axis`` on, and silent channels count in them as zeros.

    The mean of squares alone (RMSNormalization) needs no zeros: epsilon and scale make up for them.
    """
    x, scale = node.data, node.weight(1)
    first = node.attribute("axis", -1) % x.rank
    for result in node.outputs:
        if result is not None:
            yield from broadcast([x], result)
    yield from broadcast([value for value in node.inputs[1:] if value is not None], node.result)
    alone = node.op != "LayerNormalization" and all(result is None for result in node.outputs[1:])
    if alone and first == x.rank - 1 and scale.stored and scale.rank == 1:
        yield Tie(x.axis(first), x.axis(first), contracts=True)
        yield Rescale(x.axis(first), Attribute("epsilon"), -1.0, default=1e-5)
        yield Rescale(x.axis(first), 1, -0.5)
        return
    for dim in range(first, x.rank):
        yield Restore(x.axis(dim), node.result.axis(dim), in_place=False, along=_along(node, dim))


def _along(node: NodeView, dim: int) -> tuple[tuple[int, int], ...]:
    """Returns (input, dimension) of scale and bias where they have a dimension of the data."""
    found = []
    for slot, value in enumerate(node.inputs[1:], 1):
        own = dim - node.data.rank + value.rank if value is not None else -1
        if value is not None and own >= 0 and value.shape[own] == node.data.shape[dim]:
            found.append((slot, own))
    return tuple(found)


@channel_rule("LRN")
def local_response(node: NodeView) -> Facts:
    """The squares of neighbouring channels are summed; neighbours must stay where they were."""
    x, y = node.data, node.result
    for dim in range(x.rank):
        if dim != 1:
            yield Tie(x.axis(dim), y.axis(dim))
    yield Restore(x.axis(1), y.axis(1))


@channel_rule("MeanVarianceNormalization")
def mean_variance(node: NodeView) -> Facts:
    """The statistics run over ``axes``, and silent channels count in them as zeros."""
    x, y = node.data, node.result
    axes = {axis % x.rank for axis in node.attribute("axes", [0, 2, 3])}
    for dim in range(x.rank):
        if dim in axes:
            yield Restore(x.axis(dim), y.axis(dim), in_place=False)
        else:
            yield Tie(x.axis(dim), y.axis(dim))


@channel_rule("LpNormalization", "Softmax", "LogSoftmax", "Hardmax")
def over_one_axis(node: NodeView) -> Facts:
    """Works along ``axis``; up to opset 12 the softmax family flattens everything from ``axis`` on.

    The norm of LpNormalization is a sum, in which silent channels do not count.
    """
    x, y = node.data, node.result
    flattens = node.op != "LpNormalization" and node.opset < 13
    axis = node.attribute("axis", 1 if flattens else -1) % x.rank
    for dim in range(x.rank):
        yield Tie(x.axis(dim), y.axis(dim), contracts=node.op == "LpNormalization" and dim == axis)
        if node.op != "LpNormalization" and (dim == axis or (flattens and dim > axis)):
            yield Freeze(x.axis(dim), f"{node.name!r} ({node.op}) works over it")


@shape_rule("GroupNormalization", "MeanVarianceNormalization", "SimplifiedLayerNormalization")
def unchanged_shape(node: NodeView) -> Sequence[tuple[int, ...]]:
    """That of the input."""
    return [node.data.shape]
