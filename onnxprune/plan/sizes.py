"""What a model costs when units of its groups are gone, without cutting it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from scipy import sparse

from onnxprune.channels.facts import Axis, Index
from onnxprune.channels.groups import ChannelGroup, Channels
from onnxprune.model.cost import batch_of, macs_of, weight_tensors
from onnxprune.model.shapes import Shape
from onnxprune.model.sizes import infer_shapes

Vector = NDArray[np.float64]


class Sizes:
    """Multiply-accumulates and parameters by the number of removed units of every group.

    ``input_shape`` are the sizes of the inputs at which multiply-accumulates are counted; by default those of analysis.

    Attributes:
        groups: The groups that may shrink, in the order of all vectors here.
        units: Their units.
    """

    def __init__(
        self, channels: Channels, groups: Sequence[ChannelGroup], input_shape: Mapping[str, Shape] | None = None
    ) -> None:
        self.groups = tuple(groups)
        self.units: Index = np.array([group.units for group in groups], np.int64)
        self._graph = channels.graph
        self._known = infer_shapes(channels.graph, input_shape) if input_shape else channels.shapes
        self._axes = _axes(channels, groups)
        self._names = {axis.tensor for axis in self._axes}
        self._batch = batch_of(channels.graph, self._known)
        self._nodes = []
        self._other_macs = 0
        for node in channels.graph.nodes:
            if any(tensor.name in self._names for tensor in (*node.inputs, *node.outputs)):
                self._nodes.append(node)
            else:
                self._other_macs += self._of(node, {})
        self._stored = {name: values.shape for name, values in weight_tensors(channels.graph)}

    def macs(self, removed: Index) -> int:
        """Returns the multiply-accumulates for one sample, exactly."""
        shapes = self._shapes(removed)
        return self._other_macs + sum(self._of(node, shapes) for node in self._nodes)

    def parameters(self, removed: Index) -> int:
        """Returns the number of stored floating-point numbers, without what surgery adds."""
        shapes = self._shapes(removed)
        return sum(prod(shapes.get(name, shape)) for name, shape in self._stored.items())

    def macs_saved(self) -> "Savings":
        """Returns how many multiply-accumulates the next unit saves."""
        rows = []
        for node in self._nodes:
            whole = self._of(node, {})
            if whole:
                names = dict.fromkeys(tensor.name for tensor in (*node.inputs, *node.outputs))
                rows.append((float(whole), list(self._exponents(node, whole, names))))
        return Savings(rows, self._axes, len(self.groups))

    def parameters_saved(self) -> "Savings":
        """Returns how many parameters the next unit saves."""
        rows = [
            (float(prod(shape)), [(Axis(name, dim), 1.0) for dim in range(len(shape)) if Axis(name, dim) in self._axes])
            for name, shape in self._stored.items()
            if name in self._names
        ]
        return Savings(rows, self._axes, len(self.groups))

    def _shapes(self, removed: Index) -> dict[str, Shape]:
        found: dict[str, list[int]] = {}
        for axis, row in self._axes.items():
            shape = found.setdefault(axis.tensor, list(self._known.shapes[axis.tensor]))
            shape[axis.dim] = round(row.size - float(row.each @ removed[row.groups]))
        return {name: tuple(shape) for name, shape in found.items()}

    def _of(self, node: gs.Node, shapes: Mapping[str, Shape]) -> int:
        whole = self._known.shapes
        names = {tensor.name for tensor in (*node.inputs, *node.outputs)} & whole.keys()
        known = replace(self._known, shapes={name: shapes.get(name, whole[name]) for name in names})
        return (macs_of(self._graph, node, known) or 0) // self._batch

    def _exponents(self, node: gs.Node, whole: int, names: Mapping[str, None]) -> Iterator[tuple[Axis, float]]:
        """Yields one axis of each kind that the cost of a node depends on, and the power with which it does."""
        alike: dict[tuple[bytes, bytes], list[Axis]] = {}
        for name in names:
            for dim in range(len(self._known.shapes.get(name, ()))):
                row = self._axes.get(Axis(name, dim))
                if row is not None and row.size > 1:
                    key = row.groups.tobytes(), np.round(row.each / row.size, 12).tobytes()
                    alike.setdefault(key, []).append(Axis(name, dim))
        for axes in alike.values():
            shapes: dict[str, Shape] = {}
            for axis in axes:
                shape = list(shapes.get(axis.tensor, self._known.shapes[axis.tensor]))
                shape[axis.dim] = max(shape[axis.dim] // 2, 1)
                shapes[axis.tensor] = tuple(shape)
            half = self._of(node, shapes)
            if 0 < half < whole:
                size = self._axes[axes[0]].size
                yield axes[0], float(np.log(half / whole) / np.log(max(size // 2, 1) / size))


@dataclass(frozen=True, slots=True, eq=False)
class _Row:
    """Length of an axis, and how many channels of it go with one unit of each group."""

    size: int
    groups: Index
    each: Vector


class Savings:
    """Products of lengths of axes, and what the next unit of every group takes off their sum.

    A row is the value of a product with nothing removed, and the axes it depends on with the power of each.
    """

    def __init__(self, rows: Sequence[tuple[float, list[tuple[Axis, float]]]], axes: Mapping[Axis, _Row], count: int):
        used = list(dict.fromkeys(axis for _, powers in rows for axis, _ in powers))
        place = {axis: number for number, axis in enumerate(used)}
        self._whole = np.array([whole for whole, _ in rows])
        entries = [(row, place[axis], power) for row, (_, powers) in enumerate(rows) for axis, power in powers]
        self._powers = _matrix(entries, (len(rows), len(used)))
        self._sizes = np.array([axes[axis].size for axis in used], np.float64)
        parts = [
            (number, int(group), float(each))
            for number, axis in enumerate(used)
            for group, each in zip(axes[axis].groups, axes[axis].each, strict=True)
        ]
        self._each = _matrix(parts, (len(used), count))

    def next_unit(self, removed: Index) -> Vector:
        """Returns what the next unit of every group saves."""
        lengths = np.maximum(self._sizes - self._each @ removed, 1e-9)
        values = self._whole * np.exp(self._powers @ np.log(lengths / self._sizes))
        return np.asarray(self._each.T @ ((self._powers.T @ values) / lengths), np.float64)


def _matrix(entries: Sequence[tuple[int, int, float]], shape: tuple[int, int]) -> sparse.csr_array:
    rows, columns, values = np.array(entries, np.float64).reshape(-1, 3).T
    return sparse.csr_array((values, (rows.astype(np.int64), columns.astype(np.int64))), shape=shape)


def _axes(channels: Channels, groups: Sequence[ChannelGroup]) -> dict[Axis, _Row]:
    parts: dict[Axis, list[tuple[int, float]]] = {}
    for number, group in enumerate(groups):
        for member in group.members:
            for axis in member.axes:
                parts.setdefault(axis, []).append((number, member.channels.size / group.units))
    shapes = channels.shapes.shapes
    found = {}
    for axis, entries in parts.items():
        if axis.tensor in shapes:
            found[axis] = _row(shapes[axis.tensor][axis.dim], entries)
    for grid in channels.grids:
        if grid.axis in parts and grid.tensor in shapes:
            blocks = shapes[grid.axis.tensor][grid.axis.dim] // grid.size
            entries = [(number, each / blocks) for number, each in parts[grid.axis]]
            found[Axis(grid.tensor, grid.columns)] = _row(grid.size, entries)
    return found


def _row(size: int, entries: Sequence[tuple[int, float]]) -> _Row:
    return _Row(size, np.array([number for number, _ in entries], np.int64), np.array([each for _, each in entries]))
