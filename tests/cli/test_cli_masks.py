"""``slim --sparsity``, ``--threshold``, ``--nm`` and ``--block``, how zeros are stored, and ``check`` on the result."""

import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

SIDE = {
    "path", "sha256", "parameters", "nonzero_parameters", "macs", "bytes", "compressed_bytes", "nodes", "latency_ms",
    "metrics",
}  # fmt: skip
MASKED = ["u1", "v1", "u2", "v2", "u3", "v3", "k"]


def weights(path):
    model = onnx.load(path)
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for sparse in model.graph.sparse_initializer:
        dense = np.zeros(int(np.prod(sparse.dims)), np.float32)
        dense[numpy_helper.to_array(sparse.indices)] = numpy_helper.to_array(sparse.values)
        found[sparse.values.name] = dense.reshape(tuple(sparse.dims))
    return found


def stored_sparse(path):
    return [sparse.values.name for sparse in onnx.load(path).graph.sparse_initializer]


def test_the_smallest_weights_become_zero(report_of, residual, tmp_path):
    out = tmp_path / "out.onnx"
    before = residual.read_bytes()
    report = report_of(residual, "--sparsity", 0.75, "--allocation", "uniform", "-o", out)
    assert residual.read_bytes() == before
    given, left = weights(residual), weights(out)
    for name in ("u1", "v3"):
        kept = np.sort(np.abs(given[name]).ravel())[-given[name].size // 4 :]
        np.testing.assert_array_equal(left[name], np.where(np.abs(given[name]) >= kept[0], given[name], 0))
    np.testing.assert_array_equal(left["w0"], given["w0"])
    found = report["sparsity"]
    assert (found["pattern"], found["fraction"]) == ("unstructured", pytest.approx(0.75))
    assert [row["name"] for row in found["tensors"]] == MASKED
    assert [row["node"] for row in found["tensors"]][:2] == ["first1", "second1"]
    assert found["dense"] == [{"node": "stem", "reason": "it is the first that reads the input"}]
    assert any("gains no speed" in note for note in report["warnings"])
    assert report["after"]["nonzero_parameters"] == sum(np.count_nonzero(values) for values in left.values())
    assert set(report["after"]) == set(report["before"]) == SIDE


def test_a_threshold(report_of, residual, tmp_path):
    out = tmp_path / "out.onnx"
    report_of(residual, "--threshold", 0.05, "-o", out)
    given, left = weights(residual), weights(out)
    for name in MASKED:
        np.testing.assert_array_equal(left[name], np.where(np.abs(given[name]) < 0.05, 0, given[name]))


@pytest.mark.parametrize("nm", ["2:4", "1:4", "1:2", "3:8"])
def test_n_of_m_and_the_check_of_it(command, report_of, residual, tmp_path, nm):
    out = tmp_path / "out.onnx"
    report = report_of(residual, "--nm", nm, "-o", out)
    kept, size = map(int, nm.split(":"))
    assert report["sparsity"]["fraction"] == pytest.approx(1 - kept / size)
    assert not any("gains no speed" in note for note in report["warnings"])
    assert command("check", out, "--nm", nm, "-q").code == 0
    assert command("check", residual, "--nm", nm, "-q").code == 1


@pytest.mark.parametrize(("shape", "outputs", "inputs"), [("4x1", 4, 1), ("1x4", 1, 4), ("2x2", 2, 2)])
def test_blocks_of_zeros(report_of, residual, tmp_path, shape, outputs, inputs):
    out = tmp_path / "out.onnx"
    report = report_of(residual, "--sparsity", 0.5, "--block", shape, "-o", out)
    zero = weights(out)["u2"] == 0
    cells = zero.reshape(16 // outputs, outputs, 16 // inputs, inputs, 3, 3)
    assert np.array_equal(cells.all(axis=(1, 3)), cells.any(axis=(1, 3)))
    assert zero.mean() == pytest.approx(0.5)
    assert report["sparsity"]["pattern"] == shape


@pytest.mark.parametrize("score", ["magnitude", "wanda", "sparsegpt", "alps"])
def test_every_score_of_weights(report_of, residual, unlabelled, score):
    report = report_of(residual, "--sparsity", 0.5, "--mask-score", score, "--data", unlabelled)
    assert report["sparsity"]["fraction"] == pytest.approx(0.5, abs=1e-3)
    assert report["recovery"]["method"] == "least-squares"


def test_samples_make_the_zeros_cheaper(report_of, residual, unlabelled):
    noise = [
        report_of(residual, "--sparsity", 0.7, "--data", unlabelled, *options)["fidelity"]["sqnr_db"]
        for options in (("--recover", "none"), ())
    ]
    assert noise[1] > noise[0] + 3


def test_by_default_more_zeros_where_they_cost_less(report_of, save):
    chain = save(
        "agraph (float[N, 4, 4, 4] x) => (float y) { a = Conv (x, w) b = Conv (a, u) y = Conv (b, v) }",
        w=(16, 4, 1, 1), u=(16, 16, 1, 1), v=np.random.default_rng(3).laplace(size=(16, 16, 1, 1)).astype(np.float32),
    )  # fmt: skip
    same = report_of(chain, "--sparsity", 0.6, "--allocation", "uniform")["sparsity"]["tensors"]
    free = report_of(chain, "--sparsity", 0.6)["sparsity"]["tensors"]
    assert free == report_of(chain, "--sparsity", 0.6, "--allocation", "global")["sparsity"]["tensors"]
    assert same[0]["fraction"] == same[1]["fraction"]
    assert free[0]["fraction"] != free[1]["fraction"]
    assert sum(row["fraction"] for row in free) / 2 == pytest.approx(0.6, abs=0.01)


@pytest.mark.parametrize(
    ("options", "left"),
    [
        (("--exclude", "u1"), [name for name in MASKED if name != "u1"]),
        (("--exclude", "first?", "--exclude", "head"), ["v1", "v2", "v3"]),
        (("--include", "op:Gemm"), ["k"]),
        (("--include", "re:second[12]"), ["v1", "v2"]),
    ],
)
def test_selectors_mean_weights_and_their_operators(report_of, residual, options, left):
    found = report_of(residual, "--sparsity", 0.5, *options)["sparsity"]
    assert [row["name"] for row in found["tensors"]] == left
    dense = {row["node"]: row["reason"] for row in found["dense"]}
    assert dense.pop("stem") in ("it is the first that reads the input", "it is not selected")
    assert set(dense.values()) == {"it is not selected"}
    assert len(dense) == len(MASKED) - len(left)


@pytest.mark.parametrize(
    ("code", "words", "options"),
    [
        (2, "exclude each other", ("--sparsity", 0.5, "--nm", "2:4")),
        (2, "exclude each other", ("--sparsity", 0.5, "--threshold", 0.1)),
        (2, "exclude each other", ("--threshold", 0.1, "--nm", "2:4")),
        (2, "give --sparsity as well", ("--nm", "2:4", "--block", "1x4")),
        (2, "give --sparsity as well", ("--channels", 0.5, "--block", "1x4")),
        (2, "--sparsity", ("--sparsity", 1)),
        (2, "--sparsity", ("--sparsity", -0.1)),
        (2, "--sparsity", ("--sparsity", "nan")),
        (2, "--sparsity", ("--sparsity", "half")),
        (2, "--threshold", ("--threshold", -1)),
        (2, "--threshold", ("--threshold", "inf")),
        (2, "--nm", ("--nm", "4:2")),
        (2, "--nm", ("--nm", "0:4")),
        (2, "--nm", ("--nm", "2/4")),
        (2, "--nm", ("--nm", "16:64")),
        (2, "--block", ("--sparsity", 0.5, "--block", "4")),
        (2, "--block", ("--sparsity", 0.5, "--block", "0x4")),
        (2, "no mask score 'luck'", ("--sparsity", 0.5, "--mask-score", "luck")),
        (2, "give --data", ("--sparsity", 0.5, "--mask-score", "wanda")),
        (2, "matches no", ("--sparsity", 0.5, "--exclude", "nothing*")),
        (2, "--nm-min-channels", ("--nm", "2:4", "--nm-min-channels", 0)),
        (2, "--store-sparse", ("--sparsity", 0.5, "--store-sparse", "perhaps")),
        (2, "--store-sparse always", ("--sparsity", 0.5, "--store-sparse", "always", "--target", "tensorrt")),
        (4, "no weights can be masked", ("--nm", "3:7")),
        (4, "no weights can be masked", ("--nm", "2:4", "--target", "tensorrt")),
        (4, "no weights can be masked", ("--sparsity", 0.5, "--include", "stem")),
    ],
)
def test_what_makes_no_sense_is_said_in_one_sentence(command, residual, code, words, options):
    command.refuses(code, words, "slim", residual, "--no-latency", *options)


def test_a_model_without_weights_to_mask(command, save):
    plain = save("agraph (float[N, 4] x) => (float[N, 4] y) { a = Relu (x) y = Exp (a) }")
    command.refuses(4, "no operator has stored weights", "slim", plain, "--sparsity", 0.5, "--no-latency")


@pytest.mark.parametrize("codes", [(-1.0, 1.0), (-1.0, 0.0, 1.0)])
def test_binary_and_ternary_weights_are_refused(command, save, codes):
    drawn = np.random.default_rng(0).choice(codes, (16, 32, 1, 1)).astype(np.float32)
    model = save(
        "agraph (float[N, 3, 4, 4] x) => (float y) { a = Conv (x, w) y = Conv (a, u) }", w=(32, 3, 1, 1), u=drawn
    )
    command.refuses(4, "binary or ternary", "slim", model, "--sparsity", 0.5, "--no-latency")


def test_narrow_operators_stay_dense(report_of, residual):
    found = report_of(residual, "--nm", "2:4", "--nm-min-channels", 16)["sparsity"]
    assert [row["name"] for row in found["tensors"]] == MASKED[:-1]
    assert any("pays from 16 of both" in row["reason"] for row in found["dense"])
    wide = report_of(residual, "--nm", "2:4", "--nm-min-channels", 4, "--target", "tensorrt")["sparsity"]
    assert len(wide["tensors"]) == len(MASKED)


@pytest.mark.parametrize("data", [False, True])
@pytest.mark.parametrize(
    "options", [("--sparsity", 0.6), ("--threshold", 0.05), ("--nm", "2:4"), ("--sparsity", 0.5, "--block", "1x4")]
)
def test_a_saved_plan_gives_the_same_bytes(report_of, replay, residual, unlabelled, tmp_path, options, data):
    samples = ("--data", unlabelled) if data else ()
    out, plan = tmp_path / "out.onnx", tmp_path / "plan.json"
    report_of(residual, *options, *samples, "-o", out, "--save-plan", plan)
    rows = json.loads(plan.read_text())["masks"]
    assert [row["tensor"] for row in rows] == MASKED
    assert {row["fixed"] for row in rows} == {"--threshold" in options}
    assert replay(residual, plan, *samples) == out.read_bytes()


@pytest.mark.parametrize("data", [False, True])
def test_zeros_on_top_of_a_plan_for_channels(command, report_of, residual, unlabelled, tmp_path, data):
    samples = ("--data", unlabelled) if data else ()
    plan, first, second = tmp_path / "plan.json", tmp_path / "first.onnx", tmp_path / "second.onnx"
    report_of(residual, "--channels", 0.5, *samples, "--save-plan", plan, "-o", tmp_path / "narrow.onnx")
    report = report_of(residual, "--channels", 0.5, "--nm", "2:4", *samples, "-o", first)
    found = command(
        "slim", residual, "--plan", plan, "--nm", "2:4", "--no-latency", *samples, "-o", second, "--json",
        "--save-plan", tmp_path / "both.json",
    )  # fmt: skip
    assert found.code == 0, found
    assert second.read_bytes() == first.read_bytes()
    assert json.loads(found.out)["sparsity"] == report["sparsity"]
    assert len(json.loads((tmp_path / "both.json").read_text())["masks"]) == len(MASKED)


def test_a_plan_with_zeros_takes_no_others(command, report_of, residual, tmp_path):
    plan = tmp_path / "plan.json"
    report_of(residual, "--nm", "2:4", "--save-plan", plan)
    command.refuses(
        2, "the plan says already which weights go", "slim", residual, "--plan", plan, "--nm", "1:4", "--no-latency",
        "-o", tmp_path / "other.onnx",
    )  # fmt: skip


def test_a_plan_for_another_model_is_refused(command, report_of, residual, small, tmp_path):
    plan = tmp_path / "plan.json"
    report_of(residual, "--nm", "2:4", "--include", "first1", "--save-plan", plan)
    changed = json.loads(plan.read_text())
    changed["groups"] = []
    plan.write_text(json.dumps(changed))
    command.refuses(4, "the plan masks 'u1'", "slim", small, "--plan", plan, "--no-latency")


@pytest.mark.parametrize(
    ("choice", "target", "sparsity", "expected"),
    [
        ("auto", "ort-cpu", 0.9, {"u1", "v1", "u2", "v2", "u3", "v3"}),
        ("auto", "ort-cuda", 0.9, {"u1", "v1", "u2", "v2", "u3", "v3"}),
        ("auto", "ort-cpu", 0.1, set()),
        ("auto", "tensorrt", 0.9, set()),
        ("auto", "generic", 0.9, set()),
        ("never", "ort-cpu", 0.9, set()),
        ("always", "ort-cpu", 0.1, {"w0", "u1", "v1", "u2", "v2", "u3", "v3"}),
    ],
)
def test_how_zeros_are_stored(report_of, residual, tmp_path, choice, target, sparsity, expected):
    out = tmp_path / "out.onnx"
    report = report_of(residual, "--sparsity", sparsity, "--store-sparse", choice, "--target", target, "-o", out)
    assert set(stored_sparse(out)) == expected
    after = report["after"]
    assert after["bytes"] == out.stat().st_size
    assert after["compressed_bytes"] <= 1.01 * out.stat().st_size
    assert (after["compressed_bytes"] < report["before"]["compressed_bytes"]) == (choice != "always")
    smaller = after["bytes"] < report["before"]["bytes"]
    assert smaller == (bool(expected) and sparsity > 0.5)


def test_a_sparse_file_is_read_and_its_size_is_that_on_disk(command, report_of, residual, tmp_path):
    sparse, again = tmp_path / "sparse.onnx", tmp_path / "again.onnx"
    report_of(residual, "--sparsity", 0.9, "-o", sparse)
    assert stored_sparse(sparse)
    seen = json.loads(command("inspect", sparse, "--json").out)["before"]
    assert seen["bytes"] == sparse.stat().st_size
    assert seen["compressed_bytes"] is not None
    report = report_of(sparse, "--layers", 1, "-o", again)
    assert report["before"]["bytes"] == sparse.stat().st_size
    assert report["after"]["bytes"] == again.stat().st_size
    assert report["ratios"]["bytes"] < 1
    assert (
        json.loads(command("check", sparse, "--nm", "1:16", "--json").out)["before"]["bytes"] == sparse.stat().st_size
    )


def test_without_zeros_nothing_is_compressed(report_of, residual, tmp_path):
    out = tmp_path / "out.onnx"
    report = report_of(residual, "--channels", 0.5, "-o", out)
    assert report["before"]["compressed_bytes"] is report["after"]["compressed_bytes"] is None
    assert report["after"]["bytes"] == out.stat().st_size


@pytest.mark.parametrize("options", [("--nm", "2:4"), ("--sparsity", 0.5), ("--threshold", 0.05)])
def test_a_dry_run_counts_the_zeros_and_writes_nothing(command, report_of, residual, options):
    before = command.files()
    found = command("slim", residual, *options, "--dry-run", "--json")
    assert command.files() == before
    assert json.loads(found.out)["sparsity"] == report_of(residual, *options)["sparsity"]


def test_strict_writes_nothing_where_a_budget_is_missed(command, residual, tmp_path):
    out = tmp_path / "out.onnx"
    found = command(
        "slim",
        residual,
        "--nm",
        "2:4",
        "--max-macs",
        0.001,
        "--round-to",
        4,
        "--no-latency",
        "-q",
        "-o",
        out,
        "--strict",
    )
    assert found.code == 1
    assert not out.exists()


def test_reports_say_what_became_of_the_weights(command, residual, tmp_path):
    files = [tmp_path / f"report.{suffix}" for suffix in ("md", "html")]
    options = [item for file in files for item in ("--report", file)]
    found = command("slim", residual, "--nm", "2:4", "--exclude", "first1", "--no-latency", *options)
    for text in (found.out, *(file.read_text() for file in files)):
        assert "50.0 % of the weights of 6 tensors are zero (2:4), 2 operators stay dense" in text
        assert "second1" in text
        assert "it is not selected" in text
        assert "parameters not zero" in text
        assert "compressed" in text
    assert "50 % zeros (2:4), " in files[0].read_text()


def test_long_tables_are_folded(command, deep_residual):
    text = command("slim", deep_residual, "--sparsity", 0.5, "--no-latency").out
    assert "... and 49 more tensors: -v lists all" in text
    full = command("slim", deep_residual, "--sparsity", 0.5, "--no-latency", "--force", "-v").out
    assert "more tensors" not in full
