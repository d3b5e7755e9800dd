"""Row-major blocks, and which factor of a merged axis goes."""

# ruff: noqa: E501 (ONNX text reads best on one line)

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_text import model

from onnxprune.channels.factors import Block, blocks
from onnxprune.channels.facts import Axis
from onnxprune.channels.groups import ChannelGroup, analyze


def split(left: list[int], right: list[int]) -> tuple[list[Block], list[int]]:
    """Numbers the axes 0, 1, ... on the left and goes on with the right."""
    count = len(left)
    return blocks(range(count), range(count, count + len(right)), [*left, *right])


def test_equal_axes_are_blocks_of_their_own() -> None:
    found, odd = split([2, 6, 4], [2, 6, 4])
    assert [block.factors for block in found] == [(2,), (6,), (4,)]
    assert [block.axes for block in found] == [((0, (0,)), (3, (0,))), ((1, (0,)), (4, (0,))), ((2, (0,)), (5, (0,)))]
    assert odd == []


def test_merge_has_outer_and_inner_factors() -> None:
    (first, block), odd = split([2, 6, 4, 5], [2, 120])
    assert first.factors == (2,)
    assert block.factors == (6, 4, 5)
    assert block.axes == ((1, (0,)), (2, (1,)), (3, (2,)), (5, (0, 1, 2)))
    assert [block.part((0, 1, 2), factor) for factor in range(3)] == [(20, 6), (5, 4), (1, 5)]
    assert odd == []


def test_both_sides_may_merge() -> None:
    (block,), odd = split([4, 6], [8, 3])
    assert block.factors == (4, 2, 3)
    assert block.axes == ((0, (0,)), (1, (1, 2)), (2, (0, 1)), (3, (2,)))
    assert odd == []


def test_sizes_without_common_factors_are_odd() -> None:
    found, odd = split([5, 4, 6], [5, 3, 8])
    assert [block.factors for block in found] == [(5,)]
    assert odd == [1, 2, 4, 5]


def test_axes_of_length_one_take_no_part() -> None:
    found, odd = split([1, 6, 1], [6, 1, 1])
    assert [block.axes for block in found] == [((1, (0,)), (3, (0,)))]
    assert odd == []


def test_what_is_left_over_is_odd() -> None:
    assert split([2, 3], [2]) == ([Block((2,), ((0, (0,)), (2, (0,))))], [1])


@settings(max_examples=60, derandomize=True, deadline=None, database=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.data())
def test_blocks_agree_with_row_major_order(factors: list[int], data: st.DataObject) -> None:
    """Merging the same factors in two ways gives blocks in which every axis index follows from factor indices."""
    cuts = [sorted(data.draw(st.sets(st.integers(1, len(factors)))) | {len(factors)}) for _ in range(2)]
    sides = [[math.prod(factors[a:b]) for a, b in zip([0, *cut], cut, strict=False)] for cut in cuts]
    found, odd = split(*sides)
    assert odd == []
    lengths = [*sides[0], *sides[1]]
    for block in found:
        index = np.indices(block.factors).reshape(len(block.factors), -1)
        left = [axis for axis, _ in block.axes if axis < len(sides[0])]
        for axes in (left, [axis for axis, _ in block.axes if axis >= len(sides[0])]):
            sizes = [lengths[axis] for axis in axes]
            places = np.unravel_index(np.arange(math.prod(sizes)), sizes)
            members = dict(block.axes)
            for axis, place in zip(axes, places, strict=True):
                shape = [block.factors[factor] for factor in members[axis]]
                assert np.array_equal(place, np.ravel_multi_index([index[f] for f in members[axis]], shape))


def prunable(tensors: str, text: str) -> list[ChannelGroup]:
    return list(analyze(model(tensors, text)).prunable)


def channels_of(group: ChannelGroup, tensor: str, dim: int) -> list[list[int]]:
    """Returns the channels of an axis that go with each unit."""
    member = next(member for member in group.members if Axis(tensor, dim) in member.axes)
    return [member.channels[member.units == unit].tolist() for unit in range(group.units)]


TAIL = """ kt = Transpose<perm=[0,2,3,1]>(k4) qt = Transpose<perm=[0,2,1,3]>(q4) vt = Transpose<perm=[0,2,1,3]>(v4) s = MatMul(qt, kt)
 a = Softmax(s) o = MatMul(a, vt) ot = Transpose<perm=[0,2,1,3]>(o) om = Reshape(ot, back) y = MatMul(om, wo)"""


def test_attention_loses_heads_not_head_dimensions() -> None:
    (group,) = prunable(
        "x:2,5,6 wq=6,12 wk=6,12 wv=6,12 wo=12,6 to={0,0,3,4} back={0,0,12}",
        "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) q4 = Reshape(q, to) k4 = Reshape(k, to) v4 = Reshape(v, to)" + TAIL,
    )  # fmt: skip
    heads = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert group.units == 3
    assert group.width == 4
    for tensor, dim in (("wq", 1), ("wk", 1), ("wv", 1), ("wo", 0)):
        assert channels_of(group, tensor, dim) == heads
    assert set(group.weights) == {Axis("wq", 1), Axis("wk", 1), Axis("wv", 1), Axis("wo", 0)}


def test_more_heads_than_head_dimensions_are_heads_still() -> None:
    (group,) = prunable(
        "x:2,5,6 wq=6,12 wk=6,12 wv=6,12 wo=12,6 to={0,0,6,2} back={0,0,12}",
        "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) q4 = Reshape(q, to) k4 = Reshape(k, to) v4 = Reshape(v, to)" + TAIL,
    )  # fmt: skip
    assert group.units == 6


