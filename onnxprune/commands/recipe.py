"""Recipes: checked before any work is done, and shown in reports."""

import os
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from onnxprune import arguments
from onnxprune.arguments import optional
from onnxprune.commands.parts import rules_of
from onnxprune.commands.quantizing import BITS
from onnxprune.commands.recipe_file import RecipeFile, merged, read_recipe
from onnxprune.commands.repair import NONE, repair_name
from onnxprune.data.preprocess import Preprocess, parse_preprocess
from onnxprune.errors import UsageError
from onnxprune.plan.plan import Plan
from onnxprune.quantize.ranges import method_of
from onnxprune.quantize.targets import target_of
from onnxprune.recover.masking import CRITERIA
from onnxprune.recover.recover import needs_samples
from onnxprune.slim import Recipe

DECIDED = ("recipe", "channels", "layers", "max_macs", "max_params", "score", "layer_score", "allocation", "round_to",
           "include", "exclude")  # fmt: skip
"""Options that a plan has decided already."""

AMOUNTS = ("channels", "layers", "sparsity", "threshold", "nm", "max_macs", "max_params")
QUANTIZING = ("int8", "fp16", "weights")
"""Options of which one at least is needed, or a plan, or a rule."""

NO_ZEROS = ("sparsity", "threshold", "nm")
"""Options of which one at most is given."""


