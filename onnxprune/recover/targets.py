"""What a repaired operator should compute."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.model.io import read_values
from onnxprune.model.linear import Array, Holders, Linear, only_reader, other_summand
from onnxprune.recover.projection import Projection


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
class Goal:
    """What an operator is fitted to: what is left of ``total`` of the original, with some changes."""

    total: str
    residual: Residual | None = None
    sides: Sequence[Projection] = ()

    @property
    def original(self) -> list[str]:
        """Names of the tensors of the original that it is made of."""
        return [self.total, *(side.other.tensor for side in self.sides)]

    @property
    def pruned(self) -> list[str]:
        """Names of the tensors of the pruned network that it is made of."""
        others = [] if self.residual is None else [self.residual.other]
        return others + [side.other.tensor for side in self.sides if not side.joint]


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
            other = other_summand(reader, node)
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


def _along(shape: tuple[int, ...], dim: int, width: int) -> bool:
    """Whether a stored vector runs along the channels; dimension 1 is followed by others of length 1."""
    return shape[-1:] == (width,) if dim == -1 else len(shape) > 1 and shape[-1] == 1
