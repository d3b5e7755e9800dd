"""A whole plan at once: blocks go first, then channels, then weights."""

from collections.abc import Sequence

from onnxprune.channels.blocks import Block
from onnxprune.channels.groups import Channels, analyze
from onnxprune.errors import PlanError
from onnxprune.model.io import Graph
from onnxprune.model.shapes import Shapes
from onnxprune.model.sizes import infer_shapes
from onnxprune.model.weights import Weight, weights_of
from onnxprune.plan.masks import MaskedTensor, MaskPlan
from onnxprune.plan.plan import MaskRow, Plan
from onnxprune.score.masks import pattern_of
from onnxprune.surgery.drop import drop_blocks
from onnxprune.surgery.mask import mask_weights
from onnxprune.surgery.slice import slice_channels


def apply(model: object, plan: Plan) -> Graph:
    """Returns a copy of a model without what a plan names; the smallest weights become zero, in its patterns.

    Args:
        model: A path, a ``ModelProto``, a graph, or the analysis of one.
        plan: The plan.

    Raises:
        PlanError: the plan was made for another model.
        SurgeryError: a shape did not come out as it must.
    """
    inexact = bool(plan.options.get("inexact"))
    channels = model if isinstance(model, Channels) else analyze(model, inexact=inexact)
    if plan.blocks:
        blocks = stored_blocks(channels.blocks, plan.blocks)
        channels = analyze(drop_blocks(channels.graph, blocks), channels.sizes, inexact=inexact)
    plan.check(channels)
    sliced = slice_channels(channels, plan.removals)
    shapes = infer_shapes(sliced, channels.sizes)
    masks = stored_masks(sliced, shapes, plan.masks)
    return sliced if masks is None else mask_weights(sliced, masks, shapes)


def stored_blocks(found: Sequence[Block], names: Sequence[str]) -> list[Block]:
    """Returns the blocks that a plan names.

    Raises:
        PlanError: the model lacks one of them.
    """
    known = {block.name: block for block in found}
    for name in names:
        if name not in known:
            raise PlanError(f"the plan drops block {name!r}, which the model does not have: make the plan anew")
    return [known[name] for name in names]


def stored_masks(graph: Graph, shapes: Shapes, rows: Sequence[MaskRow]) -> MaskPlan | None:
    """Returns the masks of a plan, ``None`` where it has none.

    Raises:
        PlanError: the model lacks a tensor that the plan names.
    """
    weights: dict[str, list[Weight]] = {}
    for weight in weights_of(graph, shapes) if rows else ():
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
                pattern_of(row.pattern), row.zeros, groups * inputs * outputs, row.fixed, row.criterion,
            )
        )  # fmt: skip
    return MaskPlan(tuple(tensors)) if tensors else None
