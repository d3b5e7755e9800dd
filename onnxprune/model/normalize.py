"""Equal graphs that are easier to prune: edits that change no result, made on the copy that is analysed.

* A channel shuffle (Reshape, Transpose, Reshape within one axis) is a permutation, and becomes a Gather with stored
  positions: Reshape could only lose whole rows or columns of it.
* What is computed from stored tensors alone, by an operator without a channel rule, is computed now.
"""

import logging
import math
from collections.abc import Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from onnxprune.model.io import read_values
from onnxprune.model.shapes import Shapes, node_name, node_proto, opset_of, stored_tensor
from onnxprune.ops import operator

LOG = logging.getLogger("onnxprune")
LARGEST_FOLD = 2**24
"""Elements up to which a stored result is computed."""


FOLDED = {
    "BatchNormalization", "InstanceNormalization", "LayerNormalization", "ReduceL1", "ReduceL2", "ReduceMax",
    "ReduceMean", "ReduceMin", "ReduceSum", "ReduceSumSquare", "ScatterElements", "ScatterND",
}  # fmt: skip
"""Operators that are computed although they have a channel rule: over stored tensors, it would only freeze (statistics
of standardized weights, zeros scattered into a bias)."""

MOVES = {"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}


def normalize(graph: gs.Graph, shapes: Shapes) -> bool:
    """Edits the graph in place and returns whether ``shapes`` have to be inferred again."""
    folded = _fold(graph, shapes)
    shuffled = _gather_shuffles(graph, shapes)
    return folded or shuffled


def _gather_shuffles(graph: gs.Graph, shapes: Shapes) -> bool:
    outputs = {tensor.name for tensor in graph.outputs}
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
        _drop_unread(operands, outputs, dropped)
        dropped.update((id(first), id(middle)))
    _remove(graph, dropped)
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


def _drop_unread(tensors: Sequence[gs.Tensor], outputs: set[str], dropped: set[int]) -> None:
    """Adds the nodes that compute tensors which nothing reads any more."""
    waiting = list(tensors)
    while waiting:
        tensor = waiting.pop()
        if tensor.name in outputs or not tensor.inputs or any(id(node) not in dropped for node in tensor.outputs):
            continue
        producer = tensor.inputs[0]
        if id(producer) not in dropped and len(producer.outputs) == 1:
            dropped.add(id(producer))
            waiting += list(producer.inputs)


def _remove(graph: gs.Graph, dropped: set[int]) -> None:
    for node in graph.nodes:
        if id(node) in dropped:
            node.inputs.clear()
            node.outputs.clear()
    graph.nodes[:] = [node for node in graph.nodes if id(node) not in dropped]


def _position(graph: gs.Graph, node: gs.Node) -> int:
    return next(place for place, other in enumerate(graph.nodes) if other is node)


def _fold(graph: gs.Graph, shapes: Shapes) -> bool:
    outputs = {tensor.name for tensor in graph.outputs}
    dropped: set[int] = set()
    for node in graph.nodes:
        knowledge = operator(node.op, node.domain)
        known = (knowledge.channels is not None or knowledge.values is not None) and node.op not in FOLDED
        several = any(tensor.outputs or tensor.name in outputs for tensor in node.outputs[1:])
        values = None if known or several or not node.outputs else _stored_inputs(graph, node, shapes)
        has_body = any(isinstance(value, gs.Graph) for value in node.attrs.values())
        if values is None or has_body or node.outputs[0].name in outputs:
            continue
        result = _computed(graph, node, values)
        if result is None:
            continue
        tensor = node.outputs[0]
        constant = gs.Constant(tensor.name, result)
        for reader in list(tensor.outputs):
            for slot, source in enumerate(list(reader.inputs)):
                if source is tensor:
                    reader.inputs[slot] = constant
        shapes.values[tensor.name] = result
        shapes.stored.add(tensor.name)
        dropped.add(id(node))
        _drop_unread(list(node.inputs), outputs, dropped)
    _remove(graph, dropped)
    return bool(dropped)


def _stored_inputs(graph: gs.Graph, node: gs.Node, shapes: Shapes) -> list[NDArray[np.generic]] | None:
    values = [_stored_value(graph, tensor, shapes) for tensor in node.inputs]
    found = [value for value in values if value is not None]
    return found if found and len(found) == len(values) and sum(v.size for v in found) <= LARGEST_FOLD else None


def _stored_value(graph: gs.Graph, tensor: gs.Tensor, shapes: Shapes) -> NDArray[np.generic] | None:
    """Returns the content of a tensor that comes from the file alone, also through operators that only move it."""
    if isinstance(tensor, gs.Constant):
        return read_values(tensor)
    if tensor.name in shapes.stored:
        return shapes.values[tensor.name]
    if not tensor.inputs:
        return None
    producer = tensor.inputs[0]
    if producer.op == "Constant":
        return stored_tensor(producer)
    values = _stored_inputs(graph, producer, shapes) if producer.op in MOVES else None
    return None if values is None else _computed(graph, producer, values)


def _computed(graph: gs.Graph, node: gs.Node, values: list[NDArray[np.generic]]) -> NDArray[np.generic] | None:
    """Returns what the node computes, by ONNX's own reference, or ``None`` where that fails or is random."""
    if node.op.startswith(("Random", "Bernoulli", "Multinomial")) or node.domain not in (None, "", "ai.onnx"):
        return None
    from onnx.reference import ReferenceEvaluator

    proto = node_proto(node)
    feeds = {str(name): value for name, value in zip(proto.input, values, strict=True)}
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in feeds.items()
    ]
    output = onnx.ValueInfoProto(name=proto.output[0])
    single = helper.make_graph([proto], "stored", inputs, [output])
    model = helper.make_model(single, opset_imports=[helper.make_opsetid("", opset_of(graph, ""))])
    try:
        found = np.asarray(next(iter(ReferenceEvaluator(model).run(None, feeds))))
        numpy_helper.from_array(found)
    except Exception as error:
        LOG.debug("cannot compute %s: %s", node_name(node), error)
        return None
    return found
