"""Recipes: checked before any work is done, and shown in reports."""

import os
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from onnxprune import arguments
from onnxprune.arguments import optional
from onnxprune.commands.repair import NONE
from onnxprune.data.preprocess import Preprocess, parse_preprocess
from onnxprune.errors import UsageError
from onnxprune.plan.plan import Plan
from onnxprune.recover.recover import needs_samples
from onnxprune.slim import Recipe

DECIDED = ("max_macs", "max_params", "score", "allocation", "round_to", "include", "exclude")
"""Options that a plan has decided already."""


def checked(recipe: Recipe) -> Recipe:
    """Returns the recipe in plain values.

    Raises:
        UsageError: nothing is asked for, or an option is of the wrong type or out of range.
    """
    plan = recipe.plan
    plain = replace(
        recipe,
        channels=optional(arguments.fraction, recipe.channels, "--channels"),
        max_macs=optional(arguments.amount_of_macs, recipe.max_macs, "--max-macs"),
        max_params=optional(arguments.amount_of_parameters, recipe.max_params, "--max-params"),
        plan=plan if isinstance(plan, Plan) else optional(arguments.path, plan, "--plan"),
        metric=optional(arguments.word, recipe.metric, "--metric"),
        preprocess=optional(parse_preprocess, recipe.preprocess, "--preprocess"),
        samples=arguments.count(recipe.samples, "--samples"),
        allow_random=arguments.flag(recipe.allow_random, "--allow-random"),
        score=optional(arguments.word, recipe.score, "--score"),
        recover=optional(arguments.word, recipe.recover, "--recover"),
        max_memory=arguments.size(recipe.max_memory, "--max-memory"),
        allocation=optional(arguments.word, recipe.allocation, "--allocation"),
        round_to=arguments.multiple(recipe.round_to, "--round-to"),
        target=arguments.word(recipe.target, "--target"),
        include=arguments.patterns(recipe.include, "--include"),
        exclude=arguments.patterns(recipe.exclude, "--exclude"),
        inexact=arguments.flag(recipe.inexact, "--inexact"),
        input_shape=arguments.shapes(recipe.input_shape, "--input-shape"),
        seed=arguments.whole(recipe.seed, "--seed"),
        ep=arguments.word(recipe.ep, "--ep"),
        threads=optional(arguments.count, recipe.threads, "--threads"),
        no_latency=arguments.flag(recipe.no_latency, "--no-latency"),
        strict=arguments.flag(recipe.strict, "--strict"),
        dry_run=arguments.flag(recipe.dry_run, "--dry-run"),
        external_root=optional(arguments.path, recipe.external_root, "--external-root"),
    )
    if plain.recover not in (None, NONE):
        needs_samples(plain.recover)
    _check_choice(plain)
    _check_samples(plain)
    return plain


def _check_choice(recipe: Recipe) -> None:
    budget = recipe.max_macs is not None or recipe.max_params is not None
    if recipe.channels is None and recipe.plan is None and not budget:
        raise UsageError(
            "nothing is asked for: give --channels R (the fraction of channels to remove), --max-macs X or "
            "--max-params X (what may stay), or --plan FILE"
        )
    if recipe.channels is not None and recipe.plan is not None:
        raise UsageError("--channels and --plan exclude each other: a plan says already what goes")
    if recipe.channels is not None and budget:
        raise UsageError(
            "--channels and --max-macs or --max-params exclude each other: give what goes, or what may stay"
        )
    defaults = {item.name: item.default for item in fields(Recipe)}
    for name in DECIDED if recipe.plan is not None else ():
        if getattr(recipe, name) != defaults[name]:
            raise UsageError(f"--{name.replace('_', '-')} and --plan exclude each other: a plan says already what goes")


def _check_samples(recipe: Recipe) -> None:
    if recipe.recover not in (None, NONE) and needs_samples(recipe.recover) and recipe.data is None:
        raise UsageError(f"the repair {recipe.recover!r} is fitted to samples: give --data, or choose fold")
    if recipe.data is not None or recipe.eval is not None:
        return
    if recipe.metric is not None and not recipe.allow_random:
        raise UsageError(
            f"the metric {recipe.metric!r} needs samples: give --data or --eval, or --allow-random for random inputs"
        )
    if recipe.preprocess is not None:
        raise UsageError("--preprocess needs samples: give --data or --eval")


def shown(recipe: Recipe) -> dict[str, Any]:
    """Returns the options as they were given; samples and plans that are no files by their kind."""
    return {item.name: _shown(getattr(recipe, item.name)) for item in fields(recipe)}


def _shown(value: object) -> object:
    if isinstance(value, os.PathLike | Preprocess):
        return str(value)
    sizes = isinstance(value, Mapping) and all(isinstance(item, tuple) for item in value.values())
    words = isinstance(value, tuple) and all(isinstance(item, str) for item in value)
    plain = value is None or isinstance(value, str | int | float) or sizes or words
    return value if plain else type(value).__name__
