"""Blocks: parts of a network that map a tensor to one of the same shape, so that it can do without them.

Between two tensors that all data passes, one behind the other, lies a *piece*: a single node, or branches that join.
A block begins with a piece that multiplies with weights, and ends where the shape of its entry comes back, together
with the normalization and activation behind it. A residual branch, the attention and the MLP of a transformer, a
convolution of equal width and a recurrent layer are blocks. Blocks lie within blocks; one that holds several residual
blocks of its own is a *stage*, and they count in its place.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from onnxprune.channels.flow import covering
from onnxprune.channels.inside import Insides
from onnxprune.channels.pieces import MOST_ROOTS, Candidates, Found
from onnxprune.model.shapes import Shapes, node_name

STAGE = 2
"""Residual blocks within a block from which on it is a stage."""

PARTS = 3
"""Blocks within a block from which on it is a stage if it also holds most of the weights of the network."""


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a graph that can be dropped: what reads the tensor ``exit`` then reads ``entry``.

    Attributes:
        name: What reports and selectors call it.
        entry: The tensor that it reads; others may come from outside too, where they do not depend on this one.
        exit: The tensor that it makes.
        nodes: Positions in the graph of the nodes that go with it.
        parameters: Stored numbers that nothing else reads.
        parent: Name of the outermost block around it; ``None`` if it counts itself.
        reason: Why it cannot be dropped, as the end of "cannot be dropped: ..."; ``None`` if it can.
        lengths: Tensors within it, of the shape of its entry, whose lengths are read elsewhere.
    """

    name: str
    entry: str
    exit: str
    nodes: tuple[int, ...]
    parameters: int
    parent: str | None = None
    reason: str | None = None
    lengths: tuple[str, ...] = ()

    @property
    def counts(self) -> bool:
        """Whether it is one of the blocks of which a fraction or number is dropped."""
        return self.parent is None and self.reason is None


def find_blocks(graph: gs.Graph, shapes: Shapes) -> tuple[Block, ...]:
    """Returns the blocks of a graph in graph order, outer ones before those within them.

    Args:
        graph: A graph without functions; it is not changed.
        shapes: Its shapes, in which free dimensions cannot be mistaken for others (``model.sizes.generic_shapes``).
    """
    insides = Insides(graph)
    flow = insides.flow
    heavy = [flow.numbers[position] for position in sorted(insides.heavy)]
    inputs = [vertex for vertex in range(flow.size) if not flow.before[vertex]]
    first = [flow.numbers[name] for name in insides.first_weighted()]
    roots = [*covering(flow, inputs, heavy, MOST_ROOTS), *covering(flow, first, heavy, MOST_ROOTS)]
    candidates = Candidates(insides, shapes)
    for root in dict.fromkeys(roots):
        candidates.follow(root)
    candidates.follow_branches()
    return tuple(_blocks(graph, insides, _Forest(candidates.found, insides).run()))


class _Forest:
    """Candidates within candidates; stages are dissolved."""

    def __init__(self, found: Sequence[Found], insides: Insides) -> None:
        self._insides = insides
        self._total = len(insides.heavy)
        real = [one for one in found if one.reason is None and one.weights < self._total]
        near = [one for one in found if one.reason is not None and one.weights < self._total]
        self._children: dict[int, list[Found]] = {}
        tops = self._nest(real)
        self._tops = self._nest([*real, *(one for one in near if _clear(one, tops))])

    def run(self) -> list[tuple[Found, Found | None]]:
        """Returns the blocks with the outermost ones around them."""
        result: list[tuple[Found, Found | None]] = []
        waiting = self._tops
        while waiting:
            inside: list[Found] = []
            for one in waiting:
                if self._stage(one):
                    inside += self._children[id(one)]
                else:
                    result.append((one, None))
                    result += [(other, one) for other in self._below(one)]
            waiting = inside
        return result

    def _nest(self, found: Sequence[Found]) -> list[Found]:
        """Sets what lies directly within each candidate, and returns those within none; of two that cross one stays."""
        owner: dict[int, Found] = {}
        self._children = {}
        tops: list[Found] = []
        for one in sorted(found, key=lambda item: (-len(item.nodes), min(item.nodes))):
            around = {id(other): other for other in (owner.get(position) for position in one.nodes) if other}
            outside = any(position not in owner for position in one.nodes)
            if len(around) > 1 or (around and outside):
                continue
            parent = next(iter(around.values()), None)
            if parent is not None and not parent.roots & one.roots:
                continue
            self._children[id(one)] = []
            (tops if parent is None else self._children[id(parent)]).append(one)
            owner.update(dict.fromkeys(one.nodes, one))
        return tops

    def _stage(self, one: Found) -> bool:
        children = self._children[id(one)]
        most = 2 * one.weights > self._total and len(children) >= PARTS
        enough = STAGE if one.reason is None else 1
        return most or sum(self._residuals(other) for other in children) >= enough

    def _residuals(self, one: Found) -> int:
        inside = sum(self._residuals(other) for other in self._children[id(one)])
        return max(inside, int(one.residual))

    def _below(self, one: Found) -> Iterator[Found]:
        for other in self._children[id(one)]:
            if other.reason is None:
                yield other
            yield from self._below(other)


def _clear(near: Found, blocks: Sequence[Found]) -> bool:
    """Whether something that cannot be dropped lies outside of all blocks, and cuts none of them."""
    return all(
        one.nodes.isdisjoint(near.nodes) or (one.nodes <= near.nodes and one.roots & near.roots) for one in blocks
    )


def _blocks(graph: gs.Graph, insides: Insides, found: Sequence[tuple[Found, Found | None]]) -> Iterator[Block]:
    place = {id(one): min(one.inner) for one, _ in found}
    ordered = sorted(found, key=lambda pair: (place[id(pair[1] or pair[0])], pair[1] is not None, place[id(pair[0])]))
    names: dict[int, str] = {}
    taken: dict[str, int] = {}
    for one, _ in sorted(ordered, key=lambda pair: pair[1] is not None):
        name = insides.common_name(one.inner)
        if name is None or name in taken:
            name = node_name(graph.nodes[insides.flow.nodes[insides.flow.numbers[one.exit]]])
        taken[name] = taken.get(name, 0) + 1
        names[id(one)] = name if taken[name] == 1 else f"{name}#{taken[name]}"
    for one, parent in ordered:
        nodes, parameters = tuple(sorted(one.nodes)), insides.parameters(one.nodes)
        around = None if parent is None else names[id(parent)]
        yield Block(names[id(one)], one.entry, one.exit, nodes, parameters, around, one.reason, one.lengths)
