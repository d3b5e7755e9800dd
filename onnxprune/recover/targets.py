"""What a repaired operator should compute, and where a shift of its result can be stored."""

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.model.io import read_values, write_values
from onnxprune.model.linear import Array, Holders, Linear


@dataclass(frozen=True, slots=True, eq=False)
class Residual:
    """The result is scaled and shifted by channel and then added to ``other``: what counts is the sum ``total``."""

    total: str
    other: str
    scale: Array
    shift: Array

    def wanted(self, total: np.ndarray, other: np.ndarray, dim: int) -> np.ndarray:
        """Returns what the operator has to compute for the sum to come out; ``dim`` holds its channels."""
        shape = [1] * total.ndim
        shape[dim] = -1
        return np.asarray((total - other - self.shift.reshape(shape)) / self.scale.reshape(shape))


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
        vector = holders.own(_other(reader, node))
        if vector is not None and tuple(vector.shape)[-1:] != (width,):
            return None
    return Bias(node, vector) if vector is not None and read_values(vector).size == width else None


def residual_of(linear: Linear, holders: Holders) -> Residual | None:
    """Follows stored vectors that are added, and BatchNormalization, up to a sum with another computed tensor."""
    node, dim = linear.node, linear.form.output
    width = linear.matrix().shape[0] * linear.matrix().shape[2]
    scale, shift = np.ones(width), np.zeros(width)
    while True:
        reader = only_reader(node)
        if reader is None:
            return None
        if reader.op == "BatchNormalization" and dim == 1:
            vectors = [holders.get(tensor) for tensor in reader.inputs[1:5]]
            if any(vector is None for vector in vectors):
                return None
            gain, offset, mean, variance = (read_values(v).astype(np.float64) for v in vectors if v is not None)
            factor = gain / np.sqrt(variance + float(reader.attrs.get("epsilon", 1e-5)))
            scale, shift = scale * factor, (shift - mean) * factor + offset
        elif reader.op == "Add":
            other = _other(reader, node)
            held = holders.get(other)
            if held is None:
                alone = other is not node.outputs[0] and np.abs(scale).min() > 1e-6
                return Residual(reader.outputs[0].name, other.name, scale, shift) if alone else None
            vector = read_values(held).astype(np.float64)
            if vector.size != 1 and not (vector.size == width and _along(vector.shape, dim, width)):
                return None
            shift = shift + vector.reshape(-1)
        else:
            return None
        node = reader


def only_reader(node: gs.Node) -> gs.Node | None:
    """Returns the node that alone reads the result of another."""
    readers = node.outputs[0].outputs
    return readers[0] if len(readers) == 1 else None


def _other(add: gs.Node, node: gs.Node) -> gs.Tensor:
    return add.inputs[1] if add.inputs[0] is node.outputs[0] else add.inputs[0]


def _along(shape: tuple[int, ...], dim: int, width: int) -> bool:
    """Whether a stored vector runs along the channels; dimension 1 is followed by others of length 1."""
    return shape[-1:] == (width,) if dim == -1 else len(shape) > 1 and shape[-1] == 1
