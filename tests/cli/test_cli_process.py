"""The command as a process of its own: signals, limits, streams, native noise."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

ONNXPRUNE = (sys.executable, "-m", "onnxprune.cli")
HALF = ("--channels", "0.5", "--round-to", "1", "--no-latency")

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and limits of POSIX")


def run(*arguments, code, **options):
    shown = options.pop("stdout", subprocess.PIPE)
    result = subprocess.run(
        [*ONNXPRUNE, *map(str, arguments)], stdout=shown, stderr=subprocess.PIPE, text=True, timeout=60, **options
    )
    assert result.returncode == code, result
    assert "Traceback" not in result.stderr
    assert "Exception ignored" not in result.stderr
    return result


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_each_command_runs(small, tmp_path, one_sentence):
    assert "32" in run("inspect", small, code=0).stdout
    assert run("slim", small, *HALF, "-q", code=0).stdout == ""
    np.savez(tmp_path / "d.npz", x=np.ones((3, 3, 8, 8), np.float32))
    compared = run("compare", small, tmp_path / "small.slim.onnx", "--data", tmp_path / "d.npz", "--no-latency",
                   "--json", code=0)  # fmt: skip
    assert json.loads(compared.stdout)["ratios"]["macs"] < 0.5
    assert run("bench", small, "--seconds", "0.01", code=0).stderr == ""
    for arguments, code in ((("slim", small), 2), (("inspect", tmp_path / "none"), 3), (("slim", small, "--foo"), 2)):
        one_sentence(run(*arguments, code=code).stderr)


def test_a_provider_that_is_not_there(small, tmp_path, one_sentence):
    """Also the libraries below keep quiet."""
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers() and Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has a GPU")
    for arguments in (("slim", small, *HALF), ("bench", small)):
        result = run(*arguments, "--ep", "cuda", code=5)
        one_sentence(result.stderr)
        assert "--ep cpu" in result.stderr
        assert result.stdout == ""
    assert names(tmp_path) == ["small.onnx"]


def test_the_runtime_keeps_quiet(tmp_path, small, one_sentence):
    model = onnx.load(small)
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("strides", [99, 99]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(3, np.float32), "unused"))
    onnx.save(model, small)
    assert run("slim", small, *HALF, code=0).stderr == ""
    model.graph.node[-1].op_type = "MatMul"
    model.graph.node[1].op_type = "Strange"
    onnx.save(model, small)
    one_sentence(run("slim", small, *HALF, "--force", code=3).stderr)


@pytest.mark.parametrize("size", [0, 1, 4096, 5000])
def test_a_limit_on_the_size_of_files(small, tmp_path, one_sentence, size):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    result = run("slim", small, *HALF, code=6, preexec_fn=limit)
    one_sentence(result.stderr)
    assert names(tmp_path) == ["small.onnx"]


def test_a_disk_that_is_really_full(small, tmp_path, one_sentence):
    """One page of memory as a disk, where the machine lets us have one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        one_sentence(run("slim", small, *HALF, "-o", disk / "f.onnx", code=6).stderr)
        assert names(disk) == []
        (disk / "old.onnx").write_bytes(b"x" * 4096)
        one_sentence(run("slim", small, *HALF, "-o", disk / "old.onnx", "--force", code=6).stderr)
        one_sentence(run("slim", small, *HALF, "--dry-run", "--save-plan", disk / "p.json", code=6).stderr)
        one_sentence(run("inspect", small, "--report", disk / "r.json", code=6).stderr)
        assert names(disk) == ["old.onnx"]
        assert (disk / "old.onnx").read_bytes() == b"x" * 4096
    finally:
        subprocess.run(["umount", str(disk)], capture_output=True, check=False)
    assert names(tmp_path) == ["disk", "small.onnx"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [("inspect", "small.onnx", "--json"), ("inspect", "small.onnx"), ("--help",)])
def test_stdout_that_is_full(small, tmp_path, one_sentence, arguments):
    with open("/dev/full", "w") as full:
        one_sentence(run(*arguments, code=6, stdout=full, cwd=tmp_path).stderr)


def test_stdout_that_nobody_reads(small, tmp_path):
    for arguments in (("inspect", small), ("inspect", small, "--json"), ("slim", small, *HALF)):
        reading, writing = os.pipe()
        os.close(reading)
        assert run(*arguments, code=0, stdout=writing).stderr == ""
        os.close(writing)
    assert names(tmp_path) == ["small.onnx", "small.slim.onnx"]


def test_a_terminal_that_knows_ascii_only(small, tmp_path):
    model = onnx.load(small)
    model.graph.node[0].name = "größe☃"
    onnx.save(model, small)
    for extra in ((), ("--json",)):
        run("inspect", small, *extra, code=0, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    run("inspect", tmp_path / "ö☃", code=3, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    odd = os.fsdecode(os.fsencode(str(tmp_path)) + b"/\xff.onnx")
    small.rename(odd)
    run("inspect", odd, "--report", tmp_path / "r.json", code=0)
    run("slim", odd, *HALF, "--json", code=0)


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """A network that takes some seconds to slim: there is time to interrupt every stage."""
    layers = 60
    nodes = [onnx.helper.make_node("Conv", [f"t{i}", f"w{i}"], [f"t{i + 1}"], pads=[1] * 4) for i in range(layers)]
    weight = np.random.default_rng(0).standard_normal((32, 32, 3, 3)).astype(np.float32) * 0.1
    graph = onnx.helper.make_graph(
        nodes, "slow",
        [onnx.helper.make_tensor_value_info("t0", 1, ["N", 32, 64, 64])],
        [onnx.helper.make_tensor_value_info(f"t{layers}", 1, ["N", 32, 64, 64])],
        [onnx.numpy_helper.from_array(weight, f"w{i}") for i in range(layers)],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path_factory.mktemp("slow") / "slow.onnx"
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("seconds", [0.1, 0.25, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0])
def test_an_interrupt_leaves_nothing(slow, tmp_path, one_sentence, seconds):
    before = slow.read_bytes()
    arguments = ["slim", slow, "--channels", "0.5", "-o", tmp_path / "out.onnx", "--report", tmp_path / "r.json"]
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    starting = time.monotonic() - began  # on a busy machine that takes long
    process = subprocess.Popen(
        [*ONNXPRUNE, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    if process.returncode == -signal.SIGINT or "Fatal Python error: init" in err:
        assert seconds < 0.3 + 5 * starting  # Python itself was still starting
    else:
        assert process.returncode == 130, (out, err)
        one_sentence(err)
        assert "nothing was written" in err
    assert names(tmp_path) == []
    assert slow.read_bytes() == before
    assert names(slow.parent) == ["slow.onnx"]
