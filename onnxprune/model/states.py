"""Initial states of recurrent operators that are zeros, which is what an absent one means.

Exporters make one block of zeros and give each layer and state its part; the parts would tie layers that have nothing
to do with one another.
"""

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.model.graph import captured
from onnxprune.model.io import read_values
from onnxprune.model.shapes import stored_tensor

RECURRENT = {"LSTM", "GRU", "RNN"}
STATES = (5, 6)
KEEPS_ZEROS = {
    "Cast", "Concat", "Expand", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose",
    "Unsqueeze",
}  # fmt: skip
"""Operators that only rearrange, repeat or convert what they take in (from the first input, Concat from all)."""


def drop_zero_states(graph: gs.Graph) -> bool:
    """Edits the graph in place, with the nodes that only computed such states; returns whether there were any."""
    dropped: list[gs.Tensor] = []
    for node in graph.nodes:
        if node.op not in RECURRENT or node.domain not in (None, "", "ai.onnx"):
            continue
        for slot in STATES:
            if slot < len(node.inputs) and _is_zero(node.inputs[slot]):
                dropped.append(node.inputs[slot])
                node.inputs[slot] = gs.Variable.empty()
        while dropped and node.inputs and not node.inputs[-1].name:
            node.inputs.pop()
    _remove_unread(graph, dropped)
    return bool(dropped)


def _is_zero(tensor: gs.Tensor) -> bool:
    if isinstance(tensor, gs.Constant):
        return _all_zero(read_values(tensor))
    producer = tensor.inputs[0] if tensor.inputs else None
    if producer is None or producer.domain not in (None, "", "ai.onnx"):
        return False
    if producer.op == "Constant":
        stored = stored_tensor(producer)
        return stored is not None and _all_zero(stored)
    if producer.op == "ConstantOfShape":
        fill = producer.attrs.get("value")
        return fill is None or (isinstance(fill, gs.Constant) and _all_zero(read_values(fill)))
    sources = producer.inputs if producer.op == "Concat" else producer.inputs[:1]
    return producer.op in KEEPS_ZEROS and bool(sources) and all(map(_is_zero, sources))


def _all_zero(values: np.ndarray) -> bool:
    return values.dtype.kind in "fiub" and not values.any()


def _remove_unread(graph: gs.Graph, tensors: list[gs.Tensor]) -> None:
    """Removes the nodes that compute tensors which nothing reads any more, and then those before them."""
    needed = {tensor.name for tensor in graph.outputs}
    for node in graph.nodes:
        for value in node.attrs.values():
            if isinstance(value, gs.Graph):
                needed |= captured(value)
    waiting, gone = list(tensors), set()
    while waiting:
        tensor = waiting.pop()
        producer = tensor.inputs[0] if tensor.inputs else None
        if producer is None or any(output.outputs or output.name in needed for output in producer.outputs):
            continue
        waiting += list(producer.inputs)
        gone.add(id(producer))
        producer.inputs.clear()
        producer.outputs.clear()
    graph.nodes[:] = [node for node in graph.nodes if id(node) not in gone]
