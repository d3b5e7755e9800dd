"""Which weights become zero: what the options of a recipe ask for, what its rules ask for, or what a plan holds."""

from collections.abc import Sequence
from functools import partial

from onnxprune.commands.parts import by_rule
from onnxprune.commands.recipe_file import Rule
from onnxprune.errors import PlanError
from onnxprune.model.io import Graph
from onnxprune.model.shapes import Shapes
from onnxprune.model.weights import Weight, weights_of
from onnxprune.plan.masks import MaskDemand, MaskedTensor, MaskPlan, masks_for
from onnxprune.plan.plan import MaskRow
from onnxprune.plan.select import Named
from onnxprune.report.schema import LeftNode, SparseTensor, Sparsity
from onnxprune.score.masks import PerGroup, Unstructured, pattern_of
from onnxprune.slim import Recipe
from onnxprune.surgery.mask import MaskedRow, masked_rows

WIDE = {"tensorrt": 256}
"""Channels below which sparse kernels of a target gain nothing from N:M."""

NO_SPEED = (
    "zeros make the file smaller where it is compressed or stored sparse; ONNX Runtime computes them like any other "
    "number and gains no speed from them"
)
"""What unstructured zeros are worth."""


def mask_demand(recipe: Recipe, rule: Rule | None) -> MaskDemand | None:
    """Returns what a recipe, or a rule of it, asks of the weights; ``None`` where it asks for no zeros."""
    asked: Recipe | Rule = recipe if rule is None else rule
    least = asked.nm_min_channels or recipe.nm_min_channels or WIDE.get(recipe.target, 1)
    if asked.nm is not None:
        return MaskDemand(pattern_of(asked.nm), nm_min_channels=least)
    if asked.sparsity is None and asked.threshold is None:
        return None
    pattern = Unstructured() if asked.block is None else pattern_of(asked.block)
    allocation = "global" if recipe.allocation == "global" else "uniform"
    return MaskDemand(pattern, asked.sparsity or 0.0, asked.threshold, allocation)


def mask_plan(graph: Graph, shapes: Shapes, recipe: Recipe) -> MaskPlan | None:
    """Returns which weights of a graph become zero; ``None`` where nothing asks for it.

    Args:
        graph: The graph as it is, channels and blocks already gone.
        shapes: Shapes of its tensors.
        recipe: A checked recipe.

    Raises:
        PlanError: weights are binary or ternary, or none can be masked.
    """
    found: list[MaskPlan] = []
    failure: PlanError | None = None
    for rule, names in by_rule(recipe, named_masks(graph, shapes)):
        demand = mask_demand(recipe, rule)
        if demand is None:
            continue
        try:
            made = masks_for(graph, demand, shapes=shapes, wanted=partial(_among, names))
        except PlanError as error:
            failure = failure or error
            continue
        found.append(made)
    if failure is not None and not found:
        raise failure
    if not found:
        return None
    masked = {node for made in found for one in made.tensors for node in one.nodes}
    dense = {one.node: one for made in found for one in made.dense if one.node not in masked}
    return MaskPlan(tuple(one for made in found for one in made.tensors), tuple(dense.values()))


def _among(names: set[str], node: str, tensor: str) -> bool:
    return tensor in names


def stored_masks(graph: Graph, shapes: Shapes, rows: Sequence[MaskRow]) -> MaskPlan | None:
    """Returns the masks of a plan.

    Raises:
        PlanError: the model lacks a tensor that the plan names.
    """
    weights: dict[str, list[Weight]] = {}
    for weight in weights_of(graph, shapes):
        weights.setdefault(weight.source.name, []).append(weight)
    tensors = []
    for row in rows:
        users = weights.get(row.tensor)
        if users is None:
            raise PlanError(
                f"the plan masks {row.tensor!r}, which is no weight of this model: make a plan for it with --save-plan"
            )
        groups, inputs, outputs = users[0].shape
        tensors.append(
            MaskedTensor(
                row.tensor, tuple(one.operator for one in users), tuple(one.result for one in users),
                pattern_of(row.pattern), row.zeros, groups * inputs * outputs,
            )
        )  # fmt: skip
    return MaskPlan(tuple(tensors)) if tensors else None


def plan_rows(masks: MaskPlan | None) -> tuple[MaskRow, ...]:
    """Returns masks as a plan keeps them."""
    return () if masks is None else tuple(MaskRow(one.name, str(one.pattern), one.zeros) for one in masks.tensors)


def named_masks(graph: Graph, shapes: Shapes) -> dict[str, Named]:
    """Returns the stored weights of a graph by their names and those of the operators that multiply with them."""
    names: dict[str, set[str]] = {}
    ops: dict[str, set[str]] = {}
    for weight in weights_of(graph, shapes):
        read = weight.node.inputs[weight.form.weight].name
        names.setdefault(weight.source.name, {weight.source.name}).update((weight.operator, read))
        ops.setdefault(weight.source.name, set()).add(weight.node.op)
    return {name: Named(frozenset(words), frozenset(ops[name])) for name, words in names.items()}


def sparsity_of(graph: Graph, shapes: Shapes, masks: MaskPlan | None) -> tuple[Sparsity, tuple[str, ...]]:
    """Returns the zeros of a result as its report lists them, and notes on what they mean."""
    if masks is None:
        return Sparsity(), ()
    rows = masked_rows(graph, masks, shapes)
    patterns = list(dict.fromkeys(row.pattern for row in rows))
    tensors = tuple(
        SparseTensor(row.name, row.zeros / max(row.size, 1), row.pattern, ", ".join(row.nodes)) for row in rows
    )
    whole = sum(row.zeros for row in rows) / max(sum(row.size for row in rows), 1)
    dense = tuple(LeftNode(one.node, one.reason) for one in masks.dense)
    return Sparsity(", ".join(patterns), whole, tensors, dense), _notes(masks, rows)


def _notes(masks: MaskPlan, rows: Sequence[MaskedRow]) -> tuple[str, ...]:
    notes = []
    if any(not isinstance(one.pattern, PerGroup) for one in masks.tensors):
        notes.append(NO_SPEED)
    empty, spared = [row.name for row in rows if row.empty], [row.name for row in rows if row.spared]
    if empty:
        notes.append(f"outputs without any weight are left in {_some(empty)}: they were empty before")
    if spared:
        notes.append(f"outputs that would have lost all their weights keep the best of them in {_some(spared)}")
    return tuple(notes)


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (" ..." if len(names) > 3 else "")
