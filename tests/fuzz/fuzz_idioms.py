"""Construction steps with the idioms of exporters: computed sizes, captured weights, rolled axes, odd outputs."""

import math

import numpy as np
from fuzz_graph import Builder, Dice, Tensor
from fuzz_layers import biased, divisors, need, need_space, step
from onnx import TensorProto, helper, numpy_helper

LAST = 2**63 - 1


@step
def roll(b: Builder, x: Tensor, dice: Dice) -> object:
    """A cyclic shift along any axis: two slices change places."""
    axis = dice.choose([dim for dim, size in enumerate(x.shape) if size > 1])
    at = dice.roll(x.shape[axis] - 1) + 1
    where = b.ints(axis)
    tail = b.emit("Slice", [x.name, b.ints(at), b.ints(LAST), where])
    head = b.emit("Slice", [x.name, b.ints(0), b.ints(at), where])
    return b.keep(b.emit("Concat", [tail, head], {"axis": axis}), x.shape, x.degree)


@step
def rotary(b: Builder, x: Tensor, dice: Dice) -> object:
    """Rotates pairs of channels of the last axis: x * cos + (-second, first) * sin."""
    need(x.rank >= 3 and x.shape[-1] > 0 and x.shape[-1] % 2 == 0 and x.shape[-2] > 0)
    half = x.shape[-1] // 2
    if dice.once_in(2):
        first, second = b.split(x.name, [half, half], -1)
    else:
        where = b.ints(x.rank - 1)
        first = b.emit("Slice", [x.name, b.ints(0), b.ints(half), where])
        second = b.emit("Slice", [x.name, b.ints(half), b.ints(LAST), where])
    turned = b.emit("Concat", [b.emit("Neg", [second]), first], {"axis": -1})
    table = (x.shape[-2], x.shape[-1])
    left = b.emit("Mul", [x.name, b.weight(table)])
    right = b.emit("Mul", [turned, b.weight(table)])
    return b.keep(b.emit("Add", [left, right]), x.shape, x.degree)


