"""What callers of Python pass: numbers of numpy, single patterns, paths; and what they should not have passed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx_text import model

import onnxprune as op
from onnxprune.errors import OnnxPruneError, UsageError


def network() -> onnx.ModelProto:
    """Two convolutions of 16 and 24 channels, ``Conv_0`` and ``Conv_2``, and a classifier."""
    return model(
        "x:free,3,8,8 w=16,3,3,3 k=24,16,3,3 g=24,10",
        "c = Conv(x, w) r = Relu(c) e = Conv(r, k) a = GlobalAveragePool(e) f = Flatten(a) y = MatMul(f, g)",
    )


def removed(result: op.Result | op.Plan) -> dict[str, int]:
    plan = result if isinstance(result, op.Plan) else result.plan
    return {name: len(units) for name, units in plan.removals.items()}


def quick(source: object | None = None, **options: Any) -> op.Result:
    return op.slim(network() if source is None else source, **{"channels": 0.5, "dry_run": True, **options})


@pytest.mark.parametrize(
    "options",
    [
        {"channels": np.float32(0.5)},
        {"channels": np.float64(0.5)},
        {"channels": np.float16(0.5)},
        {"round_to": np.int64(8)},
        {"round_to": np.uint8(8)},
        {"seed": np.int64(0)},
        {"samples": np.int32(16)},
        {"threads": np.int64(1)},
        {"inexact": np.bool_(False)},
        {"input_shape": {"x": np.array([1, 3, 8, 8])}},
        {"input_shape": {"x": [np.int64(1), 3, 8, 8]}},
    ],
)
def test_numbers_of_numpy_are_numbers(options: dict[str, Any]) -> None:
    plain, found = quick(round_to=8), quick(**{"round_to": 8, **options})
    assert found.plan == plain.plan
    assert found.plan.to_json() == plain.plan.to_json()
    assert found.model.SerializeToString() == plain.model.SerializeToString()
    assert found.report.to_json()


def test_numbers_of_numpy_in_the_steps() -> None:
    channels = op.analyze(network())
    scores = op.score(channels, "random", seed=np.int64(1))
    found = op.plan(channels, scores, np.float32(0.5), round_to=np.int64(8))
    assert found == op.plan(channels, op.score(channels, "random", seed=1), 0.5, round_to=8)
    assert op.Plan.from_json(found.to_json()) == found
    assert [row.name for row in op.bench(network(), seconds=np.float32(0.01), seed=np.int64(1)).models] == ["model 1"]


@pytest.mark.parametrize("form", [str, lambda text: [text], lambda text: (text,), lambda text: {text}])
def test_one_pattern_is_a_list_of_one(form: Callable[[str], Any]) -> None:
    channels = op.analyze(network())
    scores = op.score(channels)
    assert set(op.plan(channels, scores, 0.5, 8, exclude=form("Conv_0")).removals) == {"Conv_2"}
    assert set(op.plan(channels, scores, 0.5, 8, include=form("Conv_0")).removals) == {"Conv_0"}
    assert op.plan(channels, scores, 0.5, 8, include=form("Conv_0")).options["include"] == ["Conv_0"]
    assert set(quick(round_to=8, exclude=form("Conv_0")).plan.removals) == {"Conv_2"}
    assert set(quick(round_to=8, include=form("Conv_0")).plan.removals) == {"Conv_0"}
    assert quick(round_to=8, include=form("Conv_0")).report.to_dict()["options"]["include"] == ["Conv_0"]


def test_paths_are_taken_as_text_and_as_paths(tmp_path: Path) -> None:
    onnx.save(network(), tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", np.ones((4, 3, 8, 8), np.float32))
    for form in (str, Path):
        source, data, folder = form(tmp_path / "m.onnx"), form(tmp_path / "x.npy"), form(tmp_path)
        result = op.slim(source, 0.5, round_to=8, data=data, eval=data, external_root=folder, no_latency=True)
        result.save(form(tmp_path / "small.onnx"), overwrite=True)
        result.report.save(form(tmp_path / "r.json"))
        (tmp_path / "p.json").write_text(result.plan.to_json(), encoding="utf-8")
        assert op.Plan.load(form(tmp_path / "p.json")) == result.plan
        again = op.slim(source, plan=form(tmp_path / "p.json"), dry_run=True)
        assert again.report.to_dict()["options"]["plan"] == str(tmp_path / "p.json")
        op.save(op.load(source), form(tmp_path / "copy.onnx"), overwrite=True)
        assert op.analyze(source).prunable
        assert op.inspect(source).before.path == str(tmp_path / "m.onnx")
        assert op.compare(source, source, data, no_latency=True).before.path == str(tmp_path / "m.onnx")
        assert op.bench(source, data=data, seconds=0.01).models[0].name == str(tmp_path / "m.onnx")


WRONG: list[tuple[str, Any]] = [
    ("channels", True), ("channels", "0.5"), ("channels", [0.5]), ("channels", np.array([0.5, 0.5])),
    ("channels", float("nan")), ("channels", 1 + 0j), ("round_to", True), ("round_to", 8.0), ("round_to", "8"),
    ("round_to", None), ("round_to", np.array([8])), ("seed", True), ("seed", 1.5), ("seed", "x"), ("seed", -1),
    ("seed", None), ("samples", True), ("samples", 2.5), ("samples", None), ("threads", True), ("threads", "2"),
    ("threads", 0), ("include", 5), ("include", [5]), ("include", None), ("exclude", b"Conv_0"), ("exclude", {1: 2}),
    ("score", 5), ("score", ["l2"]), ("allocation", 5), ("target", 5), ("target", None), ("target", ["generic"]),
    ("metric", 5), ("ep", 5), ("ep", None), ("ep", ["cpu"]), ("inexact", "yes"), ("no_latency", 1), ("dry_run", None),
    ("input_shape", [1, 3, 8, 8]), ("input_shape", {"x": 8}), ("input_shape", {"x": "1x3x8x8"}),
    ("input_shape", {"x": (1, 3, 8.5, 8)}), ("input_shape", {5: (1, 3, 8, 8)}), ("plan", 5), ("plan", {"a": 1}),
    ("external_root", 5), ("data", 5), ("data", "x" * 5), ("eval", 5), ("data", np.array(["a"])), ("data", Ellipsis),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), WRONG, ids=str)
def test_wrong_types_are_one_sentence(name: str, value: object) -> None:
    options = {"channels": None} if name == "plan" else {}
    with pytest.raises(OnnxPruneError) as caught:
        quick(**{**options, name: value})
    text = str(caught.value)
    assert isinstance(caught.value, UsageError) or name in ("data", "eval"), text
    assert "\n" not in text
    assert ": " in text
    assert len(text) < 250


CALLS: list[Callable[[], object]] = [
    lambda: op.slim(5, 0.5),
    lambda: op.slim(None, 0.5),
    lambda: op.slim([network()], 0.5),
    lambda: op.slim(network().SerializeToString(), 0.5),
    lambda: op.load(5),
    lambda: op.load(b"model.onnx"),
    lambda: op.analyze(5),
    lambda: op.inspect(5),
    lambda: op.inspect(network(), input_shape=5),
    lambda: op.inspect(network(), group=5),
    lambda: op.compare(5, network(), {"x": np.ones((1, 3, 8, 8), np.float32)}),
    lambda: op.compare(network(), network(), {"x": np.ones((1, 3, 8, 8), np.float32)}, samples=True),
    lambda: op.compare(network(), network(), {"x": np.ones((1, 3, 8, 8), np.float32)}, metric=5),
    lambda: op.bench(5),
    lambda: op.bench([]),
    lambda: op.bench([5]),
    lambda: op.bench(network(), seconds="long"),
    lambda: op.bench(network(), seconds=True),
    lambda: op.bench(network(), threads=2.5),
    lambda: op.save(op.load(network()), 5),
    lambda: op.save(5, "m.onnx"),
    lambda: quick().save(5),
    lambda: quick().report.save(5),
    lambda: op.Plan.load(5),
    lambda: op.Plan.from_json(5),
    lambda: op.plan(op.analyze(network()), op.score(op.analyze(network())), "half"),
    lambda: op.plan(op.analyze(network()), op.score(op.analyze(network())), 0.5, include=5),
    lambda: op.score(op.analyze(network()), "random", seed="x"),
    lambda: op.score(op.analyze(network()), ["l2"]),
]


@pytest.mark.parametrize("number", range(len(CALLS)))
def test_wrong_types_in_the_other_calls(number: int) -> None:
    with pytest.raises(UsageError) as caught:
        CALLS[number]()
    assert "\n" not in str(caught.value)
    assert ": " in str(caught.value)