def checked(recipe: Recipe) -> Recipe:
    """Returns the recipe in plain values.

    Raises:
        UsageError: nothing is asked for, or an option is of the wrong type or out of range.
    """
    file = None if recipe.recipe is None else read_recipe(arguments.path(recipe.recipe, "--recipe"))
    recipe = recipe if file is None else merged(recipe, file)
    plan = recipe.plan
    plain = replace(
        recipe,
        recipe=file,  # type: ignore[arg-type]
        channels=optional(arguments.fraction, recipe.channels, "--channels"),
        layers=optional(arguments.fraction_or_count, recipe.layers, "--layers"),
        sparsity=optional(arguments.fraction, recipe.sparsity, "--sparsity"),
        threshold=optional(arguments.positive, recipe.threshold, "--threshold"),
        nm=optional(arguments.kept_of_text, recipe.nm, "--nm"),
        block=optional(arguments.block_text, recipe.block, "--block"),
        int8=arguments.flag(recipe.int8, "--int8"),
        fp16=arguments.flag(recipe.fp16, "--fp16"),
        weights=optional(arguments.word, recipe.weights, "--weights"),
        group_size=arguments.whole(recipe.group_size, "--group-size"),
        max_drop=optional(arguments.drop, recipe.max_drop, "--max-drop"),
        calibration=method_of(recipe.calibration),
        reduce_range=optional(arguments.flag, recipe.reduce_range, "--reduce-range"),
        max_macs=optional(arguments.amount_of_macs, recipe.max_macs, "--max-macs"),
        max_params=optional(arguments.amount_of_parameters, recipe.max_params, "--max-params"),
        plan=plan if isinstance(plan, Plan) else optional(arguments.path, plan, "--plan"),
        metric=optional(arguments.word, recipe.metric, "--metric"),
        preprocess=optional(parse_preprocess, recipe.preprocess, "--preprocess"),
        samples=arguments.count(recipe.samples, "--samples"),
        allow_random=arguments.flag(recipe.allow_random, "--allow-random"),
        score=optional(arguments.word, recipe.score, "--score"),
        layer_score=optional(arguments.word, recipe.layer_score, "--layer-score"),
        mask_score=optional(arguments.word, recipe.mask_score, "--mask-score"),
        recover=optional(arguments.word, recipe.recover, "--recover"),
        max_memory=arguments.size(recipe.max_memory, "--max-memory"),
        allocation=optional(arguments.word, recipe.allocation, "--allocation"),
        round_to=arguments.multiple(recipe.round_to, "--round-to"),
        target=arguments.word(recipe.target, "--target"),
        nm_min_channels=optional(arguments.count, recipe.nm_min_channels, "--nm-min-channels"),
        store_sparse=arguments.word(recipe.store_sparse, "--store-sparse"),
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
    ruled = any(rule.amounts for rule in rules_of(recipe))
    nothing = recipe.plan is None and not ruled and all(getattr(recipe, name) is None for name in AMOUNTS)
    if nothing and not quantizes(recipe):
        raise UsageError(
            "nothing is asked for: give --channels R (the fraction of channels to remove), --layers, --sparsity or "
            "--nm (what else goes), --max-macs X or --max-params X (what may stay), --int8, --recipe FILE, or "
            "--plan FILE"
        )
    _check_numbers(recipe)
    _check_plan(recipe)
    budget = recipe.max_macs is not None or recipe.max_params is not None
    if recipe.channels is not None and budget:
        raise UsageError(
            "--channels and --max-macs or --max-params exclude each other: give what goes, or what may stay"
        )
    if budget and any(rule.channels is not None for rule in rules_of(recipe)):
        raise UsageError("rules with 'channels' and --max-macs or --max-params exclude each other: leave one out")
    zeros = [f"--{name}" for name in NO_ZEROS if getattr(recipe, name) is not None]
    if len(zeros) > 1:
        raise UsageError(f"{' and '.join(zeros)} exclude each other: give one of them, or a --recipe with rules")
    if recipe.block is not None and recipe.sparsity is None:
        raise UsageError("--block says where zeros stand and not how many: give --sparsity as well")
    for name in mask_scores(recipe):
        if name not in CRITERIA:
            raise UsageError(f"there is no mask score {name!r}: choose one of {', '.join(CRITERIA)}")


def _check_numbers(recipe: Recipe) -> None:
    if recipe.weights is not None and recipe.weights not in BITS:
        raise UsageError(f"--weights is {recipe.weights!r}: choose one of {', '.join(BITS)}")
    if recipe.weights is not None and recipe.int8:
        raise UsageError("--weights and --int8 exclude each other: --int8 quantizes weights too")
    if recipe.max_drop is not None and not recipe.int8:
        raise UsageError("--max-drop says which operators stay float under --int8: give --int8 as well")
    target = target_of(recipe.target)
    if recipe.int8 and target.refused is not None:
        raise UsageError(f"--int8 is refused for --target {target.name}: {target.refused}")


def quantizes(recipe: Recipe) -> bool:
    """Returns whether a recipe asks for other numbers than floats of 32 bits."""
    return any(getattr(recipe, name) for name in QUANTIZING)


def mask_scores(recipe: Recipe) -> list[str]:
    """Returns the mask scores that a recipe and its rules name."""
    named = [recipe.mask_score, *(rule.mask_score for rule in rules_of(recipe))]
    return [name for name in named if name is not None]


def _check_plan(recipe: Recipe) -> None:
    if recipe.plan is None:
        return
    defaults = {item.name: item.default for item in fields(Recipe)}
    for name in DECIDED:
        if getattr(recipe, name) != defaults[name]:
            raise UsageError(f"--{name.replace('_', '-')} and --plan exclude each other: a plan says already what goes")


def _check_samples(recipe: Recipe) -> None:
    if recipe.recover not in (None, NONE) and needs_samples(recipe.recover) and recipe.data is None:
        raise UsageError(f"the repair {recipe.recover!r} is fitted to samples: give --data, or choose fold")
    fitted = [name for name in mask_scores(recipe) if name != "magnitude"]
    if fitted and (recipe.data is None or repair_name(recipe) == NONE):
        raise UsageError(
            f"the mask score {fitted[0]!r} fits weights to samples: give --data and leave --recover at its default, "
            "or choose magnitude"
        )
    if recipe.int8 and recipe.data is None and not recipe.allow_random:
        raise UsageError(
            "--int8 takes ranges from samples: give --data, or --allow-random to take them from random inputs"
        )
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
    if isinstance(value, RecipeFile):
        return value.path
    if isinstance(value, os.PathLike | Preprocess):
        return str(value)
    sizes = isinstance(value, Mapping) and all(isinstance(item, tuple) for item in value.values())
    words = isinstance(value, tuple) and all(isinstance(item, str) for item in value)
    plain = value is None or isinstance(value, str | int | float) or sizes or words
    return value if plain else type(value).__name__