@step
def shortcut(b: Builder, x: Tensor, dice: Dice) -> object:
    """A residual block that halves space; its shortcut takes every second pixel and pads channels."""
    high, wide = need_space(x, 4)
    need(high >= 2 and wide >= 2 and x.shape[1] > 1)
    more = dice.choose((x.shape[1], 2, 1))
    width, channels = x.shape[1] + more, x.shape[1]
    before = dice.roll(more + 1)
    w = b.weight((width, channels, 1, 1), channels)
    y = b.emit("Conv", [x.name, w, *biased(b, width, dice)], {"strides": [2, 2]})
    small = b.emit("Slice", [x.name, b.ints(0, 0), b.ints(LAST, LAST), b.ints(2, 3), b.ints(2, 2)])
    wide_one = b.emit("Pad", [small, b.ints(0, before, 0, 0, 0, more - before, 0, 0)])
    shape = (x.shape[0], width, (high + 1) // 2, (wide + 1) // 2)
    return b.keep(b.emit("Add", [y, wide_one]), shape, x.degree)


@step
def made_weight(b: Builder, x: Tensor, dice: Dice) -> object:
    """A product whose weight is computed: with a low-rank update, a slice, a join, normalized, scaled."""
    need(x.rank >= 2 and x.shape[-1] > 1)
    inner, width = x.shape[-1], dice.choose((6, 4, 8))
    kind = dice.roll(5)
    if kind == 0:
        thin = b.emit("MatMul", [b.weight((inner, 2), inner), b.weight((2, width), 2)])
        w = b.emit("Add", [b.weight((inner, width), inner), thin])
    elif kind == 1:
        packed = b.weight((inner, width + 3), inner)
        w = b.emit("Slice", [packed, b.ints(3), b.ints(LAST), b.ints(1)])
    elif kind == 2:
        left, right = b.weight((inner, width - 2), inner), b.weight((inner, 2), inner)
        w = b.emit("Concat", [left, right], {"axis": 1})
    elif kind == 3:
        raw = b.weight((inner, width), inner)
        norm = b.reduce("ReduceL2", raw, [dice.choose((0, 1))])
        w = b.emit("Mul", [b.emit("Div", [raw, norm]), b.vector(width)])
    else:
        raw = b.weight((width, inner), inner)
        w = b.emit("Transpose", [b.emit("Mul", [raw, b.weight((width, 1))])], {"perm": [1, 0]})
    return b.keep(b.emit("MatMul", [x.name, w]), (*x.shape[:-1], width), x.degree)


@step
def packed_products(b: Builder, x: Tensor, dice: Dice) -> object:
    """One stored matrix, split into the weights of two products."""
    need(x.rank >= 2 and x.shape[-1] > 0)
    inner, width = x.shape[-1], dice.choose((4, 6))
    left, right = b.split(b.weight((inner, 2 * width), inner), [width, width], 1, implied=dice.once_in(2))
    y, z = b.emit("MatMul", [x.name, left]), b.emit("MatMul", [x.name, right])
    if dice.once_in(2):
        return b.keep(b.emit("Mul", [y, b.emit("Tanh", [z])]), (*x.shape[:-1], width), x.degree)
    b.keep(y, (*x.shape[:-1], width), x.degree)
    return b.keep(z, (*x.shape[:-1], width), x.degree)


@step
def positions(b: Builder, x: Tensor, dice: Dice) -> object:
    """Adds the number of each place along an axis, counted at run time; or rows of a table that it looks up."""
    axis = dice.choose([dim for dim, size in enumerate(x.shape) if size > 0])
    zero, one = (b.constant(np.array(value, np.int64), "i") for value in (0, 1))
    length = b.squeeze("Squeeze", b.size_of(x, axis, dice), [0])
    places = b.emit("Range", [zero, length, one])
    if dice.once_in(2):
        need(axis == x.rank - 2 and x.shape[-1] > 0)
        rows = b.emit("Gather", [b.weight((40, x.shape[-1])), places])
        return b.keep(b.emit("Add", [x.name, rows]), x.shape, x.degree)
    numbers = b.emit("Mul", [b.emit("Cast", [places], {"to": TensorProto.FLOAT}), b.scalar(0.1)])
    wide = b.squeeze("Unsqueeze", numbers, list(range(1, x.rank - axis))) if axis < x.rank - 1 else numbers
    return b.keep(b.emit("Add", [x.name, wide]), x.shape, x.degree)


@step
def expand_idiom(b: Builder, x: Tensor, dice: Dice) -> object:
    """Expand as PyTorch writes it: sizes of -1 become 1 by ConstantOfShape, Equal and Where."""
    axis = dice.choose([dim for dim, size in enumerate(x.shape) if size == 1])
    wanted = b.ints(*[4 if dim == axis else -1 for dim in range(x.rank)])
    fill = helper.make_tensor("value", TensorProto.INT64, [1], [1])
    ones = b.emit("ConstantOfShape", [b.ints(x.rank)], {"value": fill})
    minus = b.emit("Mul", [ones, b.constant(np.array(-1, np.int64), "i")])
    sizes = b.emit("Where", [b.emit("Equal", [wanted, minus]), ones, wanted])
    y = b.emit("Expand", [x.name, sizes])
    return b.keep(y, (*x.shape[:axis], 4, *x.shape[axis + 1 :]), x.degree)


@step
def pad_idiom(b: Builder, x: Tensor, dice: Dice) -> object:
    """Pad as PyTorch writes it: pairs from the last axis on, filled up with zeros, turned around."""
    axis = dice.choose([dim for dim, size in enumerate(x.shape) if size > 1][::-1])
    before, after = dice.roll(2), dice.roll(2) + 1
    pairs = [0, 0] * (x.rank - 1 - axis) + [before, after]
    fill = helper.make_tensor("value", TensorProto.INT64, [1], [0])
    rest = b.emit("ConstantOfShape", [b.ints(2 * axis)], {"value": fill})
    every = b.emit("Concat", [b.ints(*pairs), rest], {"axis": 0})
    rows = b.emit("Reshape", [every, b.ints(-1, 2)])
    turned = b.emit("Slice", [rows, b.ints(-1), b.ints(-LAST), b.ints(0), b.ints(-1)])
    flat = b.emit("Reshape", [b.emit("Transpose", [turned], {"perm": [1, 0]}), b.ints(-1)])
    y = b.emit("Pad", [x.name, b.emit("Cast", [flat], {"to": TensorProto.INT64})])
    shape = (*x.shape[:axis], x.shape[axis] + before + after, *x.shape[axis + 1 :])
    return b.keep(y, shape, x.degree)


@step
def shaped_like(b: Builder, x: Tensor, dice: Dice) -> object:
    """Reshapes to the shape of another tensor with as many elements."""
    size = math.prod(x.shape)
    others = [t for t in b.pool if math.prod(t.shape) == size and t.shape != x.shape]
    other = dice.choose(others[::-1])
    return b.keep(b.emit("Reshape", [x.name, b.emit("Shape", [other.name])]), other.shape, x.degree)


@step
def computed_split(b: Builder, x: Tensor, dice: Dice) -> object:
    """A Split whose sizes come from the length of the axis at run time."""
    need(b.opset >= 13)
    axis = dice.choose([dim for dim in (1, *range(x.rank)) if dim < x.rank and divisors(x.shape[dim])])
    pieces = dice.choose([d for d in (2, 3) if x.shape[axis] % d == 0])
    piece = b.emit("Div", [b.size_of(x, axis, dice), b.ints(pieces)])
    sizes = b.emit("Concat", [piece] * pieces, {"axis": 0})
    shape = (*x.shape[:axis], x.shape[axis] // pieces, *x.shape[axis + 1 :])
    for part in b.emit_many("Split", [x.name, sizes], pieces, {"axis": axis}):
        b.keep(part, shape, x.degree)
    return sizes


@step
def computed_tile(b: Builder, x: Tensor, dice: Dice) -> object:
    """Tile whose repeats come from the length of an axis of another tensor."""
    axis = dice.choose([dim for dim, size in enumerate(x.shape) if size == 1])
    other = dice.choose(b.pool[::-1])
    dim = dice.choose([dim for dim, size in enumerate(other.shape) if 1 < size <= 12])
    parts = [b.size_of(other, dim, dice) if place == axis else b.ints(1) for place in range(x.rank)]
    y = b.emit("Tile", [x.name, b.emit("Concat", parts, {"axis": 0})])
    return b.keep(y, (*x.shape[:axis], other.shape[dim], *x.shape[axis + 1 :]), x.degree)


@step
def unknown(b: Builder, x: Tensor, dice: Dice) -> object:
    """An operator that a channel rule may not know."""
    need(x.rank >= 2 and x.shape[-1] > 0 and x.shape[-2] > 0)
    if b.opset >= 14 and dice.once_in(2):
        return b.keep(b.emit("Trilu", [x.name], {"upper": dice.roll(2)}), x.shape, x.degree)
    need(x.rank >= 3 and x.shape[0] < 0)
    places = np.arange(x.shape[-1])[::-1].copy()
    axis = x.rank - 1
    index = b.emit("Expand", [b.constant(places, "i"), b.emit("Shape", [x.name])])
    return b.keep(b.emit("GatherElements", [x.name, index], {"axis": axis}), x.shape, x.degree)


@step
def inner_output(b: Builder, x: Tensor, dice: Dice) -> object:
    """Makes an inner tensor an output of the graph, its shape, or the place of its largest value."""
    kind = dice.roll(3)
    if kind == 0:
        b.extra_output(x.name, TensorProto.FLOAT, x.shape)
        need(any(x.name in node.output for node in b.nodes))
    elif kind == 1:
        b.extra_output(b.emit("Shape", [x.name]), TensorProto.INT64, (x.rank,))
    else:
        axis = dice.choose([dim for dim, size in enumerate(x.shape) if size > 1])
        y = b.emit(dice.choose(("ArgMax", "ArgMin")), [x.name], {"axis": axis, "keepdims": 0})
        b.extra_output(y, TensorProto.INT64, x.shape[:axis] + x.shape[axis + 1 :])
    return x


@step
def overridable(b: Builder, x: Tensor, dice: Dice) -> object:
    """Lists a stored weight as an input of the graph, so that the caller may give another."""
    taken = {value.name for value in b.inputs}
    floats = [t for t in b.stored if t.name[0] == "c" and t.data_type == TensorProto.FLOAT and t.name not in taken]
    tensor = dice.choose(floats)
    b.inputs.append(helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, list(tensor.dims)))
    return tensor


@step
def dead_end(b: Builder, x: Tensor, dice: Dice) -> object:
    """A product that nothing reads, beside a function that something will."""
    need(x.rank >= 2 and x.shape[-1] > 0)
    b.emit("MatMul", [x.name, b.weight((x.shape[-1], 4), x.shape[-1])])
    return b.keep(b.emit("Relu", [x.name]), x.shape, x.degree)


@step
def branch(b: Builder, x: Tensor, dice: Dice) -> object:
    """An If whose branches read a tensor and a weight from outside."""
    need(x.shape[0] < 0 and x.shape[-1] > 0)
    w, y = b.vector(x.shape[-1]), next(t for t in b.pool if t.shape == x.shape)
    count = b.emit("ReduceSum", [x.name], {"keepdims": 0})
    condition = b.emit("Greater", [count, b.scalar(-1e9 if dice.once_in(2) else 1e9)])
    bodies = []
    for op, other in (("Mul", w), (dice.choose(("Add", "Max")), y.name)):
        result = b.fresh("r")
        nodes = [helper.make_node(op, [x.name, other], [result], name=f"inner_{result}")]
        if dice.once_in(2):
            stored = numpy_helper.from_array(np.ones(x.shape[-1], np.float32) / 2, b.fresh("c"))
            nodes += [helper.make_node("Add", [result, stored.name], [result + "b"], name=f"inner_{result}b")]
            graph_stored, result = [stored], result + "b"
        else:
            graph_stored = []
        out = helper.make_tensor_value_info(result, TensorProto.FLOAT, b.declared(x.shape))
        bodies.append(helper.make_graph(nodes, f"body_{result}", [], [out], graph_stored))
    result = b.emit("If", [condition], {"then_branch": bodies[0], "else_branch": bodies[1]})
    return b.keep(result, x.shape, max(x.degree, y.degree))


@step
def einsum(b: Builder, x: Tensor, dice: Dice) -> object:
    """Einsum forms that are no plain product over the last axis."""
    need(b.opset >= 12 and x.rank == 3 and min(x.shape[1:]) > 0)
    kind = dice.roll(5)
    if kind == 0:
        y = b.emit("Einsum", [x.name, b.weight((x.shape[2], 4), x.shape[2])], {"equation": "...d,dk->...k"})
        return b.keep(y, (*x.shape[:2], 4), x.degree)
    if kind == 1:
        y = b.emit("Einsum", [x.name, x.name], {"equation": "btd,bsd->bts"})
        return b.keep(y, (*x.shape[:2], x.shape[1]), 2 * x.degree)
    if kind == 2:
        w = b.weight((x.shape[2], 2, 3), x.shape[2])
        y = b.emit("Einsum", [x.name, w], {"equation": "btd,dhk->bhtk"})
        return b.keep(y, (x.shape[0], 2, x.shape[1], 3), x.degree)
    if kind == 3:
        return b.keep(
            b.emit("Einsum", [x.name], {"equation": "btd->bdt"}), (x.shape[0], x.shape[2], x.shape[1]), x.degree
        )
    w = b.weight((x.shape[1], x.shape[2]), x.shape[1])
    return b.keep(b.emit("Einsum", [x.name, w], {"equation": "btd,td->bd"}), (x.shape[0], x.shape[2]), x.degree)


@step
def with_vector(b: Builder, x: Tensor, dice: Dice) -> object:
    """A MatMul with a vector, an outer product with a stored row, or a Conv whose weight is computed from data."""
    need(x.rank >= 2 and x.shape[-1] > 0)
    if dice.once_in(2):
        need(x.rank >= 3)
        return b.keep(b.emit("MatMul", [x.name, b.weight((x.shape[-1],), x.shape[-1])]), x.shape[:-1], x.degree)
    column = b.squeeze("Unsqueeze", x.name, [x.rank])
    y = b.emit("MatMul", [column, b.weight((1, 4))])
    return b.keep(y, (*x.shape, 4), x.degree)


@step
def listed_numbers(b: Builder, x: Tensor, dice: Dice) -> object:
    """A Constant node with a list of numbers instead of a tensor, as bias or as shape."""
    need(b.opset >= 12 and x.shape[-1] > 0)
    if dice.once_in(2):
        sizes = b.emit("Constant", [], {"value_ints": [1, *[size if size > 0 else -1 for size in x.shape]]})
        need(sum(size < 0 for size in x.shape) <= 1)
        return b.keep(b.emit("Reshape", [x.name, sizes]), (1, *x.shape), x.degree)
    values = [round(0.1 * place, 3) for place in range(x.shape[-1])]
    bias = b.emit("Constant", [], {"value_floats": values})
    return b.keep(b.emit("Add", [x.name, bias]), x.shape, x.degree)
