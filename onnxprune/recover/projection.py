"""Targets of what is multiplied with another computed tensor, such as queries with keys, over fewer dimensions.

The product is to stay, not the dimensions. A side that is repaired after the other one gets its vectors as they were,
projected on what the other one has become: with keys ``k`` that are now ``l``, queries ``q`` become ``q k'l (l'l)^-1``
(the compensation of query and key dimensions of CORP, 2026, on the repaired network's own keys).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.channels.facts import Index
from onnxprune.model.graph import Graph
from onnxprune.model.linear import Array, Holders
from onnxprune.model.products import ComputedProduct, Side, computed_products
from onnxprune.model.shapes import Shapes
from onnxprune.recover.differences import Correspondence
from onnxprune.recover.lanes import Lane, Lanes

RIDGE = 1e-6
"""Ridge on second moments, as a fraction of their mean."""


@dataclass(frozen=True, slots=True, eq=False)
class Projection:
    """One side of a product that has fewer dimensions than it had, and the linear operator that makes it.

    ``before`` and ``after`` say how its channels arrive there, in the original and now; ``dimensions`` are those left.
    ``facing`` is the result of the linear operator that makes the other side, if one does.
    """

    product: ComputedProduct
    slot: int
    before: Lane
    after: Lane
    dimensions: Index
    facing: str | None

    @property
    def result(self) -> str:
        """Name of what the linear operator makes."""
        return self.before.result

    @property
    def other(self) -> Side:
        """The other side."""
        return self.product.sides[1 - self.slot]

    @property
    def joint(self) -> bool:
        """Whether the same operator makes the other side too, which then keeps its vectors."""
        return self.facing == self.result

    def maps(self, before: Iterable[np.ndarray], after: Iterable[np.ndarray]) -> Array:
        """Returns the maps [heads, K, kept] of vectors that keep the product, from the other side as it was and is."""
        cross, squares = [], []
        for whole, left in zip(before, after, strict=True):
            old = self.other.vectors(whole)
            new = old[..., self.dimensions] if self.joint else self.other.vectors(left)
            cross.append(old.transpose(0, 2, 1) @ new)
            squares.append(new.transpose(0, 2, 1) @ new)
        return projection(self._by_head(np.sum(cross, axis=0)), self._by_head(np.sum(squares, axis=0)))

    def wanted(self, total: np.ndarray, target: np.ndarray, maps: Array, dim: int) -> np.ndarray:
        """Returns the target of the linear operator with mapped vectors in it.

        Args:
            total: What it made in the original.
            target: The part of that which stays.
            maps: Maps [heads, K, kept].
            dim: Dimension of the channels.
        """
        vectors = np.moveaxis(total, dim, -1)[..., self.before.channels] * self.before.scale + self.before.shift
        mapped = (vectors[..., None, :] @ maps)[..., 0, :]
        result = np.moveaxis(target, dim, -1).astype(np.float64)
        result[..., self.after.channels] = (mapped - self.after.shift) / self.after.scale
        return np.moveaxis(result, -1, dim).astype(target.dtype)

    def _by_head(self, moments: Array) -> Array:
        heads = len(self.before.channels)
        if heads == 1:
            return np.asarray(moments.sum(axis=0, keepdims=True))
        return np.broadcast_to(moments, (heads, *moments.shape[1:]))


def projection(cross: Array, squares: Array) -> Array:
    """Returns the maps [heads, K, kept] with which ``q M l'`` is nearest to ``q k'`` for every q.

    Args:
        cross: ``k'l``, [heads, K, kept].
        squares: ``l'l``, [heads, kept, kept].
    """
    size = squares.shape[-1]
    scale = np.trace(squares, axis1=-2, axis2=-1) / max(size, 1)
    damped = squares + np.maximum(RIDGE * scale, 1e-30)[..., None, None] * np.eye(size)
    return np.asarray(np.linalg.solve(damped, cross.swapaxes(-1, -2)).swapaxes(-1, -2))


def projections(pruned: Graph, original: Graph, shapes: Shapes, left: Correspondence) -> Iterator[Projection]:
    """Yields sides of products that lost nothing but dimensions they sum over, where a linear operator makes them.

    Args:
        pruned: The smaller graph.
        original: The graph that it was made from.
        shapes: Shapes of the original.
        left: What is left of its tensors.
    """
    found = {}
    for product in computed_products(original, shapes, Holders(original)):
        ranks = [len(shapes.shapes[side.tensor]) for side in product.sides]
        lost = [left.fewer(side.tensor) for side in product.sides]
        if all([*one] == [side.dim % rank] for one, side, rank in zip(lost, product.sides, ranks, strict=True)):
            found[product.node.outputs[0].name] = product
    if not found:
        return
    ways = Lanes(original), Lanes(pruned)
    nodes = {tensor.name: node for node in pruned.nodes for tensor in node.outputs}
    for name, product in found.items():
        lanes = [_lanes(ways, (product.node, nodes.get(name)), side) for side in product.sides]
        results = [None if pair is None else pair[0].result for pair in lanes]
        for slot, (side, pair) in enumerate(zip(product.sides, lanes, strict=True)):
            if pair is None or (slot and results[0] == results[1]):
                continue
            rank, size = len(shapes.shapes[side.tensor]), pair[0].channels.shape[1]
            places = np.arange(size).reshape([size if dim == side.dim % rank else 1 for dim in range(rank)])
            yield Projection(product, slot, *pair, left.take(side.tensor, places).reshape(-1), results[1 - slot])


def _lanes(ways: tuple[Lanes, Lanes], nodes: tuple[gs.Node, gs.Node | None], side: Side) -> tuple[Lane, Lane] | None:
    """Returns how a side is made in the original and now, where the same operator makes it."""
    before = ways[0].find(nodes[0], side)
    after = None if nodes[1] is None else ways[1].find(nodes[1], side)
    return None if before is None or after is None or before.result != after.result else (before, after)
