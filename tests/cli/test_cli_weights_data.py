"""Weights alone, and float16, on samples: what the files compute, and what the report says."""

import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

MLP = """agraph (float[N, 48] x) => (float[N, 16] y) {
    [one] a = MatMul (x, w) [bias] b = Add (a, c) r = Relu (b) [two] d = MatMul (r, v) s = Tanh (d)
    [three] y = Gemm <transB = 1> (s, u) }"""
LARGE = """agraph (float[N, 48] x) => (float[N, 16] y) {
    [one] a = MatMul (x, w) [up] b = Mul (a, k) [down] d = Div (b, k) [two] y = MatMul (d, v) }"""


@pytest.fixture
def mlp(save):
    return save(MLP, w=(48, 96), c=(96,), v=(96, 64), u=(16, 64))


@pytest.fixture
def large(save):
    """A network whose activations pass 65504 between two operators."""
    return save(LARGE, "large.onnx", w=(48, 96), k=np.float32(3e4), v=(96, 16))


@pytest.fixture
def data(tmp_path):
    """Eight hundred rows of twelve factors and some noise; one input is never other than zero."""
    random = np.random.default_rng(0)
    rows = random.normal(size=(800, 12)) @ random.normal(size=(12, 48)) + 0.3 * random.normal(size=(800, 48))
    rows[:, 7] = 0
    path = tmp_path / "rows.npz"
    np.savez(path, x=(rows / 12).astype(np.float32))
    return path


@pytest.fixture
def report(command):
    def run(model, *options, code=0):
        result = command(*model, "--no-latency", "--json", "--force", *options)
        assert result.code == code, result
        return json.loads(result.out)

    return run


@pytest.mark.parametrize("options", [("int4", "--group-size", 32), ("int8",)])
def test_samples_choose_how_weights_are_rounded(report, mlp, data, tmp_path, options):
    out = tmp_path / "out.onnx"
    plain = report(("quantize", mlp), "--weights", *options, "--eval", data)
    found = report(("quantize", mlp), "--weights", *options, "--data", data, "-o", out)
    assert found["fidelity"]["sqnr_db"] > plain["fidelity"]["sqnr_db"] + 2
    assert found["quantization"]["quantized"] == plain["quantization"]["quantized"] == 3
    assert found["quantization"]["fusion"] == {"fused": 3, "eligible": 3}
    assert found["after"]["bytes"] < 1.01 * plain["after"]["bytes"] + 512
    assert [note for note in found["warnings"] if "samples chose how 3 of 3 weights were rounded" in note]
    assert [note for note in plain["warnings"] if "by themselves: with --data" in note]
    for tensor in onnx.load(out).graph.initializer:
        values = numpy_helper.to_array(tensor)
        assert values.dtype != np.float32 or np.isfinite(values).all()


def test_the_same_samples_give_the_same_bytes(report, mlp, data, tmp_path):
    files = []
    for name in ("one.onnx", "two.onnx"):
        report(("quantize", mlp), "--weights", "int4", "--data", data, "-o", tmp_path / name)
        files.append((tmp_path / name).read_bytes())
    assert files[0] == files[1]


def test_integers_of_operators_that_are_excluded(report, mlp, data):
    found = report(("quantize", mlp), "--weights", "int4", "--data", data, "--exclude", "two")
    assert [one["node"] for one in found["quantization"]["left"]] == ["two"]
    assert [note for note in found["warnings"] if "how 2 of 2 weights were rounded" in note]


@pytest.mark.parametrize(
    ("count", "words"), [(1, "rounded by themselves"), (3, "how 0 of 3 weights"), (40, "how 0 of")]
)
def test_few_samples_change_nothing(report, mlp, data, tmp_path, count, words):
    few, plain, found = tmp_path / "few.npz", tmp_path / "plain.onnx", tmp_path / "found.onnx"
    np.savez(few, x=np.load(data)["x"][:count])
    report(("quantize", mlp), "--weights", "int4", "-o", plain)
    notes = report(("quantize", mlp), "--weights", "int4", "--data", few, "-o", found)["warnings"]
    assert [note for note in notes if words in note]
    assert found.read_bytes() == plain.read_bytes()


def test_what_overflows_on_samples_stays_in_float32(report, large, data, tmp_path):
    feed = {"x": np.load(data)["x"][:32]}
    wanted = ReferenceEvaluator(onnx.load(large)).run(None, feed)[0]
    for options in (("slim", large, "--fp16"), ("quantize", large, "--weights", "int8", "--fp16")):
        out = tmp_path / "half.onnx"
        blind = report(options, "-o", out)
        with np.errstate(all="ignore"):
            assert not np.isfinite(ReferenceEvaluator(onnx.load(out)).run(None, feed)[0]).all()
        assert not [one for one in blind["quantization"]["left"] if "on the samples" in one["reason"]]
        found = report(options, "--data", data, "-o", out)
        left = {one["node"]: one["reason"] for one in found["quantization"]["left"]}
        assert set(left) == {"up", "down"}
        assert "on the samples, and float16 ends at 65504" in left["up"]
        np.testing.assert_allclose(
            ReferenceEvaluator(onnx.load(out)).run(None, feed)[0], wanted, atol=0.03 * np.abs(wanted).max()
        )
