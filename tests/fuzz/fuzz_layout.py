"""Construction steps that rearrange, join and cut, and the larger patterns made of them."""

import math
from collections.abc import Sequence

import numpy as np
from fuzz_graph import Builder, Dice, Shape, Tensor
from fuzz_layers import biased, divisors, need, need_space, step
from onnx import TensorProto, helper

LAST = 2**63 - 1


@step
def merge(b: Builder, x: Tensor, dice: Dice) -> object:
    """Add, Sub, Mul, ... of two computed tensors that broadcast."""
    others = [t for t in b.pool if _stretches(t.shape, x.shape)]
    need(len(others) > 1 or dice.once_in(4))
    y = dice.choose([t for t in reversed(others) if t is not x] or others)
    op = dice.choose(("Add", "Add", "Mul", "Sub", "Max", "Min", "Mean", "Sum", "Div"))
    pair = [x.name, y.name] if dice.once_in(2) else [y.name, x.name]
    degree = x.degree + y.degree if op == "Mul" else max(x.degree, y.degree)
    if op == "Div":
        pair, degree = [x.name, b.emit("Add", [b.emit("Abs", [y.name]), b.scalar(1.0)])], x.degree
    if op == "Sum" and dice.once_in(2):
        pair.append(dice.choose(others).name)
        degree = 1 + max(t.degree for t in others)
    return b.keep(b.emit(op, pair), x.shape, degree)


