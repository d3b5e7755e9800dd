"""Which blocks go, and what a repair makes of what is left."""

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from onnx_text import model
from stacks import llama, residual

import onnxprune as op
from onnxprune.channels.blocks import Block, find_blocks
from onnxprune.channels.groups import Channels, analyze
from onnxprune.errors import PlanError, UsageError
from onnxprune.model.io import Graph, to_proto
from onnxprune.recover import depth
from onnxprune.recover.depth import affordable, choose_blocks, number_of_blocks, trial_samples
from onnxprune.recover.differences import Unchanged
from onnxprune.recover.least_squares import solve
from onnxprune.recover.sequential import Calibration, Settings, repair
from onnxprune.runtime.session import SessionOptions, open_session
from onnxprune.score.readings import Runs
from onnxprune.surgery.drop import drop_blocks
from onnxprune.surgery.gone import Gone

OPTIONS = SessionOptions(threads=1)


def analyzed(source: object) -> tuple[Channels, tuple[Block, ...]]:
    channels = analyze(source)
    return channels, find_blocks(channels.graph, channels.shapes)


def network(seed: int = 0, blocks: int = 6) -> tuple[Channels, tuple[Block, ...]]:
    """Returns residual blocks that add little to what they read."""
    proto = residual(blocks, seed=seed)
    for tensor in proto.graph.initializer:
        tensor.raw_data = (np.frombuffer(tensor.raw_data, np.float32) / 4).tobytes()
    return analyzed(proto)


def images(seed: int, count: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((count, 3, 8, 8), np.float32)}


def runs(count: int = 16) -> Runs:
    return Runs([images(0, count)], options=OPTIONS)


def divergence(channels: Channels, blocks: list[Block], count: int = 16) -> float:
    expected, found = (
        open_session(graph, OPTIONS).run(images(0, count))["y"].astype(np.float64)
        for graph in (channels.graph, drop_blocks(channels.graph, blocks))
    )
    return float(np.square(found - expected).sum() / (expected.size * expected.var()))


@pytest.mark.parametrize("seed", [1, 3, 4])
def test_ranks_by_the_outputs_again_after_every_drop(seed: int) -> None:
    channels, blocks = network(seed)
    chosen = choose_blocks(channels.graph, blocks, 3, runs=runs())
    gone: list[Block] = []
    first: list[str] = []
    for one in chosen:
        left = {block.exit: divergence(channels, [*gone, block]) for block in blocks if block.counts} | dict.fromkeys(
            (block.exit for block in gone), np.inf
        )
        assert one.block.exit == min(left, key=lambda name: left[name])
        assert one.score == pytest.approx(left[one.block.exit], rel=1e-4)
        first = first or sorted(left, key=lambda name: left[name])[:3]
        gone.append(one.block)
    assert [block.exit for block in gone] != first  # one ranking alone would choose others


def test_cosine_of_what_is_read_and_made() -> None:
    channels, blocks = network(5, 3)
    channels.graph.outputs += [node.outputs[0] for node in channels.graph.nodes if node.outputs[0].name in ("r0", "r1")]
    chosen = choose_blocks(channels.graph, blocks, 1, "cosine", runs())
    values = open_session(channels.graph, OPTIONS).run(images(0, 16))
    entry, exit = (values[name].reshape(16, -1).astype(np.float64) for name in ("r0", "r1"))
    cosine = (entry * exit).sum(axis=1) / np.linalg.norm(entry, axis=1) / np.linalg.norm(exit, axis=1)
    assert chosen[0].block.exit == "r1"
    assert chosen[0].score == pytest.approx(1 - cosine.mean(), rel=1e-3)


def test_the_smallest_go_without_samples_and_deep_ones_first() -> None:
    channels, blocks = analyzed(llama(2))
    chosen = choose_blocks(channels.graph, blocks, 3)
    assert [(one.block.exit, one.score) for one in chosen] == [("ya_1", 264), ("ya_0", 264), ("ym_1", 392)]


