"""What lies within a part of a graph: weights, names, and what the rest of the graph reads of it."""

import math
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.channels.flow import Flow
from onnxprune.model.graph import read_by, stored_tensors
from onnxprune.model.shapes import node_name
from onnxprune.ops import operator

QUANTIZED = ("ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul")
"""Operators on integers that multiply, for which no multiply-accumulates are counted."""


class Insides:
    """Lookups about parts of one graph.

    Attributes:
        flow: The flow of data.
        heavy: Positions of the nodes that multiply data with weights, where data flows on to an output.
    """

    def __init__(self, graph: gs.Graph) -> None:
        self._nodes: list[gs.Node] = list(graph.nodes)
        self.flow = Flow(graph)
        self._held = dict(stored_tensors(graph))
        self._outputs = {tensor.name for tensor in graph.outputs}
        self._readers: dict[str, list[int]] = {}
        self._reads: list[set[str]] = []
        self._makers: dict[str, int] = {}
        for position, node in enumerate(self._nodes):
            names = read_by(node) | {tensor.name for tensor in node.inputs if tensor.name}
            self._reads.append(names)
            for name in names:
                self._readers.setdefault(name, []).append(position)
            for tensor in node.outputs:
                self._makers[tensor.name] = position
        self.heavy = {position for position, node in enumerate(self._nodes) if self._is_heavy(position, node)}
        self._prefixes: dict[str, int] = {}
        for position in self.heavy:
            for prefix in _prefixes(node_name(self._nodes[position])):
                self._prefixes[prefix] = self._prefixes.get(prefix, 0) + 1

    def first_weighted(self) -> Iterator[str]:
        """Yields tensors that are the first to be made with a stored matrix, such as embeddings of tokens."""
        reached: set[int] = set()
        for vertex in range(self.flow.size):
            if any(other in reached for other in self.flow.before[vertex]):
                reached.add(vertex)
            elif not self.flow.names[vertex] and self._has_matrix(self._nodes[self.flow.nodes[vertex]]):
                reached.add(vertex)
                yield from (t.name for t in self._nodes[self.flow.nodes[vertex]].outputs[:1])

    def maker(self, name: str) -> tuple[str, int] | None:
        """Returns how a tensor is made: by which operator, from how many other ones that are computed of data."""
        position = self._makers.get(name)
        if position is None:
            return None
        return self._nodes[position].op, sum(other in self.flow.numbers for other in self._reads[position])

    def closed(self, entry: str, inner: Iterable[int]) -> frozenset[int]:
        """Returns nodes together with those that nothing else reads, up to a tensor."""
        gone = set(inner)
        waiting = [name for position in gone for name in self._reads[position]]
        while waiting:
            name = waiting.pop()
            position = self._makers.get(name)
            if position is None or position in gone or name == entry:
                continue
            made = [tensor.name for tensor in self._nodes[position].outputs if tensor.name]
            if entry not in made and all(self._unread(other, gone) for other in made):
                gone.add(position)
                waiting += self._reads[position]
        return frozenset(gone)

    def escapes(self, exit: str, inner: Iterable[int], gone: AbstractSet[int]) -> Iterator[tuple[str, gs.Node | None]]:
        """Yields what nodes make, but for the exit, that is read elsewhere, and by which node; ``None`` is the caller.

        Args:
            exit: The tensor that may be read.
            inner: The nodes.
            gone: They and those that go with them.
        """
        for position in sorted(inner):
            for name in (tensor.name for tensor in self._nodes[position].outputs if tensor.name != exit):
                if name in self._outputs:
                    yield name, None
                for reader in self._readers.get(name, ()) if name else ():
                    if reader not in gone:
                        yield name, self._nodes[reader]

    def parameters(self, nodes: AbstractSet[int]) -> int:
        """Returns how many stored floating-point numbers these nodes alone read."""
        names = {name for position in nodes for name in self._reads[position] if name in self._held}
        own = {id(self._held[name]): self._held[name] for name in names if self._unread(name, nodes)}
        return sum(math.prod(one.shape) for one in own.values() if np.issubdtype(one.dtype, np.floating))

    def common_name(self, inner: Iterable[int]) -> str | None:
        """Returns what the names of all operators with weights begin with, if those of no others do."""
        weighted = [node_name(self._nodes[position]) for position in inner if position in self.heavy]
        shared = set.intersection(*(set(_prefixes(name)) for name in weighted)) if weighted else set()
        longest = max(shared, key=len, default="")
        return longest if longest and self._prefixes[longest] == len(weighted) else None

    def _unread(self, name: str, gone: AbstractSet[int]) -> bool:
        return name not in self._outputs and all(position in gone for position in self._readers.get(name, ()))

    def _is_heavy(self, position: int, node: gs.Node) -> bool:
        vertex = self.flow.numbers.get(position)
        if vertex is None or self.flow.behind.depth[vertex] < 0:
            return False
        multiplies = operator(node.op, node.domain).macs is not None or node.op in QUANTIZED
        return multiplies and any(t.name and t.name not in self.flow.numbers for t in node.inputs)

    def _has_matrix(self, node: gs.Node) -> bool:
        held = [self._held.get(tensor.name) for tensor in node.inputs]
        wide = [one for one in held if one is not None and np.issubdtype(one.dtype, np.floating)]
        return any(sum(size > 1 for size in one.shape) > 1 for one in wide)


def _prefixes(name: str) -> list[str]:
    """Returns the name and all that it begins with, in whole parts."""
    parts = name.split("/")
    return [prefix for count in range(1, len(parts) + 1) if (prefix := "/".join(parts[:count]))]
