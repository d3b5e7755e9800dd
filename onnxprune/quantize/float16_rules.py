"""Which nodes stay in float32 when a model computes in float16, and why.

What may be float16 at all is read from ONNX's own schemas; ``EXEMPT`` holds the operators that leave the range of
float16 or lose too many of its eleven bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxprune.model.graph import Graph, captured, stored_tensors
from onnxprune.model.io import read_values
from onnxprune.model.shapes import Shapes, node_name, opset_of, stored_tensor
from onnxprune.model.values import element_type
from onnxprune.ops import operator
from onnxprune.quantize.float16_numbers import LARGEST, ROUNDED_TO_INFINITY, SMALLEST_NORMAL, Array, misfit

FLOAT, HALF = int(onnx.TensorProto.FLOAT), int(onnx.TensorProto.FLOAT16)
FIRST_OPSET, NORMALIZATION_OPSET = 6, 17
PEAK_LIMIT = LARGEST / 2
"""What samples may reach: other inputs may go further."""


@dataclass(frozen=True)
class Exemption:
    """Why an operator stays in float32; ``reach``: so does what its operands are computed with.

    That goes back to the nearest operator that multiplies with a matrix, which has rounded errors of its own.
    """

    reason: str
    reach: bool = False


_TOTAL = Exemption("its sum over many numbers may pass 65504, where float16 ends")
_POWER = Exemption("its powers pass 65504, where float16 ends, from 256 on for a square")
_EXPONENTIAL = Exemption("its result passes 65504, where float16 ends, from 11.1 on")
_ROOT = Exemption("its argument is mostly a sum of squares, which float16 may not hold")
_LOGARITHM = Exemption("its argument may be so small that float16 rounds it to zero", reach=True)
_PHASE = Exemption("float16 has no digits left for the phase of a large angle", reach=True)
_PLACE = Exemption("its coordinates need more than the eleven bits of float16", reach=True)
_ORDER = Exemption("it ranks numbers that float16 would make equal", reach=True)
_INDEX = Exemption("it makes integers, which a rounding of its argument would change", reach=True)
_MADE = Exemption("runtimes make it in float32 alone")

EXEMPT: dict[str, Exemption] = {
    **dict.fromkeys(("ReduceSum", "ReduceL1", "ReduceProd", "CumSum", "DFT", "STFT", "Det"), _TOTAL),
    **dict.fromkeys(("Pow", "ReduceL2", "ReduceSumSquare", "LpNormalization", "LpPool", "LRN"), _POWER),
    **dict.fromkeys(("MeanVarianceNormalization",), _POWER),
    **dict.fromkeys(("Exp", "ReduceLogSumExp", "Sinh", "Cosh"), _EXPONENTIAL),
    **dict.fromkeys(("Sqrt",), _ROOT),
    **dict.fromkeys(("Log", "ReduceLogSum"), _LOGARITHM),
    **dict.fromkeys(("Sin", "Cos", "Tan"), _PHASE),
    **dict.fromkeys(("Range", "GridSample", "AffineGrid", "RoiAlign", "MaxRoiPool"), _PLACE),
    **dict.fromkeys(("RandomNormal", "RandomUniform", "EyeLike", "MelWeightMatrix"), _MADE),
    **dict.fromkeys(("HannWindow", "HammingWindow", "BlackmanWindow"), _MADE),
    **dict.fromkeys(("TopK", "NonMaxSuppression"), _ORDER),
}
"""Not here, because nothing leaves the range of float16: Softmax subtracts the largest first, a mean lies among its
numbers, and normalization operators have float32 inside (``stash_type``) or in every implementation."""

_WIDE_INTEGERS = frozenset(
    onnx.TensorProto.DataType.Value(name) for name in ("INT16", "UINT16", "INT32", "UINT32", "INT64", "UINT64")
)
_INTEGERS = _WIDE_INTEGERS | {int(onnx.TensorProto.INT8), int(onnx.TensorProto.UINT8)}
_SIXTEEN_BITS = frozenset({int(onnx.TensorProto.INT16), int(onnx.TensorProto.UINT16)})


@dataclass(frozen=True)
class Slots:
    """Positions of the float32 operands of a node, and those of them that ONNX also defines in float16."""

    reads: tuple[int, ...] = ()
    writes: tuple[int, ...] = ()
    half_reads: frozenset[int] = frozenset()
    half_writes: frozenset[int] = frozenset()
    foreign: bool = False  # reads or writes a sequence, or a tensor of which no type is known


class View:
    """What the rules ask about the nodes and tensors of a graph."""

    def __init__(self, graph: Graph, shapes: Shapes) -> None:
        self.graph, self.shapes = graph, shapes
        self.nodes = list(graph.nodes)
        self.types = dict(shapes.types)
        for node in self.nodes:
            self._complete(node)
        self.producer = {tensor.name: node for node in self.nodes for tensor in node.outputs if tensor.name}
        self.slots = {id(node): self._slots_of(node) for node in self.nodes}

    def type_of(self, tensor: gs.Tensor) -> int:
        """Returns the element type before anything is converted; 0 where it is unknown or no tensor's."""
        if getattr(tensor, "type", "tensor_type") != "tensor_type":
            return 0
        if isinstance(tensor, gs.Constant):
            return element_type(tensor.dtype)
        return self.types.get(tensor.name, 0)

    def schema(self, node: gs.Node) -> onnx.defs.OpSchema | None:
        """Returns what ONNX says about the operator at this opset."""
        try:
            return onnx.defs.get_schema(node.op, opset_of(self.graph, node.domain), domain_of(node))
        except onnx.defs.SchemaError:
            return None

    def is_source(self, node: gs.Node) -> bool:
        """Returns whether the node makes float32 from none: its type is what its readers want."""
        slots = self.slots[id(node)]
        return bool(slots.writes) and not slots.reads and not slots.foreign and not bodies_of(node)

    def is_sink(self, node: gs.Node) -> bool:
        """Returns whether the node reads float32 and makes none: it reads either type."""
        slots = self.slots[id(node)]
        return bool(slots.reads) and not slots.writes

    def is_wide(self, node: gs.Node) -> bool:
        """Returns whether the node makes floats of integers that float16 may not hold."""
        return node.op == "Cast" and self.type_of(node.inputs[0]) in _WIDE_INTEGERS

    def has_floats(self, body: gs.Graph) -> bool:
        """Returns whether a body reads or stores float32."""
        inner = (graph for node in body.nodes for graph in bodies_of(node))
        return (
            any(self.types.get(name) == FLOAT for name in captured(body))
            or any(element_type(constant.dtype) == FLOAT for _, constant in stored_tensors(body))
            or any(self.has_floats(graph) for graph in inner)
        )

    def is_linear(self, node: gs.Node) -> bool:
        """Returns whether the node sums products; an outer product does not."""
        if operator(node.op, node.domain).macs is None:
            return False
        return node.op != "MatMul" or self.shapes.shapes.get(node.inputs[0].name, (0,))[-1:] != (1,)

    def content(self, tensor: gs.Tensor) -> Array | None:
        """Returns what is stored for a tensor, as initializer or in the node that makes it."""
        if isinstance(tensor, gs.Constant):
            return read_values(tensor)
        node = self.producer.get(tensor.name)
        return None if node is None or domain_of(node) else made_by(node)

    def computed(self, node: gs.Node) -> list[gs.Node | None]:
        """Returns who makes the float32 operands, stored ones and those of free type left out; None: an input."""
        found: list[gs.Node | None] = []
        for position in self.slots[id(node)].reads:
            maker = self.producer.get(node.inputs[position].name)
            if isinstance(node.inputs[position], gs.Constant):
                continue
            if maker is None or not self.is_source(maker) or self.is_wide(maker):
                found.append(maker)
        return found

    def _complete(self, node: gs.Node) -> None:
        """Fills in types that inference did not reach: a result has the type of the operand that shares its letter."""
        missing = [place for place, tensor in enumerate(node.outputs) if tensor.name and not self.type_of(tensor)]
        schema = self.schema(node) if missing else None
        if schema is None or not schema.outputs:
            return
        letters = {_parameter(schema.inputs, i).type_str: self.type_of(x) for i, x in enumerate(node.inputs) if x.name}
        for place in missing:
            kind = letters.get(_parameter(schema.outputs, place).type_str, 0)
            if kind and getattr(node.outputs[place], "type", "tensor_type") == "tensor_type":
                self.types[node.outputs[place].name] = kind

    def _slots_of(self, node: gs.Node) -> Slots:
        types = [[self.type_of(tensor) for tensor in tensors] for tensors in (node.inputs, node.outputs)]
        foreign = any(
            kind == 0 and tensor.name
            for kinds, tensors in zip(types, (node.inputs, node.outputs), strict=True)
            for kind, tensor in zip(kinds, tensors, strict=True)
        )
        reads, writes = (tuple(place for place, kind in enumerate(kinds) if kind == FLOAT) for kinds in types)
        schema = self.schema(node)
        if schema is None or not (reads or writes):
            return Slots(reads, writes, foreign=foreign)
        half_reads = frozenset(place for place in reads if _takes_half(schema.inputs, place))
        half_writes = frozenset(place for place in writes if _takes_half(schema.outputs, place))
        return Slots(reads, writes, half_reads, half_writes, foreign)


