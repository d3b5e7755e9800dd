"""Where Q and DQ go: which operators a target computes in integers, which tensors they share, and why others stay.

All candidates start as integers, and those give way that have no integers to read or nobody to read theirs, until
nothing changes. Operators with weights stay in any case: they are what is worth a conversion.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxprune.model.graph import overridable, read_outside
from onnxprune.model.io import Graph, read_values
from onnxprune.model.linear import Holders
from onnxprune.model.shapes import Shapes, node_name
from onnxprune.model.weights import STANDARD, Weight, weights_of
from onnxprune.quantize.targets import NO_KERNEL, Result, Role, Rule, Target

EXCLUDED = "it was left out by --include or --exclude"
COSTLY = "quantized, it costs more accuracy than --max-drop admits"
GIVEN = "its weights or bias are inputs of the model too, so that callers may give others"
COMPUTED = "its weights are computed, not stored"
ALONE = "what it reads or what reads it stays float, Q/DQ around it would only cost time"

Wanted = Callable[[str, str], bool]
"""Whether an operator, given by its name and the name of its weights, may be quantized."""


@dataclass(frozen=True, slots=True)
class Left:
    """A node that stays float, and why."""

    node: str
    reason: str


@dataclass(frozen=True, slots=True)
class Edge:
    """Slot of a node, given by its place in the graph."""

    node: int
    slot: int


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """Where Q/DQ pairs stand.

    Attributes:
        weights: Operators whose weights are integers.
        whole: Tensors of which every reader gets rounded numbers.
        read: Readers of rounded numbers by tensor, where others read the tensor as it is.
        stored: Stored operands of operators that compute from integers alone.
        scale_of: The tensor whose scale a tensor has, its own where nothing else is said.
        scaled: Tensors that are others times a number: the integers of those, on another scale.
        left: Nodes that the target knows and that stay float.
        eligible: Number of operators with weights.
    """

    weights: tuple[Weight, ...]
    whole: frozenset[str]
    read: Mapping[str, frozenset[Edge]]
    stored: tuple[Edge, ...]
    scale_of: Mapping[str, str] = field(default_factory=dict)
    scaled: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    left: tuple[Left, ...] = ()
    eligible: int = 0

    @property
    def tensors(self) -> list[str]:
        """Names of all computed tensors that are rounded."""
        return [*self.whole, *self.read]

    def scale(self, tensor: str) -> str:
        """Returns the tensor whose scale a tensor has, up to its factor."""
        tensor = self.scaled.get(tensor, (tensor, 1.0))[0]
        return self.scale_of.get(tensor, tensor)

    def factor(self, tensor: str) -> float:
        """Returns what the scale that a tensor has is multiplied with."""
        return self.scaled.get(tensor, (tensor, 1.0))[1]


def place(
    graph: Graph, shapes: Shapes, target: Target, wanted: Wanted | None = None, costly: Collection[str] = ()
) -> Placement:
    """Returns where Q/DQ pairs stand in a graph whose weights are stored tensors.

    Args:
        graph: The graph, which is not changed.
        shapes: Shapes and types of its tensors.
        target: What it runs on.
        wanted: Operators with weights that may be quantized; all by default.
        costly: Names of operators with weights that stay float for what they would cost.
    """
    return _Placing(graph, shapes, target, wanted, costly).result()


class _Placing:
    def __init__(
        self, graph: Graph, shapes: Shapes, target: Target, wanted: Wanted | None, costly: Collection[str]
    ) -> None:
        self._graph, self._shapes, self._target, self._costly = graph, shapes, target, frozenset(costly)
        self._nodes: list[gs.Node] = list(graph.nodes)
        self._holders = Holders(graph)
        self._place = {id(node): place for place, node in enumerate(self._nodes)}
        self._producer = {t.name: node for node in self._nodes for t in node.outputs if t.name}
        self._readers: dict[str, list[tuple[gs.Node, int]]] = {}
        for node in self._nodes:
            for slot, tensor in enumerate(node.inputs):
                self._readers.setdefault(tensor.name, []).append((node, slot))
        self._outside, self._given = read_outside(graph), overridable(graph)
        self._weights = {id(weight.node): weight for weight in weights_of(graph, shapes)}
        found = ((id(node), self._rule_of(node)) for node in self._nodes)
        self._rules = {key: rule for key, rule in found if rule is not None}
        self._reasons: dict[int, str] = {}
        self._live: set[int] = set()
        for node in self._nodes:
            rule = self._rule(node)
            if rule is not None:
                reason = self._refused(node, rule, wanted)
                self._reasons.update({} if reason is None else {id(node): reason})
                self._live.update(() if reason else (id(node),))

    def result(self) -> Placement:
        """Returns the placement."""
        while gone := [node for node in self._nodes if id(node) in self._live and not self._stays(node)]:
            self._live.difference_update(map(id, gone))
        scaled: dict[str, tuple[str, float]] = {}
        for node in self._living(Role.SCALE):
            slot, factor = self._factor(node) or (0, 1.0)
            root, before = scaled.get(node.inputs[slot].name, (node.inputs[slot].name, 1.0))
            scaled[node.outputs[0].name] = root, before * factor
        whole = {self._written(node).name for node in self._living() if self._writes(node)} - scaled.keys()
        whole |= {t.name for node in self._living(Role.MOVE) for t in node.outputs if self._writes(node) and t.name}
        read: dict[str, set[Edge]] = {}
        stored = []
        for node in self._living():
            for slot in self._slots(node):
                tensor, edge = node.inputs[slot], Edge(self._place[id(node)], slot)
                if self._holders.get(tensor) is not None:
                    stored.append(edge)
                elif tensor.name not in whole and tensor.name not in scaled:
                    read.setdefault(tensor.name, set()).add(edge)
        linear = [node for node in self._nodes if self._is_linear(node)]
        return Placement(
            tuple(self._weights[id(node)] for node in self._living(Role.MULTIPLY)),
            frozenset(whole),
            {name: frozenset(edges) for name, edges in read.items()},
            tuple(stored),
            self._shared({*whole, *read}),
            scaled,
            tuple(self._left()),
            len(linear),
        )

    def _rule(self, node: gs.Node) -> Rule | None:
        return self._rules.get(id(node))

    def _rule_of(self, node: gs.Node) -> Rule | None:
        rule = self._target.rules.get(node.op) if node.domain in STANDARD else None
        if rule is None or (rule.by_number is None and rule.role is not Role.SCALE):
            return rule
        readers = [reader.op for tensor in node.outputs for reader, _ in self._readers.get(tensor.name, ())]
        moved = any(self._target.rules.get(op, rule).role is Role.MOVE for op in readers)
        if self._factor(node) is not None and not moved:  # what moves integers has one scale on both sides
            return replace(rule, role=Role.SCALE)
        return rule if rule.role is not Role.SCALE else None

    def _factor(self, node: gs.Node) -> tuple[int, float] | None:
        """Returns the slot of the data, and the positive stored number that it is multiplied with."""
        for slot in (0, 1) if node.op == "Mul" else (0,):
            held = self._holders.get(node.inputs[1 - slot]) if len(node.inputs) == 2 else None
            if held is not None and int(np.prod(held.shape)) == 1:
                number = float(read_values(held).reshape(-1)[0])
                number = 1 / number if node.op == "Div" and number else number
                return (slot, number) if np.isfinite(number) and number > 0 else None
        return None

    def _living(self, *roles: Role) -> Iterator[gs.Node]:
        for node in self._nodes:
            rule = self._rule(node)
            if rule is not None and id(node) in self._live and (not roles or rule.role in roles):
                yield node

    def _is_linear(self, node: gs.Node) -> bool:
        return id(node) in self._weights

    def _refused(self, node: gs.Node, rule: Rule, wanted: Wanted | None) -> str | None:
        """Returns why a node cannot be computed in integers, as far as it alone tells."""
        known = self._shapes.types
        floats = [t.name for t in (*node.inputs, *node.outputs) if t.name and t.name in known]
        if rule.role is not Role.MULTIPLY:
            data = [tensor.name for tensor in (*node.inputs[:1], *node.outputs[:1])]
            if not data or any(known.get(name) != onnx.TensorProto.FLOAT for name in data):
                return "it does not compute in float32"
            return None
        weight = self._weights.get(id(node))
        if weight is None:
            return COMPUTED
        if weight.source.scale is not None:
            return "its weights are quantized already"
        if not self._given.isdisjoint((weight.source.name, *(tensor.name for tensor in weight.node.inputs))):
            return GIVEN
        if any(known[name] != onnx.TensorProto.FLOAT for name in floats):
            return "it does not compute in float32"
        if wanted is not None and not wanted(weight.operator, weight.source.name):
            return EXCLUDED
        if weight.operator in self._costly:
            return COSTLY
        return self._too_narrow(weight, rule)

    def _too_narrow(self, weight: Weight, rule: Rule) -> str | None:
        groups, rows, columns = weight.shape
        inputs, outputs = groups * rows // weight.spread, groups * columns
        if weight.form.weight == 0:
            return "its weights are on the left of the product, where there is no scale for each output"
        if not rule.pays(inputs, outputs):
            return f"{inputs} inputs and {outputs} outputs are too few: the target gains from {rule.least} on"
        return None

    def _stays(self, node: gs.Node) -> bool:
        """Whether a node still has integers to read, and somebody to read its own."""
        rule = self._rules[id(node)]
        if rule.role is Role.MULTIPLY or rule.role is Role.SHARE:
            return True
        if rule.spare_linear:
            return bool(self._slots(node)) and any(self._spared(node, slot) for slot in range(len(node.inputs)))
        if rule.role is Role.CLIP:
            return self._absorbed(node)
        arrive = [self._is_rounded(node.inputs[slot].name) for slot in self._slots(node)]
        after = self._readers_of(node)
        if rule.role in (Role.MOVE, Role.SCALE):
            return self._arrives(node.inputs[self._slots(node)[0]].name) and any(map(self._wants, after))
        return any(arrive) and any(map(self._wants, after))

    def _absorbed(self, node: gs.Node) -> bool:
        """Whether a clip is done by the rounding behind it: what makes its data makes it for the clip alone."""
        before = self._producer.get(node.inputs[0].name)
        if before is None or id(before) not in self._live or before.outputs[0].name in self._outside:
            return False
        rule = self._rules[id(before)]
        if rule.role not in (Role.MULTIPLY, Role.JOIN) or len(self._readers.get(node.inputs[0].name, ())) != 1:
            return False
        if any(self._holders.get(tensor) is None for tensor in node.inputs[1:] if tensor.name):
            return False  # bounds that are computed
        return rule.result is not Result.FLOATS

    def _written(self, node: gs.Node) -> gs.Tensor:
        """Returns what a node writes, behind the clip that is part of its rounding."""
        result = node.outputs[0]
        for reader, _ in self._readers.get(result.name, ())[:1]:
            rule = self._rule(reader)
            if rule is not None and rule.role is Role.CLIP and id(reader) in self._live and self._absorbed(reader):
                return reader.outputs[0]
        return result

    def _writes(self, node: gs.Node) -> bool:
        """Whether a live node writes integers."""
        rule = self._rules[id(node)]
        if rule.role in (Role.CLIP, Role.SHARE) or rule.result is Result.FLOATS:
            return False
        if rule.result is Result.INTEGERS:
            return True
        result = self._written(node)
        if result is not node.outputs[0]:
            return True  # a product with a clip behind it is computed in integers to its end, or not at all
        after = self._readers.get(result.name, [])
        return bool(after) and result.name not in self._outside and all(map(self._wants, after))

    def _arrives(self, name: str) -> bool:
        """Whether a tensor is written in integers."""
        node = self._producer.get(name)
        if node is None or id(node) not in self._live:
            return False
        rule = self._rules[id(node)]
        if rule.role is Role.CLIP:
            return self._absorbed(node) and self._writes(self._producer[node.inputs[0].name])
        return rule.role in (Role.MOVE, Role.SCALE) or (self._written(node).name == name and self._writes(node))

    def _is_rounded(self, name: str) -> bool:
        """Whether a tensor is integers for some reader in any case."""
        node = self._producer.get(name)
        weighed = any(self._is_linear(reader) and id(reader) in self._live for reader, _ in self._readers.get(name, ()))
        if node is not None and self._rule(node) is not None and self._rules[id(node)].result is Result.EITHER:
            return weighed
        return weighed or self._arrives(name)

    def _readers_of(self, node: gs.Node) -> list[tuple[gs.Node, int]]:
        rule = self._rules[id(node)]
        names = [t.name for t in node.outputs] if rule.role is Role.MOVE else [self._written(node).name]
        return [reader for name in names for reader in self._readers.get(name, ())]

    def _wants(self, reader: tuple[gs.Node, int]) -> bool:
        node, slot = reader
        return id(node) in self._live and slot in self._slots(node)

    def _slots(self, node: gs.Node) -> list[int]:
        """Returns the inputs that a node reads in integers."""
        rule = self._rules[id(node)]
        if rule.role in (Role.CLIP, Role.SHARE):
            return []
        if rule.role is Role.MULTIPLY:
            weight = self._weights.get(id(node))
            return [] if weight is None else [weight.form.data]
        if rule.role is Role.MOVE:
            return [0]
        if rule.role is Role.SCALE:
            factor = self._factor(node)
            return [] if factor is None else [factor[0]]
        slots = [slot for slot, tensor in enumerate(node.inputs) if tensor.name]
        if rule.spare_linear:  # what is stored or spread is a bias, which stays float in the kernel that it is part of
            shapes = {self._shapes.shapes.get(tensor.name) for tensor in node.inputs}
            return (
                []
                if len(shapes - {None}) > 1
                else [s for s in slots if not self._spared(node, s) and self._holders.get(node.inputs[s]) is None]
            )
        return slots

    def _spared(self, node: gs.Node, slot: int) -> bool:
        """Whether an input is what an operator with weights makes for this node alone; of several, the deepest."""
        own = [number for number, tensor in enumerate(node.inputs) if self._made_for_one(tensor.name)]
        depths = [(self._depth(node.inputs[number].name), -number) for number in own]
        return slot in own and own[int(np.argmax([depth * 1000 + tie for depth, tie in depths]))] == slot

    def _made_for_one(self, name: str) -> bool:
        node = self._producer.get(name)
        return node is not None and id(node) in self._live and self._is_linear(node) and len(self._readers[name]) == 1

    def _depth(self, name: str) -> int:
        """Returns the number of operators with weights that follow each other alone up to a tensor."""
        depth, node = 0, self._producer.get(name)
        while node is not None and node.inputs and len(self._readers.get(node.outputs[0].name, ())) == 1:
            depth += self._is_linear(node)
            node = self._producer.get(node.inputs[0].name)
        return depth

    def _shared(self, rounded: set[str]) -> dict[str, str]:
        """Returns whose scale tensors have that moves connect."""
        parent: dict[str, str] = {}

        def root(name: str) -> str:
            while parent.get(name, name) != name:
                name = parent[name]
            return name

        for node in self._living():
            rule = self._rules[id(node)]
            if rule.one_scale:
                inputs = node.inputs[: 1 if rule.role is Role.MOVE else None]
                names = [t.name for t in (*inputs, *node.outputs) if t.name in rounded]
                parent.update({root(name): root(names[0]) for name in names[1:] if root(name) != root(names[0])})
        return {name: root(name) for name in parent}

    def _left(self) -> Iterator[Left]:
        for node in self._nodes:
            bodies: Sequence[gs.Graph] = [value for value in node.attrs.values() if isinstance(value, gs.Graph)]
            inside = sum(other.op in self._target.rules for body in bodies for other in body.nodes)
            if inside:
                yield Left(node_name(node), f"{inside} operators inside it stay float: bodies are not looked into")
            if id(node) in self._live or node.domain not in STANDARD:
                continue
            if node.op in self._target.floats:
                yield Left(node_name(node), self._target.floats[node.op])
            elif self._is_linear(node) or (self._computes(node) and self._is_float(node)):
                yield Left(node_name(node), self._reasons.get(id(node), ALONE if self._rule(node) else NO_KERNEL))

    def _computes(self, node: gs.Node) -> bool:
        rule = self._target.rules.get(node.op)
        return rule is not None and rule.role in (Role.JOIN, Role.MULTIPLY)

    def _is_float(self, node: gs.Node) -> bool:
        return self._shapes.types.get(node.outputs[0].name) == onnx.TensorProto.FLOAT
