"""Rounding that a network amplifies is no difference: what fails in float32 is decided in float64."""

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx_text import model

import onnxprune
from onnxprune.cli import cli
from onnxprune.data.random import random_feeds
from onnxprune.errors import ModelError, ValidationError
from onnxprune.model.graph import stored_tensors
from onnxprune.model.io import Graph, load, read_values, write_values
from onnxprune.runtime.session import SessionOptions, open_session
from onnxprune.surgery.slice import slice_channels
from onnxprune.validate import exact
from onnxprune.validate.proof import TOLERANCE, TOLERANCE_EXACT, prove

PRUNED = "a = MatMul(x, w) b = Relu(a) z = MatMul(b, v) "
WEIGHTS = "w=16,512 v=512,8 r=f#3.99 one=f#1"
FEEDS = [{"x": np.random.default_rng(0).standard_normal((4, 16), np.float32)}]


def chaotic(pruned: str = PRUNED, tensors: str = WEIGHTS, steps: int = 18) -> onnx.ModelProto:
    """The logistic map behind two matrix products: every step doubles what rounding left apart."""
    text = pruned + "p0 = Sigmoid(z) "
    for step in range(steps):
        text += f"n{step} = Sub(one, p{step}) q{step} = Mul(p{step}, n{step}) p{step + 1} = Mul(r, q{step}) "
    return model(f"x:4,16 {tensors}", text)


def halved(proto: onnx.ModelProto) -> tuple[onnxprune.analyze, dict[str, tuple[int, ...]], Graph]:
    channels = onnxprune.analyze(proto)
    removals = {group.name: tuple(range(0, group.units, 2)) for group in channels.prunable}
    assert removals
    return channels, removals, slice_channels(channels, removals)


def test_amplified_rounding_is_no_difference() -> None:
    proof = prove(*halved(chaotic()), FEEDS)
    assert proof.relative > TOLERANCE
    assert proof.float64 is not None
    assert 0 < proof.float64 < TOLERANCE_EXACT
    assert (proof.passed, proof.within, proof.output, proof.untried) == (True, False, "p18", None)


def test_what_passes_in_float32_is_not_repeated() -> None:
    proof = prove(*halved(chaotic(steps=0)), FEEDS)
    assert (proof.passed, proof.within, proof.float64, proof.untried) == (True, True, None, None)


@pytest.mark.parametrize("factor", [1 + 1e-6, 2.0])
def test_a_wrong_weight_fails_in_both(factor: float) -> None:
    channels, removals, sliced = halved(chaotic())
    constant = dict(stored_tensors(sliced))["v"]
    write_values(constant, read_values(constant) * np.float32(factor))
    proof = prove(channels, removals, sliced, FEEDS)
    assert proof.relative > TOLERANCE
    assert proof.float64 is not None
    assert proof.float64 > TOLERANCE_EXACT
    assert not proof.passed


def test_too_much_work_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "LARGEST_WORK", 4 * 512 * (16 + 8) - 1)
    proof = prove(*halved(chaotic()), FEEDS)
    assert (proof.passed, proof.float64) == (False, None)
    assert "multiply-accumulates take too long" in proof.untried


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a = MatMul(x, w) b = com.microsoft.QuickGelu(a) z = MatMul(b, v) ", "does not run the model .*QuickGelu"),
        ("a = MatMul(x, w) b = Relu(a) c = MatMul(b, v) z = LpNormalization(c) ", "does not compute LpNormalization"),
    ],
)
def test_what_the_reference_does_not_know_is_not_repeated(text: str, reason: str) -> None:
    proof = prove(*halved(chaotic(text)), FEEDS)
    assert (proof.passed, proof.float64) == (False, None)
    assert re.search(reason, proof.untried)


def test_an_infinite_difference_is_no_rounding() -> None:
    channels, removals, sliced = halved(chaotic())
    constant = dict(stored_tensors(sliced))["v"]
    write_values(constant, np.full_like(read_values(constant), np.nan))
    proof = prove(channels, removals, sliced, FEEDS)
    assert (proof.passed, proof.float64) == (False, None)


def test_float64_takes_one_feed_of_every_shape_and_then_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = load(model("x:N,16 w=16,8", "y = MatMul(x, w)"))
    feeds = [{"x": np.zeros((size, 16), np.float32)} for size in (4, 1, 4, 1)]
    monkeypatch.setattr(exact, "LARGEST_WORK", 6 * 16 * 8)
    assert [len(feed["x"]) for feed in exact.affordable(graph, feeds)] == [4, 1, 1]
    monkeypatch.setattr(exact, "LARGEST_WORK", 5 * 16 * 8 - 1)
    with pytest.raises(exact.CannotRepeatError, match="too long"):
        exact.affordable(graph, feeds)


