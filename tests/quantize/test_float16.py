"""Float16: what becomes half, what does not and why, and that what comes out is what float32 gives, nearly."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxprune.errors import SelectorError
from onnxprune.model.io import load, model_bytes, to_proto
from onnxprune.quantize.float16 import Left, to_float16
from onnxprune.runtime.session import SessionOptions, open_session

MODELS = Path(__file__).parents[2] / "models"
ONE_THREAD = SessionOptions(threads=1)
FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def parsed(text: str, opset: int = 17) -> onnx.ModelProto:
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": {opset}]> {text}')
    onnx.checker.check_model(model, full_check=True)
    return model


def converted(
    model: onnx.ModelProto,
    keep: tuple[str, ...] = (),
    inputs_too: bool = False,
    peaks: dict[str, float] | None = None,
) -> tuple[onnx.ModelProto, list[Left]]:
    graph = load(model)
    before = to_proto(graph).SerializeToString(deterministic=True)
    half, left = to_float16(graph, keep=keep, inputs_too=inputs_too, peaks=peaks)
    assert to_proto(graph).SerializeToString(deterministic=True) == before  # the argument is not changed
    result = to_proto(half)
    onnx.checker.check_model(result, full_check=True)
    if not inputs_too:
        assert list(result.graph.input) == list(model.graph.input)
        assert list(result.graph.output) == list(model.graph.output)
    return result, left


def types(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of every tensor, as ONNX infers it."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    bare.graph.ClearField("value_info")
    graph = onnx.shape_inference.infer_shapes(bare, strict_mode=True).graph
    found = {item.name: item.type.tensor_type.elem_type for item in (*graph.value_info, *graph.input, *graph.output)}
    return found | {item.name: item.data_type for item in graph.initializer}


def casts(model: onnx.ModelProto) -> int:
    return sum(node.op_type == "Cast" for node in model.graph.node)


def run(model: onnx.ModelProto, *values: np.ndarray) -> list[np.ndarray]:
    feeds = {item.name: value for item, value in zip(model.graph.input, values, strict=True)}
    return list(open_session(model, ONE_THREAD).run(feeds).values())


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_weights_and_arithmetic_are_half_and_the_ends_are_not() -> None:
    model = parsed("""g (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {1.5, -2.0, 0.1, 3.0}, float[2] b = {1, 2}>
        { a = MatMul(x, w) c = Add(a, b) y = Relu(c) }""")
    result, left = converted(model)
    kinds = types(result)
    assert left == []
    assert {kinds[name] for name in ("w", "b", "a", "c")} == {HALF}
    assert casts(result) == 2
    np.testing.assert_allclose(run(result, normal(5, 2))[0], run(model, normal(5, 2))[0], rtol=2e-3, atol=2e-3)


def test_what_makes_no_floats_reads_what_is_there() -> None:
    model = parsed("""g (float[N] x, float[N] w) => (bool[N] y, int64[1] n, bool[N] z) <float half = {0.5}>
        { y = Less(x, half) n = Shape(x) a = Relu(w) z = Greater(a, half) }""")
    result, left = converted(model)
    assert left == []
    assert casts(result) == 1


def test_types_are_known_where_shapes_are_not() -> None:
    """With a size of its own for every free dimension, this MatMul has no shape."""
    assert (
        converted(parsed("g (float[N, M] x) => (float[N, M] y) { a = MatMul(x, x) b = Relu(a) y = Neg(b) }"))[1] == []
    )


def test_declared_types_follow() -> None:
    model = parsed("""g (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {1, 2, 3, 4}>
        { a = MatMul(x, w) y = Relu(a) }""")
    model.graph.value_info.append(helper.make_tensor_value_info("a", FLOAT, ["N", 2]))
    result, _ = converted(model)
    assert [item.type.tensor_type.elem_type for item in result.graph.value_info if item.name == "a"] == [HALF]


def test_a_tensor_is_cast_once() -> None:
    result, _ = converted(parsed("g (float[4] x) => (float[4] y) { a = Relu(x) b = Neg(x) c = Add(a, b) y = Abs(c) }"))
    assert casts(result) == 2


def test_an_output_that_is_read_inside_stays_float_outside() -> None:
    model = parsed("g (float[4] x) => (float[4] y, float[4] z) { y = Relu(x) e = Exp(y) z = Neg(y) }")
    model.graph.output.append(helper.make_tensor_value_info("e", FLOAT, [4]))
    result, left = converted(model)
    assert [item.op for item in left] == ["Exp"]
    assert casts(result) == 3  # x, and the outputs y and z; Exp reads y as it is given out
    for got, expected in zip(run(result, normal(4)), run(model, normal(4)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=2e-3)


def test_neighbours_in_float32_exchange_float32() -> None:
    model = parsed("""g (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {1, 2, 3, 4}, float one = {1}>
        { a = MatMul(x, w) b = Exp(a) c = Add(b, one) d = Log(c) y = MatMul(d, w) }""")
    result, left = converted(model)
    assert [item.op for item in left] == ["Exp", "Add", "Log"]
    assert casts(result) == 4


def test_what_onnx_does_not_define_in_half_is_read_from_the_schemas() -> None:
    model = parsed("""g (float[1, 1, 4, 4] x, float s, float e) => (float[a, b, c, d] y, float[n] r)
        <float one = {1}, float[2] ones = {1, 1}, int64[1] k = {1}, float[0] roi = {}>
        { t = Reshape(s, k) f = Mul(t, t) g = Concat<axis=0>(ones, t, f)
          u = Relu(x) y = Resize<mode="linear">(u, roi, g) r = Range(s, e, one) }""")
    result, left = converted(model)
    reasons = {item.op: item.reason for item in left}
    assert "does not define Range in float16 at opset 17" in reasons["Range"]
    assert "Resize" in reasons["Concat"]  # the scales, which ONNX has in float32 alone, are computed in float32
    assert "Resize" not in reasons
    assert types(result)["u"] == HALF
    feeds = (normal(1, 1, 4, 4), np.array(1.5, np.float32), np.array(4, np.float32))
    np.testing.assert_allclose(run(result, *feeds)[0], run(model, *feeds)[0], rtol=2e-3, atol=2e-3)
    np.testing.assert_array_equal(run(result, *feeds)[1], run(model, *feeds)[1])


def test_squares_and_sums_do_not_overflow() -> None:
    model = parsed("""g (float[N, 8] x) => (float[N, 8] y) <float two = {2}, float eps = {1e-5}, int64[1] last = {-1}>
        { s = Relu(x) p = Pow(s, two) m = ReduceMean<axes=[-1]>(p) v = Add(m, eps) r = Sqrt(v) d = Div(s, r)
          q = Mul(s, s) t = ReduceSum(q, last) u = Mul(d, t) k = Sqrt(t) h = Div(u, k) f = Div(h, k) y = Neg(f) }""")
    x = np.abs(normal(3, 8)) * 300 + 500
    result, left = converted(model)
    assert {item.op for item in left} == {"Pow", "ReduceMean", "Add", "Sqrt", "Div", "Mul", "ReduceSum", "Neg"}
    assert [item.op for item in left].count("Mul") == 2
    np.testing.assert_allclose(run(result, x)[0], run(model, x)[0], rtol=3e-3)


@pytest.mark.parametrize(
    ("value", "words"),
    [(70000.0, "ends at 65504"), (-70000.0, "ends at 65504"), (1e-12, "smallest float16"), (2e-5, "smallest float16")],
)
def test_a_factor_that_does_not_fit_keeps_its_reader(value: float, words: str) -> None:
    model = parsed(f"""g (float[4, 2] x) => (float[4, 1] y) <float[2, 1] c = {{{value}, 0}}>
        {{ a = Relu(x) b = MatMul(a, c) y = Neg(b) }}""")
    result, left = converted(model)
    assert left[0].op == "MatMul"
    assert words in left[0].reason
    assert types(result)["c"] == FLOAT
    np.testing.assert_allclose(run(result, normal(4, 2))[0], run(model, normal(4, 2))[0], rtol=2e-3)


def test_a_few_tiny_weights_among_others_are_no_reason() -> None:
    model = parsed("g (float[4, 2] x) => (float[4, 1] y) <float[2, 1] c = {0.5, 1e-12}> { y = MatMul(x, c) }")
    assert converted(model)[1] == []


MASKS = {
    "initializer": "b = Cast<to=9>(m) a = Where(b, x, low)",
    "node": "low = Constant<value_float=0.0>() b = Cast<to=9>(m) a = Where(b, x, low)",
    "integers": "one = Constant<value_float=1.0>() c = Cast<to=1>(m) k = Sub(one, c) f = Mul(k, low) a = Add(x, f)",
}


@pytest.mark.parametrize("lowest", [np.finfo(np.float32).min, -1e9, -70000.0, -np.inf])
@pytest.mark.parametrize("where", MASKS)
def test_a_masked_row_is_as_finite_as_it_was(lowest: float, where: str) -> None:
    """A row in which all is masked: the lowest float32 must not become minus infinity on its way."""
    stored = "" if where == "node" else "<float low = {0}>"
    model = parsed(f"g (float[2, 3] x, int64[2, 3] m) => (float[2, 3] y) {stored} {{ {MASKS[where]} y = Softmax(a) }}")
    value = numpy_helper.from_array(np.array(lowest, np.float32), "low")
    if where == "node":
        model.graph.node[0].attribute[0].CopyFrom(helper.make_attribute("value", value))
    else:
        model.graph.initializer[0].CopyFrom(value)
    result, _ = converted(model)
    feeds = {"x": normal(2, 3), "m": np.array([[1, 1, 1] if where == "integers" else [1, 0, 1], [0, 0, 0]])}
    # ONNX Runtime takes a Cast to float16 and back out, and with it what this is about.
    with np.errstate(invalid="ignore"):
        expected, got = (ReferenceEvaluator(item).run(None, feeds)[0] for item in (model, result))
    if where != "integers" or np.isfinite(lowest):  # minus infinity times no mask is not a number from the start
        np.testing.assert_allclose(got[0], expected[0], atol=2e-3)
    assert np.isfinite(got[1]).all() == np.isfinite(lowest)


def test_a_norm_that_is_held_above_zero_divides_in_float32() -> None:
    """Float16 would round 1e-12 to zero, and a vector of zeros would become 0 / 0."""
    model = parsed("""g (float[2, 4] x) => (float[2, 4] y) <float tiny = {1e-12}, int64[2] shape = {2, 4}>
        { n = ReduceL2<axes=[1]>(x) c = Clip(n, tiny) e = Expand(c, shape) d = Div(x, e) y = Relu(d) }""")
    x = normal(2, 4)
    x[1] = 0
    result, left = converted(model)
    assert [item.op for item in left] == ["ReduceL2", "Clip", "Expand", "Div", "Relu"]
    np.testing.assert_allclose(run(result, x)[0], run(model, x)[0], atol=1e-3)


def test_angles_of_positions_are_computed_in_float32() -> None:
    model = parsed("""g (int64[N] p, float[N, 2] x) => (float[N, 2] y) <float[1, 2] f = {1, 0.37}, int64[1] last = {1}>
        { c = Cast<to=1>(p) u = Unsqueeze(c, last) a = MatMul(u, f) s = Cos(a) r = Relu(x) y = Mul(r, s) }""")
    result, left = converted(model)
    assert [item.op for item in left] == ["Unsqueeze", "MatMul", "Cos"]
    assert types(result)["y"] == FLOAT
    assert types(result)["r"] == HALF
    positions, x = np.arange(2000, 2006), np.abs(normal(6, 2))
    np.testing.assert_allclose(run(result, positions, x)[0], run(model, positions, x)[0], atol=2e-3)


def test_integers_that_floats_become_are_the_same() -> None:
    model = parsed("""g (float[N] x, float[4000] t) => (float[N] y) <float k = {2999.0}>
        { s = Sigmoid(x) m = Mul(s, k) i = Cast<to=7>(m) y = Gather(t, i) }""")
    result, left = converted(model)
    assert [item.op for item in left] == ["Sigmoid", "Mul", "Cast"]
    x = normal(200)
    table = np.arange(4000, dtype=np.float32) % 7
    np.testing.assert_array_equal(run(result, x, table)[0], run(model, x, table)[0])


def test_what_makes_floats_of_none_follows_its_readers() -> None:
    model = parsed("""g (float[2, 2] x, bool[2, 2] m, int64[1] n) => (float[2, 2] y, float[k] z)
        { c = Constant<value = float[2] {1.5, 2}>() d = Constant<value_floats = [0.5, 1.0]>()
          e = Cast<to=1>(m) f = Cast<to=1>(m) o = ConstantOfShape<value = float[1] {3}>(n)
          l = RandomNormalLike<scale=1e-4>(x)
          s = Add(x, c) t = Mul(s, d) u = Add(t, e) v = Add(u, f) q = Add(v, l) y = Relu(q)
          p = Neg(o) z = Exp(p) }""")
    result, left = converted(model)
    kinds = types(result)
    assert {kinds[name] for name in "cdeflstuvq"} == {HALF}
    assert {item.op for item in left} == {"Exp"}
    assert kinds["o"] == HALF
    feeds = (normal(2, 2), np.eye(2, dtype=bool), np.array([3]))
    for got, expected in zip(run(result, *feeds), run(model, *feeds), strict=True):
        np.testing.assert_allclose(got, expected, rtol=5e-3, atol=5e-3)


def test_casts_of_the_model_collapse() -> None:
    model = parsed("""g (float16[4] h, float[4] x) => (float[4] y, float16[4] z, float[4] w)
        { a = Cast<to=1>(h) b = Relu(a) c = Cast<to=1>(b) d = Add(c, x) y = Neg(d) e = Cast<to=10>(d) z = Neg(e)
          q = Exp(a) w = Add(q, x) }""")
    result, _ = converted(model)
    # Left are: h for Exp, x, q for Add, and the outputs y and w.
    assert casts(result) == 5
    half = normal(4).astype(np.float16)
    for got, expected in zip(run(result, half, normal(4)), run(model, half, normal(4)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=5e-3, atol=5e-3)


BODY = """g (float[2] x, bool c) => (float[2] z, float[2] q) <float[2] k = {1, 2}>
    { r = Mul(x, k) z = If(c) <
        then_branch = t () => (float[2] a) { a = Add(r, k) },
        else_branch = e () => (float[2] b) { s = Mul(r, %s) b = Identity(s) }
    > q = Relu(r) }"""


@pytest.mark.parametrize("other", ["r", "k"])
def test_bodies_stay_in_float32_at_their_border(other: str) -> None:
    model = parsed(BODY % other)
    result, left = converted(model)
    assert [(item.op, item.reason) for item in left] == [("If", "its body stays in float32")]
    for branch in (True, False):
        feeds = (normal(2), np.array(branch))
        for got, expected in zip(run(result, *feeds), run(model, *feeds), strict=True):
            np.testing.assert_allclose(got, expected, rtol=2e-3)


def test_an_initializer_that_callers_may_override_keeps_its_type() -> None:
    model = parsed("g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { a = Mul(x, w) y = Relu(a) }")
    model.graph.input.append(helper.make_tensor_value_info("w", FLOAT, [2]))
    result, _ = converted(model)
    assert types(result)["w"] == FLOAT
    assert types(result)["a"] == HALF


def quantized(scale: float, opset: int, integer: str = "int8") -> onnx.ModelProto:
    return parsed(
        f"""g (float[2, 2] x) => (float[2, 2] y)
        <float s = {{0.02}}, int8 z = {{0}}, float[2] t = {{{scale}, 0.01}}, {integer}[2] v = {{0, 0}},
         {integer}[2, 2] w = {{7, -3, 5, 9}}>
        {{ q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) e = DequantizeLinear<axis=1>(w, t, v)
           m = MatMul(d, e) y = Relu(m) }}""",
        opset,
    )


def test_scales_are_half_from_opset_19_on() -> None:
    result, left = converted(quantized(0.004, 19))
    assert left == []
    kinds = types(result)
    assert {kinds[name] for name in "stdem"} == {HALF}
    model = quantized(0.004, 19)
    np.testing.assert_allclose(run(result, normal(2, 2))[0], run(model, normal(2, 2))[0], atol=5e-3)


def test_quantized_operators_stay_in_float32_below_opset_19() -> None:
    result, left = converted(quantized(0.004, 17))
    reasons = {item.op: item.reason for item in left}
    assert "does not define QuantizeLinear in float16 at opset 17" in reasons["QuantizeLinear"]
    assert "does not define DequantizeLinear" in reasons["DequantizeLinear"]
    assert "MatMul" in reasons  # between kernels of integers a Cast would only keep them apart
    assert types(result)["s"] == types(result)["t"] == FLOAT


@pytest.mark.parametrize("scale", [3e-5, 1e6])
def test_a_scale_outside_of_the_normal_numbers_keeps_its_node(scale: float) -> None:
    result, left = converted(quantized(scale, 19))
    assert [(item.op, item.node) for item in left] == [("DequantizeLinear", "e")]
    assert f"its scale {scale:.3g}" in left[0].reason
    assert types(result)["t"] == FLOAT


def test_the_scale_of_zeros_is_any_normal_number() -> None:
    model = quantized(1e-30, 19)
    weights = next(item for item in model.graph.initializer if item.name == "w")
    weights.CopyFrom(numpy_helper.from_array(np.array([[0, 3], [0, 9]], np.int8), "w"))
    result, left = converted(model)
    scales = numpy_helper.to_array(next(item for item in result.graph.initializer if item.name == "t"))
    assert left == []
    assert scales.dtype == np.float16
    assert scales.min() == np.float16(2.0**-14)


def test_integers_of_16_bits_stay_beside_float32() -> None:
    _, left = converted(quantized(0.004, 21, "int16"))
    assert [item.reason for item in left] == ["its integers have 16 bits, and float16 holds 11"]


@pytest.mark.parametrize("kind", ["float16", "double", "bfloat16"])
def test_models_of_other_types_pass_unchanged(kind: str) -> None:
    model = parsed(f"""g ({kind}[2, 2] x) => ({kind}[2, 2] y)
        {{ a = MatMul(x, x) b = Cast<to={getattr(TensorProto, kind.upper())}>(a) y = Exp(b) }}""")
    result, left = converted(model)
    assert left == []
    assert result == model


def test_inputs_and_outputs_too_where_asked() -> None:
    model = parsed("g (float[N] x) => (float[N] y, float[N] z) { a = Relu(x) y = Neg(a) z = Exp(x) }")
    result, _ = converted(model, inputs_too=True)
    ends = [item.type.tensor_type.elem_type for item in (*result.graph.input, *result.graph.output)]
    assert ends == [HALF, HALF, HALF]
    assert casts(result) == 2  # around Exp
    x = normal(4)
    for got, expected in zip(run(result, x.astype(np.float16)), run(model, x), strict=True):
        np.testing.assert_allclose(got, expected, rtol=3e-3)


def test_nodes_stay_where_they_are_named_or_overflow_on_samples() -> None:
    model = parsed("g (float[N] x) => (float[N] y) { a = Abs(x) b = Neg(a) c = Relu(b) y = Sign(c) }")
    for node in model.graph.node:
        node.name = f"node_{node.output[0]}"
    _, left = converted(model, keep=("node_b",))
    assert left[0].node == "node_b"
    _, left = converted(model, peaks={"a": 50000.0})
    assert {item.node for item in left} >= {"node_a", "node_b"}
    assert "5e+04 on the samples" in left[0].reason
    with pytest.raises(SelectorError, match="no node is named 'node_q'"):
        to_float16(load(model), keep=("node_q",))


@pytest.mark.parametrize("opset", [13, 17, 21])
@pytest.mark.parametrize("before", ["Relu(x)", "Exp(x)"])
def test_onnx_runtime_joins_normalizations_of_one_type(before: str, opset: int) -> None:
    """Spelled out, behind what is float16 and behind what is float32."""
    axes = ", last" if opset > 17 else ""
    mean = "ReduceMean" if opset > 17 else "ReduceMean<axes = [-1]>"
    model = parsed(f"""g (float[N,4] x) => (float[N,4] y)
        <float two = {{2}}, float eps = {{1e-5}}, float[4] w = {{1, 2, 3, 4}}, float[4] b = {{0, 1, 0, 1}},
         int64[1] last = {{-1}}>
        {{ a = {before} m = {mean}(a{axes}) d = Sub(a, m) p = Pow(d, two) v = {mean}(p{axes}) e = Add(v, eps)
          r = Sqrt(e) n = Div(d, r) s = Mul(n, w) t = Add(s, b) y = Neg(t) }}""", opset)  # fmt: skip
    result, left = converted(model)
    assert {item.op for item in left} >= {"Pow", "ReduceMean", "Add", "Sqrt", "Div"}
    x = normal(3, 4)
    np.testing.assert_allclose(run(result, x)[0], run(model, x)[0], atol=0.02)


@pytest.mark.parametrize("perm", ["[1, 0, 2]", "[1, 2, 0]"])
def test_onnx_runtime_loads_products_of_what_is_moved(perm: str, tmp_path: Path) -> None:
    """In a process of its own, since it ended the process where the Transpose was in float16."""
    weights = ", ".join(map(str, normal(16)))
    model = parsed(f"""g (float[4,4,4] x) => (float[4,4,4] y) <float[4,4] w = {{{weights}}}>
        {{ [move] t = Transpose<perm = {perm}>(x) y = MatMul(t, w) }}""")
    result, left = converted(model)
    assert [item.node for item in left] == ["move"]
    path = tmp_path / "half.onnx"
    onnx.save(result, path)
    code = f"import onnxruntime; onnxruntime.InferenceSession({str(path)!r}, providers=['CPUExecutionProvider'])"
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
    x = normal(4, 4, 4)
    np.testing.assert_allclose(run(result, x)[0], run(model, x)[0], atol=0.02)


@pytest.mark.parametrize("name", ["resnet", "mobilenet", "vit"])
def test_trained_models_answer_alike_from_half_the_bytes(name: str) -> None:
    model = onnx.load(MODELS / f"{name}.onnx")
    result, left = converted(model)
    assert left == []
    assert model_bytes(result) < 0.52 * model_bytes(model)
    images = np.load(MODELS / "calibration.npz")
    feed = images[next(key for key in images.files if images[key].ndim == 4)][:256]
    expected, got = (run(item, feed.astype(np.float32))[0] for item in (model, result))
    assert np.abs(got - expected).max() <= 1e-2 * np.abs(expected).max()
    assert (got.argmax(1) == expected.argmax(1)).mean() >= 0.995
    assert Counter(node.op_type for node in result.graph.node)["Cast"] == 2
