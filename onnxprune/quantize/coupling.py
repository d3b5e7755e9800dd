"""Which channels of a graph can be divided by one factor, and a graph in which they are.

What is divided where it is made has to be multiplied where it is read. Weights, biases and gains can do both; what lies
between has to be positively homogeneous, and the channel rules of the operators say which channels correspond. An
operator without a role here admits no factors on anything that it touches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.channels.collect import Statements, collect
from onnxprune.channels.facts import Axis, Bound, Index, Rescale
from onnxprune.channels.units import find_units
from onnxprune.model.graph import overridable, read_by
from onnxprune.model.io import Graph, read_values
from onnxprune.model.linear import Array, Holders, Linear, linear_nodes
from onnxprune.model.shapes import Shapes
from onnxprune.model.sizes import infer_shapes
from onnxprune.model.values import is_float
from onnxprune.model.weights import STANDARD, Weight
from onnxprune.ops.forms import TransposedConvolution

ALONE = ("Dropout", "Identity", "LeakyRelu", "PRelu", "Relu")
"""Positively homogeneous functions of their first input, whose result has the same shape."""

MOVES = (
    "AveragePool", "Concat", "Flatten", "Gather", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "ReduceMax",
    "ReduceMean", "ReduceMin", "ReduceSum", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip
"""Positively homogeneous operators that move channels, or compute within each."""

PICKS = ("Gather", "Slice", "Split")
"""Those that may leave channels out."""

SUMS = ("Max", "Mean", "Min", "Sum")
"""The same, of all inputs, if these have the shape of the result."""

GAINS = {"GroupNormalization": 1, "InstanceNormalization": 1, "LayerNormalization": -1, "RMSNormalization": -1}
"""Operators that multiply with the stored vector at slot 1 last, and add that at slot 2, along a dimension."""


@dataclass(frozen=True, slots=True)
class _Vector:
    """A stored operand that is multiplied with powers of factors: (axis, dimensions behind it, power)."""

    slot: int
    held: gs.Constant
    powers: tuple[tuple[Axis, int, int], ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Site:
    """Where factors end: stored numbers make up for those of the data along ``into``, and begin those of the result.

    ``linear`` has the weights; all else that is stored are vectors.
    """

    into: Axis | None
    out: Axis
    vectors: tuple[_Vector, ...] = ()
    linear: Linear | None = None


@dataclass(frozen=True, slots=True)
class _Way:
    """A node that passes factors on, from the input ``slot`` alone or, without, as its channel rule says."""

    slot: int | None = None
    vectors: tuple[_Vector, ...] = ()


class _Roles:
    """What every node of a graph does with factors; one that has no role admits none."""

    def __init__(self, graph: Graph, shapes: Shapes) -> None:
        self._shapes, self._holders, self._given = shapes.shapes, Holders(graph), overridable(graph)
        self._linear = {one.position: one for one in linear_nodes(graph, shapes, self._holders)}
        self._free: set[str] = set()
        self.found: dict[int, _Site | _Way] = {}
        for position, node in enumerate(graph.nodes):
            if node.domain in STANDARD and self._sized(node) and self._given.isdisjoint(t.name for t in node.inputs):
                role = self._role(position, node)
                if role is not None:
                    self.found[position] = role
                    self._free.update(tensor.name for tensor in node.outputs)

    def _sized(self, node: gs.Node) -> bool:
        return all(tensor.name in self._shapes for tensor in (*node.inputs[:1], *node.outputs[:1]) if tensor.name)

    def _role(self, position: int, node: gs.Node) -> _Site | _Way | None:
        if position in self._linear:
            return self._product(self._linear[position])
        if node.op in GAINS:
            return self._gain(node)
        if node.op in ("Add", "Sub", "Mul", "Div"):
            stored = [slot for slot, tensor in enumerate(node.inputs) if self._holders.get(tensor) is not None]
            return self._with_stored(node, stored[0]) if len(stored) == 1 else self._with_computed(node)
        if node.op in ALONE or (node.op == "Clip" and self._only_from_zero(node)):
            return _Way(0) if len(node.inputs) < 3 or node.op == "Clip" else None  # Dropout that may be in training
        if node.op in MOVES or (node.op in SUMS and self._same_shape(node, node.inputs)):
            return _Way()
        return _Way() if node.op == "Pad" and self._pads_zeros(node) else None

    def _product(self, linear: Linear) -> _Site | None:
        """Weights; those of a ConvTranspose with groups share scales among channels, which are then not free."""
        shared = isinstance(linear.form, TransposedConvolution) and linear.form.groups > 1
        if shared or linear.stored.dtype != np.float32:
            return None
        ranks = [len(self._shapes[name]) for name in (linear.data, linear.result)]
        into = Axis(linear.data, linear.form.channel % ranks[0])
        out = Axis(linear.result, linear.form.output % ranks[1])
        vectors = [] if linear.added is None else [_Vector(2, linear.added, ((out, 0, -1),))]
        mean = self._holders.get(linear.node.inputs[3]) if linear.scales else None
        vectors += [] if mean is None else [_Vector(3, mean, ((into, 0, -1),))]
        return _Site(into, out, tuple(vectors), linear)

    def _gain(self, node: gs.Node) -> _Site | None:
        shape, dim = self._shapes[node.outputs[0].name], GAINS[node.op]
        out = Axis(node.outputs[0].name, dim % len(shape))
        held = [(slot, self._holders.get(tensor)) for slot, tensor in enumerate(node.inputs) if slot and tensor.name]
        vectors = [_Vector(slot, one, ((out, 0, -1),)) for slot, one in held if one is not None]
        if len(vectors) < len(held) or any(tuple(vector.held.shape) != (shape[dim],) for vector in vectors):
            return None
        if node.op == "LayerNormalization" and node.attrs.get("axis", -1) not in (-1, len(shape) - 1):
            return None
        return _Site(None, out, tuple(vectors))

    def _with_stored(self, node: gs.Node, slot: int) -> _Site | _Way | None:
        """A sum with something stored, or a product with one number or with one for each channel."""
        data, result = node.inputs[1 - slot].name, node.outputs[0].name
        shape, held = self._shapes[result], self._holders.get(node.inputs[slot])
        if held is None or not np.issubdtype(held.dtype, np.floating) or self._shapes.get(data) != shape:
            return None
        behind = [len(shape) - 1 - dim for dim in range(len(shape))]
        if node.op in ("Add", "Sub"):
            powers = tuple((Axis(result, dim), behind[dim], -1) for dim in range(len(shape)))
            return _Way(1 - slot, (_Vector(slot, held, powers),))
        if node.op == "Div" and slot == 0:
            return None
        sizes = (1,) * (len(shape) - len(held.shape)) + tuple(held.shape)
        dims = [dim for dim, size in enumerate(sizes) if size > 1]
        if len(dims) != 1:
            return None if dims else _Way(1 - slot)
        into, out, sign = Axis(data, dims[0]), Axis(result, dims[0]), 1 if node.op == "Mul" else -1
        powers = (into, behind[dims[0]], sign), (out, behind[dims[0]], -sign)
        return _Site(into, out, (_Vector(slot, held, powers),))

    def _with_computed(self, node: gs.Node) -> _Way | None:
        """A sum of tensors of one shape, or a tensor times another that admits no factors, such as a gate."""
        if node.op in ("Add", "Sub"):
            return _Way() if self._same_shape(node, node.inputs) else None
        slots = [slot for slot, tensor in enumerate(node.inputs[: 1 if node.op == "Div" else 2])
                 if tensor.name in self._free and self._same_shape(node, [tensor])]  # fmt: skip
        return _Way(slots[0]) if slots else None

    def _same_shape(self, node: gs.Node, tensors: Iterable[gs.Tensor]) -> bool:
        return all(self._shapes.get(tensor.name) == self._shapes[node.outputs[0].name] for tensor in tensors)

    def _bound(self, node: gs.Node, slot: int) -> float | None:
        """Returns a stored number at an input, not a number where it is computed, ``None`` where there is none."""
        if slot >= len(node.inputs) or not node.inputs[slot].name:
            return None
        held = self._holders.get(node.inputs[slot])
        return float(read_values(held).reshape(-1)[0]) if held is not None and prod(held.shape) == 1 else np.nan

    def _only_from_zero(self, node: gs.Node) -> bool:
        """Whether a Clip is a Relu."""
        return not node.attrs and self._bound(node, 1) == 0 and self._bound(node, 2) in (None, np.inf)

    def _pads_zeros(self, node: gs.Node) -> bool:
        return node.attrs.get("mode", "constant") != "constant" or not (self._bound(node, 2) or 0)


class Coupling:
    """The channels of a graph as numbered units that have one factor each; ``free`` are those that may not be 1."""

    def __init__(self, graph: Graph, shapes: Shapes, roles: Mapping[int, _Site | _Way]) -> None:
        self._graph, self._roles, self._shapes = graph, roles, shapes
        self._found = _stated(graph, shapes, roles)
        sites = [role for role in roles.values() if isinstance(role, _Site)]
        tensors = {axis.tensor for site in sites for axis in (site.into, site.out) if axis is not None}
        self._units = find_units(self._found, tensors, inexact=False)
        space, label = self._units.space, self._units.label
        self.free = np.ones(int(label.max(initial=-1)) + 1, np.bool_)
        self.free[label[np.isin(self._units.number, list(space.frozen))]] = False
        for position, role in roles.items():
            if isinstance(role, _Way):
                self._pin_sources(graph.nodes[position], role)

    @classmethod
    def of(cls, graph: Graph) -> Coupling | None:
        """Returns the units of a graph, ``None`` where nothing in it could make up for factors."""
        shapes = infer_shapes(graph)
        roles = _Roles(graph, shapes).found
        return cls(graph, shapes, roles) if any(isinstance(role, _Site) for role in roles.values()) else None

    def units(self, axis: Axis) -> Index:
        """Returns the unit of every channel of an axis; none where nobody asks for them."""
        space = self._units.space
        number = space.classes[self._found.number(axis)]
        return self._units.label[space.offsets[number] :][: space.lengths[number]]

    def axis(self, tensor: str) -> Axis | None:
        """Returns the first axis of a tensor with free units, ``None`` where there is none."""
        axes = [Axis(tensor, dim) for dim in range(len(self._shapes.shapes.get(tensor, ())))]
        return next((axis for axis in axes if self.free[self.units(axis)].any()), None)

    def into(self, weight: Weight) -> Index:
        """Returns the unit of every channel that an operator sums over."""
        return self.units(Axis(weight.data, weight.form.channel % len(self._shapes.shapes[weight.data])))

    def groups(self) -> list[Index]:
        """Returns the free units, those together that run through the same tensors."""
        kinds = self._units.groups[: self.free.size]
        return [np.flatnonzero(self.free & (kinds == kind)) for kind in np.unique(kinds[self.free])]

    def scaled(self, factors: Array) -> Graph:
        """Returns a copy of the graph in which every channel is what it was, divided by its factor."""
        result = self._graph.copy()
        linear = {one.position: one for one in linear_nodes(result, infer_shapes(result), Holders(result))}
        for position, role in self._roles.items():
            for vector in role.vectors:
                self._scale_vector(result.nodes[position], vector, factors)
            if isinstance(role, _Site) and role.linear is not None:
                into, out = self._along(role.into, factors), self._along(role.out, factors)
                if (into != 1).any() or (out != 1).any():
                    matrix = linear[position].matrix()
                    groups, rows, columns = matrix.shape
                    into = into.reshape(groups, -1).repeat(groups * rows // into.size, axis=1)
                    linear[position].write(matrix * into[:, :, None] / out.reshape(groups, 1, columns))
        return result

    def _scale_vector(self, node: gs.Node, vector: _Vector, factors: Array) -> None:
        factor: Array = np.ones(1)
        for axis, behind, power in vector.powers:
            along = self._along(axis, factors)
            factor = factor * along.reshape(-1, *[1] * behind) ** power if (along != 1).any() else factor
        if (factor != 1).any():
            values = read_values(vector.held)
            name = f"{node.outputs[0].name}_{vector.slot}_equal"
            node.inputs[vector.slot] = gs.Constant(name, np.asarray(values * factor, values.dtype))

    def _along(self, axis: Axis | None, factors: Array) -> Array:
        return np.ones(1) if axis is None else factors[self.units(axis)]

    def _pin_sources(self, node: gs.Node, way: _Way) -> None:
        """Pins what a node makes of nothing that it reads, such as repeated channels, and what gets lost in it."""
        read = node.inputs if way.slot is None else [node.inputs[way.slot]]
        numbers = [tensor for tensor in read if is_float(self._shapes.types.get(tensor.name, 0))]
        made, given = self._all(node.outputs), self._all(numbers)
        self.free[np.setdiff1d(made, given) if node.op in PICKS else np.setxor1d(made, given)] = False

    def _all(self, tensors: Sequence[gs.Tensor]) -> Index:
        axes = [Axis(t.name, dim) for t in tensors for dim in range(len(self._shapes.shapes.get(t.name, ())))]
        return np.concatenate([np.zeros(0, np.int64), *map(self.units, axes)])


def _stated(graph: Graph, shapes: Shapes, roles: Mapping[int, _Site | _Way]) -> Statements:
    """Returns which channels have one factor, by the channel rules of the ways, and on which axes there is none."""
    part = graph.copy()
    ways = ((node, roles.get(position)) for position, node in enumerate(part.nodes))
    part.nodes = [_passing(node, way) for node, way in list(ways) if isinstance(way, _Way)]
    found = collect(part, shapes)
    edited = {found.number(edit.fact.axis) for edit in found.edits if isinstance(edit.fact, Bound | Rescale)}
    for number in found.contracted | edited:
        found.freeze(number, "it is computed from all of them")
    holders = Holders(graph)
    for position, node in enumerate(graph.nodes):
        role = roles.get(position)
        spared = {role.into, role.out} if isinstance(role, _Site) else set()
        for name in _pinned(node, role, holders) & found.base.keys():
            for dim, size in enumerate(shapes.shapes[name]):
                if Axis(name, dim) not in spared or size == 1:  # a channel alone has nobody to be beside
                    found.freeze(found.number(Axis(name, dim)), "its operator admits no factors")
    return found


def _passing(node: gs.Node, way: _Way) -> gs.Node:
    """Returns a node of a copy as far as factors pass through it."""
    if way.slot is None:
        return node
    return gs.Node("Identity", node.name, {}, [node.inputs[way.slot]], node.outputs[:1])


def _pinned(node: gs.Node, role: _Site | _Way | None, holders: Holders) -> set[str]:
    """Returns the tensors that have no factors for a node, but on the axes of a site."""
    if not isinstance(role, _Way):
        return {*read_by(node), *(tensor.name for tensor in node.outputs)}
    held = {tensor.name: holders.get(tensor) for tensor in node.inputs}
    stored = {name for name, one in held.items() if one is not None and np.issubdtype(one.dtype, np.floating)}
    others = [tensor.name for slot, tensor in enumerate(node.inputs) if role.slot not in (None, slot)]
    return stored.union(others)
