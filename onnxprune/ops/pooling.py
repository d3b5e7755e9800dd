"""Pooling over space."""

from onnxprune.channels.facts import SPATIAL, Facts, Freeze, Tie
from onnxprune.channels.registry import NodeView, channel_rule


@channel_rule("AveragePool", "LpPool", "MaxPool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "MaxRoiPool")
def pool(node: NodeView) -> Facts:
    """X [N, C, ...] to y [N, C, ...]; the positions of maxima that MaxPool returns count through N and C."""
    x, y = node.data, node.result
    if len(node.outputs) > 1 and node.outputs[1] is not None:
        for dim in (0, 1):
            yield Freeze(x.axis(dim), f"{node.name!r} also returns the positions of the maxima, which count through it")
    if node.op != "MaxRoiPool":
        yield Tie(x.axis(0), y.axis(0))
    yield Tie(x.axis(1), y.axis(1))
    for dim in range(2, x.rank):
        yield Freeze(x.axis(dim), SPATIAL)
        yield Freeze(y.axis(dim), SPATIAL)
