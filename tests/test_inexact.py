"""Residual widths: removed exactly by default; what cannot be, or costs too much, only with ``inexact``, and named."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import onnxprune

ROOT = Path(__file__).resolve().parent.parent
VIT = ROOT / "models" / "vit.onnx"
WIDTH = 96
NARROW = 24


def narrow() -> onnx.ModelProto:
    """Returns a model with a norm that costs more to keep exact than its channels cost."""
    text = """<ir_version: 8, opset_import: ["" : 17]> narrow (float[N, 12] x) => (float[N, 5] y) {
      a = MatMul(x, w1)  n = LayerNormalization(a, s, t)  h = MatMul(n, w2)  r = Relu(h)  y = MatMul(r, w3) }"""
    model = parser.parse_model(text)
    rng = np.random.default_rng(0)
    shapes = {"w1": (12, NARROW), "s": (NARROW,), "t": (NARROW,), "w2": (NARROW, 16), "w3": (16, 5)}
    values = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    for number, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{number}"
    return model


def test_the_residual_width_of_a_transformer_shrinks_exactly() -> None:
    result = onnxprune.slim(VIT, 0.5, round_to=1, no_latency=True)
    widths = [row for row in result.report.groups if row.units == WIDTH]
    assert [(row.removed, row.exact) for row in widths] == [(WIDTH // 2, True)]
    assert result.report.proof.passed
    assert result.report.proof.inexact_groups == ()
    assert result.report.ratios.macs < 0.32


def test_a_removed_unit_of_the_residual_width_leaves_every_norm() -> None:
    channels = onnxprune.analyze(VIT)
    group = next(group for group in channels.prunable if group.units == WIDTH)
    plan = onnxprune.plan(channels, onnxprune.score(channels), 0.5, include=[group.name], round_to=1)
    assert list(plan.removals) == [group.name]
    norms = {node.inputs[1].name for node in channels.graph.nodes if node.op == "LayerNormalization"}
    cut = {tensor: len(lost) for tensor, _, lost in plan.weights}
    assert norms
    assert all(cut[name] == WIDTH // 2 for name in norms)


def test_off_by_default_and_frozen_with_the_reason_where_it_costs_too_much() -> None:
    held = [group for group in onnxprune.analyze(narrow()).groups if not group.exact]
    assert [group.units for group in held] == [NARROW]
    assert "takes a statistic over it, which costs more to keep exact" in str(held[0].frozen)


def test_on_demand_it_shrinks_and_is_named() -> None:
    result = onnxprune.slim(narrow(), 0.5, inexact=True, round_to=1, no_latency=True)
    names = result.report.proof.inexact_groups
    rows = {row.name: row for row in result.report.groups}
    assert len(names) == 1
    assert (rows[names[0]].units, rows[names[0]].removed, rows[names[0]].exact) == (NARROW, NARROW // 2, False)
    assert result.report.proof.passed
    assert any("outside the proof" in warning for warning in result.report.warnings)


@pytest.mark.parametrize("model", [VIT, narrow()], ids=["exact", "inexact"])
def test_the_contract_with_the_caller_holds(model: object) -> None:
    before = onnx.load(model) if isinstance(model, Path) else model
    after = onnxprune.slim(model, 0.5, inexact=True, no_latency=True).model
    assert list(after.graph.input) == list(before.graph.input)
    assert list(after.graph.output) == list(before.graph.output)


@pytest.mark.parametrize("inexact", [False, True])
def test_exact_groups_are_proved_either_way(inexact: bool) -> None:
    result = onnxprune.slim(narrow(), 0.25, inexact=inexact, round_to=1, no_latency=True)
    assert result.report.proof.passed
    assert (result.report.proof.inexact_groups == ()) is not inexact
    assert {row.units for row in result.report.groups if row.exact and row.removed} == {16}


def test_opset_and_operators_stay_standard() -> None:
    before, after = onnx.load(VIT), onnxprune.slim(VIT, 0.5, no_latency=True).model
    assert list(after.opset_import) == list(before.opset_import)
    assert {node.domain for node in after.graph.node} == {""}
    assert {"Pad", "Slice"} <= {node.op_type for node in after.graph.node}
