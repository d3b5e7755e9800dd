"""How channels of linear operators arrive at products of computed tensors, behind what moves and scales them."""

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.channels.facts import Index
from onnxprune.model.graph import read_by
from onnxprune.model.io import read_values
from onnxprune.model.linear import Array, Holders, linear_nodes
from onnxprune.model.products import Side
from onnxprune.model.shapes import opset_of
from onnxprune.model.sizes import infer_shapes
from onnxprune.ops import operator

PARTS = frozenset({"Gather", "Shape", "Slice", "Split"})
"""Operators that may read a tensor beside the one that leads to the product: lengths, or other channels."""


@dataclass(frozen=True, slots=True, eq=False)
class Lane:
    """Place (head, j) of a side reads ``scale * channel + shift`` of one channel of a result; all are [heads, K]."""

    result: str
    channels: Index
    scale: Array
    shift: Array


class Lanes:
    """The ways through a graph."""

    def __init__(self, graph: gs.Graph) -> None:
        self._graph, self._holders = graph, Holders(graph)
        self._shapes = infer_shapes(graph)
        self._outputs = {one.result: one.form.output for one in linear_nodes(graph, self._shapes, self._holders)}
        self._producers = {tensor.name: node for node in graph.nodes for tensor in node.outputs}
        self._readers: dict[str, list[gs.Node]] = {tensor.name: [] for tensor in graph.outputs}
        self._ends = {tensor.name for tensor in graph.outputs}
        for node in graph.nodes:
            for name in read_by(node):
                self._readers.setdefault(name, []).append(node)

    def find(self, product: gs.Node, side: Side) -> Lane | None:
        """Returns the way to a side of a product.

        ``None`` where channels are mixed or turned on the way, such as by a rotary embedding, or read elsewhere too.
        """
        way: list[tuple[gs.Node, str, str]] = []
        name, reader = side.tensor, product
        while self._only(name, reader):
            if name in self._outputs:
                return self._probed(side, name, way[::-1])
            node = self._producers.get(name)
            source = None if node is None else self._source(node)
            if node is None or source is None:
                return None
            way.append((node, source, name))
            name, reader = source, node
        return None

    def _only(self, name: str, reader: gs.Node) -> bool:
        others = [node for node in self._readers.get(name, ()) if node is not reader]
        return name not in self._ends and all(node.op in PARTS for node in others)

    def _source(self, node: gs.Node) -> str | None:
        """Returns the one input that depends on data."""
        known = self._shapes.values
        found = [t.name for t in node.inputs if t.name and t.name not in known and self._holders.get(t) is None]
        able = operator(node.op, node.domain).values is not None and node.op not in ("Shape", "Size")
        return found[0] if able and len(found) == 1 else None

    def _probed(self, side: Side, result: str, way: list[tuple[gs.Node, str, str]]) -> Lane | None:
        """Sends zeros, ones and the numbers of the channels along the way, and checks the answer with other numbers."""
        shape, dim = self._shapes.shapes[result], self._outputs[result]
        width = shape[dim]
        tries = [np.zeros(width), np.ones(width), np.arange(width), np.random.default_rng(0).standard_normal(width)]
        found = []
        for vector in tries:
            values = np.broadcast_to(
                np.moveaxis(np.broadcast_to(vector, (*np.delete(shape, dim), width)), -1, dim), shape
            )
            arrived = self._heads(side, self._sent(values.astype(np.float64), way))
            if arrived is None:
                return None
            found.append(arrived)
        if all((one == one[:1]).all() for one in found):  # as in samples, the same channels are in every head
            found = [one[:1] for one in found]
        shift, scale = found[0], found[1] - found[0]
        if (scale == 0).any():
            return None
        channels = np.rint((found[2] - shift) / scale).astype(np.int64)
        if channels.min() < 0 or channels.max() >= width or np.unique(channels).size < channels.size:
            return None
        expected = tries[3][channels] * scale + shift
        return Lane(result, channels, scale, shift) if np.allclose(found[3], expected, 1e-4, 1e-6) else None

    def _sent(self, values: np.ndarray, way: list[tuple[gs.Node, str, str]]) -> np.ndarray:
        for node, source, target in way:
            rule = operator(node.op, node.domain).values
            given = [values if t.name == source else self._known(t) for t in node.inputs if t.name]
            view = self._shapes.view(node, opset_of(self._graph, node.domain))
            made = rule(view, given) if rule is not None else [values]
            values = made[[tensor.name for tensor in node.outputs].index(target)]
        return values

    def _known(self, tensor: gs.Tensor) -> np.ndarray:
        held = self._holders.get(tensor)
        return self._shapes.values[tensor.name] if held is None else read_values(held)

    def _heads(self, side: Side, values: np.ndarray) -> Array | None:
        """Returns [heads, K], where all samples and all vectors agree."""
        arranged = side.last(values)
        first = arranged[:1, ..., :1, :]
        if not np.allclose(arranged, first, 1e-5, 1e-6):
            return None
        return np.asarray(first.reshape(-1, first.shape[-1]), np.float64)
