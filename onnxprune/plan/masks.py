"""Which weights are masked, how many zeros each tensor gets, and what stays dense and why."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.errors import PlanError
from onnxprune.model.graph import captured, read_by
from onnxprune.model.io import read_values
from onnxprune.model.linear import Holders
from onnxprune.model.shapes import Shapes, node_name
from onnxprune.model.sizes import infer_shapes
from onnxprune.model.weights import WAYS, Weight, weights_of
from onnxprune.score.masks import Array, Pattern, PerGroup, Unstructured, lamp

MIXING = frozenset({
    "Attention", "Conv", "ConvInteger", "ConvTranspose", "DeformConv", "Einsum", "GRU", "Gemm", "LSTM", "MatMul",
    "MatMulInteger", "QLinearConv", "QLinearMatMul", "RNN",
})  # fmt: skip
"""Operators with weights that sum over channels; the first of them on every way is left dense, and so is a table that
Gather reads."""

FEW_VALUES, MANY_WEIGHTS = 3, 256
"""Weights of so few values, in a tensor of so many, are binary or ternary codes."""

Wanted = Callable[[str, str], bool]


@dataclass(frozen=True, slots=True)
class MaskDemand:
    """What is asked for: a pattern with the fraction of zeros, or a magnitude below which weights go.

    ``allocation`` is ``uniform``, the same fraction everywhere, or ``global``: the lowest of all. N:M is taken only
    where an operator has at least ``nm_min_channels`` inputs and as many outputs. With samples, the ``criterion``
    decides which weights go; ``None`` leaves that open.
    """

    pattern: Pattern
    sparsity: float = 0.5
    threshold: float | None = None
    allocation: str = "uniform"
    nm_min_channels: int = 1
    criterion: str | None = None


@dataclass(frozen=True, slots=True)
class MaskedTensor:
    """A stored tensor of which ``zeros`` of ``size`` weights become zero.

    ``results`` are the tensors that its operators write, ``nodes`` their names. With ``fixed``, magnitude alone decides
    which weights go, otherwise the ``criterion``.
    """

    name: str
    nodes: tuple[str, ...]
    results: tuple[str, ...]
    pattern: Pattern
    zeros: int
    size: int
    fixed: bool = False
    criterion: str | None = None


@dataclass(frozen=True, slots=True)
class Dense:
    """An operator whose weights are not masked."""

    node: str
    reason: str


@dataclass(frozen=True, slots=True)
class MaskPlan:
    """What is masked, by stored tensor, and what is not."""

    tensors: tuple[MaskedTensor, ...] = ()
    dense: tuple[Dense, ...] = ()

    @property
    def sparsity(self) -> float:
        """Fraction of the weights of the masked tensors that become zero."""
        return sum(one.zeros for one in self.tensors) / max(sum(one.size for one in self.tensors), 1)


def masks_for(
    graph: gs.Graph,
    demand: MaskDemand,
    *,
    shapes: Shapes | None = None,
    wanted: Wanted | None = None,
) -> MaskPlan:
    """Returns what to mask.

    Args:
        graph: The graph as it is, channels and blocks already gone.
        demand: Pattern and amount.
        shapes: Shapes of its tensors.
        wanted: Told the names of an operator and of its stored tensor, says whether it may be masked.

    Raises:
        PlanError: weights are binary or ternary, or nothing can be masked.
    """
    eligible, dense = eligible_weights(graph, shapes or infer_shapes(graph), demand, wanted)
    if not eligible:
        why = f"{dense[0].node!r} is not, because {dense[0].reason}" if dense else "no operator has stored weights"
        raise PlanError(f"no weights can be masked: {why}; ask for another pattern, or include more operators")
    for name, users in eligible.items():
        _check_values(name, users[0])
    counts = _counts(eligible, demand)
    tensors = [
        MaskedTensor(
            name, tuple(one.operator for one in users), tuple(one.result for one in users), demand.pattern, zeros,
            math.prod(users[0].source.stored.shape), demand.threshold is not None, demand.criterion,
        )
        for (name, users), zeros in zip(eligible.items(), counts, strict=True)
    ]  # fmt: skip
    return MaskPlan(tuple(tensors), tuple(dense))


def eligible_weights(
    graph: gs.Graph, shapes: Shapes, demand: MaskDemand, wanted: Wanted | None = None
) -> tuple[dict[str, list[Weight]], list[Dense]]:
    """Returns the operators that read each tensor that may be masked, and the others."""
    by_tensor: dict[str, list[Weight]] = {}
    for weight in weights_of(graph, shapes):
        by_tensor.setdefault(weight.source.name, []).append(weight)
    behind, others = _behind(graph), _other_readers(graph, by_tensor)
    eligible, dense = {}, []
    for name, users in by_tensor.items():
        reasons = [_reason(one, demand, behind, wanted) for one in users]
        reason = next((found for found in reasons if found), None) or others.get(name) or _disagreement(users, demand)
        if reason is None:
            eligible[name] = users
        else:
            dense += [Dense(one.operator, reason) for one in users]
    return eligible, dense


def _reason(weight: Weight, demand: MaskDemand, behind: set[str], wanted: Wanted | None) -> str | None:
    """Returns why an operator stays dense, ``None`` where it may be masked; the first that applies."""
    groups, rows, outputs = weight.shape
    inputs, pattern = rows // weight.spread, demand.pattern
    if wanted is not None and not wanted(weight.operator, weight.source.name):
        return "it is not selected"
    if groups > 1 and inputs == 1:
        return "it is depthwise: each of its few weights matters"
    if weight.data not in behind:
        return "it is the first that reads the input"
    if inputs % pattern.inputs:
        return f"{pattern} does not divide its {inputs} input channels"
    if outputs % pattern.outputs:
        return f"{pattern} does not divide its {outputs} output channels"
    least = demand.nm_min_channels
    if isinstance(pattern, PerGroup) and min(inputs, outputs) < least:
        return f"it has {inputs} input and {outputs} output channels, and {pattern} pays from {least} of both"
    return None


def _disagreement(users: Sequence[Weight], demand: MaskDemand) -> str | None:
    """Returns why one mask cannot serve all operators that share a tensor, if it cannot."""
    if len(users) == 1 or demand.pattern.inputs * demand.pattern.outputs == 1:
        return None
    first = users[0].places()
    same = all(one.shape == users[0].shape and np.array_equal(one.places(), first) for one in users[1:])
    return None if same else "operators that share its weights sum over different axes of them"


def _check_values(name: str, weight: Weight) -> None:
    values = read_values(weight.source.stored)
    if values.size >= MANY_WEIGHTS and np.unique(values).size <= FEW_VALUES:
        raise PlanError(
            f"the weights {name!r} of {weight.operator!r} are binary or ternary codes, of which zeroing some would "
            f"change all that is left: add {weight.operator!r} to --exclude"
        )


def _behind(graph: gs.Graph) -> set[str]:
    """Returns the tensors that some operator with weights lies before."""
    holders, found = Holders(graph), set[str]()
    for node in graph.nodes:
        table = node.op == "Gather" and holders.get(node.inputs[0]) is not None
        if node.op in MIXING or table or not found.isdisjoint(read_by(node)):
            found.update(tensor.name for tensor in node.outputs if tensor.name)
    return found


def _other_readers(graph: gs.Graph, masked: Mapping[str, Sequence[Weight]]) -> dict[str, str]:
    """Returns why tensors stay dense that something else than linear operators reads too."""
    own = {id(one.node) for users in masked.values() for one in users}
    alias = {name: name for name in masked}
    found: dict[str, str] = {}
    for node in graph.nodes:
        names = {alias[name]: None for name in _names(node) if name in alias}
        if node.op in WAYS and node.inputs[0].name in alias:
            alias[node.outputs[0].name] = alias[node.inputs[0].name]
        elif id(node) not in own and node.op != "Shape":
            found.update(dict.fromkeys(names, f"{node_name(node)!r} reads its weights too"))
    found.update({alias[t.name]: "its weights are an output of the model" for t in graph.outputs if t.name in alias})
    return found


def _names(node: gs.Node) -> list[str]:
    """Returns the names of all that a node and its bodies read, in order."""
    bodies = (body for body in node.attrs.values() if isinstance(body, gs.Graph))
    return [tensor.name for tensor in node.inputs] + [name for body in bodies for name in sorted(captured(body))]


def _counts(eligible: Mapping[str, Sequence[Weight]], demand: MaskDemand) -> list[int]:
    """Returns the number of zeros of every tensor."""
    pattern = demand.pattern
    sizes = [math.prod(users[0].source.stored.shape) for users in eligible.values()]
    if demand.threshold is not None:
        return [_below(users[0].matrix(), demand.threshold) for users in eligible.values()]
    if demand.allocation == "global" and isinstance(pattern, Unstructured):
        return _lowest([lamp(users[0].matrix()) for users in eligible.values()], demand.sparsity)
    return [pattern.zeros(size, demand.sparsity) for size in sizes]


def _below(weights: Array, threshold: float) -> int:
    """Returns how many weights are smaller in magnitude, less the best of outputs that would become empty."""
    small = np.abs(weights) < threshold
    saved = small.all(axis=1) & (weights != 0).any(axis=1)
    return int(np.count_nonzero(small) - np.count_nonzero(saved))


def _lowest(scores: Sequence[Array], fraction: float) -> list[int]:
    """Returns how many of the lowest scores of all lie in each array."""
    everything = np.concatenate([one.ravel() for one in scores])
    order = np.argsort(everything, kind="stable")[: round(everything.size * fraction)]
    owner = np.repeat(np.arange(len(scores)), [one.size for one in scores])
    return [int(count) for count in np.bincount(owner[order], minlength=len(scores))]
