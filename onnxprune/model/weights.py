"""Stored weights of linear operators, wherever they are kept: shared, moved, cast or quantized on their way."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxprune.model.io import read_values, write_values
from onnxprune.model.linear import Array, Holders
from onnxprune.model.shapes import Shape, Shapes, node_name
from onnxprune.ops.forms import Form, Product, form_of, rows_per_channel

OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
STANDARD = (None, "", "ai.onnx")


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A stored tensor, and how it becomes the weights of an operator.

    ``name`` is what nodes call it. Its axes arrive in another ``order``, its numbers less ``zero``, times ``scale``.
    """

    name: str
    stored: gs.Constant
    order: tuple[int, ...]
    scale: NDArray[Any] | None = None
    zero: NDArray[Any] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Weight:
    """The stored weights that an operator multiplies its data with."""

    node: gs.Node
    form: Form
    source: Source

    @property
    def operator(self) -> str:
        """Name of the operator."""
        return node_name(self.node)

    @property
    def result(self) -> str:
        """Name of the tensor that the operator writes."""
        return str(self.node.outputs[0].name)

    @property
    def data(self) -> str:
        """Name of the tensor that the operator reads."""
        return str(self.node.inputs[self.form.data].name)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Groups, rows, and columns of the matrix."""
        shape = [self.source.stored.shape[axis] for axis in self.source.order]
        groups, rows, columns = self.form.matrix(np.zeros(shape, np.int8)).shape
        return groups, rows, columns

    @property
    def spread(self) -> int:
        """Number of rows of the matrix that belong to one input channel."""
        return rows_per_channel(self.form, [self.source.stored.shape[axis] for axis in self.source.order])

    def matrix(self) -> Array:
        """Returns the real weights as [groups, n, m]."""
        source = self.source
        values = read_values(source.stored).astype(np.float64)
        if source.zero is not None:
            values = values - source.zero
        if source.scale is not None:
            values = values * source.scale
        return np.asarray(self.form.matrix(values.transpose(source.order)), np.float64)

    def places(self) -> NDArray[np.int64]:
        """Returns where every number of the matrix lies in the flattened stored tensor."""
        shape = tuple(self.source.stored.shape)
        places = self.form.matrix(np.arange(int(np.prod(shape))).reshape(shape).transpose(self.source.order))
        factor = self.form.scale if isinstance(self.form, Product) else 1.0
        return np.rint(places / factor).astype(np.int64)

    def clear(self, kept: NDArray[np.bool_]) -> None:
        """Makes the weights zero that do not stay, [groups, n, m]; all others keep their bits."""
        values = read_values(self.source.stored)
        gone = np.zeros(values.size, np.bool_)
        gone[self.places()[~kept]] = True
        gone = gone.reshape(values.shape)
        zero = np.zeros(1) if self.source.zero is None else self.source.zero
        filled = values.copy()
        filled[gone] = np.broadcast_to(zero, values.shape)[gone].astype(values.dtype)
        write_values(self.source.stored, filled)


def weights_of(graph: gs.Graph, shapes: Shapes) -> Iterator[Weight]:
    """Yields the weights of every operator that multiplies computed data with stored numbers, in graph order."""
    holders = Holders(graph)
    producers = {tensor.name: node for node in graph.nodes for tensor in node.outputs if tensor.name}
    known = shapes.shapes
    for node in graph.nodes:
        if node.op not in OPERATORS or node.domain not in STANDARD or node.outputs[0].name not in known:
            continue
        sources = [_source(tensor, holders, producers, known) for tensor in node.inputs[:2]]
        slots = [slot for slot in (1, 0) if len(sources) == 2 and sources[slot] is not None]
        if len(slots) != 1 or any(tensor.name not in known for tensor in node.inputs[:2]):
            continue  # stored numbers alone are no operator on data
        slot, source = slots[0], sources[slots[0]]
        data, weights = known[node.inputs[1 - slot].name], known[node.inputs[slot].name]
        form = form_of(node, data, weights, known[node.outputs[0].name], slot)
        if form is not None and form.weight == slot and source is not None:
            yield Weight(node, form, source)


def _source(
    tensor: gs.Tensor, holders: Holders, producers: Mapping[str, gs.Node], known: Mapping[str, Shape]
) -> Source | None:
    """Follows a tensor up to what is stored, if nothing but moves, casts and quantization lies between."""
    way: list[gs.Node] = []
    while (held := holders.get(tensor)) is None:
        node = producers.get(tensor.name)
        if node is None or node.domain not in STANDARD or node.op not in _STEPS or not node.inputs:
            return None
        way.append(node)
        tensor = node.inputs[0]
    found: Source | None = Source(tensor.name, held, tuple(range(len(held.shape))))
    for node in reversed(way):
        found = None if found is None else _STEPS[node.op](found, node, holders)
    return found


def _same(source: Source, node: gs.Node, holders: Holders) -> Source | None:
    return source


def _moved(source: Source, node: gs.Node, holders: Holders) -> Source | None:
    order = node.attrs.get("perm") or range(len(source.order))[::-1]
    return replace(source, order=tuple(source.order[axis] for axis in order))


def _rounded(source: Source, node: gs.Node, holders: Holders) -> Source | None:
    """QuantizeLinear of real numbers: DequantizeLinear behind it brings back where zero was."""
    return replace(source, scale=np.ones(1), zero=np.zeros(1))


def _scaled(source: Source, node: gs.Node, holders: Holders) -> Source | None:
    if source.scale is not None:  # behind QuantizeLinear
        return source
    shape = [source.stored.shape[axis] for axis in source.order]
    back = np.argsort(source.order)
    found = []
    for tensor in node.inputs[1:3]:
        held = holders.get(tensor)
        if held is None:
            return None
        found.append(_along(read_values(held).astype(np.float64), node, shape).transpose(back))
    return replace(source, scale=found[0], zero=found[1] if len(found) > 1 else None)


def _along(values: NDArray[Any], node: gs.Node, shape: list[int]) -> NDArray[Any]:
    """Returns a scale or a zero point as an array with the dimensions of what it belongs to."""
    axis = int(node.attrs.get("axis", 1))
    if values.size == 1:
        return values.reshape([1] * len(shape))
    block = int(node.attrs.get("block_size", 0))
    if block:
        return np.take(values.repeat(block, axis), np.arange(shape[axis]), axis)
    return values.reshape([-1 if dim == axis % len(shape) else 1 for dim in range(len(shape))])


_STEPS: dict[str, Callable[[Source, gs.Node, Holders], Source | None]] = {
    "Cast": _same, "DequantizeLinear": _scaled, "Identity": _same, "QuantizeLinear": _rounded, "Transpose": _moved,
}  # fmt: skip

WAYS = frozenset(_STEPS)
"""Operators through which weights may come."""
