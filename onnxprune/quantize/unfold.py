"""Functions without integer kernels as operators that have them.

A hard sigmoid is a sum that the ends of its own range cut off, so a sum of integers that saturate computes it; what it
is multiplied with goes into a scale.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.model.io import Graph
from onnxprune.model.shapes import node_name
from onnxprune.model.weights import STANDARD


def unfolded(graph: Graph, results: Collection[str] | None = None) -> tuple[Graph, set[str]]:
    """Returns an equal copy of a graph, and the results of the functions that it spells out.

    Args:
        graph: The graph.
        results: Results of the functions that are spelled out; all by default.
    """
    copy = graph.copy()
    nodes: list[gs.Node] = []
    found: set[str] = set()
    for node in copy.nodes:
        parts = _PARTS.get(node.op) if node.domain in STANDARD else None
        result = node.outputs[0] if node.outputs else None
        if parts is None or result is None or (results is not None and result.name not in results):
            nodes.append(node)
            continue
        found.add(result.name)
        nodes += parts(node)
    copy.nodes[:] = nodes
    return copy, found


def _hard_sigmoid(node: gs.Node) -> list[gs.Node]:
    """clip(alpha x + beta, 0, 1) = alpha clip(x + beta / alpha, 0, 1 / alpha)."""
    alpha, beta = float(node.attrs.get("alpha", 0.2)), float(node.attrs.get("beta", 0.5))
    if alpha <= 0:
        return [node]
    parts = _Parts(node)
    clipped = parts.clip(parts.add(parts.data, beta / alpha), 1 / alpha)
    return parts.times(clipped, alpha)


def _hard_swish(node: gs.Node) -> list[gs.Node]:
    """X clip(x + 3, 0, 6) / 6."""
    parts = _Parts(node)
    gate = parts.clip(parts.add(parts.data, 3.0), 6.0)
    return parts.times(parts.made("Mul", "gated", [parts.data, gate]), 1 / 6)


class _Parts:
    """The operators that take the place of a node."""

    def __init__(self, node: gs.Node) -> None:
        self._name = node_name(node)
        self.data, self._result = node.inputs[0], node.outputs[0]
        node.inputs.clear()
        node.outputs.clear()
        self._nodes: list[gs.Node] = []

    def made(self, op: str, part: str, inputs: list[gs.Tensor]) -> gs.Tensor:
        """Adds an operator and returns its result."""
        result = gs.Variable(f"{self._name}/{part}", np.float32)
        self._nodes.append(gs.Node(op, result.name, {}, inputs, [result]))
        return result

    def add(self, data: gs.Tensor, number: float) -> gs.Tensor:
        """Adds a number."""
        return self.made("Add", "sum", [data, self._number("shift", number)])

    def clip(self, data: gs.Tensor, high: float) -> gs.Tensor:
        """Cuts off below 0 and above ``high``."""
        return self.made("Clip", "clip", [data, self._number("low", 0.0), self._number("high", high)])

    def times(self, data: gs.Tensor, number: float) -> list[gs.Node]:
        """Multiplies with a number, writes the result of the node, and returns all operators."""
        inputs = [data, self._number("factor", number)]
        return [*self._nodes, gs.Node("Mul", self._name, {}, inputs, [self._result])]

    def _number(self, part: str, value: float) -> gs.Constant:
        return gs.Constant(f"{self._name}/{part}", np.asarray(value, np.float32))


_PARTS: dict[str, Callable[[gs.Node], list[gs.Node]]] = {"HardSigmoid": _hard_sigmoid, "HardSwish": _hard_swish}
