"""Float16 in place of float32: one type for every node, and a Cast wherever a tensor has not the type a reader wants.

A node computes in float16 unless ``float16_rules`` names a reason.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxprune.errors import SelectorError
from onnxprune.model.graph import Graph, captured, copy_graph, overridable
from onnxprune.model.io import read_values, write_values
from onnxprune.model.shapes import Shapes, node_name
from onnxprune.model.sizes import generic_shapes
from onnxprune.model.values import element_type, numpy_type
from onnxprune.quantize.float16_numbers import LARGEST, SMALLEST_NORMAL, Array, outside, stand_for_infinity
from onnxprune.quantize.float16_rules import FLOAT, HALF, Decision, View, bodies_of, domain_of, made_by


@dataclass(frozen=True)
class Left:
    """A node that computes in float32, and why."""

    node: str
    op: str
    reason: str


def to_float16(
    graph: Graph,
    *,
    keep: Collection[str] = (),
    inputs_too: bool = False,
    shapes: Shapes | None = None,
    peaks: Mapping[str, float] | None = None,
) -> tuple[Graph, list[Left]]:
    """Returns a copy that computes in float16 where it did in float32, and the nodes that do not, with reasons.

    Doubles, bfloat16 and integers stay as they are. A constant that stands for infinity becomes the largest finite
    number of float16, so that a row in which all is masked stays finite.

    Args:
        graph: The graph; it is not changed.
        keep: Names of nodes that stay in float32.
        inputs_too: Whether inputs and outputs of the model become float16 as well.
        shapes: Shapes and types of this very graph, where they are known already.
        peaks: The largest magnitudes of tensors on samples, by name: what may overflow stays in float32.

    Raises:
        SelectorError: ``keep`` names a node that is not there.
    """
    unknown = sorted(set(keep) - {node_name(node) for node in graph.nodes})
    if unknown:
        raise SelectorError(f"no node is named '{unknown[0]}': name nodes of this model to keep them in float32")
    result = copy_graph(graph)
    view = View(result, generic_shapes(graph)[0] if shapes is None else shapes)
    reasons = Decision(view, frozenset(keep), peaks or {}).reasons
    left = [Left(node_name(node), node.op, reasons[id(node)]) for node in view.nodes if id(node) in reasons]
    _Rewrite(view, reasons, inputs_too).run()
    return result, left


_RESULT_TYPE = {
    **dict.fromkeys(("RandomNormalLike", "RandomUniformLike", "Bernoulli"), "dtype"),
    **{"Cast": "to", "DequantizeLinear": "output_dtype"},
}
"""The attribute that names the element type of the result, where it does not follow an operand."""


@dataclass
class _Use:
    """One place that reads a float32 tensor.

    ``wants`` is the type; 0 where either will do. ``exact``: stored values may not be touched, not even where they
    stand for infinity.
    """

    operands: Any
    position: int
    wants: int
    exact: bool = False
    is_scale: bool = False

    @property
    def tensor(self) -> gs.Tensor:
        return self.operands[self.position]


class _Rewrite:
    """Gives every tensor its type, and casts where a reader wants another."""

    def __init__(self, view: View, reasons: dict[int, str], inputs_too: bool) -> None:
        self.view, self.graph, self.reasons = view, view.graph, reasons
        self.end = HALF if inputs_too else FLOAT
        self.uses: dict[str, list[_Use]] = defaultdict(list)
        self.sinks: list[list[_Use]] = []
        self.made: dict[str, int] = {}
        self.fixed = overridable(view.graph)
        self.outputs = {tensor.name for tensor in view.graph.outputs if not isinstance(tensor, gs.Constant)}
        self.names = {tensor.name for node in view.nodes for tensor in (*node.inputs, *node.outputs)}
        self.names |= {tensor.name for tensor in (*view.graph.inputs, *view.graph.outputs)}
        for node in view.nodes:
            self.names |= {name for body in bodies_of(node) for name in _names_in(body)}

    def run(self) -> None:
        """Rewrites the graph in place."""
        if not any(slots.reads or slots.writes for slots in self.view.slots.values()):
            return
        self._collect()
        self._choose_types()
        self._write_constants()
        self._insert_casts()
        self._drop_casts()
        if self.end == HALF:
            self._declare_ends()

    def _collect(self) -> None:
        local = {id(tensor) for node in self.view.nodes for tensor in (*node.inputs, *node.outputs)}
        local |= {id(tensor) for tensor in self.graph.inputs}
        for node in self.view.nodes:
            found = self._uses_of(node)
            for use in found:
                self.uses[use.tensor.name].append(use)
            if found and not found[0].wants:
                self.sinks.append(found)
            for body in bodies_of(node):
                self._collect_body(body, local)
        for position, tensor in enumerate(self.graph.outputs):
            if isinstance(tensor, gs.Constant) and self.view.type_of(tensor) == FLOAT:
                self.uses[tensor.name].append(_Use(self.graph.outputs, position, FLOAT, exact=True))

    def _uses_of(self, node: gs.Node) -> list[_Use]:
        slots = self.view.slots[id(node)]
        stays = id(node) in self.reasons or slots.foreign
        exact = self.view.is_linear(node)
        quantizes = node.op in ("QuantizeLinear", "DequantizeLinear")
        # A QuantizeLinear shares its scale with others, and so its type.
        either = self.view.is_sink(node) and len(slots.half_reads) == len(slots.reads) and not (stays or quantizes)
        found = []
        for position in slots.reads:
            wants = HALF if position in slots.half_reads and not stays else FLOAT
            is_scale = quantizes and position == 1
            found.append(_Use(node.inputs, position, 0 if either else wants, exact or is_scale, is_scale))
        return found

    def _collect_body(self, body: gs.Graph, local: set[int]) -> None:
        for operands in (*(node.inputs for node in body.nodes), body.outputs):
            for position, tensor in enumerate(operands):
                if id(tensor) in local and self.view.type_of(tensor) == FLOAT:
                    self.uses[tensor.name].append(_Use(operands, position, FLOAT, exact=True))
        for node in body.nodes:
            for inner in bodies_of(node):
                self._collect_body(inner, local)

    def _choose_types(self) -> None:
        for tensor in self.graph.inputs:
            if self.view.type_of(tensor) == FLOAT:
                self.made[tensor.name] = self.end
        self.made.update(dict.fromkeys(self.fixed & set(self.uses), FLOAT))
        sources = [node for node in self.view.nodes if self.view.is_source(node)]
        for node in self.view.nodes:
            slots = self.view.slots[id(node)]
            stays = id(node) in self.reasons or slots.foreign or self.view.is_source(node)
            for position in slots.writes:
                half = position in slots.half_writes and not stays
                self.made[node.outputs[position].name] = HALF if half else FLOAT
            if slots.half_writes and not stays:
                _set_result_type(node)
        by_choice = {node.outputs[position].name for node in sources for position in self.view.slots[id(node)].writes}
        for found in self.sinks:
            self._settle(found, by_choice)
        for node in sources:
            self._choose_source(node)
        for tensor in (*self.graph.inputs, *(tensor for node in self.view.nodes for tensor in node.outputs)):
            if self.made.get(tensor.name) == HALF and tensor.dtype is not None:
                tensor.dtype = np.dtype(np.float16)

    def _settle(self, found: list[_Use], by_choice: set[str]) -> None:
        """Lets a reader of either type take the type that is there."""
        names = [use.tensor.name for use in found if use.tensor.name not in by_choice]
        there = [self.made[name] for name in names if name in self.made]
        for use in found:
            use.wants = there[0] if there else FLOAT

    def _choose_source(self, node: gs.Node) -> None:
        """Makes half of what no operand binds to float32, where no reader wants it in float32."""
        slots = self.view.slots[id(node)]
        names = [node.outputs[position].name for position in slots.writes]
        wanted = {use.wants for name in names for use in self.uses.get(name, ())}
        wanted |= {self.end for name in names if name in self.outputs}
        exact = any(use.exact for name in names for use in self.uses.get(name, ()))
        if wanted == {HALF} and id(node) not in self.reasons and len(slots.half_writes) == len(slots.writes):
            self.made.update(dict.fromkeys(names, HALF))
            _set_result_type(node, is_scale=any(use.is_scale for name in names for use in self.uses.get(name, ())))
        elif not exact and not self.outputs & set(names):
            _clip_made(node)

    def _write_constants(self) -> None:
        for uses in list(self.uses.values()):
            constant = uses[0].tensor
            if not isinstance(constant, gs.Constant) or constant.name in self.fixed:
                continue
            values = read_values(constant)
            halves = [use for use in uses if use.wants == HALF]
            if halves:
                values_half = _as_half(values, any(use.is_scale for use in halves))
                if len(halves) == len(uses):
                    write_values(constant, values_half)
                    continue
                _replace(halves, gs.Constant(self._unused(f"{constant.name}_float16"), values_half))
            clipped = _clipped(values)
            if clipped is not values and not any(use.exact for use in uses):
                write_values(constant, clipped)

    def _insert_casts(self) -> None:
        nodes: list[gs.Node] = []
        constants = {
            use.tensor.name: use.tensor for uses in self.uses.values() for use in uses if use.tensor.name in self.fixed
        }
        for tensor in (*self.graph.inputs, *constants.values()):
            nodes += self._casts_of(tensor, None)
        for node in self.view.nodes:
            nodes.append(node)
            for tensor in list(node.outputs):
                nodes += self._casts_of(tensor, node)
        self.graph.nodes[:] = nodes

    def _casts_of(self, tensor: gs.Tensor, node: gs.Node | None) -> list[gs.Node]:
        made = self.made.get(tensor.name)
        if made is None:
            return []
        uses = self.uses.get(tensor.name, [])
        if node is not None and tensor.name in self.outputs and made != self.end:
            inner = self._twin(tensor, made)
            node.outputs[next(place for place, item in enumerate(node.outputs) if item is tensor)] = inner
            _replace([use for use in uses if use.wants == made], inner)
            tensor.dtype = numpy_type(self.end)
            return [_cast(inner, tensor, self.end)]
        other = HALF if made == FLOAT else FLOAT
        uses = [use for use in uses if use.wants == other]
        if not uses:
            return []
        if node is not None and node.op == "Cast" and other == self.view.type_of(node.inputs[0]) == HALF:
            _replace(uses, node.inputs[0])  # Cast(Cast(half)) is the half itself
            return []
        twin = self._twin(tensor, other)
        _replace(uses, twin)
        return [_cast(tensor, twin, other)]

    def _twin(self, tensor: gs.Tensor, kind: int) -> gs.Variable:
        suffix = "float16" if kind == HALF else "float32"
        shape = None if tensor.shape is None or tensor.dtype is None else list(tensor.shape)
        return gs.Variable(self._unused(f"{tensor.name}_{suffix}"), numpy_type(kind), shape)

    def _unused(self, name: str) -> str:
        while name in self.names:
            name += "_"
        self.names.add(name)
        return name

    def _drop_casts(self) -> None:
        """Takes out the Casts of the model that became copies."""
        held = {tensor.name for tensor in self.graph.outputs}
        held |= {name for node in self.view.nodes for body in bodies_of(node) for name in captured(body)}
        alias: dict[int, gs.Tensor] = {}
        nodes = []
        for node in self.graph.nodes:
            for position, tensor in enumerate(node.inputs):
                if id(tensor) in alias:
                    node.inputs[position] = alias[id(tensor)]
            if self._is_copy(node) and node.outputs[0].name not in held:
                alias[id(node.outputs[0])] = node.inputs[0]
            else:
                nodes.append(node)
        for node in self.graph.nodes:
            if node.op == "Cast" and node.outputs and id(node.outputs[0]) in alias:
                node.inputs.clear()
                node.outputs.clear()
        self.graph.nodes[:] = nodes

    def _is_copy(self, node: gs.Node) -> bool:
        if node.op != "Cast" or domain_of(node) or node.attrs.get("to") != HALF:
            return False
        before = {self.view.type_of(node.inputs[0]), self.view.type_of(node.outputs[0])}
        source = self.made.get(node.inputs[0].name) or element_type(node.inputs[0].dtype)
        return source == HALF and FLOAT in before

    def _declare_ends(self) -> None:
        """Writes the new type of inputs and outputs into what the model says of them."""
        if self.graph.source is None:
            return
        source = onnx.GraphProto()
        source.CopyFrom(self.graph.source)
        for value in (*source.input, *source.output):
            if value.name in self.made and value.name not in self.fixed:
                value.type.tensor_type.elem_type = HALF
        self.graph.source = source


def _names_in(body: gs.Graph) -> set[str]:
    names = {tensor.name for tensor in (*body.inputs, *body.outputs)}
    for node in body.nodes:
        names |= {tensor.name for tensor in (*node.inputs, *node.outputs)}
        for inner in bodies_of(node):
            names |= _names_in(inner)
    return names


def _cast(tensor: gs.Tensor, result: gs.Tensor, kind: int) -> gs.Node:
    return gs.Node("Cast", f"{result.name}_cast", {"to": kind}, [tensor], [result])


def _replace(uses: Iterable[_Use], tensor: gs.Tensor) -> None:
    for use in uses:
        use.operands[use.position] = tensor


def _set_result_type(node: gs.Node, is_scale: bool = False) -> None:
    """Makes a node that names the type of its result, or holds it, name float16."""
    if domain_of(node):
        return
    if node.op in ("Constant", "ConstantOfShape"):
        content = made_by(node)
        if content is not None:
            node.attrs.clear()
            node.attrs["value"] = gs.Constant("", _as_half(content, is_scale))
        return
    attribute = _RESULT_TYPE.get(node.op)
    if attribute is not None and node.attrs.get(attribute) == FLOAT:
        node.attrs[attribute] = HALF


def _clip_made(node: gs.Node) -> None:
    if domain_of(node) or node.op not in ("Constant", "ConstantOfShape"):
        return
    content = made_by(node)
    clipped = None if content is None else _clipped(content)
    if clipped is not None and clipped is not content:
        node.attrs.clear()
        node.attrs["value"] = gs.Constant("", clipped)


def _as_half(values: Array, is_scale: bool) -> Array:
    """Returns values as float16, nothing finite becoming infinite and no scale zero."""
    held = np.where(np.isinf(values), values, np.clip(values, -LARGEST, LARGEST))
    half = held.astype(np.float16)
    return np.asarray(np.maximum(half, np.float16(SMALLEST_NORMAL))) if is_scale else half


def _clipped(values: Array) -> Array:
    """Returns numbers that stand for infinity as the largest of float16, since what they make may be cast; or them."""
    beyond = outside(values)
    if not beyond.size or not stand_for_infinity(beyond):
        return values
    return np.where(np.isinf(values), values, np.clip(values, -LARGEST, LARGEST)).astype(values.dtype)
