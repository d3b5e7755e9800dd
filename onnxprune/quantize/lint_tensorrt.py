"""What TensorRT asks of Q and DQ beyond ONNX."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx_graphsurgeon as gs

from onnxprune.quantize.checks import (
    HINT,
    Check,
    Hit,
    fan_out,
    graph_outputs,
    integer,
    left_float,
    mixed,
    narrow,
    single_scale,
    weight_axis,
)
from onnxprune.quantize.pairs import DEQUANTIZE, MICROSOFT, Pairs, Product, Step
from onnxprune.quantize.targets import Role, Target

T = onnx.TensorProto
TYPES = frozenset({T.INT8, T.INT4, T.FLOAT8E4M3FN, T.FLOAT4E2M1})
FLOATS = frozenset({
    "BatchNormalization", "Erf", "Gelu", "GroupNormalization", "InstanceNormalization", "LayerNormalization",
    "LogSoftmax", "Pow", "RMSNormalization", "Softmax", "Sqrt",
})  # fmt: skip
"""Operators that want real numbers."""
FLOAT_RESULTS = frozenset({"Erf", "LogSoftmax", "Softmax"})
"""Those whose results are used inside the same kernel."""


def refused(pairs: Pairs, target: Target) -> Iterator[Hit]:
    """Yields operators that the importer does not know."""
    for node in pairs.nodes:
        if integer(node) or (node.domain == MICROSOFT and pairs.step(node) is not None):
            yield node, f"{node.op} of {node.domain or 'ai.onnx'}"


def zero_points(pairs: Pairs, target: Target) -> Iterator[Hit]:
    """Yields Q and DQ with a zero point other than 0."""
    return ((step.node, "") for step in _first(pairs) if step.type != T.INT32 and not step.zeros())


def _first(pairs: Pairs) -> Iterator[Step]:
    """Yields Q, and DQ that no Q stands before: a pair is looked at once."""
    return (step for step in pairs.steps if step.node.op != DEQUANTIZE or pairs.quantizer(step) is None)


def types(pairs: Pairs, target: Target) -> Iterator[Hit]:
    """Yields Q and DQ of other integers than int8, int4 for weights."""
    for step in _first(pairs):
        computed = step.node.op != DEQUANTIZE and not step.stored
        if step.type not in (T.INT32, T.UNDEFINED) and step.type not in (TYPES - {T.INT4} if computed else TYPES):
            yield step.node, T.DataType.Name(step.type).lower()


def half_rounded(pairs: Pairs, target: Target) -> Iterator[Hit]:
    """Yields products of which one factor is integers and the other is not; of weights alone packed ones are fused."""
    yield from mixed(pairs, target)
    for product in pairs.products:
        step = product.weight
        if product.node.op == "MatMul" and step is not None and not product.whole and not step.packed:
            yield product.node, f"input '{product.node.inputs[product.data[0]].name}' is float"


def activation_axes(pairs: Pairs, target: Target) -> Iterator[Hit]:
    """Yields Q of what is computed with several scales."""
    return ((step.node, "") for step in pairs.rounding if step.along)


def behind_products(pairs: Pairs, target: Target) -> Iterator[Hit]:
    """Yields Q between an operator that multiplies integers and what would be fused into it."""
    for step in pairs.rounding:
        maker = _quantized_maker(pairs, step)
        if maker is None:
            continue
        offenders = [node for node, _ in pairs.behind(step) if not _wants(pairs, node, target)]
        if offenders:
            yield step.node, f"between {maker.node.op} and {offenders[0].op}"


def _quantized_maker(pairs: Pairs, step: Step) -> Product | None:
    node = pairs.producer(step.node.inputs[0].name)
    product = None if node is None else pairs.product_of.get(id(node))
    return product if product is not None and product.whole else None


def _wants(pairs: Pairs, node: gs.Node, target: Target) -> bool:
    """Whether a reader of a pair is no part of the kernel before it; for sums of two see ``unspared``."""
    if node.op == "Add":
        return not any(pairs.is_stored(tensor.name) for tensor in node.inputs)
    passed = ("Flatten", "MaxPool", "Reshape", "Resize", "Shape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")
    return node.op in target.rules or node.op in passed


def _fusible(pairs: Pairs, add: gs.Node) -> list[int]:
    """Returns the slots of a sum that a product of integers makes for it alone, rounded on the way or not."""
    found = []
    for slot, tensor in enumerate(add.inputs):
        name = pairs.floats(tensor.name)
        node = pairs.producer(name)
        product = None if node is None else pairs.product_of.get(id(node))
        if product is None or not product.whole or name in pairs.outside:
            continue
        readers = pairs.readers(name)
        alone = len(readers) == 1 and (name == tensor.name or len(pairs.readers(tensor.name)) == 1)
        found += [slot] if alone else []
    return found


def _sums(pairs: Pairs) -> Iterator[gs.Node]:
    """Yields sums of two computed tensors of one shape; what is added along an axis is a bias."""
    for node in pairs.nodes:
        if node.op == "Add" and len(node.inputs) == 2 and not any(pairs.is_stored(t.name) for t in node.inputs):
            shapes = {pairs.shapes.shapes.get(pairs.floats(tensor.name)) for tensor in node.inputs}
            if len(shapes - {None}) < 2:
                yield node


def unspared(pairs: Pairs, target: Target) -> Iterator[Hit]:
    """Yields sums that no operator before them can take in, as all its results are rounded first."""
    for add in _sums(pairs):
        slots = _fusible(pairs, add)
        if slots and all(pairs.dequantized(add.inputs[slot].name) is not None for slot in slots):
            yield add, f"'{pairs.floats(add.inputs[slots[0]].name)}' is rounded before it"


def bare_branches(pairs: Pairs, target: Target) -> Iterator[Hit]:
    """Yields sums that an operator takes in, and whose other branch is float."""
    for add in _sums(pairs):
        slots = _fusible(pairs, add)
        floats = [slot for slot in (0, 1) if pairs.dequantized(add.inputs[slot].name) is None]
        if slots and len(floats) == 2:
            other = next((slot for slot in (0, 1) if slot not in slots), 1)
            yield add, f"'{add.inputs[other].name}' is float"


def longer_branches(pairs: Pairs, target: Target) -> Iterator[Hit]:
    """Yields sums of two operators of which the one at the end of the longer path is rounded."""
    for add in _sums(pairs):
        spared = [slot for slot in _fusible(pairs, add) if pairs.dequantized(add.inputs[slot].name) is None]
        if len(_fusible(pairs, add)) == 2 and len(spared) == 1:
            short, long = (_depth(pairs, add.inputs[slot].name) for slot in (spared[0], 1 - spared[0]))
            if short < long:
                yield add, f"{long} operators lead to the branch that is rounded, {short} to the other"


def _depth(pairs: Pairs, name: str) -> int:
    """Returns the number of products that follow each other alone up to a tensor, rounded on the way or not."""
    depth, name = 0, pairs.floats(name)
    while (node := pairs.producer(name)) is not None and node.inputs and _readers(pairs, name) == 1:
        depth += id(node) in pairs.product_of
        name = pairs.floats(node.inputs[0].name)
    return depth


def _readers(pairs: Pairs, name: str) -> int:
    """Returns how many operators read a tensor, as it is or rounded."""
    rounding = pairs.rounded_by(name)
    return len(pairs.readers(name)) - len(rounding) + sum(len(pairs.behind(step)) for step in rounding)


def rounded_biases(pairs: Pairs, target: Target) -> Iterator[Hit]:
    """Yields operators that add stored integers."""
    for node in pairs.nodes:
        product = pairs.product_of.get(id(node))
        if product is not None and len(node.inputs) > 2 and pairs.dequantized(node.inputs[2].name) is not None:
            yield node, ""
        if node.op == "Add" and any(_stored_integers(pairs, tensor.name) for tensor in node.inputs):
            makers = [pairs.producer(pairs.floats(tensor.name)) for tensor in node.inputs]
            if any(maker is not None and id(maker) in pairs.product_of for maker in makers):
                yield node, ""


def _stored_integers(pairs: Pairs, name: str) -> bool:
    step = pairs.dequantized(name)
    return step is not None and step.stored


def unequal_branches(pairs: Pairs, target: Target) -> Iterator[Hit]:
    """Yields Concat of tensors with different scales, or of which some are float."""
    for node in pairs.nodes:
        if node.op != "Concat":
            continue
        steps = [pairs.dequantized(tensor.name) for tensor in node.inputs]
        known = [step for step in steps if step is not None]
        if known and len(known) < len(steps):
            yield node, "some of its inputs are float"
        elif any(not step.same(known[0]) for step in known[1:]):
            yield node, "its inputs have several scales"


def rounded_floats(pairs: Pairs, target: Target) -> Iterator[Hit]:
    """Yields operators that want real numbers and get rounded ones, or whose results are rounded."""
    for node in pairs.nodes:
        if node.op not in FLOATS:
            continue
        if any(pairs.dequantized(tensor.name) is not None for tensor in node.inputs):
            yield node, "it reads rounded numbers"
        elif node.op in FLOAT_RESULTS and any(pairs.rounded_by(tensor.name) for tensor in node.outputs):
            yield node, "its result is rounded"


def too_narrow(pairs: Pairs, target: Target) -> Iterator[Hit]:
    """Yields operators that multiply integers and have few channels, or a dimension of 1."""
    for product in pairs.products:
        rule = target.rules.get(product.node.op)
        if rule is None or rule.role is not Role.MULTIPLY or not product.whole:
            continue
        if few := narrow(pairs, product, rule):
            yield product.node, few
        shapes = [pairs.shapes.shapes.get(tensor.name, ()) for tensor in product.node.inputs[:2]]
        if product.slot is None and any(1 in shape[-2:] for shape in shapes):
            yield product.node, "it has a dimension of 1"


def alone(pairs: Pairs, target: Target) -> Iterator[Hit]:
    """Yields Q without a DQ behind it, and DQ of integers that no Q makes."""
    for step in pairs.rounding:
        if any(node.op != DEQUANTIZE for node, _ in pairs.readers(step.node.outputs[0].name)):
            yield step.node, "operators read its integers"


CHECKS = (
    Check(
        "tensorrt/operator",
        "the importer refuses operators on integers, it takes Q/DQ around operators on floats alone",
        "quantize the float model anew in Q/DQ form: onnxprune quantize --target tensorrt",
        refused,
    ),
    Check(
        "tensorrt/zero-point",
        "integers are symmetric in TensorRT: the importer refuses zero points other than 0",
        "calibrate symmetrically, for activations too: onnxprune quantize --target tensorrt",
        zero_points,
    ),
    Check(
        "tensorrt/type",
        "Q/DQ are int8 in TensorRT, int4 for weights",
        "quantize activations and weights to int8: onnxprune quantize --target tensorrt",
        types,
    ),
    Check(
        "tensorrt/activation-axis",
        "activations have one scale in TensorRT, the importer refuses several",
        "give the tensor one scale",
        activation_axes,
    ),
    Check(
        "tensorrt/weight-axis",
        "scales of weights belong to output channels: Conv 0, ConvTranspose 1, Gemm 1 or, with transB, 0, MatMul last",
        "quantize the weights along that axis",
        weight_axis,
    ),
    Check(
        "tensorrt/per-channel",
        "one scale for all output channels costs accuracy, and one for each costs no time",
        "quantize weights per channel",
        single_scale,
        HINT,
    ),
    Check(
        "tensorrt/inputs",
        "an operator computes in integers only if all its inputs have Q/DQ; with some of them they cost time alone",
        "put Q/DQ on the other input too, or on none",
        half_rounded,
    ),
    Check(
        "tensorrt/fusion",
        "Q/DQ behind an operator part it from what TensorRT would compute in the same kernel",
        "move the pair behind what follows, in front of the next operator with weights",
        behind_products,
    ),
    Check(
        "tensorrt/residual",
        "a sum is computed with the operator before it only if nothing stands between the two",
        "take the pair off the branch of that operator, and leave it on the other",
        unspared,
    ),
    Check(
        "tensorrt/branch",
        "a sum that is computed with the operator before it reads its other branch in integers, or a copy is made",
        "put Q/DQ on the other branch",
        bare_branches,
    ),
    Check(
        "tensorrt/branch",
        "a sum is best computed with the operator at the end of the longer path: the shorter one is done by then",
        "take the pair off the longer path, and put it on the shorter",
        longer_branches,
    ),
    Check(
        "tensorrt/bias",
        "biases are added as floats: DQ of stored integers in their place is refused or not fused",
        "store the bias as floats",
        rounded_biases,
    ),
    Check(
        "tensorrt/concat",
        "branches of a Concat stay integers only if all have the same scale",
        "give all its inputs one scale, the largest",
        unequal_branches,
    ),
    Check(
        "tensorrt/fan-out",
        "every Q is computed: several on one tensor cost time, and their readers no longer share it",
        "keep one Q/DQ pair for all readers",
        fan_out,
    ),
    Check(
        "tensorrt/float",
        "normalizations, Softmax and what GELU is made of are kernels on floats, which Q/DQ inside break up",
        "take the Q/DQ off",
        rounded_floats,
    ),
    Check(
        "tensorrt/narrow",
        "operators this narrow are faster in floats",
        "leave them float",
        too_narrow,
    ),
    Check(
        "tensorrt/graph-output",
        "nothing computes with the integers of an output: Q/DQ there cost accuracy and time",
        "leave the output float",
        graph_outputs,
    ),
    Check(
        "tensorrt/pair",
        "TensorRT looks for Q and DQ in pairs",
        "put a DQ behind every Q, before any other operator",
        alone,
    ),
    Check(
        "tensorrt/left-float",
        "the operator computes in floats",
        "quantize it too, if accuracy allows: onnxprune quantize --target tensorrt",
        left_float,
        HINT,
    ),
)
"""Rules of TensorRT."""
