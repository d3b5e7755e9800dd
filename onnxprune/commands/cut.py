"""What goes from a model, step by step: blocks, then channels, then weights; each step sees what is left."""

from dataclasses import dataclass, replace

from onnxprune.channels.groups import Channels, analyze
from onnxprune.commands.choose import Choice, Setting, choose_plan
from onnxprune.commands.depth import Depth, dropped
from onnxprune.commands.masks import mask_plan, plan_rows
from onnxprune.commands.parts import asks, asks_generally, check_selected, rules_of
from onnxprune.commands.repair import Repair
from onnxprune.commands.stopwatch import Stopwatch
from onnxprune.commands.task import Task
from onnxprune.errors import PlanError, UsageError
from onnxprune.model.graph import stored_tensors
from onnxprune.model.io import Graph
from onnxprune.model.sizes import infer_shapes
from onnxprune.plan.masks import MaskPlan
from onnxprune.plan.plan import Plan, plan_of
from onnxprune.plan.select import named_blocks, named_groups, named_weights
from onnxprune.recover.masking import CRITERIA
from onnxprune.slim import Recipe
from onnxprune.surgery.apply import stored_masks
from onnxprune.surgery.drop import drop_blocks
from onnxprune.surgery.slice import slice_channels

RECORDED = ("layers", "layer_score", "sparsity", "threshold", "nm", "block", "mask_score")
"""Options that a plan records beside those of the choice of channels."""


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """A model without what goes, before any repair of the whole.

    ``original`` is its analysis, ``shallow`` the graph without blocks, ``channels`` the analysis of that, repaired if
    channels go from it, ``sliced`` what they leave; ``masks`` are still to be put in.
    """

    original: Channels
    shallow: Graph
    channels: Channels
    depth: Depth
    choice: Choice
    sliced: Graph
    masks: MaskPlan | None

    @property
    def plan(self) -> Plan:
        """All that goes, by names that the original has."""
        stored = {tensor.name for _, tensor in stored_tensors(self.original.graph)}
        weights = tuple(row for row in self.choice.plan.weights if row[0] in stored)
        return replace(self.choice.plan, weights=weights, blocks=self.depth.names, masks=plan_rows(self.masks))

    @property
    def only_masks(self) -> bool:
        """Whether no operator became smaller: what runs is the same, and times differ by noise."""
        return self.masks is not None and not self.depth.gone and not self.choice.plan.removals


def cut(task: Task, watch: Stopwatch) -> Cut:
    """Returns a model without what a recipe or its plan takes away.

    Raises:
        SelectorError: a selector matches nothing.
        UsageError: more weights are to go than a plan says.
        PlanError: nothing can go, or the plan is for another model.
    """
    recipe, stored, inputs = task.recipe, task.stored, task.inputs
    inexact = recipe.inexact or (stored is not None and bool(stored.options.get("inexact")))
    deep = asks(recipe, "layers") or (stored is not None and bool(stored.blocks))
    with watch.stage("analyze"):
        original = whole = channels = analyze(task.graph, inputs.sizes, inexact=inexact)
        found = original.blocks if deep else ()
        others = (named_blocks(original.graph, found), named_weights(task.graph))
        check_selected(recipe, (named_groups(original), *others))
    depth, shallow = Depth(), original.graph
    if deep:
        with watch.stage("layers"):
            depth = dropped(original, found, task, watch.progress)
            shallow = drop_blocks(original.graph, depth.blocks)
            whole, channels = _without_blocks(original, shallow, task, inexact=inexact)
    with watch.stage("plan"):
        choice = _choice(channels, task, Setting(original.graph, task.whole, others, watch.progress))
    if not choice.plan.removals:
        channels = whole
    with watch.stage("surgery"):
        sliced = slice_channels(channels, choice.plan.removals)
        masks = _masks(sliced, task)
    result = Cut(original, shallow, channels, depth, choice, sliced, masks)
    if result.plan.empty and stored is None and _asks_for_some(recipe):
        raise PlanError(
            "what is asked for rounds to nothing: ask for more, or for a whole number of blocks by --layers K"
        )
    return result


def _asks_for_some(recipe: Recipe) -> bool:
    """Whether blocks or weights are asked for, more than none; channels have sentences of their own."""
    return not asks_generally(recipe) and any(
        getattr(one, name) for one in (recipe, *rules_of(recipe)) for name in ("layers", "sparsity", "threshold", "nm")
    )


def _without_blocks(original: Channels, shallow: Graph, task: Task, *, inexact: bool) -> tuple[Channels, Channels]:
    """Returns the analysis of what is left, and of its repaired graph where channels are to go from it."""
    channels = analyze(shallow, task.inputs.sizes, inexact=inexact)
    stored = task.stored
    narrower = asks(task.recipe, "channels", "max_macs", "max_params") if stored is None else bool(stored.removals)
    if not narrower:
        return channels, channels
    repaired, found = Repair.of(task.recipe).apply(shallow, channels, {}, task.runs, original.graph)
    return channels, analyze(repaired, task.inputs.sizes, inexact=inexact) if found else channels


def _choice(channels: Channels, task: Task, setting: Setting) -> Choice:
    recipe, stored = task.recipe, task.stored
    if stored is not None:
        stored.check(channels)
        return Choice(stored)
    narrower = asks(recipe, "channels", "max_macs", "max_params")
    choice = choose_plan(channels, recipe, task.inputs, setting) if narrower else Choice(plan_of(channels, {}))
    given = {name: getattr(recipe, name) for name in RECORDED if getattr(recipe, name) is not None}
    return replace(choice, plan=replace(choice.plan, options={**choice.plan.options, **given}))


def _masks(sliced: Graph, task: Task) -> MaskPlan | None:
    asked = asks(task.recipe, "sparsity", "threshold", "nm")
    held = () if task.stored is None else task.stored.masks
    if asked and held:
        raise UsageError("the plan says already which weights go: leave out --sparsity, --threshold and --nm")
    if not asked and not held:
        return None
    unknown = [row.criterion for row in held if row.criterion not in (None, *CRITERIA)]
    if unknown:
        raise PlanError(f"the plan names the mask score {unknown[0]!r}, which there is not: make the plan anew")
    shapes = infer_shapes(sliced, task.inputs.sizes)
    return stored_masks(sliced, shapes, held) if held else mask_plan(sliced, shapes, task.recipe)
