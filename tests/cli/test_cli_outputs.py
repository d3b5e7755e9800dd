"""Where results go: never over the input, whole or not at all, and the same bytes every time."""

import errno
import json
import os
import signal
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxprune.commands.cut as steps
import onnxprune.commands.slim as line
from onnxprune.commands.process import uninterrupted
from onnxprune.report.schema import LatencyRatio

HALF = ("--channels", "0.5", "--round-to", "1", "--no-latency")


def slim_refuses(command, code, words, model, *options):
    command.refuses(code, words, "slim", model, *HALF, *options)


def test_the_default_name(command, small, tmp_path):
    assert command.slim(small).code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.onnx", "small.slim.onnx"]
    onnx.checker.check_model(tmp_path / "small.slim.onnx", full_check=True)


def test_an_output_that_exists(command, small, tmp_path):
    out = tmp_path / "out.onnx"
    out.write_text("precious")
    slim_refuses(command, 2, "--force", small, "-o", out)
    slim_refuses(command, 2, "--force", small, "--save-plan", out)
    (tmp_path / "gone.onnx").symlink_to(tmp_path / "nowhere.onnx")
    slim_refuses(command, 2, "--force", small, "-o", tmp_path / "gone.onnx")
    assert command.slim(small, "-o", out, "--force").code == 0
    assert out.read_bytes() != b"precious"


def test_the_input_is_never_written(command, small, tmp_path, monkeypatch):
    (tmp_path / "soft.onnx").symlink_to(small)
    (tmp_path / "hard.onnx").hardlink_to(small)
    (tmp_path / "folder").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    around = f"../{tmp_path.name}/small.onnx"
    for path in ("small.onnx", "./small.onnx", small, "soft.onnx", "hard.onnx", "folder/small.onnx", around):
        slim_refuses(command, 2, "never written", small, "-o", path, "--force")
        slim_refuses(command, 2, "never written", small, "--save-plan", path, "--force")
        command.refuses(2, "never written", "inspect", small, "--log-file", path)
    slim_refuses(command, 2, "never written", "soft.onnx", "-o", "small.onnx", "--force")
    odd = small.rename(tmp_path / "small.json")
    command.refuses(2, "never written", "inspect", odd, "--report", odd)
    plan = tmp_path / "p.json"
    assert command.slim(odd, "--dry-run", "--save-plan", plan).code == 0
    command.refuses(2, "never written", "slim", odd, "--plan", plan, "--no-latency", "--report", plan)


def test_the_weights_of_the_input_are_never_written(command, small, tmp_path):
    onnx.save(onnx.load(small), small, save_as_external_data=True, location="w.bin", size_threshold=0)
    slim_refuses(command, 2, "never written", small, "-o", tmp_path / "w.bin", "--force")
    assert command.slim(small).code == 0


def test_two_outputs_of_one_name(command, small, tmp_path):
    out = tmp_path / "out.json"
    slim_refuses(command, 2, "two outputs", small, "-o", out, "--report", out)
    slim_refuses(command, 2, "two outputs", small, "--save-plan", out, "--report", out)
    slim_refuses(command, 2, "two outputs", small, "--report", out, "--report", out)


def forbidden(*_, **__):
    raise AssertionError("work was done before the outputs were checked")


def test_places_that_cannot_be_written_are_found_before_any_work(command, small, tmp_path, monkeypatch):
    monkeypatch.setattr(line, "run", forbidden)
    closed = tmp_path / "closed"
    closed.mkdir()
    may = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != closed and may(path, mode))
    places = {
        tmp_path / "none" / "o.json": "does not exist",
        small / "o.json": "does not exist",
        closed / "o.json": "cannot be written to",
        tmp_path: "folder",
        tmp_path / ("x" * 300 + ".json"): "cannot be written",
    }
    for place, words in places.items():
        for option in ("-o", "--save-plan", "--log-file") + (("--report",) if place.suffix else ()):
            slim_refuses(command, 6, words, small, option, place)
        if place.suffix:
            command.refuses(6, words, "inspect", small, "--report", place)
    slim_refuses(command, 6, "not a plain file", small, "-o", "/dev/full", "--force")
    slim_refuses(command, 2, "suffix", small, "--report", tmp_path / "r.pdf")
    slim_refuses(command, 2, "suffix", small, "--report", tmp_path / "r")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder in which nobody can write")
