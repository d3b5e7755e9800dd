"""Options that are unknown, impossible or missing; selectors; plans; help."""

import dataclasses
import json
import re
import subprocess
import sys

import click
import numpy as np
import onnx
import pytest

from onnxprune.cli import cli
from onnxprune.slim import Recipe

COMMANDS = sorted(cli.commands)
PRUNING = "--channels --layers --sparsity --threshold --nm --block --inexact --allocation --score --recover --schedule"
NUMBERS = (
    "--int8 --fp16 --weights --group-size --reduce-range --store-sparse --nm-min-channels --recipe --steps --target"
)
GOALS = (
    "--max-drop --max-latency --max-macs --max-params --max-size --max-memory --strict --round-to --include --exclude"
)
DATA = "--data --eval --metric --preprocess --samples --seed --allow-random --input-shape --external-root --no-latency"
FILES = "--ep --threads --plan --save-plan --report --json --dry-run --force -q -v --log-file -o"
KNOWN_OPTIONS = " ".join((PRUNING, NUMBERS, GOALS, DATA, FILES)).split()


def names_of(command):
    return {name for option in cli.commands[command].params for name in option.opts if name.startswith("-")}


@pytest.mark.parametrize("ratio", ["1", "-0.1", "1.5", "nan", "inf", "-inf", "half", "", "0,5"])
def test_ratios_that_are_none(command, small, ratio):
    command.refuses(2, "--channels", "slim", small, f"--channels={ratio}")


def test_nothing_asked_for(command, small):
    command.refuses(2, "nothing is asked for", "slim", small)
    command.refuses(2, "MODEL", "slim")
    command.refuses(2, "MODEL", "bench")
    command.refuses(2, "--data", "compare", small, small)
    command.refuses(2, "no such command", "slimm", small)
    result = command()
    assert result.code == 2
    assert "Usage: onnxprune" in result.err


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--score", "foo", "'foo'"),
        ("--allocation", "foo", "'foo'"),
        ("--target", "foo", "'foo'"),
        ("--ep", "tpu", "'tpu'"),
        ("--round-to", "0", "'0'"),
        ("--round-to", "-8", "'-8'"),
        ("--round-to", "x", "'x'"),
        ("--round-to", "1.5", "'1.5'"),
        ("--round-to", "²", "'²'"),
        ("--samples", "0", "--samples"),
        ("--threads", "0", "--threads"),
        ("--threads", "100000", "--threads"),
        ("--seed", "x", "--seed"),
        ("--input-shape", "x", "such as image:1x3x224x224"),
        ("--input-shape", "x:0x3x8x8", "such as image:1x3x224x224"),
        ("--input-shape", "q:1x3x8x8", "the inputs are 'x'"),
        ("--input-shape", "x:1x3x8", "axes"),
        ("--input-shape", "x:1x4x8x8", "fixes it to 3"),
        ("--include", "nothing*", "matches no"),
        ("--exclude", "nothing*", "matches no"),
        ("--include", "re:^zzz", "matches no"),
        ("--include", "re:(", "not a regular expression"),
        ("--exclude", "op:LSTM", "matches no"),
        ("--include", "op:", "matches no"),
        ("--include", "re:", "matches no"),
        ("--include", "", "matches no"),
        ("--plan", "none.json", "exclude each other"),
    ],
)
def test_options_that_cannot_be(command, small, option, value, words):
    command.refuses(2, words, "slim", small, "--channels", "0.5", "--no-latency", option, value)


def test_a_metric_is_checked_without_samples(command, small):
    command.refuses(2, "'foo'", "slim", small, "--channels", "0.5", "--no-latency", "--metric", "foo")


def test_seeds_of_any_size(command, small):
    assert command.slim(small, "--seed", 2**70, "--score", "random").code == 0
    command.refuses(2, "--seed", "slim", small, "--channels", "0.5", "--seed", "-1")


def test_selectors_that_leave_nothing(command, small):
    command.refuses(4, "--exclude", "slim", small, "--channels", "0.5", "--exclude", "*")


def test_rounding_that_leaves_nothing(command, small):
    command.refuses(4, "--round-to", "slim", small, "--channels", "0.5", "--round-to", "64")


def test_models_with_nothing_to_prune(command, save):
    relu = save("agraph (float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }", "relu.onnx")
    command.refuses(4, "no weights", "slim", relu, "--channels", "0.5")
    one = save("agraph (float[N, 4] x) => (float[N, 8] y) { y = MatMul (x, w) }", "one.onnx", w=(4, 8))
    command.refuses(4, "graph output", "slim", one, "--channels", "0.5")
    for path in (relu, one):
        assert command("inspect", path).code == 0


# Plans


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("", 2, "holds no plan"),
        ("hello", 2, "holds no plan"),
        ("[]", 2, "holds no plan"),
        ("{}", 2, "holds no plan"),
        ('{"groups": 5}', 2, "holds no plan"),
        ('{"schema": 99, "groups": []}', 4, "schema"),
        ('{"schema": 1, "groups": [{"name": "q", "units": 8, "removed": [1]}]}', 4, "'q'"),
        ('{"schema": 1, "groups": [{"name": "a", "units": 8, "removed": [1]}]}', 4, "'a'"),
        ('{"schema": 1, "groups": [{"name": "a", "units": 32, "removed": "x"}]}', 2, "holds no plan"),
    ],
)
def test_plans_that_are_none(command, small, tmp_path, text, code, words):
    (tmp_path / "p.json").write_text(text)
    command.refuses(code, words, "slim", small, "--no-latency", "--plan", tmp_path / "p.json")


