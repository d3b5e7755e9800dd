"""Rules broken on purpose: the slicing law has to notice each of them."""

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np
import pytest
from cases import CASES
from law import LIMIT, analyzed, seeded_removals, violation

from onnxprune.channels.facts import Balance, Bound, Count, Fact, Freeze, Positions, Regroup, Rescale, Restore, Tie
from onnxprune.channels.registry import NodeView, operators
from onnxprune.errors import OnnxPruneError

BY_NAME = {case.name: case for case in CASES}
Change = Callable[[NodeView, Fact], Iterable[Fact]]


def without(kind: type, *more: type) -> Change:
    return lambda node, fact: [] if isinstance(fact, (kind, *more)) else [fact]


def shifted(side: str, amount: int) -> Change:
    """Indices of ties point to a neighbour."""

    def change(node: NodeView, fact: Fact) -> list[Fact]:
        if not isinstance(fact, Tie) or fact.left_index is None or fact.right_index is None:
            return [fact]
        axis = fact.left if side == "left_index" else fact.right
        value = next(v for v in (*node.inputs, *node.outputs) if v is not None and v.name == axis.tensor)
        return [dataclasses.replace(fact, **{side: (getattr(fact, side) + amount) % value.shape[axis.dim]})]

    return change


def straight_transpose(node: NodeView, fact: Fact) -> list[Fact]:
    """Dimension d of the input is taken for dimension d of the output."""
    return [Tie(fact.left, node.result.axis(fact.left.dim))] if isinstance(fact, Tie) else [fact]


def inner_flatten(node: NodeView, fact: Fact) -> list[Fact]:
    """The channel is taken for the innermost factor of the merged axis."""
    if not isinstance(fact, Regroup) or len(fact.left) < 2:
        return [fact]
    places = np.arange(node.result.shape[1])
    return [
        Tie(fact.left[0], fact.right[0], places % node.data.shape[1], places),
        *(Freeze(axis, "space") for axis in fact.left[1:]),
    ]


def swapped_halves(node: NodeView, fact: Fact) -> list[Fact]:
    if not isinstance(fact, Tie) or fact.left_index is None or fact.right_index is None:
        return [fact]
    return [dataclasses.replace(fact, left_index=(fact.left_index + 3) % 6)]


def other_weight_axis(node: NodeView, fact: Fact) -> list[Fact]:
    """Inputs and outputs of a weight are confused."""
    swap = {node.weight(1).axis(0): node.weight(1).axis(1), node.weight(1).axis(1): node.weight(1).axis(0)}
    return [dataclasses.replace(fact, left=swap.get(fact.left, fact.left), right=swap.get(fact.right, fact.right))
            if isinstance(fact, Tie) else fact]  # fmt: skip


