"""The Q and DQ of any graph: what they round, between whom they stand, and which operators read integers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxprune.model.graph import Graph, captured, stored_tensors
from onnxprune.model.io import read_values
from onnxprune.model.shapes import Shape, Shapes
from onnxprune.model.values import element_type
from onnxprune.model.weights import OPERATORS, STANDARD, WAYS, Weight, weights_of
from onnxprune.quantize.grids import Array

MICROSOFT = "com.microsoft"
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
PASSED = frozenset({"MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
"""Operators past which runtimes move a Q up to what computes, and a DQ down to what reads."""


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One Q or DQ.

    Attributes:
        node: The node.
        type: Element type of the integers, 0 where it is not known.
        scale: The stored scale, None where it is computed.
        zero: The stored zero point, None where there is none or it is computed.
        axis: The axis of a scale with several numbers.
        block: How many integers along the axis share a scale, 0 where it is not cut into blocks.
        stored: Whether what it reads is stored, if only behind another Q.
        shape: The shape of what it reads, where that is known.
    """

    node: gs.Node
    type: int
    scale: Array | None
    zero: Array | None
    axis: int
    block: int
    stored: bool
    shape: Shape | None

    @property
    def along(self) -> bool:
        """Whether it has a scale for each index of an axis, or for blocks of them."""
        return self.scale is not None and self.scale.size > 1

    @property
    def packed(self) -> bool:
        """Whether its integers are for weights alone: of 4 bits, or in blocks."""
        return self.block > 0 or self.type in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4)

    def same(self, other: Step) -> bool:
        """Whether another rounds to the same numbers."""
        pairs = ((self.scale, other.scale), (self.zero, other.zero))
        return self.type == other.type and all(
            one is not None and two is not None and np.array_equal(one.reshape(-1), two.reshape(-1))
            for one, two in pairs
        )

    def zeros(self) -> bool:
        """Whether the zero point is 0 everywhere, as far as it is stored."""
        return self.zero is None or not self.zero.astype(np.float64).any()


@dataclass(frozen=True, slots=True, eq=False)
class Way:
    """From a stored tensor to the operator that reads it: the DQ on it, and the order in which axes arrive."""

    held: gs.Constant
    step: Step | None
    order: tuple[int, ...]
    moved: bool
    constant: bool

    def axis(self, arriving: int) -> int:
        """Returns the axis of what the DQ reads that arrives as another."""
        return self.order[arriving % len(self.order)] if self.order else 0


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """A Conv, ConvTranspose, Gemm or MatMul.

    Attributes:
        node: The node.
        data: Slots of what it reads that is computed.
        slot: Slot of its weights, None where both are computed.
        way: How the weights come.
        steps: The DQ in front of each slot, if only before operators that pass integers on.
    """

    node: gs.Node
    data: tuple[int, ...]
    slot: int | None
    way: Way | None
    steps: tuple[Step | None, Step | None]

    @property
    def whole(self) -> bool:
        """Whether it reads integers alone."""
        return all(step is not None for step in self.steps)

    @property
    def float(self) -> bool:
        """Whether it reads no integers at all."""
        return all(step is None for step in self.steps)

    @property
    def weight(self) -> Step | None:
        """The DQ of the weights."""
        return None if self.slot is None else self.steps[self.slot]

    @property
    def output_axis(self) -> int:
        """The axis of the weights, as they arrive, that holds the output channels."""
        if self.node.op == "Gemm":
            return 0 if self.node.attrs.get("transB", 0) else 1
        return {"Conv": 0, "ConvTranspose": 1}.get(self.node.op, -1 if self.slot == 1 else -2)


