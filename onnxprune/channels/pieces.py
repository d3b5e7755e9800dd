"""The search for blocks: tensors that all data passes, what lies between them, and where a shape comes back."""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from onnxprune.channels.flow import LENGTHS, Tree
from onnxprune.channels.inside import Insides
from onnxprune.model.shapes import Shape, Shapes, node_name
from onnxprune.model.sizes import PRIMES

MOST_ROOTS = 8
"""Inputs, and again first weights, from which data is followed."""

SUMS = (("Add", 2), ("Sum", 2))
"""How the end of a residual block is made: the operator, and of how many other tensors."""


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """A candidate: ``weights`` says how many of its nodes multiply with any, ``inner`` which ones data passes."""

    entry: str
    exit: str
    inner: frozenset[int]
    nodes: frozenset[int]
    lengths: tuple[str, ...]
    weights: int
    residual: bool
    reason: str | None
    roots: frozenset[int]


@dataclass(frozen=True, slots=True)
class _Piece:
    """What lies between two tensors of a chain.

    ``branches`` says that it is no single node, ``residual`` that its end is a sum with its start, ``sides`` that it
    reads other data too.
    """

    inner: frozenset[int]
    weights: int
    branches: bool
    residual: bool
    sides: bool


@dataclass(frozen=True, slots=True)
class _Interval:
    """A stretch of a chain: from one of its tensors to another."""

    start: int
    stop: int
    weights: int


class Candidates:
    """The candidates of several searches, each once."""

    def __init__(self, insides: Insides, shapes: Shapes) -> None:
        self._insides, self._shapes = insides, shapes
        self._found: dict[tuple[str, str], Found] = {}
        self._pieces: dict[tuple[int, int], _Piece] = {}

    @property
    def found(self) -> list[Found]:
        """The candidates."""
        return list(self._found.values())

    def follow(self, root: int) -> None:
        """Adds what is on the ways of data that starts at a tensor."""
        for one in _Search(self._insides, self._shapes, root, self._found, self._pieces).run():
            self._found[one.entry, one.exit] = one

    def follow_branches(self) -> None:
        """Follows data from branches that join in a tensor of the same shape, where other data goes around them.

        So does what an encoder made around every sublayer of a decoder that starts from stored tensors.
        """
        flow, entries = self._insides.flow, {one.entry for one in self.found}
        left = MOST_ROOTS
        for vertex in range(flow.size):
            name = flow.names[vertex]
            if not left or not name or name in entries or len(flow.after[vertex]) < 2:
                continue
            join = flow.above(flow.behind, vertex)
            shape = self._shapes.shapes.get(name)
            same = join < flow.size and shape is not None and shape == self._shapes.shapes.get(flow.names[join])
            if same and len(flow.forward(vertex, join) & self._insides.heavy) > 1:
                left -= 1
                self.follow(vertex)
                entries = {one.entry for one in self.found}


