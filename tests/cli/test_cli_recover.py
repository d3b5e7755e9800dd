"""Measured scores and repair on the command line."""

import json

import numpy as np
import onnx
import pytest

SAMPLES = np.random.default_rng(0).standard_normal((80, 3, 8, 8), np.float32)


@pytest.fixture
def samples(tmp_path):
    np.savez(tmp_path / "samples.npz", x=SAMPLES)
    return tmp_path / "samples.npz"


def test_repair_brings_the_outputs_back_and_the_report_says_what_it_did(command, small, samples):
    options = ("--data", samples, "--json", "--force", "--round-to", 1, "--metric", "mse")
    plain = json.loads(command.slim(small, *options, "--recover", "none", "--allocation", "uniform").out)
    assert plain["recovery"] == {"method": None, "layers": []}
    repaired = json.loads(command.slim(small, *options, "--allocation", "uniform").out)
    assert repaired["after"]["metrics"]["mse"] < 0.5 * plain["after"]["metrics"]["mse"]
    assert repaired["after"]["macs"] == plain["after"]["macs"]
    assert repaired["recovery"]["method"] == "least-squares"
    layers = repaired["recovery"]["layers"]
    assert [layer["node"] for layer in layers] == ["c", "y"]
    assert all(layer["kept"] and layer["error_after"] < layer["error_before"] for layer in layers)
    assert repaired["proof"]["passed"]


@pytest.mark.parametrize("name", ["activation", "variance", "obs"])
def test_measured_scores_replay_to_the_same_bytes(command, small, samples, name, tmp_path):
    written = []
    for number in range(2):
        out = tmp_path / f"{number}.onnx"
        run = command("slim", small, "-o", out, "--channels", 0.5, "--data", samples, "--score", name, "--no-latency")
        assert run.code == 0, run
        written.append(out.read_bytes())
    assert written[0] == written[1]
    onnx.checker.check_model(onnx.load_from_string(written[0]))


def test_little_memory_gives_the_same_model(command, small, samples, tmp_path):
    written = []
    for number, size in enumerate(("2GB", "1kB")):
        out = tmp_path / f"{number}.onnx"
        options = ("--recover", "least-squares", "--score", "obs", "--max-memory", size, "--no-latency")
        run = command("slim", small, "-o", out, "--channels", 0.5, "--data", samples, *options)
        assert run.code == 0, run
        written.append(out.read_bytes())
    assert written[0] == written[1]


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("there is no repair 'magic'", ("--recover", "magic")),
        ("give --data", ("--recover", "least-squares")),
        ("give --data, or choose l2", ("--score", "obs")),
        ("--max-memory", ("--max-memory", "much")),
    ],
)
def test_what_cannot_be_repaired_is_one_sentence(command, small, words, options):
    command.refuses(2, words, "slim", small, "--channels", 0.5, *options)


def test_samples_for_the_verdict_alone_do_not_repair(command, small, samples):
    options = ("--eval", samples, "--recover", "least-squares")
    command.refuses(2, "give --data", "slim", small, "--channels", 0.5, *options)
