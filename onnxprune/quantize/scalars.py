"""Passes over memory that single numbers cost, as few as there can be.

Clip(x + b, 0, h) / h is HardSigmoid(x), and x Clip(x + b, 0, h) / h a hard swish: two passes instead of four. What a
target computes in integers is spelled out anew (``unfold``). A convolution takes in the number that is added in front
of it, and one that is multiplied with before; where it pads with zeros, the latter alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.model.fold import remove
from onnxprune.model.graph import overridable, read_outside
from onnxprune.model.io import Graph, read_values
from onnxprune.model.linear import Holders, Linear, linear_nodes, only_reader
from onnxprune.model.sizes import infer_shapes
from onnxprune.model.weights import STANDARD
from onnxprune.ops.forms import Convolution

TOLERANCE = 1e-6
"""How far from one a factor may be that is left out: about what float32 rounds to."""


def folded(graph: Graph) -> Graph:
    """Returns an equal copy of a graph with fewer operators for hard sigmoids, and for sums before convolutions."""
    result = graph.copy()
    folding = _Folding(result)
    for node in result.nodes:
        if node.op == "Clip" and node.domain in STANDARD:
            folding.fold(node)
    for linear in list(linear_nodes(result, infer_shapes(result), Holders(result))):
        if type(linear.form) is Convolution and linear.stored.dtype == np.float32:
            folding.take_in(linear, linear.form.pads)
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

    def take_in(self, convolution: Linear, pads: Sequence[int]) -> None:
        """Lets a convolution read what numbers are added to and multiplied with in front of it.

        A factor alone stays: functions that runtimes look for end with one, as Gelu does.
        """
        node, slot = convolution.node, convolution.form.data
        add = self._maker(node.inputs[slot], node)
        term = None if add is None else self._term(add, "Add")
        if add is None or term is None or not self._given.isdisjoint(tensor.name for tensor in node.inputs):
            return
        data, number = term
        matrix, shift = convolution.matrix(), convolution.bias() + number * convolution.matrix().sum(axis=1)
        scale = self._maker(data, add)
        product = None if scale is None else self._term(scale, "Mul")
        if scale is not None and product is not None and product[1]:
            data, factor = product
            convolution.write(matrix * factor)
            number /= factor
            self.dropped.add(id(scale))
        if not any(pads):
            node.inputs[slot] = data
            while len(node.inputs) > 2:
                node.inputs.pop()
            node.inputs.append(gs.Constant(f"{node.outputs[0].name}_bias", shift.reshape(-1).astype(np.float32)))
            self.dropped.add(id(add))
        elif data is not term[0]:
            add.inputs.clear()
            add.inputs.extend([data, gs.Constant(f"{add.outputs[0].name}_shift", np.asarray(number, np.float32))])

    def _maker(self, tensor: gs.Tensor, reader: gs.Node) -> gs.Node | None:
        """Returns what makes a tensor for one reader alone."""
        maker = tensor.inputs[0] if tensor.inputs else None
        return maker if maker is not None and self._reader(maker) is reader else None

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
