"""Equal graphs that are easier to prune: edits that change no result, made on the copy that is analysed.

* A channel shuffle (Reshape, Transpose, Reshape within one axis) is a permutation, and becomes a Gather with stored
  positions: Reshape could only lose whole rows or columns of it.
* What is computed from stored tensors alone becomes a stored tensor where rules could only freeze it (``fold``).
* A tensor that is overwritten as a whole is what it is overwritten with (``writes``).
"""

import math
from collections.abc import Mapping

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxprune.model.fold import drop_unread, fold, remove
from onnxprune.model.graph import read_outside
from onnxprune.model.shapes import Shape, Shapes, ShapeWalk, node_name
from onnxprune.model.sizes import generic_shapes
from onnxprune.model.states import drop_zero_states
from onnxprune.model.untie import untie
from onnxprune.model.writes import replace_whole_writes


def prepare(graph: gs.Graph, sizes: Mapping[str, Shape] | None = None) -> tuple[Shapes, dict[str, Shape]]:
    """Edits the graph in place, and returns its shapes and the input sizes that they follow from.

    Args:
        graph: A graph without functions.
        sizes: Input sizes by name; free dimensions get sizes that suit the graph.
    """
    drop_zero_states(graph)
    untie(graph)
    shapes, inputs = generic_shapes(graph, sizes)
    return (ShapeWalk(graph, inputs).run() if normalize(graph, shapes) else shapes), inputs


def normalize(graph: gs.Graph, shapes: Shapes) -> bool:
    """Edits the graph in place and returns whether ``shapes`` have to be inferred again."""
    kept = read_outside(graph)
    folded = fold(graph, shapes, kept)
    written = replace_whole_writes(graph, shapes, kept)
    shuffled = _gather_shuffles(graph, shapes, kept)
    return folded or written or shuffled


def _gather_shuffles(graph: gs.Graph, shapes: Shapes, outputs: set[str]) -> bool:
    dropped: set[int] = set()
    for node in list(graph.nodes):
        chain = _shuffle(node, outputs)
        places = None if chain is None else _permutation(chain, shapes)
        if chain is None or places is None:
            continue
        axis, order = places
        first, middle, last = chain
        source, result = first.inputs[0], last.outputs[0]
        positions = gs.Constant(f"{result.name}_order", order)
        operands = [tensor for old in chain for tensor in old.inputs[1:]]
        for old in chain:
            old.inputs.clear()
            old.outputs.clear()
        gather = gs.Node("Gather", node_name(last), {"axis": axis}, [source, positions], [result])
        graph.nodes[_position(graph, last)] = gather
        drop_unread(operands, outputs, dropped)
        dropped.update((id(first), id(middle)))
    remove(graph, dropped)
    return bool(dropped)


def _shuffle(node: gs.Node, outputs: set[str]) -> tuple[gs.Node, gs.Node, gs.Node] | None:
    """Returns Reshape, Transpose, Reshape where nothing else reads what lies between them."""
    chain = [node]
    for op in ("Transpose", "Reshape"):
        tail = chain[-1].outputs[0] if chain[-1].outputs else None
        if chain[0].op != "Reshape" or tail is None or tail.name in outputs or len(tail.outputs) != 1:
            return None
        chain.append(tail.outputs[0])
        if chain[-1].op != op or chain[-1].inputs[0] is not tail:
            return None
    return chain[0], chain[1], chain[2]


def _permutation(chain: tuple[gs.Node, gs.Node, gs.Node], shapes: Shapes) -> tuple[int, NDArray[np.int64]] | None:
    """Returns the axis whose channels the chain permutes and their new order, if it does nothing else."""
    first, middle, last = chain
    names = (first.inputs[0].name, first.outputs[0].name, last.outputs[0].name)
    before, split, after = (shapes.shapes.get(name) for name in names)
    if before is None or split is None or before != after or len(split) <= len(before):
        return None
    factors = len(split) - len(before) + 1
    order = list(middle.attrs.get("perm") or reversed(range(len(split))))
    for axis, length in enumerate(before):
        inside = range(axis, axis + factors)
        rest = [*split[:axis], *split[axis + factors :]]
        if rest != [*before[:axis], *before[axis + 1 :]] or math.prod(split[axis : axis + factors]) != length:
            continue
        moved = [dim for dim, source in enumerate(order) if dim != source]
        if moved and all(dim in inside for dim in moved):
            places = np.arange(length).reshape(split[axis : axis + factors])
            return axis, places.transpose([order[dim] - axis for dim in inside]).ravel()
    return None


def _position(graph: gs.Graph, node: gs.Node) -> int:
    return next(place for place, other in enumerate(graph.nodes) if other is node)