def _stretches(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    tail = target[len(target) - len(shape) :] if len(shape) <= len(target) else ()
    return len(tail) == len(shape) and all(a in (1, c) for a, c in zip(shape, tail, strict=True))


@step
def with_stored(b: Builder, x: Tensor, dice: Dice) -> object:
    """Add, Mul, ... with a stored tensor of any shape that broadcasts."""
    shape = dice.choose(_shapes_like(x.shape))
    op = dice.choose(("Add", "Mul", "Sub", "Max", "Div"))
    w = b.weight(shape, positive=op == "Div")
    pair = [x.name, w] if op == "Div" or not dice.once_in(2) else [w, x.name]
    return b.keep(b.emit(op, pair), x.shape, x.degree)


def _shapes_like(shape: Shape) -> Sequence[Shape]:
    """Shapes of stored tensors that broadcast to a shape."""
    static = [size if size > 0 else 1 for size in shape]
    last = tuple(static[-1:])
    second = (static[1], *[1] * (len(shape) - 2)) if len(shape) > 2 else last
    return (second, last, (1, *second), tuple(static[1:]), (1,), (), tuple(static))


@step
def concat(b: Builder, x: Tensor, dice: Dice) -> object:
    """Side by side with another tensor, with itself, or with a stored one (class tokens)."""
    axis = dice.choose([dim for dim in (1, *range(x.rank)) if dim < x.rank and x.shape[dim] > 0])
    others = [
        t for t in b.pool
        if t.rank == x.rank and t.shape[axis] > 0 and t.shape[:axis] == x.shape[:axis]
        and t.shape[axis + 1 :] == x.shape[axis + 1 :]
    ]  # fmt: skip
    others = [x, *reversed([t for t in others if t is not x])]
    parts = [x, others[dice.roll(len(others)) - 1]]
    if dice.once_in(4):
        parts.append(dice.choose(others))
    names, sizes = [t.name for t in parts], [t.shape[axis] for t in parts]
    if dice.once_in(6) and x.shape[0] == -1:
        stored = b.weight((1, *[2 if dim == axis else size for dim, size in enumerate(x.shape)][1:]))
        batch = [b.size_of(x, 0, dice), *(b.ints(1) for _ in range(x.rank - 1))]
        names.append(b.emit("Expand", [stored, b.emit("Concat", batch, {"axis": 0})]))
        sizes.append(2)
    shape = (*x.shape[:axis], sum(sizes), *x.shape[axis + 1 :])
    y = b.emit("Concat", names, {"axis": axis - x.rank if dice.once_in(3) else axis})
    return b.keep(y, shape, max(t.degree for t in parts))


@step
def split(b: Builder, x: Tensor, dice: Dice) -> object:
    axis = dice.choose([dim for dim in (1, *range(x.rank)) if dim < x.rank and x.shape[dim] > 1])
    size = x.shape[axis]
    pieces = dice.choose((*[d for d in divisors(size) if d <= 4], 0))
    first = dice.roll(size - 1) + 1
    sizes = [size // pieces] * pieces if pieces else [first, size - first]
    parts = b.split(x.name, sizes, axis, implied=bool(dice.roll(2)))
    for part, length in zip(parts, sizes, strict=True):
        b.keep(part, (*x.shape[:axis], length, *x.shape[axis + 1 :]), x.degree)
    return parts


@step
def cut(b: Builder, x: Tensor, dice: Dice) -> object:
    """Slice with stored bounds: positive, negative, to the end, in steps."""
    axis = dice.choose([dim for dim in (1, *range(x.rank)) if dim < x.rank and x.shape[dim] > 1])
    size = x.shape[axis]
    start = dice.roll(size - 1)
    end = start + 1 + dice.roll(size - start)
    stride = dice.choose((1, 1, 1, 2, -1))
    if stride == -1:
        count = end - start
        bounds = (end - 1, start - 1 if start else -LAST)
    else:
        count = -(-(end - start) // stride)
        bounds = (start - size if dice.once_in(3) else start, end)
        if end == size and dice.once_in(2):
            bounds = (bounds[0], LAST)
        elif end < size and dice.once_in(3):
            bounds = (bounds[0], end - size)
    where = axis - x.rank if dice.once_in(3) else axis
    operands = [b.ints(bounds[0]), b.ints(bounds[1]), b.ints(where)]
    if stride != 1 or dice.once_in(3):
        operands.append(b.ints(stride))
    y = b.emit("Slice", [x.name, *operands])
    return b.keep(y, (*x.shape[:axis], count, *x.shape[axis + 1 :]), x.degree)


@step
def computed_cut(b: Builder, x: Tensor, dice: Dice) -> object:
    """Two halves of an axis whose bounds come from its length at run time."""
    axis = dice.choose([dim for dim in (1, *range(x.rank)) if dim < x.rank and x.shape[dim] > 1])
    need(x.shape[axis] % 2 == 0)
    length = b.size_of(x, axis, dice)
    half = b.emit("Div", [length, b.ints(2)])
    shape = (*x.shape[:axis], x.shape[axis] // 2, *x.shape[axis + 1 :])
    where = b.ints(axis)
    left = b.emit("Slice", [x.name, b.ints(0), half, where])
    right = b.emit("Slice", [x.name, half, length if dice.once_in(2) else b.ints(LAST), where])
    b.keep(left, shape, x.degree)
    b.keep(right, shape, x.degree)
    return right


@step
def pick(b: Builder, x: Tensor, dice: Dice) -> object:
    """Gather: a permutation, some positions, repeated ones, a single one."""
    axis = dice.choose([dim for dim in (1, *range(x.rank)) if dim < x.rank and x.shape[dim] > 1])
    size = x.shape[axis]
    rng = np.random.default_rng(dice.roll(50))
    if x.rank > 2 and dice.once_in(4):
        index = b.constant(np.array(dice.roll(size), np.int64), "i")
        return b.keep(b.emit("Gather", [x.name, index], {"axis": axis}), x.shape[:axis] + x.shape[axis + 1 :], x.degree)
    places = rng.permutation(size)
    if dice.once_in(2):
        places = rng.choice(size, dice.roll(size) + 1, replace=dice.once_in(2))
    places = np.where(rng.random(places.size) < 0.3, places - size, places)
    y = b.emit("Gather", [x.name, b.ints(*places.tolist())], {"axis": axis})
    return b.keep(y, (*x.shape[:axis], places.size, *x.shape[axis + 1 :]), x.degree)


@step
def reshape(b: Builder, x: Tensor, dice: Dice) -> object:
    """Merges two neighbouring axes, splits one, or cuts the elements of a sample anew."""
    shape = list(x.shape)
    kind = dice.roll(4)
    if kind == 0:
        at = dice.choose(range(x.rank - 2, -1, -1))
        shape[at : at + 2] = [shape[at] * shape[at + 1]]
    elif kind == 3:
        need(shape[0] < 0 and x.rank > 2)
        total = math.prod(shape[1:])
        first = dice.choose([1, total, *divisors(total)])
        shape = [shape[0], first, total // first]
    else:
        at = dice.choose([dim for dim, size in enumerate(shape) if divisors(abs(size))][::-1])
        factor = dice.choose(divisors(abs(shape[at])))
        shape[at : at + 1] = (
            [shape[at] // factor, factor] if shape[at] < 0 or kind == 1 else [factor, shape[at] // factor]
        )
    y = b.reshape(x, shape, dice)
    return b.keep(y.name, y.shape, y.degree)


@step
def transpose(b: Builder, x: Tensor, dice: Dice) -> object:
    """Any order of axes; one in two brings the batch back to the front."""
    rest = list(range(x.rank))
    order: list[int] = []
    if dice.once_in(2):
        order = [dim for dim in rest if x.shape[dim] < 0][:1]
        rest = [dim for dim in rest if dim not in order]
    while rest:
        order.append(rest.pop(len(rest) - 1 - dice.roll(len(rest))))
    return b.keep(b.emit("Transpose", [x.name], {"perm": order}), [x.shape[dim] for dim in order], x.degree)


@step
def ones(b: Builder, x: Tensor, dice: Dice) -> object:
    """Squeeze, Unsqueeze, Flatten."""
    single = [dim for dim, size in enumerate(x.shape) if size == 1]
    kind = dice.roll(3)
    if kind == 0 and single and x.rank > 2:
        if dice.once_in(3):
            need(len(single) < x.rank)
            return b.keep(b.emit("Squeeze", [x.name]), [size for size in x.shape if size != 1], x.degree)
        dim = dice.choose(single)
        return b.keep(b.squeeze("Squeeze", x.name, [dim]), x.shape[:dim] + x.shape[dim + 1 :], x.degree)
    if kind == 1:
        need(x.shape[0] < 0)
        axis = dice.choose((1, 1 - x.rank))
        y = b.emit("Flatten", [x.name], {"axis": axis} if dice.once_in(2) else {})
        return b.keep(y, (x.shape[0], math.prod(x.shape[1:])), x.degree)
    dim = dice.roll(x.rank + 1)
    name = b.squeeze("Unsqueeze", x.name, [dim - x.rank - 1 if dice.once_in(3) else dim])
    return b.keep(name, (*x.shape[:dim], 1, *x.shape[dim:]), x.degree)


@step
def shuffle(b: Builder, x: Tensor, dice: Dice) -> object:
    """A channel shuffle."""
    space = need_space(x)
    groups = dice.choose(divisors(x.shape[1]))
    y = b.reshape(x, (x.shape[0], groups, x.shape[1] // groups, *space), dice)
    name = b.emit("Transpose", [y.name], {"perm": [0, 2, 1, *range(3, y.rank)]})
    turned = Tensor(name, (x.shape[0], x.shape[1] // groups, groups, *space), x.degree)
    y = b.reshape(turned, x.shape, dice)
    return b.keep(y.name, y.shape, x.degree)


@step
def pixels(b: Builder, x: Tensor, dice: Dice) -> object:
    """DepthToSpace in both modes, SpaceToDepth."""
    space = need_space(x, 4)
    if x.shape[1] % 4 == 0 and not dice.once_in(3):
        y = b.emit("DepthToSpace", [x.name], {"blocksize": 2, "mode": dice.choose(("DCR", "CRD"))})
        return b.keep(y, (x.shape[0], x.shape[1] // 4, *(2 * size for size in space)), x.degree)
    need(all(size % 2 == 0 for size in space))
    y = b.emit("SpaceToDepth", [x.name], {"blocksize": 2})
    return b.keep(y, (x.shape[0], 4 * x.shape[1], *(size // 2 for size in space)), x.degree)


@step
def pad(b: Builder, x: Tensor, dice: Dice) -> object:
    """Zeros or copies around one axis, channels included."""
    axis = dice.choose([dim for dim, size in enumerate(x.shape) if size > 1][::-1])
    before, after = dice.roll(3), dice.roll(2)
    mode = dice.choose(("constant", "constant", "edge", "reflect"))
    need(mode == "constant" or (x.rank == 4 and axis >= 2))
    pads = [0] * (2 * x.rank)
    pads[axis], pads[axis + x.rank] = before, after
    operands = [b.ints(*pads)]
    if b.opset >= 18 and dice.once_in(2):
        operands = [b.ints(before, after), "", b.ints(axis)]
    elif mode == "constant" and dice.once_in(3):
        operands.append(b.scalar(0.5))
    shape = (*x.shape[:axis], x.shape[axis] + before + after, *x.shape[axis + 1 :])
    return b.keep(b.emit("Pad", [x.name, *operands], {"mode": mode}), shape, x.degree)


@step
def resize(b: Builder, x: Tensor, dice: Dice) -> object:
    space = need_space(x, 4)
    shape = (*x.shape[:2], *(2 * size for size in space))
    attributes = {"mode": dice.choose(("nearest", "linear"))}
    empty = "" if b.opset >= 13 else b.constant(np.zeros(0, np.float32), "s")
    if x.shape[0] == -1 and dice.once_in(2):
        channels = b.ints(x.shape[1]) if dice.once_in(2) else b.size_of(x, 1, dice)
        sizes = b.emit("Concat", [b.size_of(x, 0, dice), channels, b.ints(*shape[2:])], {"axis": 0})
        y = b.emit("Resize", [x.name, empty, empty, sizes], attributes)
    else:
        y = b.emit("Resize", [x.name, empty, b.constant(np.array([1, 1, 2, 2], np.float32), "s")], attributes)
    return b.keep(y, shape, x.degree)


@step
def stretch(b: Builder, x: Tensor, dice: Dice) -> object:
    """Tile of any axis, or Expand of an axis of size 1, also to the shape of another tensor."""
    if dice.once_in(2):
        axis = dice.choose([dim for dim, size in enumerate(x.shape) if size > 0])
        repeats = [2 if dim == axis else 1 for dim in range(x.rank)]
        y = b.emit("Tile", [x.name, b.ints(*repeats)])
        return b.keep(y, [size * times for size, times in zip(x.shape, repeats, strict=True)], x.degree)
    wider = [t for t in b.pool if t.shape != x.shape and _stretches(x.shape, t.shape)]
    if wider and not dice.once_in(3):
        other = dice.choose(wider[::-1])
        return b.keep(b.emit("Expand", [x.name, b.emit("Shape", [other.name])]), other.shape, x.degree)
    axis = dice.choose([dim for dim, size in enumerate(x.shape) if size == 1])
    width = dice.choose((4, 6))
    sizes = b.ints(*[width if dim == axis else 1 for dim in range(x.rank)])
    y = b.emit("Expand", [x.name, sizes])
    return b.keep(y, (*x.shape[:axis], width, *x.shape[axis + 1 :]), x.degree)


@step
def filled(b: Builder, x: Tensor, dice: Dice) -> object:
    """A constant of the shape of a tensor, put beside it or added to it."""
    value = helper.make_tensor("value", TensorProto.FLOAT, [1], [0.75])
    y = b.emit("ConstantOfShape", [b.emit("Shape", [x.name])], {"value": value})
    if dice.once_in(2):
        need(x.rank > 1 and x.shape[1] > 0)
        shape = (x.shape[0], 2 * x.shape[1], *x.shape[2:])
        return b.keep(b.emit("Concat", [x.name, y], {"axis": 1}), shape, x.degree)
    return b.keep(b.emit("Add", [x.name, y]), x.shape, x.degree)


@step
def length_as_data(b: Builder, x: Tensor, dice: Dice) -> object:
    """Divides by the root of a length that is read at run time, as exported attention does."""
    axis = dice.choose([dim for dim, size in enumerate(x.shape) if size > 0][::-1])
    length = b.emit("Size", [x.name]) if dice.once_in(5) else b.size_of(x, axis, dice)
    number = b.emit("Cast", [length], {"to": TensorProto.FLOAT})
    y = b.emit("Div", [x.name, b.emit("Sqrt", [number])])
    return b.keep(y, x.shape, x.degree)


@step
def gated(b: Builder, x: Tensor, dice: Dice) -> object:
    """One product, two halves: one is the gate of the other."""
    need(x.rank >= 2 and x.shape[-1] > 0)
    width = dice.choose((4, 6, 3))
    both = b.emit("MatMul", [x.name, b.weight((x.shape[-1], 2 * width), x.shape[-1])])
    value, gate = b.split(both, [width, width], dice.choose((-1, x.rank - 1)), implied=dice.once_in(2))
    y = b.emit("Mul", [value, b.emit("Sigmoid", [gate])])
    return b.keep(y, (*x.shape[:-1], width), x.degree)


@step
def windows(b: Builder, x: Tensor, dice: Dice) -> object:
    """Cuts an image [N, C, H, W] into windows of tokens [N * windows, 4, C]."""
    high, wide = need_space(x, 4)
    need(high % 2 == 0 and wide % 2 == 0)
    y = b.reshape(x, (*x.shape[:2], high // 2, 2, wide // 2, 2), dice)
    shape = (x.shape[0], high // 2, wide // 2, 2, 2, x.shape[1])
    y = Tensor(b.emit("Transpose", [y.name], {"perm": [0, 2, 4, 3, 5, 1]}), shape, x.degree)
    y = b.reshape(y, (x.shape[0] * (high // 2) * (wide // 2), 4, x.shape[1]), dice)
    return b.keep(y.name, y.shape, x.degree)


@step
def tokens(b: Builder, x: Tensor, dice: Dice) -> object:
    """From an image to tokens, or back."""
    if x.rank == 4:
        space = need_space(x)
        y = b.reshape(x, (*x.shape[:2], math.prod(space)), dice)
        name = b.emit("Transpose", [y.name], {"perm": [0, 2, 1]})
        return b.keep(name, (x.shape[0], math.prod(space), x.shape[1]), x.degree)
    need(x.rank == 3 and x.shape[0] < 0 and x.shape[1] in (4, 9, 16, 36))
    side = math.isqrt(x.shape[1])
    y = Tensor(b.emit("Transpose", [x.name], {"perm": [0, 2, 1]}), (x.shape[0], x.shape[2], x.shape[1]), x.degree)
    y = b.reshape(y, (x.shape[0], x.shape[2], side, side), dice)
    return b.keep(y.name, y.shape, x.degree)


@step
def second_input(b: Builder, x: Tensor, dice: Dice) -> object:
    """Another input of the shape of a tensor, or token numbers that look up a table."""
    if dice.once_in(2):
        need(x.shape[0] == -1 and all(size > 0 for size in x.shape[1:]))
        return b.keep(b.graph_input(x.shape), x.shape)
    width = x.shape[-1] if x.shape[-1] > 0 else 6
    return embedding(b, dice, width)


def embedding(b: Builder, dice: Dice, width: int) -> Tensor:
    """Token numbers that look up rows of a table."""
    ids = b.graph_input((-1, 4), TensorProto.INT64)
    table = b.weight((8, width))
    return b.keep(b.emit("Gather", [table, ids]), (-1, 4, width))


@step
def tied_head(b: Builder, x: Tensor, dice: Dice) -> object:
    """Multiplies with the table of an embedding, turned around."""
    tables = [names[0] for (shape, _), names in b.shared.items() if shape == (8, x.shape[-1])]
    need(tables and x.rank >= 2)
    turned = b.emit("Transpose", [dice.choose(tables)], {"perm": [1, 0]})
    return b.keep(b.emit("MatMul", [x.name, turned]), (*x.shape[:-1], 8), x.degree + 1)


@step
def branches(b: Builder, x: Tensor, dice: Dice) -> object:
    """Two convolutions of one tensor, joined, with weights that may be shared."""
    space = need_space(x)
    left, right = dice.choose((4, 3, 6)), dice.choose((4, 6, 3))
    parts = []
    for width in (left, right):
        w = b.weight((width, x.shape[1], *[1] * len(space)), x.shape[1])
        parts.append(b.emit("Relu", [b.emit("Conv", [x.name, w, *biased(b, width, dice)])]))
    y = b.emit("Concat", parts, {"axis": 1})
    return b.keep(y, (x.shape[0], left + right, *space), x.degree)