def other_depth_order(node: NodeView, fact: Fact) -> list[Fact]:
    """CRD is read as DCR, and the other way round."""
    if not isinstance(fact, Tie) or fact.left_index is None:
        return [fact]
    every, channels = fact.left_index, int(fact.right_index.max()) + 1
    crd = np.array_equal(fact.right_index, every // (every.size // channels))
    return [dataclasses.replace(fact, right_index=every % channels if crd else every // (every.size // channels))]


def plain_group(node: NodeView, fact: Fact) -> list[Fact]:
    """A grouped convolution is taken for several plain ones: no common counts."""
    return [Tie(fact.axis, fact.axis)] if isinstance(fact, Balance) else [fact]


def restore_in_place(node: NodeView, fact: Fact) -> list[Fact]:
    return [Tie(fact.source, fact.target, contracts=True)] if isinstance(fact, Restore) else [fact]


def zeros_behind(node: NodeView, fact: Fact) -> list[Fact]:
    return [dataclasses.replace(fact, in_place=False)] if isinstance(fact, Restore) else [fact]


def scale_left_alone(node: NodeView, fact: Fact) -> list[Fact]:
    return [dataclasses.replace(fact, along=())] if isinstance(fact, Restore) else [fact]


def other_power(node: NodeView, fact: Fact) -> list[Fact]:
    return [dataclasses.replace(fact, power=-fact.power)] if isinstance(fact, Rescale) else [fact]


def unsummed(node: NodeView, fact: Fact) -> list[Fact]:
    return [dataclasses.replace(fact, contracts=False)] if isinstance(fact, Tie | Balance) else [fact]


MUTATIONS = {
    "Concat: wrong offset": ("Concat", "concat", shifted("right_index", 1)),
    "Transpose: wrong axis": ("Transpose", "transpose_equal_sizes", straight_transpose),
    "Flatten: wrong repeat": ("Flatten", "flatten", inner_flatten),
    "Conv: group does not follow": ("Conv", "conv_depthwise", without(Count)),
    "Conv: groups lose different counts": ("Conv", "conv_group2", plain_group),
    "Conv: sum over channels not declared": ("Conv", "conv", unsummed),
    "Split: sizes do not follow": ("Split", "split", without(Count)),
    "Split: halves swapped": ("Split", "split_equal", swapped_halves),
    "ConvTranspose: wrong weight axis": ("ConvTranspose", "conv_transpose_square", other_weight_axis),
    "DepthToSpace: mode ignored (DCR)": ("DepthToSpace", "depth_to_space", other_depth_order),
    "DepthToSpace: mode ignored (CRD)": ("DepthToSpace", "depth_to_space_crd", other_depth_order),
    "Pad: offset dropped": ("Pad", "pad_channels", shifted("right_index", -1)),
    "Pad: pads do not follow": ("Pad", "pad_channels", without(Count)),
    "Gemm: transB ignored": ("Gemm", "gemm_square_trans_b", other_weight_axis),
    "Slice: bounds do not follow": ("Slice", "slice", without(Count)),
    "Slice: wrong start": ("Slice", "slice", shifted("left_index", 1)),
    "Gather: positions not renumbered": ("Gather", "gather", without(Positions)),
    "Gather: wrong order": ("Gather", "gather_order", shifted("left_index", 1)),
    "Reshape: sizes do not follow": ("Reshape", "reshape_merge", without(Count)),
    "Tile: wrong repeat": ("Tile", "tile", shifted("left_index", 1)),
    "GroupNormalization: groups split": ("GroupNormalization", "group_norm_21", without(Count)),
    "LRN: neighbours move": ("LRN", "lrn", restore_in_place),
    "LRN: zeros behind": ("LRN", "lrn", zeros_behind),
    "LayerNormalization: plain": ("LayerNormalization", "layer_norm", restore_in_place),
    "LayerNormalization: scale not widened": ("LayerNormalization", "layer_norm", scale_left_alone),
    "MeanVarianceNormalization: plain": ("MeanVarianceNormalization", "mean_variance_channels", restore_in_place),
    "ReduceMean: mean over what is left": ("ReduceMean", "reduce_mean_channels", without(Rescale)),
    "ReduceMean: wrong power": ("ReduceMean", "reduce_mean_channels", other_power),
    "ReduceMax: no zero of silent channels": ("ReduceMax", "reduce_max_negative", without(Bound)),
    "RMSNormalization: epsilon and scale do not follow": ("RMSNormalization", "rms_norm", without(Rescale)),
    "Softmax: statistic not declared": ("Softmax", "softmax_axis", without(Freeze)),
    "MatMul: sum over channels not declared": ("MatMul", "matmul", unsummed),
}


def caught(name: str) -> bool:
    """Returns whether the law fails on a case for some removals: by an error, or by a difference."""
    case = BY_NAME[name]
    try:
        channels = analyzed(case)
        found = (violation(case, channels, seeded_removals(channels, seed), seed) for seed in range(4))
        return any(value > LIMIT[case.run] for value in found)
    except (OnnxPruneError, ValueError, IndexError, RuntimeError, KeyError):
        return True


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_law_catches(mutation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    operator, name, change = MUTATIONS[mutation]
    assert not caught(name)
    rule = operators()[operator].channels
    monkeypatch.setattr(
        operators()[operator], "channels", lambda node: [new for fact in rule(node) for new in change(node, fact)]
    )
    assert caught(name)
