"""Stored tensors in place of what is computed from stored tensors alone, where channel rules could only freeze it.

Exporters leave such computations in the file: weights standardized by their own mean and variance, zeros scattered into
a bias, masks cut from a triangle. A statistic over a stored weight must not follow the channels that go, so it is
computed now, with all that leads to it. What rules follow element by element stays as it is: a transposed embedding is
still shared, a quantized weight still small.
"""

import logging
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from onnxprune.model.graph import overridable, read_outside
from onnxprune.model.io import read_values
from onnxprune.model.shapes import Shapes, node_name, node_proto, opset_of, stored_tensor
from onnxprune.ops import operator

LOG = logging.getLogger("onnxprune")
LARGEST_FOLD = 2**24
"""Elements up to which a tensor takes part, as an operand or as a result; what needs a larger one stays computed."""

MIXING = {
    "ArgMax", "ArgMin", "BatchNormalization", "CumProd", "CumSum", "GatherElements", "GatherND", "GroupNormalization",
    "InstanceNormalization", "LRN", "LayerNormalization", "LogSoftmax", "LpNormalization", "MeanVarianceNormalization",
    "RMSNormalization", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "ScatterElements", "ScatterND", "Softmax", "TopK",
    "Trilu",
}  # fmt: skip
"""Operators that have a channel rule, but mix the elements of an axis: over stored tensors the rule would freeze it, or
let a statistic follow channels that go. Operators without a rule are computed as well."""

TRAINING_MODE = 14
"""The opset in which BatchNormalization says by an attribute, no more by several outputs, that it is in training."""

RANDOM = ("Bernoulli", "Dropout", "Multinomial", "Random")
"""How the names of operators begin whose results are drawn."""

Array = NDArray[np.generic]


def fold(graph: gs.Graph, shapes: Shapes, kept: set[str]) -> bool:
    """Edits the graph in place; tensors named in ``kept`` stay computed. Returns whether there was anything to do."""
    stored = _stored(graph)
    wanted = [node for node in graph.nodes if _is_wanted(node, stored, kept)]
    needed = _needed(graph, wanted, stored)
    targets = {id(node) for node in wanted}
    readers = Counter(tensor.name for node in needed for tensor in node.inputs)
    values: dict[str, Array] = {}
    dropped: set[int] = set()
    for node in needed:
        results = _computed(graph, node, values, shapes)
        for tensor, result in zip(node.outputs, results, strict=False):
            if readers[tensor.name]:
                values[tensor.name] = result
        if results and id(node) in targets:
            _store(node, results)
            dropped.add(id(node))
            drop_unread(list(node.inputs), kept, dropped)
        readers.subtract(tensor.name for tensor in node.inputs)
        for tensor in node.inputs:
            if not readers[tensor.name]:
                values.pop(tensor.name, None)
    remove(graph, dropped)
    return bool(dropped)


def store_moved(graph: gs.Graph) -> None:
    """Stores what Identity and Transpose make of stored tensors that nothing else reads, in place."""
    kept = read_outside(graph) | overridable(graph)
    dropped: set[int] = set()
    for node in graph.nodes:
        if node.op not in ("Identity", "Transpose") or node.domain not in (None, "", "ai.onnx"):
            continue
        source, result = node.inputs[0], node.outputs[0]
        values = _content(source)
        if values is None or len(source.outputs) > 1 or not kept.isdisjoint((source.name, result.name)):
            continue
        _store(node, [values.transpose(node.attrs.get("perm")) if node.op == "Transpose" else values])
        dropped.add(id(node))
        drop_unread([source], kept, dropped)
    remove(graph, dropped)


def _content(tensor: gs.Tensor) -> Array | None:
    if isinstance(tensor, gs.Constant):
        return read_values(tensor)
    return stored_tensor(tensor.inputs[0]) if tensor.inputs else None


def drop_unread(tensors: Sequence[gs.Tensor], kept: set[str], dropped: set[int]) -> None:
    """Adds the nodes that compute tensors which nothing reads any more."""
    waiting = list(tensors)
    while waiting:
        producer = next(iter(waiting.pop().inputs), None)
        if producer is None or id(producer) in dropped:
            continue
        if not any(t.name in kept or any(id(n) not in dropped for n in t.outputs) for t in producer.outputs):
            dropped.add(id(producer))
            waiting += list(producer.inputs)


