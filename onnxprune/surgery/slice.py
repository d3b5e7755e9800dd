"""Removes channels: slices weights, and rewrites every stored number that follows them."""

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.channels.facts import Attribute, Count, Operand, Positions
from onnxprune.channels.groups import Channels
from onnxprune.errors import SurgeryError
from onnxprune.model.graph import stored_tensors
from onnxprune.model.io import Graph, read_values, write_values
from onnxprune.model.shapes import Shapes, ShapeWalk, node_name, opset_of
from onnxprune.surgery.gone import Gone, Removals
from onnxprune.surgery.lengths import restore_lengths
from onnxprune.surgery.operands import Operands
from onnxprune.surgery.statistics import keep_statistics


def slice_channels(channels: Channels, removals: Removals) -> Graph:
    """Returns a copy of the graph without the given units.

    Raises:
        PlanError: the removals do not fit the groups.
        SurgeryError: a shape did not come out as it must (a defect of a channel rule).
    """
    gone = Gone(channels, removals)
    graph: Graph = channels.graph.copy()
    _slice_constants(graph, gone)
    _slice_declared_shapes(graph, gone)
    counts: dict[int, list[Count]] = {}
    for edit in channels.edits:
        node = graph.nodes[edit.node]
        match edit.fact:
            case Positions():
                _renumber(node, edit.fact, channels, gone)
            case Count(where=Attribute()):
                _set_attribute(node, edit.fact, channels, gone)
            case Count():
                counts.setdefault(id(node), []).append(edit.fact)
    _explicit_splits(graph, gone, channels)
    _explicit_squeezes(graph, gone, channels)
    keep_statistics(graph, channels, gone, removals)
    restore_lengths(graph, channels, gone)
    operands = Operands(graph)

    def follow(node: gs.Node, known: Shapes) -> None:
        targets = {
            fact.where: gone.count(fact, channels.shapes.shapes[fact.axis.tensor][fact.axis.dim])
            for fact in counts.get(id(node), ())
            if isinstance(fact.where, Operand)
        }
        operands.follow(node, targets, known)

    after = ShapeWalk(graph, channels.sizes, follow).run()
    operands.insert()
    _check(graph, channels, gone, after)
    return graph


def _slice_constants(graph: Graph, gone: Gone) -> None:
    for tensor in stored_tensors(graph):
        if gone.fewer(tensor[0]):
            write_values(tensor[1], gone.take(tensor[0], read_values(tensor[1])))
    for node in graph.nodes:
        if node.op == "Constant" and gone.fewer(node.outputs[0].name):
            name, content = next(iter(node.attrs.items()))
            if not isinstance(content, gs.Constant):
                node.attrs[name] = gone.take(node.outputs[0].name, np.asarray(content)).tolist()


def _slice_declared_shapes(graph: Graph, gone: Gone) -> None:
    for node in graph.nodes:
        for tensor in node.outputs:
            fewer = gone.fewer(tensor.name)
            if tensor.shape is not None and fewer:
                tensor.shape = [
                    size - fewer.get(dim, 0) if isinstance(size, int) else size for dim, size in enumerate(tensor.shape)
                ]


def _renumber(node: gs.Node, fact: Positions, channels: Channels, gone: Gone) -> None:
    lost = gone.lost(fact.axis)
    if not lost.size:
        return
    length = channels.shapes.shapes[fact.axis.tensor][fact.axis.dim]
    stored = node.inputs[fact.slot]
    values = channels.shapes.values[stored.name]
    values = gone.take(stored.name, values) % length
    fresh = values - np.searchsorted(lost, values)
    node.inputs[fact.slot] = gs.Constant(f"{stored.name}_{node_name(node)}_kept", fresh.astype(values.dtype))


def _set_attribute(node: gs.Node, fact: Count, channels: Channels, gone: Gone) -> None:
    where = fact.where
    if not isinstance(where, Attribute) or where.name not in node.attrs or not gone.lost(fact.axis).size:
        return
    count = gone.count(fact, channels.shapes.shapes[fact.axis.tensor][fact.axis.dim])
    if where.element is None:
        node.attrs[where.name] = count
    else:
        stored = list(node.attrs[where.name])
        stored[where.element] = count
        node.attrs[where.name] = stored


def _explicit_splits(graph: Graph, gone: Gone, channels: Channels) -> None:
    """Writes the sizes of a Split that leaves them implied, where the survivors are not what it would imply."""
    version = opset_of(graph, "")
    for node in graph.nodes:
        if node.op != "Split" or node.domain not in (None, "", "ai.onnx"):
            continue
        if "split" in node.attrs or len(node.inputs) > 1 or not gone.fewer(node.inputs[0].name):
            continue
        shape = channels.shapes.shapes[node.inputs[0].name]
        axis = node.attrs.get("axis", 0) % len(shape)
        sizes = [gone.shape(t.name, channels.shapes.shapes[t.name])[axis] for t in node.outputs]
        longest = -(-sum(sizes) // len(sizes))
        shorter_last = [longest] * (len(sizes) - 1) + [sum(sizes) - longest * (len(sizes) - 1)]
        if sizes == [longest] * len(sizes) or (version >= 18 and sizes == shorter_last):
            continue
        if version < 13:
            node.attrs["split"] = sizes
        else:
            node.attrs.pop("num_outputs", None)
            node.inputs.append(gs.Constant(f"{node_name(node)}_sizes", np.array(sizes, np.int64)))


def _explicit_squeezes(graph: Graph, gone: Gone, channels: Channels) -> None:
    """Writes the axes of a Squeeze that takes every axis of size 1, where one that was wider comes down to that."""
    for node in graph.nodes:
        if node.op != "Squeeze" or node.domain not in (None, "", "ai.onnx"):
            continue
        before = channels.shapes.shapes.get(node.inputs[0].name)
        if (
            before is None
            or "axes" in node.attrs
            or len(node.inputs) > 1
            or 1 not in gone.shape(node.inputs[0].name, [size if size > 1 else 0 for size in before])
        ):
            continue
        axes = [dim for dim, size in enumerate(before) if size == 1]
        if opset_of(graph, "") < 13:
            node.attrs["axes"] = axes
        else:
            node.inputs.append(gs.Constant(f"{node_name(node)}_axes", np.array(axes, np.int64)))


def _check(graph: Graph, channels: Channels, gone: Gone, after: Shapes) -> None:
    for node in graph.nodes:
        for tensor in node.outputs:
            before = channels.shapes.shapes.get(tensor.name)
            shape = after.shapes.get(tensor.name)
            if before is not None and shape != gone.shape(tensor.name, before):
                raise SurgeryError(
                    f"{tensor.name!r}, written by {node_name(node)!r} ({node.op}), came out as {shape} instead of "
                    f"{gone.shape(tensor.name, before)}: please report the model, and --exclude its group meanwhile"
                )
