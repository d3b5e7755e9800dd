"""What the channels of a tensor are like before any sample is seen: their mean and covariance, from the weights alone.

What a linear operator computes is a sum of many numbers and taken as normally distributed. Functions element by element
are evaluated at the nodes of a Gauss-Hermite quadrature, and the covariance of their results follows from their Hermite
series (Mehler 1866; Daniely et al. 2016, Toward Deeper Understanding of Neural Networks). BatchNormalization tells mean
and variance itself. As in Gast and Roth 2018 (Lightweight Probabilistic Deep Networks), moments pass from operator to
operator, with one difference: the inputs of a linear operator keep their correlations, but get the mean 0 and, on
average, the variance 1. Errors of the means would add up, and the biases, into which exporters fold the true means of
a BatchNormalization, would not cancel them.
"""

import logging
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_graphsurgeon as gs
from onnx.reference import ReferenceEvaluator

from onnxprune.channels.facts import Axis, Index
from onnxprune.channels.groups import Channels, Member
from onnxprune.model.fold import store_moved
from onnxprune.model.io import read_values
from onnxprune.model.linear import Array, Holders, Linear, linear_nodes
from onnxprune.model.shapes import node_name, node_proto, opset_of
from onnxprune.ops.elementwise import ACTIVATIONS, ARITHMETIC, FUNCTIONS
from onnxprune.ops.forms import Scaling, rows_per_channel

LOG = logging.getLogger("onnxprune")

LARGEST = 8192
"""Channels up to which a covariance is worked out: half a gigabyte."""

CORRELATION = 0.5
"""Correlation of what one channel holds at two positions under a kernel; signals are smooth."""

NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(40)
DEGREES = 16
HERMITE = (
    np.polynomial.hermite_e.hermevander(NODES, DEGREES).T
    / np.sqrt([[math.factorial(degree)] for degree in range(DEGREES + 1)])
    * (WEIGHTS / WEIGHTS.sum())
)
"""Polynomials of degree 0 to ``DEGREES``, of length 1, at the nodes, with the weights of the nodes."""

ELEMENTWISE = {*ACTIVATIONS, *FUNCTIONS, *ARITHMETIC, "Clip"}
ALIKE = {
    "AveragePool", "Cast", "Dropout", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "Identity", "LpPool",
    "MaxPool", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Resize", "Upsample",
}  # fmt: skip
"""Operators that leave channels in place where as many come out, and do the same to each."""

