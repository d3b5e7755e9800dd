"""Construction steps that compute: convolutions, products, normalizations, functions, pools, reductions, attention."""

import math
from collections.abc import Callable

import numpy as np
from fuzz_graph import Builder, Dice, Tensor, UnfitError
from onnx import TensorProto

GrowStep = Callable[[Builder, Tensor, Dice], object]

STEPS: dict[str, GrowStep] = {}

BOUNDED = ("Sigmoid", "Tanh", "HardSigmoid", "Softsign")
UNARY = (
    ("Relu", 6), ("LeakyRelu", 6), ("Elu", 6), ("Selu", 6), ("Softplus", 1), ("ThresholdedRelu", 10), ("Shrink", 9),
    ("Celu", 12), ("HardSwish", 14), ("Mish", 18), ("Gelu", 20), ("Abs", 6), ("Neg", 6), ("Erf", 9), ("Sin", 7),
    ("Cos", 7), ("Atan", 7), ("Asinh", 9), ("Identity", 1),
)  # fmt: skip
INSIDE_ONE = ("Acos", "Asin", "Atanh", "Exp", "Cosh", "Sinh", "Tan")
"""Functions for which the argument has to be within (-1, 1), by poles, by domain or by growth."""


def step(function: GrowStep) -> GrowStep:
    """Registers a step under the name of its function."""
    if function.__name__ in STEPS:
        raise ValueError(f"two steps are called {function.__name__!r}")
    STEPS[function.__name__] = function
    return function


def need(condition: object) -> None:
    if not condition:
        raise UnfitError


def divisors(number: int) -> list[int]:
    return [d for d in range(2, number) if number % d == 0]


def need_space(x: Tensor, *ranks: int) -> tuple[int, ...]:
    """Returns the space of a tensor [N, C, ...]."""
    need(x.rank in (ranks or (3, 4)) and x.shape[0] < 0 and all(size > 0 for size in x.shape[1:]))
    return x.shape[2:]


def biased(b: Builder, size: int, dice: Dice) -> list[str]:
    return [] if dice.once_in(3) else [b.vector(size)]


