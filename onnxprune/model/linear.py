"""The linear operators of a graph that have weights of their own, as matrix products."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxprune.model.graph import stored_tensors
from onnxprune.model.io import read_values, write_values
from onnxprune.model.shapes import Shapes, node_name
from onnxprune.ops.forms import Form, Scaling, form_of, scaling_of

Array = NDArray[np.float64]
OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization")


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """An operator that multiplies rows of its data with stored weights that no other operator reads.

    ``added`` is what it adds to the result, if anything.
    """

    name: str
    position: int
    node: gs.Node
    form: Form
    stored: gs.Constant
    added: gs.Constant | None

    @property
    def data(self) -> str:
        """Name of the tensor that it reads."""
        return str(self.node.inputs[self.form.data].name)

    @property
    def result(self) -> str:
        """Name of the tensor that it writes."""
        return str(self.node.outputs[0].name)

    @property
    def scales(self) -> bool:
        """Whether it scales channel by channel, as BatchNormalization does, and mixes none."""
        return isinstance(self.form, Scaling)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weights."""
        return tuple(self.stored.shape)

    def matrix(self) -> Array:
        """Returns the weights as [groups, n, m]."""
        return self.form.matrix(read_values(self.stored)).astype(np.float64)

    def bias(self) -> Array:
        """Returns what is added to the result, [groups, m]."""
        groups, _, outputs = self.matrix().shape
        if self.added is None:
            return np.zeros((groups, outputs))
        vector = read_values(self.added).reshape(-1) * float(self.node.attrs.get("beta", 1.0))
        return np.broadcast_to(vector, groups * outputs).reshape(groups, outputs).astype(np.float64)

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
    form = _form(node, shapes, holders)
    stored = None if form is None else holders.own(node.inputs[form.weight])
    if form is None or stored is None or holders.get(node.inputs[form.data]) is not None:
        return None  # a product of stored tensors alone has no rows that samples could change
    if len(node.inputs) < 3 or not node.inputs[2].name:
        return Linear(node_name(node), position, node, form, stored, None)
    added, width = holders.get(node.inputs[2]), shapes[node.outputs[0].name][form.output]
    size = 0 if added is None else math.prod(added.shape)
    if added is None or (size != 1 and not size == width == added.shape[-1]):
        return None  # it is computed, or not the same everywhere
    return Linear(node_name(node), position, node, form, stored, added)


def _form(node: gs.Node, shapes: Mapping[str, tuple[int, ...]], holders: Holders) -> Form | None:
    if node.op == "BatchNormalization":
        held = [holders.get(tensor) for tensor in node.inputs[1:5]]
        return scaling_of(node, [None if one is None else read_values(one) for one in held])
    slot = next((slot for slot in (1, 0) if holders.get(node.inputs[slot]) is not None), None)
    if slot is None:
        return None
    data, weights = node.inputs[1 - slot], node.inputs[slot]
    form = form_of(node, shapes[data.name], shapes[weights.name], shapes[node.outputs[0].name])
    return form if form is not None and form.weight == slot else None


@dataclass(frozen=True, slots=True, eq=False)
class Bias:
    """A vector that is added to the result of an operator; without one, the operator gets it as its third input.

    ``factor`` is what the operator multiplies it with.
    """

    node: gs.Node
    vector: gs.Constant | None
    factor: float = 1.0

    def add(self, shift: Array, dtype: np.dtype) -> None:
        """Adds a shift by channel."""
        shift = shift / self.factor
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
    node, width, factor = linear.node, linear.bias().size, float(linear.node.attrs.get("beta", 1.0))
    if node.op != "MatMul":
        if factor == 0:
            return None
        if len(node.inputs) < 3 or not node.inputs[2].name:
            return Bias(node, None, factor)
        vector = holders.own(node.inputs[2])
    else:
        reader = only_reader(node)
        if reader is None or reader.op != "Add" or linear.form.output != -1:
            return None
        vector = holders.own(other_summand(reader, node))
        if vector is not None and tuple(vector.shape)[-1:] != (width,):
            return None
    return Bias(node, vector, factor) if vector is not None and read_values(vector).size == width else None


def only_reader(node: gs.Node) -> gs.Node | None:
    """Returns the node that alone reads the result of another."""
    readers = node.outputs[0].outputs
    return readers[0] if len(readers) == 1 else None


def other_summand(add: gs.Node, node: gs.Node) -> gs.Tensor:
    """Returns what an Add adds to the result of a node."""
    return add.inputs[1] if add.inputs[0] is node.outputs[0] else add.inputs[0]