class Decision:
    """The nodes that stay in float32, by identity, each with the reason."""

    def __init__(self, view: View, keep: frozenset[str], peaks: Mapping[str, float]) -> None:
        self.view, self.keep, self.peaks = view, keep, peaks
        self.reasons: dict[int, str] = {}
        reaching: list[tuple[gs.Node, tuple[int, ...]]] = []
        for node in view.nodes:
            slots = view.slots[id(node)]
            reason = self._own_reason(node)
            if reason is not None:
                self.reasons[id(node)] = reason
            exempt = self.exempt(node)
            if exempt is not None and exempt.reach:
                reaching.append((node, slots.reads))
            elif reason is None and not view.is_source(node):
                reaching.append((node, tuple(set(slots.reads) - slots.half_reads)))
        for node, positions in reaching:
            self._reach(node, positions)
        for node in view.nodes:
            self._follow(node)

    def _own_reason(self, node: gs.Node) -> str | None:
        slots = self.view.slots[id(node)]
        bodies = bodies_of(node)
        if bodies:
            floats = slots.reads or slots.writes or any(self.view.has_floats(body) for body in bodies)
            return "its body stays in float32" if floats else None
        if not slots.reads and not slots.writes:
            return None
        if node_name(node) in self.keep:
            return "it was named to stay in float32"
        exempt = self.exempt(node)
        return (
            self._peak_reason(node)
            or self._type_reason(node)
            or self._scale_reason(node)
            or _crash_reason(node)
            or (exempt.reason if exempt is not None else self._constant_reason(node))
        )

    def exempt(self, node: gs.Node) -> Exemption | None:
        """Returns the entry of the table that concerns a node."""
        view = self.view
        slots = view.slots[id(node)]
        if domain_of(node) or not (slots.reads or slots.writes):
            return None
        if node.op == "Mul" and node.inputs[0] is node.inputs[1]:
            return _POWER
        if node.op == "Cast" and view.is_sink(node) and view.type_of(node.outputs[0]) in _INTEGERS:
            return _INDEX
        return EXEMPT.get(node.op)

    def _type_reason(self, node: gs.Node) -> str | None:
        slots, schema = self.view.slots[id(node)], self.view.schema(node)
        if schema is None:
            return f"nothing is known of the types that {node.op} takes"
        if opset_of(self.view.graph, "") < FIRST_OPSET:
            return f"before opset {FIRST_OPSET} Cast and others name types in another way"
        if slots.foreign:
            return "it works on a sequence, or on a tensor of unknown type"
        if not slots.half_reads and not slots.half_writes:
            return f"ONNX does not define {node.op} in float16 at opset {opset_of(self.view.graph, node.domain)}"
        return None

    def _peak_reason(self, node: gs.Node) -> str | None:
        slots = self.view.slots[id(node)]
        tensors = [node.inputs[place] for place in slots.reads] + [node.outputs[place] for place in slots.writes]
        peak = max((self.peaks.get(tensor.name, 0.0) for tensor in tensors), default=0.0)
        if peak <= PEAK_LIMIT:
            return None
        return f"its values reach {peak:.3g} on the samples, and float16 ends at 65504"

    def _scale_reason(self, node: gs.Node) -> str | None:
        if node.op not in ("QuantizeLinear", "DequantizeLinear") or domain_of(node):
            return None
        quantized = node.inputs[0] if node.op == "DequantizeLinear" else node.outputs[0]
        if self.view.type_of(quantized) in _SIXTEEN_BITS:
            return "its integers have 16 bits, and float16 holds 11"
        scale = self.view.content(node.inputs[1])
        if scale is None or scale.dtype != np.float32:
            return None
        used = scale[~dead_channels(node, scale)]
        if used.size and used.min() < SMALLEST_NORMAL:
            return f"its scale {used.min():.3g} is below 6.1e-05, the smallest float16 with all digits"
        if used.size and used.max() >= ROUNDED_TO_INFINITY:
            return f"its scale {used.max():.3g} is above 65504, where float16 ends"
        return None

    def _constant_reason(self, node: gs.Node) -> str | None:
        if node.op in ("QuantizeLinear", "DequantizeLinear"):
            return None
        slots = self.view.slots[id(node)]
        contents = [self.view.content(node.inputs[position]) for position in sorted(slots.half_reads)]
        if self.view.is_source(node) and node.op == "ConstantOfShape":
            contents = [made_by(node)]
        linear = self.view.is_linear(node)
        reasons = (misfit(values, linear) for values in contents if values is not None)
        return next((reason for reason in reasons if reason is not None), None)

    def _stays(self, node: gs.Node | None) -> bool:
        return node is not None and (id(node) in self.reasons or self.view.is_wide(node))

    def _reach(self, start: gs.Node, positions: tuple[int, ...]) -> None:
        """Keeps what the operands are computed with, back to the nearest operator that sums products."""
        waiting = [start.inputs[position].name for position in positions]
        seen: set[str] = set()
        while waiting:
            name = waiting.pop()
            node = self.view.producer.get(name)
            if name in seen or node is None or self.view.is_source(node) or self.view.is_linear(node):
                continue
            seen.add(name)
            self.reasons.setdefault(id(node), f"{start.op} '{node_name(start)}' needs it: {self._why(start)}")
            waiting += [node.inputs[position].name for position in self.view.slots[id(node)].reads]

    def _why(self, start: gs.Node) -> str:
        exempt = self.exempt(start)
        return "it takes this operand in float32 alone" if exempt is None else exempt.reason

    def _follow(self, node: gs.Node) -> None:
        """Keeps a node that reads float32 results alone, unless it has a matrix of its own to store in half."""
        slots = self.view.slots[id(node)]
        if id(node) in self.reasons or not slots.writes or not slots.reads:
            return
        stored = any(isinstance(node.inputs[position], gs.Constant) for position in slots.reads)
        makers = self.view.computed(node)
        if self.view.is_linear(node) and stored:
            return
        if makers and all(map(self._stays, makers)) and not all(map(self._is_normalized, makers)):
            self.reasons[id(node)] = "all that it reads is computed in float32"
        elif node.op == "Div" and self._stays(self.view.producer.get(node.inputs[1].name)):
            self.reasons[id(node)] = "its divisor is computed in float32, and float16 may round it to zero or infinity"

    def _is_normalized(self, node: gs.Node | None) -> bool:
        """Returns whether a node divides float16 by a root, where what follows returns to float16.

        ONNX Runtime makes LayerNormalization of it, with scale and bias: from opset 17 on all of one type.
        """
        if node is None or node.op != "Div" or opset_of(self.view.graph, "") < NORMALIZATION_OPSET:
            return False
        divided, root = (self.view.producer.get(tensor.name) for tensor in node.inputs)
        return root is not None and root.op == "Sqrt" and not self._stays(divided)


