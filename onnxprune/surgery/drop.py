"""Drops blocks: what read the exit of one reads its entry, and nodes that nothing needs any more are gone.

What took the place of an exit also takes its name, where nothing else reads it. A repair finds its targets by name,
so the operator in front of a lost block is fitted to what the original had behind it, and takes the block's best
linear map into its weights, as in ReplaceMe (Shopkhoev et al. 2025).
"""

from collections.abc import Iterable, Iterator

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.channels.blocks import Block
from onnxprune.channels.flow import LENGTHS
from onnxprune.errors import PlanError
from onnxprune.model.fold import remove
from onnxprune.model.graph import read_by
from onnxprune.model.io import Graph, read_values


def drop_blocks(graph: Graph, blocks: Iterable[Block]) -> Graph:
    """Returns a copy of a graph without some of its blocks; its inputs and outputs stay as they are.

    Args:
        graph: The graph in which the blocks were found, or another copy of it.
        blocks: What goes, in any order; of a block and one within it the outer one alone counts.

    Raises:
        PlanError: a block cannot be dropped, or the graph does not have it.
    """
    result: Graph = graph.copy()
    drop = _Drop(graph, result)
    wanted = {block.exit: block for block in outermost(blocks)}
    for block in wanted.values():
        drop.check(block)
    before = _needed(result)
    for name in [tensor.name for node in graph.nodes for tensor in node.outputs if tensor.name in wanted]:
        drop.bypass(wanted[name])
    remove(result, before - _needed(result))
    drop.give_names()
    return result


def outermost(blocks: Iterable[Block]) -> list[Block]:
    """Returns the blocks that do not lie within others of them."""
    given = list(dict.fromkeys(blocks))
    nodes = [set(block.nodes) for block in given]
    return [
        block for block, own in zip(given, nodes, strict=True) if not any(own < other for other in nodes)
    ]  # fmt: skip


class _Drop:
    """Bypasses blocks in graph order, and gives names when they are gone; ``original`` still has what is lost."""

    def __init__(self, original: Graph, graph: Graph) -> None:
        self._graph = graph
        self._tensors, self._lost = _tensors(graph), _tensors(original)
        self._bodies = list(_bodies(graph))
        self._outputs = [tensor.name for tensor in graph.outputs]
        self._fixed = {id(tensor) for tensor in (*graph.inputs, *graph.outputs)}
        self._sources: dict[str, gs.Tensor] = {}
        self._readers: dict[str, set[int]] = {}

    def check(self, block: Block) -> None:
        """Raises ``PlanError`` where a block cannot be dropped."""
        if block.reason is not None:
            raise PlanError(f"block {block.name!r} cannot be dropped ({block.reason}): leave it out of the plan")
        if block.entry not in self._tensors or block.exit not in self._tensors:
            raise PlanError(f"the plan drops block {block.name!r}, which the model does not have: make the plan anew")

    def bypass(self, block: Block) -> None:
        """Lets what reads the exit read the entry, or what took its place."""
        entry = self._sources.get(block.entry, self._tensors[block.entry])
        exit = self._tensors[block.exit]
        self._sources.pop(block.exit, None)
        self._sources[block.exit] = entry
        self._readers[block.exit] = {id(node) for node in exit.outputs}
        for name in block.lengths:
            for node in [node for node in self._tensors[name].outputs if node.op in LENGTHS]:
                _replace(node.inputs, self._tensors[name], entry)
        for node in list(exit.outputs):
            _replace(node.inputs, exit, entry)
        for body in (self._graph, *self._bodies):
            _replace(body.outputs, exit, entry)

    def give_names(self) -> None:
        """Gives what took the place of an exit its name, if nothing else reads it; the graph's outputs keep theirs."""
        for name, entry in reversed(self._sources.items()):
            if entry.inputs and id(entry) not in self._fixed and self._readers_of(entry) <= self._readers[name]:
                self._fixed.add(id(entry))
                self._rename(entry, name)
                self._rename_before(entry.inputs[0], self._lost[name].inputs[0])
        for place, (tensor, name) in enumerate(zip(list(self._graph.outputs), self._outputs, strict=True)):
            if tensor.name != name:
                output = gs.Variable(name, self._lost[name].dtype, self._lost[name].shape)
                self._graph.outputs[place] = output
                self._graph.nodes.append(gs.Node("Identity", name, {}, [tensor], [output]))

    def _rename_before(self, kept: gs.Node, lost: gs.Node) -> None:
        """Goes on with what two equal functions read: what the Relu behind a sum has lost, the sum has lost too."""
        while _same(kept, lost):
            mine, theirs = _only_data(kept), _only_data(lost)
            if mine is None or theirs is None or not mine.inputs or not theirs.inputs:
                return
            if id(mine) in self._fixed or self._readers_of(mine) != {id(kept)} or not self._rename(mine, theirs.name):
                return
            kept, lost = mine.inputs[0], theirs.inputs[0]

    def _rename(self, tensor: gs.Tensor, name: str) -> bool:
        """Gives a tensor the name and declared shape of one that is gone, if it is."""
        if self._tensors[name].inputs:
            return False
        lost = self._lost[name]
        tensor.name, tensor.shape, tensor.dtype = name, lost.shape, lost.dtype
        return True

    @staticmethod
    def _readers_of(tensor: gs.Tensor) -> set[int]:
        """Returns the nodes that read the data of a tensor."""
        return {id(node) for node in tensor.outputs if node.op not in LENGTHS}