MOVING = {"Concat", "Flatten", "Pad", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze", *ALIKE}
"""Operators whose results hold channels of their inputs, or zeros, where the groups say so."""


@dataclass(frozen=True, eq=False)
class Expected:
    """Channels along ``dim``: functions of normal variables of a ``correlation`` [C, C].

    ``values`` [C, nodes] are the functions at the nodes. ``repeat`` consecutive channels of the tensor are alike.
    """

    dim: int
    correlation: Array
    values: Array
    repeat: int = 1

    @cached_property
    def moments(self) -> tuple[Array, Array]:
        """Mean [C] and covariance [C, C]."""
        series = self.values @ HERMITE.T
        covariance, power = np.zeros_like(self.correlation), np.ones_like(self.correlation)
        for factor in series.T[1:]:
            power = power * self.correlation
            covariance += np.outer(factor, factor) * power
        return series[:, 0], covariance


def normal(dim: int, mean: Array, covariance: Array) -> Expected:
    """Returns normal variables."""
    deviation = np.sqrt(np.maximum(np.diag(covariance), 0))
    length = np.maximum(deviation, 1e-150)
    correlation = np.clip(covariance / np.outer(length, length), -1, 1)
    return Expected(dim, correlation, mean[:, None] + deviation[:, None] * NODES)


def rows_by_channel(linear: Linear, data: Expected) -> Array | None:
    """Returns the weights as [groups, channels, rows, m]; ``None`` where they do not fit what is expected."""
    matrix = linear.matrix()
    groups, inputs, outputs = matrix.shape
    width = rows_per_channel(linear.form, linear.shape) * data.repeat
    fits = inputs % width == 0 and groups * (inputs // width) == len(data.values)
    return matrix.reshape(groups, -1, width, outputs) if fits else None


def expected_inputs(channels: Channels) -> Iterator[tuple[Linear, Expected]]:
    """Yields the linear operators of which it can be told what to expect of their data, in graph order, with that."""
    graph = channels.graph.copy()
    store_moved(graph)
    walk = _Walk(graph, channels)
    linears = {one.position: one for one in linear_nodes(graph, channels.shapes, walk.holders)}
    readers = Counter(tensor.name for node in graph.nodes for tensor in node.inputs)
    for position, node in enumerate(graph.nodes):
        linear = linears.get(position)
        data = None if linear is None else walk.data_of(linear)
        if linear is not None and data is not None:
            yield linear, data
        with np.errstate(all="ignore"):
            walk.step(node, linear)
        for tensor in node.inputs:
            readers[tensor.name] -= 1
            if not readers[tensor.name]:
                walk.found.pop(tensor.name, None)


class _Walk:
    """``found`` is what is expected of the tensors that are still to be read."""

    def __init__(self, graph: gs.Graph, channels: Channels) -> None:
        self.holders = Holders(graph)
        self.found: dict[str, Expected] = {}
        self._opset = opset_of(graph, "")
        self._shapes = channels.shapes.shapes
        self._members: dict[Axis, list[tuple[int, Member]]] = {}
        start = 0
        for group in channels.groups:
            for member in group.members:
                for axis in member.axes:
                    self._members.setdefault(axis, []).append((start, member))
            start += group.units

    def data_of(self, linear: Linear) -> Expected | None:
        """Returns what is expected of what an operator reads, if its channels are those that it sums over."""
        data = self.found.get(linear.data)
        return data if data is not None and data.dim == linear.form.channel % self._rank(linear.data) else None

    def step(self, node: gs.Node, linear: Linear | None) -> None:
        """Works out what is expected of the first result of a node, where that can be told."""
        name = node.outputs[0].name if node.outputs else ""
        if name not in self._shapes or node.domain not in (None, "", "ai.onnx"):
            return
        result = None
        if linear is not None:
            result = self._normalized(linear) if linear.scales else self._product(linear)
        elif node.op in ELEMENTWISE:
            result = self._elementwise(node)
        elif node.op in MOVING:
            result = self._moved(node)
        if result is not None and len(result.values) <= LARGEST and np.isfinite(result.values).all():
            self.found[name] = result

    def _rank(self, name: str) -> int:
        return len(self._shapes[name])

    def _normalized(self, linear: Linear) -> Expected | None:
        """BatchNormalization: the stored shift is the mean and the stored gain the deviation."""
        data = self.data_of(linear)
        if data is None or data.repeat != 1 or not isinstance(linear.form, Scaling):
            return None
        variance = np.square(linear.form.deviation)
        moving = np.sqrt(np.maximum(1 - float(linear.node.attrs.get("epsilon", 1e-5)) / variance, 0))
        return Expected(data.dim, data.correlation, linear.bias() + linear.matrix()[:, 0] * moving[:, None] * NODES)

    def _product(self, linear: Linear) -> Expected | None:
        matrix = linear.matrix()
        groups, _, outputs = matrix.shape
        if groups * outputs > LARGEST:
            return None
        data = self.data_of(linear)
        rows = None if data is None else rows_by_channel(linear, data)
        covariance = None
        if data is None or rows is None:
            rows = matrix.reshape(groups, -1, rows_per_channel(linear.form, linear.shape), outputs)
        else:
            covariance = data.moments[1]
            covariance = covariance / max(float(np.trace(covariance)) / len(covariance), 1e-300)
        made = CORRELATION * _between(rows.sum(axis=2), covariance)
        for place in range(rows.shape[2]):
            made += (1 - CORRELATION) * _between(rows[:, :, place], covariance)
        return normal(linear.form.output % self._rank(linear.result), linear.bias().reshape(-1), made)

    def _elementwise(self, node: gs.Node) -> Expected | None:
        rank = self._rank(node.outputs[0].name)
        read = [tensor for tensor in node.inputs if tensor.name]
        known = [self.found[t.name] for t in read if t.name in self.found and self._rank(t.name) == rank]
        stored = {t.name: values for t in read if (values := self._stored(t)) is not None}
        if not known or len(known) + len(stored) < len(read):
            return None
        first = known[0]
        if any(
            (one.dim, one.repeat, one.values.shape) != (first.dim, first.repeat, first.values.shape) for one in known
        ):
            return None
        if all(one.correlation is first.correlation for one in known):
            return self._evaluated(node, first, stored, rank)
        return _independent(node.op, known) if len(known) == len(read) == 2 else None

    def _stored(self, tensor: gs.Tensor) -> Array | None:
        held = self.holders.get(tensor)
        if held is None:
            return None
        values = read_values(held)
        return values.astype(np.float64) if np.issubdtype(values.dtype, np.floating) else values

    def _evaluated(self, node: gs.Node, first: Expected, stored: dict[str, Array], rank: int) -> Expected | None:
        """Runs a node at all nodes of the quadrature, which take the place of another dimension."""
        other = 1 if first.dim == 0 else 0
        if rank < 2 or first.repeat != 1:
            return None
        shape = [1] * rank
        shape[first.dim], shape[other] = first.values.shape
        feeds = dict(stored)
        for tensor in node.inputs:
            if tensor.name in self.found:
                values = self.found[tensor.name].values
                feeds[tensor.name] = (values if other else values.T).reshape(shape)
        try:
            found = ReferenceEvaluator(node_proto(node), opsets={"": self._opset}).run(None, feeds)
        except Exception as error:  # of any kind: the reference raises what each operator happens to
            LOG.debug("cannot compute %s: %s", node_name(node), error)
            return None
        result = np.asarray(next(iter(found)))
        if result.shape != tuple(shape):
            return None
        table = np.moveaxis(result, (first.dim, other), (0, 1)).reshape(first.values.shape)
        return Expected(first.dim, first.correlation, table.astype(np.float64))

    def _moved(self, node: gs.Node) -> Expected | None:
        """Finds channels again by the units that they belong to."""
        result, source = node.outputs[0].name, node.inputs[0].name
        known = {t.name: self.found[t.name] for t in node.inputs if t.name in self.found}
        first = known.get(source)
        if first is None:
            return None
        if node.op in ALIKE and self._rank(source) == self._rank(result):
            same = self._shapes[source][first.dim] == self._shapes[result][first.dim]
            return first if same else None
        if any(one.repeat != 1 for one in known.values()):
            return None
        labels = np.concatenate([self._units(Axis(name, one.dim)) for name, one in known.items()])
        if np.unique(labels).size < labels.size or labels.min() < 0:
            return None
        whole = first if len(known) == 1 else _beside(list(known.values()))
        for dim in range(self._rank(result)):
            places = _places(labels, self._units(Axis(result, dim)))
            if (places >= 0).all() or (node.op == "Pad" and (places >= 0).any()):
                return _taken(whole, places, dim)
        return None

    def _units(self, axis: Axis) -> Index:
        """Returns the unit of every channel of an axis, over all groups; -1 where there is none."""
        found = np.full(self._shapes[axis.tensor][axis.dim], -1, np.int64)
        for start, member in self._members.get(axis, ()):
            found[member.channels] = start + member.units
        return found


def _between(rows: Array, covariance: Array | None) -> Array:
    """Returns the covariance [g * m, g * m] of products of channels with rows [g, s, m]."""
    groups, channels, outputs = rows.shape
    size = groups * outputs
    if covariance is None:
        made = np.zeros((groups, outputs, groups, outputs))
        every = np.arange(groups)
        made[every, :, every] = rows.transpose(0, 2, 1) @ rows
    else:
        blocks = covariance.reshape(groups, channels, groups, channels)
        made = np.einsum("gsm,gsht,htn->gmhn", rows, blocks, rows, optimize=True)
    return np.asarray(made.reshape(size, size))


def _independent(op: str, known: list[Expected]) -> Expected | None:
    """Returns a sum, a difference or a product of two tensors that say nothing about each other."""
    first, second = known
    (mean, covariance), (other_mean, other) = first.moments, second.moments
    if op in ("Add", "Sub"):
        result = normal(first.dim, mean + (other_mean if op == "Add" else -other_mean), covariance + other)
    elif op == "Mul":
        crossed = covariance * np.outer(other_mean, other_mean) + other * np.outer(mean, mean)
        result = normal(first.dim, mean * other_mean, covariance * other + crossed)
    else:
        return None
    return Expected(result.dim, result.correlation, result.values, first.repeat)


def _beside(parts: list[Expected]) -> Expected:
    """Returns channels of tensors that say nothing about each other, one after the other."""
    correlation = np.zeros((sum(len(one.values) for one in parts),) * 2)
    start = 0
    for one in parts:
        end = start + len(one.values)
        correlation[start:end, start:end] = one.correlation
        start = end
    return Expected(parts[0].dim, correlation, np.concatenate([one.values for one in parts]))


def _places(labels: Index, wanted: Index) -> Index:
    """Returns where each wanted label stands, -1 where it does not."""
    order = np.argsort(labels)
    found = order[np.minimum(np.searchsorted(labels, wanted, sorter=order), labels.size - 1)]
    return np.where(labels[found] == wanted, found, -1)


def _taken(whole: Expected, places: Index, dim: int) -> Expected | None:
    """Returns channels at the given places, zeros at -1; as few as there are where several in a row are alike."""
    repeat = max(places.size // np.unique(places).size, 1) if (places >= 0).all() else 1
    chosen = places[::repeat]
    if not np.array_equal(np.repeat(chosen, repeat), places):
        return None
    values = np.where(chosen[:, None] < 0, 0.0, whole.values[chosen])
    return Expected(dim, whole.correlation[np.ix_(chosen, chosen)], values, repeat)
