"""Quantization operators in Q/DQ form."""

from onnxprune.channels.facts import Facts, Tie
from onnxprune.channels.registry import NodeView, channel_rule


@channel_rule("QuantizeLinear", "DequantizeLinear")
def quantize(node: NodeView) -> Facts:
    """Element by element; per-channel scales and zero points follow ``axis``. Blocked scales have no rule."""
    x, y, scale = node.data, node.result, node.weight(1)
    if node.attribute("block_size", 0) or scale.rank > 1:
        return
    for dim in range(x.rank):
        yield Tie(x.axis(dim), y.axis(dim))
    axis = node.attribute("axis", 1)
    for value in node.inputs[1:]:
        if value is not None and value.rank == 1 and value.shape[0] != 1:
            yield Tie(value.axis(0), x.axis(axis))
