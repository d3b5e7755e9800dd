"""The slicing law: a sliced node on sliced inputs computes a slice of what the node computes on silenced inputs."""

import dataclasses
import re
from dataclasses import dataclass

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from onnx_text import model, random_feeds, with_measured_outputs

from onnxprune.channels.groups import ChannelGroup, Channels, analyze
from onnxprune.model.io import to_proto
from onnxprune.plan.plan import lowest
from onnxprune.runtime.session import SessionOptions, open_session
from onnxprune.surgery.gates import silence
from onnxprune.surgery.slice import Gone, Removals, slice_channels

LIMIT = {"double": 1e-9, "float": 1e-5, "runtime": 1e-5}


@dataclass(frozen=True)
class Case:
    """One variant of an operator.

    ``free`` says what must be prunable and into how many units: ``x1:6`` is axis 1 of x in 6 units, ``~x1:6`` the same
    outside the law, because a statistic runs over it, ``x1:6/2`` with as many of each of 2 blocks.
    Everything else must be frozen. ``run`` is ``double`` (reference
    evaluator, 1e-9), ``float`` (reference evaluator, 1e-5) or ``runtime`` (ONNX Runtime, 1e-5).
    """

    name: str
    tensors: str
    text: str
    free: str
    opset: int = 17
    run: str = "double"

    def proto(self) -> onnx.ModelProto:
        built = model(self.tensors, self.text, self.opset, np.float64 if self.run == "double" else np.float32)
        return built if not self.free else with_measured_outputs(built)

    @property
    def operators(self) -> set[str]:
        return set(re.findall(r"([\w.]+)\s*(?:<[^>]*>)?\s*\(", self.text))


def analyzed(case: Case, *, inexact: bool = False) -> Channels:
    """Returns what the operators alone say; ``inexact`` frees what is frozen for exactness only."""
    channels = analyze(case.proto(), boundary=False)
    if not inexact:
        return channels
    groups = tuple(group if group.exact else dataclasses.replace(group, frozen=None) for group in channels.groups)
    return dataclasses.replace(channels, groups=groups)


def expected_groups(case: Case) -> list[tuple[bool, str, int, int, int]]:
    """Returns (exact, tensor, dimension, units, blocks) of everything that the case says is free."""
    found = re.findall(r"(~?)([a-z]\w*?)(\d+):(\d+)(?:/(\d+))?", case.free)
    return [(not tilde, name, int(dim), int(units), int(blocks or 1)) for tilde, name, dim, units, blocks in found]


def some_removals(channels: Channels) -> st.SearchStrategy[dict[str, list[int]]]:
    """Draws units to remove, never all of a group."""
    return st.fixed_dictionaries(
        {
            group.name: st.lists(st.integers(0, group.units - 1), max_size=group.units - 1, unique=True)
            if group.blocks is None
            else st.builds(
                lambda fraction, seed, group=group: random_units(group, fraction, np.random.default_rng(seed)),
                st.floats(0, 1, exclude_max=True),
                st.integers(0, 2**16),
            )
            for group in channels.prunable
        }
    )


def random_units(group: ChannelGroup, fraction: float, rng: np.random.Generator) -> list[int]:
    """Returns units to remove at random: at least one of every block for fractions above 0, never all."""
    size = group.units // group.block_count
    count = min(int(np.ceil(size * fraction)), size - 1) * group.block_count
    return list(lowest(group, rng.random(group.units), count))


def seeded_removals(channels: Channels, seed: int) -> dict[str, list[int]]:
    """Removes at least one unit of every group, or of every block of one."""
    rng = np.random.default_rng(seed)
    chosen = {}
    for group in channels.prunable:
        chosen[group.name] = random_units(group, rng.random(), rng)
    return chosen


def violation(case: Case, channels: Channels, removals: Removals, seed: int = 0) -> float:
    """Returns the largest difference between the two sides of the law, relative to the largest magnitude."""
    gone = Gone(channels, removals)
    sizes = {name: gone.shape(name, shape) for name, shape in channels.sizes.items()}
    sliced = slice_channels(dataclasses.replace(channels, sizes=sizes), removals)
    feeds = random_feeds(case.proto(), np.random.default_rng(seed))
    expected = _run(to_proto(silence(channels, removals)), feeds, case.run)
    small = _with_shapes(to_proto(sliced), channels, gone)
    found = _run(small, {name: gone.take(name, x) for name, x in feeds.items()}, case.run)
    return max(difference(gone.take(name, values), found[name]) for name, values in expected.items())


def _with_shapes(proto: onnx.ModelProto, channels: Channels, gone: Gone) -> onnx.ModelProto:
    """Returns the model with sliced inputs and outputs; saving keeps those of the original, as the caller expects."""
    for value in (*proto.graph.input, *proto.graph.output):
        shape = gone.shape(value.name, channels.shapes.shapes[value.name])
        element = channels.shapes.types[value.name]
        value.type.CopyFrom(onnx.helper.make_tensor_type_proto(element, shape))
    return proto


def difference(expected: np.ndarray, found: np.ndarray) -> float:
    """Returns the largest difference relative to the largest magnitude; infinite where shapes differ."""
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return float("inf")
    left, right = expected.astype(np.float64), found.astype(np.float64)
    same = (left == right) | (np.isnan(left) & np.isnan(right))
    with np.errstate(invalid="ignore"):
        apart = np.where(same, 0.0, np.abs(left - right))
    if not apart.size or not apart.any():
        return 0.0
    finite = np.abs(left[np.isfinite(left)])
    return float(np.nan_to_num(apart, nan=np.inf).max() / max(float(finite.max(initial=0)), 1e-12))


def _run(proto: onnx.ModelProto, feeds: dict[str, np.ndarray], how: str) -> dict[str, np.ndarray]:
    if how == "runtime":
        return open_session(proto, SessionOptions(threads=1, optimize=False)).run(feeds)
    with np.errstate(all="ignore"):
        values = ReferenceEvaluator(proto).run(None, feeds)
    return {output.name: np.asarray(value) for output, value in zip(proto.graph.output, values, strict=True)}
