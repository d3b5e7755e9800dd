"""Recipe files: options of ``slim`` in YAML, and rules that ask for other amounts in other places.

::

    channels: 0.3                # options by their names, hyphens or underscores; they hold where no rule does
    score: obs
    rules:
      - include: ["op:Gemm", "re:wide"]
        exclude: "*head*"
        nm: 2:4
      - include: "*head*"        # a rule without amounts: nothing is done here

The first rule that matches a name wins and says all amounts for it; amounts that the rule does not give are not asked
for there. Other settings of a rule (``score``, ``mask_score`` and the like) stand before those of the file. Options
that are given on the command line override those of the file, not its rules.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

from onnxprune import arguments
from onnxprune.data.settings import read_settings
from onnxprune.errors import SelectorError, UsageError
from onnxprune.slim import Recipe

AMOUNTS = ("channels", "layers", "sparsity", "threshold", "nm", "block")
"""What a rule may ask for; of these, a name gets what the first rule that matches it gives."""

APART = (("nm", "sparsity"), ("nm", "threshold"), ("nm", "block"), ("sparsity", "threshold"), ("threshold", "block"))
"""Amounts of which one rule takes one."""

NOT_IN_A_FILE = frozenset({"recipe", "rules"})
"""Fields of a recipe that are no options in a file."""

WITHOUT_TRAINING = frozenset({"binary", "ternary", "int1", "int2"})

Matches = Callable[[str], Collection[str]]
"""Returns the names that a selector means; none where it matches nothing."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What is asked for at the names that some ``include`` selector matches (all without one), and no ``exclude``.

    ``None`` where the rule does not say. ``nm`` and ``block`` are text such as ``2:4`` and ``1x4``.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    channels: float | None = None
    layers: float | int | None = None
    sparsity: float | None = None
    threshold: float | None = None
    nm: str | None = None
    block: str | None = None
    nm_min_channels: int | None = None
    round_to: int | str | None = None
    score: str | None = None
    layer_score: str | None = None
    mask_score: str | None = None

    @property
    def amounts(self) -> dict[str, float | int | str]:
        """What is asked for, by the names of options; empty where nothing is to be done."""
        return {name: getattr(self, name) for name in AMOUNTS if getattr(self, name) is not None}

    @property
    def catches_all(self) -> bool:
        """Whether the rule matches every name."""
        return not self.include and not self.exclude


@dataclass(frozen=True, slots=True)
class RecipeFile:
    """A recipe file: options of ``slim`` by the names of its fields, and the rules in their order."""

    path: str
    options: Mapping[str, object] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()


def read_recipe(path: str | os.PathLike[str]) -> RecipeFile:
    """Returns what a recipe file says; paths in it start from the current folder, as on the command line.

    Raises:
        UsageError: the file cannot be read, or a key or a value is not understood, or rules conflict.
    """
    settings = read_settings(path)
    origin = os.fspath(path)
    if not settings:
        raise UsageError(f"{origin} says nothing: write options of slim such as 'channels: 0.5', or rules")
    top = {key: value for key, value in settings.items() if key != "rules"}
    known = [item.name for item in fields(Recipe) if item.name not in NOT_IN_A_FILE]
    options = _options(top, [*known, "rules"], origin)
    return RecipeFile(origin, options, tuple(_rules(settings["rules"], origin)) if "rules" in settings else ())


def merged(recipe: Recipe, file: RecipeFile, given: Collection[str] = ()) -> Recipe:
    """Returns a recipe with the options of the file where it has its defaults.

    Args:
        recipe: What was given otherwise, which stays.
        file: The file.
        given: Names of options that stay though they have their defaults, because they were given.
    """
    defaults = {item.name: item.default for item in fields(Recipe)}
    free = {name for name, value in defaults.items() if _same(getattr(recipe, name), value) and name not in given}
    return replace(recipe, **{name: value for name, value in file.options.items() if name in free})  # type: ignore[arg-type]


def check_selectors(file: RecipeFile, matches: Sequence[Matches], known: Collection[str] = ()) -> None:
    """Checks that every selector of a rule matches something.

    Args:
        file: The recipe file.
        matches: What selectors mean, for each kind of thing that rules speak of: groups, blocks, weights.
        known: Names among which a similar one is looked for.

    Raises:
        SelectorError: a selector matches nothing of any kind.
    """
    for number, rule in enumerate(file.rules, start=1):
        for pattern in (*rule.include, *rule.exclude):
            if not any(find(pattern) for find in matches):
                way = _nearest(pattern, known) or "list the names with 'onnxprune inspect'"
                raise SelectorError(f"{file.path}, rule {number}: the selector {pattern!r} matches nothing: {way}")


def assigned(rules: Sequence[Rule], names: Sequence[str], matches: Matches) -> dict[str, Rule | None]:
    """Returns the rule of every name: the first that matches it, ``None`` where the options of the file hold.

    Args:
        rules: The rules in their order.
        names: Names of things of one kind.
        matches: What selectors mean among them.
    """
    result: dict[str, Rule | None] = dict.fromkeys(names)
    for rule in reversed(rules):
        wanted = set(names) if not rule.include else set[str]().union(*map(matches, rule.include))
        left_out = set[str]().union(*map(matches, rule.exclude))
        result.update((name, rule) for name in names if name in wanted and name not in left_out)
    return result


