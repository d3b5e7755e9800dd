"""Concrete shapes of every tensor, and the values of shape arithmetic, for one choice of input sizes.

One walk in graph order: constants and shape arithmetic are evaluated, everything else goes through ONNX's own shape
inference, node by node. Exported graphs compute the operands of Reshape and its kin; knowing their values, and which
axis each element comes from, is what lets the channel engine edit them.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from onnxprune.channels.facts import Axis
from onnxprune.model.bodies import Kind, behind_bodies
from onnxprune.model.graph import captured
from onnxprune.model.io import read_values
from onnxprune.model.values import element_type
from onnxprune.ops import NodeView, Operator, Value, operator

LOG = logging.getLogger("onnxprune")
LARGEST_VALUE = 4096
"""Elements above which a constant is a weight and not part of shape arithmetic."""

_NOTHING: frozenset[Axis] = frozenset()
_union = np.frompyfunc(lambda left, right: left | right, 2, 1)

Array = NDArray[Any]
Shape = tuple[int, ...]


@dataclass(slots=True)
class Shapes:
    """What is known about tensors, by name.

    ``types`` are ONNX element types; ``values`` the known contents; ``stored`` the names whose content comes from
    constants alone; ``origins`` which axes' lengths each element of a value was computed from.
    """

    shapes: dict[str, Shape] = field(default_factory=dict)
    types: dict[str, int] = field(default_factory=dict)
    values: dict[str, Array] = field(default_factory=dict)
    stored: set[str] = field(default_factory=set)
    origins: dict[str, Array] = field(default_factory=dict)

    def view(self, node: gs.Node, opset: int) -> NodeView:
        """Returns the node as a rule sees it; tensors of unknown shape count as absent."""
        inputs = tuple(self._value(tensor.name) for tensor in node.inputs)
        outputs = tuple(self._value(tensor.name) for tensor in node.outputs)
        return NodeView(node_name(node), node.op, opset, node.attrs, inputs, outputs)

    def _value(self, name: str) -> Value | None:
        shape = self.shapes.get(name)
        return None if shape is None else Value(name, shape, self.values.get(name), name in self.stored)


def node_name(node: gs.Node) -> str:
    """Returns the node's name, or its first output's where it has none."""
    return str(node.name or next((tensor.name for tensor in node.outputs if tensor.name), node.op))


def opset_of(graph: gs.Graph, domain: str | None) -> int:
    """Returns the version of an operator set that the graph imports."""
    wanted = "" if domain in (None, "ai.onnx") else domain
    for entry in graph.import_domains or ():
        if ("" if entry.domain == "ai.onnx" else entry.domain) == wanted:
            return int(entry.version)
    return int(graph.opset) if wanted == "" else 1


def stored_tensor(node: gs.Node) -> Array | None:
    """Returns the content of a Constant node, whichever attribute holds it."""
    if node.op != "Constant" or not node.attrs:
        return None
    name, content = next(iter(node.attrs.items()))
    if isinstance(content, gs.Constant):
        return read_values(content)
    kinds: dict[str, Any] = {
        "value_int": np.int64,
        "value_ints": np.int64,
        "value_float": np.float32,
        "value_floats": np.float32,
    }
    return np.asarray(content, kinds[name]) if name in kinds else None


class ShapeWalk:
    """One walk over a graph. ``before`` is called ahead of every node and may edit it."""

    def __init__(
        self,
        graph: gs.Graph,
        sizes: Mapping[str, Shape],
        before: Callable[[gs.Node, Shapes], None] | None = None,
    ) -> None:
        self.graph, self.before, self.known = graph, before, Shapes()
        self._symbols: dict[str, int] = {}
        self._schemas: dict[tuple[str, str], onnx.defs.OpSchema | None] = {}
        self._opsets = list(graph.import_domains or [helper.make_opsetid("", graph.opset)])
        for tensor in graph.inputs:
            self._add_input(tensor, sizes.get(tensor.name))

    def run(self) -> Shapes:
        """Walks over every node and returns what is known."""
        for node in self.graph.nodes:
            for tensor in node.inputs:
                if isinstance(tensor, gs.Constant) and tensor.name not in self.known.shapes:
                    self._add_constant(tensor)
            if self.before is not None:
                self.before(node, self.known)
                for tensor in node.inputs:
                    if isinstance(tensor, gs.Constant) and tensor.name not in self.known.shapes:
                        self._add_constant(tensor)
            self._visit(node)
        return self.known

    def _add_input(self, tensor: gs.Variable, shape: Shape | None) -> None:
        self.known.types[tensor.name] = element_type(tensor.dtype)
        if shape is None:
            return
        self.known.shapes[tensor.name] = shape
        for declared, size in zip(tensor.shape or (), shape, strict=False):
            if isinstance(declared, str) and declared.strip("?"):
                self._symbols.setdefault(declared, size)

    def _add_constant(self, tensor: gs.Constant) -> None:
        shape = tuple(int(size) for size in tensor.shape)
        self.known.types[tensor.name] = element_type(tensor.dtype)
        self.known.shapes[tensor.name] = shape
        if int(np.prod(shape)) <= LARGEST_VALUE:
            self._set_value(tensor.name, read_values(tensor), stored=True)

    def _set_value(self, name: str, value: Array, *, stored: bool) -> None:
        self.known.values[name] = value
        self.known.shapes[name] = value.shape
        if stored:
            self.known.stored.add(name)

    def _visit(self, node: gs.Node) -> None:
        knowledge = operator(node.op, node.domain)
        if node.op == "Constant" and (content := stored_tensor(node)) is not None:
            self.known.types[node.outputs[0].name] = helper.np_dtype_to_tensor_dtype(content.dtype)
            self.known.shapes[node.outputs[0].name] = content.shape
            if content.size <= LARGEST_VALUE:
                self._set_value(node.outputs[0].name, content, stored=True)
            return
        self._infer(node)
        if knowledge.values is not None:
            self._evaluate(node, knowledge)

    def _evaluate(self, node: gs.Node, knowledge: Operator) -> bool:
        """Computes the node's outputs where all it reads is known; the lengths that Shape reads are known too."""
        known = self.known
        found = self._lengths(node) if node.op in ("Shape", "Size") else self._known_inputs(node)
        if found is None or knowledge.values is None:
            return False
        inputs, origins, stored = found
        view = known.view(node, opset_of(self.graph, node.domain))
        if any(value is not None and math.prod(value.shape) > LARGEST_VALUE for value in view.outputs):
            return False
        try:
            with np.errstate(all="ignore"):
                outputs = knowledge.values(view, inputs)
        except (ValueError, IndexError, TypeError, ZeroDivisionError) as error:
            LOG.debug("cannot evaluate %s: %s", node_name(node), error)
            return False
        if any(output.size > LARGEST_VALUE for output in outputs):
            return False
        traced = self._trace(view, knowledge, inputs, origins, outputs)
        for position, (tensor, output) in enumerate(zip(node.outputs, outputs, strict=False)):
            self._set_value(tensor.name, output, stored=stored)
            if traced is not None:
                known.origins[tensor.name] = traced[position]
        return True

    def _lengths(self, node: gs.Node) -> tuple[list[Array], list[Array | None], bool] | None:
        name = node.inputs[0].name
        shape = self.known.shapes.get(name)
        if shape is None:
            return None
        axes = _objects([frozenset([Axis(name, dim)]) for dim in range(len(shape))])
        return [np.array(shape, np.int64)], [axes], False

    def _known_inputs(self, node: gs.Node) -> tuple[list[Array], list[Array | None], bool] | None:
        known = self.known
        names = [tensor.name for tensor in node.inputs if tensor.name]
        if any(name not in known.values for name in names):
            return None
        origins = [known.origins.get(name) for name in names]
        return [known.values[name] for name in names], origins, all(name in known.stored for name in names)

    def _trace(
        self, view: NodeView, knowledge: Operator, inputs: list[Array], origins: list[Array | None], outputs: Any
    ) -> list[Array] | None:
        if all(origin is None for origin in origins):
            return None
        if knowledge.moves and knowledge.values is not None:
            full = [
                np.full(value.shape, _NOTHING, object) if origin is None else origin
                for value, origin in zip(inputs, origins, strict=True)
            ]
            moved = knowledge.values(view, full if view.op == "Concat" else [full[0], *inputs[1:]])
            return [np.asarray(item, object) for item in moved]
        traced = [origin for origin in origins if origin is not None]
        everything, shape = traced[0], outputs[0].shape
        try:
            for item in traced[1:]:
                everything = _union(everything, item)
            spread = np.broadcast_to(np.asarray(everything, object), shape)
        except ValueError:
            merged = frozenset().union(*(axes for item in traced for axes in item.ravel()))
            spread = np.full(shape, merged, object)
        return [spread for _ in outputs]

    def _infer(self, node: gs.Node) -> None:
        """Infers the output types of one node with ONNX's own rules, or takes what the file says about them."""
        types = self._inferred(node)
        for tensor in node.outputs:
            inferred = types.get(tensor.name)
            if inferred is not None and inferred.HasField("tensor_type"):
                self._record(tensor.name, inferred.tensor_type)
        self._apply_shape_rule(node)
        for tensor, kind in zip(node.outputs, self._behind_bodies(node), strict=False):
            if tensor.name and kind.shape is not None:
                self.known.types[tensor.name] = kind.type
                self.known.shapes[tensor.name] = kind.shape
        for tensor in node.outputs:
            if tensor.name and tensor.name not in self.known.shapes:
                self._record_declared(tensor)

    def _behind_bodies(self, node: gs.Node) -> list[Kind]:
        if not any(isinstance(value, gs.Graph) for value in node.attrs.values()):
            return []
        return behind_bodies(node, [self._kind(tensor) for tensor in node.inputs], self._walk_body)

    def _kind(self, tensor: gs.Tensor) -> Kind:
        return Kind(self.known.types.get(tensor.name, 0), self.known.shapes.get(tensor.name))

    def _walk_body(self, body: gs.Graph, inputs: Sequence[Kind]) -> list[Kind]:
        """Returns the outputs of a body that reads what is known outside of it."""
        inner = ShapeWalk(body, {})
        inner._symbols.update(self._symbols)
        outer = captured(body)
        for content in ("types", "shapes", "values"):
            source = getattr(self.known, content)
            getattr(inner.known, content).update((name, source[name]) for name in outer if name in source)
        for tensor, kind in zip(body.inputs, inputs, strict=False):
            inner.known.types[tensor.name] = kind.type or inner.known.types[tensor.name]
            if kind.shape is not None:
                inner.known.shapes[tensor.name] = kind.shape
        inner.run()
        return [inner._kind(tensor) for tensor in body.outputs]

    def _apply_shape_rule(self, node: gs.Node) -> None:
        """Takes the shapes that onnx does not infer from the operator's own rule."""
        rule = operator(node.op, node.domain).shapes
        missing = [tensor for tensor in node.outputs if tensor.name and tensor.name not in self.known.shapes]
        if rule is None or not missing:
            return
        try:
            shapes = rule(self.known.view(node, opset_of(self.graph, node.domain)))
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            LOG.debug("no shapes for %s: %s", node_name(node), error)
            return
        for tensor, shape in zip(node.outputs, shapes, strict=False):
            if tensor in missing:
                inferred = self.known.types.get(tensor.name, 0)
                self.known.types[tensor.name] = inferred or self.known.types[node.inputs[0].name]
                self.known.shapes[tensor.name] = shape

    def _inferred(self, node: gs.Node) -> dict[str, onnx.TypeProto]:
        schema = self._schema(node)
        known = self.known
        present = {tensor.name for tensor in node.inputs if tensor.name}
        has_body = any(isinstance(value, gs.Graph) for value in node.attrs.values())
        if schema is None or has_body or any(known.types.get(name, 0) == 0 for name in present):
            return {}
        types = {name: helper.make_tensor_type_proto(known.types[name], known.shapes.get(name)) for name in present}
        data = {name: numpy_helper.from_array(known.values[name], name) for name in present if name in known.values}
        try:
            return onnx.shape_inference.infer_node_outputs(
                schema, node_proto(node), types, data, opset_imports=self._opsets, ir_version=8
            )
        except (
            onnx.shape_inference.InferenceError,
            onnx.checker.ValidationError,
            RuntimeError,
            ValueError,
            TypeError,
        ) as error:
            LOG.debug("no shapes for %s: %s", node_name(node), error)
            return {}

    def _record(self, name: str, tensor_type: onnx.TypeProto.Tensor) -> None:
        self.known.types[name] = tensor_type.elem_type
        if tensor_type.HasField("shape"):
            dims = tensor_type.shape.dim
            if all(dim.HasField("dim_value") for dim in dims):
                self.known.shapes[name] = tuple(dim.dim_value for dim in dims)

    def _record_declared(self, tensor: gs.Variable) -> None:
        if tensor.dtype is not None and self.known.types.get(tensor.name, 0) == 0:
            self.known.types[tensor.name] = element_type(tensor.dtype)
        if tensor.shape is None:
            return
        shape = [self._symbols.get(size) if isinstance(size, str) else size for size in tensor.shape]
        if all(isinstance(size, int) and size >= 0 for size in shape):
            self.known.shapes[tensor.name] = tuple(int(size) for size in shape if size is not None)

    def _schema(self, node: gs.Node) -> onnx.defs.OpSchema | None:
        key = (node.op, node.domain or "")
        if key not in self._schemas:
            try:
                version = opset_of(self.graph, node.domain)
                self._schemas[key] = onnx.defs.get_schema(node.op, version, node.domain or "")
            except onnx.defs.SchemaError:
                self._schemas[key] = None
        return self._schemas[key]


def node_proto(node: gs.Node) -> onnx.NodeProto:
    """Returns a node for shape inference, without the bodies of control flow."""
    attributes = {}
    for name, value in node.attrs.items():
        if isinstance(value, gs.Constant):
            attributes[name] = numpy_helper.from_array(read_values(value), name)
        elif not isinstance(value, gs.Graph) and not (isinstance(value, list) and not value):
            attributes[name] = value
    return helper.make_node(
        node.op,
        [tensor.name for tensor in node.inputs],
        [tensor.name for tensor in node.outputs],
        node.name,
        domain=node.domain or "",
        **attributes,
    )


def _objects(items: list[frozenset[Axis]]) -> Array:
    array = np.empty(len(items), object)
    array[:] = items
    return array
