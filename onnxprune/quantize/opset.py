"""A newer operator set, only as far as needed.

onnx converts whole models, weights and all, and skips bodies. Here it converts one node at a time, and only nodes whose
definition changed: weights are never copied, operators of other domains never seen, and a failure names its node. The
converter is told the rank of what a node reads, not its lengths, so that it cannot store any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import defs, helper, version_converter

from onnxprune.errors import ModelError, UnsupportedOpError
from onnxprune.model.exporter import FIRST_IR_WITH_OWN_INITIALIZERS
from onnxprune.model.graph import Graph, graph_tensors
from onnxprune.model.importer import DEFAULT_DOMAINS, import_model
from onnxprune.model.inline import without_functions
from onnxprune.model.io import read_values
from onnxprune.model.shapes import Shapes, node_name, node_proto, opset_of
from onnxprune.model.sizes import infer_shapes
from onnxprune.model.values import element_type

OLDEST = 7
"""The opset from which on operators broadcast by themselves; to convert older ones, lengths must be known."""

AXIS_BECOMES_ONE = 13
"""The opset in which Softmax and its kin stopped to flatten what they read."""


def raised(graph: Graph, opset: int) -> Graph:
    """Returns a copy of a graph that imports at least this version of the standard operators and computes the same.

    Names, weights, metadata and operators of other domains stay. The IR version rises to what the opset needs at least.

    Raises:
        UnsupportedOpError: a node has no equal in the newer opset.
        ModelError: this version of onnx does not know the opset.
    """
    before = opset_of(graph, "")
    if before >= opset:
        return graph.copy()
    if opset > defs.onnx_opset_version():
        known = f"the onnx package knows opset {defs.onnx_opset_version()} at most"
        raise ModelError(f"{known} and {opset} is needed: upgrade onnx")
    result = without_functions(graph).copy()
    _Raise(result, before, opset).run()
    _raise_header(result, opset)
    return result


def _raise_header(graph: Graph, opset: int) -> None:
    needed = helper.find_min_ir_version_for([helper.make_opsetid("", opset)])
    before = graph.ir_version or needed
    graph.ir_version = max(before, needed)
    if before < FIRST_IR_WITH_OWN_INITIALIZERS <= graph.ir_version and graph.source is not None:
        # There, stored tensors had to be listed among the inputs; from now on that would let callers replace them.
        stored = {tensor.name for tensor in graph.source.initializer}
        source = onnx.GraphProto()
        source.CopyFrom(graph.source)
        del source.input[:]
        source.input.extend(value for value in graph.source.input if value.name not in stored)
        graph.source = source


class _Raise:
    """One conversion of a graph and of the bodies in it."""

    def __init__(self, graph: Graph, before: int, after: int) -> None:
        self.graph, self.before, self.after = graph, before, after
        self.shapes = infer_shapes(graph)
        self.taken = {tensor.name for body in all_graphs(graph) for tensor in graph_tensors(body)}
        self.known: dict[bytes, Graph] = {}

    def run(self) -> None:
        """Edits the graph in place."""
        for body in list(all_graphs(self.graph)):
            body.nodes[:] = [made for node in list(body.nodes) for made in self._converted(node)]
            body.opset = self.after
            for entry in body.import_domains or ():
                if entry.domain in DEFAULT_DOMAINS:
                    entry.version = self.after

    def _converted(self, node: gs.Node) -> list[gs.Node]:
        if node.domain not in (None, *DEFAULT_DOMAINS) or node.op == "Constant" or not self._changed(node):
            return [node]
        if any(isinstance(value, gs.Graph) for value in node.attrs.values()):
            if node.op == "Scan" and self.before < 9:
                raise self._error(node, "its batch axis is gone from opset 9 on")
            return [node]  # If, Loop and Scan only learned to carry more types
        for applies, reason in REFUSED:
            if applies(node, self.before, self.after):
                raise self._error(node, reason)
        return self._spliced(node, self._by_onnx(node))

    def _changed(self, node: gs.Node) -> bool:
        try:
            old, new = (defs.get_schema(node.op, version) for version in (self.before, self.after))
        except defs.SchemaError:
            return False  # a local function, or unknown to onnx
        return old.since_version != new.since_version

    def _by_onnx(self, node: gs.Node) -> Graph:
        """Returns the graph that onnx makes of one node, its tensors numbered; of nodes that are alike once."""
        proto = node_proto(node)
        proto.ClearField("domain")
        proto.ClearField("name")
        names = self._numbered(node)
        for ends in (proto.input, proto.output):
            ends[:] = [names.get(name, "") for name in ends]
        renamed = LIKE_SOFTMAX.get(node.op) if self.before < AXIS_BECOMES_ONE <= self.after else None
        proto.op_type = renamed or node.op
        inputs = [self._declared(tensor, names) for tensor in {t.name: t for t in node.inputs if t.name}.values()]
        outputs = [onnx.ValueInfoProto(name=name) for name in proto.output if name]
        graph = helper.make_graph([proto], "node", inputs, outputs)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.before)], ir_version=8)
        key = model.SerializeToString(deterministic=True)
        if key in self.known:
            return self.known[key]
        try:
            converted = version_converter.convert_version(model, self.after)
        except (RuntimeError, ValueError, TypeError) as error:
            raise self._error(node, f"onnx cannot convert it ({_reason(error)})") from error
        for made in converted.graph.node:
            if made.op_type == renamed:
                made.op_type = node.op
        self.known[key] = import_model(converted)
        return self.known[key]

    def _numbered(self, node: gs.Node) -> dict[str, str]:
        """Returns names for the tensors of a node that are the same for all nodes that look alike."""
        names = dict.fromkeys(tensor.name for tensor in (*node.inputs, *node.outputs) if tensor.name)
        return {name: f"tensor_{number}" for number, name in enumerate(names)}

    def _declared(self, tensor: gs.Tensor, names: Mapping[str, str]) -> onnx.ValueInfoProto:
        kind, shape = self._kind(tensor), self.shapes.shapes.get(tensor.name)
        if not kind or shape is None:
            return onnx.ValueInfoProto(name=names[tensor.name])
        sizes = shape if self.before < OLDEST else [None] * len(shape)
        return helper.make_tensor_value_info(names[tensor.name], kind, sizes)

    def _kind(self, tensor: gs.Tensor) -> int:
        return self.shapes.types.get(tensor.name) or element_type(tensor.dtype)

    def _spliced(self, node: gs.Node, made: Graph) -> list[gs.Node]:
        """Returns what onnx made, between the tensors of the node that it stands for."""
        names = self._numbered(node)
        known = {names[tensor.name]: tensor for tensor in (*node.inputs, *node.outputs) if tensor.name}
        kind = self._kind(node.inputs[0]) if node.inputs else 0
        mode = _resize_mode(node, self.shapes) if self.before <= 10 < self.after else {}
        node_outputs = list(node.outputs)
        node.inputs.clear()
        node.outputs.clear()
        like, nodes = node_outputs[0].name, []
        for one in made.nodes:
            if one.op == "Constant":
                known[one.outputs[0].name] = self._stored(node, next(iter(one.attrs.values())), kind, like)
                continue
            for tensor in (*one.inputs, *one.outputs):
                if tensor.name and tensor.name not in known:
                    is_stored = isinstance(tensor, gs.Constant)
                    known[tensor.name] = (
                        self._stored(node, tensor, kind, like) if is_stored else gs.Variable(self._fresh(like))
                    )
            inputs, outputs = (
                [known.get(tensor.name) or gs.Variable.empty() for tensor in ends] for ends in (one.inputs, one.outputs)
            )
            attributes = {**one.attrs, **mode} if one.op == "Resize" else dict(one.attrs)
            name = node.name if not node.name or outputs[0] is node_outputs[0] else f"{node.name}_{one.op}"
            nodes.append(gs.Node(one.op, name, attributes, inputs, outputs, node.domain))
        return nodes

    def _stored(self, node: gs.Node, made: gs.Constant, kind: int, like: str) -> gs.Constant:
        values = read_values(made)
        if node.op in FOLLOWS_DATA and values.dtype == np.float32 and kind:
            values = values.astype(helper.tensor_dtype_to_np_dtype(kind))
        return gs.Constant(self._fresh(like), values)

    def _fresh(self, like: str) -> str:
        number = 0
        while (name := f"{like}_raised_{number}") in self.taken:
            number += 1
        self.taken.add(name)
        return name

    def _error(self, node: gs.Node, reason: str) -> UnsupportedOpError:
        what = f"{node.op} '{node_name(node)}' of opset {self.before} cannot be raised to opset {self.after}"
        return UnsupportedOpError(f"{what}, {reason}: export the model at opset {self.after} or newer")


def all_graphs(graph: gs.Graph) -> Iterator[gs.Graph]:
    """Yields a graph and the bodies in it, at any depth."""
    yield graph
    for node in graph.nodes:
        for value in node.attrs.values():
            if isinstance(value, gs.Graph):
                yield from all_graphs(value)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return (text.rpartition("failed: ")[2] or text)[:200].rstrip(". ")


# What the converter gets wrong or cannot express.

LIKE_SOFTMAX = {"Hardmax": "Softmax"}
"""Operators whose axis changes its meaning as that of another does, where the converter forgets them."""

FOLLOWS_DATA = ("Clip", "Dropout", "Pad")
"""Attributes that become inputs of the type of the data, and not always float32."""


def _resize_mode(node: gs.Node, shapes: Shapes) -> dict[str, str]:
    """Returns how Upsample, and Resize of opset 10, find the place of an element; later the default is another.

    Where they shrink, ONNX Runtime takes the nearest from above.
    """
    if node.op not in ("Upsample", "Resize"):
        return {}
    result = {"coordinate_transformation_mode": "asymmetric"}
    if (node.attrs.get("mode") or "nearest") == "nearest":
        scales = node.attrs.get("scales")
        if scales is None and len(node.inputs) > 1:
            scales = shapes.values.get(node.inputs[1].name)
        shrinks = scales is not None and bool((np.asarray(scales) < 1).any())
        result["nearest_mode"] = "ceil" if shrinks else "floor"
    return result


def _trains(node: gs.Node, before: int, after: int) -> bool:
    # Before opset 14, several outputs say that a BatchNormalization is in training.
    return node.op == "BatchNormalization" and before < 14 <= after and sum(bool(t.name) for t in node.outputs) > 1


def _groups(node: gs.Node, before: int, after: int) -> bool:
    return node.op == "GroupNormalization" and before < 21 <= after


REFUSED: tuple[tuple[Callable[[gs.Node, int, int], bool], str], ...] = (
    (_trains, "because it is in training mode"),
    (_groups, "because it scales whole groups, and later versions scale channels"),
)
