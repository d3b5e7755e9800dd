"""Attention and what belongs to it, as single operators: heads go, with every query head of a key/value head."""

import numpy as np

from onnxprune.channels.facts import Attribute, Axis, Count, Facts, Freeze, Index, Tie, free
from onnxprune.channels.registry import NodeView, Value, channel_rule, mac_rule


@channel_rule("Attention")
def attention(node: NodeView) -> Facts:
    """Q, K and V as [N, T, heads * size] or [N, heads, T, size], an additive mask, and a cache in four dimensions.

    The default scale comes from the size of a head, which therefore stays; those of V are free where they have an
    axis of their own. Keys are normalized over, so that their axis stays as well.
    """
    query, key, value, y = node.data, node.weight(1), node.weight(2), node.result
    queries, groups = _head_counts(node)
    heads = _Heads(query, queries), _Heads(key, groups), _Heads(value, groups)
    for tensor in (key, value, y):
        yield Tie(query.axis(0), tensor.axis(0))
    for part in (*heads, _Heads(y, queries)):
        yield from part.whole(node)
    yield from heads[0].tie(_Heads(y, queries), np.arange(queries))
    yield from heads[1].tie(heads[2], np.arange(groups))
    if queries == groups:
        yield from heads[1].tie(heads[0], np.arange(groups))
    else:
        yield from heads[1].tie(heads[0], np.arange(queries) // (queries // groups), np.arange(queries))
    yield Count(heads[0].axis, Attribute("q_num_heads"), heads[0].first)
    yield Count(heads[1].axis, Attribute("kv_num_heads"), heads[1].first)
    if query.rank == 4:
        yield from _head_sizes(node, query, key, value, y)
    yield from _time(node, query.axis(-2), y.axis(-2))
    yield from _mask(node.input(3), heads[0], query)
    yield from _cache(node, heads[1], heads[2])
    lengths = node.input(6)
    if lengths is not None:
        yield Tie(lengths.axis(0), query.axis(0))
    scores = node.outputs[3] if len(node.outputs) > 3 else None
    if scores is not None:
        yield from _mask(scores, heads[0], query)


@channel_rule("RotaryEmbedding")
def rotary_embedding(node: NodeView) -> Facts:
    """X as [N, T, heads * size] or [N, heads, T, size]; every head is turned alike, by tables [..., size / 2]."""
    x, y = node.data, node.result
    count = x.shape[1] if x.rank == 4 else node.attribute("num_heads", 0)
    if not count:
        return
    source, target = _Heads(x, count), _Heads(y, count)
    yield from source.whole(node)
    yield from source.tie(target, np.arange(count))
    yield from target.whole(node)
    yield Count(source.axis, Attribute("num_heads"), source.first)
    yield Tie(x.axis(0), y.axis(0))
    yield Tie(x.axis(-2), y.axis(-2))
    positions = node.input(3)
    followers = [positions] if positions is not None else [node.weight(1), node.weight(2)]
    for value in followers:
        for dim, axis in ((0, x.axis(0)), (1, x.axis(-2))):
            yield Tie(value.axis(dim), axis) if value.shape[dim] != 1 else free(value.axis(dim))


@channel_rule("TensorScatter")
def tensor_scatter(node: NodeView) -> Facts:
    """Writes along ``axis`` of a cache, for every sample at its own place; the other axes correspond one to one."""
    cache, update, y = node.data, node.weight(1), node.result
    axis = node.attribute("axis", -2) % cache.rank
    for dim in set(range(cache.rank)) - {axis}:
        yield Tie(cache.axis(dim), y.axis(dim))
        yield Tie(update.axis(dim), y.axis(dim))
    places = node.input(2)
    if places is not None:
        yield Tie(places.axis(0), y.axis(0))


@mac_rule("Attention")
def attention_macs(node: NodeView) -> int:
    """Scores, and the weighted sum of values, of every query head; the cache counts as keys."""
    query, key, value = node.data, node.weight(1), node.weight(2)
    queries, groups = _head_counts(node)
    size = query.shape[-1] // (1 if query.rank == 4 else queries)
    width = value.shape[-1] // (1 if value.rank == 4 else groups)
    past = node.input(4)
    keys = key.shape[-2] + (0 if past is None else past.shape[2])
    return query.shape[0] * queries * query.shape[-2] * keys * (size + width)


class _Heads:
    """Where the heads of a tensor are: an axis of their own, or blocks of the last axis."""

    def __init__(self, value: Value, count: int) -> None:
        self.axis: Axis = value.axis(1 if value.rank == 4 else -1)
        self.value, self.count = value, count
        self.size = 1 if value.rank == 4 else value.shape[-1] // count
        self.first = np.arange(count) * self.size

    def whole(self, node: NodeView) -> Facts:
        """A head goes as a whole, and its size stays, unless :func:`_head_sizes` says otherwise."""
        every = np.arange(self.count * self.size)
        if self.size > 1:
            yield Tie(self.axis, self.axis, every, every - every % self.size)
        else:
            yield free(self.axis)

    def tie(self, other: "_Heads", own: Index, others: Index | None = None) -> Facts:
        """Heads ``own`` of this tensor live and die with heads ``others`` of another; the same ones by default."""
        if others is None and self.size == other.size == 1:
            yield Tie(self.axis, other.axis)
        else:
            yield Tie(self.axis, other.axis, self.first[own], other.first[own if others is None else others])


def _head_counts(node: NodeView) -> tuple[int, int]:
    query, key = node.data, node.weight(1)
    if query.rank == 4:
        return query.shape[1], key.shape[1]
    return node.attribute("q_num_heads"), node.attribute("kv_num_heads")


def _head_sizes(node: NodeView, query: Value, key: Value, value: Value, y: Value) -> Facts:
    yield Tie(value.axis(3), y.axis(3))
    yield Tie(query.axis(3), key.axis(3), contracts=True)
    if "scale" not in node.attributes:
        yield Freeze(query.axis(3), f"the default scale of {node.name!r} (Attention) depends on it")


def _time(node: NodeView, source: Axis, target: Axis) -> Facts:
    """Queries are independent of one another, unless masks or windows are counted from their positions."""
    yield Tie(source, target)
    windows = [node.attribute(f"{side}_window_size", -1) for side in ("left", "right")]
    if node.attribute("is_causal", 0) or max(windows) >= 0:
        yield Freeze(source, f"{node.name!r} (Attention) counts positions along it")


def _mask(mask: Value | None, heads: _Heads, query: Value) -> Facts:
    """[T, S], [N or 1, heads or 1, T, S] and what NumPy broadcasting makes of fewer dimensions."""
    if mask is None:
        return
    targets = {-2: query.axis(-2), -4: query.axis(0)}
    for dim in range(-mask.rank, -1):
        axis = mask.axis(dim)
        if mask.shape[dim] == 1:
            yield free(axis)
        elif dim == -3:
            yield Tie(axis, heads.axis, np.arange(heads.count), heads.first)
        else:
            yield Tie(axis, targets[dim])


def _cache(node: NodeView, keys: _Heads, values: _Heads) -> Facts:
    """Past and present keys and values: [N, heads, S, size]."""
    for slot, output, heads in ((4, 1, keys), (5, 2, values)):
        present = node.outputs[output] if len(node.outputs) > output else None
        for cache in (node.input(slot), present):
            if cache is None:
                continue
            yield Tie(cache.axis(0), node.data.axis(0))
            yield from heads.tie(_Heads(cache, heads.count), np.arange(heads.count))
            if heads.value.rank == 4:
                yield Tie(cache.axis(3), heads.value.axis(3))
            else:
                yield Freeze(cache.axis(3), f"{node.name!r} (Attention) keeps heads whole")
