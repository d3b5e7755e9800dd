"""The Python API: the one call and its steps, what they accept, what they leave alone, and what they raise."""

import dataclasses
import hashlib
import inspect
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import numpy_helper
from onnx_text import model

import onnxprune as op
from onnxprune.channels.facts import Axis
from onnxprune.channels.groups import ChannelGroup, Member
from onnxprune.errors import CalibrationError, ModelError, PlanError, SelectorError, UsageError
from onnxprune.plan.rounding import block, kept
from onnxprune.plan.select import select
from onnxprune.runtime import session

FIRST, SECOND = "Conv_0", "Conv_3"


def network(seed: int = 0, width: int = 16) -> onnx.ModelProto:
    """Two convolutions, the first with a BatchNormalization, and a classifier with ten classes."""
    tensors = (
        f"x:free,3,8,8 w={width},3,3,3 b={width} s={width} h={width} m={width} v=+{width} k=24,{width},3,3 g=24,10"
    )
    text = (
        "c = Conv(x, w, b) d = BatchNormalization(c, s, h, m, v) r = Relu(d) e = Conv(r, k) "
        "a = GlobalAveragePool(e) f = Flatten(a) y = MatMul(f, g)"
    )
    return model(tensors, text, seed=seed)


def samples(count: int = 10) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((count, 3, 8, 8)).astype(np.float32)


def labels(count: int = 10) -> np.ndarray:
    return np.random.default_rng(4).integers(0, 10, count)


