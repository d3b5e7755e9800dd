"""Parts of a model: the groups, blocks or weights of which a recipe asks the same, by its options or by a rule."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from onnxprune.channels.groups import ChannelGroup, Channels
from onnxprune.commands.recipe_file import RecipeFile, Rule, assigned, check_selectors
from onnxprune.plan.demand import Demand
from onnxprune.plan.select import Things, admitted, check_patterns, found, named_groups, select
from onnxprune.slim import Recipe


@dataclass(frozen=True, slots=True)
class ChannelPart:
    """Groups that shrink by the same demand; ``ratio`` where a rule gives one, else what the options ask for."""

    groups: tuple[ChannelGroup, ...]
    round_to: int | str
    score: str | None = None
    ratio: float | None = None

    def demand(self, general: Demand) -> Demand:
        """Returns what is asked of these groups."""
        return general if self.ratio is None else Demand(ratio=self.ratio)


def rules_of(recipe: Recipe) -> tuple[Rule, ...]:
    """Returns the rules of the file that a checked recipe came with."""
    return recipe.recipe.rules if isinstance(recipe.recipe, RecipeFile) else ()


def asks(recipe: Recipe, *names: str) -> bool:
    """Returns whether a checked recipe, or a rule of it, has a value for one of the options."""
    return any(getattr(one, name, None) is not None for one in (recipe, *rules_of(recipe)) for name in names)


def check_selected(recipe: Recipe, kinds: Sequence[Things]) -> None:
    """Checks that every selector of a recipe and of its rules means something.

    Raises:
        SelectorError: one matches nothing, or is not a regular expression.
    """
    check_patterns((*recipe.include, *recipe.exclude), kinds)
    if isinstance(recipe.recipe, RecipeFile):
        words = [name for things in kinds for thing in things.values() for name in thing.names]
        check_selectors(recipe.recipe, [partial(found, things) for things in kinds], words)


def by_rule(recipe: Recipe, things: Things) -> list[tuple[Rule | None, set[str]]]:
    """Returns the selected things of each rule, and of the options where no rule matches, parts that are not empty."""
    selected = admitted(things, recipe.include, recipe.exclude)
    rules = rules_of(recipe)
    owner = assigned(rules, sorted(selected), partial(found, things))
    parts = [(rule, {name for name, other in owner.items() if other is rule}) for rule in (None, *rules)]
    return [(rule, names) for rule, names in parts if names]


def channel_parts(channels: Channels, recipe: Recipe, others: Sequence[Things] = ()) -> list[ChannelPart]:
    """Returns the groups that shrink, by what is asked of them.

    Args:
        channels: Analysis of the model.
        recipe: A checked recipe.
        others: Things of other kinds that a selector may mean instead of groups.

    Raises:
        SelectorError: a selector matches nothing.
    """
    groups = {group.name: group for group in select(channels, recipe.include, recipe.exclude, others)}
    things = {name: thing for name, thing in named_groups(channels).items() if name in groups}
    parts = []
    for rule, names in by_rule(recipe, things) if rules_of(recipe) else [(None, set(groups))]:
        chosen = tuple(group for name, group in groups.items() if name in names)
        if rule is None and asks_generally(recipe):
            parts.append(ChannelPart(chosen, recipe.round_to))
        elif rule is not None and rule.channels is not None:
            parts.append(ChannelPart(chosen, rule.round_to or recipe.round_to, rule.score, rule.channels))
    return parts


def asks_generally(recipe: Recipe) -> bool:
    """Returns whether the options ask for fewer channels, apart from rules."""
    return any(value is not None for value in (recipe.channels, recipe.max_macs, recipe.max_params))
