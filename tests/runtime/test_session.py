import gc
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

from onnxprune.errors import ModelError, ProviderError, UnsupportedOpError, UsageError
from onnxprune.runtime import session as module
from onnxprune.runtime.session import InputSpec, SessionOptions, environment, input_specs, open_session

HEAD = '<ir_version: 8, opset_import: ["": 17, "own": 1]>\n'
TEXT = "agraph (float[N, 3] x, int64 rate, float16[?, 2] h) => (float[N, 3] y, int64 r) {y = Relu (x) r = Neg (rate)}"
FEEDS = {
    "x": np.array([[-1, 0, 2]], np.float32),
    "rate": np.array(5),
    "h": np.ones((1, 2), np.float16),
}


def model_of(text: str = TEXT) -> onnx.ModelProto:
    return parser.parse_model(HEAD + text)


def relu(kind: str = "float", operator: str = "Relu") -> onnx.ModelProto:
    return model_of(f"agraph ({kind}[N, 3] x) => ({kind}[N, 3] y) {{ y = {operator} (x) }}")


def test_a_session_says_what_it_is():
    session = open_session(model_of(), SessionOptions(threads=1))
    assert session.inputs == (
        InputSpec("x", np.dtype(np.float32), ("N", 3)),
        InputSpec("rate", np.dtype(np.int64), ()),
        InputSpec("h", np.dtype(np.float16), (None, 2)),
    )
    assert session.outputs == ("y", "r")
    assert session.provider == "CPUExecutionProvider"
    assert session.threads == 1


def test_threads_default_to_what_is_available():
    session = open_session(relu())
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert session.threads == available


def test_run_returns_outputs_by_name():
    session = open_session(model_of(), SessionOptions(threads=1))
    result = session.run(FEEDS)
    assert list(result) == ["y", "r"]
    np.testing.assert_array_equal(result["y"], [[0, 0, 2]])
    assert list(session.run(FEEDS, ["r"])) == ["r"]
    assert session.run(FEEDS, ["r"])["r"] == -5


def test_a_path_opens_too(tmp_path: Path):
    onnx.save(relu(), tmp_path / "relu.onnx")
    for path in (tmp_path / "relu.onnx", str(tmp_path / "relu.onnx")):
        session = open_session(path, SessionOptions(threads=1))
        np.testing.assert_array_equal(session.run({"x": FEEDS["x"]})["y"], [[0, 0, 2]])


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"x": FEEDS["x"]}, "rate"),
        (FEEDS | {"x": np.ones((1, 4), np.float32)}, r"index: 1 Got: 4 Expected: 3\)"),
        (FEEDS | {"x": np.ones((1, 3))}, "double"),
        (FEEDS | {"other": np.ones(1)}, "other"),
    ],
)
def test_a_run_that_fails_is_a_model_error(feeds: dict[str, np.ndarray], message: str):
    session = open_session(model_of(), SessionOptions(threads=1))
    with pytest.raises(ModelError, match=message) as caught:
        session.run(feeds)
    assert "\n" not in str(caught.value)
    assert "[ONNXRuntimeError]" not in str(caught.value)
    with pytest.raises(ModelError, match=message):
        session.prepare(feeds)


def test_a_failing_kernel_prints_nothing_and_hides_source_positions(capfd: pytest.CaptureFixture[str]):
    session = open_session(
        model_of("agraph (float[A] x, float[B] z) => (float[C] y) { y = Add (x, z) }"), SessionOptions(threads=1)
    )
    with pytest.raises(ModelError, match="broadcast") as caught:
        session.run({"x": np.ones(2, np.float32), "z": np.ones(3, np.float32)})
    assert ".h:" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("operator", "name"), [("Missing", "Missing"), ("own.Thing", "own:Thing")])
def test_missing_operators_are_named(operator: str, name: str):
    with pytest.raises(UnsupportedOpError, match=f"does not implement {name} "):
        open_session(relu(operator=operator))


def test_an_operator_without_kernel_is_named():
    with pytest.raises(UnsupportedOpError, match="does not implement Sinh "):
        open_session(relu("double", "Sinh"))


@pytest.mark.parametrize(
    ("message", "name"),
    [
        ("Could not find an implementation for DeformConv(19) node with name 'd'", "DeformConv"),
        ("Could not find an implementation for the node node_1:Optional(15)", "Optional"),
    ],
)
def test_wordings_of_missing_kernels(message: str, name: str):
    error = module._load_error(RuntimeError(f"[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : {message}"))
    assert isinstance(error, UnsupportedOpError)
    assert f"implement {name} " in str(error)


def test_models_that_do_not_load(tmp_path: Path):
    (tmp_path / "bad.onnx").write_bytes(b"\xff nothing")
    with pytest.raises(ModelError, match="Protobuf parsing failed"):
        open_session(tmp_path / "bad.onnx")
    with pytest.raises(ModelError, match=r"gone\.onnx"):
        open_session(tmp_path / "gone.onnx")
    with pytest.raises(ModelError, match="uint8") as caught:
        open_session(relu("uint8"))
    assert not isinstance(caught.value, UnsupportedOpError)


@pytest.mark.parametrize(
    "text",
    [
        "agraph (seq(float[N]) x) => (seq(float[N]) y) { y = Identity (x) }",
        "agraph (string[N] x) => (string[N] y) { y = Identity (x) }",
    ],
)
def test_inputs_that_are_no_tensors_of_numbers(text: str):
    with pytest.raises(ModelError, match=r"'x' has the type .* not supported"):
        open_session(model_of(text))


