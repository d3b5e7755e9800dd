"""Construction steps with what odd networks do: groups that cross, lengths in formulas, weights that are computed."""

import math

import numpy as np
from fuzz_graph import Builder, Dice, Tensor
from fuzz_layers import divisors, need, need_space, step
from onnx import TensorProto


@step
def length_in_formula(b: Builder, x: Tensor, dice: Dice) -> object:
    """Divides by a root of a length, or scales by a function of it that no shape follows."""
    dim = dice.choose([dim for dim, size in enumerate(x.shape) if abs(size) > 1 or size < 0][::-1])
    length = b.size_of(x, dim, dice)
    if dice.once_in(3):
        length = b.emit("Div", [length, b.ints(dice.choose((2, 3)))])
        length = b.emit("Add", [length, b.ints(1)])
    number = b.emit("Cast", [length], {"to": TensorProto.FLOAT})
    match dice.roll(4):
        case 0:
            y = b.emit("Div", [x.name, b.emit("Sqrt", [number])])
        case 1:
            y = b.emit("Mul", [x.name, b.emit("Pow", [number, b.scalar(-0.5)])])
        case 2:
            y = b.emit("Mul", [x.name, b.emit("Reciprocal", [b.emit("Add", [number, b.scalar(1.0)])])])
        case _:
            y = b.emit("Sub", [x.name, b.emit("Floor", [b.emit("Mul", [number, b.scalar(0.3)])])])
    return b.keep(y, x.shape, x.degree)


@step
def two_group_counts(b: Builder, x: Tensor, dice: Dice) -> object:
    """Two convolutions of different group counts read one tensor, perhaps after it is joined with itself changed."""
    space = need_space(x)
    if dice.once_in(2):
        y = b.emit("Concat", [x.name, b.emit("Tanh", [x.name])], {"axis": 1})
        x = Tensor(y, (x.shape[0], 2 * x.shape[1], *space), x.degree)
    counts = [1, *divisors(x.shape[1]), x.shape[1]]
    width = math.lcm(*counts) * (1 if x.shape[1] > 4 else 2)
    need(width <= 24)
    parts = [_grouped(b, x, width, dice.choose(counts[::-1])) for _ in range(2)]
    if dice.once_in(2):
        return b.keep(b.emit("Add", parts), (x.shape[0], width, *space), x.degree)
    return b.keep(b.emit("Concat", parts, {"axis": 1}), (x.shape[0], 2 * width, *space), x.degree)


def _grouped(b: Builder, x: Tensor, width: int, groups: int) -> str:
    rows = x.shape[1] // groups
    w = b.weight((width, rows, *[1] * (x.rank - 2)), rows)
    return b.emit("Conv", [x.name, w, b.vector(width)], {"group": groups})


@step
def gate_of_extremes(b: Builder, x: Tensor, dice: Dice) -> object:
    """A gate from the mean, the largest and the smallest channel of each place."""
    axis = dice.choose([dim for dim, size in enumerate(x.shape) if size > 1][::-1] if dice.once_in(2) else [1])
    need(x.rank > axis and x.shape[axis] > 1)
    ops = dice.choose((("ReduceMean", "ReduceMax"), ("ReduceMax", "ReduceMin"), ("ReduceMin",), ("ReduceMax",)))
    name = x.name
    if dice.once_in(2):
        name = b.emit(dice.choose(("Abs", "Relu", "Exp")), [b.emit("Tanh", [name])])
        name = b.emit("Neg", [name]) if dice.once_in(2) else name
    parts = [b.reduce(op, name, [axis]) for op in ops]
    gate = b.emit("Sigmoid", [parts[0] if len(parts) == 1 else b.emit("Sub", parts)])
    return b.keep(b.emit("Mul", [x.name, gate]), x.shape, x.degree)


@step
def bases(b: Builder, x: Tensor, dice: Dice) -> object:
    """Functions of each channel at several places, each from two neighbours; all merged into one axis, then a product.

    A second product reads the channels themselves.
    """
    need(x.rank == 2 and x.shape[0] < 0 and x.shape[1] > 1)
    width, knots, order = x.shape[1], 4, dice.choose((1, 2))
    wide = b.squeeze("Unsqueeze", x.name, [2])
    y = b.emit("Tanh", [b.emit("Sub", [wide, b.weight((width, knots))])])
    where = b.ints(2)
    for _ in range(order):
        left = b.emit("Slice", [y, b.ints(0), b.ints(-1), where])
        right = b.emit("Slice", [y, b.ints(1), b.ints(9), where])
        y, knots = b.emit("Mul", [left, right]), knots - 1
    flat = b.reshape(Tensor(y, (x.shape[0], width, knots)), (x.shape[0], width * knots), dice)
    out = dice.choose((6, 4))
    y = b.emit("MatMul", [flat.name, b.weight((width * knots, out), width * knots)])
    z = b.emit("MatMul", [x.name, b.weight((width, out), width)])
    return b.keep(b.emit("Add", [y, z]), (x.shape[0], out), x.degree)


