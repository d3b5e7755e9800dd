"""Samples that do not fit: exit 3, one sentence, nothing written."""

import numpy as np
import pytest

GOOD = {"x": np.ones((10, 3, 8, 8), np.float32)}


def refused(command, small, words, data, code=3):
    slim = ("slim", small, "--channels", 0.5, "--no-latency")
    for arguments in ((*slim, "--data", data), (*slim, "--eval", data), ("compare", small, small, "--data", data),
                      ("bench", small, "--data", data, "--seconds", 0.01)):  # fmt: skip
        command.refuses(code, words, *arguments)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"image": GOOD["x"], "mask": GOOD["x"]}, "no array for 'x'"),
        ({**GOOD, "z": GOOD["x"]}, "unexpected 'z'"),
        ({}, "no array for 'x'"),
        ({"x": np.ones((10, 3, 9, 8), np.float32)}, "3x9x8"),
        ({"x": np.ones((3, 8, 8), np.float32)}, "add an axis for the samples"),
        ({"x": np.float32(1)}, "4 axes"),
        ({"x": np.ones((0, 3, 8, 8), np.float32)}, "zero samples"),
        ({"x": np.ones((10, 3, 8, 8), np.bool_)}, "bool"),
        ({"x": np.ones((10, 3, 8, 8), np.complex64)}, "complex64"),
        ({"x": np.full((10, 3, 8, 8), "1")}, "float32"),
        ({"x": GOOD["x"] * np.nan}, "NaN"),
        ({"x": GOOD["x"] * np.inf}, "infinite"),
        ({"x": np.full((10, 3, 8, 8), 1e300)}, "beyond the range"),
        ({**GOOD, "labels": np.ones(9, np.int64)}, "one label per sample"),
        ({**GOOD, "labels": np.ones((10, 2), np.int64)}, "one label per sample"),
        ({**GOOD, "labels": np.ones(10, np.float32)}, "integer class numbers"),
        ({**GOOD, "labels": np.full(10, "cat")}, "integer class numbers"),
        ({**GOOD, "labels": np.int64(1)}, "one label per sample"),
    ],
)
def test_arrays_that_do_not_fit(command, small, tmp_path, arrays, words):
    np.savez(tmp_path / "d.npz", **arrays)
    refused(command, small, words, tmp_path / "d.npz")


def test_labels_below_zero(command, small, tmp_path):
    np.savez(tmp_path / "d.npz", **GOOD, labels=np.full(10, -1))
    refused(command, small, "from 0 on", tmp_path / "d.npz")


@pytest.mark.parametrize("value", [4, 10**12])
def test_labels_beyond_the_classes_of_the_model(command, small, tmp_path, value):
    np.savez(tmp_path / "d.npz", **GOOD, labels=np.full(10, value))
    command.refuses(3, "label", "compare", small, small, "--data", tmp_path / "d.npz", "--no-latency")


def test_files_that_hold_no_arrays(command, small, tmp_path):
    refused(command, small, "no such file", tmp_path / "none.npz")
    refused(command, small, "no such file", tmp_path / ("x" * 300 + ".npz"))
    for name, content in (("a.csv", b"1,2"), ("b", b""), ("c.onnx", b"x")):
        (tmp_path / name).write_bytes(content)
        refused(command, small, "suffix", tmp_path / name)
    for content in (b"", b"PK\x03\x04 not really", b"\x93NUMPY", b"hello"):
        for name in ("d.npz", "e.npy"):
            (tmp_path / name).write_bytes(content)
            refused(command, small, "e", tmp_path / name)
    (tmp_path / "empty").mkdir()
    refused(command, small, "no .npz file", tmp_path / "empty")


def test_pickles_are_never_loaded(command, small, tmp_path):
    pickled = np.array([{"x": 1}], dtype=object)
    np.savez(tmp_path / "d.npz", x=pickled)
    np.save(tmp_path / "e.npy", pickled)
    refused(command, small, "pickled objects are never loaded", tmp_path / "d.npz")
    refused(command, small, "pickled objects are never loaded", tmp_path / "e.npy")


def test_a_damaged_archive(command, small, tmp_path):
    np.savez_compressed(tmp_path / "d.npz", x=np.random.default_rng(0).random((4, 3, 8, 8)).astype(np.float32))
    content = bytearray((tmp_path / "d.npz").read_bytes())
    content[len(content) // 2] ^= 255
    (tmp_path / "d.npz").write_bytes(content)
    refused(command, small, "damaged", tmp_path / "d.npz")
    (tmp_path / "d.npz").write_bytes(content[: len(content) // 2])
    refused(command, small, "damaged", tmp_path / "d.npz")


def test_suffixes_that_do_not_tell_the_truth(command, small, tmp_path):
    np.save(tmp_path / "d.npy", GOOD["x"])
    (tmp_path / "d.npy").rename(tmp_path / "d.npz")
    refused(command, small, "name it .npy", tmp_path / "d.npz")
    np.savez(tmp_path / "e.npz", **GOOD)
    (tmp_path / "e.npz").rename(tmp_path / "e.npy")
    refused(command, small, "name it .npz", tmp_path / "e.npy")


def test_one_array_for_two_inputs(command, save, tmp_path):
    model = save("agraph (float[N, 2] a, float[N, 2] b) => (float[N, 2] y) { y = Add (a, b) }")
    np.save(tmp_path / "d.npy", np.ones((3, 2), np.float32))
    command.refuses(3, "2 inputs", "compare", model, model, "--data", tmp_path / "d.npy")


def test_comparing_a_tensor_with_a_sequence(command, save, tmp_path):
    tensor = save("agraph (float[N, 2] x) => (float[N, 2] y) { y = Relu (x) }", "a.onnx")
    several = save("agraph (float[N, 2] x) => (seq(float[N, 2]) y) { y = SequenceConstruct (x) }", "b.onnx")
    np.savez(tmp_path / "d.npz", x=np.ones((3, 2), np.float32))
    command.refuses(3, "'y'", "compare", tensor, several, "--data", tmp_path / "d.npz", "--no-latency")


def test_good_samples_pass(command, small, tmp_path):
    np.savez(tmp_path / "d.npz", **GOOD, labels=np.zeros(10, np.int64))
    np.save(tmp_path / "e.npy", GOOD["x"])
    (tmp_path / "folder").mkdir()
    np.savez(tmp_path / "folder" / "f.npz", **GOOD)
    for number, name in enumerate(("d.npz", "e.npy", "folder")):
        result = command.slim(small, "--data", tmp_path / name, "-o", tmp_path / f"{number}.onnx")
        assert (result.code, result.err) == (0, "")


def test_metrics_that_the_samples_do_not_allow(command, small, tmp_path):
    np.savez(tmp_path / "d.npz", **GOOD)
    slim = ("slim", small, "--channels", 0.5, "--no-latency", "--data", tmp_path / "d.npz")
    for words, metric, code in (("labels", "top1", 2), ("'foo' is unknown", "foo", 2)):
        command.refuses(code, words, *slim, "--metric", metric)
        command.refuses(code, words, "compare", small, small, "--data", tmp_path / "d.npz", "--metric", metric)
