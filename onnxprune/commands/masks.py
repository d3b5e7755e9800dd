"""Which weights become zero: what the options of a recipe ask for, or what its rules ask for."""

from collections.abc import Sequence
from functools import partial

from onnxprune.commands.parts import by_rule
from onnxprune.commands.recipe_file import Rule
from onnxprune.model.io import Graph
from onnxprune.model.shapes import Shapes
from onnxprune.model.weights import weights_of
from onnxprune.plan.masks import Dense, MaskDemand, MaskPlan, eligible_weights, masks_for
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
    criterion = asked.mask_score or recipe.mask_score
    if asked.nm is not None:
        return MaskDemand(pattern_of(asked.nm), nm_min_channels=least, criterion=criterion)
    if asked.sparsity is None and asked.threshold is None:
        return None
    pattern = Unstructured() if asked.block is None else pattern_of(asked.block)
    allocation = "uniform" if recipe.allocation == "uniform" or asked.block is not None else "global"
    return MaskDemand(pattern, asked.sparsity or 0.0, asked.threshold, allocation, criterion=criterion)


def mask_plan(graph: Graph, shapes: Shapes, recipe: Recipe) -> MaskPlan | None:
    """Returns which weights of a graph become zero; ``None`` where nothing asks for it.

    Args:
        graph: The graph as it is, channels and blocks already gone.
        shapes: Shapes of its tensors.
        recipe: A checked recipe.

    Raises:
        PlanError: weights are binary or ternary, or none can be masked.
    """
    things = named_masks(graph, shapes)
    parts = [(mask_demand(recipe, rule), names) for rule, names in by_rule(recipe, things)]
    asked = [(demand, names) for demand, names in parts if demand is not None]
    general = mask_demand(recipe, None)
    if not asked and general is not None:
        asked = [(general, set())]
    found = [(_part(graph, shapes, demand, names), names) for demand, names in asked]
    tensors = tuple(one for made, _ in found for one in made.tensors)
    if asked and not tensors:
        return _masked(graph, shapes, *asked[0])  # says why there is nothing
    dense: dict[str, Dense] = {}
    for made, names in found:
        own = set[str]().union(*(things[name].names for name in names))
        dense.update((one.node, one) for one in made.dense if one.node in own or one.node not in dense)
    masked = {node for one in tensors for node in one.nodes}
    return MaskPlan(tensors, tuple(one for one in dense.values() if one.node not in masked)) if asked else None


def _part(graph: Graph, shapes: Shapes, demand: MaskDemand, names: set[str]) -> MaskPlan:
    """Returns what to mask of the selected weights, which may be nothing."""
    eligible, dense = eligible_weights(graph, shapes, demand, partial(_among, names))
    return _masked(graph, shapes, demand, names) if eligible else MaskPlan((), tuple(dense))


def _masked(graph: Graph, shapes: Shapes, demand: MaskDemand, names: set[str]) -> MaskPlan:
    return masks_for(graph, demand, shapes=shapes, wanted=partial(_among, names))


def _among(names: set[str], node: str, tensor: str) -> bool:
    return tensor in names


def plan_rows(masks: MaskPlan | None) -> tuple[MaskRow, ...]:
    """Returns masks as a plan keeps them."""
    tensors = () if masks is None else masks.tensors
    return tuple(MaskRow(one.name, str(one.pattern), one.zeros, one.fixed, one.criterion) for one in tensors)


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