@step
def outer(b: Builder, x: Tensor, dice: Dice) -> object:
    """Products of channels with channels, of one tensor or of two layers, flattened."""
    need(x.rank == 2 and x.shape[0] < 0 and 1 < x.shape[1] <= 8)
    y, count = x.name, x.shape[1]
    if dice.once_in(2):
        count = dice.choose((4, 3))
        y = b.emit("MatMul", [x.name, b.weight((x.shape[1], count), x.shape[1])])
    left, right = b.squeeze("Unsqueeze", x.name, [2]), b.squeeze("Unsqueeze", y, [1])
    product = Tensor(b.emit("MatMul", [left, right]), (x.shape[0], x.shape[1], count), 2 * x.degree)
    flat = b.reshape(product, (x.shape[0], x.shape[1] * count), dice)
    return b.keep(flat.name, flat.shape, flat.degree)


@step
def modulated(b: Builder, x: Tensor, dice: Dice) -> object:
    """A convolution whose weight is scaled by a style for each sample; batch and channels are merged into groups."""
    space = need_space(x, 4)
    need(x.shape[0] == -1)
    channels, width = x.shape[1], dice.choose((4, 6))
    pooled = b.reduce("ReduceMean", x.name, [2, 3], keepdims=False)
    style = b.emit("MatMul", [pooled, b.weight((channels, channels), channels)])
    wide = b.squeeze("Unsqueeze", b.emit("Sigmoid", [style]), [1])
    weight = b.emit("Mul", [b.weight((width, channels), channels), wide])
    if dice.once_in(2):
        total = b.reduce("ReduceSum", b.emit("Mul", [weight, weight]), [2])
        weight = b.emit("Div", [weight, b.emit("Sqrt", [b.emit("Add", [total, b.scalar(0.01)])])])
    flat = b.reshape(x, (x.shape[0], channels, math.prod(space)), dice)
    y = b.emit("MatMul", [weight, flat.name])
    back = b.reshape(Tensor(y, (x.shape[0], width, math.prod(space))), (x.shape[0], width, *space), dice)
    return b.keep(back.name, back.shape, x.degree)


@step
def deformed(b: Builder, x: Tensor, dice: Dice) -> object:
    """A deformable convolution with offsets from another one."""
    need(b.opset >= 19)
    space = need_space(x, 4)
    groups = dice.choose((1, 1, *divisors(x.shape[1])))
    width = groups * dice.choose((2, 4))
    offsets = b.emit("Conv", [x.name, b.weight((2, x.shape[1], 1, 1), x.shape[1])])
    w = b.weight((width, x.shape[1] // groups, 1, 1), x.shape[1])
    y = b.emit("DeformConv", [x.name, w, b.emit("Sigmoid", [offsets])], {"group": groups, "kernel_shape": [1, 1]})
    return b.keep(y, (x.shape[0], width, *space), x.degree)


@step
def routed(b: Builder, x: Tensor, dice: Dice) -> object:
    """Layers side by side, weighed by a softmax: by a product, or by a mask of the best."""
    need(x.rank == 2 and x.shape[0] < 0 and x.shape[1] > 1)
    experts, width, inner = 3, x.shape[1], 6
    gate = b.emit("Softmax", [b.emit("MatMul", [x.name, b.weight((width, experts), width)])], {"axis": 1})
    wide = b.squeeze("Unsqueeze", b.squeeze("Unsqueeze", x.name, [1]), [1])
    hidden = b.emit("Relu", [b.emit("MatMul", [wide, b.weight((experts, width, inner), width)])])
    found = b.emit("MatMul", [hidden, b.weight((experts, inner, width), inner)])
    if dice.once_in(2):
        found = b.emit("Transpose", [b.squeeze("Squeeze", found, [2])], {"perm": [0, 2, 1]})
        y = b.squeeze("Squeeze", b.emit("MatMul", [found, b.squeeze("Unsqueeze", gate, [2])]), [2])
    else:
        places = b.constant(np.array([1, 0, 1], np.float32), "s")
        weighed = b.squeeze("Unsqueeze", b.emit("Mul", [gate, places]), [2])
        y = b.reduce("ReduceSum", b.emit("Mul", [b.squeeze("Squeeze", found, [2]), weighed]), [1], keepdims=False)
    return b.keep(y, x.shape, x.degree)
