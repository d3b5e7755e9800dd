"""Operators of ``com.microsoft`` into which ONNX Runtime fuses standard ones, where they keep the form of those.

Attention and the like have no rule: they pack heads in ways of their own, and a model is better pruned before runtime
optimization than after it.
"""

import math
from collections.abc import Sequence

import numpy as np

from onnxprune.channels.facts import Facts, Freeze, Tie
from onnxprune.channels.registry import MICROSOFT, NodeView, channel_rule, mac_rule, shape_rule
from onnxprune.ops.broadcasting import broadcast
from onnxprune.ops.convolution import conv, conv_macs
from onnxprune.ops.elementwise import elementwise
from onnxprune.ops.linear import gemm, gemm_macs

ACTIVATIONS = ("BiasGelu", "FastGelu", "Gelu", "QuickGelu")
SKIP_NORMALIZATIONS = ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")

channel_rule(*ACTIVATIONS, domain=MICROSOFT)(elementwise)
channel_rule("FusedGemm", domain=MICROSOFT)(gemm)
mac_rule("FusedGemm", domain=MICROSOFT)(gemm_macs)
mac_rule("FusedConv", domain=MICROSOFT)(conv_macs)


@channel_rule("FusedConv", domain=MICROSOFT)
def fused_conv(node: NodeView) -> Facts:
    """Conv, a sum with Z of the shape of y, and an activation."""
    yield from conv(node)
    addend = node.input(3)
    if addend is not None:
        yield from broadcast([addend], node.result)


@channel_rule("FusedMatMul", domain=MICROSOFT)
def fused_matmul(node: NodeView) -> Facts:
    """MatMul of matrices, either of them transposed first; moving the batch axes has no rule."""
    a, b, y = node.data, node.weight(1), node.result
    if _moves_batches(node) or min(a.rank, b.rank) < 2:
        return
    rows, inner = (-1, -2) if node.attribute("transA", 0) else (-2, -1)
    summed, columns = (-1, -2) if node.attribute("transB", 0) else (-2, -1)
    yield Tie(a.axis(inner), b.axis(summed), contracts=True)
    yield Tie(a.axis(rows), y.axis(-2))
    yield Tie(b.axis(columns), y.axis(-1))
    yield from broadcast([a, b], y, dims=range(y.rank - 2), tail=2)


@channel_rule(*SKIP_NORMALIZATIONS, domain=MICROSOFT)
def skip_normalization(node: NodeView) -> Facts:
    """A residual sum, which is an output too, and the normalization of it over the last axis."""
    y = node.result
    yield from broadcast([value for value in node.inputs if value is not None], y)
    total = node.outputs[3] if len(node.outputs) > 3 else None
    if total is not None:
        yield from broadcast([total], y)
    yield Freeze(y.axis(-1), f"{node.name!r} ({node.op}) takes a statistic over it", inexact=True)


@mac_rule("FusedMatMul", domain=MICROSOFT)
def fused_matmul_macs(node: NodeView) -> int:
    """One product for every output element and summed index."""
    return math.prod(node.result.shape) * node.data.shape[-2 if node.attribute("transA", 0) else -1]


@shape_rule(*ACTIVATIONS, domain=MICROSOFT)
def activation_shape(node: NodeView) -> Sequence[tuple[int, ...]]:
    """That of the input."""
    return [node.data.shape]


@shape_rule(*SKIP_NORMALIZATIONS, domain=MICROSOFT)
def skip_normalization_shape(node: NodeView) -> Sequence[tuple[int, ...]]:
    """That of the input; the statistics keep the last axis with size 1."""
    shape = node.data.shape
    return [shape, (*shape[:-1], 1), (*shape[:-1], 1), shape]


@shape_rule("FusedGemm", domain=MICROSOFT)
def fused_gemm_shape(node: NodeView) -> Sequence[tuple[int, ...]]:
    """[M, N]."""
    rows, columns = (1 if node.attribute("transA", 0) else 0), (0 if node.attribute("transB", 0) else 1)
    return [(node.data.shape[rows], node.weight(1).shape[columns])]


@shape_rule("FusedMatMul", domain=MICROSOFT)
def fused_matmul_shape(node: NodeView) -> Sequence[tuple[int, ...]]:
    """[..., M, N]; none where batch axes move."""
    a, b = node.data.shape, node.weight(1).shape
    if _moves_batches(node) or min(len(a), len(b)) < 2:
        return []
    rows, columns = (-1 if node.attribute("transA", 0) else -2), (-2 if node.attribute("transB", 0) else -1)
    return [(*np.broadcast_shapes(a[:-2], b[:-2]), a[rows], b[columns])]


@shape_rule("FusedConv", domain=MICROSOFT)
def fused_conv_shape(node: NodeView) -> Sequence[tuple[int, ...]]:
    """[N, O, ...], with the places that the kernel finds room for."""
    x, w = node.data.shape, node.weight(1).shape
    space = len(x) - 2
    strides, dilations = (node.attribute(name) or [1] * space for name in ("strides", "dilations"))
    pads = node.attribute("pads") or [0] * (2 * space)
    auto = node.attribute("auto_pad", "NOTSET")
    places = []
    for dim in range(space):
        reach = (w[dim + 2] - 1) * dilations[dim] + 1
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            places.append(-(-x[dim + 2] // strides[dim]))
        else:
            padded = x[dim + 2] + (0 if auto == "VALID" else pads[dim] + pads[dim + space])
            places.append((padded - reach) // strides[dim] + 1)
    return [(x[0], w[0], *places)]


def _moves_batches(node: NodeView) -> bool:
    return bool(node.attribute("transBatchA", 0) or node.attribute("transBatchB", 0))
