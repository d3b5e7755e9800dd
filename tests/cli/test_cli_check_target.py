"""``check --target``: what the command line says, writes and ends with."""

import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxprune.commands.check import check
from onnxprune.errors import UsageError

PAIRED = """agraph (float[1, 16, 8, 8] x) => (float y) {
    q = QuantizeLinear (x, s, z)
    d = DequantizeLinear (q, s, z)
    r = DequantizeLinear <axis = 0> (w, t, o)
    c = Conv (d, r)
    y = Relu (c)
}"""


@pytest.fixture
def paired(tmp_path):
    """A file that keeps to the rules of one target, with a zero point as given."""

    def write(zero=0, weights=None):
        model = parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {PAIRED}')
        stored = {
            "s": np.float32(0.02), "z": np.int8(zero), "t": np.full(16, 0.01, np.float32), "o": np.zeros(16, np.int8),
            "w": np.full((16, 16, 3, 3), 3, np.int8) if weights is None else weights,
        }  # fmt: skip
        model.graph.initializer.extend(
            numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items()
        )
        onnx.save(model, tmp_path / "paired.onnx")
        return tmp_path / "paired.onnx"

    return write


def test_a_file_that_keeps_to_the_rules(command, paired):
    result = command("check", paired(), "--target", "tensorrt")
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines()[-1] == "no rule of tensorrt is broken"
    assert command("check", paired(), "--target", "tensorrt", "-q").out == ""


def test_a_broken_rule_ends_with_1_and_says_why_and_how(command, paired):
    result = command("check", paired(zero=3), "--target", "tensorrt")
    assert (result.code, result.err) == (1, "")
    assert "tensorrt/zero-point at 1 node\n" in result.out
    assert "  why: integers are symmetric in TensorRT" in result.out
    assert "  fix: calibrate symmetrically" in result.out
    assert "1 rule of tensorrt is broken, at 1 node" in result.out
    assert command("check", paired(zero=3), "--target", "generic").code == 0


def test_targets_disagree(command, paired):
    result = command("check", paired(), "--target", "ort-cpu")
    assert result.code == 1
    assert "ort-cpu/activation-type" in result.out
    assert "ort-cpu/result at 1 node" in result.out
    assert "ort-cuda/activations at 1 node" in command("check", paired(), "--target", "ort-cuda").out


def test_a_float_file_is_said_to_be_one(command, small):
    for target in ("ort-cpu", "ort-cuda", "tensorrt", "generic"):
        result = command("check", small, "--target", target)
        assert result.code == 0
        assert "nothing is quantized" in result.out


def test_target_and_pattern_together(command, paired):
    weights = np.full((16, 16, 3, 3), 3, np.int8)
    weights[:, ::2] = 0
    both = ("--target", "tensorrt", "--nm", "2:4")
    kept = command("check", paired(weights=weights), *both)
    assert "no rule of tensorrt is broken" in kept.out
    assert kept.code == 0
    assert command("check", paired(zero=3, weights=weights), *both).code == 1
    report = json.loads(command("check", paired(), *both, "--json").out)
    assert report["options"] == {"nm": "2:4", "nm_min_channels": 1, "target": "tensorrt"}
    assert report["sparsity"]["pattern"] == "2:4"


def test_reports_hold_the_findings(command, paired, tmp_path):
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    files = [tmp_path / f"report{suffix}" for suffix in (".json", ".md", ".html")]
    options = [item for file in files for item in ("--report", file)]
    result = command("check", paired(zero=3), "--target", "tensorrt", "--json", *options)
    report = json.loads(result.out)
    assert report == json.loads(files[0].read_text())
    assert report["options"] == {"target": "tensorrt"}
    assert report["sparsity"]["pattern"] is None
    (row,) = report["findings"]
    assert (row["rule"], row["node"], row["level"]) == ("tensorrt/zero-point", "q", "violation")
    for file in files[1:]:
        text = file.read_text().replace("\N{NO-BREAK SPACE}", " ")
        assert "1 rule of tensorrt is broken, at 1 node" in text
        assert "tensorrt/zero-point" in text
        assert "Held to the pattern" not in text


def test_what_is_wrong_is_said_in_one_sentence(command, paired):
    command.refuses(2, "or --target", "check", paired())
    command.refuses(2, "--target", "check", paired(), "--target", "tpu")
    with pytest.raises(UsageError, match="no target 'tpu'"):
        check(paired(), target="tpu")