def _rules(setting: object, origin: str) -> Iterator[Rule]:
    if not isinstance(setting, list) or not all(isinstance(item, Mapping) for item in setting):
        raise UsageError(
            f"{origin}: 'rules' is no list of rules: write '- include: NAME' and what is asked for below it"
        )
    names = [item.name for item in fields(Rule)]
    seen: list[Rule] = []
    for number, item in enumerate(setting, start=1):
        where = f"{origin}, rule {number}"
        rule = Rule(**_options(item, names, where))  # type: ignore[arg-type]
        for earlier, other in enumerate(seen, start=1):
            if other.catches_all or (set(other.include), set(other.exclude)) == (set(rule.include), set(rule.exclude)):
                taken = "everything" if other.catches_all else "all that it matches"
                raise UsageError(f"{where} never holds, rule {earlier} has taken {taken}: put it first or leave it out")
        seen.append(rule)
        yield rule


def _options(settings: Mapping[str, object], known: Sequence[str], where: str) -> dict[str, object]:
    """Returns options by name with plain values."""
    result: dict[str, object] = {}
    for key, value in settings.items():
        name = key.replace("-", "_")
        _refuse_untrained(name, value, where)
        if name not in known:
            way = _nearest(name, known) or f"choose from {', '.join(known)}"
            raise UsageError(f"{where}: the key {key!r} is unknown: {way}")
        if name in result:
            raise UsageError(
                f"{where}: the key {key!r} is given twice, with hyphens and with underscores: give it once"
            )
        if value == "" or value == []:
            raise UsageError(f"{where}: the key {key!r} has no value: give one, or leave the key out")
        result[name] = _plain(name, value, f"{where}: {key!r}")
    _check_amounts(result, where)
    return result


def _check_amounts(options: Mapping[str, object], where: str) -> None:
    for left, right in APART:
        if left in options and right in options:
            raise UsageError(f"{where}: {left!r} and {right!r} exclude each other: give one of them")
    if "block" in options and "sparsity" not in options:
        raise UsageError(f"{where}: 'block' says where zeros stand and not how many: give 'sparsity' as well")


def _refuse_untrained(name: str, value: object, where: str) -> None:
    if name in WITHOUT_TRAINING or (name == "weights" and str(value).lower() in WITHOUT_TRAINING):
        raise UsageError(
            f"{where}: binary and ternary weights are not made, networks lose their accuracy with them unless they are "
            "trained so, and no kernel of ONNX Runtime gains by them: give 'nm' or 'sparsity' instead"
        )


def _nearest(word: str, known: Collection[str]) -> str:
    found = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {found[0]!r}?" if found else ""


def _plain(name: str, value: object, what: str) -> object:
    """Returns the value of an option from text: checked where ``_CHECKS`` knows it, else of the type of its field."""
    if name in _PATTERNS:
        return tuple(_pattern(item, what) for item in arguments.patterns(value, what))
    if name in _CHECKS:
        return _CHECKS[name](_number(value), what)
    kind = {item.name: str(item.type) for item in fields(Recipe)}.get(name, "str")
    if name == "input_shape":
        return _shapes(value, what)
    if name == "preprocess":
        return value
    if not isinstance(value, str):
        raise UsageError(f"{what} is no single value: write 'key: value'")
    if kind == "bool":
        if value.lower() not in _TRUTH:
            raise UsageError(f"{what} is {value!r}: give true or false")
        return _TRUTH[value.lower()]
    return _number(value) if "float" in kind or "int" in kind else value


def _shapes(value: object, what: str) -> dict[str, tuple[int, ...]]:
    if not isinstance(value, Mapping):
        raise UsageError(f"{what} is no list of inputs: write 'NAME: 1x3x224x224' below it")
    sizes = {
        name: [_number(size) for size in (shape.split("x") if isinstance(shape, str) else shape)]
        for name, shape in value.items()
    }
    return arguments.shapes(sizes, what)


def _pattern(text: str, what: str) -> str:
    kind, _, rest = text.partition(":")
    try:
        re.compile(rest if kind == "re" else "")
    except re.error as error:
        raise UsageError(f"{what}: {text!r} is not a regular expression ({error}): correct it") from error
    return text


def _number(value: object) -> object:
    """Returns the number that a text is, or what it is otherwise."""
    text = value.strip() if isinstance(value, str) else ""
    if re.fullmatch(r"[+-]?\d+", text):
        return int(text)
    return float(text) if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", text, re.IGNORECASE) else value


def _same(value: object, default: object) -> bool:
    """Whether an option has its default; samples may be arrays, which do not compare."""
    return value is default or (isinstance(value, str | int | float | tuple) and value == default)


_TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_PATTERNS = frozenset({"include", "exclude"})
_CHECKS: Mapping[str, Callable[[object, str], object]] = {
    "channels": arguments.fraction,
    "layers": arguments.fraction_or_count,
    "sparsity": arguments.fraction,
    "threshold": arguments.positive,
    "nm": arguments.kept_of_text,
    "block": arguments.block_text,
    "nm_min_channels": arguments.count,
    "max_macs": arguments.amount_of_macs,
    "max_params": arguments.amount_of_parameters,
    "max_memory": arguments.size,
    "round_to": arguments.multiple,
    "samples": arguments.count,
    "seed": arguments.whole,
    "threads": arguments.count,
}
