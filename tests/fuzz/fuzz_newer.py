"""Construction steps with operators of newer opsets, indexing operators, and bodies that run several times."""

import math

import numpy as np
from fuzz_graph import Builder, Dice, Tensor
from fuzz_layers import need, step
from onnx import TensorProto, helper, numpy_helper


@step
def rms_norm(b: Builder, x: Tensor, dice: Dice) -> object:
    """RMSNormalization over the last axis, whole or in parts."""
    need(x.rank >= 2 and x.shape[-1] > 1)
    scale = b.vector(x.shape[-1], positive=True)
    if b.opset >= 23 and not dice.once_in(3):
        return b.keep(b.emit("RMSNormalization", [x.name, scale], {"epsilon": 0.01}), x.shape)
    mean = b.reduce("ReduceMean", b.emit("Mul", [x.name, x.name]), [-1])
    root = b.emit("Sqrt", [b.emit("Add", [mean, b.scalar(0.01)])])
    op, root = ("Mul", b.emit("Reciprocal", [root])) if dice.once_in(2) else ("Div", root)
    return b.keep(b.emit("Mul", [b.emit(op, [x.name, root]), scale]), x.shape)


@step
def fused_attention(b: Builder, x: Tensor, dice: Dice) -> object:
    """The Attention operator over [N, T, D], with as many or fewer heads for keys and values, perhaps rotated."""
    need(b.opset >= 23 and x.rank == 3 and x.shape[0] == -1 and 1 < x.shape[1] <= 16 and x.shape[2] > 0)
    heads, size = dice.choose((2, 4)), 4
    kept = heads // 2 if dice.once_in(3) else heads
    parts = [
        b.emit("MatMul", [x.name, b.weight((x.shape[2], count * size), x.shape[2])]) for count in (heads, kept, kept)
    ]
    if dice.once_in(3):
        parts[:2] = [_rotated(b, x, part, count, dice) for part, count in zip(parts, (heads, kept), strict=False)]
    y = b.emit("Attention", parts, {"q_num_heads": heads, "kv_num_heads": kept})
    y = b.emit("MatMul", [y, b.weight((heads * size, x.shape[2]), heads * size)])
    return b.keep(b.emit("Add", [x.name, y]), x.shape, x.degree)


def _rotated(b: Builder, x: Tensor, part: str, heads: int, dice: Dice) -> str:
    tables = [b.weight((x.shape[1], 2)), b.weight((x.shape[1], 2))]
    places = b.constant(np.arange(x.shape[1])[np.newaxis], "i")
    every = b.emit("Expand", [places, b.emit("Concat", [b.size_of(x, 0, dice), b.ints(1)], {"axis": 0})])
    return b.emit("RotaryEmbedding", [part, *tables, every], {"num_heads": heads})


@step
def indexing(b: Builder, x: Tensor, dice: Dice) -> object:
    """GatherND, ScatterND, ScatterElements, OneHot along axes that may be channels."""
    need(x.rank >= 2 and x.shape[0] < 0 and x.shape[1] > 0)
    kind = dice.roll(3)
    if kind == 0:
        need(b.opset >= 12 and x.rank >= 3)
        places = b.constant(np.array([[dice.roll(x.shape[1])]], np.int64), "i")
        sizes = b.emit("Concat", [b.size_of(x, 0, dice), b.ints(1)], {"axis": 0})
        y = b.emit("GatherND", [x.name, b.emit("Expand", [places, sizes])], {"batch_dims": 1})
        return b.keep(y, (x.shape[0], *x.shape[2:]), x.degree)
    if kind == 1:
        order = [1, 0, *range(2, x.rank)]
        turned = b.emit("Transpose", [x.name], {"perm": order})
        row = b.constant(np.array([[dice.roll(x.shape[1])]], np.int64), "i")
        zero = b.emit("Mul", [b.emit("Slice", [turned, b.ints(0), b.ints(1), b.ints(0)]), b.scalar(0.5)])
        y = b.emit("ScatterND", [turned, row, zero])
        return b.keep(b.emit("Transpose", [y], {"perm": order}), x.shape, x.degree)
    numbers = b.constant(np.arange(x.shape[1]), "i")
    values = b.constant(np.array([0, 1], np.float32), "s")
    depth = b.constant(np.array(x.shape[1], np.int64), "i")
    unit = b.emit("OneHot", [numbers, depth, values], {"axis": -1})
    need(x.rank == 2)
    return b.keep(b.emit("MatMul", [x.name, unit]), x.shape, x.degree)


@step
def bits(b: Builder, x: Tensor, dice: Dice) -> object:
    """A mask that takes a way through integers."""
    need(b.opset >= 18 and x.shape[-1] > 0)
    mask = b.emit("Cast", [b.emit("Greater", [x.name, b.scalar(0.0)])], {"to": TensorProto.INT64})
    stored = b.constant(np.arange(x.shape[-1]) % 2, "i")
    mask = b.emit(dice.choose(("BitwiseAnd", "BitwiseOr", "BitwiseXor")), [mask, stored])
    kept = b.emit("Cast", [b.emit("Cast", [mask], {"to": TensorProto.BOOL})], {"to": TensorProto.FLOAT})
    return b.keep(b.emit("Mul", [x.name, kept]), x.shape, x.degree)


