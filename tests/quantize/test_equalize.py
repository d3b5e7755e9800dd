"""Graphs whose channels are divided and multiplied compute the same, and gain where channels were badly scaled."""

from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx_text import model, random_feeds

from onnxprune.model.io import Graph, load, read_values, to_proto
from onnxprune.model.linear import Holders, linear_nodes
from onnxprune.model.sizes import infer_shapes
from onnxprune.quantize.calibrate import choose_ranges, read
from onnxprune.quantize.coupling import Coupling
from onnxprune.quantize.emit import Scales, weight_scales, with_integers, with_pairs
from onnxprune.quantize.equalize import LEAST, Equalized, Grids, Samples, equalized
from onnxprune.quantize.grids import UNSIGNED, WEIGHTS, scale_of
from onnxprune.quantize.merge import merged
from onnxprune.quantize.opset import raised
from onnxprune.quantize.placement import Placement, place
from onnxprune.quantize.targets import target_of
from onnxprune.runtime.session import SessionOptions, open_session

CONVOLUTIONS = "x:2,3,8,8 w=8,3,3,3 b=8 v=5,8,1,1 "
PRODUCTS = "x:2,7,6 w=6,8 v=8,5 "

CASES = {
    "Conv": (CONVOLUTIONS, "a = Conv (x, w, b) y = Conv (a, v)", 8),
    "groups": ("x:2,6,8,8 w=8,3,3,3 v=6,4,3,3", "a = Conv <group = 2> (x, w) y = Conv <group = 2> (a, v)", 8),
    "depthwise": (CONVOLUTIONS + "d=8,1,3,3", "a = Conv (x, w, b) e = Conv <group = 8> (a, d) y = Conv (e, v)", 16),
    "ConvTranspose": ("x:2,3,5,5 w=3,8,2,2 b=8 v=8,4,2,2",
                      "a = ConvTranspose (x, w, b) y = ConvTranspose (a, v)", 8),
    "ConvTranspose with groups": ("x:2,4,5,5 w=4,3,2,2 v=6,3,1,1",
                                  "a = ConvTranspose <group = 2> (x, w) y = Conv <group = 2> (a, v)", 0),
    "Gemm": ("x:3,6 w=8,6 b=8 v=8,5", "a = Gemm <transB = 1, alpha = 0.5, beta = 2.0> (x, w, b) y = Gemm (a, v)", 8),
    "Gemm, one bias for all": ("x:3,6 w=6,8 b=1 v=8,5", "a = Gemm (x, w, b) y = Gemm (a, v)", 8),
    "Gemm of columns": ("x:3,6 w=3,8 v=6,5", "a = Gemm <transA = 1> (x, w) y = Gemm <transA = 1> (a, v)", 0),
    "MatMul": (PRODUCTS + "b=8 c=1,1,8", "a = MatMul (x, w) s = Add (b, a) t = Sub (c, s) y = MatMul (t, v)", 8),
    "MatMul from the left": ("x:2,6,7 w=8,6 v=5,8", "a = MatMul (w, x) y = MatMul (v, a)", 8),
    "BatchNormalization": (CONVOLUTIONS + "g=8 h=8 m=8 s=+8",
                           "a = Conv (x, w, b) n = BatchNormalization (a, g, h, m, s) y = Conv (n, v)", 16),
    "LayerNormalization": ("x:2,7,8 g=8 h=8 v=8,5", "n = LayerNormalization (x, g, h) y = MatMul (n, v)", 8),
    "LayerNormalization over two": ("x:2,7,8 g=7,8 v=8,5",
                                    "n = LayerNormalization <axis = 1> (x, g) y = MatMul (n, v)", 0),
    "InstanceNormalization": ("x:2,8,5,5 g=8 h=8 v=5,8,1,1", "n = InstanceNormalization (x, g, h) y = Conv (n, v)", 8),
    "Mul and Div by channel": (CONVOLUTIONS + "g=+8,1,1 h=+1,8,1,1",
                               "a = Conv (x, w, b) m = Mul (g, a) d = Div (m, h) y = Conv (d, v)", 24),
    "Mul and Div by a number": (CONVOLUTIONS + "k=f#-3.0",
                                "a = Conv (x, w, b) m = Mul (k, a) d = Div (m, k) y = Conv (d, v)", 8),
    "Div of a number": (CONVOLUTIONS + "k=f#3.0", "a = Conv (x, w, b) d = Div (k, a) y = Conv (d, v)", 0),
    "Mul by place": (CONVOLUTIONS + "g=6,1", "a = Conv (x, w, b) m = Mul (a, g) y = Conv (m, v)", 0),
    "sums with stored numbers": (CONVOLUTIONS + "k=f#0.5 m=6,6",
                                 "a = Conv (x, w, b) s = Add (a, k) t = Sub (m, s) y = Conv (t, v)", 8),
    "a sum that makes it wider": ("x:2,6 w=6,8 c=3,2,8 v=8,5", "a = MatMul (x, w) s = Add (a, c) y = MatMul (s, v)", 0),
    "homogeneous functions": (CONVOLUTIONS + "k=f#0 s=8,1,1", "a = Conv (x, w, b) r = Relu (a) l = LeakyRelu (r) "
                              "p = PRelu (l, s) c = Clip (p, k) i = Identity (c) d = Dropout (i) y = Conv (d, v)", 8),
    "Clip to 6": (CONVOLUTIONS + "k=f#0 m=f#6", "a = Conv (x, w, b) c = Clip (a, k, m) y = Conv (c, v)", 0),
    "Clip from below zero": (CONVOLUTIONS + "k=f#-1", "a = Conv (x, w, b) c = Clip (a, k) y = Conv (c, v)", 0),
    "Sigmoid": (CONVOLUTIONS, "a = Conv (x, w, b) c = Sigmoid (a) y = Conv (c, v)", 0),
    "pools": (CONVOLUTIONS, "a = Conv (x, w, b) m = MaxPool <kernel_shape = [2, 2], pads = [1, 1, 1, 1]> (a) "
              "p = AveragePool <kernel_shape = [2, 2]> (m) g = GlobalAveragePool (p) y = Conv (g, v)", 8),
    "mean over space": ("x:2,3,8,8 w=8,3,3,3 v=8,5",
                        "a = Conv (x, w) m = ReduceMean <axes = [2, 3], keepdims = 0> (a) y = Gemm (m, v)", 8),
    "mean over channels": (CONVOLUTIONS, "a = Conv (x, w, b) m = ReduceMean <axes = [1]> (a) "
                           "s = Sub (a, m) y = Conv (s, v)", 0),
    "maximum over channels": (CONVOLUTIONS, "a = Conv (x, w, b) m = ReduceMax <axes = [1]> (a) z = Conv (a, v)", 0),
    "residual sums": (CONVOLUTIONS + "u=8,8,1,1", "a = Conv (x, w, b) c = Conv (a, u) s = Add (a, c) "
                      "t = Sub (s, a) q = Sum (t, s, a) m = Max (q, a) y = Conv (m, v)", 8),
    "a sum with the input": ("x:2,8,5,5 u=8,8,1,1 v=5,8,1,1",
                             "a = Conv (x, u) s = Add (a, x) r = Relu (a) y = Conv (s, v) z = Conv (r, v)", 0),
    "a sum with one channel": ("x:2,3,8,8 w=8,3,1,1 u=1,3,1,1 v=5,8,1,1",
                               "a = Conv (x, w) c = Conv (x, u) s = Add (a, c) y = Conv (s, v)", 0),
    "gate": (CONVOLUTIONS + "u=8,8,1,1", "a = Conv (x, w, b) g = GlobalAveragePool (a) c = Conv (g, u) "
             "e = Sigmoid (c) m = Mul (a, e) d = Div (m, e) y = Conv (d, v)", 8),
    "product of two": (CONVOLUTIONS + "u=8,3,3,3", "a = Conv (x, w, b) c = Conv (x, u) m = Mul (a, c) y = Conv (m, v)",
                       8),
    "its own gate": (CONVOLUTIONS, "a = Conv (x, w, b) e = Sigmoid (a) m = Mul (a, e) y = Conv (m, v)", 0),
    "Concat and Split": (CONVOLUTIONS + "u=5,3,3,3 t=4,13,1,1 n={4,9}", "a = Conv (x, w, b) c = Conv (x, u) "
                         "j = Concat <axis = 1> (a, c) r = Relu (j) p, q = Split <axis = 1> (r, n) "
                         "k = Concat <axis = 1> (q, p) y = Conv (k, t)", 13),
    "Concat with the input": ("x:2,3,8,8 w=8,3,1,1 v=5,11,1,1",
                              "a = Conv (x, w) j = Concat <axis = 1> (x, a) y = Conv (j, v)", 8),
    "Slice and Gather": (CONVOLUTIONS.replace("v=5,8", "v=5,6") + "s={1} e={7} d={1} n={5,0,1,2,4,3}",
                         "a = Conv (x, w, b) c = Slice (a, s, e, d) g = Gather <axis = 1> (c, n) y = Conv (g, v)", 8),
    "picked by the data": (PRODUCTS + "i:i3", "a = MatMul (x, w) g = Gather <axis = 2> (a, i) "
                           "t = ReduceMean <axes = [2]> (g) z = Add (t, t)", 0),
    "Flatten": ("x:2,3,5,5 w=8,3,3,3 v=72,5", "a = Conv (x, w) f = Flatten (a) y = Gemm (f, v)", 8),
    "Reshape and Transpose": ("x:2,3,4,4 w=8,3,1,1 v=8,5 n={2,8,16}", "a = Conv (x, w) f = Reshape (a, n) "
                              "t = Transpose <perm = [0, 2, 1]> (f) y = MatMul (t, v)", 8),
    "one channel": ("x:2,3,4,4 w=1,3,1,1 v=16,5 n={2,16}",
                    "a = Conv (x, w) f = Reshape (a, n) y = Gemm (f, v)", 0),
    "Squeeze and Unsqueeze": ("x:2,3,4,4 w=8,3,1,1 v=8,5 d={2,3}", "a = Conv (x, w) p = GlobalMaxPool (a) "
                              "q = Squeeze (p, d) u = Unsqueeze (q, d) s = Squeeze (u, d) y = Gemm (s, v)", 8),
    "Pad": (CONVOLUTIONS + "n={0,0,1,1,0,0,1,1}", "a = Conv (x, w, b) p = Pad (a, n) y = Conv (p, v)", 8),
    "Pad with ones": (CONVOLUTIONS + "n={0,0,1,1,0,0,1,1} k=f#1", "a = Conv (x, w, b) p = Pad (a, n, k) "
                      "y = Conv (p, v)", 0),
    "Expand": ("x:2,3,4,4 w=1,3,1,1 v=5,8,1,1 n={2,8,4,4}", "a = Conv (x, w) e = Expand (a, n) y = Conv (e, v)", 0),
    "shared weights": (PRODUCTS.replace("v=8,5", "v=8,8"), "a = MatMul (x, w) c = MatMul (a, v) y = MatMul (c, v)", 0),
    "a product of computed tensors": (PRODUCTS, "a = MatMul (x, w) t = Transpose <perm = [0, 2, 1]> (a) "
                                      "p = MatMul (a, t) y = Relu (p) z = MatMul (a, v)", 0),
    "read as it is": (CONVOLUTIONS, "a = Conv (x, w, b) y = Conv (a, v) z = Exp (a)", 0),
    "a stored tensor beside": (CONVOLUTIONS.replace("v=5,8", "v=5,10") + "k=2,2,6,6",
                               "a = Conv (x, w, b) j = Concat <axis = 1> (k, a) y = Conv (j, v)", 8),
    "a stored tensor as data": ("x:2,4 k=3,4 w=4,8 v=8,5 u=4,8", "i = Identity (k) a = MatMul (i, w) b = MatMul (a, v) "
                               "y = MatMul (x, u)", 8),
    "read in a body": (CONVOLUTIONS + "c:b1", "a = Conv (x, w, b) y = Conv (a, v) z = If (c) <then_branch = t () => "
                       "(float[2, 8, 6, 6] p) { p = Relu (a) }, else_branch = e () => (float[2, 8, 6, 6] q) "
                       "{ q = Neg (a) }>", 0),
}  # fmt: skip


