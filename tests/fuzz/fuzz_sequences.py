"""Construction steps over sequences [N, T, D]: attention written out, and recurrent operators."""

import math

import numpy as np
from fuzz_graph import Builder, Dice, Tensor
from fuzz_layers import need, step


@step
def attention(b: Builder, x: Tensor, dice: Dice) -> object:
    """Attention over [N, T, D]: separate, fused or grouped; shapes stored or computed."""
    need(x.rank == 3 and x.shape[0] < 0 and 1 < x.shape[1] <= 16 and x.shape[2] > 0)
    heads, size, width = dice.choose((2, 3, 4)), dice.choose((2, 3)), x.shape[2]
    q, k, v = _fused(b, x, heads, size, dice) if dice.once_in(3) else _separate(b, x, heads, size, dice)
    scores = b.emit("MatMul", [q, b.emit("Transpose", [k], {"perm": [0, 1, 3, 2]})])
    if dice.once_in(2):
        scores = b.emit("Mul", [scores, b.scalar(1 / math.sqrt(size))])
    weights = b.emit("Softmax", [scores], {"axis": -1 if b.opset >= 13 else 3})
    mixed = b.emit("Transpose", [b.emit("MatMul", [weights, v])], {"perm": [0, 2, 1, 3]})
    joined = b.reshape(Tensor(mixed, (*x.shape[:2], heads, size)), (*x.shape[:2], heads * size), dice)
    y = b.emit("MatMul", [joined.name, b.weight((heads * size, width), heads * size)])
    return b.keep(b.emit("Add", [x.name, y]), x.shape, x.degree)


def _separate(b: Builder, x: Tensor, heads: int, size: int, dice: Dice) -> tuple[str, str, str]:
    kept = heads // 2 if heads % 2 == 0 and dice.once_in(3) else heads
    parts = []
    for count in (heads, kept, kept):
        y = b.emit("MatMul", [x.name, b.weight((x.shape[2], count * size), x.shape[2])])
        rows = b.reshape(Tensor(y, (*x.shape[:2], count * size)), (*x.shape[:2], count, size), dice)
        name = b.emit("Transpose", [rows.name], {"perm": [0, 2, 1, 3]})
        if count != heads:
            name = _repeated(b, Tensor(name, (x.shape[0], count, x.shape[1], size)), heads // count, dice)
        parts.append(name)
    return parts[0], parts[1], parts[2]


def _repeated(b: Builder, x: Tensor, times: int, dice: Dice) -> str:
    """Repeats every head for the queries of its group."""
    batch, heads, length, size = x.shape
    y = b.squeeze("Unsqueeze", x.name, [2])
    wide = b.emit("Expand", [y, b.ints(1, 1, times, 1, 1)])
    return b.reshape(Tensor(wide, (batch, heads, times, length, size)), (batch, heads * times, length, size), dice).name


def _fused(b: Builder, x: Tensor, heads: int, size: int, dice: Dice) -> tuple[str, str, str]:
    y = b.emit("MatMul", [x.name, b.weight((x.shape[2], 3 * heads * size), x.shape[2])])
    y = b.emit("Add", [y, b.vector(3 * heads * size)])
    rows = b.reshape(Tensor(y, (*x.shape[:2], 3 * heads * size)), (*x.shape[:2], 3, heads, size), dice)
    name = b.emit("Transpose", [rows.name], {"perm": [2, 0, 3, 1, 4]})
    if dice.once_in(2):
        parts = [b.squeeze("Squeeze", part, [0]) for part in b.split(name, [1, 1, 1], 0, implied=dice.once_in(2))]
    else:
        places = [b.constant(np.array(place, np.int64), "i") for place in range(3)]
        parts = [b.emit("Gather", [name, place], {"axis": 0}) for place in places]
    return parts[0], parts[1], parts[2]


@step
def recurrent(b: Builder, x: Tensor, dice: Dice) -> object:
    """LSTM, GRU or RNN over [N, T, D], one way or both."""
    need(x.rank == 3 and x.shape[0] < 0 and 0 < x.shape[1] <= 16 and x.shape[2] > 0)
    op, gates = dice.choose((("LSTM", 4), ("GRU", 3), ("RNN", 1)))
    hidden, ways = dice.choose((3, 4)), dice.choose((1, 1, 2))
    rows = gates * hidden
    w = [b.weight((ways, rows, x.shape[2]), x.shape[2]), b.weight((ways, rows, hidden), hidden)]
    bias = [b.weight((ways, 2 * rows), 4)] if dice.once_in(2) else []
    attributes = {"hidden_size": hidden} | ({"direction": "bidirectional"} if ways == 2 else {})
    turned = b.emit("Transpose", [x.name], {"perm": [1, 0, 2]})
    y = b.emit(op, [turned, *w, *bias], attributes)
    if ways == 1:
        y = b.emit("Transpose", [b.squeeze("Squeeze", y, [1])], {"perm": [1, 0, 2]})
        return b.keep(y, (*x.shape[:2], hidden))
    y = b.emit("Transpose", [y], {"perm": [2, 0, 1, 3]})
    joined = b.reshape(Tensor(y, (*x.shape[:2], ways, hidden)), (*x.shape[:2], ways * hidden), dice)
    return b.keep(joined.name, joined.shape)