@pytest.mark.parametrize(
    ("order", "heads"),
    [
        ("to={0,0,3,2,4} i=#0 j=#1 k=#2", [[0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19], [4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23]]),
        ("to={0,0,2,3,4} i=#0 j=#1 k=#2", [[*range(12)], [*range(12, 24)]]),
    ],
)  # fmt: skip
def test_fused_projection_loses_the_same_head_three_times(order: str, heads: list[list[int]]) -> None:
    axis = 2 if "3,2,4" in order else 3
    (group,) = prunable(
        "x:2,5,6 w=6,24 wo=8,6 back={0,0,8} " + order.replace("k=#2", "l=#2"),
        f"p = MatMul(x, w) r = Reshape(p, to) q4 = Gather<axis={axis}>(r, i) k4 = Gather<axis={axis}>(r, j) v4 = Gather<axis={axis}>(r, l)" + TAIL,
    )  # fmt: skip
    assert channels_of(group, "w", 1) == heads
    assert channels_of(group, "wo", 0) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_fused_projection_cut_by_split() -> None:
    (group,) = prunable(
        "x:2,5,6 w=6,24 wo=8,6 to={0,0,2,4} back={0,0,8}",
        "p = MatMul(x, w) q, k, v = Split<axis=2>(p) q4 = Reshape(q, to) k4 = Reshape(k, to) v4 = Reshape(v, to)"
        + TAIL,
    )
    assert channels_of(group, "w", 1)[0] == [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19]


def test_flatten_takes_the_pixels_of_a_channel() -> None:
    (group,) = prunable("x:2,3,4,4 w=3,3,3,3 v=12,5", "a = Conv(x, w) f = Flatten(a) y = MatMul(f, v)")
    assert channels_of(group, "w", 0) == [[0], [1], [2]]
    assert channels_of(group, "v", 0) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_channels_last_flatten_interleaves() -> None:
    (group,) = prunable(
        "x:2,3,4,4 w=3,3,3,3 v=12,5", "a = Conv(x, w) t = Transpose<perm=[0,2,3,1]>(a) f = Flatten(t) y = MatMul(f, v)"
    )
    assert channels_of(group, "v", 0) == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]


def test_groups_lose_as_many_channels_each_and_the_same_offsets_behind_a_shuffle() -> None:
    groups = prunable(
        "x:2,3,4,4 w=8,3,1,1 v=8,4,1,1 u=6,4,1,1 to={0,2,4,4,4} back={0,8,4,4}",
        "a = Conv(x, w) b = Conv<group=2>(a, v) r = Reshape(b, to) t = Transpose<perm=[0,2,1,3,4]>(r) k = Reshape(t, back) "
        "c = Conv<group=2>(k, u) m = GlobalMaxPool(c) f = Flatten(m)",
    )
    first, shuffled = groups
    assert channels_of(first, "w", 0) == [[channel] for channel in range(8)]
    assert first.blocks is not None
    assert first.blocks.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert Axis("v", 1) in first.weights
    assert channels_of(shuffled, "v", 0) == [[0, 2], [1, 3], [4, 6], [5, 7]]
    assert shuffled.blocks is not None
    assert shuffled.blocks.tolist() == [0, 0, 1, 1]


def test_group_norm_written_out_loses_whole_groups() -> None:
    (group,) = prunable(
        "x:2,3,4,4 w=8,3,1,1 to={0,4,-1} s=4 b=4 back={0,8,4,4} g=8,1,1 v=5,8,1,1",
        "a = Conv(x, w) r = Reshape(a, to) n = InstanceNormalization(r, s, b) k = Reshape(n, back) m = Mul(k, g) y = Conv(m, v)",
    )
    assert channels_of(group, "w", 0) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert channels_of(group, "s", 0) == [[0], [1], [2], [3]]
    assert channels_of(group, "v", 1) == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_depth_to_space_modes_differ() -> None:
    for mode, first in (("DCR", [0, 2, 4, 6]), ("CRD", [0, 1, 2, 3])):
        (group,) = prunable(
            "x:2,3,4,4 w=8,3,1,1 v=5,2,1,1",
            f'a = Conv(x, w) d = DepthToSpace<blocksize=2, mode="{mode}">(a) y = Conv(d, v)',
        )
        assert channels_of(group, "w", 0)[0] == first


def test_softmax_over_heads_leaves_head_dimensions() -> None:
    (group,) = prunable(
        "x:2,5,6 wq=6,12 wo=12,6 to={0,0,3,4} back={0,0,12}",
        "q = MatMul(x, wq) r = Reshape(q, to) a = Softmax<axis=2>(r) b = Reshape(a, back) y = MatMul(b, wo)",
    )
    assert channels_of(group, "wq", 1) == [[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7, 11]]


def test_an_axis_that_must_stay_keeps_all_its_factors() -> None:
    """The grouped convolution wants offsets to go, the output forbids it, so the outer factor cannot go either."""
    groups = analyze(
        model(
            "x:2,4,4,4 v=4,2,1,1 to={0,2,2,16} u=2,1,1 d={1}",
            "a = Conv<group=2>(x, v) r = Reshape(a, to) m = Mul(r, u) y = ReduceSum<keepdims=0>(m, d)",
        )
    ).groups
    group = next(group for group in groups if Axis("u", 0) in group.weights)
    assert group.frozen == "is the graph output 'y'"
