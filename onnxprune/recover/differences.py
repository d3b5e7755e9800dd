"""Where a smaller graph computes something else than the original: lost channels, other weights, other inputs."""

from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.model.graph import read_by, stored_tensors
from onnxprune.model.io import read_values
from onnxprune.model.linear import Linear
from onnxprune.ops.forms import Product
from onnxprune.recover.least_squares import Mask


class Correspondence(Protocol):
    """What of an original tensor is left in the pruned graph."""

    def take(self, name: str, values: np.ndarray) -> np.ndarray:
        """Returns the part of the values that stays."""

    def fewer(self, name: str) -> Mapping[int, int]:
        """Returns by how many channels each dimension of a tensor shrinks."""


class Unchanged:
    """Nothing is gone: every tensor of the original is there as a whole."""

    def take(self, name: str, values: np.ndarray) -> np.ndarray:
        """Returns all of it."""
        return values

    def fewer(self, name: str) -> Mapping[int, int]:
        """Returns that no dimension shrinks."""
        return {}


class Differences:
    """The tensors of a graph that may differ from what is left of the original's.

    A node differs by itself where it does something else, or reads other tensors or weights, than the node of the
    original that has its result; its ``results`` differ, and everything that is computed from them.
    """

    def __init__(self, pruned: gs.Graph, original: gs.Graph, left: Correspondence) -> None:
        self._left = left
        self._mine, self._theirs = dict(stored_tensors(pruned)), dict(stored_tensors(original))
        twins = {tensor.name: node for node in original.nodes for tensor in node.outputs if tensor.name}
        self.tensors: set[str] = set()
        self.results: set[str] = set()
        for node in pruned.nodes:
            names = {tensor.name for tensor in node.outputs if tensor.name}
            if names <= self._mine.keys():
                continue
            if not self._same(node, twins.get(min(names, default=""))):
                self.results |= names
            fewer = any(left.fewer(name) for name in names)
            if fewer or not names.isdisjoint(self.results) or not self.tensors.isdisjoint(read_by(node)):
                self.tensors |= names

    def touch(self, linear: Linear) -> bool:
        """Whether an operator reads what may differ, or differs by itself."""
        return linear.data in self.tensors or linear.result in self.results

    def free(self, linear: Linear, twin: Linear | None) -> Mask | None:
        """Returns where the matrix of an operator may change, ``None`` for everywhere; ``twin`` is the original's.

        Zeros that the original does not have are a mask and stay, and so do all where that cannot be told.
        """
        matrix = linear.matrix()
        masked = matrix == 0
        if twin is not None and twin.node.op == linear.node.op and masked.any():
            kept = self._left.take(twin.node.inputs[twin.form.weight].name, read_values(twin.stored))
            same_layout = not isinstance(linear.form, Product) or linear.form == twin.form
            if kept.shape == linear.shape and same_layout:
                masked &= linear.form.matrix(kept) != 0
        return ~masked if masked.any() else None

    def _same(self, node: gs.Node, twin: gs.Node | None) -> bool:
        if twin is None or node.op != twin.op:
            return False
        if read_by(node) - self._mine.keys() != read_by(twin) - self._theirs.keys():
            return False
        mine, theirs = list(_weights(node, self._mine)), list(_weights(twin, self._theirs))
        return len(mine) == len(theirs) and all(
            np.array_equal(read_values(held), self._left.take(name, read_values(other)))
            for (_, held), (name, other) in zip(mine, theirs, strict=True)
        )


def _weights(node: gs.Node, held: Mapping[str, gs.Constant]) -> Iterator[tuple[str, gs.Constant]]:
    """Yields the stored tensors that a node and its bodies read; integers, which follow the channels, are left out."""
    for tensor in node.inputs:
        stored = held.get(tensor.name)
        if stored is not None and stored.dtype not in (np.int32, np.int64):
            yield tensor.name, stored
    for body in node.attrs.values():
        if isinstance(body, gs.Graph):
            inner = {**held, **dict(stored_tensors(body))}
            for one in body.nodes:
                yield from _weights(one, inner)
