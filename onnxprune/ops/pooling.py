"""Pooling over space."""

from onnxprune.channels.facts import SPATIAL, Facts, Freeze, Tie
from onnxprune.channels.registry import NodeView, channel_rule


@channel_rule("AveragePool", "LpPool", "MaxPool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "MaxRoiPool")
def pool(node: NodeView) -> Facts:
    """X [N, C, ...] to y [N, C, ...]; the indices of MaxPool count through all channels and have no rule."""
    x, y = node.data, node.result
    if len(node.outputs) > 1 and node.outputs[1] is not None:
        yield Freeze(x.axis(1), f"{node.name!r} also returns the positions of the maxima, which count channels")
    if node.op != "MaxRoiPool":
        yield Tie(x.axis(0), y.axis(0))
    yield Tie(x.axis(1), y.axis(1))
    for dim in range(2, x.rank):
        yield Freeze(x.axis(dim), SPATIAL)
        yield Freeze(y.axis(dim), SPATIAL)
