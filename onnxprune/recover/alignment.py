"""Names of a smaller model that another tool wrote, brought in line with those of the original.

A node is found again by the name of its result, or else by the names of its weights, or, where it has none, by what it
reads; what is found tells more names.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.errors import PlanError
from onnxprune.model.fold import store_moved
from onnxprune.model.graph import copy_graph, graph_tensors, stored_tensors


def align(pruned: gs.Graph, original: gs.Graph) -> dict[str, str]:
    """Gives tensors of a graph the names that the original has for them, in place, and returns the old ones by new.

    Weights that Identity or Transpose only moves become stored ones.

    Raises:
        PlanError: the graphs have no names in common, or other inputs.
    """
    inputs, known = ({tensor.name for tensor in graph.inputs} for graph in (pruned, original))
    if not inputs <= known:
        raise PlanError(
            f"the smaller model has the inputs {sorted(inputs)} and the original {sorted(known)}: rename them, so "
            "that both can be fed with the same samples"
        )
    original = copy_graph(original)
    store_moved(pruned)
    store_moved(original)
    names = _Matching(pruned, original).names
    computed = {tensor.name for node in original.nodes for tensor in node.outputs}
    if not any(names.get(tensor.name) in computed for node in pruned.nodes for tensor in node.outputs):
        raise PlanError(
            "no node of the smaller model has the name of a result or of a weight in common with the original: give "
            "the model from which it was made, or restore the names of its weights"
        )
    return rename(pruned, names)


def rename(graph: gs.Graph, names: Mapping[str, str]) -> dict[str, str]:
    """Gives tensors other names, in place; one that is not mentioned makes room for one that is.

    Returns:
        The old name of every tensor that has a new one.
    """
    given, old = set(names.values()), {}
    tensors = {id(tensor): tensor for tensor in graph_tensors(graph) if tensor.name}
    used = {tensor.name for tensor in tensors.values()} | given
    for tensor in tensors.values():
        name = names.get(tensor.name, tensor.name)
        if name in given and tensor.name not in names:
            while name in used:
                name += "_"
            used.add(name)
        if name != tensor.name:
            old[name] = tensor.name
            tensor.name = name
    return old


class _Matching:
    """``names`` are the original's of tensors of the other graph."""

    def __init__(self, pruned: gs.Graph, original: gs.Graph) -> None:
        self._mine, self._theirs = dict(stored_tensors(pruned)), dict(stored_tensors(original))
        self._readers: dict[str, list[gs.Node]] = {}
        for node in original.nodes:
            for name in dict.fromkeys(tensor.name for tensor in node.inputs if tensor.name):
                self._readers.setdefault(name, []).append(node)
        producers = {tensor.name: node for node in original.nodes for tensor in node.outputs if tensor.name}
        self.names = {tensor.name: tensor.name for tensor in pruned.inputs}
        self._taken = set(self.names)
        self._found: set[int] = set()
        for node in pruned.nodes:
            if any(tensor.name not in self._mine for tensor in node.outputs):
                self._match(node, producers)

    def _match(self, node: gs.Node, producers: Mapping[str, gs.Node]) -> None:
        first = node.outputs[0]
        twin = producers.get(first.name)
        if twin is None:
            twin = self._only(node, dict(self._weights(node))) or self._only(node, dict(self._computed(node)))
        elif twin.op != node.op:
            self._add(first.name, first.name)
            return
        if twin is None:
            return
        self._found.add(id(twin))
        for mine, theirs in zip(node.outputs, twin.outputs, strict=False):
            self._add(mine.name, theirs.name)
        for mine, theirs in zip(node.inputs, twin.inputs, strict=False):
            if mine.name in self._mine and theirs.name in self._theirs:
                self._add(mine.name, theirs.name)

    def _add(self, mine: str, theirs: str) -> None:
        if mine and theirs and mine not in self.names and theirs not in self._taken:
            self.names[mine] = theirs
            self._taken.add(theirs)

    def _only(self, node: gs.Node, read: Mapping[int, str]) -> gs.Node | None:
        """Returns the one node of the original that does the same and reads this at these slots."""
        readers = self._readers.get(next(iter(read.values()), ""), ())
        found = [
            other
            for other in readers
            if other.op == node.op
            and id(other) not in self._found
            and len(other.inputs) == len(node.inputs)
            and all(other.inputs[slot].name == name for slot, name in read.items())
        ]
        return found[0] if len(found) == 1 else None

    def _weights(self, node: gs.Node) -> Iterator[tuple[int, str]]:
        """Yields the names of the weights that a node reads, by slot."""
        for slot, tensor in enumerate(node.inputs):
            held = self._mine.get(tensor.name)
            if held is not None and held.dtype not in (np.int32, np.int64):
                yield slot, tensor.name

    def _computed(self, node: gs.Node) -> Iterator[tuple[int, str]]:
        """Yields what a node without weights reads, as the original calls it, if all of that is known."""
        read = [(slot, tensor.name) for slot, tensor in enumerate(node.inputs) if tensor.name not in self._mine]
        if all(name in self.names for _, name in read if name) and not dict(self._weights(node)):
            yield from ((slot, self.names[name]) for slot, name in read if name)
