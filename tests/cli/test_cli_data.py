"""Sources of samples and --preprocess on the command line."""

import dataclasses
import json
import sys

import numpy as np
import onnx
import pytest
from PIL import Image

from onnxprune.commands.inputs import choose_inputs, classes_of
from onnxprune.data.preprocess import parse_preprocess
from onnxprune.slim import Recipe

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 3, 8, 8), dtype=np.uint8)
IMAGENET = "mean=0.485,0.456,0.406;std=0.229,0.224,0.225;scale=1/255"
SCRIPT = """import numpy as np
print("noise on stdout")
def samples():
    for seed in range(10**9):
        yield {"x": np.random.default_rng(seed).random((4, 3, 8, 8), np.float32), "labels": np.arange(4)}
def broken():
    yield {"x": np.ones((1, 3, 8, 8), np.float32)}
    raise ValueError("no more")
def stopped():
    raise KeyboardInterrupt
"""


@pytest.fixture
def images(tmp_path):
    for number, pixels in enumerate(PIXELS):
        folder = tmp_path / "images" / "abcd"[number % 4]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.transpose(1, 2, 0)).save(folder / f"{number}.png")
    return tmp_path / "images"


@pytest.fixture
def script(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path / "script.py"


def compared(command, small, *arguments):
    result = command("compare", small, small, "--no-latency", "--json", *arguments)
    assert (result.code, result.err.replace("noise on stdout\n", "")) == (0, ""), result
    return json.loads(result.out)


def test_a_folder_of_images(command, small, images):
    report = compared(command, small, "--data", images, "--preprocess", IMAGENET)
    assert report["before"]["metrics"].keys() == {"top1"}
    assert report["options"]["samples"] == 20
    assert report["warnings"] == []
    arrays = command.folder / "d.npz"
    np.savez(arrays, images=PIXELS, labels=np.arange(20) % 4)
    again = compared(command, small, "--data", arrays, "--preprocess", IMAGENET)
    assert again["before"]["metrics"] == report["before"]["metrics"]
    result = command.slim(
        small, "--data", images, "--preprocess", IMAGENET, "-o", command.folder / "out.onnx", "--json"
    )
    options = json.loads(result.out)["options"]
    assert options["data"] == str(images)
    assert options["preprocess"].startswith("mean=0.485,0.456,0.406;std=0.229,0.224,0.225;scale=0.0039")


def test_images_without_preprocessing_are_warned_of(command, small, images):
    words = f"'x' holds integers from {PIXELS.min()} to {PIXELS.max()}"
    assert [words in text for text in compared(command, small, "--data", images)["warnings"]] == [True]
    result = command.slim(small, "--data", images, "--eval", images, "-o", command.folder / "out.onnx", "--json")
    assert [words in text for text in json.loads(result.out)["warnings"]].count(True) == 1
    result = command("bench", small, small, "--data", images, "--seconds", 0.01, "--json")
    assert len(json.loads(result.out)["warnings"]) == 1


def test_the_model_says_whether_it_has_classes(save, small):
    assert classes_of(onnx.load(small)) == 4
    for output, classes in (("float[N, C] y", 0), ("float[N, 2, 3] y", None), ("int64[N, 2] y", None)):
        model = save(f"agraph ({output.replace(' y', ' x')}) => ({output}) {{ y = Identity (x) }}")
        assert classes_of(onnx.load(model)) == classes


def test_a_script(command, small, script):
    report = compared(command, small, "--data", script, "--samples", 10)
    assert report["options"]["samples"] == 10
    result = command.slim(small, "--data", f"{script}:samples", "--samples", 8, "-o", command.folder / "out.onnx")
    assert (result.code, result.err) == (0, "noise on stdout\n")
    assert "noise on stdout" not in result.out


def test_a_script_that_fails(command, small, script, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    script.write_text(SCRIPT.replace('print("noise on stdout")\n', ""))
    for words, name in (("line 7: ValueError: no more", "broken"), ("no function 'none'", "none")):
        command.refuses(3, words, "compare", small, small, "--data", f"{script}:{name}")
        command.refuses(3, words, "slim", small, "--channels", 0.5, "--eval", f"{script}:{name}")
    command.refuses(130, "interrupted", "slim", small, "--channels", 0.5, "--data", f"{script}:stopped")


def test_what_is_read_is_never_written(command, small, script, tmp_path):
    (tmp_path / "p.yaml").write_text("scale: 1")
    for path in (script, tmp_path / "p.yaml"):
        command.refuses(
            2, "is an input", "slim", small, "--channels", 0.5, "--data", f"{script}:samples", "--preprocess",
            tmp_path / "p.yaml", "-o", path, "--force",
        )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("mean", 2, "'mean' is not key=value"),
        ("q.mean=1", 2, "the inputs are 'x'"),
        ("std=0", 2, "std='0'"),
        ("none.yaml", 2, "cannot be read"),
        ("mean=1,2", 3, "no channel axis"),
        ("dtype=uint8;scale=1000", 3, "beyond the range of uint8"),
    ],
)
def test_preprocessing_that_cannot_be(command, small, tmp_path, text, code, words):
    np.savez(tmp_path / "d.npz", x=PIXELS)
    for arguments in (("slim", small, "--channels", 0.5), ("compare", small, small), ("bench", small)):
        command.refuses(code, words, *arguments, "--data", tmp_path / "d.npz", "--preprocess", text)


