"""What ONNX Runtime asks of Q and DQ beyond ONNX, found by trying its version 1.31."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxprune.quantize.checks import (
    HINT,
    Check,
    Hit,
    graph_outputs,
    left_float,
    mixed,
    single_scale,
    weight_axis,
    weights_alone,
)
from onnxprune.quantize.pairs import DEQUANTIZE, PASSED, QUANTIZE, Pairs, Product, Step
from onnxprune.quantize.targets import Result, Role, Target

T = onnx.TensorProto
MORE = frozenset({"Identity", "ReduceMax", "ReduceMin", "Softmax", "Where"})
"""Operators that have integer kernels, or need none, and that no table quantizes."""
SMALLEST_BLOCK = 16


def activation_types(pairs: Pairs, target: Target) -> Iterator[Hit]:
    """Yields Q of what is computed to another type than uint8."""
    for step in pairs.rounding:
        if step.type not in (T.UINT8, T.UNDEFINED):
            yield step.node, T.DataType.Name(step.type).lower()


def weight_types(pairs: Pairs, target: Target) -> Iterator[Hit]:
    """Yields operators whose weights are not symmetric int8."""
    for product in pairs.products:
        step = product.weight
        if step is None or step.packed:
            continue
        if step.type not in (T.INT8, T.UNDEFINED):
            yield product.node, T.DataType.Name(step.type).lower()
        elif not step.zeros():
            yield product.node, "their zero point is not 0"


def moved_weights(pairs: Pairs, target: Target) -> Iterator[Hit]:
    """Yields operators that read weights through a Transpose behind their DQ."""
    for product in pairs.products:
        if product.way is not None and product.way.moved and product.weight is not None:
            yield product.node, ""


def results(pairs: Pairs, target: Target) -> Iterator[Hit]:
    """Yields operators on integers that lack the one Q behind them without which they are computed in floats."""
    for node in pairs.nodes:
        rule = target.rules.get(node.op)
        if rule is None or rule.role not in (Role.MULTIPLY, Role.JOIN) or not _reads_integers(pairs, node):
            continue
        name = str(node.outputs[0].name)
        if rule.result is Result.EITHER:
            problem = _half_rounded(pairs, name)
        elif rule.role is Role.MULTIPLY or any(pairs.rounded_by(end) for end in _ends(pairs, name)):
            problem = _unrounded(pairs, name)
        else:
            problem = ""  # it computes in floats because nobody wants integers of it
        if problem:
            yield node, problem


def _half_rounded(pairs: Pairs, name: str) -> str:
    """Returns why a product that may write floats does not compute in integers; nothing where it does."""
    readers, rounding = pairs.readers(name), pairs.rounded_by(name)
    if rounding:
        return _unrounded(pairs, name)
    only = readers[0][0] if len(readers) == 1 and name not in pairs.outside else None
    if only is None or only.op not in ("Clip", "Relu") or len(pairs.readers(only.outputs[0].name)) != 1:
        return ""
    return _clipped(pairs, only)  # one reader behind a clip: the runtime expects the Q there


def _reads_integers(pairs: Pairs, node: gs.Node) -> bool:
    product = pairs.product_of.get(id(node))
    if product is not None:
        return product.whole
    return bool(node.inputs) and all(pairs.dequantized(tensor.name) is not None for tensor in node.inputs)


def _ends(pairs: Pairs, name: str) -> list[str]:
    """Returns the tensors at which a Q may stand for a result: itself, or behind a clip or a move alone."""
    found = [name]
    while len(readers := pairs.readers(found[-1])) == 1 and readers[0][0].op in ("Clip", "Relu", *PASSED):
        found.append(readers[0][0].outputs[0].name)
    return found


def _unrounded(pairs: Pairs, name: str) -> str:
    """Returns why the reader of a result is not a Q; nothing where it is."""
    while True:
        if name in pairs.outside:
            return f"'{name}' is also an output" if pairs.readers(name) else f"no Q reads '{name}'"
        readers = pairs.readers(name)
        rounding = pairs.rounded_by(name)
        if rounding and len(rounding) == len(readers):
            return "" if all(step.same(rounding[0]) for step in rounding) else f"several Q read '{name}'"
        others = [node for node, _ in readers if node.op != QUANTIZE]
        if len(readers) != 1:
            return f"{others[0].op} reads '{name}' too" if rounding else f"no Q reads '{name}'"
        only = others[0]
        if only.op in ("Clip", "Relu"):
            return _clipped(pairs, only)
        if only.op not in PASSED:
            return f"{only.op} reads '{name}', not a Q"
        name = only.outputs[0].name


def _clipped(pairs: Pairs, clip: gs.Node) -> str:
    """Returns why a clip is not part of the rounding behind it; nothing where it is."""
    name = clip.outputs[0].name
    rounding = pairs.rounded_by(name)
    if not rounding or len(rounding) != len(pairs.readers(name)) or name in pairs.outside:
        return f"'{name}' has other readers than a Q" if rounding else f"no Q reads '{name}'"
    low, high = _bounds(pairs, clip)
    for step in rounding:
        reach = _reach(step)
        if reach is not None and (reach[0] < low - 1e-6 or reach[1] > high * (1 + 1e-5)):
            return f"{clip.op} clips at {low:g} and {high:g}, the Q behind it at {reach[0]:.4g} and {reach[1]:.4g}"
    return ""


def _bounds(pairs: Pairs, clip: gs.Node) -> tuple[float, float]:
    if clip.op == "Relu":
        return 0.0, float("inf")
    ends = [float(clip.attrs.get("min", -np.inf)), float(clip.attrs.get("max", np.inf))]
    for slot, tensor in enumerate(clip.inputs[1:3]):
        held = pairs.values(tensor.name)
        if held is not None and held.size == 1:
            ends[slot] = float(held.reshape(-1)[0])
    return ends[0], ends[1]


def _reach(step: Step) -> tuple[float, float] | None:
    """Returns the least and the largest number that a Q can give."""
    if step.scale is None or step.scale.size != 1 or step.type not in (T.UINT8, T.INT8):
        return None
    zero = 0.0 if step.zero is None else float(step.zero.reshape(-1)[0])
    low, high = (0, 255) if step.type == T.UINT8 else (-128, 127)
    scale = float(step.scale.reshape(-1)[0])
    return (low - zero) * scale, (high - zero) * scale


def late_clips(pairs: Pairs, target: Target) -> Iterator[Hit]:
    """Yields clips with a pair before and behind them that could have been part of the rounding."""
    for node in pairs.nodes:
        step = pairs.dequantized(node.inputs[0].name) if node.op in ("Clip", "Relu") else None
        first = None if step is None else pairs.quantizer(step)
        if first is None or not pairs.rounded_by(node.outputs[0].name):
            continue
        maker = pairs.producer(first.node.inputs[0].name)
        rule = None if maker is None else target.rules.get(maker.op)
        if rule is not None and rule.role in (Role.MULTIPLY, Role.JOIN) and len(pairs.behind(first)) == 1:
            yield node, ""


def float_biases(pairs: Pairs, target: Target) -> Iterator[Hit]:
    """Yields Gemm of integers with a float bias, and MatMul that the runtime makes such a Gemm, without a Q behind."""
    for product in pairs.products:
        node = product.node
        if not product.whole or product.weight is None or node.op not in ("Gemm", "MatMul"):
            continue
        bias = node.inputs[2].name if node.op == "Gemm" and len(node.inputs) > 2 else ""
        if node.op == "MatMul":
            readers = pairs.readers(node.outputs[0].name)
            if len(readers) != 1 or readers[0][0].op != "Add" or not _becomes_gemm(pairs, product, *readers[0]):
                continue
            node, slot = readers[0]
            bias = node.inputs[1 - slot].name
        if bias and pairs.values(bias) is not None and _unrounded(pairs, node.outputs[0].name):
            yield product.node, f"'{bias}'"


def _becomes_gemm(pairs: Pairs, product: Product, add: gs.Node, slot: int) -> bool:
    """Whether the runtime makes one Gemm of a MatMul and the Add behind it."""
    bias = pairs.values(add.inputs[1 - slot].name)
    data = pairs.shapes.shapes.get(product.node.inputs[0].name, ())
    width = pairs.shapes.shapes.get(product.node.outputs[0].name, (0,))[-1]
    if bias is None or bias.size != width or width < 2 or product.slot != 1 or not data:
        return False
    sizes = [size for tensor in pairs.graph.inputs for size in (("",) if tensor.shape is None else tensor.shape)]
    fixed = all(isinstance(size, int) for size in sizes)
    return bias.ndim <= 2 if len(data) == 2 else bias.ndim == 1 and fixed


def no_kernels(pairs: Pairs, target: Target) -> Iterator[Hit]:
    """Yields operators without integer kernel that read stored integers, or pairs that serve nobody else."""
    for node in pairs.nodes:
        if node.op in target.rules or node.op in MORE or node.op in (QUANTIZE, DEQUANTIZE):
            continue
        for tensor in node.inputs:
            step = pairs.dequantized(tensor.name)
            if step is None:
                continue
            first = pairs.quantizer(step)
            if step.stored:
                yield node, f"'{tensor.name}' is stored as integers"
                break
            if first is not None and not _serves(pairs, first, target):
                yield node, f"the pair on '{first.node.inputs[0].name}' serves no operator on integers"
                break
        else:
            written = [step for tensor in node.outputs for step in pairs.rounded_by(tensor.name)]
            useless = [step for step in written if not _serves(pairs, step, target)]
            if useless:
                yield node, f"the pair on '{useless[0].node.inputs[0].name}' serves no operator on integers"


def _serves(pairs: Pairs, step: Step, target: Target) -> bool:
    """Whether a pair has an operator with an integer kernel on one of its sides."""
    sides: list[gs.Node | None] = [node for node, _ in pairs.behind(step)]
    if any(node.op != DEQUANTIZE for node, _ in pairs.readers(step.node.outputs[0].name)):
        return True  # an operator on integers of its own
    sides += [pairs.producer(step.node.inputs[0].name)]
    return any(node is not None and (node.op in target.rules or node.op in MORE) for node in sides)


def unequal_moves(pairs: Pairs, target: Target) -> Iterator[Hit]:
    """Yields operators that only pass integers on, and whose scales before and behind differ."""
    for node in pairs.nodes:
        rule = target.rules.get(node.op)
        if rule is None or rule.role is not Role.MOVE:
            continue
        before = pairs.dequantized(node.inputs[0].name)
        after = [step for tensor in node.outputs for step in pairs.rounded_by(tensor.name)]
        if before is not None and not before.stored and any(not step.same(before) for step in after):
            yield node, ""


def unpacked_weights(pairs: Pairs, target: Target) -> Iterator[Hit]:
    """Yields operators whose packed weights no kernel takes: they are made floats at every run."""
    for product in pairs.products:
        step, node = product.weight, product.node
        if step is None or product.whole:
            continue
        if node.op != "MatMul" or product.slot != 1:
            if weights_alone(product) or not target.rules:
                yield node, f"{node.op} has no such kernel"
        elif step.block and (step.axis % 2 != 0 or step.block < SMALLEST_BLOCK or step.block & (step.block - 1)):
            yield node, f"blocks of {step.block} along axis {step.axis}"


def rounded_activations(pairs: Pairs, target: Target) -> Iterator[Hit]:
    """Yields all Q of what is computed."""
    return ((step.node, "") for step in pairs.rounding)


def _shared(target: str) -> Sequence[Check]:
    return (
        Check(
            f"{target}/weight-only",
            "integers for weights alone run in one kernel only in a MatMul, in blocks along its sum of 16, 32, 64 ... "
            "numbers: elsewhere the weights are made floats again at every run",
            "leave these weights float, or store them that way: onnxprune slim --weights int4 --group-size 64",
            unpacked_weights,
        ),
    )


CPU = (
    Check(
        "ort-cpu/activation-type",
        "integer kernels are fast for uint8 activations; with int8 they took three times as long, and with 16 bits "
        "there are none",
        "quantize activations to uint8 with a zero point: onnxprune quantize --target ort-cpu",
        activation_types,
    ),
    Check(
        "ort-cpu/weight-type",
        "integer kernels are fastest, and most exact, for symmetric int8 weights beside uint8 activations",
        "quantize weights to int8 with a zero point of 0: onnxprune quantize --target ort-cpu",
        weight_types,
    ),
    Check(
        "ort-cpu/weight-axis",
        "scales of weights belong to output channels; the runtime takes them for that without a look at the axis",
        "quantize the weights along the axis of their output channels",
        weight_axis,
    ),
    Check(
        "ort-cpu/per-channel",
        "one scale for all output channels costs accuracy, and one for each costs no time",
        "quantize weights per channel",
        single_scale,
        HINT,
    ),
    Check(
        "ort-cpu/weight-moved",
        "the runtime fuses a DQ only with the operator directly behind it",
        "store the weights in the order in which the operator reads them, integers too",
        moved_weights,
    ),
    Check(
        "ort-cpu/inputs",
        "an operator computes in integers only if all its inputs have Q/DQ; with some of them they cost time alone",
        "put Q/DQ on the other input too, or on none; store weights as integers",
        mixed,
    ),
    Check(
        "ort-cpu/result",
        "an operator computes in integers only if one Q alone reads its result, directly or behind a clip that this Q "
        "makes needless",
        "put one Q/DQ pair behind it and let all its readers, and the output of the graph, read that",
        results,
    ),
    Check(
        "ort-cpu/clip",
        "a pair between an operator and its clip keeps the clip from being part of the rounding",
        "take the pair in front of the clip off",
        late_clips,
    ),
    Check(
        "ort-cpu/bias",
        "without a Q behind it, a product with a float bias is computed in floats, as are MatMul and Add made one",
        "store the bias as int32 with the scale of data times weights, or put a Q/DQ pair behind it",
        float_biases,
    ),
    Check(
        "ort-cpu/no-kernel",
        "the CPU provider has no integer kernel for it: Q/DQ around it cost time and accuracy",
        "leave it float, its weights too, with no Q/DQ around",
        no_kernels,
    ),
    Check(
        "ort-cpu/one-scale",
        "what only passes numbers on can pass integers on if scale and zero point are the same before and behind it",
        "give both pairs the same scale and zero point",
        unequal_moves,
    ),
    *_shared("ort-cpu"),
    Check(
        "ort-cpu/graph-output",
        "nothing computes with the integers of an output, and what computes it can write floats",
        "leave the output float",
        graph_outputs,
    ),
    Check(
        "ort-cpu/left-float",
        "the operator computes in floats",
        "quantize it too, if accuracy allows: onnxprune quantize --target ort-cpu",
        left_float,
        HINT,
    ),
)
"""Rules of the CPU provider."""

CUDA = (
    Check(
        "ort-cuda/activations",
        "the CUDA provider has no int8 convolutions: Q and DQ run as kernels of their own between float ones",
        "use float16, or integers for weights alone: onnxprune slim --fp16, or --weights int4",
        rounded_activations,
    ),
    *_shared("ort-cuda"),
)
"""Rules of the CUDA provider."""