def stored(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def quick(source: object, **options: Any) -> op.Result:
    """Slims by half without timing."""
    return op.slim(source, **{"channels": 0.5, "round_to": 8, "no_latency": True, **options})


def test_steps(tmp_path: Path) -> None:
    graph = op.load(network())
    channels = op.analyze(graph)
    assert {group.name: group.units for group in channels.prunable} == {FIRST: 16, SECOND: 24}
    scores = op.score(channels, "l2")
    plan = op.plan(channels, scores, ratio=0.5, round_to=8)
    assert {name: len(units) for name, units in plan.removals.items()} == {FIRST: 8, SECOND: 8}
    pruned = op.apply(graph, plan)
    shapes = {name: values.shape for name, values in stored(op.to_proto(pruned)).items()}
    assert shapes["w"] == (8, 3, 3, 3)
    assert shapes["k"] == (16, 8, 3, 3)
    assert shapes["g"] == (16, 10)
    proof = op.prove(channels, plan.removals, pruned, [{"x": samples()}, {"x": samples(1)}])
    assert proof.passed
    assert proof.relative < 1e-5
    assert proof.runs == 2
    report = op.validate(graph, pruned, samples(), labels())
    assert set(report.before.metrics) == set(report.after.metrics) == {"top1"}
    assert report.ratios.parameters < 0.5
    op.save(pruned, tmp_path / "pruned.onnx")
    assert op.to_proto(op.load(tmp_path / "pruned.onnx")).SerializeToString() == op.to_proto(pruned).SerializeToString()


def residual() -> onnx.ModelProto:
    """A stem, two residual blocks of equal width, and a classifier."""
    tensors = "x:free,3,8,8 w=16,3,3,3 p=16,16,3,3 q=16,16,3,3 s=16,16,3,3 t=16,16,3,3 g=16,10"
    text = (
        "m = Conv(x, w) i = Relu(m) "
        "c1 = Conv<pads=[1,1,1,1]>(i, p) d1 = Relu(c1) e1 = Conv<pads=[1,1,1,1]>(d1, q) f1 = Add(e1, i) j = Relu(f1) "
        "c2 = Conv<pads=[1,1,1,1]>(j, s) d2 = Relu(c2) e2 = Conv<pads=[1,1,1,1]>(d2, t) f2 = Add(e2, j) k = Relu(f2) "
        "a = GlobalAveragePool(k) z = Flatten(a) y = MatMul(z, g)"
    )
    return model(tensors, text)


def test_a_plan_for_every_grain_is_applied_as_a_whole() -> None:
    options = {"channels": 0.5, "layers": 1, "nm": "2:4", "round_to": 8, "no_latency": True}
    result = op.slim(residual(), **options)
    plan = op.Plan.from_json(result.plan.to_json())
    assert plan == result.plan
    assert (len(plan.blocks), len(plan.removals), {row.pattern for row in plan.masks}) == (1, 2, {"2:4"})
    graph = op.load(residual())
    for source in (graph, op.analyze(graph)):
        applied = stored(op.to_proto(op.apply(source, plan)))
        made = stored(result.model)
        assert set(applied) == set(made)
        assert all(np.array_equal(applied[name], made[name]) for name in made)
    assert {name for name, values in stored(op.to_proto(graph)).items() if (values == 0).any()} == set()


def test_a_plan_of_masks_alone_keeps_the_structure() -> None:
    plan = op.slim(residual(), sparsity=0.75, allocation="uniform", no_latency=True).plan
    before, after = stored(residual()), stored(op.to_proto(op.apply(residual(), plan)))
    assert {name: values.shape for name, values in after.items()} == {name: v.shape for name, v in before.items()}
    assert {name: np.mean(after[name] == 0) for name in "pqst"} == dict.fromkeys("pqst", 0.75)
    assert np.abs(before["p"][after["p"] == 0]).max() < np.abs(after["p"][after["p"] != 0]).min()


def test_a_plan_for_blocks_or_weights_of_another_model_is_refused() -> None:
    plan = op.slim(residual(), layers=1, nm="2:4", no_latency=True).plan
    with pytest.raises(PlanError, match="the plan drops block"):
        op.apply(network(), plan)
    with pytest.raises(PlanError, match="the plan masks 'p'"):
        op.apply(network(), dataclasses.replace(plan, blocks=(), units={}))


def test_a_plan_that_says_nothing_of_blocks_and_masks_is_read() -> None:
    plan = op.slim(residual(), threshold=0.5, no_latency=True).plan
    assert all(row.fixed for row in plan.masks)
    content = json.loads(plan.to_json())
    for row in content["masks"]:
        del row["fixed"]
    older = op.Plan.from_json(json.dumps(content))
    assert older.masks == tuple(dataclasses.replace(row, fixed=False) for row in plan.masks)
    del content["blocks"], content["masks"]
    assert op.Plan.from_json(json.dumps(content)).masks == ()


def test_check_says_where_the_zeros_are(tmp_path: Path) -> None:
    result = op.slim(residual(), nm="2:4", no_latency=True)
    result.save(tmp_path / "masked.onnx")
    for source, broken in ((result.model, False), (tmp_path / "masked.onnx", False), (residual(), True)):
        rows = op.check(source, nm="2:4").sparsity.tensors
        assert any(row.violations for row in rows) == broken
        assert sum(row.reason is None for row in rows) == 5


def test_the_proof_can_fail() -> None:
    graph = op.load(network())
    channels = op.analyze(graph)
    plan = op.plan(channels, op.score(channels), ratio=0.5, round_to=8)
    pruned = op.apply(graph, plan)
    next(t for node in pruned.nodes for t in node.inputs if t.name == "g").values[0, 0] += 1
    assert not op.prove(channels, plan.removals, pruned, [{"x": samples()}]).passed


def test_plan_survives_json(tmp_path: Path) -> None:
    channels = op.analyze(network())
    plan = op.plan(channels, op.score(channels), ratio=0.5, round_to=8)
    assert op.Plan.from_json(plan.to_json()) == plan
    assert {row["tensor"] for row in json.loads(plan.to_json())["weights"]} == set("wbshmvkg")
    (tmp_path / "plan.json").write_text(plan.to_json(), encoding="utf-8")
    first = quick(network())
    for source in (plan, tmp_path / "plan.json"):
        again = op.slim(network(), plan=source, no_latency=True)
        assert again.model.SerializeToString() == first.model.SerializeToString()


def test_every_kind_of_model_is_taken_and_none_is_changed(tmp_path: Path) -> None:
    proto, graph = network(), gs.import_onnx(network())
    onnx.save(proto, tmp_path / "model.onnx")
    bytes_before = proto.SerializeToString(), gs.export_onnx(graph).SerializeToString()
    file_before = (tmp_path / "model.onnx").read_bytes()
    results = [
        quick(source)
        for source in (proto, graph, op.load(proto), tmp_path / "model.onnx", str(tmp_path / "model.onnx"))
    ]
    weights = [stored(result.model) for result in results]
    for other in weights[1:]:
        assert all(np.array_equal(weights[0][name], other[name]) for name in weights[0])
    assert (proto.SerializeToString(), gs.export_onnx(graph).SerializeToString()) == bytes_before
    assert (tmp_path / "model.onnx").read_bytes() == file_before
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert results[0].report.ratios.macs < 0.5
    assert results[0].report.proof.passed


def test_every_kind_of_data_is_taken_and_none_is_changed(tmp_path: Path) -> None:
    x, y = samples(), labels()
    np.savez(tmp_path / "data.npz", x=x, labels=y)
    np.save(tmp_path / "data.npy", x)
    sources: list[Any] = [
        x, {"x": x}, {"x": x, "labels": y}, [{"x": x[:5]}, {"x": x[5:]}], ({"x": one[None]} for one in x),
        tmp_path / "data.npz", tmp_path / "data.npy",
    ]  # fmt: skip
    reports = [quick(network(), data=source).report for source in sources]
    assert len({report.fidelity.cosine for report in reports}) == 1
    assert [report.proof.samples for report in reports] == [8] * len(reports)
    assert [report.proof.random_inputs for report in reports] == [False] * len(reports)
    assert [set(report.before.metrics) for report in reports].count({"top1"}) == 2
    assert np.array_equal(x, samples())
    assert np.array_equal(y, labels())


def test_without_data_the_report_says_so() -> None:
    report = quick(network()).report
    assert report.proof.random_inputs
    assert report.fidelity.cosine is None
    assert any("random inputs" in warning for warning in report.warnings)


def test_other_samples_for_the_verdict() -> None:
    report = quick(network(), data=samples(), eval={"x": samples(4), "labels": labels(4)}, metric="top5").report
    assert set(report.after.metrics) == {"top5"}
    assert report.after.metrics["top5"] in (0, 0.25, 0.5, 0.75, 1)


def test_progress_is_told() -> None:
    told: list[tuple[str, float]] = []
    quick(network(), data=samples(), progress=lambda stage, fraction: told.append((stage, fraction)))
    stages = list(dict.fromkeys(stage for stage, _ in told))
    whole = [stage for stage in stages if stage not in ("score", "measure groups", "allocate")]
    assert whole[:6] == ["load", "analyze", "plan", "surgery", "prove", "recover"]
    assert all(0 <= fraction <= 1 for _, fraction in told)
    assert all((stage, 1.0) in told for stage in stages)


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    quick(network(), data=samples())
    assert capfd.readouterr() == ("", "")


def test_same_bytes_every_time() -> None:
    first, second = quick(network(), data=samples()), quick(network(), data=samples())
    assert first.model.SerializeToString() == second.model.SerializeToString()
    assert first.plan.to_json() == second.plan.to_json()


def test_the_seed_decides_what_is_random() -> None:
    plans = [quick(network(), score="random", seed=seed).plan.removals for seed in (0, 0, 1)]
    assert plans[0] == plans[1] != plans[2]


def test_saving(tmp_path: Path) -> None:
    result = quick(network())
    result.save(tmp_path / "small.onnx")
    assert onnx.load(tmp_path / "small.onnx") == result.model
    with pytest.raises(UsageError, match=r"small\.onnx"):
        result.save(tmp_path / "small.onnx")
    result.save(tmp_path / "small.onnx", overwrite=True)
    for name in ("report.json", "report.md", "report.html"):
        result.report.save(tmp_path / name)
        assert (tmp_path / name).stat().st_size > 200
    assert json.loads((tmp_path / "report.json").read_text())["ratios"]["macs"] == result.report.ratios.macs


def test_a_saved_result_reports_its_file(tmp_path: Path) -> None:
    result = quick(network())
    assert result.report.after.path is None
    for path in (tmp_path / "one.onnx", tmp_path / "two.onnx"):
        result.save(path)
        after = result.report.after
        assert (after.path, after.bytes) == (str(path), path.stat().st_size)
        assert after.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(UsageError):
        result.save(tmp_path / "one.onnx")
    assert result.report.after.path == str(tmp_path / "two.onnx")


def test_the_options_of_slim_are_those_of_the_recipe() -> None:
    taken = {name: (item.default, item.annotation) for name, item in inspect.signature(op.slim).parameters.items()}
    listed = {item.name: (item.default, item.type) for item in dataclasses.fields(op.Recipe)}
    assert set(taken) - set(listed) == {"model", "progress"}
    assert {name: taken[name] for name in listed} == listed


def test_sessions_are_open_only_while_they_run(monkeypatch: pytest.MonkeyPatch) -> None:
    living: weakref.WeakSet[object] = weakref.WeakSet()
    opened = session.ort.InferenceSession
    most: dict[str, int] = {}
    stages = ["none"]

    def counted(*arguments: Any, **options: Any) -> object:
        living.add(found := opened(*arguments, **options))
        most[stages[-1]] = max(most.get(stages[-1], 0), len(living))
        return found

    def follow(stage: str, fraction: float) -> None:
        stages.append(stage)
        if stage in ("load", "analyze", "plan", "surgery", "prove"):
            assert not living or fraction not in (0.0, 1.0), (stage, fraction)

    monkeypatch.setattr(session.ort, "InferenceSession", counted)
    quick(network(), no_latency=False, progress=follow)
    assert most == {"load": 1, "prove": 2, "measure": 2, "latency": 1}


def test_dry_run_proves_nothing() -> None:
    report = quick(network(), dry_run=True).report
    assert not report.proof.checked
    assert report.proof.passed is None
    assert report.ratios.parameters < 0.5


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"channels": None}, UsageError, "nothing is asked for"),
        ({"channels": 1.0}, UsageError, "--channels is 1.0"),
        ({"channels": -0.1}, UsageError, "--channels is -0.1"),
        ({"plan": "plan.json"}, UsageError, "exclude each other"),
        ({"channels": None, "round_to": "auto", "plan": "missing.json"}, UsageError, "missing.json"),
        ({"score": "best"}, UsageError, "no score 'best': choose one of activation"),
        ({"allocation": "fair"}, UsageError, "no allocation 'fair'"),
        ({"target": "toaster"}, UsageError, "no target 'toaster'"),
        ({"round_to": 0}, UsageError, "--round-to is 0"),
        ({"samples": 0}, UsageError, "--samples is 0"),
        ({"include": ["nothing"]}, SelectorError, "'nothing' matches no"),
        ({"exclude": [FIRST, SECOND]}, PlanError, "loosen --include or --exclude"),
        ({"channels": 0.1, "round_to": 64}, PlanError, "lower --round-to"),
        ({"data": samples()[:, :2]}, CalibrationError, "'x' has the shape 10x2x8x8"),
        ({"data": {"q": samples(), "z": samples()}}, CalibrationError, "unexpected 'q', 'z'"),
        ({"data": "missing.npz"}, CalibrationError, "missing.npz"),
        ({"input_shape": {"x": (1, 4, 8, 8)}}, UsageError, "axis 1 of 'x'"),
        ({"data": samples(), "metric": "best"}, UsageError, "the metric 'best' is unknown"),
        ({"ep": "tpu"}, UsageError, "provider 'tpu' is unknown"),
    ],
)
def test_errors_are_typed_and_say_where(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        quick(network(), **options)
    assert type(caught.value) is error
    assert words in str(caught.value)


@pytest.mark.parametrize("source", ["missing.onnx", onnx.ModelProto()])
def test_broken_models_are_refused(source: object) -> None:
    with pytest.raises(ModelError):
        quick(source)


def test_a_plan_for_another_model_is_refused() -> None:
    plan = quick(network()).plan
    with pytest.raises(PlanError, match=r"'Conv_0' has 16 units, and this one has 32"):
        op.apply(network(width=32), plan)


def by_hand(
    measure: Callable[[np.ndarray], np.ndarray], finish: Callable[[np.ndarray], np.ndarray]
) -> dict[str, np.ndarray]:
    """Sums a measure over the filters that write a channel and the weights that read it; divides by the mean."""
    w, k, g = (measure(stored(network())[name].astype(np.float64)) for name in "wkg")
    totals = {FIRST: finish(w.sum((1, 2, 3)) + k.sum((0, 2, 3))), SECOND: finish(k.sum((1, 2, 3)) + g.sum(1))}
    return {name: values / values.mean() for name, values in totals.items()}


def test_magnitude_scores_by_hand() -> None:
    channels = op.analyze(network())
    for name, expected in (("l1", by_hand(np.abs, np.asarray)), ("l2", by_hand(np.square, np.sqrt))):
        found = op.score(channels, name)
        assert found.name == name
        for group, values in expected.items():
            np.testing.assert_allclose(found.values[group], values, rtol=1e-6)
    assert op.score(channels).name == "l2"


def test_batchnorm_score_by_hand() -> None:
    found = op.score(op.analyze(network()), "batchnorm").values
    scale = np.abs(stored(network())["s"])
    np.testing.assert_allclose(found[FIRST], scale / scale.mean(), rtol=1e-6)
    np.testing.assert_allclose(found[SECOND], by_hand(np.square, np.sqrt)[SECOND], rtol=1e-6)


def test_random_score() -> None:
    channels = op.analyze(network())
    zero, again, one = (op.score(channels, "random", seed=seed).values for seed in (0, 0, 1))
    assert np.array_equal(zero[FIRST], again[FIRST])
    assert not np.array_equal(zero[FIRST], one[FIRST])
    assert zero[FIRST].mean() == pytest.approx(1)


def test_uniform_allocation_takes_the_lowest_scores_of_each_group() -> None:
    channels = op.analyze(network())
    scores = op.score(channels, "l1")
    removals = op.plan(channels, scores, ratio=0.25, round_to=1).removals
    for name, count in ((FIRST, 4), (SECOND, 6)):
        assert removals[name] == tuple(sorted(np.argsort(scores.values[name])[:count].tolist()))


def test_global_allocation_takes_the_lowest_scores_of_all() -> None:
    channels = op.analyze(network())
    scores = op.score(channels, "l1")
    removals = op.plan(channels, scores, ratio=0.25, round_to=1, allocation="global").removals
    limit = np.sort(np.concatenate(list(scores.values.values())))[10]
    expected = {name: tuple(np.flatnonzero(values < limit).tolist()) for name, values in scores.values.items()}
    assert removals == {name: units for name, units in expected.items() if units}
    assert sum(map(len, removals.values())) == 10


def group_of(units: int, width: int) -> ChannelGroup:
    axis = Axis("w", 0)
    member = Member((axis,), np.arange(units * width), np.arange(units * width) // width)
    return ChannelGroup("g", units, (member,), (axis,), None, True)


@pytest.mark.parametrize(
    ("units", "width", "ratio", "round_to", "target", "stays"),
    [
        (64, 1, 0.5, "auto", "ort-cpu", 32),
        (48, 1, 0.5, "auto", "ort-cpu", 32),  # 24 lies in the middle of 16 and 32: up
        (40, 1, 0.5, "auto", "ort-cpu", 16),
        (16, 1, 0.6, "auto", "ort-cpu", 16),  # never less than one block
        (32, 1, 0.9, "auto", "ort-cpu", 16),
        (20, 1, 0.5, "auto", "ort-cpu", 16),
        (15, 1, 0.5, "auto", "ort-cpu", 8),  # fewer than 16 channels: blocks of 8
        (8, 1, 0.5, "auto", "ort-cpu", 8),
        (6, 1, 0.5, "auto", "ort-cpu", 6),
        (24, 1, 0.5, "auto", "tensorrt", 16),
        (24, 1, 0.5, "auto", "ort-cuda", 16),
        (24, 1, 0.3, "auto", "generic", 17),
        (10, 1, 0.5, 4, "ort-cpu", 4),
        (10, 1, 0.4, 4, "ort-cpu", 8),
        (10, 1, 0.05, 4, "ort-cpu", 8),
        (11, 1, 0.05, 4, "ort-cpu", 11),  # 12 would be more than there are: the original width
        (3, 1, 0.5, 8, "ort-cpu", 3),
        (12, 2, 0.5, "auto", "ort-cpu", 8),  # units of two channels: eight of them are a block
        (6, 16, 0.5, "auto", "ort-cpu", 3),  # every unit is a block
        (6, 24, 0.5, "auto", "ort-cpu", 4),  # two units are 48 channels
        (8, 6, 0.5, "auto", "ort-cpu", 4),  # 48 channels have no smaller multiple of 16 and 6: of 8
        (8, 6, 0.5, 16, "ort-cpu", 8),
    ],
)
def test_rounding(units: int, width: int, ratio: float, round_to: int | str, target: str, stays: int) -> None:
    group = group_of(units, width)
    assert kept(group, units * (1 - ratio), block(group, round_to, target)) == stays


@pytest.mark.parametrize(("round_to", "stays"), [("auto", 24), (1, 30), (16, 48), (4, 24)])
def test_rounding_takes_as_many_of_each_block(round_to: int | str, stays: int) -> None:
    group = dataclasses.replace(group_of(48, 1), blocks=np.arange(48) // 8)
    assert kept(group, 28, block(group, round_to, "ort-cpu")) == stays


@pytest.mark.parametrize(
    ("include", "exclude", "chosen"),
    [
        ([], [], {FIRST, SECOND}),
        (["Conv_0"], [], {FIRST}),
        (["Conv_*"], [], {FIRST, SECOND}),
        (["op:Conv"], [], {FIRST, SECOND}),
        (["op:Batch*"], [], {FIRST}),
        (["re:_3$"], [], {SECOND}),
        (["w"], [], {FIRST}),
        (["k"], [], {FIRST, SECOND}),  # a weight between both: its two axes
        (["op:Relu", "g"], [], {FIRST, SECOND}),
        ([], ["GlobalAveragePool_4"], {FIRST}),
        (["Conv_*"], ["Conv_0"], {SECOND}),
        (["op:MatMul"], [], set()),  # it writes the graph output, which is frozen
    ],
)
def test_selectors(include: list[str], exclude: list[str], chosen: set[str]) -> None:
    assert {group.name for group in select(op.analyze(network()), include, exclude)} == chosen


@pytest.mark.parametrize("pattern", ["conv_0", "op:Gemm", "re:^Relu$", "re:(", ""])
def test_selectors_that_match_nothing(pattern: str) -> None:
    with pytest.raises(SelectorError):
        select(op.analyze(network()), [pattern])
    with pytest.raises(SelectorError):
        select(op.analyze(network()), [], [pattern])


def test_inspect_compare_and_bench() -> None:
    found = op.inspect(network())
    assert [row.name for row in found.groups if row.frozen is None] == [FIRST, SECOND]
    assert all(row.frozen for row in found.groups if row.name not in (FIRST, SECOND))
    same = op.compare(network(), network(), samples(), no_latency=True)
    assert same.fidelity.agreement == 1
    assert same.fidelity.max_abs == 0
    times = op.bench([network(), network()], seconds=0.05)
    assert [row.latency_ms.median > 0 for row in times.models] == [True, True]
    assert [row.ratio.median is None for row in times.models] == [True, False]