@pytest.mark.parametrize("removed", [[99], [-1], [1, 1, 40]])
def test_plans_with_units_that_do_not_exist(command, small, tmp_path, removed):
    plan = {"schema": 1, "groups": [{"name": "a", "units": 32, "removed": removed}]}
    (tmp_path / "p.json").write_text(json.dumps(plan))
    command.refuses(4, "'a'", "slim", small, "--no-latency", "--plan", tmp_path / "p.json")


def test_a_plan_that_removes_everything(command, small, tmp_path):
    plan = {"schema": 1, "groups": [{"name": "a", "units": 32, "removed": list(range(32))}]}
    (tmp_path / "p.json").write_text(json.dumps(plan))
    command.refuses(4, "every channel", "slim", small, "--no-latency", "--plan", tmp_path / "p.json")


def test_plan_files_that_are_none(command, small, tmp_path):
    command.refuses(2, "cannot be read", "slim", small, "--plan", tmp_path / "none.json")
    command.refuses(2, "cannot be read", "slim", small, "--plan", tmp_path)
    (tmp_path / "p.json").write_bytes(b"\xff\xfe\x00")
    command.refuses(2, "not text", "slim", small, "--plan", tmp_path / "p.json")


def test_a_plan_for_another_model(command, small, save, tmp_path):
    other = save(
        "agraph (float[N, 4] x) => (float[N, 2] y) { a = MatMul (x, v) y = MatMul (a, w) }", v=(4, 8), w=(8, 2)
    )
    assert command.slim(other, "--save-plan", tmp_path / "p.json", "--dry-run").code == 0
    command.refuses(4, "'a'", "slim", small, "--no-latency", "--plan", tmp_path / "p.json")


# Help


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_help(command, name):
    for option in cli.commands[name].params:
        if isinstance(option, click.Option):
            assert option.help, option.opts
    result = command(name, "--help")
    assert result.code == 0
    assert all(re.search(rf"{re.escape(option)}\b", result.out) for option in names_of(name))


WANTED = {
    "FILE", "DIR", "SRC", "OUT", "NAME", "RATIO", "PATTERN", "N", "SECONDS", "auto|N", "NAME:1x3x224x224", "MODEL",
    "BASE", "CANDIDATE", "MODEL...", "KEYS", "SIZE", "X", "R", "R|K", "T", "N:M", "KxL",
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_says_what_is_wanted(command, name):
    """Not the type of the value, and not the name of the option once more in capitals."""
    context = click.Context(cli.commands[name])
    for option in cli.commands[name].params:
        word = option.make_metavar(context)
        flag = isinstance(option, click.Option) and (option.is_flag or option.count)
        assert flag or word in WANTED or isinstance(option.type, click.Choice), (name, option.opts, word)


def test_the_list_of_commands_is_not_cut_off(command):
    assert "..." not in command("--help").out.partition("Commands:")[2]


def test_the_options_have_the_defaults_of_the_recipe():
    options = cli.commands["slim"].make_context("slim", ["model.onnx"]).params
    for item in dataclasses.fields(Recipe):
        found = options["evaluation" if item.name == "eval" else item.name]
        assert (found or None) == (item.default or None), item.name


@pytest.mark.parametrize("option", KNOWN_OPTIONS)
def test_what_is_not_there_is_unknown(command, small, option):
    """No stubs: an option either works and is in the help, or is an error."""
    if option not in names_of("slim"):
        command.refuses(2, "no such option", "slim", small, option, "1")


def test_only_documented_options_exist():
    later = {"--quiet", "--verbose", "--output", "--help", "-h", "--layer-score", "--mask-score", "--calibration"}
    assert names_of("slim") - set(KNOWN_OPTIONS) <= later


def test_starting_is_light():
    code = """import sys, onnxprune.cli
heavy = {"numpy", "onnx", "onnxruntime", "onnx_graphsurgeon", "scipy", "rich", "jinja2", "matplotlib", "plotly"}
print(sorted(heavy & set(sys.modules)))"""
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert seen.stdout == "[]\n"


def test_version(command):
    assert re.fullmatch(r"onnxprune \d+\.\d+\.\d+\S*\n", command("--version").out)


def test_bench_and_compare_usage(command, small, tmp_path):
    command.refuses(2, "--seconds", "bench", small, "--seconds", "0")
    command.refuses(2, "--seconds", "bench", small, "--seconds", "nan")
    command.refuses(2, "--seconds", "bench", small, "--seconds", "inf")
    command.refuses(3, "does not exist", "bench", small, tmp_path / "none.onnx", "--seconds", "0.01")
    np.savez(tmp_path / "d.npz", x=np.ones((2, 3, 8, 8), np.float32))
    command.refuses(3, "does not exist", "compare", small, tmp_path / "none.onnx", "--data", tmp_path / "d.npz")
    other = onnx.load(small)
    other.graph.node[-1].output[0] = other.graph.output[0].name = "z"
    onnx.save(other, tmp_path / "other.onnx")
    command.refuses(
        3,
        "lacks the output 'y'",
        "compare",
        small,
        tmp_path / "other.onnx",
        "--data",
        tmp_path / "d.npz",
        "--no-latency",
    )
