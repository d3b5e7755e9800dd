"""Lengths of pruned axes that are more than shapes: read as they were.

What computes with the length of an axis has been trained with that length, and the masked reference still has it: the
scale 1 / sqrt(width), a mean over Size, a comparison, a shape that is returned or read by the body of an If. Such a
length is put back to its original value where Shape or Size reads it: what went is added, or, where a free dimension is
merged with the channels, the rest is scaled, which is exact. The same goes for shape arithmetic that does not scale:
``Shape(x)[0] // heads`` is the batch where x merges batch and heads; it would be truncated with half of the heads gone.

A shape operand further on follows as any other does. A length that only such operands read is left alone, and they
follow by themselves.
"""

import functools

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.channels.facts import Axis, Count, Operand
from onnxprune.channels.groups import INTEGERS, Channels
from onnxprune.model.graph import captured
from onnxprune.model.io import Graph
from onnxprune.model.shapes import Shapes
from onnxprune.model.sizes import PRIMES
from onnxprune.ops import operator
from onnxprune.surgery.gone import Gone

READERS = ("Shape", "Size")
LINEAR = {"Abs", "Add", "And", "Mul", "Neg", "Not", "Or", "ReduceProd", "ReduceSum", "Sub", "Where"}
"""Operators of shape arithmetic that make lengths from lengths; comparisons answer for what Where and And read."""


def restore_lengths(graph: Graph, channels: Channels, gone: Gone) -> None:
    """Edits the graph in place: lengths of pruned axes are put back where more than a shape depends on them."""
    kept = _kept(channels, gone)
    nodes: list[gs.Node] = []
    for node in graph.nodes:
        nodes.append(node)
        if node.op in READERS and node.outputs[0].name in kept:
            nodes += _restored(node, channels, gone)
    graph.nodes[:] = nodes


def _kept(channels: Channels, gone: Gone) -> set[str]:
    """Returns the names of numbers, computed from lengths of pruned axes, that have to stay what they are."""
    changing = _changing(channels.shapes, gone)
    following = {
        (edit.node, edit.fact.where.slot, edit.fact.where.element)
        for edit in channels.edits
        if isinstance(edit.fact, Count) and isinstance(edit.fact.where, Operand)
    }
    kept = {tensor.name for tensor in channels.graph.outputs} & changing.keys()
    for position, node in reversed(list(enumerate(channels.graph.nodes)) if changing else []):
        for body in node.attrs.values():
            kept |= captured(body) & changing.keys() if isinstance(body, gs.Graph) else set()
        wanted = any(tensor.name in kept for tensor in node.outputs)
        operands = operator(node.op, node.domain).operands
        for slot, tensor in enumerate(node.inputs if node.op not in READERS else ()):
            if tensor.name not in changing:
                continue
            elements = np.flatnonzero(changing[tensor.name]).tolist() if slot in operands else []
            scales = slot in operands or _scales(node, slot, channels.shapes)
            if wanted or not scales or any((position, slot, element) not in following for element in elements):
                kept.add(tensor.name)
    return kept


def _changing(shapes: Shapes, gone: Gone) -> dict[str, list[bool]]:
    """Returns, by name, which elements of shape arithmetic are computed from lengths that shrink."""

    @functools.cache
    def shrink(axes: frozenset[Axis]) -> bool:
        return any(axis.dim in gone.fewer(axis.tensor) for axis in axes)

    changing = {name: [shrink(axes) for axes in origins.ravel()] for name, origins in shapes.origins.items()}
    return {name: elements for name, elements in changing.items() if any(elements)}


def _scales(node: gs.Node, slot: int, shapes: Shapes) -> bool:
    """Whether a node makes of a length what its own readers answer for."""
    if not any(tensor.name in shapes.origins for tensor in node.outputs):
        return False  # it is not shape arithmetic
    if operator(node.op, node.domain).moves:
        return slot == 0 or node.op == "Concat"
    if node.op == "Cast":
        return shapes.types.get(node.inputs[0].name) in INTEGERS  # numbers with a fraction would be truncated
    if node.op == "Equal":
        return bool((shapes.values[node.inputs[1 - slot].name] < 0).all())  # no length is
    return node.op in LINEAR


def _restored(node: gs.Node, channels: Channels, gone: Gone) -> list[gs.Node]:
    """Returns nodes that write what Shape or Size gave, from what a Shape gives now: its place is that of ``node``."""
    source, numbers = node.inputs[0].name, node.outputs[0]
    before = np.array(channels.shapes.shapes[source], np.int64)
    after = np.array(gone.shape(source, channels.shapes.shapes[source]), np.int64)
    scaling = _scaling(channels, before - after)
    steps: list[tuple[str, np.ndarray, int]] = [
        ("Mul", np.where(scaling, before, 1), 1),
        ("Div", np.where(scaling, after, 1), 1),
        ("Add", np.where(scaling, 0, before - after), 0),
    ]
    part = slice(node.attrs.get("start", 0), node.attrs.get("end"))
    fresh: list[gs.Node] = []
    tensor = gs.Variable(f"{numbers.name}_sliced", np.dtype(np.int64), [len(before[part])])
    node.outputs[0] = tensor
    for op, values, neutral in steps:
        if (values[part] != neutral).any():
            name = f"{numbers.name}_{op.lower()}_back"
            result = gs.Variable(name, np.dtype(np.int64), list(tensor.shape))
            fresh.append(gs.Node(op, name, {}, [tensor, gs.Constant(f"{name}_by", values[part])], [result]))
            tensor = result
    if node.op == "Size":
        node.op = "Shape"
        fresh.append(gs.Node("ReduceProd", f"{numbers.name}_back", {"keepdims": 0}, [tensor]))
    fresh[-1].outputs = [numbers]
    return fresh


def _scaling(channels: Channels, lost: np.ndarray) -> np.ndarray:
    """Says of which dimensions the removed channels are repeated along a free dimension, so that their number varies.

    The sizes of free dimensions are primes that tell. Where the graph did not admit those, all may be repeated; a
    length that does not vary comes out right either way.
    """
    sizes = [
        zip(tensor.shape or (), channels.sizes.get(tensor.name, ()), strict=False) for tensor in channels.graph.inputs
    ]
    free = {size for pairs in sizes for declared, size in pairs if not isinstance(declared, int)}
    repeated = np.full(lost.shape, not free <= set(PRIMES))
    for size in free:
        repeated |= lost % size == 0
    return repeated & (lost > 0)