@step
def conv(b: Builder, x: Tensor, dice: Dice) -> object:
    space = need_space(x)
    width = dice.choose((4, 6, 8, 12, 3))
    kernel = 3 if min(space) >= 3 and dice.once_in(2) else 1
    attributes: dict[str, object] = {"kernel_shape": [kernel] * len(space)}
    if kernel == 3:
        attributes["pads"] = [1] * 2 * len(space)
    if min(space) >= 4 and dice.once_in(5):
        attributes["strides"] = [2] * len(space)
        space = tuple((size - 1) // 2 + 1 for size in space)
    shape = (width, x.shape[1], *[kernel] * len(space))
    fan_in = math.prod(shape[1:])
    w = b.quantized(shape, 0, fan_in) if dice.once_in(8) else b.weight(shape, fan_in)
    y = b.emit("Conv", [x.name, w, *biased(b, width, dice)], attributes)
    return b.keep(y, (x.shape[0], width, *space), x.degree)


@step
def group_conv(b: Builder, x: Tensor, dice: Dice) -> object:
    space = need_space(x)
    groups = dice.choose(divisors(x.shape[1]))
    width = groups * dice.choose((2, 3, 4, 1))
    shape = (width, x.shape[1] // groups, *[1] * len(space))
    w = b.weight(shape, shape[1])
    y = b.emit("Conv", [x.name, w, *biased(b, width, dice)], {"group": groups})
    return b.keep(y, (x.shape[0], width, *space), x.degree)


@step
def depthwise(b: Builder, x: Tensor, dice: Dice) -> object:
    space = need_space(x)
    channels, times = x.shape[1], dice.choose((1, 1, 2))
    need(channels > 1 and min(space) >= 3)
    kernel = [3] * len(space)
    w = b.weight((channels * times, 1, *kernel), math.prod(kernel))
    attributes = {"group": channels, "pads": [1] * 2 * len(space)}
    y = b.emit("Conv", [x.name, w, *biased(b, channels * times, dice)], attributes)
    return b.keep(y, (x.shape[0], channels * times, *space), x.degree)


@step
def conv_transpose(b: Builder, x: Tensor, dice: Dice) -> object:
    space = need_space(x)
    channels = x.shape[1]
    groups = dice.choose((1, 1, *divisors(channels), channels))
    width = dice.choose((4, 3, 2, 1))
    stride = dice.choose((1, 2))
    w = b.weight((channels, width, *[stride] * len(space)), channels // groups)
    attributes = {"strides": [stride] * len(space), "group": groups}
    y = b.emit("ConvTranspose", [x.name, w, *biased(b, width * groups, dice)], attributes)
    return b.keep(y, (x.shape[0], width * groups, *[size * stride for size in space]), x.degree)


@step
def linear(b: Builder, x: Tensor, dice: Dice) -> object:
    """A MatMul, a Gemm or an Einsum over the last axis, with a bias."""
    need(x.rank >= 2 and x.shape[-1] > 0)
    inner, width = x.shape[-1], dice.choose((6, 8, 12, 4, 3))
    y = _gemm(b, x, width, dice) if x.rank == 2 and dice.once_in(2) else _product(b, x, inner, width, dice)
    return b.keep(y, (*x.shape[:-1], width), x.degree)


def _gemm(b: Builder, x: Tensor, width: int, dice: Dice) -> str:
    attributes: dict[str, object] = {}
    shape = (x.shape[1], width)
    if not dice.once_in(2):
        attributes["transB"], shape = 1, (width, x.shape[1])
    w = b.quantized(shape, shape.index(width), x.shape[1]) if dice.once_in(8) else b.weight(shape, x.shape[1])
    if dice.once_in(4):
        attributes |= {"alpha": 0.5, "beta": 2.0}
    name = x.name
    if dice.once_in(6):
        name, attributes["transA"] = b.emit("Transpose", [x.name], {"perm": [1, 0]}), 1
    bias = dice.choose(((width,), (width,), (1, width), (1,), None))
    return b.emit("Gemm", [name, w, *([] if bias is None else [b.weight(bias, 4)])], attributes)


def _product(b: Builder, x: Tensor, inner: int, width: int, dice: Dice) -> str:
    if b.opset >= 12 and dice.once_in(4):
        letters = "abcdef"[: x.rank]
        flip = dice.once_in(2)
        w = b.weight((width, inner) if flip else (inner, width), inner)
        equation = f"{letters},{'z' + letters[-1] if flip else letters[-1] + 'z'}->{letters[:-1]}z"
        y = b.emit("Einsum", [x.name, w], {"equation": equation})
    else:
        y = b.emit("MatMul", [x.name, b.weight((inner, width), inner)])
    return y if dice.once_in(3) else b.emit("Add", [y, b.vector(width)])


@step
def linear_left(b: Builder, x: Tensor, dice: Dice) -> object:
    """A product from the left: over the second axis from the end."""
    need(x.rank >= 3 and x.shape[-2] > 0)
    width = dice.choose((4, 6, 3))
    y = b.emit("MatMul", [b.weight((width, x.shape[-2]), x.shape[-2]), x.name])
    return b.keep(y, (*x.shape[:-2], width, x.shape[-1]), x.degree)


@step
def product_of_two(b: Builder, x: Tensor, dice: Dice) -> object:
    """A MatMul of two computed tensors, the second transposed where its shape asks for it."""
    need(x.rank >= 3 and x.shape[-1] > 0 and x.shape[-2] > 0)
    others = [t for t in b.pool if t.rank == x.rank and t.shape[:-2] == x.shape[:-2] and x.shape[-1] in t.shape[-2:]]
    y = dice.choose(others[::-1])
    name, columns = y.name, y.shape[-1]
    if y.shape[-2] != x.shape[-1]:
        perm = [*range(y.rank - 2), y.rank - 1, y.rank - 2]
        name, columns = b.emit("Transpose", [y.name], {"perm": perm}), y.shape[-2]
    scaled = b.emit("Mul", [x.name, b.scalar(1 / x.shape[-1])])
    return b.keep(b.emit("MatMul", [scaled, name]), (*x.shape[:-1], columns), x.degree + y.degree)


@step
def activation(b: Builder, x: Tensor, dice: Dice) -> object:
    names = [name for name, since in UNARY if since <= b.opset]
    op = dice.choose(("Relu", *BOUNDED, *names))
    return b.keep(b.emit(op, [x.name]), x.shape, 1 if op in BOUNDED or op == "Erf" else x.degree)


@step
def slopes(b: Builder, x: Tensor, dice: Dice) -> object:
    """PRelu, Clip, Dropout, or a cast there and back."""
    kind = dice.roll(5)
    if kind == 0:
        need(x.rank >= 3 and x.shape[1] > 0)
        slope = b.weight(dice.choose(((x.shape[1], *[1] * (x.rank - 2)), (1,))))
        return b.keep(b.emit("PRelu", [x.name, slope]), x.shape, x.degree)
    if kind == 1:
        low = dice.choose((b.scalar(-0.5), ""))
        return b.keep(b.emit("Clip", [x.name, low, b.scalar(1.5)]), x.shape, x.degree)
    if kind == 2:
        return b.keep(b.emit("Dropout", [x.name]), x.shape, x.degree)
    wide = b.emit("Cast", [x.name], {"to": TensorProto.DOUBLE})
    wide = b.emit(dice.choose(("Relu", "Neg", "Abs")), [wide])
    if kind == 3 and b.opset >= 15:
        return b.keep(b.emit("CastLike", [wide, b.pool[0].name]), x.shape, x.degree)
    return b.keep(b.emit("Cast", [wide], {"to": TensorProto.FLOAT}), x.shape, x.degree)


@step
def function(b: Builder, x: Tensor, dice: Dice) -> object:
    """A function with poles or jumps, made tame: its argument is moved, or the jumps meet."""
    kind = dice.roll(6)
    if kind == 0:
        inside = b.emit("Mul", [b.emit("Tanh", [x.name]), b.scalar(0.9)])
        return b.keep(b.emit(dice.choose(INSIDE_ONE), [inside]), x.shape)
    if kind == 1:
        above = b.emit("Add", [b.emit("Abs", [x.name]), b.scalar(1.0)])
        op = dice.choose(("Sqrt", "Log", "Reciprocal", "Acosh"))
        return b.keep(b.emit(op, [above]), x.shape, x.degree)
    if kind == 2:
        above = b.emit("Add", [b.emit("Abs", [x.name]), b.scalar(0.5)])
        return b.keep(b.emit("Pow", [above, b.scalar(1.5)]), x.shape, 2 * x.degree)
    if kind == 3:
        return b.keep(b.emit("Mul", [x.name, b.emit("Sign", [x.name])]), x.shape, x.degree)
    if kind == 4:
        whole = b.emit("Round", [x.name])
        return b.keep(b.emit("Abs", [b.emit("Sub", [x.name, whole])]), x.shape)
    return _sawtooth(b, x, dice)


def _sawtooth(b: Builder, x: Tensor, dice: Dice) -> Tensor:
    """The distance to the integer below or above, whichever is nearer."""
    below = b.emit("Sub", [x.name, b.emit("Floor", [x.name])])
    above = b.emit("Sub", [b.emit("Ceil", [x.name]), x.name])
    return b.keep(b.emit("Min", [below, above]), x.shape)


@step
def choice(b: Builder, x: Tensor, dice: Dice) -> object:
    """A Where over a comparison whose two sides meet, with logic around it."""
    op = dice.choose(("Greater", "Less", *(("GreaterOrEqual", "LessOrEqual") if b.opset >= 12 else ())))
    zero = b.scalar(0.0)
    mask = b.emit(op, [x.name, zero])
    match dice.roll(5):
        case 1:
            mask = b.emit("Not", [mask])
        case 2:
            mask = b.emit(dice.choose(("And", "Or", "Xor")), [mask, b.constant(np.array([dice.once_in(2)]), "m")])
        case 3:
            mask = b.emit("Or", [mask, b.emit("Equal", [x.name, zero])])
        case 4:
            mask = b.emit("Or", [mask, b.emit(dice.choose(("IsNaN", "IsInf")), [x.name])])
    if dice.once_in(3):
        kept = b.emit("Cast", [mask], {"to": TensorProto.FLOAT})
        return b.keep(b.emit("Mul", [x.name, kept]), x.shape, x.degree)
    other = b.emit("Mul", [x.name, b.scalar(0.25)])
    return b.keep(b.emit("Where", [mask, x.name, other]), x.shape, x.degree)


@step
def batch_norm(b: Builder, x: Tensor, dice: Dice) -> object:
    need(x.rank >= 2 and x.shape[0] < 0 and x.shape[1] > 0)
    c = x.shape[1]
    vectors = [b.vector(c), b.vector(c), b.vector(c), b.vector(c, positive=True)]
    return b.keep(b.emit("BatchNormalization", [x.name, *vectors]), x.shape, x.degree)


@step
def instance_norm(b: Builder, x: Tensor, dice: Dice) -> object:
    need_space(x)
    c = x.shape[1]
    name = x.name if dice.once_in(2) else b.emit("Add", [x.name, b.weight(x.shape[2:])])
    vectors = [b.vector(c, positive=True), b.vector(c, positive=True)]
    return b.keep(b.emit("InstanceNormalization", [name, *vectors]), x.shape)


@step
def group_norm(b: Builder, x: Tensor, dice: Dice) -> object:
    """GroupNormalization, or the InstanceNormalization over reshaped groups that exporters write for it."""
    need_space(x)
    c = x.shape[1]
    groups = dice.choose((*divisors(c), c))
    if b.opset >= 21 and not dice.once_in(3):
        vectors = [b.vector(c, positive=True), b.vector(c, positive=True)]
        y = b.emit("GroupNormalization", [x.name, *vectors], {"num_groups": groups})
        return b.keep(y, x.shape)
    rows = b.reshape(x, (x.shape[0], groups, math.prod(x.shape[1:]) // groups), dice)
    vectors = [b.constant(np.ones(groups, np.float32)), b.constant(np.zeros(groups, np.float32))]
    y = Tensor(b.emit("InstanceNormalization", [rows.name, *vectors]), rows.shape)
    if dice.once_in(2):
        y = Tensor(b.emit("Reshape", [y.name, b.emit("Shape", [x.name])]), x.shape)
    else:
        y = b.reshape(y, x.shape, dice)
    wide = (c, *[1] * (x.rank - 2))
    scaled = b.emit("Mul", [y.name, b.weight(wide, positive=True)])
    return b.keep(b.emit("Add", [scaled, b.weight(wide, positive=True)]), x.shape)


@step
def layer_norm(b: Builder, x: Tensor, dice: Dice) -> object:
    """LayerNormalization over the last axis, whole or in parts."""
    need(x.rank >= 2 and x.shape[-1] > 1)
    width = x.shape[-1]
    scale, shift = b.vector(width, positive=True), b.vector(width, positive=True)
    if b.opset >= 17 and not dice.once_in(3):
        return b.keep(b.emit("LayerNormalization", [x.name, scale, shift]), x.shape)
    mean = b.reduce("ReduceMean", x.name, [-1])
    centred = b.emit("Sub", [x.name, mean])
    square = b.emit("Pow", [centred, b.scalar(2.0)]) if dice.once_in(2) else b.emit("Mul", [centred, centred])
    spread = b.emit("Add", [b.reduce("ReduceMean", square, [-1]), b.scalar(0.01)])
    normal = b.emit("Div", [centred, b.emit("Sqrt", [spread])])
    return b.keep(b.emit("Add", [b.emit("Mul", [normal, scale]), shift]), x.shape)


@step
def other_norm(b: Builder, x: Tensor, dice: Dice) -> object:
    """Normalizations without weights."""
    kind = dice.roll(4)
    if kind == 0:
        need_space(x, 4)
        name = b.emit("LRN", [x.name], {"size": 3, "alpha": 0.5})
    elif kind == 1:
        need_space(x, 4)
        axes = dice.choose(([0, 2, 3], [2, 3], [1]))
        need(math.prod(x.shape[axis] for axis in axes if axis) > 1)
        spread = b.emit("Add", [x.name, b.weight(x.shape[1:])])  # no epsilon: nothing may be constant
        name = b.emit("MeanVarianceNormalization", [spread], {"axes": axes})
    elif kind == 2:
        axis = dice.choose([dim for dim, size in enumerate(x.shape) if size > 1])
        shifted = b.emit("Add", [b.emit("Abs", [x.name]), b.scalar(0.1)])
        name = b.emit("LpNormalization", [shifted], {"axis": axis, "p": dice.choose((2, 1))})
    else:
        axis = dice.choose([dim for dim, size in enumerate(x.shape) if size > 0])
        axis = axis - x.rank if dice.once_in(2) else axis
        name = b.emit(dice.choose(("Softmax", "LogSoftmax")), [x.name], {"axis": axis})
    shift = b.emit("Add", [name, b.scalar(0.5)])
    return b.keep(shift, x.shape)


@step
def pool(b: Builder, x: Tensor, dice: Dice) -> object:
    space = need_space(x)
    if dice.once_in(3):
        op = dice.choose(("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"))
        return b.keep(b.emit(op, [x.name]), (*x.shape[:2], *[1] * len(space)), x.degree)
    need(min(space) >= 2)
    stride = dice.choose((2, 1))
    space = tuple((size - 2) // stride + 1 for size in space)
    attributes = {"kernel_shape": [2] * len(space), "strides": [stride] * len(space)}
    y = b.emit(dice.choose(("MaxPool", "AveragePool", "LpPool")), [x.name], attributes)
    return b.keep(y, (*x.shape[:2], *space), x.degree)


@step
def reduction(b: Builder, x: Tensor, dice: Dice) -> object:
    dims = [dim for dim, size in enumerate(x.shape) if size > 0]
    axes = [dice.choose(dims[::-1])]
    if len(dims) > 2 and dice.once_in(3):
        axes = sorted({*axes, dice.choose(dims)})
    size = math.prod(x.shape[dim] for dim in axes)
    keep = not dice.once_in(2)
    op = dice.choose(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare",
                      "ReduceLogSumExp", "ReduceProd", "ReduceLogSum"))  # fmt: skip
    need(x.rank > len(axes) or keep)
    name, degree = x.name, x.degree + (op == "ReduceSum")
    if op in ("ReduceLogSumExp", "ReduceProd", "ReduceLogSum"):
        name, degree = b.emit("Sigmoid", [x.name]), 1
        need(op != "ReduceProd" or size <= 12)
    degree = 2 * degree if op == "ReduceSumSquare" else degree
    shape = [1 if dim in axes else length for dim, length in enumerate(x.shape) if keep or dim not in axes]
    return b.keep(b.reduce(op, name, axes, keepdims=keep), shape, degree)


@step
def running_sum(b: Builder, x: Tensor, dice: Dice) -> object:
    axis = dice.choose([dim for dim, size in enumerate(x.shape) if size > 1])
    if dice.once_in(2):
        where = b.constant(np.array(axis, np.int64), "i")
        return b.keep(b.emit("CumSum", [x.name, where]), x.shape, x.degree + 1)
    taken = dice.roll(x.shape[axis]) + 1
    y = b.emit_many("TopK", [x.name, b.ints(taken)], 2, {"axis": axis})[0]
    return b.keep(y, (*x.shape[:axis], taken, *x.shape[axis + 1 :]), x.degree)


@step
def squeeze_excite(b: Builder, x: Tensor, dice: Dice) -> object:
    space = need_space(x)
    channels, width = x.shape[1], dice.choose((2, 4))
    ones = [1] * len(space)
    if dice.once_in(2):
        pooled = b.emit("GlobalAveragePool", [x.name])
    else:
        pooled = b.reduce("ReduceMean", x.name, [dim + 2 for dim in range(len(space))])
    inner = b.emit("Conv", [pooled, b.weight((width, channels, *ones), channels), *biased(b, width, dice)])
    inner = b.emit("Relu", [inner])
    outer = b.emit("Conv", [inner, b.weight((channels, width, *ones), width), *biased(b, channels, dice)])
    gate = b.emit(dice.choose(("Sigmoid", "HardSigmoid")), [outer])
    return b.keep(b.emit("Mul", [x.name, gate]), x.shape, x.degree)


@step
def residual(b: Builder, x: Tensor, dice: Dice) -> object:
    """Two convolutions or two products with a function between them, added to where they started."""
    width = dice.choose((6, 8, 4))
    if x.rank in (3, 4) and not dice.once_in(3):
        space = need_space(x)
        ones = [1] * len(space)
        inner = b.emit("Conv", [x.name, b.weight((width, x.shape[1], *ones), x.shape[1]), b.vector(width)])
        inner = b.emit("Relu", [inner])
        y = b.emit("Conv", [inner, b.weight((x.shape[1], width, *ones), width)])
    else:
        need(x.rank >= 2 and x.shape[-1] > 0)
        inner = b.emit("MatMul", [x.name, b.weight((x.shape[-1], width), x.shape[-1])])
        inner = b.emit("Relu", [b.emit("Add", [inner, b.vector(width)])])
        y = b.emit("MatMul", [inner, b.weight((width, x.shape[-1]), width)])
    return b.keep(b.emit("Add", [x.name, y]), x.shape, x.degree)