@pytest.mark.parametrize(
    ("tensors", "text", "opset"),
    [
        ("x:2,6,4", "y = Erf(x)", 17),
        ("x:2,6,4", "y = Gelu(x)", 20),
        ("x:2,6,4", 'y = Gelu<approximate="tanh">(x)', 20),
        ("x:2,6,4 s=6 b=6", "y = GroupNormalization<num_groups=3>(x, s, b)", 21),
        ("x:2,6,4 s=3 b=3", "y = GroupNormalization<num_groups=3>(x, s, b)", 18),
        ("x:2,6,4", "y = Softmax(x)", 11),
        ("x:2,6,4", "y = Softmax<axis=2>(x)", 9),
        ("x:2,6,4", "y = LogSoftmax<axis=-1>(x)", 12),
        ("x:2,6,4", "y = LogSoftmax<axis=1>(x)", 11),
        ("x:2,6,4", "c = Constant<value_float=0.1>() y = Mul(x, c)", 17),
        ("x:2,6,4", "c = Constant<value=float[1] {0.1}>() y = Mul(x, c)", 17),
        ("x:2,6,4 n={4}", "c = ConstantOfShape(n) d = Exp(x) y = Sub(d, c)", 17),
        ("x:2,6,4", "c = Exp(x) d = Cast<to=1>(c) y = Mul(d, x)", 17),
        ("x:2,6,4 o=#1 k=f#3", "t = Cast<to=9>(o) c = Exp(x) y = If<then_branch = g () => (q) { q = Div(c, k) }, "
         "else_branch = h () => (r) { r = Exp(c) }>(t)", 17),
    ],
)  # fmt: skip
def test_no_operator_rounds_to_float32(tensors: str, text: str, opset: int) -> None:
    proto = model(tensors, text, opset)
    feeds = random_feeds(proto, {"x": (2, 6, 4)}, 0)
    expected = open_session(proto, SessionOptions(threads=1, optimize=False)).run(feeds)["y"]
    wide = {"x": feeds["x"] + 1e-12 * np.random.default_rng(1).standard_normal((2, 6, 4))}
    first, moved = exact.values(load(proto), [feeds, wide], ["y"])
    assert first["y"].dtype == np.float64
    np.testing.assert_allclose(first["y"], expected, rtol=1e-4, atol=1e-6)
    difference = np.abs(first["y"] - moved["y"]).max() / np.abs(first["y"]).max()
    assert 1e-14 < difference < 1e-10  # 6e-8 or nothing in float32


def test_the_run_says_that_float64_decided(tmp_path: Path) -> None:
    onnx.save(chaotic(), tmp_path / "m.onnx")
    np.savez(tmp_path / "data.npz", **FEEDS[0])
    arguments = ["slim", str(tmp_path / "m.onnx"), "--channels", "0.5", "-o", str(tmp_path / "s.onnx"), "--no-latency"]
    arguments += ["--data", str(tmp_path / "data.npz"), "--report", str(tmp_path / "r.json")]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "r.json").read_text())
    proof = report["proof"]
    assert proof["passed"]
    assert proof["relative"] > proof["limit"]
    assert proof["float64"] < TOLERANCE_EXACT
    (note,) = [line for line in report["warnings"] if "float64" in line]
    assert f"{proof['relative']:.1e} of the largest value of 'p18'" in note
    assert f"{proof['float64']:.1e}" in note


def test_a_run_that_float64_cannot_judge_writes_nothing() -> None:
    with pytest.raises(
        ValidationError, match=r"\(limit 1e-04; float64 could not judge it: the ONNX reference "
    ) as found:
        onnxprune.slim(chaotic(PRUNED.replace("Relu", "com.microsoft.QuickGelu")), 0.5, data=FEEDS[0])
    assert found.value.exit_code == 7


def test_a_model_that_draws_numbers_is_the_models_fault() -> None:
    text = PRUNED.replace("z = MatMul(b, v)", "c = MatMul(b, v) d = RandomNormalLike(c) z = Add(c, d)")
    with pytest.raises(ModelError, match="draws random numbers"):
        onnxprune.slim(chaotic(text), 0.5, data=FEEDS[0])
