"""The references of the proofs: the original graph with removed channels silenced, or with blocks bypassed."""

from collections.abc import Iterable

import numpy as np
import onnx_graphsurgeon as gs
from onnx import helper

from onnxprune.channels.blocks import Block
from onnxprune.channels.facts import Axis
from onnxprune.channels.flow import LENGTHS
from onnxprune.channels.groups import Channels
from onnxprune.model.io import Graph, read_values
from onnxprune.model.shapes import opset_of
from onnxprune.surgery.gone import Gone, Removals


def silence(channels: Channels, removals: Removals) -> Graph:
    """Returns a copy of the original graph with a gate on every summed input that has removed channels.

    A gate is ``Where(mask, x, 0)``, not a product, which would keep NaN; opsets before 9 have no Where and take Mul.
    """
    gone = Gone(channels, removals)
    graph: Graph = channels.graph.copy()
    nodes = list(graph.nodes)
    where = opset_of(graph, "") >= 9
    gates: dict[tuple[str, int], gs.Variable] = {}
    zeroed: dict[tuple[str, int], gs.Constant] = {}
    before: dict[int, list[gs.Node]] = {}
    unaccompanied = _unaccompanied(channels)
    for contraction in channels.contractions:
        node = nodes[contraction.node]
        tensor = node.inputs[contraction.slot]
        name = channels.graph.nodes[contraction.node].inputs[contraction.slot].name
        lost = gone.lost(Axis(name, contraction.dim))
        if not lost.size:
            continue
        if isinstance(tensor, gs.Constant):
            if contraction.node in unaccompanied and not tensor.name.endswith(_suffix(contraction.dim)):
                key = (tensor.name, contraction.dim)
                zeroed.setdefault(key, _zeroed(tensor, contraction.dim, lost))
                node.inputs[contraction.slot] = zeroed[key]
            continue
        key = (tensor.name, contraction.dim)
        if key not in gates:
            shape = channels.shapes.shapes[name]
            dtype = helper.tensor_dtype_to_np_dtype(channels.shapes.types[name])
            gates[key] = gs.Variable(tensor.name + _suffix(contraction.dim), dtype)
            gate = _gate(gates[key].name, tensor, (shape, contraction.dim, lost), dtype, where=where)
            gate.outputs.append(gates[key])
            before.setdefault(id(node), []).append(gate)
        node.inputs[contraction.slot] = gates[key]
    graph.nodes[:] = [item for node in nodes for item in (*before.get(id(node), ()), node)]
    return graph


def bypass(original: Graph, blocks: Iterable[Block]) -> Graph:
    """Returns a copy of the original graph in which everything that reads the exit of a block reads its entry.

    The blocks themselves stay, and compute what nobody reads; an output of the graph is written by an Identity.
    """
    graph: Graph = original.copy()
    tensors = {tensor.name: tensor for node in graph.nodes for tensor in (*node.inputs, *node.outputs)}
    sources: dict[str, gs.Tensor] = {}
    for block in sorted(blocks, key=lambda block: max(block.nodes)):
        entry, end = sources.get(block.entry, tensors[block.entry]), tensors[block.exit]
        sources[block.exit] = entry
        lengths = [node for name in block.lengths for node in tensors[name].outputs if node.op in LENGTHS]
        for node in (*lengths, *list(end.outputs)):
            replaced = {end.name, *block.lengths} if node.op in LENGTHS else {end.name}
            for slot, tensor in enumerate(list(node.inputs)):
                if tensor.name in replaced:
                    node.inputs[slot] = entry
        if any(tensor is end for tensor in graph.outputs):
            maker = end.inputs[0]
            slot = [tensor is end for tensor in maker.outputs].index(True)
            maker.outputs[slot] = gs.Variable(f"{end.name}_bypassed", end.dtype)
            graph.nodes.append(gs.Node("Identity", f"{end.name}_bypass", {}, [entry], [end]))
    return graph


def _unaccompanied(channels: Channels) -> set[int]:
    """Nodes where a stored tensor may be summed with stored tensors alone, so that it has to be silenced itself."""
    slots: dict[int, set[int]] = {}
    computed: set[int] = set()
    for contraction in channels.contractions:
        slots.setdefault(contraction.node, set()).add(contraction.slot)
        if not isinstance(channels.graph.nodes[contraction.node].inputs[contraction.slot], gs.Constant):
            computed.add(contraction.node)
    return {node for node, found in slots.items() if len(found) > 2 or node not in computed}


def _zeroed(tensor: gs.Constant, dim: int, lost: np.ndarray) -> gs.Constant:
    values = np.array(read_values(tensor))
    values[(slice(None),) * dim + (lost,)] = 0
    return gs.Constant(tensor.name + _suffix(dim), values)


def _suffix(dim: int) -> str:
    return f"_silenced_{dim}"


def _gate(
    name: str, tensor: gs.Tensor, hole: tuple[tuple[int, ...], int, np.ndarray], dtype: np.dtype, *, where: bool
) -> gs.Node:
    shape, dim, lost = hole
    mask = np.ones((shape[dim], *[1] * (len(shape) - dim - 1)), bool)  # no leading ones: they could raise the rank
    mask[lost] = False
    if where:
        inputs = [gs.Constant(f"{name}_mask", mask), tensor, gs.Constant(f"{name}_zero", np.zeros((), dtype))]
        return gs.Node("Where", name, {}, inputs)
    return gs.Node("Mul", name, {}, [tensor, gs.Constant(f"{name}_mask", mask.astype(dtype))])