def remove(graph: gs.Graph, dropped: set[int]) -> None:
    """Takes nodes, given by their ``id``, out of the graph."""
    for node in graph.nodes:
        if id(node) in dropped:
            node.inputs.clear()
            node.outputs.clear()
    graph.nodes[:] = [node for node in graph.nodes if id(node) not in dropped]


def _stored(graph: gs.Graph) -> set[str]:
    """Names of the results that come from the file alone; the caller may override what is also a graph input."""
    overridden = overridable(graph)
    found: set[str] = set()
    for node in graph.nodes:
        if node.op.startswith(RANDOM) or node.domain not in (None, "", "ai.onnx"):
            continue
        if any(isinstance(value, gs.Graph) for value in node.attrs.values()):
            continue
        if all(t.name in found or _is_constant(t, overridden) for t in node.inputs if t.name):
            found.update(tensor.name for tensor in node.outputs)
    return found


def _is_constant(tensor: gs.Tensor, overridden: set[str]) -> bool:
    return isinstance(tensor, gs.Constant) and tensor.name not in overridden


def _is_wanted(node: gs.Node, stored: set[str], kept: set[str]) -> bool:
    if any(tensor.name not in stored or tensor.name in kept for tensor in node.outputs):
        return False
    read = any(tensor.outputs for tensor in node.outputs)
    return read and (node.op in MIXING or operator(node.op, node.domain).channels is None)


def _needed(graph: gs.Graph, wanted: Sequence[gs.Node], stored: set[str]) -> list[gs.Node]:
    """Returns the nodes to compute, in graph order: the wanted ones and all before them."""
    names = {tensor.name for node in wanted for tensor in node.outputs}
    found = []
    for node in reversed(graph.nodes):
        if any(tensor.name in names for tensor in node.outputs):
            found.append(node)
            names.update(tensor.name for tensor in node.inputs if tensor.name in stored)
    return found[::-1]


def _computed(graph: gs.Graph, node: gs.Node, values: dict[str, Array], shapes: Shapes) -> list[Array]:
    """Returns the results of a node by ONNX's own reference; none where that fails or where a tensor is too large."""
    for tensor in (*node.inputs, *node.outputs):
        shape = shapes.shapes.get(tensor.name)
        if tensor.name and (math.prod(shape) > LARGEST_FOLD if shape is not None else bool(tensor.outputs)):
            return []
    if node.op == "Constant" and (content := stored_tensor(node)) is not None:
        return [content]
    feeds = {t.name: read_values(t) for t in node.inputs if isinstance(t, gs.Constant)}
    feeds.update((t.name, values[t.name]) for t in node.inputs if t.name in values)
    if any(tensor.name and tensor.name not in feeds for tensor in node.inputs):
        return []
    proto, opset = node_proto(node), opset_of(graph, "")
    if node.op == "BatchNormalization" and opset < TRAINING_MODE and len(proto.output) > 1:
        proto.attribute.append(helper.make_attribute("training_mode", 1))
        del proto.output[3:]
        opset = TRAINING_MODE
    from onnx.reference import ReferenceEvaluator

    try:
        with np.errstate(all="ignore"):
            found = ReferenceEvaluator(proto, opsets={"": opset}).run(None, feeds)
        results = [np.asarray(result) for result in found]
        for result in results:
            numpy_helper.from_array(result)
    except Exception as error:  # of any kind: the reference raises what each operator happens to
        LOG.debug("cannot compute %s: %s", node_name(node), error)
        return []
    return results


def _store(node: gs.Node, results: Sequence[Array]) -> None:
    """Gives the readers of a node its results as stored tensors."""
    for tensor, result in zip(node.outputs, results, strict=False):
        constant = gs.Constant(tensor.name, result)
        for reader in list(tensor.outputs):
            for slot, source in enumerate(list(reader.inputs)):
                if source is tensor:
                    reader.inputs[slot] = constant


def store_constants(graph: gs.Graph) -> None:
    """Stores what Constant nodes hold, in place; results of the graph and what bodies read stay nodes."""
    kept = read_outside(graph)
    dropped = set()
    for node in graph.nodes:
        content = stored_tensor(node) if node.op == "Constant" and node.outputs[0].name not in kept else None
        if content is not None:
            _store(node, [content])
            dropped.add(id(node))
    remove(graph, dropped)
