"""Hard sigmoids that exporters spelled out, as one operator again.

Clip(x + b, 0, h) / h is HardSigmoid(x), and x Clip(x + b, 0, h) / h is a hard swish: four passes over memory where two
do. Those that a target computes in integers are spelled out anew (``unfold``).
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.model.fold import remove
from onnxprune.model.graph import overridable, read_outside
from onnxprune.model.io import Graph, read_values
from onnxprune.model.linear import Holders, only_reader
from onnxprune.model.weights import STANDARD

TOLERANCE = 1e-6
"""How far from one a factor may be that is left out: about what float32 rounds to."""


def folded(graph: Graph) -> Graph:
    """Returns an equal copy of a graph with as few operators for hard sigmoids as there can be."""
    result = graph.copy()
    folding = _Folding(result)
    for node in result.nodes:
        if node.op == "Clip" and node.domain in STANDARD:
            folding.fold(node)
    remove(result, folding.dropped)
    return result


class _Folding:
    def __init__(self, graph: Graph) -> None:
        self._holders, self._outside, self._given = Holders(graph), read_outside(graph), overridable(graph)
        self.dropped: set[int] = set()

    def fold(self, clip: gs.Node) -> None:
        """Makes a clip a hard sigmoid, if a division behind it takes away what it is too large by."""
        shift = clip.inputs[0].inputs[0] if clip.inputs[0].inputs else None
        term = None if shift is None or self._reader(shift) is not clip else self._term(shift, "Add")
        division = self._division(clip)
        bounds = [self._number(tensor) for tensor in clip.inputs[1:]]
        if shift is None or term is None or division is None or len(bounds) != 2 or bounds[0] != 0:
            return
        high = bounds[1]
        if high is None or not abs(division[1] - high) <= TOLERANCE * high:
            return
        clip.op, clip.attrs = "HardSigmoid", {"alpha": 1 / high, "beta": term[1] / high}
        clip.inputs.clear()
        clip.inputs.append(term[0])
        divided, result = next(one for one in division[0].inputs if one.inputs), division[0].outputs[0]
        division[0].outputs.clear()
        divided.inputs[0].outputs[0] = result
        self.dropped |= {id(shift), id(division[0])}

    def _division(self, clip: gs.Node) -> tuple[gs.Node, float] | None:
        """Returns what divides a result, or its product with something, by a stored number, and the number."""
        reader = self._reader(clip)
        for _ in range(2):
            for op, power in (("Div", 1), ("Mul", -1)):
                term = None if reader is None else self._term(reader, op)
                if reader is not None and term is not None and term[1] > 0:
                    return reader, term[1] ** power
            reader = self._reader(reader) if reader is not None and reader.op == "Mul" else None
        return None

    def _reader(self, node: gs.Node) -> gs.Node | None:
        """Returns what alone reads a result."""
        reader = only_reader(node)
        return None if reader is None or node.outputs[0].name in self._outside else reader

    def _term(self, node: gs.Node, op: str) -> tuple[gs.Tensor, float] | None:
        """Returns what a node computes on, and the stored number that it adds, multiplies with or divides by."""
        if node.op != op or node.domain not in STANDARD or len(node.inputs) != 2:
            return None
        for slot in (0, 1) if op != "Div" else (0,):
            number = self._number(node.inputs[1 - slot])
            if number is not None and node.inputs[slot].inputs:
                return node.inputs[slot], number
        return None

    def _number(self, tensor: gs.Tensor) -> float | None:
        """Returns the number that a stored tensor of floats holds, if it is one that leaves shapes as they are."""
        held = None if tensor.name in self._given else self._holders.get(tensor)
        if held is None or held.dtype != np.float32 or len(held.shape) > 1 or int(np.prod(held.shape)) != 1:
            return None
        return float(read_values(held).reshape(-1)[0])
