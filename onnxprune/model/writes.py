"""ScatterND that writes every element of a tensor at its own place is what it writes.

Exporters turn ``x[:, :, a:] = y`` into a ScatterND with the positions of all elements, computed from the sizes of x.
Where the slices turn out to be whole, the positions are a counter along every axis.
"""

from collections.abc import Iterator

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.model.fold import drop_unread, remove
from onnxprune.model.shapes import Array, Shape, Shapes, node_name


def replace_whole_writes(graph: gs.Graph, shapes: Shapes, kept: set[str]) -> bool:
    """Edits the graph in place; returns whether there were any."""
    dropped: set[int] = set()
    found = [place for place, node in enumerate(graph.nodes) if _is_whole(node, shapes)]
    for place in found:
        node = graph.nodes[place]
        data, indices, updates = node.inputs
        results = list(node.outputs)
        node.inputs.clear()
        node.outputs.clear()
        graph.nodes[place] = gs.Node("Identity", node_name(node), {}, [updates], results)
        drop_unread([data, indices], kept, dropped)
    remove(graph, dropped)
    return bool(found)


def _is_whole(node: gs.Node, shapes: Shapes) -> bool:
    if node.op != "ScatterND" or node.domain not in (None, "", "ai.onnx"):
        return False
    shape = shapes.shapes.get(node.inputs[0].name)
    if shape is None or shapes.shapes.get(node.inputs[2].name) != shape:
        return False
    if node.attrs.get("reduction", "none") not in ("none", b"none"):
        return False
    if shapes.shapes.get(node.inputs[1].name) != (*shape, len(shape)):
        return False
    columns = list(_columns(node.inputs[1], shape, shapes))
    return len(columns) == len(shape) and all(_counts(column, dim, shape) for dim, column in enumerate(columns))


def _columns(indices: gs.Tensor, shape: Shape, shapes: Shapes) -> Iterator[Array]:
    """Yields the positions along each axis, not yet stretched over the others, as far as they are computed from sizes.

    Stored ones do not follow the sizes: that they are as many as a free axis has would be a coincidence.
    """
    joined = next(iter(indices.inputs), None)
    if joined is None or joined.op != "Concat" or joined.attrs.get("axis") not in (-1, len(shape)):
        return
    for tensor in joined.inputs:
        for op in ("Unsqueeze", "Expand"):
            producer = next(iter(tensor.inputs), None)
            known = tensor.name in shapes.values and op == "Expand"
            if known or producer is None or producer.op != op:
                continue
            tensor = producer.inputs[0]
        if tensor.name in shapes.values and tensor.name not in shapes.stored:
            yield shapes.values[tensor.name]


def _counts(column: Array, dim: int, shape: Shape) -> bool:
    """Whether positions count from 0 along one dimension and are the same along all others."""
    wanted = np.ones(len(shape), np.int64)
    wanted[dim] = shape[dim]
    if column.ndim == len(shape) + 1 and column.shape[-1] == 1:
        column = column[..., 0]
    try:
        return bool(np.array_equal(np.broadcast_to(column, wanted), np.arange(shape[dim]).reshape(wanted)))
    except ValueError:
        return False
