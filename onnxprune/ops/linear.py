"""Matrix products: Gemm, MatMul, Einsum."""

import math
import string

from onnxprune.channels.facts import Axis, Facts, Freeze, Tie
from onnxprune.channels.registry import NodeView, Value, channel_rule, mac_rule
from onnxprune.ops.broadcasting import broadcast


@channel_rule("Gemm")
def gemm(node: NodeView) -> Facts:
    """A [M, K] and B [K, N], either transposed, plus C broadcast to [M, N]; sums over K."""
    a, b, y = node.data, node.weight(1), node.result
    rows, inner = (1, 0) if node.attribute("transA", 0) else (0, 1)
    summed, columns = (1, 0) if node.attribute("transB", 0) else (0, 1)
    yield Tie(a.axis(rows), y.axis(0))
    yield Tie(a.axis(inner), b.axis(summed), contracts=True)
    yield Tie(b.axis(columns), y.axis(1))
    bias = node.input(2)
    if bias is not None:
        yield from broadcast([bias], y)


@channel_rule("MatMul")
def matmul(node: NodeView) -> Facts:
    """A [..., M, K] and b [..., K, N] to y [..., M, N], batch dimensions broadcast; sums over K."""
    a, b, y = node.data, node.weight(1), node.result
    yield Tie(a.axis(-1), b.axis(-2 if b.rank > 1 else 0), contracts=True)
    if a.rank > 1:
        yield Tie(a.axis(-2), y.axis(-2 if b.rank > 1 else -1))
    if b.rank > 1:
        yield Tie(b.axis(-1), y.axis(-1))
    batch = y.rank - (a.rank > 1) - (b.rank > 1)
    yield from broadcast([a, b], y, dims=range(batch), tail=2)


@channel_rule("Einsum")
def einsum(node: NodeView) -> Facts:
    """Every letter is an axis; letters that are missing on the right are summed over."""
    equation = einsum_letters(node)
    operands = [value for value in node.inputs if value is not None]
    if equation is None:
        for value in (*operands, node.result):
            for dim in range(value.rank):
                yield Freeze(
                    value.axis(dim), f"equation {node.attribute('equation')!r} of {node.name!r} is not supported"
                )
        return
    letters, result = equation
    first: dict[str, Axis] = {letter: node.result.axis(dim) for dim, letter in enumerate(result)}
    for value, names in zip(operands, letters, strict=True):
        for dim, letter in enumerate(names):
            axis = value.axis(dim)
            yield Tie(axis, first.setdefault(letter, axis), contracts=letter not in result)


@mac_rule("Gemm")
def gemm_macs(node: NodeView) -> int:
    """M * K * N."""
    inner = node.data.shape[0 if node.attribute("transA", 0) else 1]
    return math.prod(node.result.shape) * inner


@mac_rule("MatMul")
def matmul_macs(node: NodeView) -> int:
    """One product for every output element and summed index."""
    return math.prod(node.result.shape) * node.data.shape[-1]


@mac_rule("Einsum")
def einsum_macs(node: NodeView) -> int:
    """One product for every combination of letters; none where only one operand is rearranged."""
    equation = einsum_letters(node)
    operands = [value for value in node.inputs if value is not None]
    if equation is None or len(operands) < 2:
        return 0
    sizes: dict[str, int] = {}
    for value, names in zip(operands, equation[0], strict=True):
        for letter, size in zip(names, value.shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    return math.prod(sizes.values())


def einsum_letters(node: NodeView) -> tuple[list[str], str] | None:
    """Returns the letters of each operand and of the result, ellipses written out; ``None`` where they do not fit."""
    raw = node.attribute("equation", "")
    equation = (raw.decode() if isinstance(raw, bytes) else raw).replace(" ", "").replace("...", ".")
    left, arrow, result = equation.partition("->")
    values: list[Value | None] = [*node.inputs, node.result]
    operands = left.split(",")
    if not arrow:
        everything = left.replace(",", "").replace(".", "")
        result = "".join(sorted(letter for letter in set(everything) if everything.count(letter) == 1))
        result = "." + result if "." in left else result
    spare = [letter for letter in string.ascii_letters if letter not in equation]
    letters = []
    for value, names in zip(values, [*operands, result], strict=False):
        if value is None:
            return None
        hidden = value.rank - len(names) + 1
        written = names.replace(".", "".join(spare[-hidden:] if hidden else ())) if hidden >= 0 else names
        if value.rank != len(written) or not set(written) <= set(string.ascii_letters):
            return None
        letters.append(written)
    return (letters[:-1], letters[-1]) if len(letters) == len(values) == len(operands) + 1 else None
