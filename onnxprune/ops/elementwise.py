"""Operators that work element by element, with broadcasting."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from onnxprune.channels.facts import Facts, free
from onnxprune.channels.registry import Array, NodeView, channel_rule, shape_rule, value_rule
from onnxprune.ops.broadcasting import broadcast

ACTIVATIONS = (
    "Celu", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "Relu", "Selu", "Shrink", "Sigmoid",
    "Softplus", "Softsign", "Swish", "Tanh", "ThresholdedRelu",
)  # fmt: skip
FUNCTIONS = (
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Ceil", "Cos", "Cosh", "Erf", "Exp",
    "Floor", "IsInf", "IsNaN", "Log", "Neg", "Not", "Reciprocal", "Round", "Sign", "Sin", "Sinh", "Sqrt", "Tan",
)  # fmt: skip
ARITHMETIC = (
    "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater", "GreaterOrEqual",
    "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub", "Sum", "Where", "Xor",
)  # fmt: skip


@channel_rule(*ACTIVATIONS, *FUNCTIONS, *ARITHMETIC, "Identity", "Cast", "Clip")
def elementwise(node: NodeView) -> Facts:
    """Every output element depends on the elements at its own place alone. Broadcasting of opset 6 has no rule."""
    if node.attribute("broadcast", 0):
        return
    for result in node.outputs:
        if result is not None:
            yield from broadcast([value for value in node.inputs if value is not None], result)


@channel_rule("Dropout")
def dropout(node: NodeView) -> Facts:
    """An identity; in training, which an input may ask for, it draws as many random numbers as there are elements."""
    training = node.known(2)
    if node.input(2) is None or (training is not None and not training.any()):
        yield from elementwise(node)


@channel_rule("CastLike")
def cast_like(node: NodeView) -> Facts:
    """The second input lends its element type and nothing else."""
    yield from broadcast([node.data], node.result)
    for dim in range(node.weight(1).rank):
        yield free(node.weight(1).axis(dim))


_UNARY: dict[str, Callable[..., Any]] = {
    "Identity": np.array, "Neg": np.negative, "Abs": np.abs, "Floor": np.floor, "Ceil": np.ceil, "Sqrt": np.sqrt,
    "Not": np.logical_not, "Sign": np.sign, "Round": np.round, "Exp": np.exp, "Log": np.log,
    "Reciprocal": np.reciprocal,
}  # fmt: skip
_BINARY: dict[str, Callable[..., Any]] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Pow": np.power, "And": np.logical_and, "Or": np.logical_or,
    "Equal": np.equal, "Greater": np.greater, "GreaterOrEqual": np.greater_equal, "Less": np.less,
    "LessOrEqual": np.less_equal, "Max": np.maximum, "Min": np.minimum,
}  # fmt: skip


@shape_rule("GreaterOrEqual", "LessOrEqual")
def comparison_shape(node: NodeView) -> Sequence[tuple[int, ...]]:
    """As NumPy broadcasts; until opset 16 these are functions, of which onnx infers the type alone."""
    return [np.broadcast_shapes(node.data.shape, node.weight(1).shape)]


@value_rule("Identity", moves=True)
def identity_value(node: NodeView, inputs: list[Array]) -> list[Array]:
    """The value itself."""
    return [inputs[0]]


@value_rule("Neg", "Abs", "Floor", "Ceil", "Sqrt", "Not", "Sign", "Round", "Exp", "Log", "Reciprocal")
def unary_value(node: NodeView, inputs: list[Array]) -> list[Array]:
    """A function of one operand."""
    return [np.asarray(_UNARY[node.op](inputs[0])).astype(bool if node.op == "Not" else inputs[0].dtype)]


@value_rule(*_BINARY)
def binary_value(node: NodeView, inputs: list[Array]) -> list[Array]:
    """A function of two operands, or a fold over more."""
    function = _BINARY[node.op]
    result = np.asarray(inputs[0])
    for operand in inputs[1:]:
        result = np.asarray(function(result, operand))
    return [result if result.dtype == bool else result.astype(inputs[0].dtype)]


@value_rule("Div")
def div_value(node: NodeView, inputs: list[Array]) -> list[Array]:
    """Integers divide with truncation toward zero."""
    left, right = inputs
    if np.issubdtype(left.dtype, np.integer):
        return [np.asarray(np.sign(left) * np.sign(right) * (np.abs(left) // np.abs(right)), left.dtype)]
    return [np.asarray(np.divide(left, right), left.dtype)]


@value_rule("Mod")
def mod_value(node: NodeView, inputs: list[Array]) -> list[Array]:
    """The sign follows the divisor, or the dividend with ``fmod``."""
    function = np.fmod if node.attribute("fmod", 0) else np.mod
    return [np.asarray(function(inputs[0], inputs[1]))]


@value_rule("Cast")
def cast_value(node: NodeView, inputs: list[Array]) -> list[Array]:
    """The value in another element type."""
    from onnx.helper import tensor_dtype_to_np_dtype

    target = node.attribute("to")
    return [inputs[0].astype(tensor_dtype_to_np_dtype(target) if isinstance(target, int) else target)]


@value_rule("Clip")
def clip_value(node: NodeView, inputs: list[Array]) -> list[Array]:
    """Bounded values; either bound may be missing."""
    bounds = [node.attribute("min"), node.attribute("max")]
    present = iter(inputs[1:])
    for place, value in enumerate(node.inputs[1:3]):
        if value is not None:
            bounds[place] = next(present)
    return [np.asarray(np.clip(inputs[0], *bounds), inputs[0].dtype)]


@value_rule("Where")
def where_value(node: NodeView, inputs: list[Array]) -> list[Array]:
    """A choice element by element."""
    return [np.where(inputs[0], inputs[1], inputs[2])]
