"""Activations of a quantized model as if they were not rounded: two sums in another order would round apart."""

import onnx_graphsurgeon as gs

from onnxprune.model.io import Graph


def take_out_rounding(graph: Graph) -> None:
    """Makes Identity of every QuantizeLinear of a computed tensor, and of the DequantizeLinear nodes behind it.

    The graph is edited in place. Pairs stay whose integers are used elsewhere too, or that return another type.
    """
    returned = {id(tensor) for tensor in graph.outputs}
    for node in graph.nodes:
        if node.op != "QuantizeLinear" or isinstance(node.inputs[0], gs.Constant):
            continue
        source, rounded = node.inputs[0], node.outputs[0]
        readers = list(rounded.outputs)
        pair = id(rounded) not in returned and all(reader.op == "DequantizeLinear" for reader in readers)
        if pair and all(reader.inputs[0] is rounded and _same_type(source, reader) for reader in readers):
            rounded.dtype = source.dtype
            for one in (node, *readers):
                one.op, one.domain = "Identity", None
                one.attrs.clear()
                one.inputs = [one.inputs[0]]


def _same_type(source: gs.Tensor, reader: gs.Node) -> bool:
    types = {tensor.dtype for tensor in (source, reader.outputs[0]) if tensor.dtype is not None}
    return len(types) < 2
