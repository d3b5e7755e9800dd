"""``quantize`` and ``slim --int8``: files, reports, and the code that says whether the result is better."""

import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxprune.runtime.session import SessionOptions, open_session

BITS = "--reduce-range"  # every machine computes them right


def stored(path):
    return {one.name: numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}


def operators(path):
    return [node.op_type for node in onnx.load(path).graph.node]


@pytest.fixture
def quantized(command, unlabelled):
    """Quantizes without timing, and returns the JSON report; ``code`` is the expected one."""

    def run(model, *options, code=0, data=unlabelled, name="quantize"):
        source = () if data is None else ("--data", data)
        found = command(name, model, *source, "--no-latency", "--json", "--force", BITS, *options)
        assert found.code == code, found
        assert found.err == ""
        return json.loads(found.out)

    return run


@pytest.fixture
def tiny(save):
    """A network of so few weights that what Q/DQ add weighs more."""
    return save("agraph (float[N, 3, 8, 8] x) => (float y) { a = Conv (x, w) y = Relu (a) }", w=(4, 3, 1, 1))


def test_a_file_and_its_report(quantized, residual, tmp_path):
    out, before = tmp_path / "out.onnx", residual.read_bytes()
    report = quantized(residual, "-o", out)
    assert residual.read_bytes() == before
    onnx.checker.check_model(onnx.load(out), full_check=True)
    found = report["quantization"]
    assert set(found) == {"target", "quantized", "eligible", "left", "fusion", "form"}
    assert (found["target"], found["form"], found["quantized"], found["eligible"]) == ("ort-cpu", "int8", 8, 8)
    assert found["left"] == []
    assert found["fusion"] == {"fused": 8, "eligible": 8}
    assert report["ratios"]["bytes"] < 0.5
    assert report["after"]["bytes"] == out.stat().st_size
    assert report["fidelity"]["sqnr_db"] > 25
    assert report["before"]["macs"] == report["after"]["macs"]
    assert report["after"]["parameters"] >= report["before"]["parameters"]
    assert report["warnings"] == []
    assert {"QuantizeLinear", "DequantizeLinear"} < set(operators(out))


def test_both_commands_write_the_same(quantized, residual, tmp_path):
    one, two = tmp_path / "one.onnx", tmp_path / "two.onnx"
    quantized(residual, "-o", one)
    quantized(residual, "--int8", "-o", two, name="slim")
    assert one.read_bytes() == two.read_bytes()


def test_a_file_that_is_not_smaller_ends_with_1_and_says_why(command, quantized, tiny, tmp_path):
    out = tmp_path / "out.onnx"
    report = quantized(tiny, "-o", out, code=1)
    assert out.exists()
    assert [note for note in report["warnings"] if "is not smaller, its weights are few" in note]
    assert report["ratios"]["bytes"] >= 1
    out.unlink()
    result = command("quantize", tiny, "--data", tmp_path / "unlabelled.npz", "--no-latency", "-o", out, "--strict")
    assert result.code == 1
    assert "--strict was given: nothing was written" in result.err
    assert not out.exists()


def test_what_is_left_is_named(quantized, save, tmp_path):
    model = save("""agraph (float[N, 3, 8, 8] x) => (float y) {
        [stem] a = Conv (x, w) r = Relu (a) [up] b = ConvTranspose (r, u) s = Relu (b) [head] y = Conv (s, v) }""",
        w=(32, 3, 3, 3), u=(32, 32, 3, 3), v=(32, 32, 3, 3))  # fmt: skip
    found = quantized(model)["quantization"]
    assert (found["quantized"], found["eligible"], [one["node"] for one in found["left"]]) == (2, 3, ["up"])
    assert "has no integer kernel" in found["left"][0]["reason"]
    assert found["fusion"] == {"fused": 2, "eligible": 2}


def test_random_samples_only_on_request(command, quantized, residual):
    command.refuses(2, "--allow-random", "quantize", residual, "--no-latency")
    report = quantized(residual, "--allow-random", data=None)
    assert report["quantization"]["quantized"] == 8
    assert any("random" in note for note in report["warnings"])


@pytest.mark.parametrize(
    ("code", "words", "options"),
    [
        (2, "has no int8 convolutions", ("--target", "ort-cuda")),
        (2, "no way 'luck' to choose ranges", ("--calibration", "luck")),
        (2, "matches no", ("--exclude", "nothing*")),
        (4, "nothing can be quantized for ort-cpu, it was left out by --include", ("--exclude", "*")),
        (2, "--target", ("--target", "tpu")),
    ],
)
def test_what_makes_no_sense_is_said_in_one_sentence(command, residual, unlabelled, code, words, options):
    command.refuses(code, words, "quantize", residual, "--data", unlabelled, "--no-latency", *options)


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy", "mse", "auto"])
def test_every_method_of_ranges(quantized, small, method):
    assert quantized(small, "--calibration", method)["fidelity"]["sqnr_db"] > 15


