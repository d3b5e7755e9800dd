"""The linear operators of a graph that have weights of their own, as matrix products."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxprune.model.graph import stored_tensors
from onnxprune.model.io import read_values, write_values
from onnxprune.model.shapes import Shapes, node_name
from onnxprune.ops.forms import Form, form_of

Array = NDArray[np.float64]
OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """An operator that multiplies rows of its data with stored weights that no other operator reads."""

    name: str
    position: int
    node: gs.Node
    form: Form
    stored: gs.Constant

    @property
    def data(self) -> str:
        """Name of the tensor that it reads."""
        return str(self.node.inputs[self.form.data].name)

    @property
    def result(self) -> str:
        """Name of the tensor that it writes."""
        return str(self.node.outputs[0].name)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weights."""
        return tuple(self.stored.shape)

    def matrix(self) -> Array:
        """Returns the weights as [groups, n, m]."""
        return self.form.matrix(read_values(self.stored)).astype(np.float64)

    def write(self, matrix: Array) -> None:
        """Stores a matrix [groups, n, m]."""
        write_values(self.stored, self.form.weights(matrix, read_values(self.stored)))


class Holders:
    """The stored tensors of a graph by the names that nodes read, and how many nodes read each."""

    def __init__(self, graph: gs.Graph) -> None:
        self._held = dict(stored_tensors(graph))
        self._uses: dict[int, int] = {}
        for node in graph.nodes:
            for tensor in node.inputs:
                held = self._held.get(tensor.name)
                if held is not None:
                    self._uses[id(held)] = self._uses.get(id(held), 0) + 1

    def get(self, tensor: gs.Tensor) -> gs.Constant | None:
        """Returns what is stored under the name of a tensor."""
        return self._held.get(tensor.name)

    def own(self, tensor: gs.Tensor) -> gs.Constant | None:
        """Returns what is stored under the name of a tensor, if it is of floats and one node alone reads it."""
        held = self._held.get(tensor.name)
        if held is None or self._uses[id(held)] > 1 or not np.issubdtype(held.dtype, np.floating):
            return None
        return held


def linear_nodes(graph: gs.Graph, shapes: Shapes, holders: Holders) -> Iterator[Linear]:
    """Yields the linear operators of a graph, in graph order."""
    for position, node in enumerate(graph.nodes):
        found = _linear(position, node, shapes.shapes, holders)
        if found is not None:
            yield found


def _linear(position: int, node: gs.Node, shapes: Mapping[str, tuple[int, ...]], holders: Holders) -> Linear | None:
    if node.op not in OPERATORS or len(node.inputs) < 2:
        return None
    if any(tensor.name not in shapes for tensor in (*node.inputs[:2], node.outputs[0])):
        return None
    slot = next((slot for slot in (1, 0) if holders.get(node.inputs[slot]) is not None), None)
    if slot is None:
        return None
    data, weights = node.inputs[1 - slot], node.inputs[slot]
    form = form_of(node, shapes[data.name], shapes[weights.name], shapes[node.outputs[0].name])
    stored = holders.own(weights)
    if form is None or form.weight != slot or stored is None:
        return None
    return Linear(node_name(node), position, node, form, stored)


@dataclass(frozen=True, slots=True, eq=False)
class Bias:
    """A vector that is added to the result of an operator; without one, the operator gets it as its third input."""

    node: gs.Node
    vector: gs.Constant | None

    def add(self, shift: Array, dtype: np.dtype) -> None:
        """Adds a shift by channel."""
        if self.vector is None:
            name = f"{self.node.outputs[0].name}_bias"
            while len(self.node.inputs) > 2:
                self.node.inputs.pop()
            self.node.inputs.append(gs.Constant(name, shift.astype(dtype)))
            return
        before = read_values(self.vector)
        write_values(self.vector, (before + shift.reshape(before.shape)).astype(before.dtype))


def bias_of(linear: Linear, holders: Holders) -> Bias | None:
    """Returns where a shift of the result can be stored: in the operator, or in an Add that alone reads the result."""
    node, width = linear.node, linear.matrix().shape[0] * linear.matrix().shape[2]
    if node.op != "MatMul":
        if float(node.attrs.get("beta", 1.0)) != 1.0:
            return None
        if len(node.inputs) < 3 or not node.inputs[2].name:
            return Bias(node, None)
        vector = holders.own(node.inputs[2])
    else:
        reader = only_reader(node)
        if reader is None or reader.op != "Add" or linear.form.output != -1:
            return None
        vector = holders.own(other_summand(reader, node))
        if vector is not None and tuple(vector.shape)[-1:] != (width,):
            return None
    return Bias(node, vector) if vector is not None and read_values(vector).size == width else None


def only_reader(node: gs.Node) -> gs.Node | None:
    """Returns the node that alone reads the result of another."""
    readers = node.outputs[0].outputs
    return readers[0] if len(readers) == 1 else None


def other_summand(add: gs.Node, node: gs.Node) -> gs.Tensor:
    """Returns what an Add adds to the result of a node."""
    return add.inputs[1] if add.inputs[0] is node.outputs[0] else add.inputs[0]
