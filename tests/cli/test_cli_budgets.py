"""Budgets instead of ratios, and allocations that compete, on the command line and in Python."""

import json

import numpy as np
import onnx
import pytest

import onnxprune

SAMPLES = np.random.default_rng(0).standard_normal((80, 3, 8, 8), np.float32)


@pytest.fixture
def samples(tmp_path):
    np.savez(tmp_path / "samples.npz", x=SAMPLES)
    return tmp_path / "samples.npz"


def run(command, model, *options, code=0):
    found = command("slim", model, "--round-to", 1, "--no-latency", "--json", "--force", *options)
    assert found.code == code, found
    return json.loads(found.out)


@pytest.mark.parametrize(("option", "key"), [("--max-macs", "macs"), ("--max-params", "parameters")])
@pytest.mark.parametrize("allocation", ["uniform", "global", "per-mac"])
def test_a_budget_is_kept_and_used(command, small, option, key, allocation):
    report = run(command, small, option, 0.5, "--allocation", allocation)
    assert 0.9 * 0.5 < report["ratios"][key] <= 0.5
    assert report["allocations"] == []


def test_an_absolute_budget(command, small):
    whole = run(command, small, "--max-macs", 0.9)["before"]["macs"]
    report = run(command, small, "--max-macs", f"{whole / 2e3}kMAC")
    assert 0.48 < report["ratios"]["macs"] <= 0.5


@pytest.mark.parametrize(
    "options", [("--channels", 0.5, "--max-macs", 0.5), ("--max-macs", "fast"), ("--max-params", -1)]
)
def test_a_budget_that_makes_no_sense(command, small, options, one_sentence):
    found = command("slim", small, *options)
    assert found.code == 2
    one_sentence(found.err)


def test_a_budget_out_of_reach_is_said_and_the_best_is_written(command, small, tmp_path):
    out = tmp_path / "out.onnx"
    report = run(command, small, "--max-macs", 0.001, "-o", out, code=1)
    assert any("--max-macs was not met" in note for note in report["warnings"])
    onnx.checker.check_model(onnx.load(out))


def test_strict_writes_nothing_where_a_budget_is_missed(command, small, tmp_path):
    out = tmp_path / "out.onnx"
    found = command(
        "slim", small, "--max-macs", 0.001, "--round-to", 1, "--no-latency", "-o", out, "--strict", "-q",
        "--save-plan", tmp_path / "plan.json",
    )  # fmt: skip
    assert found.code == 1
    assert "nothing was written" in found.err
    assert not out.exists()
    assert not (tmp_path / "plan.json").exists()


def test_a_plan_and_a_budget_exclude_each_other(command, small, tmp_path, one_sentence):
    plan = tmp_path / "plan.json"
    run(command, small, "--max-macs", 0.5, "--save-plan", plan)
    found = command("slim", small, "--plan", plan, "--max-macs", 0.5)
    assert found.code == 2
    one_sentence(found.err)
    replayed = command("slim", small, "--plan", plan, "--no-latency", "--json", "--force")
    assert json.loads(replayed.out)["ratios"]["macs"] <= 0.5


def test_with_samples_allocations_compete_at_the_same_cost(command, small, samples):
    report = run(command, small, "--channels", 0.5, "--data", samples)
    rows = {row["name"]: row for row in report["allocations"]}
    assert rows.keys() == {"uniform", "global", "per-mac", "measured"}
    winner = [row for row in rows.values() if row["chosen"]]
    assert len(winner) == 1
    assert winner[0]["divergence"] == min(row["divergence"] for row in rows.values())
    assert all(row["macs"] <= rows["uniform"]["macs"] for row in rows.values())
    assert report["after"]["macs"] == winner[0]["macs"]
    assert report["recovery"]["method"] == "least-squares"
    assert report["proof"]["passed"]


def test_the_best_of_the_allocations_is_no_worse_than_the_uniform_one(command, small, samples):
    def error(*options):
        return run(command, small, "--max-macs", 0.4, "--data", samples, "--metric", "mse", *options)["after"][
            "metrics"
        ]

    assert error()["mse"] <= 1.05 * error("--allocation", "uniform")["mse"]


def test_folding_needs_no_samples(command, small):
    report = run(command, small, "--channels", 0.5, "--recover", "fold")
    assert report["recovery"]["method"] == "fold"
    assert report["recovery"]["layers"]
    assert report["proof"]["passed"]


def test_python_says_whether_a_budget_was_met(small):
    met = onnxprune.slim(small, max_macs=0.5, no_latency=True, round_to=1)
    assert met.met
    missed = onnxprune.slim(small, max_params=1e-4, no_latency=True, round_to=1)
    assert not missed.met
    assert missed.report.after.parameters < missed.report.before.parameters


def test_progress_names_what_takes_long(small, samples):
    stages = []
    onnxprune.slim(small, 0.5, data=samples, no_latency=True, progress=lambda stage, _: stages.append(stage))
    order = list(dict.fromkeys(stages))
    assert [stage for stage in order if stage in ("score", "measure groups", "allocate", "recover")] == [
        "score", "measure groups", "allocate", "recover",
    ]  # fmt: skip


