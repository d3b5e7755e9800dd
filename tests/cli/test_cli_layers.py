"""``slim --layers`` and the blocks that ``inspect`` lists, on the command line."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

ROW = {"name", "dropped", "reason", "parameters", "parent", "score"}


def outputs(source, feeds):
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    model = source if isinstance(source, bytes) else source.read_bytes()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(None, {"x": feeds})[0]


def without(path, number):
    """The network with a residual block replaced by its skip, by hand."""
    model = onnx.load(path)
    gone = [node for node in model.graph.node if node.output[0][1:] == str(number) and node.output[0][0] in "abcsr"]
    assert [node.op_type for node in gone] == ["Conv", "Relu", "Conv", "Add", "Relu"]
    for node in gone:
        model.graph.node.remove(node)
    for node in model.graph.node:
        node.input[:] = [f"r{number - 1}" if name == f"r{number}" else name for name in node.input]
    return model.SerializeToString()


def dropped(report):
    return [row["name"] for row in report["blocks"] if row["dropped"]]


@pytest.mark.parametrize(("amount", "count"), [(1, 1), (2, 2), (0.34, 1), (0.67, 2), (3, 3)])
def test_a_number_or_a_fraction_of_the_outermost_blocks(report_of, residual, tmp_path, amount, count):
    before = residual.read_bytes()
    report = report_of(residual, "--layers", amount, "-o", tmp_path / "out.onnx")
    assert len(dropped(report)) == count
    assert all(set(row) == ROW for row in report["blocks"])
    assert [row["name"] for row in report["blocks"] if row["parent"] is None] == ["block1", "block2", "block3"]
    assert {row["parent"] for row in report["blocks"]} == {None, "block1", "block2", "block3"}
    assert report["after"]["nodes"] == 20 - 5 * count
    assert report["proof"]["passed"]
    assert residual.read_bytes() == before


def test_the_result_is_the_network_without_the_block(report_of, residual, tmp_path):
    out = tmp_path / "out.onnx"
    report = report_of(residual, "--layers", 1, "--exclude", "block3", "--exclude", "first1", "-o", out)
    assert dropped(report) == ["block2"]
    feeds = np.random.default_rng(1).standard_normal((3, 3, 8, 8), np.float32)
    np.testing.assert_allclose(outputs(out, feeds), outputs(without(residual, 2), feeds), rtol=1e-5, atol=1e-6)
    assert not np.allclose(outputs(out, feeds), outputs(residual, feeds), rtol=1e-3)


@pytest.mark.parametrize("method", ["repaired", "divergence", "cosine", "parameters"])
def test_every_score_of_blocks(report_of, residual, unlabelled, method):
    report = report_of(residual, "--layers", 2, "--data", unlabelled, "--layer-score", method)
    assert len(dropped(report)) == 2
    scores = [row["score"] for row in report["blocks"] if row["dropped"]]
    assert all(score > 0 for score in scores)
    assert (min(scores) >= 1) == (method == "parameters")
    assert report["recovery"]["method"] == "least-squares"


@pytest.mark.parametrize(("repair", "method"), [("least-squares", "repaired"), ("none", "divergence")])
def test_blocks_are_ranked_by_what_the_repair_will_leave(report_of, residual, unlabelled, repair, method):
    options = (residual, "--layers", 2, "--data", unlabelled, "--recover", repair)
    assert report_of(*options)["blocks"] == report_of(*options, "--layer-score", method)["blocks"]


def test_without_samples_the_smallest_blocks_go_first(report_of, residual):
    rows = {row["name"]: row for row in report_of(residual, "--layers", 1)["blocks"]}
    gone = next(row for row in rows.values() if row["dropped"])
    assert gone["score"] == gone["parameters"] == 2 * 16 * 16 * 9


def test_the_repair_takes_back_what_the_block_did(report_of, residual, unlabelled):
    plain = report_of(residual, "--layers", 1, "--data", unlabelled, "--recover", "none")
    repaired = report_of(residual, "--layers", 1, "--data", unlabelled)
    assert plain["recovery"]["method"] is None
    assert repaired["fidelity"]["sqnr_db"] > plain["fidelity"]["sqnr_db"]


@pytest.mark.parametrize(
    ("options", "gone"),
    [
        (("--include", "block2"), ["block2"]),
        (("--include", "first2"), ["block2"]),
        (("--include", "re:block[12]", "--exclude", "second1"), ["block2"]),
        (("--exclude", "block[23]"), ["block1"]),
    ],
)
def test_selectors_mean_blocks_and_the_nodes_within_them(report_of, residual, options, gone):
    assert dropped(report_of(residual, "--layers", 1, *options)) == gone


@pytest.mark.parametrize(
    ("code", "words", "options"),
    [
        (2, "matches no", ("--layers", 1, "--exclude", "block7")),
        (2, "asks for 4 blocks, and 3 can be dropped", ("--layers", 4)),
        (2, "asks for 2 blocks, and 1 can be dropped", ("--layers", 2, "--include", "block1")),
        (2, "--layers", ("--layers", -1)),
        (2, "--layers", ("--layers", 1.5)),
        (2, "--layers", ("--layers", "nan")),
        (2, "--layers", ("--layers", "many")),
        (2, "needs samples", ("--layers", 1, "--layer-score", "cosine")),
        (2, "no ranking of blocks 'luck'", ("--layers", 1, "--layer-score", "luck")),
        (4, "no block that can be dropped is selected", ("--layers", 1, "--exclude", "block*")),
        (4, "rounds to nothing", ("--layers", 0.1)),
    ],
)
def test_what_makes_no_sense_is_said_in_one_sentence(command, residual, code, words, options):
    command.refuses(code, words, "slim", residual, "--no-latency", *options)


def test_a_model_without_blocks(command, small):
    command.refuses(4, "no block can be dropped", "slim", small, "--layers", 1, "--no-latency")


def test_a_model_whose_blocks_cannot_go_says_why(command, save):
    strided = save(
        "agraph (float[N, 3, 8, 8] x) => (float[N, 4] y) { a = Conv (x, w) r = Relu (a) "
        "[left] b = Conv <strides = [2, 2]> (r, u) [right] c = Conv <strides = [2, 2]> (r, v) s = Add (b, c) "
        "p = GlobalAveragePool (s) f = Flatten (p) y = Gemm (f, k) }",
        w=(8, 3, 3, 3), u=(8, 8, 1, 1), v=(8, 8, 1, 1), k=(8, 4),
    )  # fmt: skip
    command.refuses(4, "changes the shape", "slim", strided, "--layers", 1, "--no-latency")


@pytest.mark.parametrize("data", [False, True])
def test_blocks_channels_and_weights_in_one_call_and_again(
    command, report_of, replay, residual, unlabelled, tmp_path, data
):
    samples = ("--data", unlabelled) if data else ()
    out, plan = tmp_path / "out.onnx", tmp_path / "plan.json"
    report = report_of(
        residual, "--layers", 1, "--channels", 0.5, "--nm", "2:4", "-o", out, "--save-plan", plan, *samples
    )
    assert len(dropped(report)) == 1
    assert {row["removed"] for row in report["groups"] if row["frozen"] is None} == {8}
    assert report["sparsity"]["pattern"] == "2:4"
    assert report["sparsity"]["fraction"] == 0.5
    assert report["proof"]["passed"]
    assert command("check", out, "--nm", "2:4", "-q").code == 0
    stored = json.loads(plan.read_text())
    assert stored["blocks"] == dropped(report)
    names = {tensor.name for tensor in onnx.load(residual).graph.initializer}
    assert {row["tensor"] for row in (*stored["weights"], *stored["masks"])} <= names
    assert replay(residual, plan, *samples) == out.read_bytes()


def test_a_plan_says_already_how_many_blocks_go(command, report_of, residual, tmp_path):
    plan = tmp_path / "plan.json"
    report_of(residual, "--layers", 1, "--save-plan", plan)
    (tmp_path / "residual.slim.onnx").unlink()
    command.refuses(2, "--layers and --plan exclude", "slim", residual, "--plan", plan, "--layers", 1)


def test_a_plan_for_another_model_is_refused(command, report_of, residual, small, tmp_path):
    plan = tmp_path / "plan.json"
    report_of(residual, "--layers", 1, "--save-plan", plan)
    command.refuses(4, "the plan drops block", "slim", small, "--plan", plan, "--no-latency")


def test_a_dry_run_counts_and_writes_nothing(command, residual, tmp_path):
    before = command.files()
    found = command("slim", residual, "--layers", 2, "--dry-run", "--json")
    assert found.code == 0
    report = json.loads(found.out)
    assert len(dropped(report)) == 2
    assert report["after"]["nodes"] == 10
    assert not report["proof"]["checked"]
    assert command.files() == before


@pytest.mark.parametrize(("strict", "written"), [((), True), (("--strict",), False)])
def test_a_budget_that_blocks_alone_do_not_meet(command, residual, tmp_path, strict, written):
    out = tmp_path / "out.onnx"
    found = command(
        "slim", residual, "--layers", 1, "--max-macs", 0.001, "--no-latency", "--round-to", 1, "-q", "-o", out, *strict
    )
    assert found.code == 1
    assert out.exists() == written


def test_reports_name_the_blocks(command, residual, tmp_path):
    files = [tmp_path / f"report.{suffix}" for suffix in ("md", "html")]
    options = [item for file in files for item in ("--report", file)]
    found = command("slim", residual, "--layers", 1, "--no-latency", *options)
    texts = [found.out, *(file.read_text() for file in files)]
    for text in texts:
        assert "ropped 1 of 3 blocks" in text
        assert "block3" in text
        assert "4.61 k" in text
    assert "first3" not in found.out
    assert "1 of 3 blocks dropped, -" in texts[1]
    full = command("slim", residual, "--layers", 1, "--no-latency", "-v", "--force").out
    assert "first3: lies within block3" in full
    assert "block1: stays" in full


def test_inspect_lists_what_can_be_dropped(command, residual, tmp_path):
    files = [tmp_path / f"report.{suffix}" for suffix in ("md", "html")]
    found = command("inspect", residual, *(item for file in files for item in ("--report", file)))
    for text in (found.out, *(file.read_text() for file in files)):
        assert "3 blocks can be dropped, 6 more lie within them" in text
        assert "block2" in text
    assert "first2: lies" not in found.out
    assert "first2: lies within block2" in command("inspect", residual, "-v").out
    rows = json.loads(command("inspect", residual, "--json").out)["blocks"]
    assert len(rows) == 9
    assert not any(row["dropped"] for row in rows)


def test_inspect_says_why_a_block_cannot_go(command, save):
    model = save(
        "agraph (float[N, 3, 8, 8] x) => (float[N, 4] y) { a = Conv (x, w) r = Relu (a) "
        "[left] b = Conv <strides = [2, 2]> (r, u) [right] c = Conv <strides = [2, 2]> (r, v) s = Add (b, c) "
        "p = GlobalAveragePool (s) f = Flatten (p) y = Gemm (f, k) }",
        w=(8, 3, 3, 3), u=(8, 8, 1, 1), v=(8, 8, 1, 1), k=(8, 4),
    )  # fmt: skip
    assert "0 blocks can be dropped, 1 cannot" in command("inspect", model).out
    assert "cannot be dropped: it changes the shape" in command("inspect", model, "-v").out


def test_many_blocks_are_folded(command, deep_residual):
    text = command("inspect", deep_residual).out
    assert "30 blocks can be dropped" in text
    assert "... and 22 more blocks: -v lists all" in text
    assert text.count("block") < 20
    assert "block30" in command("inspect", deep_residual, "-v").out


def test_stored_weights_of_dropped_blocks_are_gone(report_of, residual, tmp_path):
    out = tmp_path / "out.onnx"
    report_of(residual, "--layers", 1, "--include", "block1", "-o", out)
    left = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(out).graph.initializer}
    assert not {"u1", "v1"} & set(left)
    assert {"u2", "v3", "w0", "k"} <= set(left)
