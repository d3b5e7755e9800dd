"""What functions of one number make of a tensor: where they are flat, its range need not reach.

A hard swish makes zero of all that lies below -3, and a sigmoid hardly tells 8 from 20. What a range is worth shows
behind such functions, not before them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper, numpy_helper

from onnxprune.model.graph import read_outside
from onnxprune.model.io import Graph, read_values
from onnxprune.model.linear import Holders
from onnxprune.model.shapes import node_proto, opset_of
from onnxprune.model.weights import STANDARD
from onnxprune.quantize.placement import Placement
from onnxprune.quantize.ranges import Array
from onnxprune.runtime.session import Session, open_session

BY_NUMBER = frozenset({
    "Abs", "Add", "Celu", "Clip", "Div", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu",
    "Max", "Min", "Mish", "Mul", "Neg", "PRelu", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Sub", "Swish",
    "Tanh", "ThresholdedRelu",
})  # fmt: skip
"""Operators that make one number of one number, where all else that they read is single stored numbers."""


@dataclass(frozen=True, slots=True)
class Function:
    """What others read of a tensor, behind functions of one number; ``direct`` says that they read it too."""

    session: Session
    tensor: str
    ends: tuple[str, ...]
    direct: bool

    def results(self, values: Array) -> list[Array]:
        """Returns what numbers become, at every end, in the shape of the numbers."""
        made = self.session.run({self.tensor: values.reshape(-1).astype(np.float32)}, list(self.ends))
        found = [np.asarray(made[end], np.float64).reshape(values.shape) for end in self.ends]
        return [values, *found] if self.direct else found


def functions_of(graph: Graph, placement: Placement) -> dict[str, Function]:
    """Returns the functions behind rounded tensors that have a scale of their own, by tensor.

    Args:
        graph: The float graph, in topological order.
        placement: What of it is rounded.
    """
    holders, outside = Holders(graph), read_outside(graph)
    sharing = Counter(map(placement.scale, placement.tensors))
    alone = {name for name in placement.whole if sharing[placement.scale(name)] == 1}
    readers: dict[str, list[gs.Node]] = {}
    for node in graph.nodes:
        for tensor in node.inputs:
            readers.setdefault(tensor.name, []).append(node)
    found = {}
    for name in sorted(alone):
        members = list(_members(graph, name, holders)) if name in readers else []
        ids = {id(node) for node in members}
        made = [name, *(node.outputs[0].name for node in members)]
        ends = [one for one in made if one in outside or any(id(node) not in ids for node in readers.get(one, ()))]
        if members and ends != [name]:
            session = open_session(_part(graph, name, members, [end for end in ends if end != name], holders))
            found[name] = Function(session, name, tuple(end for end in ends if end != name), name in ends)
    return found


def _members(graph: Graph, name: str, holders: Holders) -> Iterator[gs.Node]:
    """Yields the nodes that compute from the numbers of a tensor and from single stored numbers alone."""
    known = {name}
    for node in graph.nodes:
        names = {tensor.name for tensor in node.inputs if tensor.name}
        if node.op in BY_NUMBER and node.domain in STANDARD and len(node.outputs) == 1 and not known.isdisjoint(names):
            others = [tensor for tensor in node.inputs if tensor.name and tensor.name not in known]
            held = [holders.get(tensor) for tensor in others]
            if all(one is not None and prod(one.shape) == 1 and one.dtype == np.float32 for one in held):
                known.add(node.outputs[0].name)
                yield node


def _part(graph: Graph, name: str, members: list[gs.Node], ends: list[str], holders: Holders) -> onnx.ModelProto:
    """Returns a model of some nodes, on any number of numbers."""
    read = {tensor.name: tensor for node in members for tensor in node.inputs}
    stored = {one: held for one, tensor in read.items() if (held := holders.get(tensor)) is not None}
    constants = [numpy_helper.from_array(read_values(held).reshape(()), one) for one, held in stored.items()]
    start, *results = (helper.make_tensor_value_info(one, onnx.TensorProto.FLOAT, [None]) for one in (name, *ends))
    body = helper.make_graph([node_proto(node) for node in members], "functions", [start], results, constants)
    opset = helper.make_opsetid("", opset_of(graph, ""))
    return helper.make_model(body, opset_imports=[opset], ir_version=graph.ir_version or 8)
