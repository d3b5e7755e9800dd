"""Integer operators as what they compute: the operator on real numbers, with its weights behind DequantizeLinear."""

from dataclasses import replace

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.model.graph import copy_graph
from onnxprune.model.shapes import Shapes

_OPERATORS = {
    "ConvInteger": ("Conv", 1, 3, 0),
    "MatMulInteger": ("MatMul", 1, 3, -1),
    "QLinearConv": ("Conv", 3, 5, 0),
    "QLinearMatMul": ("MatMul", 3, 5, -1),
}
"""The real operator, the slots of the weights and of their zero point, and the axis of the output channels."""


def with_real_weights(graph: gs.Graph, shapes: Shapes) -> tuple[gs.Graph, Shapes]:
    """Returns a copy to look into, in which integer operators read real weights; the graph itself if it has none.

    Scales are left out, so that it shows where weights are zero and does not compute what the graph does.
    """
    if not any(node.op in _OPERATORS for node in graph.nodes):
        return graph, shapes
    result, known, nodes = copy_graph(graph), dict(shapes.shapes), []
    for node in result.nodes:
        if node.op in _OPERATORS and node.outputs[0].name:
            made = _real(node)
            nodes.append(made)
            if made.inputs[0].name in known:
                known[made.outputs[0].name] = known[made.inputs[0].name]
        nodes.append(node)
    result.nodes[:] = nodes
    return result, replace(shapes, shapes=known)


def _real(node: gs.Node) -> gs.Node:
    """Makes a node its real counterpart, and returns the DequantizeLinear before it."""
    op, slot, zero_slot, axis = _OPERATORS[node.op]
    name = f"{node.outputs[0].name}.weights"
    weights, real = node.inputs[slot], gs.Variable(name)
    scale = gs.Constant(f"{name}.scale", np.ones(1, np.float32))
    zero = [node.inputs[zero_slot]] if len(node.inputs) > zero_slot and node.inputs[zero_slot].name else []
    node.op, data = op, node.inputs[0]
    node.inputs = [data, real]
    return gs.Node("DequantizeLinear", name, {"axis": axis}, [weights, scale, *zero], [real])