def run(graph: Graph | onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    proto = graph if isinstance(graph, onnx.ModelProto) else to_proto(graph)
    return list(open_session(proto, SessionOptions(threads=1)).run(feeds).values())


def drawn(coupling: Coupling, seed: int = 0) -> np.ndarray:
    """Factors from a hundredth to a hundred wherever they are free."""
    factors = np.ones(coupling.free.size)
    factors[coupling.free] = 10.0 ** np.random.default_rng(seed).uniform(-2, 2, coupling.free.sum())
    return factors


def agree(left: list[np.ndarray], right: list[np.ndarray]) -> None:
    for one, other in zip(left, right, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max())


@pytest.mark.parametrize("name", CASES)
def test_any_factors_leave_what_is_computed(name: str) -> None:
    tensors, text, free = CASES[name]
    proto = model(tensors, text)
    graph = load(proto)
    coupling = Coupling.of(graph)
    assert (0 if coupling is None else coupling.free.sum()) == free
    if coupling is not None:
        feeds = random_feeds(proto, np.random.default_rng(0))
        changed = coupling.scaled(drawn(coupling))
        agree(run(changed, feeds), run(proto, feeds))
        assert to_proto(graph) == to_proto(load(proto)), "the graph that was given stays as it was"


@pytest.mark.parametrize("name", ["resnet", "mobilenet", "vit"])
def test_trained_networks_compute_the_same(name: str) -> None:
    graph = merged(raised(load(Path(__file__).parents[2] / "models" / f"{name}.onnx"), 13))
    coupling = Coupling.of(graph)
    assert coupling is not None
    assert len(coupling.groups()) >= 8
    feeds = {graph.inputs[0].name: np.random.default_rng(0).normal(size=(4, 1, 28, 28)).astype(np.float32)}
    agree(run(coupling.scaled(drawn(coupling)), feeds), run(graph, feeds))


def test_callers_may_override_weights() -> None:
    proto = model(*CASES["Conv"][:2])
    proto.graph.input.append(onnx.helper.make_tensor_value_info("v", onnx.TensorProto.FLOAT, (5, 8, 1, 1)))
    coupling = Coupling.of(load(proto))
    assert coupling is not None
    assert not coupling.free.any()


def test_float16_weights_stay() -> None:
    coupling = Coupling.of(load(model("x:2,6 w=6,8 v=8,5", "a = MatMul (x, w) y = MatMul (a, v)", dtype=np.float16)))
    assert coupling is None


def test_nothing_to_scale() -> None:
    assert Coupling.of(load(model("x:2,6", "y = Relu (x)"))) is None


NETWORK = ("x:N,8,8,8 w=24,8,3,3 b=24 u=24,1,3,3 c=24 v=16,24,1,1 d=16 k=16,10 o=10",
           "a = Conv <pads = [1, 1, 1, 1]> (x, w, b) r = Relu (a) e = Conv <group = 24, pads = [1, 1, 1, 1]> (r, u, c) "
           "s = Relu (e) f = Conv (s, v, d) t = Relu (f) q = GlobalAveragePool (t) l = Flatten (q) "
           "y = Gemm (l, k, o)")  # fmt: skip
GRIDS = Grids(UNSIGNED, WEIGHTS, compensated=False)


def network(*, badly: bool = True) -> Graph:
    """The network as it is, or with the same function and channels that differ a hundredfold."""
    graph = load(model(*NETWORK))
    coupling = Coupling.of(graph)
    assert coupling is not None
    return coupling.scaled(drawn(coupling)) if badly else graph


def samples(count: int = 64, seed: int = 0) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).normal(size=(count, 8, 8, 8)).astype(np.float32)}


