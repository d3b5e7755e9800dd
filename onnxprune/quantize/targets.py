"""What each target makes of Q/DQ, one table a target; placement, emission and checks read nothing else.

The facts are those of the runtimes: which operators have integer kernels, which only pass integers on, what element
types, scales and biases they take.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from onnxprune.errors import UsageError
from onnxprune.quantize.grids import SIGNED, UNSIGNED, WEIGHTS, Grid


class Role(Enum):
    """What an operator does with integers."""

    MULTIPLY = "multiplies with weights"
    JOIN = "computes from integers"
    MOVE = "moves integers"
    SCALE = "multiplies with one number, which the scale of its integers takes in"
    CLIP = "is part of the rounding behind it"
    SHARE = "passes on what is rounded behind it"


class Result(Enum):
    """What an operator writes."""

    INTEGERS = "integers"
    EITHER = "integers or floats"
    FLOATS = "floats"


@dataclass(frozen=True, slots=True)
class Rule:
    """How a target computes one operator in integers.

    Attributes:
        role: What it does.
        result: What it writes; where that is integers, a Q stands behind it, or it is not computed in them.
        least: Fewest input and output channels, or rows and columns, from which on it pays.
        aligned: Multiples of this pay below that too; none where it is 0.
        one_scale: All its computed inputs and its result have one scale.
        by_number: Its role where one operand is a stored positive number.
        spare_linear: The input that an operator with weights makes for it alone stays float: the two are one kernel.
    """

    role: Role
    result: Result = Result.INTEGERS
    least: int = 1
    aligned: int = 0
    one_scale: bool = False
    by_number: Role | None = None
    spare_linear: bool = False

    def pays(self, inputs: int, outputs: int) -> bool:
        """Returns whether an operator has enough channels."""
        small = min(inputs, outputs) < self.least
        return not small or bool(self.aligned and not inputs % self.aligned and not outputs % self.aligned)


@dataclass(frozen=True, slots=True)
class Target:
    """One runtime.

    Attributes:
        name: As in ``--target``.
        activations: The grid of what is computed, one scale for each tensor.
        weights: The grid of weights, one scale for each output channel.
        integer_bias: Whether biases are int32 on the scale of the products, or floats.
        rules: Operators that it computes in integers, or passes them through.
        floats: Why others stay float, where more is known than that there is no kernel.
        opset: The least opset that its forms need.
        here: Whether its files run here as they will run there, so that they can be timed.
        refused: Why it takes no quantized activations, where it does not.
    """

    name: str
    activations: Grid
    weights: Grid
    integer_bias: bool
    rules: Mapping[str, Rule] = field(default_factory=dict)
    floats: Mapping[str, str] = field(default_factory=dict)
    opset: int = 13
    refused: str | None = None
    here: bool = False


NO_KERNEL = "the target has no integer kernel for it"

_MOVES = (
    "DepthToSpace", "Expand", "Flatten", "Gather", "MaxPool", "Reshape", "Resize", "Slice", "SpaceToDepth", "Split",
    "Squeeze", "Tile", "Transpose", "Unsqueeze",
)  # fmt: skip
_JOINS = ("Add", "AveragePool", "Concat", "GlobalAveragePool", "LeakyRelu", "Sigmoid")

ORT_CPU = Target(
    "ort-cpu",
    UNSIGNED,
    WEIGHTS,
    integer_bias=True,
    here=True,
    rules={
        "Conv": Rule(Role.MULTIPLY),
        "Gemm": Rule(Role.MULTIPLY, Result.EITHER),
        "MatMul": Rule(Role.MULTIPLY, Result.EITHER),
        **dict.fromkeys(_JOINS, Rule(Role.JOIN)),
        **dict.fromkeys(_MOVES, Rule(Role.MOVE, one_scale=True)),
        "Mul": Rule(Role.JOIN, by_number=Role.SCALE),
        "Div": Rule(Role.SCALE),
        "Clip": Rule(Role.CLIP),
        "Relu": Rule(Role.CLIP),
    },
    floats={
        "ConvTranspose": "ONNX Runtime's CPU provider has no integer kernel for it, and Q/DQ would only cost time",
        "Softmax": "it comes between products of activations, which stay float",
    },
)
"""Uint8 activations, and a Q behind whatever computes in integers: without it ONNX Runtime fuses nothing."""

_TENSORRT_RULES = {
    "Add": Rule(Role.JOIN, Result.FLOATS, spare_linear=True),
    "Conv": Rule(Role.MULTIPLY, Result.FLOATS, least=16, aligned=8),
    "ConvTranspose": Rule(Role.MULTIPLY, Result.FLOATS, least=16),
    "Gemm": Rule(Role.MULTIPLY, Result.FLOATS, least=16),
    "MatMul": Rule(Role.MULTIPLY, Result.FLOATS, least=16),
    "Concat": Rule(Role.SHARE, Result.FLOATS, one_scale=True),
}

TENSORRT = Target(
    "tensorrt",
    SIGNED,
    WEIGHTS,
    integer_bias=False,
    rules=_TENSORRT_RULES,
    floats={
        "LayerNormalization": "normalizations stay float",
        "Softmax": "attention is one kernel of its own, which Q/DQ inside it would break up",
    },
)
"""Symmetric int8 on the inputs of operators with weights, nothing behind them: there TensorRT fuses what follows."""

GENERIC = Target(
    "generic",
    SIGNED,
    WEIGHTS,
    integer_bias=False,
    rules={name: Rule(Role.MULTIPLY, Result.FLOATS) for name in ("Conv", "ConvTranspose", "Gemm", "MatMul")},
)
"""Symmetric int8 on the inputs of operators with weights: what every reader of Q/DQ understands."""

ORT_CUDA = Target(
    "ort-cuda",
    UNSIGNED,
    WEIGHTS,
    integer_bias=False,
    refused="ONNX Runtime's CUDA provider has no int8 convolutions, Q/DQ run there as kernels between float ones: "
    "give --fp16, or --weights int4 for models of matrix products",
)

TARGETS: Mapping[str, Target] = {target.name: target for target in (ORT_CPU, ORT_CUDA, TENSORRT, GENERIC)}


def target_of(name: str) -> Target:
    """Returns a target by name.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in TARGETS:
        raise UsageError(f"there is no target {name!r}: choose one of {', '.join(TARGETS)}")
    return TARGETS[name]
