"""What the README says is true: its Python runs, and the options, commands, codes and targets that it names exist."""

import re
import shlex
from pathlib import Path

import click
import pytest

import onnxprune
from onnxprune import errors
from onnxprune.cli import cli
from onnxprune.commands.process import INTERRUPTED

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
SHELL = [
    line.strip()
    for block in re.findall(r"^```\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("onnxprune ")
]


@pytest.mark.parametrize("code", PYTHON, ids=[f"block{number}" for number in range(len(PYTHON))])
def test_python_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "readme"}
    exec(compile(code, "README.md", "exec"), names)
    saved = set(re.findall(r'save\((?:\w+, )?"([^"]+)"', code))
    assert {path.name for path in tmp_path.iterdir()} == {"models", *saved}
    if "report" in names:
        assert 0 < names["report"].ratios.macs < 1
    if "small" in names:
        assert len(names["small"].SerializeToString()) < (ROOT / "models" / "mobilenet.onnx").stat().st_size


def test_there_is_something_to_test() -> None:
    assert len(PYTHON) == 3
    assert len(SHELL) >= 6


@pytest.mark.parametrize("line", SHELL)
def test_commands_parse(line: str) -> None:
    _, name, *arguments = shlex.split(line.partition(" > ")[0])
    command = cli.commands[name]
    context = command.make_context(name, arguments)
    assert all(value is not None for key, value in context.params.items() if key in ("model", "base", "candidate"))


def test_every_option_that_is_named_exists() -> None:
    parameters = [parameter for command in cli.commands.values() for parameter in command.params]
    known = {option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", README)) <= known | {"--help"}


def test_every_command_is_named() -> None:
    assert set(re.findall(r"^\| `onnxprune (\w+) ", README, re.MULTILINE)) == set(cli.commands)
    assert isinstance(cli, click.Group)


def test_every_exit_code_is_listed() -> None:
    known = {error.exit_code for error in vars(errors).values() if isinstance(error, type)} | {0, INTERRUPTED}
    assert {int(code) for code in re.findall(r"^\| (\d+) \| ", README, re.MULTILINE)} == known


def test_every_public_name_is_mentioned() -> None:
    assert [name for name in onnxprune.__all__ if f"onnxprune.{name}" not in README] == []


def test_every_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)\b", README)) - {"python3-venv"} <= targets
    assert {"demo", "test", "lint", "bench", "models", "clean", "help"} <= targets


def test_every_file_that_is_named_exists() -> None:
    named = set(re.findall(r"`([\w/-]+\.(?:md|py|onnx|npz))`", README))
    assert named >= {"bench/coverage.py", "models/README.md", "CONTRIBUTING.md"}
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_the_code_in_the_guide_is_the_code() -> None:
    sources = [path for folder in ("onnxprune", "tests/ops") for path in (ROOT / folder).rglob("*.py")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL)
    cases = re.findall(r"^ +Case\(.*\),$", guide, re.MULTILINE)
    assert (len(blocks), len(cases)) == (3, 2)
    assert [piece for piece in (*blocks, *cases) if piece not in text] == []


def test_the_pasted_run_is_what_the_command_prints() -> None:
    """The figures that do not depend on the machine."""
    result = onnxprune.slim(
        ROOT / "models" / "resnet.onnx", channels=0.5, data=ROOT / "models" / "calibration.npz",
        eval=ROOT / "models" / "validation.npz", no_latency=True,
    )  # fmt: skip
    found = re.search(r"top-1 accuracy +([\d.]+) % +([\d.]+) %", README)
    for side, printed in zip((result.report.before, result.report.after), found.groups(), strict=True):
        assert 100 * side.metrics["top1"] == pytest.approx(float(printed), abs=0.15)
    pasted = {
        name: (int(units), int(left))
        for name, units, left in re.findall(r"^(/\S+) +(\d+) +(\d+) ", README, re.MULTILINE)
    }
    assert pasted == {g.name: (g.units, g.units - g.removed) for g in result.report.groups if g.removed}
