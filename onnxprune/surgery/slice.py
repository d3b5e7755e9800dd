"""Removes channels: slices weights, and rewrites every stored number that follows them."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.channels.facts import Attribute, Axis, Count, Index, Operand, Positions, Rescale, Restore
from onnxprune.channels.groups import Channels, analyze
from onnxprune.errors import PlanError, SurgeryError
from onnxprune.model.io import Graph, read_values, write_values
from onnxprune.model.shapes import Shapes, ShapeWalk, node_name, opset_of
from onnxprune.plan.plan import Plan
from onnxprune.surgery.operands import Operands
from onnxprune.surgery.wrap import restore_width

FURTHEST = 2**31 - 1
"""A Slice bound behind every axis, in either integer type."""

Removals = Mapping[str, Sequence[int]]
"""Units to remove, by the name of their group."""


class Gone:
    """The removed channels of every axis."""

    def __init__(self, channels: Channels, removals: Removals) -> None:
        self._by_axis: dict[Axis, Index] = {}
        self.by_tensor: dict[str, dict[int, Index]] = {}
        known = {group.name: group for group in channels.groups}
        parts: dict[Axis, list[Index]] = {}
        for name, units in removals.items():
            group = known.get(name)
            if group is None:
                raise PlanError(f"the plan names group {name!r}, which the model does not have: make the plan anew")
            chosen = np.unique(np.asarray(list(units), np.int64))
            if chosen.size and (chosen[0] < 0 or chosen[-1] >= group.units):
                raise PlanError(f"the plan removes unit {chosen[-1]} of group {name!r}, which has {group.units}")
            if chosen.size and group.frozen is not None:
                raise PlanError(f"the plan removes units of group {name!r}, which is frozen: {group.frozen}")
            for member in group.members if chosen.size else ():
                lost = member.channels[np.isin(member.units, chosen)]
                for axis in member.axes:
                    parts.setdefault(axis, []).append(lost)
        for axis, lost_parts in parts.items():
            lost = np.unique(np.concatenate(lost_parts))
            if lost.size == channels.shapes.shapes[axis.tensor][axis.dim]:
                raise PlanError(f"the plan removes every channel of {axis.tensor!r}: lower the ratio")
            if lost.size:
                self._by_axis[axis] = lost
                self.by_tensor.setdefault(axis.tensor, {})[axis.dim] = lost

    def lost(self, axis: Axis) -> Index:
        """Returns the removed channels of an axis, in order."""
        return self._by_axis.get(axis, np.zeros(0, np.int64))

    def kept(self, axis: Axis, length: int) -> Index:
        """Returns the surviving channels of an axis, in order."""
        return np.delete(np.arange(length), self.lost(axis))

    def count(self, fact: Count, length: int) -> int:
        """Returns what a stored count becomes."""
        within = np.arange(length) if fact.index is None else fact.index
        count = int(within.size - np.isin(within, self.lost(fact.axis)).sum())
        if fact.negative:
            return -count if count else FURTHEST  # -0 would be the start
        return count

    def shape(self, name: str, shape: Sequence[int]) -> tuple[int, ...]:
        """Returns the shape of a tensor after surgery."""
        lost = self.by_tensor.get(name, {})
        return tuple(size - len(lost.get(dim, ())) for dim, size in enumerate(shape))


def apply(model: object, plan: Plan) -> Graph:
    """Returns a copy of a model without the units that a plan names.

    Args:
        model: A path, a ``ModelProto``, a graph, or the analysis of one.
        plan: The plan.

    Raises:
        PlanError: the plan was made for another model.
        SurgeryError: a shape did not come out as it must.
    """
    channels = model if isinstance(model, Channels) else analyze(model, inexact=bool(plan.options.get("inexact")))
    plan.check(channels)
    return slice_channels(channels, plan.removals)


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
    wraps: list[tuple[gs.Node, Restore]] = []
    for edit in channels.edits:
        node = graph.nodes[edit.node]
        match edit.fact:
            case Positions():
                _renumber(node, edit.fact, channels, gone)
            case Rescale() if gone.lost(edit.fact.axis).size:
                _rescale(node, edit.fact, channels, gone)
            case Restore() if gone.lost(edit.fact.source).size:
                wraps.append((node, edit.fact))
            case Count(where=Attribute()):
                _set_attribute(node, edit.fact, channels, gone)
            case Count():
                counts.setdefault(id(node), []).append(edit.fact)
    _explicit_splits(graph, gone, channels)
    _explicit_squeezes(graph, gone, channels)
    for node, fact in wraps:
        shape, dim = channels.shapes.shapes[fact.source.tensor], fact.source.dim
        restore_width(graph, node, shape, dim, gone.kept(fact.source, shape[dim]))
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
        lost = gone.by_tensor.get(tensor[0])
        if lost:
            write_values(tensor[1], take(read_values(tensor[1]), lost))
    for node in graph.nodes:
        if node.op == "Constant" and node.outputs[0].name in gone.by_tensor:
            name, content = next(iter(node.attrs.items()))
            if not isinstance(content, gs.Constant):
                lost_one = gone.by_tensor[node.outputs[0].name][0]
                node.attrs[name] = np.delete(np.asarray(content), lost_one).tolist()


def stored_tensors(graph: gs.Graph) -> Iterable[tuple[str, gs.Constant]]:
    """Yields every stored tensor once, with the name under which nodes read it."""
    seen: set[int] = set()
    for node in graph.nodes:
        for tensor in node.inputs:
            if isinstance(tensor, gs.Constant) and id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor.name, tensor
        if node.op == "Constant":
            content = next(iter(node.attrs.values()))
            if isinstance(content, gs.Constant):
                yield node.outputs[0].name, content


def take(values: np.ndarray, lost: Mapping[int, Index]) -> np.ndarray:
    """Returns a copy of an array without the given positions of some dimensions."""
    for dim, places in sorted(lost.items(), key=lambda item: -len(item[1])):
        values = np.take(values, np.delete(np.arange(values.shape[dim]), places), dim)
    return values


def _slice_declared_shapes(graph: Graph, gone: Gone) -> None:
    for node in graph.nodes:
        for tensor in node.outputs:
            if tensor.shape is not None and tensor.name in gone.by_tensor:
                lost = gone.by_tensor[tensor.name]
                tensor.shape = [
                    size - len(lost[dim]) if dim in lost and isinstance(size, int) else size
                    for dim, size in enumerate(tensor.shape)
                ]


def _renumber(node: gs.Node, fact: Positions, channels: Channels, gone: Gone) -> None:
    lost = gone.lost(fact.axis)
    if not lost.size:
        return
    length = channels.shapes.shapes[fact.axis.tensor][fact.axis.dim]
    stored = node.inputs[fact.slot]
    values = channels.shapes.values[stored.name]
    values = take(values, gone.by_tensor.get(stored.name, {})) % length
    fresh = values - np.searchsorted(lost, values)
    node.inputs[fact.slot] = gs.Constant(f"{stored.name}_{node_name(node)}_kept", fresh.astype(values.dtype))


def _rescale(node: gs.Node, fact: Rescale, channels: Channels, gone: Gone) -> None:
    length = channels.shapes.shapes[fact.axis.tensor][fact.axis.dim]
    factor = (gone.kept(fact.axis, length).size / length) ** fact.power
    if isinstance(fact.where, Attribute):
        node.attrs[fact.where.name] = float(node.attrs.get(fact.where.name, fact.default)) * factor
        return
    stored = node.inputs[fact.where]
    values = take(channels.shapes.values[stored.name], gone.by_tensor.get(stored.name, {}))
    scaled = (values.astype(np.float64) * factor).astype(values.dtype)
    node.inputs[fact.where] = gs.Constant(f"{stored.name}_{node_name(node)}_rescaled", scaled)


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
        if "split" in node.attrs or len(node.inputs) > 1 or node.inputs[0].name not in gone.by_tensor:
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
