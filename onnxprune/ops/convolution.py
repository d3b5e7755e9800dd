"""Convolutions of any group and rank."""

import math

import numpy as np

from onnxprune.channels.facts import SPATIAL, Attribute, Axis, Balance, Count, Facts, Freeze, Tie
from onnxprune.channels.registry import NodeView, Value, channel_rule, mac_rule


@channel_rule("Conv")
def conv(node: NodeView) -> Facts:
    """X [N, C, ...], w [O, C/g, ...], b [O] to y [N, O, ...]; sums over C."""
    x, w, y = node.data, node.weight(1), node.result
    group = node.attribute("group", 1)
    yield from _surroundings(x, w, y)
    yield from _outputs(node.input(2), w.axis(0), y)
    if group == 1:
        yield Tie(x.axis(1), w.axis(1), contracts=True)
    elif group == x.shape[1]:
        yield from _depthwise(node, x.axis(1), y.axis(1), y.shape[1] // group)
    else:
        yield Balance(x.axis(1), block_size(x, group), w.axis(1), w.axis(0), contracts=True)
        yield Balance(y.axis(1), block_size(y, group))


@channel_rule("ConvTranspose")
def conv_transpose(node: NodeView) -> Facts:
    """X [N, C, ...], w [C, O/g, ...], b [O] to y [N, O, ...]; sums over C."""
    x, w, y = node.data, node.weight(1), node.result
    group = node.attribute("group", 1)
    yield from _surroundings(x, w, y)
    if group == 1:
        yield Tie(x.axis(1), w.axis(0), contracts=True)
        yield from _outputs(node.input(2), w.axis(1), y)
        return
    yield Tie(x.axis(1), w.axis(0))
    yield from _outputs(node.input(2), None, y)
    if group == x.shape[1]:
        yield from _depthwise(node, x.axis(1), y.axis(1), w.shape[1])
        yield Freeze(w.axis(1), "outputs of one depthwise channel stay together")
    else:
        yield Balance(x.axis(1), block_size(x, group), contracts=True)
        yield Balance(y.axis(1), w.shape[1], w.axis(1), w.axis(0))


@mac_rule("Conv")
def conv_macs(node: NodeView) -> int:
    """Every output element reads the whole kernel of its group."""
    return math.prod(node.result.shape) * math.prod(node.weight(1).shape[1:])


@mac_rule("ConvTranspose")
def conv_transpose_macs(node: NodeView) -> int:
    """Every input element feeds the whole kernel of its group."""
    return math.prod(node.data.shape) * math.prod(node.weight(1).shape[1:])


def block_size(value: Value, group: int) -> int:
    """Returns the number of channels (axis 1) in each group."""
    size, rest = divmod(value.shape[1], group)
    if rest:
        raise ValueError(f"{group} groups do not divide {value.shape[1]} channels")
    return size


def _surroundings(x: Value, w: Value, y: Value) -> Facts:
    yield Tie(x.axis(0), y.axis(0))
    for dim in range(2, x.rank):
        for value in (x, w, y):
            yield Freeze(value.axis(dim), SPATIAL)


def _outputs(bias: Value | None, weight: Axis | None, y: Value) -> Facts:
    if weight is not None:
        yield Tie(weight, y.axis(1))
    if bias is not None:
        yield Tie(bias.axis(0), y.axis(1))


def _depthwise(node: NodeView, source: Axis, target: Axis, multiplier: int) -> Facts:
    outputs = np.arange(node.result.shape[1])
    yield Tie(source, target, outputs // multiplier, outputs)
    yield Count(source, Attribute("group"))
