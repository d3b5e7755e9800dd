"""The proof sees what surgery got wrong, wherever it lies, and nothing that is rounding."""

from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from onnx_text import model

import onnxprune
from onnxprune.errors import CalibrationError
from onnxprune.model.graph import stored_tensors
from onnxprune.model.io import Graph, read_values, write_values
from onnxprune.surgery.gates import silence
from onnxprune.surgery.slice import slice_channels
from onnxprune.validate import exact

MODELS = Path(__file__).resolve().parents[2] / "models"
FEEDS = [{"image": np.random.default_rng(0).random((2, 1, 28, 28), np.float32)}]


def pruned(name: str) -> tuple[onnxprune.analyze, dict[str, tuple[int, ...]], Graph]:
    channels = onnxprune.analyze(MODELS / f"{name}.onnx")
    removals = dict(onnxprune.plan(channels, onnxprune.score(channels), 0.5, round_to=1).removals)
    return channels, removals, slice_channels(channels, removals)


@pytest.mark.parametrize("name", ["mobilenet", "resnet", "vit"])
def test_a_wrong_number_in_any_weight_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "LARGEST_WORK", 0)  # the second opinion takes longer, and has tests of its own
    channels, removals, sliced = pruned(name)
    assert onnxprune.prove(channels, removals, sliced, FEEDS).passed
    unseen = []
    for tensor, constant in list(stored_tensors(sliced)):
        values = read_values(constant)
        if values.dtype != np.float32 or values.size < 8:
            continue
        write_values(constant, np.roll(values, 1, axis=0) * np.float32(1.5) + np.float32(0.1))
        if onnxprune.prove(channels, removals, sliced, FEEDS).passed:
            unseen.append(tensor)
        write_values(constant, values)
    assert unseen == []


def test_no_feeds_prove_nothing() -> None:
    channels, removals, sliced = pruned("resnet")
    with pytest.raises(CalibrationError, match="at least one run"):
        onnxprune.prove(channels, removals, sliced, [])


def test_a_gate_never_raises_the_rank() -> None:
    text = "a = Conv(x, w) b = GlobalAveragePool(a) c = Squeeze(b) y = MatMul(c, v)"
    proto = model("x:N,3,6,6 w=4,3,3,3 v=4,5", text)
    channels = onnxprune.analyze(proto)
    group = channels.prunable[0]
    gated = silence(channels, {group.name: (0,)})
    masks = [
        tensor.shape
        for node in gated.nodes
        if node.op == "Where"
        for tensor in node.inputs[:1]
        if isinstance(tensor, gs.Constant)
    ]
    assert masks
    assert all(shape[0] != 1 for shape in masks)


def test_a_plan_with_inexact_groups_replays(tmp_path: Path) -> None:
    first = onnxprune.slim(MODELS / "vit.onnx", 0.5, inexact=True, no_latency=True)
    path = tmp_path / "plan.json"
    path.write_text(first.plan.to_json())
    again = onnxprune.slim(MODELS / "vit.onnx", plan=path, no_latency=True)
    assert again.model.SerializeToString(deterministic=True) == first.model.SerializeToString(deterministic=True)
    applied = onnxprune.to_proto(onnxprune.apply(MODELS / "vit.onnx", onnxprune.Plan.load(path)))
    assert [list(t.dims) for t in applied.graph.initializer] == [list(t.dims) for t in first.model.graph.initializer]


def test_sums_that_round_apart_are_not_a_difference() -> None:
    """Where an activation is quantized, the last bit of a sum can decide between two integers."""
    text = "a = Conv(x, w) b = Conv(a, v) q = QuantizeLinear(b, s) d = DequantizeLinear(q, s) y = Conv(d, u)"
    channels = onnxprune.analyze(model("x:8,3,64,64 w=32,3,3,3 v=16,32,3,3 u=4,16,1,1 s=f#0.5", text))
    rng = np.random.default_rng(1)
    removals = {g.name: tuple(rng.choice(g.units, g.units // 2, replace=False)) for g in channels.prunable}
    assert len(removals) == 2
    feeds = [{"x": rng.standard_normal((8, 3, 64, 64), np.float32)}]
    sliced = slice_channels(channels, removals)
    assert onnxprune.prove(channels, removals, sliced, feeds).passed
    assert [node.op for node in sliced.nodes].count("QuantizeLinear") == 1
    assert [node.op for node in channels.graph.nodes].count("QuantizeLinear") == 1