def _crash_reason(node: gs.Node) -> str | None:
    """ONNX Runtime 1.31 ends the process on x86, with the optimizations that are its default."""
    order: Sequence[int] = node.attrs.get("perm") or ()
    inner = [axis for axis in order if axis]
    if domain_of(node) or node.op != "Transpose" or len(order) < 3 or order[0] != 1 or inner != sorted(inner):
        return None
    if all(reader.op != "MatMul" for reader in node.outputs[0].outputs):
        return None
    return "ONNX Runtime crashes where a product reads what it moves in float16"


def bodies_of(node: gs.Node) -> list[gs.Graph]:
    """Returns the graphs in the attributes of a node."""
    return [value for value in node.attrs.values() if isinstance(value, gs.Graph)]


def domain_of(node: gs.Node) -> str:
    """Returns the operator's domain, the standard one as an empty text."""
    return "" if node.domain in (None, "ai.onnx") else str(node.domain)


def made_by(node: gs.Node) -> Array | None:
    """Returns the content of Constant, and what ConstantOfShape fills with."""
    if node.op != "ConstantOfShape":
        return stored_tensor(node)
    content = node.attrs.get("value")
    return np.zeros(1, np.float32) if content is None else read_values(content)


def dead_channels(node: gs.Node, scale: Array) -> Array:
    """Returns the scales of a DequantizeLinear that multiply stored zeros alone, and so may be any number."""
    stored = node.inputs[0]
    if node.op != "DequantizeLinear" or not isinstance(stored, gs.Constant) or scale.ndim != 1:
        return np.zeros(scale.shape, bool)
    values = read_values(stored)
    axis = int(node.attrs.get("axis", 1)) % values.ndim
    if values.shape[axis] != scale.size:
        return np.zeros(scale.shape, bool)
    return np.asarray(~np.any(values != 0, axis=tuple(dim for dim in range(values.ndim) if dim != axis)))


def _parameter(parameters: Any, position: int) -> Any:
    """Returns what a schema says about an operand; the last parameter may stand for many."""
    return parameters[min(position, len(parameters) - 1)]


def _takes_half(parameters: Any, position: int) -> bool:
    return "tensor(float16)" in _parameter(parameters, position).types
