"""Masks that samples choose on the way through both networks."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx_text import model

from onnxprune.channels.groups import Channels, analyze
from onnxprune.model.io import Graph, to_proto
from onnxprune.plan.masks import MaskDemand, MaskPlan, masks_for
from onnxprune.recover.clipping import Fit
from onnxprune.recover.least_squares import Mask, Solution, solve
from onnxprune.recover.masking import CRITERIA
from onnxprune.recover.moments import Array, Moments
from onnxprune.recover.sequential import Calibration, Settings, repair
from onnxprune.runtime.session import SessionOptions, open_session
from onnxprune.score.masks import Block, Pattern, PerGroup, Unstructured
from onnxprune.surgery.gone import Gone, Removals
from onnxprune.surgery.mask import mask_weights, masked_rows
from onnxprune.surgery.slice import slice_channels

OPTIONS = SessionOptions(threads=1)

NET = model(
    "x:N,4,8,8 w0=16,4,3,3 b0=16 w1=16,1,3,3 w2=16,8,3,3 b2=16 w3=16,8,2,2 w4=8,12 w5=12,12",
    "a = Conv<pads=[1,1,1,1]>(x, w0, b0) r = Relu(a) c = Conv<pads=[1,1,1,1], group=16>(r, w1) q = Relu(c) "
    "d = Conv<pads=[1,1,1,1], group=2>(q, w2, b2) z = Add(d, r) s = Relu(z) t = ConvTranspose<strides=[2,2]>(s, w3) "
    "u = Relu(t) p = GlobalAveragePool(u) f = Flatten(p) g = Gemm(f, w4) h = Relu(g) v = Transpose(w5) "
    "y = MatMul(h, v)",
)


def runs() -> Calibration:
    x = np.random.default_rng(0).standard_normal((160, 4, 8, 8), np.float32)
    return Calibration([{"x": x[:64]}, {"x": x[64:128]}], [{"x": x[128:]}])


def error(graph: Graph) -> float:
    feed = {"x": np.random.default_rng(1).standard_normal((64, 4, 8, 8), np.float32)}
    expected = open_session(NET, OPTIONS).run(feed)["y"]
    return float(np.square(open_session(graph, OPTIONS).run(feed)["y"] - expected).mean())


def made(channels: Channels, removals: Removals, demand: MaskDemand, criterion: str) -> tuple[Graph, Graph, MaskPlan]:
    """Returns the graph as it is sliced, the masked and repaired one, and what was planned."""
    small = slice_channels(channels, removals)
    plan = masks_for(small, demand)
    settings = Settings(solve, options=OPTIONS, masks=plan, criterion=criterion)
    result, _ = repair(small, channels.graph, Gone(channels, removals), runs(), settings)
    return small, result, plan


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("pattern", [Unstructured(), PerGroup(2, 4), Block(1, 4)], ids=str)
def test_exact_zeros_and_less_error_than_by_magnitude(criterion: str, pattern: Pattern) -> None:
    small, result, plan = made(analyze(NET), {}, MaskDemand(pattern, 0.5), criterion)
    plain = mask_weights(small, plan)
    assert [(row.name, row.zeros) for row in masked_rows(plain, plan)] == [
        (one.name, one.zeros) for one in plan.tensors
    ]
    assert [row.zeros for row in masked_rows(result, plan)] == [one.zeros for one in plan.tensors]
    assert error(result) < 0.25 * error(plain)


def test_it_finds_better_masks_than_magnitude_of_the_original() -> None:
    channels = analyze(NET)
    small, result, plan = made(channels, {}, MaskDemand(Unstructured(), 0.7), "alps")
    settings = Settings(solve, options=OPTIONS)
    plain, _ = repair(mask_weights(small, plan), channels.graph, Gone(channels, {}), runs(), settings)
    assert [row.zeros for row in masked_rows(plain, plan)] == [one.zeros for one in plan.tensors]
    assert error(result) < 0.9 * error(plain)


def test_together_with_removed_channels() -> None:
    channels = analyze(NET)
    group = next(one for one in channels.prunable if one.units == 12)
    small, result, plan = made(channels, {group.name: [0, 3, 4, 7]}, MaskDemand(PerGroup(2, 4)), "alps")
    assert {one.name: one.size for one in plan.tensors}["w5"] == 96
    for row, one in zip(masked_rows(result, plan), plan.tensors, strict=True):
        assert row.zeros == one.zeros == one.size // 2
    assert error(result) < 0.5 * error(mask_weights(small, plan))


def test_a_threshold_stays_what_it_is() -> None:
    """The weights that go are those below it, whatever would fit better."""
    small, result, plan = made(analyze(NET), {}, MaskDemand(Unstructured(), threshold=0.4), "alps")
    whole, found = ({t.name: numpy_helper.to_array(t) for t in to_proto(g).graph.initializer} for g in (small, result))
    assert len(plan.tensors) == 4
    for one in plan.tensors:
        if one.name in found:  # another is stored under the name of its transposed
            assert ((found[one.name] == 0) == (np.abs(whole[one.name]) < 0.4)).all()
    assert error(result) < 0.5 * error(mask_weights(small, plan))


def test_weights_that_cannot_be_fitted_are_masked_by_magnitude() -> None:
    proto = model(
        "x:N,8 f=8,8 w=8,8 v=8,4", "a = MatMul(x, f) b = MatMul(a, w) c = Relu(b) d = MatMul(c, w) y = MatMul(d, v)"
    )
    channels = analyze(proto)
    plan = masks_for(channels.graph, MaskDemand(PerGroup(2, 4)))
    x = np.random.default_rng(0).standard_normal((200, 8), np.float32)
    settings = Settings(solve, options=OPTIONS, masks=plan)
    result, found = repair(
        channels.graph, channels.graph, Gone(channels, {}), Calibration([{"x": x[:160]}], [{"x": x[160:]}]), settings
    )
    plain = mask_weights(channels.graph, plan)
    values = [{t.name: numpy_helper.to_array(t) for t in to_proto(one).graph.initializer} for one in (plain, result)]
    assert (values[0]["w"] == values[1]["w"]).all()
    assert (values[0]["v"] != values[1]["v"]).any()
    assert [one.node for one in found] == ["MatMul_4"]
    assert [row.zeros for row in masked_rows(result, plan)] == [32, 16]


def test_masks_by_magnitude_stay_where_held_out_rows_do_not_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    """And never the dense weights."""

    def useless(fitted: Moments, held_out: Moments, matrix: Array, bias: Array, free: Mask | None = None) -> Solution:
        wrong = 50 * matrix
        return Solution(wrong, bias, held_out.error(wrong, bias), held_out.error(wrong, bias))

    channels = analyze(NET)
    plan = masks_for(channels.graph, MaskDemand(Unstructured(), 0.5))
    settings = Settings(useless, options=OPTIONS, masks=plan)
    monkeypatch.setattr(Fit, "solve", lambda self, matrix, bias, free=None: useless(*self.sums, matrix, bias, free))
    result, found = repair(channels.graph, channels.graph, Gone(channels, {}), runs(), settings)
    assert not any(one.kept for one in found)
    assert masked_rows(result, plan) == masked_rows(mask_weights(channels.graph, plan), plan)
    assert [row.zeros for row in masked_rows(result, plan)] == [one.zeros for one in plan.tensors]


def test_the_same_samples_make_the_same_model() -> None:
    models = [to_proto(made(analyze(NET), {}, MaskDemand(Unstructured(), 0.6), "alps")[1]) for _ in range(2)]
    assert isinstance(models[0], onnx.ModelProto)
    assert models[0] == models[1]
