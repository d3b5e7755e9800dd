"""Targets of what is multiplied with another computed tensor, such as queries with keys, over fewer dimensions.

The product is to stay, not the dimensions. Where both sides come from linear operators, the one that is repaired first
gets its own vectors, projected on the subspace of the size that is left in which the product loses least, and the
other gets the projection of its vectors on what the first has become (CORP, 2026).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from onnxprune.channels.facts import Index
from onnxprune.model.io import Graph
from onnxprune.model.linear import Array, Holders
from onnxprune.model.products import ComputedProduct, Side, computed_products, pooled, root
from onnxprune.model.shapes import Shapes
from onnxprune.recover.differences import Correspondence
from onnxprune.recover.lanes import Lane, Lanes
from onnxprune.runtime.walk import Walk

RIDGE = 1e-6
"""Ridge on second moments, as a fraction of their mean."""


def leading(left: Array, right: Array, kept: Index) -> Array:
    """Returns maps [heads, K, kept] of the left side: its projection on the best subspace, by the kept dimensions.

    Args:
        left: Second moments of the left side, [heads, K, K].
        right: Those of the right side.
        kept: The dimensions that are left.
    """
    whole = root(_damped(left))
    directions, _, _ = np.linalg.svd(whole @ root(right))
    best = directions[..., : kept.size]
    projection = np.linalg.solve(whole, best) @ (best.swapaxes(-1, -2) @ whole)
    return np.asarray(projection[..., kept])


def following(cross: Array, moments: Array) -> Array:
    """Returns maps [heads, K, kept] of one side, with which the product with the new other side is the nearest.

    Args:
        cross: Second moments of the other side as it was, with the other side as it is, [heads, K, kept].
        moments: Second moments of the other side as it is, [heads, kept, kept].
    """
    return np.asarray(np.linalg.solve(_damped(moments), cross.swapaxes(-1, -2)).swapaxes(-1, -2))


def _damped(moments: Array) -> Array:
    size = moments.shape[-1]
    scale = np.trace(moments, axis1=-2, axis2=-1) / max(size, 1)
    return np.asarray(moments + np.maximum(RIDGE * scale, 1e-30)[..., None, None] * np.eye(size))


@dataclass(frozen=True, slots=True, eq=False)
class Projection:
    """One side of a product that has fewer dimensions than it had, and the linear operator that makes it.

    ``before`` and ``after`` say how its channels arrive there, in the original and now; ``dimensions`` are those left.
    """

    product: ComputedProduct
    slot: int
    before: Lane
    after: Lane
    dimensions: Index

    @property
    def result(self) -> str:
        """Name of what the linear operator makes."""
        return self.before.result

    @property
    def other(self) -> Side:
        """The other side."""
        return self.product.sides[1 - self.slot]

    def wanted(self, total: np.ndarray, target: np.ndarray, maps: Array, dim: int) -> np.ndarray:
        """Returns the target with projected vectors in it.

        Args:
            total: What the operator made in the original.
            target: The part of it that stays.
            maps: Maps [heads, K, kept].
            dim: Dimension of the channels.
        """
        vectors = np.moveaxis(total, dim, -1)[..., self.before.channels] * self.before.scale + self.before.shift
        mapped = (vectors[..., None, :] @ maps)[..., 0, :]
        result = np.moveaxis(target, dim, -1).astype(np.float64)
        result[..., self.after.channels] = (mapped - self.after.shift) / self.after.scale
        return np.moveaxis(result, -1, dim).astype(target.dtype)

    def faces(self, other: "Projection") -> bool:
        """Whether this is the other side of the same product."""
        return self.product is other.product and self.slot != other.slot

    def moments(self, walk: Walk, runs: int) -> tuple[Array, Array]:
        """Returns the second moments [heads, K, K] of this side and of the other, over the first runs."""
        both = pooled(self.product, islice(zip(*map(walk.values, self.product.tensors), strict=True), runs))
        return self._by_head(both[self.slot]), self._by_head(both[1 - self.slot])

    def changed(self, original: Walk, pruned: Walk, runs: int) -> tuple[Array, Array]:
        """Returns second moments of the other side: as it was with as it is [heads, K, kept], and as it is."""
        cross, squares = [], []
        name = self.other.tensor
        for before, after in islice(zip(original.values(name), pruned.values(name), strict=True), runs):
            old, new = self.other.vectors(before), self.other.vectors(after)
            cross.append(old.transpose(0, 2, 1) @ new)
            squares.append(new.transpose(0, 2, 1) @ new)
        return self._by_head(np.sum(cross, axis=0)), self._by_head(np.sum(squares, axis=0))

    def _by_head(self, moments: Array) -> Array:
        heads = len(self.before.channels)
        if heads == 1:
            return np.asarray(moments.mean(axis=0, keepdims=True))
        return np.broadcast_to(moments, (heads, *moments.shape[1:]))


def projections(pruned: Graph, original: Graph, shapes: Shapes, left: Correspondence) -> Iterator[Projection]:
    """Yields sides of products that lost nothing but dimensions they sum over, where a linear operator makes them."""
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
        for slot, side in enumerate(product.sides):
            before = ways[0].find(product.node, side)
            after = ways[1].find(nodes[name], side) if name in nodes else None
            if before is None or after is None or before.result != after.result:
                continue
            rank, size = len(shapes.shapes[side.tensor]), len(before.channels[0])
            places = np.arange(size).reshape([size if dim == side.dim % rank else 1 for dim in range(rank)])
            yield Projection(product, slot, before, after, left.take(side.tensor, places).reshape(-1))
