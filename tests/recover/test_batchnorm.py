"""BatchNormalization in repair: one more linear operator where nothing before it makes up for what changed."""

import numpy as np
import onnx
import pytest
from onnx_text import model

import onnxprune as op
from onnxprune.channels.groups import Channels, analyze
from onnxprune.model.io import Graph, load, read_values
from onnxprune.ops.forms import scaling_of
from onnxprune.recover.least_squares import shift, solve, statistics
from onnxprune.recover.sequential import Calibration, Repaired, Settings, repair
from onnxprune.runtime.session import SessionOptions, open_session
from onnxprune.score.readings import Runs, readings
from onnxprune.surgery.gone import Gone
from onnxprune.surgery.slice import slice_channels

OPTIONS = SessionOptions(threads=1)
NORM = "{0}g=+{1} {0}s={1} {0}m={1} {0}v=+{1}"

BEFORE = (
    "x:N,3,8,8 w0=16,3,3,3 w1=16,16,3,3 w2=16,16,3,3 w3=24,32,1,1 w4=10,24 "
    + " ".join(NORM.format(name, width) for name, width in (("a", 16), ("b", 16), ("c", 32))),
    "i = Conv<pads=[1,1,1,1]>(x, w0) r = Relu(i) n = BatchNormalization(r, ag, as, am, av) "
    "j = Conv<pads=[1,1,1,1]>(n, w1) q = Relu(j) k = BatchNormalization(q, bg, bs, bm, bv) "
    "l = Conv<pads=[1,1,1,1]>(k, w2) f = Relu(l) d = Concat<axis=1>(f, q) e = BatchNormalization(d, cg, cs, cm, cv) "
    "o = Conv(e, w3) t = Relu(o) p = GlobalAveragePool(t) z = Flatten(p) y = Gemm<transB=1>(z, w4)",
)
BEHIND = (
    "x:N,3,8,8 w0=16,3,3,3 w1=16,16,3,3 w2=16,16,3,3 w4=10,16 "
    + " ".join(NORM.format(name, 16) for name in ("a", "b", "c")),
    "i = Conv<pads=[1,1,1,1]>(x, w0) n = BatchNormalization(i, ag, as, am, av) r = Relu(n) "
    "j = Conv<pads=[1,1,1,1]>(r, w1) k = BatchNormalization(j, bg, bs, bm, bv) q = Relu(k) "
    "l = Conv<pads=[1,1,1,1]>(q, w2) e = BatchNormalization(l, cg, cs, cm, cv) s = Add(e, r) t = Relu(s) "
    "p = GlobalAveragePool(t) z = Flatten(p) y = Gemm<transB=1>(z, w4)",
)


def images(seed: int, count: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((count, 3, 8, 8), np.float32)}


def pruned(channels: Channels, ratio: float) -> tuple[Graph, Gone]:
    removals = dict(op.plan(channels, op.score(channels), ratio, round_to=1).removals)
    return slice_channels(channels, removals), Gone(channels, removals)


def fitted(channels: Channels, ratio: float, settings: Settings) -> tuple[Graph, Graph, list[Repaired]]:
    small, left = pruned(channels, ratio)
    better, found = repair(small, channels.graph, left, Calibration([images(0, 96)], [images(1, 48)]), settings)
    return small, better, found


def error(proto: onnx.ModelProto, graph: Graph) -> float:
    expected, made = (open_session(one, OPTIONS).run(images(2, 64))["y"] for one in (proto, graph))
    return float(np.square(made - expected).mean() / expected.var(axis=0).mean())


def vectors(graph: Graph, slot: int) -> dict[str, np.ndarray]:
    nodes = [node for node in graph.nodes if node.op == "BatchNormalization"]
    return {node.name: read_values(node.inputs[slot]) for node in nodes}


@pytest.mark.parametrize("method", [solve, shift])
def test_what_no_convolution_makes_up_for_is_repaired(method: object) -> None:
    proto = model(*BEFORE)
    small, better, found = fitted(analyze(proto), 0.4, Settings(method, options=OPTIONS))
    errors = {one.node: (one.before, one.after) for one in found if one.node.startswith("Batch")}
    # What the first one reads comes from a convolution of the input: channels are gone, but the others are right.
    assert set(errors) == {"BatchNormalization_5", "BatchNormalization_9"}
    assert all(after < before for before, after in errors.values())
    assert error(proto, better) < 0.8 * error(proto, small)
    for slot in (3, 4):
        for name, values in vectors(small, slot).items():
            np.testing.assert_array_equal(vectors(better, slot)[name], values)
    for name, values in vectors(better, 1).items():
        assert values.dtype == np.float32
        assert np.array_equal(values, vectors(small, 1)[name]) == (method is shift or name not in errors)


