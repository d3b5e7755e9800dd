"""How far tensors reach on samples, and what float16 does with it."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser
from onnx.reference import ReferenceEvaluator

from onnxprune.model.io import load, to_proto
from onnxprune.model.sizes import infer_shapes
from onnxprune.quantize.float16 import to_float16
from onnxprune.quantize.peaks import peaks_of
from onnxprune.runtime.session import SessionOptions

ONE = SessionOptions(threads=1)
TEXT = """g (float[N,8] x) => (float[N,8] y) {
    [first] a = MatMul(x, w) [up] b = Mul(a, k) [down] c = Div(b, k) [second] y = MatMul(c, w) }"""


def parsed(text: str, opset: int = 17, **weights: object) -> onnx.ModelProto:
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]>\n{text}')
    for name, values in weights.items():
        held = np.asarray(values, None if isinstance(values, np.ndarray) else np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(held, name))
    return proto


def peaks(proto: onnx.ModelProto, *feeds: dict[str, np.ndarray]) -> dict[str, float]:
    graph = load(proto)
    before = to_proto(graph)
    found = peaks_of(graph, infer_shapes(graph), feeds, ONE)
    assert to_proto(graph) == before, "the graph that was given stays"
    return found


@pytest.mark.parametrize("opset", [7, 12, 17, 20])
def test_largest_magnitudes_of_all_runs(opset: int) -> None:
    proto = parsed("g (float[N,3] x) => (float[N,3] y) { a = Neg(x) b = Mul(a, k) y = Relu(b) }", opset, k=2.0)
    feeds = [{"x": np.array(rows, np.float32)} for rows in ([[1, -5, 2]], [[3, 4, 0], [7, 0, 0]])]
    assert peaks(proto, *feeds) == {"x": 7.0, "a": 7.0, "b": 14.0, "y": 10.0}


def test_what_is_not_finite_does_not_count() -> None:
    proto = parsed("g (float[N,3] x) => (float[N,3] y) { a = Log(x) y = Relu(a) }")
    rows = np.array([[0, 1, np.nan], [np.e, np.inf, 1]], np.float32)
    found = peaks(proto, {"x": rows}, {"x": np.zeros((0, 3), np.float32)})
    assert found["x"] == np.float32(np.e)
    assert set(found) == {"x", "a", "y"}
    assert all(np.isfinite(value) for value in found.values())


def test_masks_say_nothing_about_the_data() -> None:
    """Whether they are chosen, added, or multiplied up, in stored tensors or in nodes; real numbers count."""
    text = """g (float[N,4] x, float[N,4] m) => (float[N,4] y) {
        one = Constant<value = float {1.0}>() low = Constant<value = float {-3.4e38}>()
        a = Sub(one, m) b = Mul(a, low) c = Add(x, b) d = Equal(m, one) e = Where(d, x, far) f = Add(c, e) y = Mul(f, k)
    }"""
    feed = {"x": np.full((2, 4), 3.0, np.float32), "m": np.eye(2, 4, dtype=np.float32)}
    found = peaks(parsed(text, far=-1e9, k=np.array([1, 2, 3, 4], np.float32)), feed)
    assert max(found.values()) < 4 * 2 * 16384
    assert max(found[name] for name in "abcdef" if name in found) < 32768
    found = peaks(parsed(text, far=-1e9, k=np.array([1, 2, 3e5, 4e5], np.float32)), feed)
    assert found["y"] > 1e6


def test_integers_and_bodies_are_left_out() -> None:
    text = """g (int64[N,4] i, bool c, float[4,4] x) => (float[4,4] y) {
        t = Gather(x, i) u = ReduceMean(t) s = Shape(x)
        y = If (c) < then_branch = yes () => (float[4,4] p) { p = Add(x, u) },
                     else_branch = no () => (float[4,4] q) { q = Neg(x) } >
    }"""
    feed = {"i": np.zeros((2, 4), np.int64), "c": np.array(True), "x": np.full((4, 4), 5.0, np.float32)}
    assert peaks(parsed(text), feed) == {"x": 5.0, "t": 5.0, "u": 5.0, "y": 10.0}


def test_names_that_are_taken() -> None:
    proto = parsed("g (float[N] x) => (float[N] y) { a_ReduceMax = Neg(x) a = Neg(a_ReduceMax) y = Neg(a) }")
    assert peaks(proto, {"x": np.array([9], np.float32)}) == dict.fromkeys(("x", "a_ReduceMax", "a", "y"), 9.0)


def test_what_overflows_on_samples_stays_finite() -> None:
    random = np.random.default_rng(0)
    proto = parsed(TEXT, w=random.normal(size=(8, 8)).astype(np.float32), k=3e4)
    feed = {"x": random.normal(size=(16, 8)).astype(np.float32)}
    graph = load(proto)
    wanted = ReferenceEvaluator(proto).run(None, feed)[0]
    blind, _ = to_float16(graph)
    result, left = to_float16(graph, peaks=peaks_of(graph, infer_shapes(graph), [feed], ONE))
    with np.errstate(all="ignore"):
        found = [ReferenceEvaluator(to_proto(one)).run(None, feed)[0] for one in (blind, result)]
    assert not np.isfinite(found[0]).all()
    np.testing.assert_allclose(found[1], wanted, atol=0.02 * np.abs(wanted).max())
    assert [one.node for one in left] == ["up", "down"]
    assert {one.reason.split(" reach ")[0] for one in left} == {"its values"}
