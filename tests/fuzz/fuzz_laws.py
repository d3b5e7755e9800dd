"""Grows a graph from its steps, prunes it, and holds the result against the laws."""

import math
import zlib
from collections import Counter
from dataclasses import dataclass, field

import fuzz_idioms  # noqa: F401  (registers its steps)
import fuzz_newer  # noqa: F401  (registers its steps)
import fuzz_odd  # noqa: F401  (registers its steps)
import fuzz_sequences  # noqa: F401  (registers its steps)
import numpy as np
import onnx
from fuzz_graph import BATCH, MOST_NODES, Builder, Dice, Growth, Step, Tensor, UnfitError
from fuzz_layers import STEPS, need
from fuzz_layout import embedding
from hypothesis import strategies as st
from law import random_units
from onnx import TensorProto, helper, printer

from onnxprune.channels.groups import Channels, analyze
from onnxprune.errors import ModelError, OnnxPruneError, PlanError
from onnxprune.model.io import to_proto
from onnxprune.plan.plan import plan
from onnxprune.runtime.session import SessionOptions, open_session
from onnxprune.score.scores import score
from onnxprune.surgery.slice import slice_channels
from onnxprune.validate.proof import prove

STARTS = ("image", "tokens", "image", "flat", "image", "signal", "tokens", "ids", "bare")
INPUTS = {"image": (-1, 3, 6, 6), "tokens": (-1, 4, 8), "flat": (-1, 10), "signal": (-1, 4, 9), "bare": (-1, 4, 6, 6)}
OPSETS = (17, 13, 11, 18, 20, 21, 23)
COMMON = ("conv", "linear", "residual", "merge", "reshape", "transpose", "concat")
SPECIAL = ("pixels", "other_norm", "depthwise", "group_conv", "pick", "stretch", "split", "cut", "quantized")
KINDS = (*sorted(STEPS), *COMMON, *COMMON, *SPECIAL)
OPTIONS = SessionOptions(threads=1, optimize=False)


@dataclass
class Statistics:
    """What the fuzzer saw."""

    graphs: int = 0
    discarded: int = 0
    prunable: int = 0
    proofs: int = 0
    nodes: list[int] = field(default_factory=list)
    operators: Counter[str] = field(default_factory=Counter)
    steps: Counter[str] = field(default_factory=Counter)


def growths(most_steps: int = 14) -> st.SearchStrategy[Growth]:
    """Draws the steps of a graph."""
    steps = st.builds(Step, st.sampled_from(KINDS), st.integers(0, 2**24 - 1), st.integers(0, 2**12 - 1))
    lists = st.integers(1, most_steps).flatmap(lambda count: st.lists(steps, min_size=count, max_size=count))
    return st.builds(Growth, st.sampled_from(OPSETS), st.sampled_from(STARTS), st.booleans(), lists.map(tuple))


def grow(growth: Growth) -> onnx.ModelProto:
    """Returns the graph that the steps describe; steps that fit nowhere are passed over."""
    b = Builder(growth.opset, growth.fixed_batch)
    _start(b, growth.start)
    for step in growth.steps:
        _take(b, step)
    outputs = [_head(b, leaf) for leaf in b.leaves()]
    return b.model(outputs)


def _start(b: Builder, start: str) -> None:
    if start == "ids":
        embedding(b, Dice(0), 12)
        return
    shape = INPUTS[start]
    x = b.keep(b.graph_input(shape), shape)
    if start != "bare":
        kind = "conv" if start in ("image", "signal") else "linear"
        STEPS[kind](b, x, Dice(3 if kind == "conv" else 2))
        STEPS["activation"](b, b.pool[-1], Dice(0))
        STEPS[kind](b, b.pool[-1], Dice(2))


def _take(b: Builder, step: Step) -> None:
    dice = Dice(step.dice)
    recent = dice.roll(4)
    leaves = b.leaves()
    rest = [tensor for tensor in reversed(b.pool) if tensor not in leaves]
    order = leaves[::-1] + rest if recent < 3 else rest + leaves[::-1]
    recent %= max(len(order), 1)
    number = step.dice // 4
    for tensor in order[recent:] + order[:recent]:
        mark = b.mark()
        b.style = Dice(step.style)
        try:
            STEPS[step.kind](b, tensor, Dice(number))
            need(len(b.nodes) + 2 * len(b.leaves()) <= MOST_NODES)
        except UnfitError:
            b.rewind(mark)
        else:
            return


def _head(b: Builder, leaf: Tensor) -> Tensor:
    """Ends a leaf with a layer of its own, so that what feeds it may shrink; one in eight is an output as it is."""
    choice = zlib.crc32(leaf.name.encode()) % 8
    produced = {name for node in b.nodes for name in node.output}
    b.style = Dice(0)
    if leaf.name in produced and choice == 0:
        return leaf
    space = leaf.shape[2:]
    if leaf.rank in (3, 4) and leaf.shape[0] < 0 and min(leaf.shape[1:]) > 0 and choice < leaf.rank + 2:
        if choice < 3:
            flat = b.emit("Flatten", [leaf.name])
            size = math.prod(leaf.shape[1:])
            return Tensor(b.emit("MatMul", [flat, b.weight((size, 3), size)]), (leaf.shape[0], 3))
        w = b.weight((3, leaf.shape[1], *[1] * len(space)), leaf.shape[1])
        return Tensor(b.emit("Conv", [leaf.name, w, b.vector(3)]), (leaf.shape[0], 3, *space))
    if leaf.rank >= 2 and leaf.shape[-1] > 0:
        y = b.emit("MatMul", [leaf.name, b.weight((leaf.shape[-1], 3), leaf.shape[-1])])
        return Tensor(y, (*leaf.shape[:-1], 3))
    return Tensor(b.emit("Neg", [leaf.name]), leaf.shape)