@pytest.mark.parametrize("method", [solve, statistics, shift])
def test_a_pre_activation_network_gains(method: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a block what is left reads sums that lack its part, and nothing but the normalization makes up for it."""
    tensors = "x:N,3,8,8 w0=16,3,3,3 w1=16,16,3,3 w2=16,16,3,3 w3=10,16 "
    tensors += " ".join(NORM.format(name, 16) for name in ("a", "b", "c"))
    block = "n = BatchNormalization(i, ag, as, am, av) r = Relu(n) j = Conv<pads=[1,1,1,1]>(r, w1) s = Add(i, j) "
    text = (
        "i = Conv<pads=[1,1,1,1]>(x, w0) " + block + "k = BatchNormalization(s, bg, bs, bm, bv) q = Relu(k) "
        "l = Conv<pads=[1,1,1,1]>(q, w2) t = Add(s, l) e = BatchNormalization(t, cg, cs, cm, cv) f = Relu(e) "
        "p = GlobalAveragePool(f) z = Flatten(p) y = Gemm<transB=1>(z, w3)"
    )
    proto = model(tensors, text)
    for tensor in proto.graph.initializer:
        if tensor.name == "w1":
            tensor.CopyFrom(onnx.numpy_helper.from_array(0.04 * onnx.numpy_helper.to_array(tensor), "w1"))
    channels = analyze(proto)
    used = " ".join(token for token in tensors.split() if token[0] != "a" and token[:2] != "w1")
    small = load(model(used, text.replace(block, "").replace("(s, ", "(i, ")))
    settings = Settings(method, options=OPTIONS)
    runs = Calibration([images(0, 96)], [images(1, 48)])
    better, found = repair(small, channels.graph, Gone(channels, {}), runs, settings)
    gains = {one.node: one.before / one.after for one in found}
    assert gains["BatchNormalization_1"] > 1.1
    monkeypatch.setattr("onnxprune.model.linear.scaling_of", lambda node, vectors: None)
    without, _ = repair(small, channels.graph, Gone(channels, {}), runs, settings)
    errors = [error(proto, graph) for graph in (small, without, better)]
    assert errors[2] < 0.97 * errors[1]


def folded(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Returns the model with every BatchNormalization in the weights of the convolution before it."""
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    del result.graph.initializer[:], result.graph.node[:]
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in proto.graph.node]
    for node, behind in zip(nodes, [*nodes[1:], None], strict=True):
        if node.op_type == "BatchNormalization":
            continue
        if behind is not None and behind.op_type == "BatchNormalization":
            gain, offset, mean, variance = (stored[name] for name in behind.input[1:5])
            factor = gain / np.sqrt(variance + 1e-5)
            weight, bias = node.input[1], f"{node.input[1]}_bias"
            stored[weight] = stored[weight] * factor[:, None, None, None]
            stored[bias] = offset - mean * factor
            node.input.append(bias)
            node.output[0] = behind.output[0]
        result.graph.node.append(node)
    used = {name for node in result.graph.node for name in node.input}
    kept = [onnx.numpy_helper.from_array(values, name) for name, values in stored.items() if name in used]
    result.graph.initializer.extend(kept)
    return result


@pytest.mark.parametrize("method", [solve, statistics])
@pytest.mark.parametrize("residual", [True, False])
def test_what_stands_behind_convolutions_is_repaired_with_them(method: object, residual: bool) -> None:
    """As well as where it is folded, with no repair of its own; a sum behind it is a target too."""
    apart = model(*BEHIND)
    joined = folded(apart)
    settings = Settings(method, residual, options=OPTIONS)
    channels = analyze(apart)
    removals = dict(op.plan(channels, op.score(channels), 0.4, round_to=1).removals)
    same = analyze(joined)
    names = {group.name: removals[group.name] for group in same.prunable}
    runs = Calibration([images(0, 96)], [images(1, 48)])
    results = {}
    for key, one, chosen in (("apart", channels, removals), ("joined", same, names)):
        small = slice_channels(one, chosen)
        better, found = repair(small, one.graph, Gone(one, chosen), runs, settings)
        results[key] = error(apart, small), error(apart, better), [layer.node for layer in found]
    assert results["apart"][0] == pytest.approx(results["joined"][0], rel=1e-3)
    assert results["apart"][1] == pytest.approx(results["joined"][1], rel=0.1)
    assert results["apart"][1] < 0.6 * results["apart"][0]
    assert results["apart"][2] == results["joined"][2]


def test_scores_read_no_normalization() -> None:
    channels = analyze(model(*BEFORE))
    heard: list[tuple[str, float]] = []
    runs = Runs([images(0, 32)], options=OPTIONS, progress=lambda stage, done: heard.append((stage, done)))
    assert {one.result for one in readings(channels, runs)} == {"j", "l", "o", "y"}
    assert heard == [("score", pytest.approx(part / 4)) for part in (1, 2, 3, 4)]


@pytest.mark.parametrize("mode", ["training", "by place", "computed"])
def test_other_statistics_have_no_form(mode: str) -> None:
    outputs = "z, o, u = BatchNormalization<training_mode=1>" if mode == "training" else "z = BatchNormalization"
    (node,) = load(model("h:N,6,7,7 g=+6 s=6 m=6 v=+6", f"{outputs}(h, g, s, m, v)", 15)).nodes
    held = [np.ones((6, 7, 7) if mode == "by place" else 6)] * 4
    assert scaling_of(node, [None, *held[1:]] if mode == "computed" else held) is None