def test_a_folder_that_takes_no_files(command, small):
    slim_refuses(command, 6, "cannot be written", small, "-o", "/proc/out.onnx")


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_disk_that_is_full(command, small, tmp_path, monkeypatch, call, number):
    def full(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, full)
    slim_refuses(command, 6, "cannot be written", small)
    slim_refuses(command, 6, "cannot be written", small, "--dry-run", "--save-plan", tmp_path / "p.json")
    slim_refuses(command, 6, "cannot be written", small, "--dry-run", "--report", tmp_path / "r.html")


def test_a_disk_that_fills_while_weights_are_written(command, small, monkeypatch):
    onnx.save(onnx.load(small), small, save_as_external_data=True, location="w.bin", size_threshold=0)
    put, calls = os.replace, []

    def full(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        put(source, target)

    monkeypatch.setattr(os, "replace", full)
    slim_refuses(command, 6, "cannot be written", small)
    assert len(calls) == 2


def test_replacing_fails_and_leaves_the_old_file(command, small, tmp_path, monkeypatch):
    out = tmp_path / "out.onnx"
    out.write_text("precious")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    slim_refuses(command, 6, "cannot be written", small, "-o", out, "--force")


def test_an_interrupt_at_every_stage(command, small, tmp_path, monkeypatch):
    stages = "read choose_inputs cut check_model prove measure_models build_report"
    parts = "analyze choose_plan slice_channels"
    for module, stage in [*((line, name) for name in stages.split()), *((steps, name) for name in parts.split())]:
        with monkeypatch.context() as patch:
            patch.setattr(module, stage, interrupt)
            slim_refuses(command, 130, "nothing was written", small)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupt)
        slim_refuses(command, 130, "nothing was written", small)
    with monkeypatch.context() as patch:
        patch.setattr("onnxprune.report.files.save", interrupt)
        result = command("slim", small, *HALF, "--report", tmp_path / "r.json")
    assert result.code == 130
    assert "already written" in result.err
    onnx.checker.check_model(tmp_path / "small.slim.onnx")


def interrupt(*_, **__):
    raise KeyboardInterrupt


def test_an_interrupt_that_a_library_turns_into_another_error(command, small, monkeypatch):
    def imported(*_, **__):
        try:
            interrupt()
        except KeyboardInterrupt as error:
            raise ImportError("initialization failed") from error

    monkeypatch.setattr(steps, "analyze", imported)
    slim_refuses(command, 130, "nothing was written", small)


