"""Grows random valid graphs: what a construction step works with.

A graph is grown from a :class:`Growth`, a short list of steps that hypothesis draws and shrinks. Each step carries two
numbers, from which :class:`Dice` takes all of its choices; zero is always the first and plainest one. Shapes are tuples
of integers in which ``-k`` stands for k times the batch.
"""

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

T = TypeVar("T")
Shape = tuple[int, ...]

BATCH = 2
MOST_NODES = 40
MOST_ELEMENTS = 2500
MOST_FACTORS = 4
"""The largest polynomial degree of a tensor in the inputs: products of products would leave the range of float32."""


class UnfitError(Exception):
    """A step does not apply to a tensor."""


@dataclass(frozen=True)
class Step:
    """One construction step; ``dice`` decides what it does, ``style`` how its weights are stored."""

    kind: str
    dice: int = 0
    style: int = 0

    def __repr__(self) -> str:
        return f"Step({self.kind!r}, {self.dice}, {self.style})"


@dataclass(frozen=True)
class Growth:
    """All that determines a graph."""

    opset: int
    start: str
    fixed_batch: bool
    steps: tuple[Step, ...]

    def __repr__(self) -> str:
        steps = "".join(f"    {step!r},\n" for step in self.steps)
        return f"Growth({self.opset}, {self.start!r}, {self.fixed_batch}, (\n{steps}))"


class Dice:
    """Takes choices from one number, as digits of changing base."""

    def __init__(self, number: int) -> None:
        self._number = number

    def roll(self, sides: int) -> int:
        self._number, digit = divmod(self._number, sides)
        return digit

    def choose(self, options: Sequence[T]) -> T:
        if not options:
            raise UnfitError
        return options[self.roll(len(options))]

    def once_in(self, times: int) -> bool:
        return self.roll(times) == times - 1


@dataclass(frozen=True)
class Tensor:
    """A tensor of the graph; ``degree`` bounds how it grows with the inputs."""

    name: str
    shape: Shape
    degree: int = 1

    @property
    def rank(self) -> int:
        return len(self.shape)