@pytest.mark.parametrize(
    ("options", "left", "code"),
    [
        (("--exclude", "stem"), {"stem"}, 0),
        (("--exclude", "u1", "--exclude", "second?"), {"first1", "second1", "second2", "second3"}, 0),
        (("--include", "op:Gemm"), {"stem", "first1", "second1", "first2", "second2", "first3", "second3"}, 1),
    ],
)
def test_selectors(quantized, residual, options, left, code, tmp_path):
    found = quantized(residual, *options, "-o", tmp_path / "out.onnx", code=code)["quantization"]
    reasons = {one["node"]: one["reason"] for one in found["left"]}
    assert {node for node, why in reasons.items() if "left out by --include or --exclude" in why} == left
    assert found["quantized"] == 8 - len(left)


def test_selectors_of_weights_that_are_moved_or_in_nodes(quantized, save, tmp_path):
    """Names are those of the file, also where weights reach their operator through other nodes."""
    model = save(
        """agraph (float[N, 32] x) => (float y) {
        t = Transpose (w) [one] a = MatMul (x, t) r = Relu (a) [two] y = MatMul (r, v) }""",
        w=(48, 32),
        v=(48, 64),
    )
    data = tmp_path / "rows.npz"
    np.savez(data, x=np.random.default_rng(0).standard_normal((80, 32), np.float32))
    for selector in ("w", "one"):
        found = quantized(model, "--include", selector, data=data)["quantization"]
        assert [one["node"] for one in found["left"] if "--include" in one["reason"]] == ["two"]
        assert found["quantized"] == 1


def test_channels_then_integers(quantized, small, tmp_path):
    out = tmp_path / "out.onnx"
    report = quantized(small, "--channels", 0.5, "--round-to", 4, "--int8", "-o", out, name="slim")
    assert report["proof"]["passed"]
    assert report["after"]["macs"] < 0.6 * report["before"]["macs"]
    assert report["quantization"]["quantized"] == report["quantization"]["eligible"] == 3
    assert stored(out)["w1_quantized"].shape[0] == 16
    assert not any("nothing was removed" in note for note in report["warnings"])


def test_zeros_then_integers(command, quantized, residual, tmp_path):
    plain, out = tmp_path / "plain.onnx", tmp_path / "out.onnx"
    options = ("--nm", "2:4", "--store-sparse", "never")
    quantized(residual, *options, "-o", plain, name="slim")
    report = quantized(residual, *options, "--int8", "-o", out, name="slim")
    assert report["quantization"]["quantized"] == 8
    assert command("check", out, "--nm", "2:4", "-q").code == 0
    before, after = stored(plain), stored(out)
    for name in ("u1", "v3", "k"):
        assert not after[f"{name}_quantized"][before[name] == 0].any()
        assert (after[f"{name}_quantized"] == 0).mean() >= 0.5
    assert report["sparsity"]["fraction"] >= 0.5
    assert report["after"]["nonzero_parameters"] < 0.6 * report["before"]["nonzero_parameters"]


def test_blocks_then_integers(quantized, residual, tmp_path):
    report = quantized(residual, "--layers", 1, "--int8", "-o", tmp_path / "out.onnx", name="slim")
    assert report["quantization"]["quantized"] == 6
    assert report["after"]["macs"] < report["before"]["macs"]


def test_integers_for_another_runtime_are_not_timed(command, residual, unlabelled, tmp_path):
    out = tmp_path / "out.onnx"
    found = command("quantize", residual, "--data", unlabelled, "--target", "tensorrt", "--json", "-o", out)
    assert found.code == 0, found
    report = json.loads(found.out)
    assert report["after"]["latency_ms"] is None or report["after"]["latency_ms"]["median"] is None
    assert report["ratios"]["latency"]["median"] is None
    assert report["fidelity"]["sqnr_db"] > 25
    assert report["quantization"]["fusion"]["fused"] is None
    assert report["quantization"]["target"] == "tensorrt"
    held = stored(out)
    assert all(not values.any() for name, values in held.items() if name.endswith("_zero_point"))


def test_nothing_is_written_on_a_dry_run(quantized, residual, tmp_path):
    report = quantized(residual, "--int8", "--dry-run", "-o", tmp_path / "out.onnx", name="slim")
    assert report["quantization"]["target"] is None
    assert not (tmp_path / "out.onnx").exists()


def test_a_result_that_a_convolution_writes(quantized, save, tmp_path, unlabelled):
    """The runtime needs a Q behind it, and the caller its name."""
    model = save("agraph (float[N, 3, 8, 8] x) => (float y) { a = Conv (x, w) r = Relu (a) y = Conv (r, v) }",
                 w=(32, 3, 3, 3), v=(16, 32, 3, 3))  # fmt: skip
    out = tmp_path / "out.onnx"
    report = quantized(model, "-o", out)
    assert report["quantization"]["fusion"] == {"fused": 2, "eligible": 2}
    assert report["fidelity"]["sqnr_db"] > 25
    feeds = {"x": np.load(unlabelled)["x"]}
    assert list(open_session(onnx.load(out), SessionOptions(threads=1)).run(feeds)) == ["y"]


def test_scales_of_float16_are_not_for_the_cpu(quantized, residual, tmp_path):
    report = quantized(residual, "-o", tmp_path / "out.onnx", "--fp16")
    assert report["quantization"]["fusion"] == {"fused": 0, "eligible": 8}
    assert any("no integer kernels with scales of float16" in text for text in report["warnings"])
    other = quantized(residual, "-o", tmp_path / "out.onnx", "--fp16", "--target", "tensorrt")
    assert not any("scales of float16" in text for text in other["warnings"])
