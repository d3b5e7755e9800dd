"""``slim --recipe``: other grains and amounts for other parts of a model, in one call."""

import json

import pytest

GRAINS = """
channels: 0.5
layers: 1
round_to: 4
rules:
  - include: head
    sparsity: 0.75
  - include: ["first2", "second2"]
    nm: 2:4
  - include: stem
"""


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe and returns its path."""

    def write(text):
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return path

    return write


def removed(report):
    return {row["name"]: row["removed"] for row in report["groups"] if row["frozen"] is None}


def masked(report):
    return {row["name"]: (row["pattern"], round(row["fraction"], 3)) for row in report["sparsity"]["tensors"]}


def dropped(report):
    return [row["name"] for row in report["blocks"] if row["dropped"]]


@pytest.mark.parametrize("data", [False, True])
def test_every_grain_in_its_place_and_again(report_of, replay, residual, unlabelled, tmp_path, recipe, data):
    samples = ("--data", unlabelled) if data else ()
    out, plan = tmp_path / "out.onnx", tmp_path / "plan.json"
    report = report_of(residual, "--recipe", recipe(GRAINS), *samples, "-o", out, "--save-plan", plan)
    assert dropped(report) in (["block1"], ["block3"])
    left = "first3" if dropped(report) == ["block1"] else "first1"
    assert removed(report) == {"stem": 0, left: 8, "first2": 0}
    assert masked(report) == {"u2": ("2:4", 0.5), "v2": ("2:4", 0.5), "k": ("unstructured", 0.75)}
    assert report["proof"]["passed"]
    assert report["options"]["recipe"].endswith("recipe.yaml")
    assert replay(residual, plan, *samples) == out.read_bytes()


def test_the_command_line_stands_before_the_file(report_of, residual, recipe):
    assert len(dropped(report_of(residual, "--recipe", recipe("layers: 1"), "--layers", 2))) == 2


def test_a_file_without_rules(report_of, residual, recipe):
    report = report_of(residual, "--recipe", recipe("sparsity: 0.5\nallocation: uniform\nexclude: u1"))
    assert set(masked(report)) == {"v1", "u2", "v2", "u3", "v3", "k"}


def test_rules_alone(report_of, residual, recipe):
    report = report_of(residual, "--recipe", recipe("rules:\n  - include: first2\n    channels: 0.5"))
    assert removed(report) == {"stem": 0, "first1": 0, "first2": 8, "first3": 0}
    assert report["sparsity"]["pattern"] is None


def test_rules_for_blocks(report_of, residual, recipe):
    report = report_of(residual, "--recipe", recipe("rules:\n  - include: ['block1', 'block2']\n    layers: 1"))
    assert dropped(report) in (["block1"], ["block2"])


def test_what_a_rule_cannot_mask_says_why(report_of, residual, recipe):
    text = "sparsity: 0.5\nrules:\n  - include: [head, u1]\n    nm: 3:7\n  - include: v1\n"
    found = report_of(residual, "--recipe", recipe(text))["sparsity"]
    assert {row["name"] for row in found["tensors"]} == {"u2", "v2", "u3", "v3"}
    reasons = {row["node"]: row["reason"] for row in found["dense"]}
    assert reasons == {
        "stem": "it is the first that reads the input",
        "first1": "3:7 does not divide its 16 input channels",
        "head": "3:7 does not divide its 16 input channels",
        "second1": "it is not selected",
    }


@pytest.mark.parametrize(
    ("code", "words", "text", "options"),
    [
        (2, "unknown", "chanels: 0.5", ()),
        (2, "says nothing", "", ()),
        (2, "nothing is asked for", "seed: 1", ()),
        (2, "'channels' is 2", "channels: 2", ()),
        (2, "rule 1", "rules:\n  - include: head\n    nm: 4:2", ()),
        (2, "rule 1: the selector 'nothing*' matches nothing", "rules:\n  - include: 'nothing*'\n    nm: 2:4", ()),
        (2, "exclude each other", "sparsity: 0.5", ("--nm", "2:4")),
        (2, "exclude each other", "rules:\n  - include: stem\n    channels: 0.5", ("--max-macs", 0.5)),
        (4, "no weights can be masked", "rules:\n  - include: stem\n    nm: 2:4", ()),
    ],
)
def test_what_makes_no_sense_is_said_in_one_sentence(command, residual, recipe, code, words, text, options):
    command.refuses(code, words, "slim", residual, "--recipe", recipe(text), "--no-latency", *options)


def test_a_recipe_and_a_plan_exclude_each_other(command, report_of, residual, tmp_path, recipe):
    plan = tmp_path / "plan.json"
    report_of(residual, "--layers", 1, "--save-plan", plan)
    command.refuses(
        2, "exclude each other: a plan says already", "slim", residual, "--plan", plan,
        "--recipe", recipe("channels: 0.5"), "-o", tmp_path / "other.onnx",
    )  # fmt: skip


def test_a_dry_run_writes_nothing(command, residual, recipe):
    path = recipe(GRAINS)
    before = command.files()
    found = command("slim", residual, "--recipe", path, "--dry-run", "--json")
    assert found.code == 0, found
    assert masked(json.loads(found.out))["k"] == ("unstructured", 0.75)
    assert command.files() == before
