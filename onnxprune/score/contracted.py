"""Dimensions over which two computed tensors are multiplied, such as those of queries and keys.

Without dimension j the product lacks ``q_j k_j'``. Queries that are read as rows by keys as weights, and keys that are
read by queries, have the form of an operator with stored weights: the squares of the weights are the second moments
of the other side, and what goes is made up for by the projection of one side (CORP, 2026).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from onnxprune.channels.facts import Axis
from onnxprune.channels.groups import Channels
from onnxprune.model.linear import Array, Holders
from onnxprune.model.products import ComputedProduct, computed_products, pooled, root
from onnxprune.runtime.walk import Walk
from onnxprune.score.blocks import Block


@dataclass(frozen=True, slots=True, eq=False)
class Contracted:
    """A product of two computed tensors; ``axes`` has that of the first."""

    product: ComputedProduct
    axes: tuple[Axis]

    @property
    def position(self) -> int:
        """Its place in the graph."""
        return self.product.position

    def blocks(self, walk: Walk, random: np.random.Generator) -> Iterator[Block]:
        """Yields both sides of every head: each counts for one half.

        Raises:
            ModelError: ONNX Runtime cannot run a part of the graph.
        """
        names = self.product.tensors
        walk.reach(names)
        left, right = pooled(self.product, zip(*map(walk.values, names), strict=True))
        walk.release(names)
        left, right = balanced(left, right)
        energy = 2 * float(np.einsum("hij,hij->", left, right))
        for rows, others in ((left, right), (right, left)):
            for head, covariance in enumerate(rows):
                yield Block(self.axes[0], covariance, root(others[head]), energy)


def balanced(left: Array, right: Array) -> tuple[Array, Array]:
    """Returns second moments of both sides, scaled so that every dimension weighs as much on either side.

    What one side is multiplied with, the other may be divided by: the product does not change, and scores should not.
    """
    sizes = [np.maximum(np.einsum("hii->hi", one), 1e-30) for one in (left, right)]
    scale = (sizes[1] / sizes[0]) ** 0.25
    outer = scale[:, :, None] * scale[:, None]
    return left * outer, right / outer


def contracted(channels: Channels, holders: Holders) -> Iterator[Contracted]:
    """Yields the products of two computed tensors whose summed dimensions belong to units, in graph order."""
    summed = {(item.node, item.slot): item.dim for item in channels.contractions}
    for product in computed_products(channels.graph, channels.shapes, holders):
        dim = summed.get((product.position, 0))
        if dim is not None and (product.position, 1) in summed:
            yield Contracted(product, (Axis(product.tensors[0], dim),))
