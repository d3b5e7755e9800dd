"""Products of two computed tensors, such as the queries and keys of an attention: no stored weights take part."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.model.linear import Array, Holders
from onnxprune.model.shapes import Shapes


@dataclass(frozen=True, slots=True)
class Side:
    """A tensor, its dimension over which the product sums, and the rank of the product."""

    tensor: str
    dim: int
    rank: int

    def last(self, values: np.ndarray) -> np.ndarray:
        """Returns [samples, heads ..., R, K]: the summed dimension last, and one of samples at least."""
        moved = np.moveaxis(values, self.dim, -1)
        return moved.reshape((1,) * (max(self.rank, 3) - moved.ndim) + moved.shape)

    def vectors(self, values: np.ndarray) -> Array:
        """Returns [heads, R, K] with the vectors of all samples."""
        heads = np.moveaxis(self.last(values), 0, -3)
        return heads.reshape(-1, heads.shape[-3] * heads.shape[-2], heads.shape[-1]).astype(np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class ComputedProduct:
    """A node that multiplies two computed tensors."""

    position: int
    node: gs.Node
    sides: tuple[Side, Side]

    @property
    def tensors(self) -> list[str]:
        """Names of the two tensors."""
        return [side.tensor for side in self.sides]


def computed_products(graph: gs.Graph, shapes: Shapes, holders: Holders) -> Iterator[ComputedProduct]:
    """Yields the products of two computed tensors, in graph order: MatMul, and the scores of Attention."""
    for position, node in enumerate(graph.nodes):
        if len(node.inputs) < 2 or any(holders.get(tensor) is not None for tensor in node.inputs[:2]):
            continue
        dims = _summed(node, shapes.shapes)
        if dims is not None:
            rank = max(len(shapes.shapes[tensor.name]) for tensor in node.inputs[:2])
            left, right = (Side(tensor.name, dim, rank) for tensor, dim in zip(node.inputs[:2], dims, strict=True))
            yield ComputedProduct(position, node, (left, right))


def _summed(node: gs.Node, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int] | None:
    """Returns the summed dimension of both inputs."""
    left, right = (shapes.get(tensor.name, ()) for tensor in node.inputs[:2])
    if node.op == "MatMul" and len(left) > 1 and len(right) > 1:
        return -1, -2
    if node.op == "Attention" and len(left) == len(right) == 4 and left[1] == right[1]:
        return -1, -1
    return None


def pooled(product: ComputedProduct, runs: Iterable[tuple[np.ndarray, np.ndarray]]) -> tuple[Array, Array]:
    """Returns the second moments [heads, K, K] of both sides, not centred, over all runs."""
    sums: list[Array] = []
    counts = np.zeros(2)
    for values in runs:
        vectors = [side.vectors(one) for side, one in zip(product.sides, values, strict=True)]
        squares = [one.transpose(0, 2, 1) @ one for one in vectors]
        sums = [total + one for total, one in zip(sums, squares, strict=True)] if sums else squares
        counts += [one.shape[1] for one in vectors]
    left, right = (total / max(count, 1) for total, count in zip(sums, counts, strict=True))
    heads = max(len(left), len(right))
    return np.broadcast_to(left, (heads, *left.shape[1:])), np.broadcast_to(right, (heads, *right.shape[1:]))


def root(moments: Array) -> Array:
    """Returns the symmetric square root of second moments, [..., K, K]."""
    values, vectors = np.linalg.eigh(moments)
    return np.asarray((vectors * np.sqrt(np.maximum(values, 0.0))[..., None, :]) @ vectors.swapaxes(-1, -2))
