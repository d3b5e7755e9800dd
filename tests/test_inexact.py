"""Groups with a statistic over their channels: off by default, on with ``inexact``, named in the report."""

from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxprune

ROOT = Path(__file__).resolve().parent.parent
VIT = ROOT / "models" / "vit.onnx"
WIDTH = 96


def test_off_by_default_and_frozen_with_the_reason() -> None:
    held = [group for group in onnxprune.analyze(VIT).groups if not group.exact]
    assert [group.units for group in held] == [WIDTH]
    assert "takes a statistic over it" in str(held[0].frozen)


def test_on_demand_the_residual_width_shrinks_and_is_named() -> None:
    result = onnxprune.slim(VIT, 0.5, inexact=True, round_to=1, no_latency=True)
    names = result.report.proof.inexact_groups
    rows = {row.name: row for row in result.report.groups}
    assert len(names) == 1
    assert (rows[names[0]].units, rows[names[0]].removed, rows[names[0]].exact) == (WIDTH, WIDTH // 2, False)
    assert result.report.proof.passed
    assert any("outside the proof" in warning for warning in result.report.warnings)
    assert result.report.ratios.macs < 0.32


def test_the_contract_with_the_caller_holds() -> None:
    before, after = onnx.load(VIT), onnxprune.slim(VIT, 0.5, inexact=True, no_latency=True).model
    assert list(after.graph.input) == list(before.graph.input)
    assert list(after.graph.output) == list(before.graph.output)


def test_a_removed_unit_of_the_residual_width_leaves_every_norm() -> None:
    channels = onnxprune.analyze(VIT, inexact=True)
    group = next(group for group in channels.groups if not group.exact)
    plan = onnxprune.plan(channels, onnxprune.score(channels), 0.5, include=[group.name], round_to=1)
    assert list(plan.removals) == [group.name]
    norms = {node.inputs[1].name for node in channels.graph.nodes if node.op == "LayerNormalization"}
    cut = {tensor: len(lost) for tensor, _, lost in plan.weights}
    assert norms
    assert all(cut[name] == WIDTH // 2 for name in norms)


@pytest.mark.parametrize("inexact", [False, True])
def test_exact_groups_are_proved_either_way(inexact: bool) -> None:
    data = np.load(ROOT / "models" / "calibration.npz")["image"][:16]
    result = onnxprune.slim(VIT, 0.25, inexact=inexact, data=data, no_latency=True)
    assert result.report.proof.passed
    assert (result.report.proof.inexact_groups == ()) is not inexact