@step
def loop(b: Builder, x: Tensor, dice: Dice) -> object:
    """A Loop that runs twice over a tensor, with a weight from outside."""
    need(x.shape[-1] > 0)
    w = b.vector(x.shape[-1])
    state, result, again, scaled = (b.fresh("s") for _ in range(4))
    nodes = [
        helper.make_node("Mul", [state, w], [scaled], name=f"inner_{scaled}"),
        helper.make_node("Tanh", [scaled], [result], name=f"inner_{result}"),
        helper.make_node("Identity", [again + "in"], [again], name=f"inner_{again}"),
    ]
    count = helper.make_tensor_value_info(again + "n", TensorProto.INT64, [])
    going = helper.make_tensor_value_info(again + "in", TensorProto.BOOL, [])
    shape = b.declared(x.shape)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in (state, result)]
    ends = helper.make_tensor_value_info(again, TensorProto.BOOL, [])
    body = helper.make_graph(nodes, f"body_{again}", [count, going, values[0]], [ends, values[1]])
    trips = b.constant(np.array(2, np.int64), "i")
    yes = b.emit("Constant", [], {"value": numpy_helper.from_array(np.array(True))})
    return b.keep(b.emit("Loop", [trips, yes, x.name], {"body": body}), x.shape)


@step
def crop(b: Builder, x: Tensor, dice: Dice) -> object:
    """CenterCropPad, GridSample or ReverseSequence."""
    kind = dice.roll(3)
    if kind == 0:
        axis = dice.choose([dim for dim, size in enumerate(x.shape) if size > 1][::-1])
        need(b.opset >= 18)
        size = x.shape[axis] + dice.choose((-1, 1))
        y = b.emit("CenterCropPad", [x.name, b.ints(size)], {"axes": [axis]})
        return b.keep(y, (*x.shape[:axis], size, *x.shape[axis + 1 :]), x.degree)
    if kind == 1:
        need(b.opset >= 16 and x.rank == 4 and x.shape[0] == -1 and min(x.shape[1:]) > 0)
        rng = np.random.default_rng(b.names)
        grid = b.constant(rng.uniform(-1, 1, (1, 3, 3, 2)).astype(np.float32), "s")
        sizes = b.emit("Concat", [b.size_of(x, 0, dice), b.ints(1, 1, 1)], {"axis": 0})
        y = b.emit("GridSample", [x.name, b.emit("Expand", [grid, sizes])])
        return b.keep(y, (*x.shape[:2], 3, 3), x.degree)
    need(x.rank >= 2 and x.shape[0] == -1 and x.shape[1] > 1)
    lengths = b.emit("Expand", [b.ints(x.shape[1]), b.size_of(x, 0, dice)])
    y = b.emit("ReverseSequence", [x.name, lengths], {"batch_axis": 0, "time_axis": 1})
    return b.keep(y, x.shape, x.degree)


@step
def perceptron(b: Builder, x: Tensor, dice: Dice) -> object:
    """A norm, two products, a gate: the block of a transformer without its attention."""
    need(x.rank == 3 and x.shape[-1] > 1)
    width, inner = x.shape[-1], dice.choose((8, 6, 12))
    y = x.name
    if b.opset >= 17 and dice.once_in(2):
        y = b.emit("LayerNormalization", [y, b.vector(width, positive=True), b.vector(width, positive=True)])
    up = b.emit("MatMul", [y, b.weight((width, inner), width)])
    if dice.once_in(2):
        gate = b.emit("MatMul", [y, b.weight((width, inner), width)])
        up = b.emit("Mul", [b.emit("Mul", [gate, b.emit("Sigmoid", [gate])]), b.emit("Tanh", [up])])
    else:
        half = b.emit("Mul", [up, b.scalar(math.sqrt(0.5))])
        up = b.emit("Mul", [up, b.emit("Add", [b.emit("Erf", [half]), b.scalar(1.0)])])
    down = b.emit("MatMul", [up, b.weight((inner, width), inner)])
    return b.keep(b.emit("Add", [x.name, down]), x.shape, x.degree + 1)


@step
def quantized(b: Builder, x: Tensor, dice: Dice) -> object:
    """A product with a weight that is stored in 8 bits, with one scale for each output or each input."""
    need(x.rank >= 2 and x.shape[-1] > 0)
    width = dice.choose((6, 8, 4))
    w = b.quantized((x.shape[-1], width), dice.choose((1, 0)), x.shape[-1])
    return b.keep(b.emit("MatMul", [x.name, w]), (*x.shape[:-1], width), x.degree)