def runs(growth: Growth, proto: onnx.ModelProto) -> bool:
    """Says whether the original is valid and runs on both batch sizes."""
    try:
        onnx.checker.check_model(proto, full_check=True)
        session = open_session(proto, OPTIONS)
        for feeds in _feeds(growth, proto):
            values = session.run(feeds)
            if not all(np.isfinite(value).all() for value in values.values()):
                return False
    except (ModelError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return True


def check(growth: Growth, statistics: Statistics) -> None:
    """Grows, prunes twice, and raises AssertionError with the graph as text where a law is broken."""
    proto = grow(growth)
    statistics.graphs += 1
    if not runs(growth, proto):
        statistics.discarded += 1
        return
    statistics.nodes.append(len(proto.graph.node))
    statistics.operators.update(node.op_type for node in proto.graph.node)
    statistics.steps.update({step.kind for step in growth.steps})
    try:
        broken = _broken(growth, proto, statistics)
    except OnnxPruneError as error:
        broken = f"{type(error).__name__}: {error}"
    except Exception as error:
        raise AssertionError(_report(growth, proto, f"{type(error).__name__}: {error}")) from error
    if broken:
        raise AssertionError(_report(growth, proto, broken))


def _report(growth: Growth, proto: onnx.ModelProto, broken: str) -> str:
    return f"{broken}\n{growth!r}\n{printer.to_text(proto)}"


def _broken(growth: Growth, proto: onnx.ModelProto, statistics: Statistics) -> str | None:
    before = proto.SerializeToString(deterministic=True)
    channels = analyze(proto, {name: value.shape for name, value in _feeds(growth, proto)[0].items()})
    if not channels.prunable:
        return None
    statistics.prunable += 1
    source = to_proto(channels.graph).SerializeToString(deterministic=True)
    for number, chosen in enumerate((_random_removals(growth, channels), _planned(growth, channels))):
        if not chosen:
            continue
        statistics.proofs += 1
        sliced = slice_channels(channels, chosen)
        found = prove(channels, chosen, sliced, _feeds(growth, proto), OPTIONS)
        if not found.passed:
            return f"removals {number} {chosen}: {found}"
        contract = _contract(growth, proto, to_proto(sliced))
        if contract:
            return f"removals {number} {chosen}: {contract}"
    if proto.SerializeToString(deterministic=True) != before:
        return "the source model was modified"
    if to_proto(channels.graph).SerializeToString(deterministic=True) != source:
        return "the analysed graph was modified"
    return None


def _seed(growth: Growth) -> int:
    return zlib.crc32(repr(growth).encode())


def _random_removals(growth: Growth, channels: Channels) -> dict[str, list[int]]:
    """Chooses units of some groups, never all of one, and as many of each block."""
    rng = np.random.default_rng(_seed(growth))
    chosen = {}
    for group in channels.prunable:
        if rng.random() < 0.8:
            chosen[group.name] = random_units(group, rng.random(), rng)
    return chosen


def _planned(growth: Growth, channels: Channels) -> dict[str, list[int]]:
    ratio = (0.3, 0.5, 0.7)[_seed(growth) % 3]
    try:
        made = plan(channels, score(channels, "random", seed=_seed(growth) % 1000), ratio, 1)
    except PlanError as error:
        if "rounding leaves nothing" in str(error):
            return {}
        raise
    return {name: list(units) for name, units in made.removals.items()}


def _contract(growth: Growth, proto: onnx.ModelProto, small: onnx.ModelProto) -> str | None:
    """Law 4: the caller sees the same model."""
    for kind in ("input", "output"):
        old = {value.name: value.type for value in getattr(proto.graph, kind)}
        new = {value.name: value.type for value in getattr(small.graph, kind)}
        if list(old) != list(new) or old != new:
            return f"the {kind}s changed from {old} to {new}"
    if small.ir_version != proto.ir_version or list(small.opset_import) != list(proto.opset_import):
        return "opset or IR version changed"
    if any(node.domain not in ("", "ai.onnx") for node in small.graph.node) or small.functions:
        return "operators outside the standard domain came in"
    onnx.checker.check_model(small, full_check=True)
    session = open_session(small, OPTIONS)
    for feeds, batch in zip(_feeds(growth, proto), _batches(growth), strict=True):
        values = session.run(feeds)
        for output in proto.graph.output:
            declared = [_size(dim, batch) for dim in output.type.tensor_type.shape.dim]
            if list(values[output.name].shape) != declared:
                return f"output {output.name!r} is {values[output.name].shape} instead of {declared}"
    return None


def _batches(growth: Growth) -> tuple[int, int]:
    return (BATCH, BATCH) if growth.fixed_batch else (BATCH, BATCH + 1)


def _size(dim: onnx.TensorShapeProto.Dimension, batch: int) -> int:
    return dim.dim_value or batch * int(dim.dim_param[1:] or 1)


def _feeds(growth: Growth, proto: onnx.ModelProto) -> list[dict[str, np.ndarray]]:
    return [_values(proto, batch, number) for number, batch in enumerate(_batches(growth))]


def _values(proto: onnx.ModelProto, batch: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    feeds: dict[str, np.ndarray] = {}
    for value in proto.graph.input:
        kind = value.type.tensor_type
        shape = [_size(dim, batch) for dim in kind.shape.dim]
        if kind.elem_type == TensorProto.FLOAT:
            feeds[value.name] = rng.standard_normal(shape).astype(np.float32)
        else:
            feeds[value.name] = rng.integers(0, 8, shape).astype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
    return feeds