class Pairs:
    """The Q, DQ and products of a graph, and who reads what."""

    def __init__(self, graph: Graph, shapes: Shapes) -> None:
        self.graph, self.shapes = graph, shapes
        self.nodes: list[gs.Node] = list(graph.nodes)
        self.held = dict(stored_tensors(graph))
        self.outputs = {tensor.name for tensor in graph.outputs}
        self._producers = {tensor.name: node for node in self.nodes for tensor in node.outputs if tensor.name}
        self._readers: dict[str, list[tuple[gs.Node, int]]] = {}
        for node in self.nodes:
            for slot, tensor in enumerate(node.inputs):
                self._readers.setdefault(tensor.name, []).append((node, slot))
        self.outside = set(self.outputs)
        for node in self.nodes:
            for body in bodies(node):
                self.outside |= captured(body)
        made = {id(node): self._step(node) for node in self.nodes if node.op in (QUANTIZE, DEQUANTIZE)}
        self._steps = {key: step for key, step in made.items() if step is not None}

    @property
    def steps(self) -> list[Step]:
        """All Q and DQ, in graph order."""
        return list(self._steps.values())

    @property
    def rounding(self) -> Iterator[Step]:
        """Yields every Q of what is computed."""
        return (step for step in self.steps if step.node.op == QUANTIZE and not step.stored)

    @cached_property
    def products(self) -> list[Product]:
        """All operators that multiply, in graph order."""
        return [self._product(node) for node in self.nodes if node.op in OPERATORS and node.domain in STANDARD]

    @cached_property
    def product_of(self) -> dict[int, Product]:
        """The products by the identity of their node."""
        return {id(product.node): product for product in self.products}

    @cached_property
    def weights(self) -> dict[int, Weight]:
        """Stored weights, by the identity of the node, where shapes are known."""
        return {id(weight.node): weight for weight in weights_of(self.graph, self.shapes)}

    def producer(self, name: str) -> gs.Node | None:
        """Returns what computes a tensor."""
        return self._producers.get(name)

    def readers(self, name: str) -> Sequence[tuple[gs.Node, int]]:
        """Returns who reads a tensor, and in which slot."""
        return self._readers.get(name, ())

    def step(self, node: gs.Node | None) -> Step | None:
        """Returns what a Q or DQ does."""
        return None if node is None else self._steps.get(id(node))

    def dequantized(self, name: str) -> Step | None:
        """Returns the DQ that writes a tensor."""
        node = self.producer(name)
        return self.step(node) if node is not None and node.op == DEQUANTIZE else None

    def rounded_by(self, name: str) -> list[Step]:
        """Returns the Q that read a tensor."""
        found = [self.step(node) for node, slot in self.readers(name) if node.op == QUANTIZE and slot == 0]
        return [step for step in found if step is not None]

    def quantizer(self, step: Step) -> Step | None:
        """Returns the Q in front of a DQ, through moves of integers too."""
        node = self.producer(step.node.inputs[0].name)
        return self.step(node) if node is not None and node.op == QUANTIZE else None

    def behind(self, step: Step) -> list[tuple[gs.Node, int]]:
        """Returns who reads the numbers of a Q, behind its DQ."""
        return [
            reader
            for node, _ in self.readers(step.node.outputs[0].name)
            if node.op == DEQUANTIZE
            for reader in self.readers(node.outputs[0].name)
        ]

    def floats(self, name: str) -> str:
        """Returns the tensor that a pair reads whose numbers a tensor has; itself where there is no pair."""
        step = self.dequantized(name)
        found = None if step is None else self.quantizer(step)
        return name if found is None else str(found.node.inputs[0].name)

    def is_stored(self, name: str) -> bool:
        """Whether a tensor is stored, rounded or not."""
        return self._way(name) is not None

    def values(self, name: str) -> Array | None:
        """Returns what is stored under a name."""
        held = self.held.get(name)
        return None if held is None else np.asarray(read_values(held))

    def _values(self, node: gs.Node, slot: int) -> Array | None:
        return self.values(node.inputs[slot].name) if len(node.inputs) > slot else None

    def _step(self, node: gs.Node) -> Step | None:
        if node.domain not in (*STANDARD, MICROSOFT) or len(node.inputs) < 2 or not node.outputs:
            return None
        source = node.inputs[0]
        held, maker = self.held.get(source.name), self.producer(source.name)
        behind = maker is not None and maker.op == QUANTIZE and self.held.get(maker.inputs[0].name) is not None
        shape = self.shapes.shapes.get(source.name) if held is None else tuple(held.shape)
        attributes = node.attrs
        return Step(
            node,
            self._type(node, held),
            self._values(node, 1),
            self._values(node, 2),
            int(attributes.get("axis", 1)),
            int(attributes.get("block_size", 0)),
            held is not None or behind,
            shape,
        )

    def _type(self, node: gs.Node, held: gs.Constant | None) -> int:
        if node.op == DEQUANTIZE and held is not None:
            return element_type(read_values(held).dtype)
        zero = self._values(node, 2)
        if zero is not None:
            return element_type(zero.dtype)
        if node.op == QUANTIZE:
            return int(node.attrs.get("output_dtype", 0)) or int(onnx.TensorProto.UINT8)
        return int(self.shapes.types.get(node.inputs[0].name, 0))

    def _product(self, node: gs.Node) -> Product:
        ways = [self._way(tensor.name) for tensor in node.inputs[:2]]
        stored = [slot for slot in (1, 0) if len(ways) == 2 and ways[slot] is not None]
        slot = stored[0] if stored else None
        steps: list[Step | None] = [self._arriving(tensor.name) for tensor in node.inputs[:2]]
        way = None if slot is None else ways[slot]
        if slot is not None and way is not None:
            steps[slot] = way.step
        data = tuple(number for number in range(len(node.inputs[:2])) if number != slot)
        return Product(node, data, slot, way, (steps[0], steps[1] if len(steps) > 1 else None))

    def _arriving(self, name: str) -> Step | None:
        node = self.producer(name)
        while node is not None and node.op in PASSED:
            name = node.inputs[0].name
            node = self.producer(name)
        return self.dequantized(name)

    def _way(self, name: str) -> Way | None:
        """Follows a tensor up to what is stored, through moves, casts and roundings."""
        passed: list[gs.Node] = []
        while (held := self.held.get(name)) is None:
            node = self.producer(name)
            if node is None or node.op not in WAYS or node.domain not in (*STANDARD, MICROSOFT) or not node.inputs:
                return None
            passed.append(node)
            name = node.inputs[0].name
        order: list[int] = list(range(len(held.shape)))
        step, moved = None, False
        for node in reversed(passed):
            if node.op == DEQUANTIZE:
                step, order, moved = self.step(node), list(range(len(held.shape))), False
            elif node.op == "Transpose":
                turned = node.attrs.get("perm") or list(range(len(order)))[::-1]
                order, moved = [order[axis] for axis in turned], True
        maker = self.producer(name)
        return Way(held, step, tuple(order), moved, maker is not None and maker.op == "Constant")


def bodies(node: gs.Node) -> list[gs.Graph]:
    """Returns the graphs inside a node."""
    return [value for value in node.attrs.values() if isinstance(value, gs.Graph)]