def placed(graph: Graph, target: str = "ort-cpu") -> Placement:
    return place(graph, infer_shapes(graph), target_of(target))


def better(graph: Graph, target: str = "ort-cpu") -> tuple[Graph, tuple[Equalized, ...]]:
    placement = placed(graph, target)
    return equalized(graph, placement, read(graph, placement, [samples()], 1 << 28), GRIDS, Samples([samples()]))


def noise(graph: Graph) -> float:
    """Signal to noise in dB of what integers of the nearest numbers compute on other samples."""
    target, placement = target_of("ort-cpu"), placed(graph)
    ranges = choose_ranges(read(graph, placement, [samples()], 1 << 28), placement, UNSIGNED, "minmax")
    tensors = {name: scale_of(*found, UNSIGNED) for name, found in ranges.items()}
    scales = Scales(tensors, weight_scales(placement, tensors, WEIGHTS, target))
    proto = to_proto(with_integers(with_pairs(graph, placement, tensors), placement, scales, target))
    found = open_session(proto, SessionOptions(threads=1, integers=False)).run(samples(seed=1))
    wanted = run(graph, samples(seed=1))[0]
    return float(10 * np.log10(np.square(wanted).sum() / np.square(next(iter(found.values())) - wanted).sum()))


def test_badly_scaled_channels_become_good_ones() -> None:
    graph = network()
    changed, found = better(graph)
    agree(run(changed, samples(seed=1)), run(graph, samples(seed=1)))
    assert noise(changed) > noise(graph) + 10
    assert noise(changed) > noise(network(badly=False)) - 3
    assert [one.readers for one in found] != []
    assert all(one.after < one.before / 2 and one.spread > 10 for one in found)
    assert {one.channels for one in found} <= {16, 24}


