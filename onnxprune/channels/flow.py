"""The flow of data through a graph, and which tensors all of it passes: dominators and postdominators.

Vertices are tensors and nodes, numbered in graph order. What is computed from stored tensors and lengths alone is no
part of it: weights, the operands of Reshape, position tables.
"""

from collections.abc import Iterable, Sequence

import onnx_graphsurgeon as gs

from onnxprune.model.graph import read_by

LENGTHS = ("Shape", "Size")
"""Operators that read no data, only how much of it there is."""


class Tree:
    """A tree that grows leaf by leaf; ancestors are found in logarithmic time (jump pointers of Myers 1983)."""

    def __init__(self, size: int, root: int) -> None:
        self.parent = [-1] * size
        self.depth = [-1] * size
        self._jump = [root] * size
        self.parent[root], self.depth[root] = root, 0

    def add(self, vertex: int, parent: int) -> None:
        """Adds a leaf."""
        self.parent[vertex], self.depth[vertex] = parent, self.depth[parent] + 1
        middle = self._jump[parent]
        far = self._jump[middle]
        even = self.depth[parent] - self.depth[middle] == self.depth[middle] - self.depth[far]
        self._jump[vertex] = far if even else parent

    def meet(self, left: int, right: int) -> int:
        """Returns the deepest vertex above both."""
        if self.depth[left] < self.depth[right]:
            left, right = right, left
        left = self._lift(left, self.depth[right])
        while left != right:
            if self._jump[left] != self._jump[right]:
                left, right = self._jump[left], self._jump[right]
            else:
                left, right = self.parent[left], self.parent[right]
        return left

    def under(self, vertex: int, top: int) -> bool:
        """Whether a vertex is another one or below it."""
        return 0 <= self.depth[top] <= self.depth[vertex] and self._lift(vertex, self.depth[top]) == top

    def _lift(self, vertex: int, depth: int) -> int:
        while self.depth[vertex] > depth:
            far = self._jump[vertex]
            vertex = far if self.depth[far] >= depth else self.parent[vertex]
        return vertex


class Flow:
    """The data flow of a graph.

    Attributes:
        names: Name of every tensor vertex; empty for a node.
        nodes: Position in the graph of every node vertex, and of the node that makes a tensor; -1 for graph inputs.
        before: The vertices that each vertex reads directly.
        after: The vertices that read each vertex directly, those alone from which data reaches an output.
        numbers: Vertices of tensors by name, and vertices of nodes by position.
        behind: The postdominator tree; its root stands for the caller.
    """

    def __init__(self, graph: gs.Graph) -> None:
        self.names: list[str] = []
        self.nodes: list[int] = []
        self.before: list[list[int]] = []
        self.numbers: dict[str | int, int] = {}
        for tensor in graph.inputs:
            self._add(tensor.name, tensor.name, -1, [])
        for position, node in enumerate(graph.nodes):
            if node.op in LENGTHS:
                continue
            read = sorted(self.numbers[name] for name in read_by(node) if name in self.numbers)
            if read:
                self._add(position, "", position, read)
                for tensor in node.outputs:
                    if tensor.name:
                        self._add(tensor.name, tensor.name, position, [self.numbers[position]])
        self.size = len(self.names)
        self.outputs = [self.numbers[tensor.name] for tensor in graph.outputs if tensor.name in self.numbers]
        self.after = self._reversed()
        self.behind = self._behind()

    def dominators(self, root: int) -> Tree:
        """Returns the dominator tree of what is computed from one tensor; other sources do not count."""
        tree = Tree(self.size, root)
        for vertex in range(root + 1, self.size):
            above = [other for other in self.before[vertex] if tree.depth[other] >= 0]
            if above and self.behind.depth[vertex] >= 0:
                tree.add(vertex, _meet(tree, above))
        return tree

    def above(self, tree: Tree, vertex: int) -> int:
        """Returns the nearest tensor strictly above a vertex in a tree, or the root."""
        vertex = tree.parent[vertex]
        while tree.depth[vertex] > 0 and not self.names[vertex]:
            vertex = tree.parent[vertex]
        return vertex

    def between(self, tree: Tree, entry: int, exit: int) -> set[int]:
        """Returns the positions of the nodes through which data of one tensor reaches another that it dominates."""
        seen = {entry}
        waiting = [exit]
        while waiting:
            vertex = waiting.pop()
            if vertex not in seen:
                seen.add(vertex)
                waiting += [other for other in self.before[vertex] if tree.depth[other] >= 0]
        return {self.nodes[vertex] for vertex in seen - {entry}}

    def forward(self, entry: int, exit: int) -> set[int]:
        """Returns the positions of the nodes through which all data of one tensor reaches another."""
        seen = {exit}
        waiting = list(self.after[entry])
        while waiting:
            vertex = waiting.pop()
            if vertex not in seen:
                seen.add(vertex)
                waiting += self.after[vertex]
        return {self.nodes[vertex] for vertex in seen}

    def _add(self, key: str | int, name: str, position: int, before: list[int]) -> None:
        self.numbers[key] = len(self.names)
        self.names.append(name)
        self.nodes.append(position)
        self.before.append(before)

    def _reversed(self) -> list[list[int]]:
        after: list[list[int]] = [[] for _ in range(self.size)]
        alive = [False] * self.size
        for vertex in self.outputs:
            alive[vertex] = True
        for vertex in reversed(range(self.size)):
            if alive[vertex]:
                for other in self.before[vertex]:
                    alive[other] = True
                    after[other].append(vertex)
        return after

    def _behind(self) -> Tree:
        caller = self.size
        tree = Tree(self.size + 1, caller)
        outputs = set(self.outputs)
        for vertex in reversed(range(self.size)):
            below = [caller] if vertex in outputs else []
            below += self.after[vertex]
            if below:
                tree.add(vertex, _meet(tree, below))
        return tree


def covering(flow: Flow, roots: Sequence[int], wanted: Iterable[int], most: int) -> list[int]:
    """Returns few of the roots from which, together, as many wanted vertices are reached as from all of them."""
    bits = {root: 1 << place for place, root in enumerate(roots)}
    reached = [0] * flow.size
    for vertex in range(flow.size):
        reached[vertex] = bits.get(vertex, 0)
        for other in flow.before[vertex]:
            reached[vertex] |= reached[other]
    left = [reached[vertex] for vertex in wanted]
    chosen: list[int] = []
    while len(chosen) < most:
        counts = {root: sum(bool(one & bits[root]) for one in left) for root in roots}
        best = max(roots, key=lambda root: counts[root], default=None)
        if best is None or not counts[best]:
            break
        chosen.append(best)
        left = [one for one in left if not one & bits[best]]
    return chosen


def _meet(tree: Tree, vertices: Sequence[int]) -> int:
    found = vertices[0]
    for vertex in vertices[1:]:
        found = tree.meet(found, vertex)
    return found
