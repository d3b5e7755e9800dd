"""Repair of attention: values as any other linear operator, queries and keys toward the product of both."""

import sys
from collections.abc import Callable

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper
from onnx_text import model

import onnxprune as op
from onnxprune.channels.facts import Axis
from onnxprune.channels.groups import Channels
from onnxprune.model.io import Graph
from onnxprune.model.linear import Holders
from onnxprune.model.products import computed_products
from onnxprune.recover.lanes import Lanes
from onnxprune.recover.least_squares import solve
from onnxprune.recover.projection import projection
from onnxprune.recover.sequential import Calibration, Repaired, Settings, repair
from onnxprune.runtime.session import SessionOptions, open_session
from onnxprune.surgery.gone import Gone
from onnxprune.surgery.slice import slice_channels

OPTIONS = SessionOptions(threads=1)

TOKENS = "x:N,12,10 w1=10,24 b1=24"
HIDDEN = "h0 = MatMul(x, w1) h1 = Add(h0, b1) h = Relu(h1) "
SEPARATE = (
    f"{TOKENS} wq=24,16 bq=16 wk=24,16 bk=16 c=f#0.25",
    HIDDEN + "q0 = MatMul(h, wq) q1 = Add(q0, bq) q = Mul(q1, c) k0 = MatMul(h, wk) k = Add(k0, bk) "
    "t = Transpose<perm=[0,2,1]>(k) y = MatMul(q, t)",
)
FUSED = (
    f"{TOKENS} w=24,40 b=40 sz={{16,16,8}} wo=8,6",
    HIDDEN + "p0 = MatMul(h, w) p = Add(p0, b) q, k, v = Split<axis=2>(p, sz) t = Transpose<perm=[0,2,1]>(k) "
    "y = MatMul(q, t) z = MatMul(v, wo)",
)
HEADS = (
    f"{TOKENS} wq=24,24 bq=24 wk=24,24 bk=24 to={{0,0,3,8}}",
    HIDDEN + "q0 = MatMul(h, wq) q1 = Add(q0, bq) k0 = MatMul(h, wk) k1 = Add(k0, bk) q4 = Reshape(q1, to) "
    "k4 = Reshape(k1, to) q = Transpose<perm=[0,2,1,3]>(q4) k = Transpose<perm=[0,2,3,1]>(k4) y = MatMul(q, k)",
)
CONVOLUTION = (
    "x:N,6,5,5 w1=24,6,3,3 b1=24 wq=16,24,1,1 bq=16 wk=16,24,1,1 bk=16 to={0,0,25}",
    "h1 = Conv<pads=[1,1,1,1]>(x, w1, b1) h = Relu(h1) q4 = Conv(h, wq, bq) k4 = Conv(h, wk, bk) "
    "q = Reshape(q4, to) k = Reshape(k4, to) t = Transpose<perm=[0,2,1]>(q) y = MatMul(t, k)",
)
SHARED = (
    "x:N,3,12,10 w1=10,24 b1=24 wq=24,16 wk=24,16 wv=24,8 wo=8,6",
    "h0 = MatMul(x, w1) h1 = Add(h0, b1) h = Relu(h1) q = MatMul(h, wq) k = MatMul(h, wk) v = MatMul(h, wv) "
    "o, e, f, y = Attention<scale=1.0, qk_matmul_output_mode=0>(q, k, v) z = MatMul(o, wo)",
)
WHOLE = (
    f"{TOKENS} wq=24,16 wk=24,16 wv=24,24 wo=24,6",
    HIDDEN + "q = MatMul(h, wq) k = MatMul(h, wk) v = MatMul(h, wv) t = Transpose<perm=[0,2,1]>(k) "
    "s = MatMul(q, t) a = Softmax(s) o = MatMul(a, v) y = MatMul(o, wo)",
)


def network(net: tuple[str, str], seed: int) -> ModelProto:
    """Returns the network with weights that are small enough for a Softmax."""
    proto = model(*net, opset=23 if net is SHARED else 17, seed=seed)
    for tensor in proto.graph.initializer:
        if tensor.name[0] in "wb":
            values = numpy_helper.to_array(tensor) * np.float32(0.25)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return proto


def runs(proto: ModelProto, count: int, seed: int) -> dict[str, np.ndarray]:
    shape = [dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim[1:]]
    return {"x": np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)}


def repaired(channels: Channels, removals: dict, proto: ModelProto) -> tuple[Graph, Graph, list[Repaired]]:
    """Returns the network without the units, and the same repaired."""
    small = slice_channels(channels, removals)
    calibration = Calibration([runs(proto, 64, seed) for seed in range(3)], [runs(proto, 64, 3)])
    settings = Settings(solve, options=OPTIONS)
    return small, *repair(small, channels.graph, Gone(channels, removals), calibration, settings)


def error(proto: ModelProto, graph: Graph) -> float:
    """Returns the error of ``y`` on other samples, relative to its variance."""
    feeds = runs(proto, 100, 9)
    expected, found = (open_session(one, OPTIONS).run(feeds)["y"] for one in (proto, graph))
    return float(np.square(found - expected).mean() / expected.var())