def test_fewer_trials_than_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 12 blocks 6 go: 57 trials if all were tried in every round."""
    opened: list[object] = []
    monkeypatch.setattr(depth, "open_session", lambda *given: (opened.append(given), open_session(*given))[1])
    channels, blocks = network(3, 12)
    heard: list[float] = []
    heeding = Runs([images(0, 4)], options=OPTIONS, progress=lambda stage, part: heard.append(part))
    assert len(choose_blocks(channels.graph, blocks, 0.5, runs=heeding)) == 6
    assert heard == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1])
    assert 12 < len(opened) - 1 < 57


@pytest.mark.parametrize(
    ("amount", "count", "number"), [(0.25, 25, 6), (0.5, 3, 2), (0.0, 4, 0), (3, 3, 3), (0.1, 4, 0)]
)
def test_number_of_blocks(amount: float, count: int, number: int) -> None:
    assert number_of_blocks(amount, count) == number


def test_refusals() -> None:
    channels, blocks = analyzed(residual(2))
    with pytest.raises(UsageError, match="--layers asks for 3 blocks, and 2 can be dropped: ask for fewer"):
        choose_blocks(channels.graph, blocks, 3)
    with pytest.raises(PlanError, match="no block of the model can be dropped"):
        choose_blocks(channels.graph, [block for block in blocks if not block.counts], 1)
    with pytest.raises(UsageError, match="there is no ranking of blocks 'size': choose one of repaired, divergence, "):
        choose_blocks(channels.graph, blocks, 1, "size")
    with pytest.raises(UsageError, match="ranking blocks by cosine needs samples: give --data, or rank by parameters"):
        choose_blocks(channels.graph, blocks, 1, "cosine")
    with pytest.raises(UsageError, match=r"--layers is 1\.5: give a fraction"):
        choose_blocks(channels.graph, blocks, 1.5)


MIXED = (
    "x:N,3,8,8 w0=6,3,3,3 b0=6 w1=6,6,1,1 b1=6 w2=6,6,3,3 w3=6,6,3,3 wy=5,6 by=5",
    "i = Conv(x, w0, b0) k = Conv(i, w1, b1) r = Relu(k) c = Conv<pads=[1,1,1,1]>(r, w2) d = Relu(c) "
    "e = Conv<pads=[1,1,1,1]>(d, w3) s = Add(e, r) t = Relu(s) p = GlobalAveragePool(t) f = Flatten(p) "
    "y = Gemm<transB=1>(f, wy, by)",
)
"""A linear block, which weighs much and of which a repair takes back everything, and a light one behind it."""


def test_what_a_repair_takes_back_costs_nothing() -> None:
    proto = model(*MIXED)
    for tensor in proto.graph.initializer:
        factor = np.float32({"w1": 4, "w3": 1 / 20}.get(tensor.name, 1))
        tensor.raw_data = (np.frombuffer(tensor.raw_data, np.float32) * factor).tobytes()
    channels, blocks = analyzed(proto)
    halves = Runs([images(0, 64), images(1, 64)], options=OPTIONS, held_out=[images(2, 64)])
    plain, repaired = (choose_blocks(channels.graph, blocks, 2, name, halves) for name in ("divergence", "repaired"))
    assert [one.block.exit for one in plain] == ["t", "k"]
    assert [one.block.exit for one in repaired] == ["k", "t"]
    assert repaired[0].score < 1e-3 < 0.1 * plain[1].score
    assert repaired[1].score < plain[1].score


def test_repairs_are_tried_where_they_take_minutes_at_most() -> None:
    channels, _ = network()
    assert affordable(channels.graph, 10**8, 25, 10)
    assert not affordable(channels.graph, 4 * 10**9, 16, 5)
    wide, _ = analyzed(model("x:N,4096 w=4096,4096 v=4096,8", "h = MatMul(x, w) r = Relu(h) y = MatMul(r, v)"))
    assert not affordable(wide.graph, 10**6, 25, 10)


def test_trials_are_bounded() -> None:
    assert trial_samples(10**6, 10, 2) > trial_samples(2 * 10**9, 10, 2) > trial_samples(10**13, 10, 2) > 0


PLAIN = (
    "x:N,3,8,8 w0=6,3,3,3 b0=6 w1=6,6,1,1 b1=6 w2=6,6,3,3 wy=5,6 by=5",
    "i = Conv(x, w0, b0) k = Conv(i, w1, b1) r = Relu(k) a = Conv(r, w2) p = GlobalAveragePool(a) f = Flatten(p) "
    "y = Gemm<transB=1>(f, wy, by)",
)


@pytest.mark.parametrize(
    ("source", "exits", "node", "left"),
    [(model(*PLAIN), ["k"], "Conv_0", 1e-3), (residual(4, seed=2), ["r1", "r2"], "Conv_4", 0.8)],
)
def test_the_operator_before_takes_in_what_is_lost(source: object, exits: list[str], node: str, left: float) -> None:
    """All of a linear block, and of others what a linear map can do."""
    channels, blocks = analyzed(source)
    small = drop_blocks(channels.graph, [block for block in blocks if block.exit in exits])
    calibration = Calibration([images(1, 96)], [images(2, 32)])
    better, rows = repair(small, channels.graph, Gone(channels, {}), calibration, Settings(solve, options=OPTIONS))
    expected, before, after = (
        open_session(graph, OPTIONS).run(images(3, 64))["y"] for graph in (channels.graph, small, better)
    )
    assert rows[0].node == node
    assert rows[0].after < left * rows[0].before
    assert np.square(after - expected).mean() < left * np.square(before - expected).mean()


def test_a_repair_of_some_operators_leaves_the_others() -> None:
    channels, blocks = analyzed(residual(4, seed=2))
    small = drop_blocks(channels.graph, [block for block in blocks if block.exit == "r1"])
    calibration = Calibration([images(1, 96)], [images(2, 32)])
    settings = Settings(solve, options=OPTIONS, only=frozenset({"b2"}), quick=True)
    better, rows = repair(small, channels.graph, Unchanged(), calibration, settings)
    assert len(rows) == 1
    stored = [{name: one.values for name, one in weights(graph).items()} for graph in (small, better)]
    assert [name for name in stored[0] if not np.array_equal(stored[0][name], stored[1][name])] == ["wb2", "bb2"]


def weights(graph: Graph) -> dict[str, gs.Constant]:
    return {name: one for name, one in graph.tensors().items() if isinstance(one, gs.Constant)}


def test_recover_finds_what_was_dropped() -> None:
    """The public repair knows the models alone: what took the place of a block is found by its name."""
    channels, blocks = network(1)
    chosen = choose_blocks(channels.graph, blocks, 2, runs=runs())
    small = to_proto(drop_blocks(channels.graph, [one.block for one in chosen]))
    better = to_proto(op.recover(small, channels, images(1, 96)))
    expected, before, after = (
        open_session(one, OPTIONS).run(images(3, 64))["y"] for one in (channels.graph, small, better)
    )
    assert np.square(after - expected).mean() < 0.7 * np.square(before - expected).mean()
    assert [node.output for node in better.graph.node] == [node.output for node in small.graph.node]
