"""Reductions and searches along axes."""

from collections.abc import Callable
from typing import Any

import numpy as np

from onnxprune.channels.facts import Bound, Facts, Freeze, Rescale, Result, Tie
from onnxprune.channels.registry import Array, NodeView, channel_rule, value_rule

SUMS = ("ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceMean")
REDUCERS: dict[str, Callable[..., Any]] = {
    "ReduceProd": np.prod, "ReduceSum": np.sum, "ReduceMax": np.max, "ReduceMin": np.min,
}  # fmt: skip
EXTREMES = {"ReduceMax": "Max", "ReduceMin": "Min"}
OTHERS = ("ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSumExp")

BROADCASTING = 8
"""The opset from which on Max and Min broadcast."""


@channel_rule(*SUMS, *OTHERS, operands=(1,))
def reduction(node: NodeView) -> Facts:
    """Kept axes correspond one to one; a sum over channels is the same without silent ones.

    Among the extremes are the zeros of silent ones. A mean is the sum over the original number of channels. Where a
    normalization is written out, with two means, silent channels count in the first, and in the second only as far as
    what it reads is silenced there once more.
    """
    x, y = node.data, node.result
    axes = reduced_axes(node)
    if axes is None:
        return
    kept = [dim for dim in range(x.rank) if dim not in axes]
    places = kept if node.attribute("keepdims", 1) else range(len(kept))
    for dim, place in zip(kept, places, strict=True):
        yield Tie(x.axis(dim), y.axis(place))
    for dim in axes:
        if node.op in SUMS or (node.op in EXTREMES and node.opset >= BROADCASTING):
            yield Tie(x.axis(dim), x.axis(dim), contracts=True)
            if node.op == "ReduceMean":
                yield Rescale(x.axis(dim), Result(0), 1.0)
            elif node.op in EXTREMES:
                yield Bound(x.axis(dim), EXTREMES[node.op])
        else:
            yield Freeze(x.axis(dim), f"{node.name!r} ({node.op}) reduces over it")


@channel_rule("ArgMax", "ArgMin", "CumProd", "CumSum", "TopK", operands=(1,))
def search(node: NodeView) -> Facts:
    """Works along one axis; the others correspond one to one."""
    x = node.data
    default = -1 if node.op == "TopK" else 0
    cumulative = node.op in ("CumProd", "CumSum")
    along = node.known(1) if cumulative else None
    axis = int(along.ravel()[0]) if along is not None else node.attribute("axis", default)
    if cumulative and along is None:
        return
    axis %= x.rank
    dropped = node.op in ("ArgMax", "ArgMin") and not node.attribute("keepdims", 1)
    for y in node.outputs:
        for dim in range(x.rank):
            if dim != axis and y is not None:
                yield Tie(x.axis(dim), y.axis(dim - (dropped and dim > axis)))
    yield Freeze(x.axis(axis), f"{node.name!r} ({node.op}) works along it")
    if not dropped:
        for y in node.outputs:
            if y is not None:
                yield Freeze(y.axis(axis), f"{node.name!r} ({node.op}) works along it")


@value_rule("ReduceProd", "ReduceSum", "ReduceMax", "ReduceMin")
def reduction_value(node: NodeView, inputs: list[Array]) -> list[Array]:
    """A reduction over the axes, or over everything."""
    function = REDUCERS[node.op]
    listed = node.attribute("axes") if len(inputs) < 2 else inputs[1].tolist()
    axes = tuple(int(axis) for axis in listed) if listed else None
    if axes is None and node.attribute("noop_with_empty_axes", 0):
        return [inputs[0]]
    return [np.asarray(function(inputs[0], axis=axes, keepdims=bool(node.attribute("keepdims", 1))), inputs[0].dtype)]


def reduced_axes(node: NodeView) -> set[int] | None:
    """Returns the reduced dimensions, or ``None`` where they are computed from the data."""
    rank = node.data.rank
    if node.input(1) is not None and node.known(1) is None:
        return None
    listed = node.integers("axes", 1)
    if not listed:
        return set() if node.attribute("noop_with_empty_axes", 0) else set(range(rank))
    return {axis % rank for axis in listed}
