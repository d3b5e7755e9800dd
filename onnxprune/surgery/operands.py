"""Shape operands that have to follow removed channels: sizes, starts, ends, pads, repeats.

Exporters store such numbers in the file or compute them from other shapes. Numbers computed from the pruned axis follow
by themselves. A stored number is rewritten where nothing else reads it; anything else is scaled on the spot.
"""

from collections.abc import Mapping

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.channels.facts import Operand
from onnxprune.model.io import Graph, read_values, write_values
from onnxprune.model.shapes import Shapes, stored_tensor
from onnxprune.model.values import element_type

PASSING = {"Identity", "Cast", "Unsqueeze", "Squeeze", "Reshape"}


class Operands:
    """Edits the operands of one graph; new nodes are put in by :meth:`insert` when the walk over the graph is over."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._fresh: list[tuple[gs.Node, list[gs.Node]]] = []

    def follow(self, node: gs.Node, targets: Mapping[Operand, int], known: Shapes) -> None:
        """Makes the operands of a node say what they must, given what they say at present."""
        slots: dict[int, dict[int, tuple[int, int]]] = {}
        for where, target in targets.items():
            operand = node.inputs[where.slot] if where.slot < len(node.inputs) else None
            if operand is None or operand.name not in known.values:
                continue
            present = int(np.ravel(known.values[operand.name])[where.element])
            if present != target and not _implied(node, where.element, present, target, known):
                slots.setdefault(where.slot, {})[where.element] = (present, target)
        for slot, changes in slots.items():
            self._rewrite(node, slot, changes, known)

    def insert(self) -> None:
        """Puts the nodes that scale operands before those that read them."""
        if not self._fresh:
            return
        before: dict[int, list[gs.Node]] = {}
        for node, fresh in self._fresh:
            before.setdefault(id(node), []).extend(fresh)
        self._graph.nodes[:] = [item for node in self._graph.nodes for item in (*before.pop(id(node), ()), node)]

    def _rewrite(self, node: gs.Node, slot: int, changes: Mapping[int, tuple[int, int]], known: Shapes) -> None:
        operand = node.inputs[slot]
        values = np.array(known.values[operand.name])
        places = {element: self._locate(operand, element) for element in changes}
        for element, (_, target) in changes.items():
            values.ravel()[element] = target
        if isinstance(operand, gs.Constant) or stored_tensor_behind(operand) is not None:
            fresh: gs.Tensor = gs.Constant(self._unique(f"{operand.name}_sliced"), values)
            node.inputs[slot] = fresh
        elif all(place is not None for place in places.values()):
            for element, place in places.items():
                if place is not None:
                    constant, position = place
                    stored = np.array(read_values(constant))
                    stored.ravel()[position] = changes[element][1]
                    write_values(constant, stored)
            known.values[operand.name] = values
            return
        else:
            fresh = self._scaled(node, operand, changes, values)
            node.inputs[slot] = fresh
        known.values[fresh.name] = values
        known.shapes[fresh.name] = values.shape
        known.types[fresh.name] = element_type(values.dtype)

    def _scaled(
        self, node: gs.Node, operand: gs.Tensor, changes: Mapping[int, tuple[int, int]], values: np.ndarray
    ) -> gs.Tensor:
        """Multiplies and divides elements, exact also where they contain a factor known at run time only.

        An element that truncation made 0 cannot be scaled; the number that it must be is added.
        """
        factors, divisors, summands = np.ones_like(values), np.ones_like(values), np.zeros_like(values)
        for element, (present, target) in changes.items():
            if present:
                factors.ravel()[element], divisors.ravel()[element] = target, present
            else:
                summands.ravel()[element] = target
        tensors: list[gs.Tensor] = [operand]
        fresh = []
        steps = [("Mul", factors), ("Div", divisors), *([("Add", summands)] if summands.any() else [])]
        for op, numbers in steps:
            name = self._unique(f"{operand.name}_{op.lower()}")
            result = gs.Variable(name, values.dtype, list(values.shape))
            fresh.append(gs.Node(op, name, {}, [tensors[-1], gs.Constant(f"{name}_by", numbers)], [result]))
            tensors.append(result)
        self._fresh.append((node, fresh))
        return tensors[-1]

    def _locate(self, tensor: gs.Tensor, element: int) -> tuple[gs.Constant, int] | None:
        """Finds the stored number behind an element of an operand, if this operand is all that reads it."""
        while len(tensor.outputs) == 1 and tensor not in self._graph.outputs:
            if isinstance(tensor, gs.Constant):
                return tensor, element
            producer = tensor.inputs[0] if tensor.inputs else None
            if producer is None:
                return None
            if producer.op == "Constant":
                content = producer.attrs.get("value")
                return (content, element) if isinstance(content, gs.Constant) else None
            if producer.op in PASSING:
                tensor = producer.inputs[0]
            elif producer.op == "Concat":
                found = _part(producer, element)
                if found is None:
                    return None
                tensor, element = found
            else:
                return None
        return None

    def _unique(self, name: str) -> str:
        if not hasattr(self, "_names"):
            self._names = set(self._graph.tensors())
        while name in self._names:
            name += "_"
        self._names.add(name)
        return name


def _implied(node: gs.Node, element: int, present: int, target: int, known: Shapes) -> bool:
    """Whether a Reshape finds the size itself: -1 is the rest, 0 the size of the input at the same place."""
    if node.op != "Reshape" or (present == 0 and node.attrs.get("allowzero", 0)):
        return False
    source = known.shapes.get(node.inputs[0].name, ())
    return present == -1 or (present == 0 and element < len(source) and source[element] == target)


def stored_tensor_behind(tensor: gs.Tensor) -> np.ndarray | None:
    """Returns the content of a tensor that a Constant node writes."""
    return stored_tensor(tensor.inputs[0]) if tensor.inputs else None


def _part(concat: gs.Node, element: int) -> tuple[gs.Tensor, int] | None:
    for tensor in concat.inputs:
        size = _length(tensor)
        if size is None:
            return None
        if element < size:
            return tensor, element
        element -= size
    return None


def _length(tensor: gs.Tensor) -> int | None:
    if isinstance(tensor, gs.Constant):
        return int(np.prod(tensor.shape))
    stored = stored_tensor_behind(tensor)
    if stored is not None:
        return int(stored.size)
    if tensor.inputs and tensor.inputs[0].op == "Unsqueeze":
        return 1
    shape = tensor.shape
    return int(shape[0]) if shape is not None and len(shape) == 1 and isinstance(shape[0], int) else None