def test_the_projection_is_that_of_least_squares() -> None:
    rng = np.random.default_rng(0)
    q, k, left = rng.standard_normal((50, 7)), rng.standard_normal((40, 7)), rng.standard_normal((40, 4))
    found = projection((k.T @ left)[None], (left.T @ left)[None])[0]
    expected = np.linalg.lstsq(left, k @ q.T, rcond=None)[0].T
    np.testing.assert_allclose(q @ found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    "net",
    [SEPARATE, FUSED, HEADS, CONVOLUTION, SHARED],
    ids=["separate", "fused", "heads", "convolution", "operator of its own"],
)
def test_the_product_of_queries_and_keys_stays(
    net: tuple[str, str], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the projection, what is left of queries and keys cannot make up for what is gone."""
    proto = network(net, seed)
    channels = op.analyze(proto)
    removals = dict(op.plan(channels, op.score(channels), 0.4, round_to=1).removals)
    small, better, _ = repaired(channels, removals, proto)
    monkeypatch.setattr(sys.modules[repair.__module__], "projections", lambda *_: iter(()))
    _, plain, _ = repaired(channels, removals, proto)
    errors = [error(proto, graph) for graph in (small, plain, better)]
    assert errors[2] < 0.8 * errors[1]
    assert errors[2] < errors[0]


def test_an_exact_factorization_is_found() -> None:
    """Queries of rank 8 need no more than 8 dimensions, whichever they are: the keys turn the others into them."""
    proto = network(SEPARATE, 0)
    rng = np.random.default_rng(0)
    basis = rng.standard_normal((8, 16))
    for tensor in proto.graph.initializer:
        if tensor.name in ("wq", "bq"):
            values = rng.standard_normal((*tensor.dims[:-1], 8)) @ basis
            tensor.CopyFrom(numpy_helper.from_array((0.1 * values).astype(np.float32), tensor.name))
    channels = op.analyze(proto)
    removals = {"MatMul_3": tuple(sorted(rng.permutation(16)[:8].tolist()))}
    small, better, found = repaired(channels, removals, proto)
    assert error(proto, small) > 0.1
    assert error(proto, better) < 1e-3
    assert [one.node for one in found if one.kept] == ["MatMul_6"]


def test_values_need_nothing_of_their_own() -> None:
    proto = network(WHOLE, 0)
    channels = op.analyze(proto)
    (group,) = (group for group in channels.prunable if Axis("wv", 1) in group.weights)
    removals = {group.name: tuple(range(12))}
    small, better, found = repaired(channels, removals, proto)
    assert error(proto, better) < 0.2 * error(proto, small)
    assert [one.node for one in found if one.kept] == ["MatMul_10"]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("y = MatMul(q, t)", "qq = Tanh(q) y = MatMul(qq, t)"),
        lambda text: text.replace("q = Mul(q1, c)", "q = Mul(q1, q1)"),
        lambda text: text.replace("q = Mul(q1, c)", "q = Mul(q1, c) z = Relu(q1)"),
        lambda text: text.replace("q = Mul(q1, c)", "e = CumSum(q1, d) q = Mul(e, c)"),
    ],
    ids=["activation", "square", "read elsewhere", "mixed"],
)
def test_what_changes_the_channels_on_the_way_has_no_projection(change: Callable[[str], str]) -> None:
    channels = op.analyze(network((SEPARATE[0] + " d=#2", change(SEPARATE[1])), 0))
    (product,) = computed_products(channels.graph, channels.shapes, Holders(channels.graph))
    lanes = Lanes(channels.graph)
    left, right = (lanes.find(product.node, side) for side in product.sides)
    assert left is None
    assert right is not None


def test_the_way_of_the_channels() -> None:
    """Heads, a scale by head dimension, a shift, and channels of one part of the result."""
    text = (
        "p = MatMul(x, w) q0, k0 = Split<axis=2>(p, sz) q1 = Reshape(q0, to) q2 = Mul(q1, s) q3 = Add(q2, b) "
        "k1 = Reshape(k0, to) q = Transpose<perm=[0,2,1,3]>(q3) k = Transpose<perm=[0,2,3,1]>(k1) y = MatMul(q, k)"
    )
    channels = op.analyze(model("x:N,5,4 w=4,12 sz={6,6} to={0,0,2,3} s=3 b=2,3", text))
    (product,) = computed_products(channels.graph, channels.shapes, Holders(channels.graph))
    left, right = (Lanes(channels.graph).find(product.node, side) for side in product.sides)
    stored = {name: value.values for name, value in channels.graph.tensors().items() if name in ("s", "b")}
    assert left is not None
    assert right is not None
    assert left.channels.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert right.channels.tolist() == [[6, 7, 8], [9, 10, 11]]
    np.testing.assert_allclose(left.scale, np.broadcast_to(stored["s"], (2, 3)), rtol=1e-6)
    np.testing.assert_allclose(left.shift, stored["b"], rtol=1e-6)
