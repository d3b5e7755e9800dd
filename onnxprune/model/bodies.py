"""Shapes behind If, Loop and Scan, which follow from walks over their bodies.

A shape is known where every run of the node gives it: the branches of an If agree, or what a Loop or Scan carries comes
out of the body as it went in. How often a body runs is not known, so the stacked outputs of a Loop are not either.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import onnx_graphsurgeon as gs

Shape = tuple[int, ...]


class Kind(NamedTuple):
    """Element type and shape of a tensor, 0 and ``None`` where unknown."""

    type: int
    shape: Shape | None


UNKNOWN = Kind(0, None)
Walk = Callable[[gs.Graph, Sequence[Kind]], list[Kind]]
"""Gives the outputs of a body for given inputs."""


def behind_bodies(node: gs.Node, inputs: Sequence[Kind], walk: Walk) -> list[Kind]:
    """Returns what is known about the outputs of a node with bodies; nothing for other nodes."""
    body = node.attrs.get("body")
    if node.op == "If":
        return _behind_branches([node.attrs.get(name) for name in ("then_branch", "else_branch")], walk)
    if not isinstance(body, gs.Graph):
        return []
    if node.op == "Loop":
        carried = _carried(body, 2, inputs[2:], [], walk)
        return carried[1 : len(inputs) - 1]
    return _behind_scan(node, body, inputs, walk) if node.op == "Scan" else []


def _behind_branches(branches: Sequence[object], walk: Walk) -> list[Kind]:
    if not all(isinstance(branch, gs.Graph) for branch in branches):
        return []
    first, second = (walk(branch, []) for branch in branches)
    return [left if left == right else UNKNOWN for left, right in zip(first, second, strict=False)]


def _behind_scan(node: gs.Node, body: gs.Graph, inputs: Sequence[Kind], walk: Walk) -> list[Kind]:
    count = int(node.attrs.get("num_scan_inputs", 0))
    states = len(inputs) - count
    if states < 0 or len(body.inputs) != len(inputs):  # before opset 9 there is a batch axis, and an input more
        return []
    axes = node.attrs.get("scan_input_axes") or [0] * count
    length, slices = None, []
    for kind, axis in zip(inputs[states:], axes, strict=False):
        shape = kind.shape
        if shape is None or not -len(shape) <= axis < len(shape):
            slices.append(Kind(kind.type, None))
            continue
        length = shape[axis]
        rest = list(shape)
        del rest[axis]
        slices.append(Kind(kind.type, tuple(rest)))
    found = _carried(body, 0, inputs[:states], slices, walk)
    stacked = found[states:]
    places = node.attrs.get("scan_output_axes") or [0] * len(stacked)
    return [*found[:states], *(_stacked(*pair, length) for pair in zip(stacked, places, strict=False))]


def _stacked(kind: Kind, axis: int, length: int | None) -> Kind:
    if kind.shape is None or length is None or not -len(kind.shape) - 1 <= axis <= len(kind.shape):
        return Kind(kind.type, None)
    shape = list(kind.shape)
    shape.insert(axis % (len(shape) + 1), length)
    return Kind(kind.type, tuple(shape))


def _carried(body: gs.Graph, extra: int, states: Sequence[Kind], others: Sequence[Kind], walk: Walk) -> list[Kind]:
    """Returns the outputs of a body. A state of which the shape changes from run to run counts as unknown.

    ``extra`` is the number of inputs before the states: the counter and the condition of a Loop, of which the condition
    is an output too.
    """
    before = [Kind(0, ())] * extra
    first = extra // 2
    assumed = list(states)
    for _ in range(2):
        found = walk(body, [*before, *assumed, *others])
        kept = [
            kind if kind == result else Kind(kind.type, None)
            for kind, result in zip(assumed, found[first : first + len(assumed)], strict=False)
        ]
        if len(kept) == len(assumed) and kept == assumed:
            return found
        assumed = [*kept, *([UNKNOWN] * (len(assumed) - len(kept)))]
    return []
