"""Operators that need every channel: zeros stand in for the removed ones, and go again behind the node.

Two kinds of operators do. LRN sums over neighbours, so that channels have to keep their places. LayerNormalization and
its kin take a mean and a variance over all channels, which do not see the order: zeros stand behind the channels that
are left, as many as went, so that the statistics run over the original number. Measured on a CPU, that is faster than
the same written out (mean of K channels times K / N, and so on), and as stable as the operator itself is.
"""

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.channels.facts import Index, Restore, Result
from onnxprune.model.io import Graph, read_values
from onnxprune.model.shapes import opset_of


@dataclass(frozen=True, slots=True)
class Width:
    """What is to be restored: a dimension of the first input, its full length, what is left of it.

    ``ranks`` are those of all inputs.
    """

    dim: int
    length: int
    kept: Index
    ranks: tuple[int, ...]

    @property
    def missing(self) -> int:
        """How many channels went."""
        return self.length - self.kept.size


def restore_width(graph: Graph, node: gs.Node, fact: Restore, width: Width) -> None:
    """Gives a node the full width of an axis, with nodes before it, and takes it back behind it."""
    before, behind = _in_place(graph, node, width) if fact.in_place else _behind(graph, node, fact, width)
    position = next(place for place, other in enumerate(graph.nodes) if other is node)
    graph.nodes[position : position + 1] = [*before, node, behind]


def combine_result(graph: Graph, node: gs.Node, where: Result, op: str, number: np.ndarray) -> None:
    """Puts an operator of two inputs between a result of a node and a number; what comes out takes over its name."""
    result = node.outputs[where.slot]
    name = f"{result.name}_of_all"
    partial = gs.Variable(f"{result.name}_of_kept", number.dtype)
    node.outputs[where.slot] = partial
    whole = gs.Node(op, name, {}, [partial, gs.Constant(f"{name}_by", number)], [result])
    position = next(place for place, other in enumerate(graph.nodes) if other is node)
    graph.nodes.insert(position + 1, whole)


def _in_place(graph: Graph, node: gs.Node, width: Width) -> tuple[list[gs.Node], gs.Node]:
    """One zero behind the channels, and a Gather that takes it wherever one went."""
    source, result = node.inputs[0], node.outputs[0]
    name = result.name
    padded, full = gs.Variable(f"{name}_padded", source.dtype), gs.Variable(f"{name}_full", source.dtype)
    wide = gs.Variable(f"{name}_wide", result.dtype)
    places = np.full(width.length, width.kept.size, np.int64)
    places[width.kept] = np.arange(width.kept.size)
    pad = _pad(graph, source, padded, (width.dim, width.ranks[0], 1))
    along = {"axis": width.dim}
    spread = gs.Node("Gather", f"{name}_spread", along, [padded, gs.Constant(f"{name}_places", places)], [full])
    node.inputs[0], node.outputs[0] = full, wide
    kept = gs.Constant(f"{name}_kept", width.kept)
    return [pad, spread], gs.Node("Gather", f"{name}_pick", dict(along), [wide, kept], [result])


def _behind(graph: Graph, node: gs.Node, fact: Restore, width: Width) -> tuple[list[gs.Node], gs.Node]:
    """All zeros behind the channels, and a Slice that cuts off what they became."""
    result = node.outputs[0]
    name = result.name
    before = []
    for slot, dim in ((0, width.dim), *fact.along):
        source = node.inputs[slot]
        if isinstance(source, gs.Constant):
            values = read_values(source)
            ends = [(0, width.missing if place == dim else 0) for place in range(values.ndim)]
            node.inputs[slot] = gs.Constant(f"{name}_full_{slot}", np.pad(values, ends))
            continue
        full = gs.Variable(f"{name}_full_{slot}", source.dtype)
        before.append(_pad(graph, source, full, (dim, width.ranks[slot], width.missing)))
        node.inputs[slot] = full
    wide = gs.Variable(f"{name}_wide", result.dtype)
    node.outputs[0] = wide
    return before, _cut(graph, wide, result, width)


def _pad(graph: Graph, source: gs.Tensor, full: gs.Tensor, hole: tuple[int, int, int]) -> gs.Node:
    dim, rank, count = hole
    pads = np.zeros(2 * rank, np.int64)
    pads[rank + dim] = count
    if opset_of(graph, "") < 11:
        return gs.Node("Pad", f"{full.name}_pad", {"pads": pads.tolist()}, [source], [full])
    return gs.Node("Pad", f"{full.name}_pad", {}, [source, gs.Constant(f"{full.name}_pads", pads)], [full])


def _cut(graph: Graph, wide: gs.Tensor, result: gs.Tensor, width: Width) -> gs.Node:
    name = f"{wide.name}_cut"
    bounds = {"starts": [0], "ends": [int(width.kept.size)], "axes": [width.dim]}
    if opset_of(graph, "") < 10:
        return gs.Node("Slice", name, bounds, [wide], [result])
    stored = [gs.Constant(f"{name}_{key}", np.array(value, np.int64)) for key, value in bounds.items()]
    return gs.Node("Slice", name, {}, [wide, *stored], [result])
