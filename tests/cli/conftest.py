"""A command line to run in this process, and a small model to run it on."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxprune.cli import main

SMALL = """agraph (float[N, 3, 8, 8] x) => (float[N, 4] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
    b = Relu (a)
    c = Conv <pads = [1, 1, 1, 1]> (b, w2)
    d = Relu (c)
    e = GlobalAveragePool (d)
    f = Flatten (e)
    y = Gemm (f, w3)
}"""


@dataclass(frozen=True)
class Outcome:
    """What a run of the command left behind."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Command:
    """Runs the command in this process; ``folder`` holds the files of the test."""

    folder: Path
    capture: pytest.CaptureFixture[str]

    def __call__(self, *arguments: object) -> Outcome:
        self.capture.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        seen = self.capture.readouterr()
        return Outcome(stop.value.code, seen.out, seen.err)

    def refuses(self, code: int, words: str, *arguments: object) -> None:
        """The command fails with one sentence that holds ``words``, and no file appears, goes or changes."""
        before = self.files()
        result = self(*arguments)
        assert result.code == code, result
        assert result.out == ""
        assert_one_sentence(result.err)
        assert words in result.err, result.err
        assert self.files() == before

    def files(self) -> dict[str, object]:
        """Every file below the folder, with its bytes, or where it leads."""
        found = sorted(path for path in self.folder.rglob("*") if path.is_symlink() or not path.is_dir())
        return {str(path): path.readlink() if path.is_symlink() else path.read_bytes() for path in found}

    def slim(self, model: Path, *arguments: object) -> Outcome:
        """Slims by half without timing, in steps of one channel."""
        return self("slim", model, "--channels", 0.5, "--round-to", 1, "--no-latency", *arguments)


def assert_one_sentence(text: str) -> None:
    lines = text.strip().splitlines()
    assert len(lines) == 1, text
    assert lines[0].startswith("onnxprune: "), text
    assert "Traceback" not in text
    assert "a bug in onnxprune" not in text


def build(text: str, *, ir_version: int = 8, opset: int = 17, **weights: object) -> onnx.ModelProto:
    """Returns a model from ONNX text; a tuple stands for seeded random weights of that shape."""
    model = parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["": {opset}]>\n{text}')
    generator = np.random.default_rng(0)
    for name, value in weights.items():
        array = generator.standard_normal(value).astype(np.float32) if isinstance(value, tuple) else np.asarray(value)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def small_model() -> onnx.ModelProto:
    return build(SMALL, w1=(32, 3, 3, 3), b1=(32,), w2=(16, 32, 3, 3), w3=(16, 4))


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(tmp_path, capsys)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A network of two convolutions of 32 and 16 channels, and a linear layer."""
    path = tmp_path / "small.onnx"
    onnx.save(small_model(), path)
    return path


def residual_model(blocks: int = 3, width: int = 16) -> onnx.ModelProto:
    """Residual blocks of two convolutions each between a stem and a linear layer, which outputs are called after."""
    generator = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"w0": (width, 3, 3, 3), "k": (width, 4)}
    nodes = ["[stem] a0 = Conv <pads = [1, 1, 1, 1]> (x, w0) r0 = Relu (a0)"]
    for n in range(1, blocks + 1):
        shapes |= {f"u{n}": (width, width, 3, 3), f"v{n}": (width, width, 3, 3)}
        nodes.append(f"[first{n}] a{n} = Conv <pads = [1, 1, 1, 1]> (r{n - 1}, u{n}) b{n} = Relu (a{n})")
        nodes.append(f"[second{n}] c{n} = Conv <pads = [1, 1, 1, 1]> (b{n}, v{n}) s{n} = Add (c{n}, r{n - 1})")
        nodes.append(f"[block{n}] r{n} = Relu (s{n})")
    nodes.append(f"p = GlobalAveragePool (r{blocks}) f = Flatten (p) [head] y = Gemm (f, k)")
    weights = {
        name: (generator.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        for name, shape in shapes.items()
    }
    return build("agraph (float[N, 3, 8, 8] x) => (float[N, 4] y) {" + " ".join(nodes) + "}", **weights)


@pytest.fixture
def residual(tmp_path: Path) -> Path:
    """A network of three residual blocks of 16 channels."""
    path = tmp_path / "residual.onnx"
    onnx.save(residual_model(), path)
    return path


@pytest.fixture
def deep_residual(tmp_path: Path) -> Path:
    """A network of thirty residual blocks of eight channels."""
    path = tmp_path / "deep.onnx"
    onnx.save(residual_model(30, 8), path)
    return path


@pytest.fixture
def unlabelled(tmp_path: Path) -> Path:
    """Forty samples for the networks here."""
    path = tmp_path / "unlabelled.npz"
    np.savez(path, x=np.random.default_rng(0).standard_normal((40, 3, 8, 8), np.float32))
    return path


@pytest.fixture
def report_of(command: Command) -> Callable[..., dict]:
    """Slims without timing, in steps of four channels, and returns the JSON report; ``code`` is the expected one."""

    def run(model: Path, *options: object, code: int = 0) -> dict:
        found = command("slim", model, "--round-to", 4, "--no-latency", "--json", "--force", *options)
        assert found.code == code, found
        return json.loads(found.out)

    return run


@pytest.fixture
def replay(command: Command) -> Callable[..., bytes]:
    """Applies a stored plan without timing, and returns the bytes of the result."""

    def run(model: Path, plan: Path, *options: object) -> bytes:
        out = plan.with_name("replayed.onnx")
        found = command("slim", model, "--plan", plan, "--no-latency", "-q", "-o", out, "--force", *options)
        assert found.code == 0, found
        return out.read_bytes()

    return run


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Builds a model from text and saves it."""

    def write(text: str, name: str = "model.onnx", **options: object) -> Path:
        path = tmp_path / name
        onnx.save(build(text, **options), path)
        return path

    return write


@pytest.fixture
def one_sentence() -> Callable[[str], None]:
    return assert_one_sentence
