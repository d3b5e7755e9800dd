"""Recipe files: what they say, who overrides whom, and the sentence for everything that is wrong in them."""

import dataclasses
import fnmatch
from pathlib import Path

import numpy as np
import pytest

from onnxprune.commands.recipe_file import RecipeFile, Rule, assigned, check_selectors, merged, read_recipe
from onnxprune.errors import SelectorError, UsageError
from onnxprune.slim import Recipe

NAMES = ("wide.1", "wide.2", "narrow", "head")

WHOLE = """\
# 2:4 in the wide stages, half of the head, channels elsewhere
channels: 0.3
round-to: 8
max_memory: 1GB
include: ["op:Conv", 'head']
inexact: true
no-latency: No
seed: 7
metric: top1
input_shape:
  image: 1x3x32x32
  mask: [1, 32]
preprocess:
  mean: 0.5
  std: [0.5, 0.25]
rules:
  - include:
      - "wide*"
      - re:^stage
    exclude: wide.2
    nm: 2 : 4
    nm-min-channels: 64
    mask_score: wanda
  - include: [head]
    sparsity: 0.5
    block: 1x4
    mask-score: wanda
  - exclude: ["*.2", narrow]
    layers: 3
  - threshold: 1e-3
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def recipe_file(*rules: Rule, **options: object) -> RecipeFile:
    return RecipeFile("recipe.yaml", options, rules)


def glob(pattern: str) -> list[str]:
    return fnmatch.filter(NAMES, pattern)


def test_everything_that_a_file_can_say(tmp_path: Path):
    found = read_recipe(written(tmp_path, WHOLE))
    assert found.path == str(tmp_path / "recipe.yaml")
    assert found.options == {
        "channels": 0.3,
        "round_to": 8,
        "max_memory": 10**9,
        "include": ("op:Conv", "head"),
        "inexact": True,
        "no_latency": False,
        "seed": 7,
        "metric": "top1",
        "input_shape": {"image": (1, 3, 32, 32), "mask": (1, 32)},
        "preprocess": {"mean": "0.5", "std": ["0.5", "0.25"]},
    }
    assert found.rules == (
        Rule(include=("wide*", "re:^stage"), exclude=("wide.2",), nm="2:4", nm_min_channels=64, mask_score="wanda"),
        Rule(include=("head",), sparsity=0.5, block="1x4", mask_score="wanda"),
        Rule(exclude=("*.2", "narrow"), layers=3),
        Rule(threshold=1e-3),
    )
    assert [rule.amounts for rule in found.rules] == [
        {"nm": "2:4"}, {"sparsity": 0.5, "block": "1x4"}, {"layers": 3}, {"threshold": 1e-3},
    ]  # fmt: skip


def test_values_have_the_types_of_the_options(tmp_path: Path):
    text = "max-macs: 3GMAC\nmax_params: 0.5\nround_to: auto\nlayers: 0.25"
    lines = [line for line in text.splitlines() if line.split(":")[0] != "layers"]
    found = read_recipe(written(tmp_path, "\n".join([*lines, "rules:", "- layers: 0.25"])))
    assert found.options == {"max_macs": 3e9, "max_params": 0.5, "round_to": "auto"}
    assert found.rules == (Rule(layers=0.25),)
    dataclasses.replace(Recipe(), **found.options)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "says nothing"),
        ("chanels: 0.5", "the key 'chanels' is unknown: did you mean 'channels'?"),
        ("round-too: 8", "did you mean 'round_to'?"),
        ("colour: red", "the key 'colour' is unknown: choose from channels, "),
        ("recipe: other.yaml", "the key 'recipe' is unknown"),
        ("output: x.onnx", "the key 'output' is unknown"),
        ("round-to: 8\nround_to: 16", "'round_to' is given twice, with hyphens and with underscores"),
        ("channels:", "'channels' has no value"),
        ("include: []", "'include' has no value"),
        ("channels: half", "'channels' is 'half': give the fraction"),
        ("channels: 1.5", "'channels' is 1.5: give the fraction"),
        ("channels: nan", "'channels' is 'nan'"),
        ("channels: [0.5]", "'channels' is of the type list"),
        ("seed: -1", "'seed' is -1: give a whole number"),
        ("samples: 0.5", "'samples' is 0.5: give a whole number"),
        ("strict: maybe", "'strict' is 'maybe': give true or false"),
        ("metric: [a, b]", "'metric' is no single value"),
        ("score:\n  a: b", "'score' is no single value"),
        ("include:\n  a: b", "'include' is of the type dict: give a pattern"),
        ("input_shape: 1x3", "'input_shape' is no list of inputs"),
        ("input_shape:\n  image: 1xtwo", "a size in recipe.yaml: 'input_shape' of 'image'"),
        ("exclude: re:(", "'exclude': 're:(' is not a regular expression"),
        ("rules: all", "'rules' is no list of rules"),
        ("rules:\n  include: a", "'rules' is no list of rules"),
        ("rules: [a, b]", "'rules' is no list of rules"),
        ("rules:\n- include: a\n  sparcity: 0.5", "rule 1: the key 'sparcity' is unknown: did you mean 'sparsity'?"),
        ("rules:\n- include: a\n  strict: true", "rule 1: the key 'strict' is unknown"),
        ("rules:\n- nm: 4:2", "rule 1: 'nm' is '4:2': give N:M such as 2:4"),
        ("rules:\n- nm: 2:64", "rule 1: 'nm' is '2:64'"),
        ("rules:\n- nm: 0.5", "rule 1: 'nm' is 0.5"),
        ("rules:\n- sparsity: 0.5\n  block: 4", "rule 1: 'block' is 4: give KxL"),
        ("rules:\n- block: 1x4", "rule 1: 'block' says where zeros stand"),
        ("rules:\n- threshold: 0", "rule 1: 'threshold' is 0: give a number above 0"),
        ("rules:\n- layers: 1.5", "rule 1: 'layers' is 1.5: give a fraction"),
        ("rules:\n- layers: -1", "rule 1: 'layers' is -1"),
        ("rules:\n- nm: 2:4\n  sparsity: 0.5", "rule 1: 'nm' and 'sparsity' exclude each other"),
        ("rules:\n- sparsity: 0.5\n  threshold: 1", "rule 1: 'sparsity' and 'threshold' exclude each other"),
        ("rules:\n- nm: 2:4\n- include: a", "rule 2 never holds, rule 1 has taken everything"),
        (
            "rules:\n- include: [a, b]\n  nm: 2:4\n- include: c\n- include: [b, a]\n  sparsity: 0.5",
            "rule 3 never holds, rule 1 has taken all that it matches",
        ),
        ("rules:\n- include: *head", "line 2: 'include: *head' is not understood: put text"),
        ("rules:\n- include: a\n   nm: 2:4", "line 3: 'nm: 2:4' is not understood"),
        ("rules:\n- include: a\n- b", "line 3: 'b' is not understood"),
        ("rules:\n- include: a\n  include: b", "line 3: the key 'include' is empty or stands there twice"),
        ("weights: binary", "binary and ternary weights are not made"),
        ("rules:\n- include: a\n  weights: Ternary", "rule 1: binary and ternary weights are not made"),
        ("ternary: true", "binary and ternary weights are not made"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: str):
    written(tmp_path, text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        read_recipe("recipe.yaml")
    message = str(caught.value)
    assert words in message
    assert "recipe.yaml" in message
    assert "\n" not in message
    assert caught.value.exit_code == 2


def test_a_file_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(UsageError, match="cannot be read"):
        read_recipe(tmp_path / "none.yaml")


def test_the_command_line_overrides_the_top_level_and_no_rule():
    rule = Rule(include=("head",), channels=0.1)
    file = recipe_file(rule, channels=0.3, seed=5, score="l1", include=("wide*",))
    samples = np.zeros(3)
    found = merged(Recipe(channels=0.6, data=samples, score="l2"), file)
    assert (found.channels, found.seed, found.score, found.include) == (0.6, 5, "l2", ("wide*",))
    assert found.data is samples
    assert merged(Recipe(), file, given=("seed",)).seed == 0
    assert merged(Recipe(seed=np.int64(3)), file).seed == 3
    assert file.rules == (rule,)


def test_the_first_rule_that_matches_wins():
    narrow = Rule(include=("*.2", "narrow"), exclude=("wide*",), channels=0.2)
    wide = Rule(include=("wide*",), nm="2:4")
    rest = Rule(exclude=("head",), sparsity=0.5)
    assert assigned((narrow, wide, rest), NAMES, glob) == {
        "wide.1": wide, "wide.2": wide, "narrow": narrow, "head": None,
    }  # fmt: skip
    assert assigned((rest, wide), NAMES, glob) == {"wide.1": rest, "wide.2": rest, "narrow": rest, "head": None}
    assert assigned((wide, Rule()), NAMES, glob)["head"].amounts == {}
    assert assigned((), NAMES, glob) == dict.fromkeys(NAMES)


def test_a_selector_must_match_something_of_some_kind():
    file = recipe_file(Rule(include=("wide*",)), Rule(include=("block.1",), exclude=("head",)))
    blocks = ["block.1"]
    check_selectors(file, [glob, lambda pattern: fnmatch.filter(blocks, pattern)])
    with pytest.raises(SelectorError, match=r"recipe.yaml, rule 2: the selector 'block.1' matches nothing: list the"):
        check_selectors(file, [glob], NAMES)
    with pytest.raises(SelectorError, match="rule 1: the selector 'haed' matches nothing: did you mean 'head'"):
        check_selectors(recipe_file(Rule(exclude=("haed",))), [glob], NAMES)