def _only_data(node: gs.Node) -> gs.Tensor | None:
    """Returns what a node reads that is not stored, if it is one tensor."""
    read = [tensor for tensor in node.inputs if tensor.name and not _is_stored(tensor)]
    return read[0] if len(read) == 1 and len(node.outputs) == 1 else None


def _is_stored(tensor: gs.Tensor) -> bool:
    return isinstance(tensor, gs.Constant) or bool(tensor.inputs and tensor.inputs[0].op == "Constant")


def _same(left: gs.Node, right: gs.Node) -> bool:
    """Whether two nodes compute the same function of their data."""
    if (left.op, left.domain or "", len(left.inputs)) != (right.op, right.domain or "", len(right.inputs)):
        return False
    if left.attrs != right.attrs or any(isinstance(value, gs.Graph) for value in left.attrs.values()):
        return False
    return all(_equal(one, other) for one, other in zip(left.inputs, right.inputs, strict=True))


def _equal(left: gs.Tensor, right: gs.Tensor) -> bool:
    """Whether two tensors hold the same stored values, or are both data, or both left out."""
    mine, theirs = _content(left), _content(right)
    if mine is None or theirs is None:
        return mine is theirs and bool(left.name) == bool(right.name)
    return mine.dtype == theirs.dtype and np.array_equal(mine, theirs)


def _content(tensor: gs.Tensor) -> np.ndarray | None:
    if isinstance(tensor, gs.Constant):
        return read_values(tensor)
    if not _is_stored(tensor):
        return None
    value = next(iter(tensor.inputs[0].attrs.values()))
    return read_values(value) if isinstance(value, gs.Constant) else np.asarray(value)


def _replace(tensors: list[gs.Tensor], old: gs.Tensor, new: gs.Tensor) -> None:
    for place, tensor in enumerate(tensors):
        if tensor is old:
            tensors[place] = new


def _bodies(graph: gs.Graph) -> Iterator[gs.Graph]:
    """Yields the bodies of the nodes of a graph, at any depth."""
    for node in graph.nodes:
        for value in node.attrs.values():
            if isinstance(value, gs.Graph):
                yield value
                yield from _bodies(value)


def _tensors(graph: gs.Graph) -> dict[str, gs.Tensor]:
    made = [tensor for node in graph.nodes for tensor in node.outputs]
    return {tensor.name: tensor for tensor in (*graph.inputs, *made) if tensor.name}


def _needed(graph: gs.Graph) -> set[int]:
    """Returns the nodes, by their ``id``, from which an output of the graph is computed."""
    names = {tensor.name for tensor in graph.outputs}
    found: set[int] = set()
    for node in reversed(graph.nodes):
        if any(tensor.name in names for tensor in node.outputs):
            found.add(id(node))
            names |= read_by(node)
    return found
