"""Random valid graphs, pruned at random: masked equals sliced, and the caller's contract holds.

The steps of a graph are drawn by hypothesis; a counterexample is shrunk and printed as the steps and as ONNX text. To
look at one again, pass the printed ``Growth`` to :func:`fuzz_laws.check`.
"""

import functools
from collections.abc import Callable

import onnx
import pytest
from fuzz_graph import MOST_NODES, Growth, Step
from fuzz_laws import Statistics, check, grow, growths
from hypothesis import HealthCheck, Phase, given, seed, settings

from onnxprune.channels import price
from onnxprune.channels.registry import Operator, operators

CHUNK = 100
FAST = (1, 4)
SLOW = range(100, 150)
"""Seeds; the two fast ones were chosen because together they reach most operators."""

NEWEST_OPSET = 21
NEVER_GROWN: set[str] = set()
"""Families of which no operator is grown, with the reason; empty as long as there is none."""


@functools.cache
def fuzz(number: int) -> Statistics:
    """Checks one chunk of graphs; the same number gives the same graphs."""
    statistics = Statistics()

    @seed(number)
    @settings(
        max_examples=CHUNK, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )  # fmt: skip
    @given(growths())
    def laws(growth: Growth) -> None:
        check(growth, statistics)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(price, "MACS_PER_ELEMENT", 0)  # in graphs as narrow as these, no exact statistic would pay
        laws()
    return statistics


def family(operator: Operator) -> str:
    rule: Callable[..., object] | None = operator.channels or operator.macs or operator.values
    return "" if rule is None else rule.__module__.rpartition(".")[2]


def is_standard(name: str) -> bool:
    """Whether the operator is one that a graph of these opsets may hold."""
    return onnx.defs.has(name, NEWEST_OPSET, "") and not onnx.defs.get_schema(name, NEWEST_OPSET, "").deprecated


@pytest.mark.parametrize("number", FAST)
def test_laws(number: int) -> None:
    assert fuzz(number).graphs >= CHUNK


@pytest.mark.zoo
@pytest.mark.parametrize("number", SLOW)
def test_laws_on_many(number: int) -> None:
    assert fuzz(number).graphs >= CHUNK


def test_the_fuzzer_sees_what_there_is_to_see() -> None:
    seen = [fuzz(number) for number in FAST]
    graphs = sum(s.graphs for s in seen)
    grown = {name for s in seen for name in s.operators}
    assert sum(s.discarded for s in seen) < 0.3 * graphs
    assert sum(s.prunable for s in seen) >= 0.6 * graphs
    assert sum(s.proofs for s in seen) >= graphs
    assert min(min(s.nodes) for s in seen) <= 6
    assert 30 <= max(max(s.nodes) for s in seen) <= MOST_NODES
    families = {family(operator) for name, operator in operators().items() if is_standard(name)}
    assert families - {family(operators()[name]) for name in grown if name in operators()} == NEVER_GROWN
    assert len(grown & set(operators())) >= 70


def test_a_growth_is_one_graph() -> None:
    growth = Growth(17, "image", False, (Step("residual", 5, 3), Step("split", 9, 0)))
    first, second = grow(growth), grow(eval(repr(growth)))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)
