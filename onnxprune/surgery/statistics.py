"""Statistics over channels: without the silent ones they stay what they were over the original number of channels.

A mean over N channels of which K stay is K / N times the mean over these. Where a node returns it, a Mul follows the
node (``Rescale``); where a normalization uses it inside, zeros stand in for the removed channels (``Restore``).

A normalization written out in small nodes and the same one as a single operator are sliced to different functions,
because each is silenced where it sums. The single operator is given zeros, which count in the variance with the square
of the mean. Written out, the mean is subtracted first, and the squares are summed by another node, which is given zeros
again: removed channels count in the mean and not in the variance.
"""

import numpy as np
import onnx_graphsurgeon as gs
from onnx import helper

from onnxprune.channels.facts import Attribute, Axis, Bound, Rescale, Restore, Result
from onnxprune.channels.groups import Channels
from onnxprune.model.io import Graph
from onnxprune.model.shapes import node_name
from onnxprune.surgery.gone import Gone, Removals
from onnxprune.surgery.wrap import Width, combine_result, restore_width


def keep_statistics(graph: Graph, channels: Channels, gone: Gone, removals: Removals) -> None:
    """Edits the graph in place, whose nodes are still those of the original.

    A statistic that loses units of an inexact group is left as it is, over what stays; epsilon and scale cost nothing.
    """
    nodes = list(graph.nodes)
    exact = {group.name for group in channels.groups if group.exact}
    plain = channels.lost({name: units for name, units in removals.items() if name not in exact})
    results: dict[tuple[int, Result], float] = {}
    extremes: dict[int, str] = {}
    for edit in channels.edits:
        match edit.fact:
            case Rescale(axis, Result() as where) if gone.lost(axis).size and axis not in plain:
                factor = _fraction(axis, channels, gone) ** edit.fact.power
                results[edit.node, where] = results.get((edit.node, where), 1.0) * factor
            case Bound(axis, op) if gone.lost(axis).size:
                extremes[edit.node] = op
            case Rescale(axis, Attribute() | int()) if gone.lost(axis).size:
                _rescale(nodes[edit.node], edit.fact, channels, gone)
            case Restore(source) if gone.lost(source).size and (edit.fact.in_place or source not in plain):
                shapes = channels.shapes.shapes
                length = shapes[source.tensor][source.dim]
                ranks = tuple(len(shapes.get(tensor.name, ())) for tensor in channels.graph.nodes[edit.node].inputs)
                width = Width(source.dim, length, gone.kept(source, length), ranks)
                restore_width(graph, nodes[edit.node], edit.fact, width)
    for (position, where), factor in results.items():
        combine_result(graph, nodes[position], where, "Mul", _number(factor, channels, position, where))
    for position, op in extremes.items():
        combine_result(graph, nodes[position], Result(0), op, _number(0.0, channels, position, Result(0)))


def _number(value: float, channels: Channels, node: int, where: Result) -> np.ndarray:
    name = channels.graph.nodes[node].outputs[where.slot].name
    return np.array(value, helper.tensor_dtype_to_np_dtype(channels.shapes.types[name]))


def _fraction(axis: Axis, channels: Channels, gone: Gone) -> float:
    length = channels.shapes.shapes[axis.tensor][axis.dim]
    return gone.kept(axis, length).size / length


def _rescale(node: gs.Node, fact: Rescale, channels: Channels, gone: Gone) -> None:
    factor = _fraction(fact.axis, channels, gone) ** fact.power
    if isinstance(fact.where, Attribute):
        node.attrs[fact.where.name] = float(node.attrs.get(fact.where.name, fact.default)) * factor
    elif isinstance(fact.where, int):
        stored = node.inputs[fact.where]
        values = gone.take(stored.name, channels.shapes.values[stored.name])
        scaled = (values.astype(np.float64) * factor).astype(values.dtype)
        node.inputs[fact.where] = gs.Constant(f"{stored.name}_{node_name(node)}_rescaled", scaled)
