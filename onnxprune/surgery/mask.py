"""Zeros in stored weights: by magnitude, and the count of what is there."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.errors import SurgeryError
from onnxprune.model.graph import copy_graph
from onnxprune.model.io import Graph
from onnxprune.model.shapes import Shapes
from onnxprune.model.sizes import infer_shapes
from onnxprune.model.weights import Weight, weights_of
from onnxprune.plan.masks import MaskedTensor, MaskPlan
from onnxprune.score.masks import arranged, arranged_back, magnitude


@dataclass(frozen=True, slots=True)
class MaskedRow:
    """The zeros of one stored tensor.

    ``spared`` is the number of outputs that a single decision of the pattern keeps from being empty, ``empty`` that of
    outputs without any weight, and ``unread`` that of input channels that no weight reads.
    """

    name: str
    nodes: tuple[str, ...]
    pattern: str
    size: int
    zeros: int
    spared: int
    empty: int
    unread: int


def mask_weights(graph: gs.Graph, plan: MaskPlan, shapes: Shapes | None = None) -> Graph:
    """Returns a copy of a graph in which the smallest weights are zero, in the patterns of a plan.

    Raises:
        SurgeryError: the graph lacks an operator that the plan names.
    """
    result = copy_graph(graph)
    for masked, weight in _planned(result, plan, shapes):
        spread = weight.spread
        kept = masked.pattern.keep(magnitude(arranged(weight.matrix(), spread)), masked.zeros)
        weight.clear(arranged_back(kept, spread))
    return result


def masked_rows(graph: gs.Graph, plan: MaskPlan, shapes: Shapes | None = None) -> tuple[MaskedRow, ...]:
    """Returns the zeros that a graph holds where a plan put them."""
    return tuple(_row(masked, weight) for masked, weight in _planned(graph, plan, shapes))


def _row(masked: MaskedTensor, weight: Weight) -> MaskedRow:
    pattern = masked.pattern
    full = arranged(weight.matrix(), weight.spread) != 0
    groups, rows, columns = full.shape
    cells = full.reshape(groups, rows // pattern.inputs, pattern.inputs, columns // pattern.outputs, pattern.outputs)
    left = cells.any(axis=(2, 4)).sum(axis=1)
    channels = full.reshape(groups, weight.spread, -1, columns).any(axis=(1, 3))
    return MaskedRow(
        masked.name, masked.nodes, str(pattern), full.size, int(np.count_nonzero(~full)),
        int(np.count_nonzero(left == 1)) * pattern.outputs, int(np.count_nonzero(~full.any(axis=1))),
        int(np.count_nonzero(~channels)),
    )  # fmt: skip


def _planned(graph: gs.Graph, plan: MaskPlan, shapes: Shapes | None) -> Iterator[tuple[MaskedTensor, Weight]]:
    found = {one.result: one for one in weights_of(graph, shapes or infer_shapes(graph))}
    for masked in plan.tensors:
        weight = next((found[name] for name in masked.results if name in found), None)
        if weight is None:
            raise SurgeryError(
                f"{masked.nodes[0]!r} has no stored weights any more: plan the masks for the graph as it is now"
            )
        yield masked, weight
