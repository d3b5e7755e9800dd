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
    """The statistics run over every axis from ``axis`` on."""
    x = node.data
    first = node.attribute("axis", -1) % x.rank
    for result in node.outputs:
        if result is not None:
            yield from broadcast([x], result)
    yield from broadcast([value for value in node.inputs[1:] if value is not None], node.result)
    scale = node.weight(1)
    if node.op == "RMSNormalization" and first == x.rank - 1 and scale.stored and scale.rank == 1:
        yield Tie(x.axis(first), x.axis(first), contracts=True)
        yield Rescale(x.axis(first), Attribute("epsilon"), -1.0, default=1e-5)
        yield Rescale(x.axis(first), 1, -0.5)
        return
    for dim in range(first, x.rank):
        yield Freeze(x.axis(dim), f"{node.name!r} ({node.op}) takes a statistic over it", inexact=True)


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
    """The statistics run over ``axes``."""
    x, y = node.data, node.result
    axes = {axis % x.rank for axis in node.attribute("axes", [0, 2, 3])}
    for dim in range(x.rank):
        yield Tie(x.axis(dim), y.axis(dim))
        if dim in axes:
            yield Freeze(x.axis(dim), f"{node.name!r} ({node.op}) takes a statistic over it", inexact=True)


@channel_rule("LpNormalization", "Softmax", "LogSoftmax", "Hardmax")
def over_one_axis(node: NodeView) -> Facts:
    """Works along ``axis``; up to opset 12 the softmax family flattens everything from ``axis`` on."""
    x, y = node.data, node.result
    flattens = node.op != "LpNormalization" and node.opset < 13
    axis = node.attribute("axis", 1 if flattens else -1) % x.rank
    for dim in range(x.rank):
        yield Tie(x.axis(dim), y.axis(dim))
        if dim == axis or (flattens and dim > axis):
            yield Freeze(x.axis(dim), f"{node.name!r} ({node.op}) works over it")


@shape_rule("GroupNormalization", "MeanVarianceNormalization", "SimplifiedLayerNormalization")
def unchanged_shape(node: NodeView) -> Sequence[tuple[int, ...]]:
    """That of the input."""
    return [node.data.shape]