def test_only_numbers_change() -> None:
    graph = network()
    changed, _ = better(graph)
    assert [(node.op, node.attrs) for node in changed.nodes] == [(node.op, node.attrs) for node in graph.nodes]
    outputs = [[tensor.name for node in one.nodes for tensor in node.outputs] for one in (graph, changed)]
    assert outputs[0] == outputs[1]
    assert placed(changed).whole == placed(graph).whole
    shapes = [[one.stored.shape for one in linear(each)] for each in (graph, changed)]
    assert shapes[0] == shapes[1]


def test_what_would_not_clearly_gain_stays() -> None:
    graph = network(badly=False)
    once, _ = better(network())
    twice, found = better(once)
    assert found == ()
    assert twice is once
    readings = read(graph, placed(graph), [samples()], 1 << 28)
    readings.rows.clear()  # as where they do not fit into memory
    assert equalized(graph, placed(graph), readings, GRIDS) == (graph, ())


def test_what_nothing_is_known_about_stays() -> None:
    """The last sum of channels is read by a pool: its own channels are spread otherwise than their means."""
    graph = network()
    placement = placed(graph)
    readings = read(graph, placement, [samples()], 1 << 28)
    readers = [{one.readers for one in equalized(graph, placement, readings, GRIDS, more)[1]}
               for more in (Samples([samples()]), None)]  # fmt: skip
    assert readers[0] - readers[1] == {("Gemm_8",)}
    assert readers[1]