def test_preprocessing_needs_samples(command, small):
    for arguments in (("slim", small, "--channels", 0.5), ("bench", small)):
        command.refuses(2, "--preprocess needs samples", *arguments, "--preprocess", "mean=1")


def test_the_draw_follows_the_seed(command, small, tmp_path):
    np.savez(tmp_path / "d.npz", x=PIXELS, labels=np.arange(20) % 4)
    runs = [
        compared(command, small, "--data", tmp_path / "d.npz", "--preprocess", "scale=1/255", "--samples", 7,
                 "--seed", seed)["before"]["metrics"]["top1"]
        for seed in (0, 0, 1, 2, 3, 4, 5)
    ]  # fmt: skip
    assert runs[0] == runs[1]
    assert len(set(runs)) > 1


def test_metrics_on_random_inputs_only_where_they_are_allowed(command, small):
    refused = ("slim", small, "--channels", 0.5, "--no-latency", "--metric", "cosine")
    command.refuses(2, "or --allow-random for random inputs", *refused)
    result = command.slim(small, "--metric", "cosine", "--allow-random", "--json")
    assert result.code == 0, result
    report = json.loads(result.out)
    assert report["after"]["metrics"].keys() == {"cosine"}
    assert any("random inputs" in text and "metrics" in text for text in report["warnings"])
    assert report["options"]["allow_random"] is True
    again = command.slim(small, "--metric", "cosine", "--allow-random", "--json", "--force")
    assert json.loads(again.out)["after"]["metrics"] == report["after"]["metrics"]
    command.refuses(2, "labels", *refused[:-1], "top1", "--allow-random", "-o", command.folder / "top1.onnx")


def test_no_metrics_without_samples(command, small):
    report = json.loads(command.slim(small, "--json").out)
    assert report["after"]["metrics"] == {}
    assert report["fidelity"]["cosine"] is None


def test_random_verdicts_in_batches_that_run(save):
    free = save("agraph (float[N, 4] x) => (float[N, 2] y) { y = MatMul (x, w) }", "a.onnx", w=(4, 2))
    one = save(
        "agraph (float[N, 4] x) => (float[1, 2] y) { a = Reshape (x, s) y = MatMul (a, w) }", "b.onnx",
        w=(4, 2), s=np.array([1, 4]),
    )  # fmt: skip
    for path, fixed in ((free, None), (one, 1)):
        assert choose_inputs(onnx.load(path), Recipe(channels=0.5)).verdict is None
        verdict = choose_inputs(onnx.load(path), Recipe(channels=0.5, allow_random=True)).verdict
        assert (verdict.count, verdict.fixed_batch, verdict.random) == (32, fixed, True)


def test_inputs_are_drawn_and_prepared(small):
    recipe = Recipe(
        channels=0.5, data=PIXELS, eval=PIXELS[:3], samples=8, preprocess=parse_preprocess("scale=1/255"), seed=3
    )
    found = choose_inputs(onnx.load(small), recipe)
    drawn = np.random.default_rng(3).choice(20, 8, replace=False)
    np.testing.assert_allclose(found.proof[0]["x"], PIXELS[drawn] / 255, rtol=1e-6)
    np.testing.assert_allclose(found.verdict.arrays["x"], PIXELS[:3] / 255, rtol=1e-6)
    assert found.notes == ()
    held_out = choose_inputs(onnx.load(small), dataclasses.replace(recipe, eval=None)).verdict
    np.testing.assert_allclose(held_out.arrays["x"], PIXELS[drawn[6:]] / 255, rtol=1e-6)


def test_data_is_preferred_to_random_inputs(command, small, tmp_path):
    np.savez(tmp_path / "d.npz", x=PIXELS, labels=np.arange(20) % 4)
    result = command.slim(
        small, "--allow-random", "--data", tmp_path / "d.npz", "--preprocess", "scale=1/255", "--json"
    )
    report = json.loads(result.out)
    assert report["after"]["metrics"].keys() == {"top1"}
    assert not any("random" in text for text in report["warnings"])