def test_options_are_checked():
    with pytest.raises(UsageError, match="'tpu' is unknown"):
        open_session(relu(), SessionOptions(provider="tpu"))
    with pytest.raises(UsageError, match="threads is 0"):
        open_session(relu(), SessionOptions(threads=0))
    with pytest.raises(UsageError, match="'tpu' is unknown"):
        environment(SessionOptions(provider="tpu"))


class WithoutCuda:
    """What ONNX Runtime does on a machine without a GPU: it lists CUDA and falls back silently."""

    def __init__(self, *args: object, **options: object) -> None:
        assert options["enable_fallback"] == 0

    def get_providers(self) -> list[str]:
        return ["CPUExecutionProvider"]


def test_a_silent_fallback_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        module.ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    monkeypatch.setattr(module.ort, "InferenceSession", WithoutCuda)
    with pytest.raises(ProviderError, match="could not start CUDAExecutionProvider") as caught:
        open_session(relu(), SessionOptions(provider="cuda", threads=1))
    assert caught.value.exit_code == 5


def test_a_build_without_cuda_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module.ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ProviderError, match="has no CUDAExecutionProvider"):
        open_session(relu(), SessionOptions(provider="cuda", threads=1))


def test_cuda_runs_or_says_so_without_noise(capfd: pytest.CaptureFixture[str]):
    said = ""
    try:
        session = open_session(relu(), SessionOptions(provider="cuda", threads=1))
        session.prepare({"x": FEEDS["x"]})()
        assert session.provider == "CUDAExecutionProvider"
    except ProviderError as error:
        said = str(error)
    assert said == "" or "--ep cpu" in said
    assert capfd.readouterr() == ("", "")


def weighted() -> onnx.ModelProto:
    model = model_of("agraph (float[N, 32] x) => (float[N, 32] y) { y = MatMul (x, w) }")
    model.graph.initializer.append(onnx.numpy_helper.from_array(2 * np.eye(32, dtype=np.float32), "w"))
    return model


def test_a_large_model_goes_through_a_file_and_stays_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(module, "_INLINE_BYTES", 4096)
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path))
    model = weighted()
    before = model.SerializeToString()
    session = open_session(model, SessionOptions(threads=1))
    names = [path.name for folder in tmp_path.iterdir() for path in sorted(folder.iterdir())]
    assert len(names) == 2
    assert names[0].endswith(".data")
    assert names[1] == "model.onnx"
    x = np.ones((1, 32), np.float32)
    np.testing.assert_array_equal(session.run({"x": x})["y"], 2 * x)
    assert model.SerializeToString() == before
    del session
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_a_large_model_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(module, "_INLINE_BYTES", 4096)
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path))
    model = weighted()
    model.graph.node[0].op_type = "Missing"
    with pytest.raises(UnsupportedOpError):
        open_session(model)
    assert list(tmp_path.iterdir()) == []


def test_a_small_model_needs_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(module.tempfile, "mkdtemp", lambda **_: pytest.fail("wrote a file"))
    open_session(weighted(), SessionOptions(threads=1))


def test_optimizations_can_be_switched_off(tmp_path: Path):
    for optimize, level in ((True, "ORT_ENABLE_ALL"), (False, "ORT_DISABLE_ALL")):
        native = module._native_options(SessionOptions(optimize=optimize), 3)
        assert native.graph_optimization_level.name == level
        assert native.intra_op_num_threads == 3
        assert native.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_environment_names_versions_and_hardware():
    result = environment(SessionOptions(threads=3))
    assert set(result) == {"onnxprune", "onnx", "onnxruntime", "provider", "cpu", "threads"}
    assert result["onnx"] == onnx.__version__
    assert result["provider"] == "CPUExecutionProvider"
    assert result["threads"] == 3
    assert result["cpu"]
    assert module._version("no-such-package-anywhere") == "0"


def test_names_that_are_no_text_are_a_model_error(tmp_path: Path):
    content = model_of("agraph (float[1, 3] name) => (float[1, 3] y) { y = Relu (name) }").SerializeToString()
    path = tmp_path / "model.onnx"
    path.write_bytes(content.replace(b"name", b"na\xff\xfe"))
    with pytest.raises(ModelError):
        open_session(path)


@pytest.mark.parametrize(
    "inputs",
    [
        "float[N, 3, 8, 8] x",
        "float16[1, 3] x, int64[batch, T] ids, bool[4] mask",
        "double[] x, int8[2, N] y, uint8[N] z",
        "float[?, 3] x, int32[N, M] y",
    ],
)
def test_inputs_are_known_without_a_session(inputs):
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> a ({inputs}) => () {{}}')
    for value in model.graph.input:
        model.graph.node.append(onnx.helper.make_node("Identity", [value.name], [f"{value.name}_out"]))
        model.graph.output.add(name=f"{value.name}_out").type.CopyFrom(value.type)
    assert input_specs(model) == open_session(model, SessionOptions(threads=1)).inputs


def test_stored_tensors_are_no_inputs_and_sequences_are_refused_without_a_session():
    model = weighted()
    model.graph.input.add().CopyFrom(onnx.helper.make_tensor_value_info(model.graph.initializer[0].name, 1, [1]))
    assert [spec.name for spec in input_specs(model)] == [value.name for value in weighted().graph.input]
    sequence = parser.parse_model('<ir_version: 8, opset_import: ["": 17]> a (seq(float[1]) s) => () {}')
    unknown = relu()
    unknown.graph.input[0].type.tensor_type.elem_type = 65
    for bad in (sequence, relu("string", "Identity"), unknown):
        with pytest.raises(ModelError, match="which is not supported: give the model inputs that are tensors"):
            input_specs(bad)