def test_factors_suit_what_pools_read_too() -> None:
    """Means of channels differ, the channels do not: factors that suit the product behind would spoil the pool."""
    graph = load(model("x:N,16,8,8 w=16,16,1,1 k=16,4", "a = Conv (x, w) q = GlobalAveragePool (a) f = Flatten (q) "
                       "y = Gemm (f, k)"))  # fmt: skip
    first = linear(graph)[0]
    first.write(np.eye(16)[None])
    signs = np.where(np.indices((8, 8)).sum(axis=0) % 2, 1.0, -1.0)
    means = np.geomspace(0.001, 5, 16) * np.random.default_rng(0).uniform(0.1, 1, (64, 16))
    data = {"x": np.float32(signs + means[:, :, None, None])}
    placement = placed(graph)
    readings = read(graph, placement, [data], 1 << 28)
    assert {"a", "f"} <= set(placement.tensors)
    for members in equalized(graph, placement, readings, GRIDS, Samples([data]))[1]:
        assert members.spread < 10


def test_silent_channels_and_zeros_stay() -> None:
    graph = network()
    first, second = linear(graph)[0], linear(graph)[1]
    matrix = first.matrix()
    matrix[0, :, 3] = 0
    matrix[0, ::5] = 0
    first.write(matrix)
    first.node.inputs[2] = gs.Constant("bias", np.minimum(read_values(first.node.inputs[2]), 0))
    before = [one.matrix() for one in (first, second)]
    changed, found = better(graph)
    assert found != ()
    after = [one.matrix() for one in linear(changed)[:2]]
    np.testing.assert_array_equal(after[0] == 0, before[0] == 0)
    assert (after[0] != before[0]).any()
    factors = (after[1] / before[1])[:, 0, 0] if after[1].shape[1] == 1 else (after[1] / before[1])[:, 4, 0]
    assert np.isfinite(run(changed, samples())[0]).all()
    np.testing.assert_allclose(before[0][0, 1, 4] / after[0][0, 1, 4], (after[1] / before[1])[4, 0, 0], rtol=1e-5)
    assert factors.max() <= factors[3] * (1 + 1e-6), "a silent channel has the largest factor, which is 1 at first"


def linear(graph: Graph) -> list:
    return list(linear_nodes(graph, infer_shapes(graph), Holders(graph)))


def test_factors_have_a_limit() -> None:
    graph = network()
    first, second = linear(graph)[0], linear(graph)[1]
    tiny = np.ones(24)
    tiny[5] = 1e-30
    first.write(first.matrix() * tiny)
    first.node.inputs[2] = gs.Constant("bias", (read_values(first.node.inputs[2]) * tiny).astype(np.float32))
    before = second.matrix()
    changed, found = better(graph)
    assert all(one.spread <= 1 / LEAST * (1 + 1e-9) for one in found)
    assert (linear(changed)[1].matrix() != before).any()
    agree(run(changed, samples()), run(graph, samples()))


@pytest.mark.parametrize("target", ["ort-cpu", "tensorrt", "generic"])
def test_every_target(target: str) -> None:
    graph = network()
    changed, found = better(graph, target)
    assert found != ()
    agree(run(changed, samples()), run(graph, samples()))
