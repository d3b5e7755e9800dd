from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

from onnxprune.errors import ModelError, UsageError
from onnxprune.runtime import profile as module
from onnxprune.runtime.profile import profile
from onnxprune.runtime.session import SessionOptions

OPTIONS = SessionOptions(threads=1, optimize=False)


@pytest.fixture
def model() -> onnx.ModelProto:
    return parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
        agraph (float[128, 128] x) => (float[128, 128] y) {
            [heavy] a = MatMul (x, x)
            [light_kernel_time] b = Neg (a)
            y = Relu (b)
        }""")


FEEDS = {"x": np.eye(128, dtype=np.float32)}


def test_every_node_has_its_time(model: onnx.ModelProto):
    result = profile(model, FEEDS, OPTIONS, runs=3)
    assert set(result) == {"heavy", "light_kernel_time", "Relu_2"}
    assert all(0 <= value < 1000 for value in result.values())
    assert result["heavy"] > 0


def test_nothing_is_left_behind(model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    profile(model, FEEDS, OPTIONS, runs=1)
    with pytest.raises(ModelError):
        profile(model, {}, OPTIONS, runs=1)
    assert list(tmp_path.iterdir()) == []


def test_the_first_run_is_left_out_and_kernels_are_summed():
    def node(name: str, start: int, duration: int) -> dict[str, object]:
        return {"cat": "Node", "name": name, "ts": start, "dur": duration}

    events = [
        node("a_kernel_time", 0, 5000),
        {"cat": "Session", "name": "model_run", "ts": 0, "dur": 6000},
        node("a_kernel_time", 7000, 100),
        node("a_kernel_time", 7200, 300),
        node("a_fence_before", 7600, 300),
        {"cat": "Session", "name": "model_run", "ts": 7000, "dur": 1000},
        node("a_kernel_time", 8000, 400),
        node("b_kernel_time", 8500, 200),
        {"cat": "Session", "name": "model_run", "ts": 8000, "dur": 1000},
    ]
    assert module._milliseconds(events, 2) == {"a": pytest.approx(0.4), "b": pytest.approx(0.1)}


def test_runs_must_be_positive(model: onnx.ModelProto):
    with pytest.raises(UsageError, match="at least 1"):
        profile(model, FEEDS, OPTIONS, runs=0)
