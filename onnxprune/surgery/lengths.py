"""Lengths of pruned axes that shape arithmetic divides: read as they were, so that nothing is truncated on the way.

``Shape(x)[0] // heads`` is the batch where x merges batch and heads. With half of the heads gone it would be half of
the batch, rounded down. A number that goes through a division is therefore put back to its original value where it is
read, which is exact, and the operand that it ends in follows as any other does.
"""

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.channels.groups import Channels
from onnxprune.model.io import Graph
from onnxprune.model.shapes import node_name
from onnxprune.surgery.gone import Gone

DIVIDING = {"Ceil", "Clip", "Div", "Floor", "Max", "Min", "Mod"}
"""Operators of shape arithmetic that do not simply scale with what they read."""


def restore_lengths(graph: Graph, channels: Channels, gone: Gone) -> None:
    """Edits the graph in place: what Shape reads of pruned axes is scaled back where a division follows."""
    divided = {
        axis.tensor
        for node in channels.graph.nodes
        if node.op in DIVIDING
        for tensor in node.inputs
        if tensor.name in channels.shapes.origins
        for axes in channels.shapes.origins[tensor.name].ravel()
        for axis in axes
        if gone.lost(axis).size
    }
    nodes: list[gs.Node] = []
    for node in graph.nodes:
        nodes.append(node)
        if node.op == "Shape" and node.inputs[0].name in divided:
            nodes += _restored(node, channels, gone)
    graph.nodes[:] = nodes


def _restored(node: gs.Node, channels: Channels, gone: Gone) -> list[gs.Node]:
    source, lengths = node.inputs[0].name, node.outputs[0]
    part = slice(node.attrs.get("start", 0), node.attrs.get("end"))
    before = np.array(channels.shapes.shapes[source], np.int64)
    after = np.array(gone.shape(source, channels.shapes.shapes[source]), np.int64)
    same = before == after
    readers = list(lengths.outputs)
    tensors, fresh = [lengths], []
    for op, numbers in (("Mul", np.where(same, 1, before)[part]), ("Div", np.where(same, 1, after)[part])):
        name = f"{node_name(node)}_{op.lower()}_back"
        result = gs.Variable(name, np.dtype(np.int64), [len(numbers)])
        fresh.append(gs.Node(op, name, {}, [tensors[-1], gs.Constant(f"{name}_by", numbers)], [result]))
        tensors.append(result)
    for reader in readers:
        for slot, tensor in enumerate(list(reader.inputs)):
            if tensor is lengths:
                reader.inputs[slot] = tensors[-1]
    return fresh