@dataclass
class Builder:
    """The graph so far; ``pool`` holds the float tensors that steps can go on from."""

    opset: int
    fixed_batch: bool = False
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    stored: list[onnx.TensorProto] = field(default_factory=list)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    outputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    pool: list[Tensor] = field(default_factory=list)
    shared: dict[tuple[Shape, bool], list[str]] = field(default_factory=dict)
    integers: dict[tuple[int, ...], str] = field(default_factory=dict)
    style: Dice = field(default_factory=lambda: Dice(0))
    names: int = 0

    def fresh(self, prefix: str) -> str:
        self.names += 1
        return f"{prefix}{self.names}"

    def emit(self, op: str, inputs: Sequence[str], attributes: dict[str, Any] | None = None) -> str:
        return self.emit_many(op, inputs, 1, attributes)[0]

    def emit_many(
        self, op: str, inputs: Sequence[str], outputs: int, attributes: dict[str, Any] | None = None
    ) -> list[str]:
        """Adds a node and returns the names of its outputs."""
        names = [self.fresh("v") for _ in range(outputs)]
        node = helper.make_node(op, list(inputs), names, name=f"{op}_{len(self.nodes)}")
        node.attribute.extend(helper.make_attribute(key, value) for key, value in (attributes or {}).items())
        self.nodes.append(node)
        return names

    def keep(self, name: str, shape: Sequence[int], degree: int = 1) -> Tensor:
        """Puts a float tensor into the pool."""
        if math.prod(map(abs, shape)) > MOST_ELEMENTS or len(shape) > 6 or degree > MOST_FACTORS:
            raise UnfitError
        tensor = Tensor(name, tuple(shape), degree)
        self.pool.append(tensor)
        return tensor

    def chain(self, x: Tensor, op: str, attributes: dict[str, Any] | None = None) -> Tensor:
        """Applies an operator that keeps the shape."""
        return Tensor(self.emit(op, [x.name], attributes), x.shape, x.degree)

    def graph_input(self, shape: Shape, element: int = TensorProto.FLOAT) -> str:
        """Adds an input of the graph."""
        name = self.fresh("x")
        self.inputs.append(helper.make_tensor_value_info(name, element, self.declared(shape)))
        return name

    def extra_output(self, name: str, element: int, shape: Shape) -> None:
        """Makes a value an output of the graph, beside the ends of the graph."""
        if any(output.name == name for output in self.outputs):
            raise UnfitError
        self.outputs.append(helper.make_tensor_value_info(name, element, self.declared(shape)))

    def declared(self, shape: Shape) -> list[int | str]:
        """Returns a shape with the batch as the model declares it."""
        if self.fixed_batch:
            return [-size * BATCH if size < 0 else size for size in shape]
        return [size if size > 0 else "N" if size == -1 else f"N{-size}" for size in shape]

    def constant(self, values: np.ndarray, prefix: str = "c") -> str:
        """Stores a tensor as it is."""
        name = self.fresh(prefix)
        self.stored.append(numpy_helper.from_array(values, name))
        return name

    def ints(self, *values: int) -> str:
        """Stores a vector of integers; equal ones are the same tensor, as exporters have it."""
        if values not in self.integers:
            self.integers[values] = self.constant(np.array(values, np.int64), "i")
        return self.integers[values]

    def scalar(self, value: float) -> str:
        """Stores a float without dimensions."""
        return self.constant(np.array(value, np.float32), "k")

    def weight(self, shape: Sequence[int], fan_in: int = 1, *, positive: bool = False) -> str:
        """Stores a random tensor, shares one of the same shape, or hides it behind nodes, as ``style`` decides."""
        shape, key = tuple(shape), (tuple(shape), positive)
        options: list[Callable[[np.ndarray], str]] = [self.constant] * 5 + [
            self._in_node, self._transposed, self._copied, self._cast, self._flat, self._squeezed,
        ]  # fmt: skip
        if self.style.once_in(4) and key in self.shared:
            return self.style.choose(self.shared[key])
        turned = (shape[::-1], positive)
        if len(shape) == 2 and turned in self.shared and self.style.once_in(3):
            return self.emit("Transpose", [self.style.choose(self.shared[turned])], {"perm": [1, 0]})
        rng = np.random.default_rng([zlib.crc32(f"w{self.names}".encode()), *shape])
        values = rng.standard_normal(shape) / math.sqrt(fan_in)
        values = np.abs(values) + 0.5 if positive else values
        name = self.style.choose(options)(values.astype(np.float32))
        self.shared.setdefault(key, []).append(name)
        return name

    def vector(self, size: int, *, positive: bool = False) -> str:
        """Stores a bias, a scale or a statistic."""
        return self.weight((size,), 4, positive=positive)

    def quantized(self, shape: Sequence[int], axis: int, fan_in: int) -> str:
        """Stores a weight as 8-bit integers with one scale for each channel of an axis."""
        if self.opset < 13:
            raise UnfitError
        rng = np.random.default_rng([self.names, *shape])
        count = shape[axis]
        scale = self.constant(((rng.random(count) + 0.5) / 64 / math.sqrt(fan_in)).astype(np.float32), "s")
        values = self.constant(rng.integers(-127, 128, shape).astype(np.int8), "q")
        zero = [self.constant(rng.integers(-9, 9, count).astype(np.int8), "z")] if self.style.once_in(2) else []
        return self.emit("DequantizeLinear", [values, scale, *zero], {"axis": axis})

    def squeeze(self, op: str, name: str, axes: Sequence[int]) -> str:
        """Adds a Squeeze or an Unsqueeze."""
        if self.opset < 13:
            return self.emit(op, [name], {"axes": list(axes)})
        return self.emit(op, [name, self.ints(*axes)])

    def reduce(self, op: str, name: str, axes: Sequence[int], *, keepdims: bool = True) -> str:
        """Adds a reduction."""
        attributes = {"keepdims": int(keepdims)}
        if self.opset < (13 if op == "ReduceSum" else 18):
            return self.emit(op, [name], {"axes": list(axes), **attributes})
        return self.emit(op, [name, self.ints(*axes)], attributes)

    def split(self, name: str, sizes: Sequence[int], axis: int, *, implied: bool = False) -> list[str]:
        """Adds a Split; ``implied`` leaves equal sizes to the operator."""
        attributes: dict[str, Any] = {"axis": axis}
        inputs = [name]
        if implied and len(set(sizes)) == 1:
            attributes |= {"num_outputs": len(sizes)} if self.opset >= 18 else {}
        elif self.opset < 13:
            attributes["split"] = list(sizes)
        else:
            inputs.append(self.ints(*sizes))
        return self.emit_many("Split", inputs, len(sizes), attributes)

    def size_of(self, x: Tensor, dim: int, dice: Dice) -> str:
        """Returns a vector of one element: the length of an axis, read at run time."""
        shape = self.emit("Shape", [x.name])
        if dice.once_in(3):
            return self.emit("Slice", [shape, self.ints(dim), self.ints(dim + 1), self.ints(0)])
        if dice.once_in(2):
            index = self.constant(np.array(dim, np.int64), "i")
            return self.squeeze("Unsqueeze", self.emit("Gather", [shape, index]), [0])
        return self.emit("Gather", [shape, self.ints(dim)])

    def reshape(self, x: Tensor, target: Sequence[int], dice: Dice) -> Tensor:
        """Adds a Reshape whose shape is stored, or computed from the shape of its input."""
        shape = self._computed_shape(x, target, dice) if dice.once_in(4) else self._stored_shape(x, target, dice)
        return Tensor(self.emit("Reshape", [x.name, shape]), tuple(target), x.degree)

    def _stored_shape(self, x: Tensor, target: Sequence[int], dice: Dice) -> str:
        sizes = [0 if i < x.rank and x.shape[i] == size and size < 0 else size for i, size in enumerate(target)]
        if dice.once_in(3):
            sizes = [0 if i < x.rank and x.shape[i] == size else size for i, size in enumerate(target)]
        if any(size < 0 for size in sizes):
            sizes = [-1 if size < 0 else size for size in sizes]
        elif dice.once_in(3):
            sizes[dice.roll(len(sizes))] = -1
        if sizes.count(-1) > 1:
            raise UnfitError
        return self.ints(*sizes)

    def _computed_shape(self, x: Tensor, target: Sequence[int], dice: Dice) -> str:
        return self.emit("Concat", [self._entry(x, size, dice) for size in target], {"axis": 0})

    def _entry(self, x: Tensor, size: int, dice: Dice) -> str:
        """Returns one element of a shape: stored where that is possible, or an axis of x with a factor."""
        whole = [dim for dim, length in enumerate(x.shape) if size % length == 0 and (size < 0) == (length < 0)]
        parts = [dim for dim, length in enumerate(x.shape) if length % size == 0 and (size < 0) == (length < 0)]
        if size > 0 and not dice.once_in(3):
            return self.ints(size)
        if whole and not (parts and dice.once_in(2)):
            dim = dice.choose(whole)
            factor = size // x.shape[dim]
            length = self.size_of(x, dim, dice)
            return length if factor == 1 else self.emit("Mul", [length, self.ints(factor)])
        if parts:
            dim = dice.choose(parts)
            return self.emit("Div", [self.size_of(x, dim, dice), self.ints(x.shape[dim] // size)])
        if size > 0:
            return self.ints(size)
        raise UnfitError

    def _in_node(self, values: np.ndarray) -> str:
        return self.emit("Constant", [], {"value": numpy_helper.from_array(values)})

    def _transposed(self, values: np.ndarray) -> str:
        if values.ndim < 2:
            return self.constant(values)
        perm = list(reversed(range(values.ndim)))
        return self.emit("Transpose", [self.constant(np.ascontiguousarray(values.T))], {"perm": perm})

    def _copied(self, values: np.ndarray) -> str:
        return self.emit("Identity", [self.constant(values)])

    def _cast(self, values: np.ndarray) -> str:
        return self.emit("Cast", [self.constant(values.astype(np.float16))], {"to": TensorProto.FLOAT})

    def _flat(self, values: np.ndarray) -> str:
        return self.emit("Reshape", [self.constant(values.ravel()), self.ints(*values.shape)])

    def _squeezed(self, values: np.ndarray) -> str:
        return self.squeeze("Squeeze", self.constant(values[np.newaxis]), [0])

    def leaves(self) -> list[Tensor]:
        """Returns the tensors that no node reads."""
        read = {name for node in self.nodes for name in node.input}
        return [tensor for tensor in self.pool if tensor.name not in read]

    def mark(self) -> tuple[int, ...]:
        """Returns how far the graph has grown, for :meth:`rewind`."""
        return tuple(map(len, self._lists()))

    def _lists(self) -> tuple[list[Any], ...]:
        return self.nodes, self.stored, self.inputs, self.outputs, self.pool

    def rewind(self, mark: tuple[int, ...]) -> None:
        """Takes everything back that came after a mark."""
        for items, length in zip(self._lists(), mark, strict=True):
            del items[length:]
        known = {tensor.name for tensor in self.stored} | {name for node in self.nodes for name in node.output}
        self.integers = {values: name for values, name in self.integers.items() if name in known}
        self.shared = {key: [name for name in names if name in known] for key, names in self.shared.items()}
        self.shared = {key: names for key, names in self.shared.items() if names}

    def model(self, outputs: Sequence[Tensor]) -> onnx.ModelProto:
        """Returns the finished model."""
        results = [helper.make_tensor_value_info(t.name, TensorProto.FLOAT, self.declared(t.shape)) for t in outputs]
        taken = {output.name for output in self.outputs}
        results = [result for result in results if result.name not in taken] + self.outputs
        graph = helper.make_graph(self.nodes, "grown", self.inputs, results, self.stored)
        opsets = [helper.make_opsetid("", self.opset)]
        ir_version = 8 if self.opset < 19 else 10 if self.opset < 23 else 11
        return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)
