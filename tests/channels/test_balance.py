"""Grouped operators: any selection with the same count in every group, and ties only where the graph needs them."""

# ruff: noqa: E501 (ONNX text reads best on one line)

import numpy as np
import pytest
from onnx_text import model

from onnxprune.channels.facts import Axis
from onnxprune.channels.groups import ChannelGroup, Channels, analyze
from onnxprune.errors import PlanError
from onnxprune.model.graph import stored_tensors
from onnxprune.model.io import read_values
from onnxprune.plan.plan import Plan, plan
from onnxprune.score.scores import Scores, score
from onnxprune.surgery.slice import slice_channels

PAIR = "x:2,3,4,4 w=8,3,1,1 v=6,4,1,1 u=5,6,1,1"
TWO = "a = Conv(x, w) b = Conv<group=2>(a, v) y = Conv(b, u)"


def owner(channels: Channels, tensor: str, dim: int) -> ChannelGroup:
    return next(group for group in channels.groups if any(Axis(tensor, dim) in member.axes for member in group.members))


def stored(graph: object) -> dict[str, np.ndarray]:
    return {name: read_values(tensor) for name, tensor in stored_tensors(graph)}


def test_each_block_of_the_weight_loses_its_own_columns() -> None:
    channels = analyze(model(PAIR, TWO))
    first = owner(channels, "w", 0)
    assert (first.units, first.block_count, first.width) == (8, 2, 1)
    before, after = stored(channels.graph)["v"], stored(slice_channels(channels, {first.name: [0, 2, 5, 6]}))["v"]
    np.testing.assert_array_equal(after[:3], before[:3][:, [1, 3]])
    np.testing.assert_array_equal(after[3:], before[3:][:, [0, 3]])


def test_a_plan_takes_the_lowest_of_each_block() -> None:
    channels = analyze(model(PAIR, TWO))
    first = owner(channels, "w", 0)
    values = {group.name: np.arange(group.units, dtype=float) for group in channels.prunable}
    made = plan(channels, Scores("given", values), 0.5, 1)
    assert made.removals[first.name] == (0, 1, 4, 5)
    assert plan(channels, Scores("given", values), 0.3, 1).removals[first.name] == (0, 4)


def test_unequal_counts_are_refused() -> None:
    channels = analyze(model(PAIR, TWO))
    name = owner(channels, "w", 0).name
    with pytest.raises(PlanError, match="from 0 to 2 units of the 2 blocks"):
        slice_channels(channels, {name: [0, 1]})


def test_a_saved_plan_says_what_each_block_loses() -> None:
    channels = analyze(model(PAIR, TWO))
    values = {group.name: np.array([5, 1, 2, 6, 1, 7, 8, 2.0])[: group.units] for group in channels.prunable}
    made = plan(channels, Scores("given", values), 0.5, 1)
    rows = {(name, dim): lost for name, dim, lost in made.weights}
    assert rows["v", 1] == ((1, 2), (0, 3))
    assert rows["w", 0] == (1, 2, 4, 7)
    assert Plan.from_json(made.to_json()) == made


def test_scores_count_the_columns_of_the_own_block() -> None:
    proto = model(PAIR, TWO)
    channels = analyze(proto)
    values = stored(channels.graph)
    w, v = (np.square(values[name].astype(np.float64)) for name in "wv")
    columns = v.reshape(2, 3, 4).sum(axis=1).ravel()
    expected = np.sqrt(w.sum(axis=(1, 2, 3)) + columns)
    found = score(channels, "l2").values[owner(channels, "w", 0).name]
    np.testing.assert_allclose(found, expected / expected.mean(), rtol=1e-6)


FORMS = {
    "cast weight": ("x:2,3,4,4 w=8,3,1,1 h=6,4,1,1 u=5,6,1,1", "v = Identity(h) a = Conv(x, w) b = Conv<group=2>(a, v) y = Conv(b, u)", 8, 2),
    "scaled weight": (PAIR + " s=6,1,1,1", "t = Mul(v, s) a = Conv(x, w) b = Conv<group=2>(a, t) y = Conv(b, u)", 8, 2),
    "transposed weight": ("x:2,3,4,4 w=8,3,1,1 h=4,6,1,1 u=5,6,1,1", "v = Transpose<perm=[1,0,2,3]>(h) a = Conv(x, w) b = Conv<group=2>(a, v) y = Conv(b, u)", 4, 1),
    "weight used twice alike": ("x:2,3,4,4 w=8,3,1,1 v=6,4,1,1 u=5,6,1,1", "a = Conv(x, w) b = Conv<group=2>(a, v) r = Relu(a) c = Conv<group=2>(r, v) d = Add(b, c) y = Conv(d, u)", 8, 2),
    "nested groups": ("x:2,3,4,4 w=8,3,1,1 v=8,4,1,1 v2=8,2,1,1 u=5,8,1,1", "a = Conv(x, w) b = Conv<group=2>(a, v) c = Conv<group=4>(a, v2) d = Concat<axis=2>(b, c) y = Conv(d, u)", 8, 4),
    "blocks from two branches": ("x:2,3,4,4 w=4,3,1,1 w2=4,3,1,1 v=6,4,1,1 u=5,6,1,1", "a1 = Conv(x, w) a2 = Conv(x, w2) a = Concat<axis=1>(a1, a2) b = Conv<group=2>(a, v) y = Conv(b, u)", 4, 1),
    "behind a depthwise": ("x:2,3,4,4 w=4,3,1,1 m=8,1,1,1 v=6,4,1,1 u=5,6,1,1", "a1 = Conv(x, w) a = Conv<group=4>(a1, m) b = Conv<group=2>(a, v) y = Conv(b, u)", 4, 2),
    "whole groups of a normalization": (PAIR + " s=4 t=4", "a = Conv(x, w) n = GroupNormalization<num_groups=4>(a, s, t) b = Conv<group=2>(n, v) y = Conv(b, u)", 4, 2),
    "one normalized group in each": (PAIR + " s=2 t=2", "a = Conv(x, w) n = GroupNormalization<num_groups=2>(a, s, t) b = Conv<group=2>(n, v) y = Conv(b, u)", 0, 1),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_blocks_where_the_graph_allows_them(form: str) -> None:
    tensors, text, units, blocks = FORMS[form]
    group = owner(analyze(model(tensors, text, 18)), "w", 0)
    if units:
        assert (group.frozen, group.units, group.block_count) == (None, units, blocks)
    else:
        assert group.frozen is not None
