"""Law 1 on every operator, and what the registry promises."""

import functools

import pytest
from cases import CASES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from law import LIMIT, Case, analyzed, expected_groups, seeded_removals, some_removals, violation
from onnx_text import model

from onnxprune.channels import registry
from onnxprune.channels.facts import Axis
from onnxprune.channels.groups import Channels, analyze
from onnxprune.channels.registry import channel_rule, mac_rule, operator, operators, shape_rule, value_rule
from onnxprune.model.cost import batch_of, cost

BY_NAME = {case.name: case for case in CASES}
LAWFUL = [case.name for case in CASES if any(exact for exact, *_ in expected_groups(case))]
INEXACT = [case.name for case in CASES if "~" in case.free]


@functools.cache
def channels_of(name: str, inexact: bool = False) -> Channels:
    return analyzed(BY_NAME[name], inexact=inexact)


def test_case_names_are_unique() -> None:
    assert len(BY_NAME) == len(CASES)


@pytest.mark.parametrize("name", BY_NAME)
def test_exactly_the_expected_axes_are_free(name: str) -> None:
    left = list(channels_of(name, inexact=True).prunable)
    for exact, tensor, dim, units, blocks in expected_groups(BY_NAME[name]):
        group = next(
            (
                group
                for group in left
                if (group.exact, group.units, group.block_count) == (exact, units, blocks)
                and any(Axis(tensor, dim) in member.axes for member in group.members)
            ),
            None,
        )
        assert group is not None, (
            f"axis {dim} of {tensor} has no group of {units} units in {blocks} blocks, exact={exact}"
        )
        left.remove(group)
    assert [(group.name, group.units) for group in left] == []


@pytest.mark.parametrize("name", LAWFUL)
def test_sliced_node_computes_a_slice(name: str) -> None:
    case, channels = BY_NAME[name], channels_of(name)

    @settings(max_examples=5, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(some_removals(channels), st.integers(0, 99))
    def holds(removals: dict[str, list[int]], seed: int) -> None:
        assert violation(case, channels, removals, seed) <= LIMIT[case.run]

    holds()
    for seed in range(3):
        assert violation(case, channels, seeded_removals(channels, seed), seed) <= LIMIT[case.run]


@pytest.mark.parametrize("name", INEXACT)
def test_statistics_are_declared_inexact_and_are_so(name: str) -> None:
    case, channels = BY_NAME[name], channels_of(name, inexact=True)
    for group in channels.prunable:
        if not group.exact:
            units = list(range(group.units // 2))
            assert violation(case, channels, {group.name: units}) > 1e-3
            frozen = next(other for other in channels_of(name).groups if other.name == group.name)
            assert "statistic" in str(frozen.frozen) or "reduces over" in str(frozen.frozen)


def test_every_operator_with_a_channel_rule_has_a_case() -> None:
    covered = {name for case in CASES for name in case.operators}
    assert {name for name, operator in operators().items() if operator.channels is not None} - covered == set()


@pytest.mark.parametrize("register", [channel_rule, mac_rule, value_rule, shape_rule])
def test_a_second_rule_for_an_operator_is_an_error(register, monkeypatch: pytest.MonkeyPatch) -> None:
    operators()
    monkeypatch.setattr(registry, "_OPERATORS", dict(registry._OPERATORS))
    register("Novelty")(lambda node, *values: [])
    with pytest.raises(ValueError, match="'Novelty' has two"):
        register("Novelty")(lambda node, *values: [])


def test_unknown_operators_freeze_what_they_touch() -> None:
    channels = analyze(model("x:2,3 w=3,6 v=6,4", "a = MatMul(x, w) b = EyeLike(a) y = MatMul(b, v)"))
    reasons = {group.name: group.frozen for group in channels.groups}
    assert reasons["MatMul_0"] == "no channel rule for EyeLike ('EyeLike_1')"


def test_unknown_domains_have_no_rules() -> None:
    proto = model("x:2,3 w=3,6 v=6,4", "a = MatMul(x, w) b = Relu(a) y = MatMul(b, v)")
    proto.graph.node[1].domain = "elsewhere"
    proto.opset_import.add(domain="elsewhere", version=1)
    reasons = {str(group.frozen) for group in analyze(proto).groups}
    assert "no channel rule for Relu ('Relu_1')" in reasons


def test_fused_attention_is_a_barrier_with_a_hint() -> None:
    text = "q = MatMul(x, w) a = com.microsoft.MultiHeadAttention<num_heads=2>(q, x, x) y = Relu(a)"
    reasons = {str(group.frozen) for group in analyze(model("x:2,5,6 w=6,6", text)).groups}
    rule = "no channel rule for MultiHeadAttention ('MultiHeadAttention_1')"
    assert f"{rule}: prune before runtime optimization" in reasons


def test_rules_of_other_domains_stay_apart() -> None:
    names = {"", "com.microsoft"}
    found = {domain: operator("FusedConv", domain).channels is not None for domain in names}
    assert found == {"": False, "com.microsoft": True}
    assert operator("Relu", "ai.onnx") is operator("Relu", None) is operators()["Relu"]
    assert operator("Gelu", "com.microsoft") is not operator("Gelu", "")


MACS = {
    "attention": 2 * 3 * 5 * 7 * (4 + 3),
    "attention_grouped": 2 * 6 * 5 * 7 * (4 + 3),
    "attention_cached": 2 * 3 * 5 * 10 * (4 + 3),
    "attention_heads_apart": 2 * 6 * 5 * 7 * (4 + 8),
    "fused_matmul": 2 * 5 * 6 * 8,
    "fused_matmul_transposed": 2 * 5 * 6 * 8,
    "fused_gemm": 5 * 6 * 8,
    "fused_conv": 2 * 8 * 4 * 4 * 6 * 9,
    "lstm_everything": 5 * 2 * 2 * 12 * (6 + 3),
    "gru": 5 * 2 * 12 * (6 + 4),
    "einsum_ellipsis": 2 * 5 * 6 * 8,
}


@pytest.mark.parametrize("name", MACS)
def test_multiply_accumulates(name: str) -> None:
    channels = channels_of(name)
    samples = batch_of(channels.graph, channels.shapes)
    assert cost(channels.graph, channels.sizes).macs * samples == MACS[name]


def test_an_axis_that_no_fact_mentions_is_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators()["Relu"], "channels", lambda node: [])
    proto = model("x:2,3 w=3,6 v=6,4", "a = MatMul(x, w) b = Relu(a) y = MatMul(b, v)")
    group = next(group for group in analyze(proto).groups if group.units == 6)
    assert group.frozen == "the channel rule for Relu says nothing about this axis of 'Relu_1'"


def test_the_law_sees_a_wrong_case() -> None:
    case = Case("wrong", "x:5,6 w=6,8", "y = Gemm(x, w)", "x0:5")
    assert len(analyzed(case).prunable) == 3