def test_interrupts_wait_while_modules_are_imported():
    seen = []

    def press():
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            seen.append("the import went on")

    with pytest.raises(KeyboardInterrupt):
        press()
    assert seen
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_what_nobody_foresaw_is_said_in_one_sentence(command, small, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("a\nb")

    monkeypatch.setattr(steps, "analyze", broken)
    result = command("slim", small, *HALF)
    assert (result.code, result.out) == (7, "")
    assert result.err.count("\n") == 1
    assert "ZeroDivisionError a b" in result.err
    assert "Traceback" in command("slim", small, *HALF, "-vv").err
    monkeypatch.setattr(steps, "analyze", no_memory)
    slim_refuses(command, 3, "not enough memory", small)


def no_memory(*_, **__):
    raise MemoryError


def test_a_proof_that_fails(command, small, tmp_path, monkeypatch):
    slice_channels = steps.slice_channels

    def corrupt(channels, removals):
        graph = slice_channels(channels, removals)
        weight = next(tensor for name, tensor in graph.tensors().items() if name == "w3")
        weight.values = np.asarray(weight.values) * 1.01
        return graph

    monkeypatch.setattr(steps, "slice_channels", corrupt)
    slim_refuses(
        command, 7, "please report", small, "--report", tmp_path / "r.json", "--save-plan", tmp_path / "p.json"
    )


def test_a_result_that_is_slower_is_written_and_said(command, small, tmp_path, monkeypatch):
    real = line.measure_models

    def slower(*arguments, **named):
        evidence = real(*arguments, **named)
        evidence.ratio = LatencyRatio(1.3, 1.2, 1.4)
        return evidence

    monkeypatch.setattr(line, "measure_models", slower)
    result = command.slim(small, "--report", tmp_path / "r.json")
    assert result.code == 1
    assert "slower" in result.out
    assert (tmp_path / "small.slim.onnx").exists()
    assert json.loads((tmp_path / "r.json").read_text())["ratios"]["latency"]["median"] == 1.3


def test_json_is_alone_on_stdout(command, small, tmp_path):
    np.savez(tmp_path / "d.npz", x=np.ones((4, 3, 8, 8), np.float32))
    data = ("--data", tmp_path / "d.npz")
    runs = [("inspect", small), ("slim", small, *HALF), ("slim", small, *HALF, "-q", "--force", *data)]
    runs += [("compare", small, small, *data, "--no-latency"), ("bench", small, "--seconds", "0.01")]
    for arguments in runs:
        result = command(*arguments, "--json")
        assert result.code == 0, result
        assert result.err == ""
        report = json.loads(result.out, parse_constant=lambda word: pytest.fail(word))
        assert report["schema"] == 1
        assert report["command"] == arguments[0]
    assert json.loads(command("slim", small, *HALF, "--force", "--json", "-vv").out)["schema"] == 1


def test_quiet(command, small):
    for arguments in (("inspect", small), ("slim", small, *HALF), ("bench", small, "--seconds", "0.01")):
        result = command(*arguments, "-q")
        assert (result.code, result.out, result.err) == (0, "", "")


def test_a_dry_run_writes_nothing(command, small):
    before = command.files()
    result = command("slim", small, *HALF, "--dry-run")
    assert result.code == 0
    assert command.files() == before
    assert "small.slim.onnx" not in result.out


def test_the_log_goes_to_its_file(command, small, tmp_path):
    result = command("inspect", small, "--log-file", tmp_path / "log.txt", "-q")
    assert (result.code, result.err) == (0, "")
    assert (tmp_path / "log.txt").exists()


def test_all_reports_are_written(command, small, tmp_path):
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    names = [tmp_path / f"r{suffix}" for suffix in (".json", ".md", ".html", ".HTML")]
    result = command.slim(small, *(item for name in names for item in ("--report", name)))
    assert result.code == 0, result
    assert all(name.stat().st_size > 500 for name in names)
    report = json.loads(names[0].read_text())
    assert report["before"]["path"] == str(small)
    assert report["after"]["path"] == str(tmp_path / "small.slim.onnx")
    assert report["after"]["latency_ms"] is None


def test_the_same_command_and_its_plan_give_the_same_bytes(command, small, tmp_path):
    options = ("--score", "random", "--seed", "3")
    names = [tmp_path / f"{letter}.onnx" for letter in "abc"]
    assert command.slim(small, *options, "-o", names[0], "--save-plan", tmp_path / "p.json").code == 0
    assert command.slim(small, *options, "-o", names[1], "--save-plan", tmp_path / "q.json").code == 0
    assert command("slim", small, "--plan", tmp_path / "p.json", "--no-latency", "-o", names[2],
                   "--save-plan", tmp_path / "r.json").code == 0  # fmt: skip
    assert names[0].read_bytes() == names[1].read_bytes() == names[2].read_bytes()
    plans = [(tmp_path / f"{letter}.json").read_text() for letter in "pqr"]
    assert plans[0] == plans[1] == plans[2]
    assert command.slim(small, "--score", "random", "--seed", "4", "-o", tmp_path / "d.onnx").code == 0
    assert (tmp_path / "d.onnx").read_bytes() != names[0].read_bytes()


def test_names_from_the_model_do_not_reach_the_terminal_raw(command, small):
    model = onnx.load(small)
    model.graph.node[0].name = "\x1b[31mred\nline"
    model.graph.node[0].input[0] = "\x1b[2Jgone\n"
    onnx.save(model, small)
    result = command("inspect", small)
    assert result.code == 3
    assert "\x1b" not in result.err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(
    "name", ["ünïcode ☃.onnx", "with space.onnx", "-dash.onnx", "a.b.c.onnx", "noending", "x" * 240]
)
def test_odd_file_names(command, small, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    small.rename(tmp_path / name)
    result = command("slim", *HALF, "-q", "--report", "r.json", "--", name)
    assert (result.code, result.err) == (0, ""), result
    assert len(command.files()) == 3
