"""Gives every reader of a small shared vector its own copy.

Exporters store equal vectors once: a zero bias that twenty convolutions read would tie their channels for no reason.
"""

import onnx_graphsurgeon as gs

LARGEST_COPY = 65536
"""Elements up to which a shared vector is copied; matrices stay shared (tied embeddings are meant to be)."""


def untie(graph: gs.Graph) -> None:
    """Edits the graph in place: shared stored vectors are copied for every node after the first that reads them."""
    readers: dict[int, int] = {}
    names = {tensor.name for node in graph.nodes for tensor in (*node.inputs, *node.outputs)}
    for node in graph.nodes:
        for slot, tensor in enumerate(list(node.inputs)):
            if not isinstance(tensor, gs.Constant) or len(tensor.shape) != 1 or not 1 < tensor.shape[0] <= LARGEST_COPY:
                continue
            readers[id(tensor)] = readers.get(id(tensor), 0) + 1
            if readers[id(tensor)] == 1:
                continue
            name = f"{tensor.name}_{readers[id(tensor)]}"
            while name in names:
                name += "_"
            names.add(name)
            copy = tensor.copy()
            copy.name = name
            node.inputs[slot] = copy
