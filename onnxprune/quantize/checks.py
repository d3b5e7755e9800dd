"""The words of the rules that files are held against, and the rules that several targets have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from onnxprune.model.weights import STANDARD
from onnxprune.quantize.pairs import MICROSOFT, Pairs, Product
from onnxprune.quantize.targets import NO_KERNEL, Rule, Target

VIOLATION, HINT = "violation", "hint"

Hit = tuple[gs.Node, str]
"""A node that breaks a rule, and how, where the rule alone does not say it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A node that breaks a rule: why that matters, how to fix it, and what exactly is wrong there."""

    rule: str
    node: str
    why: str
    fix: str
    level: str = VIOLATION
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """A rule: its name, ``*`` standing for the target, why it matters, how to keep it, and who breaks it."""

    rule: str
    why: str
    fix: str
    find: Callable[[Pairs, Target], Iterator[Hit]]
    level: str = VIOLATION


def weight_axis(pairs: Pairs, target: Target) -> Iterator[Hit]:
    """Yields operators whose weights have scales along another axis than that of their output channels."""
    for product in pairs.products:
        step, way = product.weight, product.way
        if step is None or way is None or not step.along or step.packed or not way.order:
            continue
        rank = len(way.order)
        wanted, found = way.axis(product.output_axis), step.axis % rank
        if -rank <= step.axis < rank and wanted != found:
            yield product.node, f"axis {found} of its weights, output channels are on axis {wanted}"


def single_scale(pairs: Pairs, target: Target) -> Iterator[Hit]:
    """Yields operators whose weights have one scale for all output channels."""
    for product in pairs.products:
        step, way = product.weight, product.way
        if step is None or way is None or step.scale is None or step.along or step.block or not way.order:
            continue
        if step.shape is not None and step.shape[way.axis(product.output_axis)] > 1:
            yield product.node, ""


def graph_outputs(pairs: Pairs, target: Target) -> Iterator[Hit]:
    """Yields pairs on outputs of the graph, unless what computes it needs them to compute in integers."""
    for step in pairs.steps:
        if step.node.op != "DequantizeLinear" or step.node.outputs[0].name not in pairs.outputs:
            continue
        rounding = pairs.quantizer(step)
        if rounding is None:
            continue
        maker = pairs.producer(rounding.node.inputs[0].name)
        if maker is None or not _needs(pairs, maker, target):
            yield step.node, f"output '{step.node.outputs[0].name}'"


def _needs(pairs: Pairs, maker: gs.Node, target: Target) -> bool:
    """Whether an operator computes in integers only where its result is rounded."""
    rule = target.rules.get(maker.op)
    if rule is not None and rule.role.name == "CLIP":
        before = pairs.producer(maker.inputs[0].name)
        return before is not None and _needs(pairs, before, target)
    return rule is not None and rule.result.name == "INTEGERS"


def mixed(pairs: Pairs, target: Target) -> Iterator[Hit]:
    """Yields products of which one factor is integers and the other is not; weights alone are another matter."""
    for product in pairs.products:
        if product.whole or product.float or len(product.node.inputs) < 2:
            continue
        if product.weight is not None and weights_alone(product):
            continue
        if product.slot is None and _for_others(pairs, product, target):
            continue
        both = zip(product.node.inputs[:2], product.steps, strict=True)
        missing = [tensor.name for tensor, step in both if step is None]
        what = "weights" if product.slot is not None and product.weight is None else "input"
        yield product.node, f"{what} '{missing[0]}' is float"


def _for_others(pairs: Pairs, product: Product, target: Target) -> bool:
    """Whether the integers that a product of activations reads are there for what writes them, or for other readers."""
    for step in product.steps:
        rounding = None if step is None else pairs.quantizer(step)
        if rounding is not None:
            maker = pairs.producer(rounding.node.inputs[0].name)
            readers = [node for node, _ in pairs.behind(rounding) if node is not product.node]
            return (maker is not None and _needs(pairs, maker, target)) or any(n.op in target.rules for n in readers)
    return False


def weights_alone(product: Product) -> bool:
    """Whether the integers of a product are packed weights, or weights of a MatMul, which runtimes unpack inside it."""
    step = product.weight
    return step is not None and (step.packed or product.node.op == "MatMul")


def left_float(pairs: Pairs, target: Target) -> Iterator[Hit]:
    """Yields operators with stored weights that read no integers, and why, as far as tables know."""
    for product in pairs.products:
        if product.slot is not None and product.float:
            yield product.node, _why_float(pairs, product, target)


def _why_float(pairs: Pairs, product: Product, target: Target) -> str:
    node, way = product.node, product.way
    rule = target.rules.get(node.op)
    if rule is None:
        return target.floats.get(node.op, NO_KERNEL)
    few = narrow(pairs, product, rule)
    if few:
        return few
    if way is not None and (way.moved or way.constant):
        how = "through Transpose" if way.moved else "from a Constant node"
        return f"its weights come {how}, which quantizers overlook: simplify the file first"
    return "the tables know no reason"


def narrow(pairs: Pairs, product: Product, rule: Rule) -> str:
    """Returns that an operator has fewer channels than pay, in words; nothing where it has enough."""
    weight = pairs.weights.get(id(product.node))
    if weight is None:
        return ""
    groups, rows, columns = weight.shape
    inputs, outputs = groups * rows // weight.spread, groups * columns
    words = f"{inputs} input and {outputs} output channels"
    return "" if rule.pays(inputs, outputs) else f"{words}, it gains from {rule.least} on"


def fan_out(pairs: Pairs, target: Target) -> Iterator[Hit]:
    """Yields every Q but the first of a tensor that several read."""
    for name in dict.fromkeys(step.node.inputs[0].name for step in pairs.rounding):
        for step in pairs.rounded_by(name)[1:]:
            yield step.node, f"'{name}' is rounded {len(pairs.rounded_by(name))} times"


def integer(node: gs.Node) -> bool:
    """Whether a node is an operator on integers of its own, not a Q or DQ beside one on floats."""
    op = str(node.op)
    if node.domain == MICROSOFT:
        return op.startswith(("Q", "DynamicQuantize", "MatMulInteger", "MatMulNBits", "GatherBlockQuantized"))
    whole = ("ConvInteger", "DynamicQuantizeLinear", "MatMulInteger")
    return node.domain in STANDARD and (op.startswith("QLinear") or op in whole)