class _Search:
    """The candidates on the ways of data that starts at one tensor; what other searches found is not sought again."""

    def __init__(
        self,
        insides: Insides,
        shapes: Shapes,
        root: int,
        known: Mapping[tuple[str, str], Found],
        pieces: dict[tuple[int, int], _Piece],
    ) -> None:
        self._insides, self._shapes, self._flow = insides, shapes, insides.flow
        self._known, self._pieces = known, pieces
        self._root = root
        self._tree: Tree = self._flow.dominators(root)
        self._tensors = [v for v in range(root, self._flow.size) if self._tree.depth[v] >= 0 and self._flow.names[v]]
        self._above = {vertex: self._flow.above(self._tree, vertex) for vertex in self._tensors[1:]}
        self._next: dict[int, int] = {}
        for vertex in self._tensors:
            follower = self._flow.above(self._flow.behind, vertex)
            if follower < self._flow.size and self._above.get(follower) == vertex:
                self._next[vertex] = follower

    def run(self) -> Iterator[Found]:
        """Yields the candidates of all chains."""
        linked = set(self._next.values())
        for vertex in self._tensors:
            if vertex not in linked:
                yield from self._on_chain(vertex)

    def _on_chain(self, first: int) -> Iterator[Found]:
        chain = [first]
        while chain[-1] in self._next:
            chain.append(self._next[chain[-1]])
        if first != self._root and self._joins(self._above[first], first):
            chain.insert(0, self._above[first])
        pieces = [self._piece(*ends) for ends in pairwise(chain)]
        kinds = [self._kind(vertex) for vertex in chain]
        covered = [False] * len(pieces)
        for one in _intervals(kinds, pieces):
            stop = self._extended(chain, pieces, kinds, one)
            covered[one.start : stop] = [True] * (stop - one.start)
            inner = frozenset[int]().union(*(piece.inner for piece in pieces[one.start : stop]))
            residual = pieces[one.start].residual
            yield self._found((chain[one.start], chain[stop]), inner, one.weights, residual, None)
        for place, piece in enumerate(pieces):
            if not covered[place] and piece.branches and piece.weights:
                ends = chain[place], chain[place + 1]
                yield self._found(ends, piece.inner, piece.weights, False, self._change(*ends))

    def _joins(self, entry: int, exit: int) -> bool:
        """Whether all that one tensor is read for, of what leads to another, leads through that one alone."""
        return any(self._flow.behind.under(reader, exit) for reader in self._flow.after[entry])

    def _piece(self, entry: int, exit: int) -> _Piece:
        known = self._pieces.get((entry, exit))
        if known is None:
            known = self._pieces[entry, exit] = self._new_piece(entry, exit)
        return known

    def _new_piece(self, entry: int, exit: int) -> _Piece:
        flow, node = self._flow, self._flow.before[exit][0]
        branches = flow.before[node] != [entry] and self._reached(node) != [entry]
        inner = flow.between(self._tree, entry, exit) if branches else {flow.nodes[exit]}
        read = (other for one in inner for other in flow.before[flow.numbers[one]])
        sides = any(other != entry and flow.nodes[other] not in inner for other in read)
        weights = len(inner & self._insides.heavy)
        sums = self._insides.maker(flow.names[exit]) in SUMS
        residual = branches and weights > 1 and sums and entry in flow.before[node]
        return _Piece(frozenset(inner), weights, branches, residual, sides)

    def _reached(self, node: int) -> list[int]:
        return [other for other in self._flow.before[node] if self._tree.depth[other] >= 0]

    def _kind(self, vertex: int) -> tuple[Shape, int] | None:
        name = self._flow.names[vertex]
        shape = self._shapes.shapes.get(name)
        return None if shape is None else (shape, self._shapes.types.get(name, 0))

    def _extended(self, chain: Sequence[int], pieces: Sequence[_Piece], kinds: Sequence[object], one: _Interval) -> int:
        """Returns where a block ends: with the normalization and activation behind it, if its entry has them too.

        Where the entry is made in another way than any possible exit, all of them belong to the block.
        """
        stop = one.stop
        ends = [stop]
        while stop < len(pieces) and not pieces[stop].weights and not pieces[stop].sides:
            stop += 1
            if kinds[stop] == kinds[one.start]:
                ends.append(stop)
        wanted = self._insides.maker(self._flow.names[chain[one.start]])
        alike = [end for end in ends if self._insides.maker(self._flow.names[chain[end]]) == wanted]
        return (alike or ends)[-1]

    def _found(
        self, ends: tuple[int, int], inner: frozenset[int], weights: int, residual: bool, reason: str | None
    ) -> Found:
        entry, exit = (self._flow.names[vertex] for vertex in ends)
        known = self._known.get((entry, exit))
        if known is not None:
            return replace(known, roots=known.roots | {self._root})
        shape = self._shapes.shapes.get(entry)
        nodes = self._insides.closed(entry, inner)
        lengths = []
        for tensor, reader in self._insides.escapes(exit, inner, nodes):
            if reader is not None and reader.op in LENGTHS and shape == self._shapes.shapes.get(tensor):
                lengths.append(tensor)
            elif reason is None:
                reason = f"{tensor!r} within it is an output of the graph"
                if reader is not None:
                    what = "the length of " if reader.op in LENGTHS else ""
                    reason = f"{node_name(reader)!r} outside of it reads {what}{tensor!r}"
        roots = frozenset([self._root])
        return Found(
            entry, exit, inner, nodes, tuple(dict.fromkeys(lengths)), weights, residual, reason, roots
        )  # fmt: skip

    def _change(self, entry: int, exit: int) -> str:
        """Returns why a piece with weights is no block."""
        kinds = [kind for kind in (self._kind(entry), self._kind(exit)) if kind is not None]
        if len(kinds) < 2:
            return "the shapes of what it reads and makes are unknown"
        before, after = (_words(shape) for shape, _ in kinds)
        if before == after:
            return "what it makes has another element type than what it reads"
        return f"it changes the shape from {before} to {after}"


def _words(shape: Shape) -> str:
    return "x".join("?" if size in PRIMES else str(size) for size in shape) or "that of one number"


def _intervals(kinds: Sequence[object], pieces: Sequence[_Piece]) -> Iterator[_Interval]:
    """Yields stretches that begin with weights and end where the kind of their tensor comes back, short ones first.

    Of two that cross, the one with fewer operators that have weights is taken, or else the earlier one.
    """
    weights = [0]
    for piece in pieces:
        weights.append(weights[-1] + piece.weights)
    places: dict[object, list[int]] = {}
    for place, kind in enumerate(kinds):
        places.setdefault(kind, []).append(place)
    found = []
    for start, piece in enumerate(pieces):
        same = places[kinds[start]]
        at = bisect_left(same, start + 1)
        if kinds[start] is not None and piece.weights and at < len(same):
            stop = same[at]
            found.append(_Interval(start, stop, weights[stop] - weights[start]))
    taken: list[_Interval | None] = [None] * len(pieces)
    for one in sorted(found, key=lambda item: (item.weights, item.start)):
        ends = [taken[one.start], taken[one.stop - 1]]
        if all(other is None or (one.start <= other.start and other.stop <= one.stop) for other in ends):
            taken[one.start : one.stop] = [one] * (one.stop - one.start)
            yield one
