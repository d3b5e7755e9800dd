"""Operators that need every channel in its place: zeros stand in for the removed ones, and go again behind the node."""

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.channels.facts import Index
from onnxprune.model.io import Graph
from onnxprune.model.shapes import node_name, opset_of


def restore_width(graph: Graph, node: gs.Node, shape: Sequence[int], dim: int, kept: Index) -> None:
    """Puts a Pad and a Gather before the node, which bring back the full ``shape``, and a Gather behind it."""
    source, result = node.inputs[0], node.outputs[0]
    rank, length = len(shape), shape[dim]
    name = node_name(node)
    padded = gs.Variable(f"{name}_padded", source.dtype)
    full = gs.Variable(f"{name}_full", source.dtype)
    wide = gs.Variable(f"{name}_wide", result.dtype)
    pads = np.zeros(2 * rank, np.int64)
    pads[rank + dim] = 1
    places = np.full(length, kept.size, np.int64)
    places[kept] = np.arange(kept.size)
    old = opset_of(graph, "") < 11
    pad = gs.Node("Pad", f"{name}_pad", {"pads": pads.tolist()} if old else {}, [source], [padded])
    if not old:
        pad.inputs.append(gs.Constant(f"{name}_pads", pads))
    spread = gs.Node("Gather", f"{name}_spread", {"axis": dim}, [padded, gs.Constant(f"{name}_places", places)], [full])
    position = next(place for place, other in enumerate(graph.nodes) if other is node)
    node.inputs[0] = full
    node.outputs[0] = wide
    pick = gs.Node("Gather", f"{name}_pick", {"axis": dim}, [wide, gs.Constant(f"{name}_kept", kept)], [result])
    graph.nodes[position : position + 1] = [pad, spread, node, pick]