def test_a_budget_counts_at_the_sizes_that_are_given(command, save):
    """The two halves of this network cost differently at other sizes: one grows with the image, one does not."""
    path = save(
        """free (float[N, 3, H, W] x) => (float[N, 4] y) {
        a = Conv<pads=[1,1,1,1]>(x, w1) b = Relu(a) c = Conv<pads=[1,1,1,1]>(b, w2) d = GlobalAveragePool(c)
        e = Flatten(d) f = MatMul(e, w3) g = Relu(f) y = MatMul(g, w4) }""",
        w1=(16, 3, 3, 3), w2=(32, 16, 3, 3), w3=(32, 600), w4=(600, 4),
    )  # fmt: skip
    for side in (4, 40):
        report = run(command, path, "--max-macs", 0.5, "--input-shape", f"x:1x3x{side}x{side}")
        assert 0.49 <= report["ratios"]["macs"] <= 0.5


def test_dimensions_that_are_called_by_a_question_mark_are_not_the_same(command, small, tmp_path):
    proto = onnx.load(small)
    proto.graph.ClearField("value_info")
    for dim in proto.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_param = "?"
    path = tmp_path / "unnamed.onnx"
    onnx.save(proto, path)
    report = run(command, path, "--max-macs", 0.5, "--input-shape", "x:1x3x6x20")
    assert report["input_shapes"]["x"] == [1, 3, 6, 20]
    assert 0.49 <= report["ratios"]["macs"] <= 0.5


def test_nothing_to_judge_by_takes_the_uniform_allocation(command, save, samples):
    path = save(
        """codes (float[N, 3, 8, 8] x) => (int64[N, 1] y) {
        a = Conv<pads=[1,1,1,1]>(x, w1) b = Relu(a) c = GlobalAveragePool(b) d = Flatten(c) e = MatMul(d, w2)
        y = ArgMax<axis=1>(e) }""",
        w1=(16, 3, 3, 3), w2=(16, 4),
    )  # fmt: skip
    report = run(command, path, "--channels", 0.5, "--data", samples)
    assert report["allocations"] == []
    assert report["groups"][0]["removed"] == 8


def test_activations_that_are_not_numbers_are_passed_over(command, save, tmp_path):
    path = save(
        """roots (float[N, 3, 8, 8] x) => (float[N, 4] y) {
        r = Sqrt(x) a = Conv<pads=[1,1,1,1]>(r, w1) b = Relu(a) c = Conv<pads=[1,1,1,1]>(b, w3)
        d = GlobalMaxPool(c) e = Flatten(d) y = MatMul(e, w2) }""",
        w1=(16, 3, 3, 3), w2=(8, 4), w3=(8, 16, 3, 3),
    )  # fmt: skip
    images = np.abs(SAMPLES)
    images[5, 0, 0, 0] = -1
    np.savez(tmp_path / "holes.npz", x=images)
    report = run(command, path, "--channels", 0.5, "--data", tmp_path / "holes.npz")
    assert report["recovery"]["layers"]


def test_the_result_of_the_operator_itself_may_be_broadcast(command, save, samples):
    path = save(
        """context (float[N, 3, 8, 8] x) => (float[N, 4] y) {
        a = Conv<pads=[1,1,1,1]>(x, w1) b = Relu(a) p = GlobalAveragePool(b) q = Conv(p, w2) s = Add(b, q)
        d = GlobalMaxPool(s) e = Flatten(d) y = MatMul(e, w3) }""",
        w1=(16, 3, 3, 3), w2=(16, 16, 1, 1), w3=(16, 4),
    )  # fmt: skip
    assert run(command, path, "--channels", 0.5, "--data", samples)["proof"]["passed"]


@pytest.mark.parametrize("allocation", ["global", "per-mac"])
def test_nearly_everything_can_be_asked_for(command, small, allocation):
    report = run(command, small, "--channels", 0.999, "--allocation", allocation)
    assert all(group["units"] - group["removed"] == 1 for group in report["groups"] if group["removed"])


def test_a_budget_that_is_met_removes_nothing_and_is_no_error(command, small):
    report = run(command, small, "--max-macs", "900GMAC")
    assert report["ratios"]["macs"] == 1
    assert any("nothing was removed" in note for note in report["warnings"])


def test_one_sample_cannot_be_held_out_and_that_is_said(command, small, tmp_path):
    np.savez(tmp_path / "one.npz", x=SAMPLES[:1])
    report = run(command, small, "--channels", 0.5, "--data", tmp_path / "one.npz")
    assert any("too few samples to hold any out" in note for note in report["warnings"])


def test_the_plan_says_what_was_asked_for(command, small, samples, tmp_path):
    run(command, small, "--channels", 0.5, "--data", samples, "--save-plan", tmp_path / "plan.json")
    options = json.loads((tmp_path / "plan.json").read_text())["options"]
    assert options["ratio"] == 0.5
    assert "max_macs" not in options


def test_no_note_where_rounding_alone_moves_the_uniform_allocation(command, small, samples):
    report = run(command, small, "--channels", 0.45, "--data", samples)
    winner = next(row["name"] for row in report["allocations"] if row["chosen"])
    units, gone = (sum(group[key] for group in report["groups"] if not group["frozen"]) for key in ("units", "removed"))
    told = any("of the prunable units, for as many" in note for note in report["warnings"])
    assert told == (winner != "uniform" and abs(gone / units - 0.45) >= 0.05)
