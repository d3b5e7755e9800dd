"""What ONNX itself asks of Q and DQ."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx

from onnxprune.model.shapes import opset_of
from onnxprune.model.values import element_type
from onnxprune.model.weights import OPERATORS
from onnxprune.quantize.checks import HINT, Check, Hit
from onnxprune.quantize.pairs import MICROSOFT, QUANTIZE, Pairs, Step, bodies
from onnxprune.quantize.targets import Target

T = onnx.TensorProto
FIRST_OPSET: dict[int, int] = {
    T.INT8: 10, T.UINT8: 10, T.INT32: 10,
    T.FLOAT8E4M3FN: 19, T.FLOAT8E4M3FNUZ: 19, T.FLOAT8E5M2: 19, T.FLOAT8E5M2FNUZ: 19,
    T.INT4: 21, T.UINT4: 21, T.INT16: 21, T.UINT16: 21,
    T.FLOAT4E2M1: 23,
}  # fmt: skip
"""The operator set from which on Q and DQ have an element type."""


def old_opset(pairs: Pairs, target: Target) -> Iterator[Hit]:
    """Yields Q and DQ in a form that the imported operator set does not have."""
    version = opset_of(pairs.graph, "")
    for step in pairs.steps:
        if step.node.domain == MICROSOFT:
            continue
        needed, what = max(_needs(step))
        if needed > version:
            yield step.node, f"{what} needs opset {needed}, the model imports {version}"


def _needs(step: Step) -> Iterator[tuple[int, str]]:
    name = T.DataType.Name(step.type) if step.type in T.DataType.values() else "its type"
    yield FIRST_OPSET.get(step.type, 10), name
    if "axis" in step.node.attrs or step.along:
        yield 13, "an axis"
    if step.scale is not None and step.scale.dtype != np.float32:
        yield 19, f"a scale of {step.scale.dtype}"
    if step.block:
        yield 21, "block_size"
    if step.node.attrs.get("output_dtype"):
        yield 21 if step.node.op == QUANTIZE else 23, "output_dtype"


def unequal_shapes(pairs: Pairs, target: Target) -> Iterator[Hit]:
    """Yields Q and DQ of which scale and zero point have different shapes, and more than one number."""
    return _unequal(pairs, single=False)


def unequal_ranks(pairs: Pairs, target: Target) -> Iterator[Hit]:
    """Yields Q and DQ of which scale and zero point are one number, one of them a scalar, the other a vector."""
    return _unequal(pairs, single=True)


def _unequal(pairs: Pairs, *, single: bool) -> Iterator[Hit]:
    for step in pairs.steps:
        if step.scale is None or step.zero is None or step.scale.shape == step.zero.shape:
            continue
        if (step.scale.size == step.zero.size == 1) == single:
            yield step.node, f"scale {list(step.scale.shape)}, zero point {list(step.zero.shape)}"


def unequal_types(pairs: Pairs, target: Target) -> Iterator[Hit]:
    """Yields DQ that read integers of another type than their zero point has."""
    for step in pairs.steps:
        known = pairs.quantizer(step)
        read = step.type if known is None else known.type
        if step.node.op != QUANTIZE and step.zero is not None and read and element_type(step.zero.dtype) != read:
            yield step.node, f"{T.DataType.Name(read)} with a zero point of {step.zero.dtype}"


def bad_scales(pairs: Pairs, target: Target) -> Iterator[Hit]:
    """Yields Q and DQ with scales that are zero, negative or not finite."""
    for step in pairs.steps:
        if step.scale is None:
            continue
        scales = step.scale.astype(np.float64)
        bad = ~(np.isfinite(scales) & (scales > 0))
        zeros = int((scales == 0).sum())
        if bad.any():
            what = f"{zeros} zero" if zeros == bad.sum() else f"{int(bad.sum())} not above zero, or not finite"
            yield step.node, f"{what} of {scales.size}"


def bad_axes(pairs: Pairs, target: Target) -> Iterator[Hit]:
    """Yields Q and DQ whose axis is not there, or has another length than their scale."""
    for step in pairs.steps:
        if not step.along or step.scale is None or step.shape is None:
            continue
        rank = len(step.shape)
        if not -rank <= step.axis < rank:
            yield step.node, f"axis {step.axis} of a tensor of {rank} dimensions"
        elif step.scale.shape != (expected := _scale_shape(step, rank)):
            yield step.node, f"a scale of {list(step.scale.shape)} where {list(expected)} belongs"


def _scale_shape(step: Step, rank: int) -> tuple[int, ...]:
    shape, axis = step.shape or (), step.axis % rank
    if not step.block:
        return (shape[axis],)
    return tuple(-(-size // step.block) if dim == axis else size for dim, size in enumerate(shape))


def shifted_sums(pairs: Pairs, target: Target) -> Iterator[Hit]:
    """Yields DQ of int32 with a zero point that is not 0."""
    return ((step.node, "") for step in pairs.steps if step.type == T.INT32 and not step.zeros())


def needless_zeros(pairs: Pairs, target: Target) -> Iterator[Hit]:
    """Yields DQ of int32 with a zero point of 0."""
    return ((step.node, "") for step in pairs.steps if step.type == T.INT32 and step.zero is not None and step.zeros())


def integer_outputs(pairs: Pairs, target: Target) -> Iterator[Hit]:
    """Yields Q that write outputs of the graph."""
    for step in pairs.steps:
        if step.node.op == QUANTIZE and step.node.outputs[0].name in pairs.outputs:
            yield step.node, f"output '{step.node.outputs[0].name}'"


def unseen(pairs: Pairs, target: Target) -> Iterator[Hit]:
    """Yields nodes whose bodies hold operators that these rules are about."""
    for node in pairs.nodes:
        inside = sum(other.op in (*OPERATORS, QUANTIZE) for body in bodies(node) for other in body.nodes)
        if inside:
            yield node, f"{inside} operators"


CHECKS = (
    Check(
        "onnx/opset",
        "runtimes refuse forms of Q and DQ that the operator set of the model does not have",
        "raise the operator set of the model, or use a form that it has",
        old_opset,
    ),
    Check(
        "onnx/shapes",
        "scale and zero point must have one shape, or the model is invalid",
        "store both as scalars, or both as vectors along the axis",
        unequal_shapes,
    ),
    Check(
        "onnx/shapes",
        "scale and zero point must have one shape; some runtimes take a vector of one number for a scalar",
        "store both as scalars",
        unequal_ranks,
        HINT,
    ),
    Check(
        "onnx/types",
        "a zero point must have the type of the integers, or the model is invalid",
        "store the zero point in the type of the integers",
        unequal_types,
    ),
    Check(
        "onnx/scale",
        "numbers are divided by their scale: zero, as channels of zeros get it, fails the build in one runtime and "
        "gives NaN in another",
        "raise the scale to the smallest normal number; zeros stay zero",
        bad_scales,
    ),
    Check(
        "onnx/axis",
        "the scale must lie along an axis of the tensor and have its length, or the model is invalid",
        "set axis to that of the channels, and store one scale for each of them",
        bad_axes,
    ),
    Check(
        "onnx/int32-zero-point",
        "int32 stands for sums, which have no zero point: what is stored there is ignored or refused",
        "leave the zero point out and take it into the numbers",
        shifted_sums,
    ),
    Check(
        "onnx/int32-zero-point",
        "int32 stands for sums, which have no zero point",
        "leave it out",
        needless_zeros,
        HINT,
    ),
    Check(
        "onnx/output",
        "callers get integers where the float model gave numbers",
        "put a DequantizeLinear behind it, or leave the output float",
        integer_outputs,
    ),
    Check(
        "onnx/body",
        "what stands inside If, Loop or Scan is not looked into",
        "look at it by hand, or export the model without control flow",
        unseen,
        HINT,
    ),
)
"""Rules that hold on every target."""
