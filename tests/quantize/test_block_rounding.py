"""Weights in blocks, rounded on samples: what held-out samples gain, and what stays as it was."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx_text import model

from onnxprune.model.graph import stored_tensors
from onnxprune.model.io import load, read_values, to_proto
from onnxprune.model.sizes import infer_shapes
from onnxprune.model.weights import weights_of
from onnxprune.quantize.block_rounding import BlockRounding, OnSamples
from onnxprune.quantize.blocks import BlockGrid, searched
from onnxprune.quantize.compensation import Compensation
from onnxprune.quantize.weight_only import WeightOnly, weight_only
from onnxprune.recover.clipping import Fit
from onnxprune.recover.least_squares import solve
from onnxprune.recover.moments import Moments
from onnxprune.recover.sequential import Calibration
from onnxprune.runtime.session import SessionOptions, open_session

PLAIN = SessionOptions(threads=1, optimize=False)
GRID = BlockGrid(4, 16, True, np.dtype(np.float32))

NETWORK = "a = MatMul(x, w) b = Add(a, c) r = Relu(b) [second] y = MatMul(r, v)"
FORMS = [
    ("x:N,64 w=64,96 c=96 v=96,32", NETWORK),
    ("x:N,64 w=96,64 c=96 v=96,32", "[first] a = Gemm<transB=1, alpha=0.5>(x, w, c) r = Tanh(a) y = MatMul(r, v)"),
    ("x:N,64 w=64,96 v=32,96", "a = MatMul(x, w) r = Relu(a) t = Transpose<perm=[1,0]>(v) y = MatMul(r, t)"),
    ("x:N,3,64 w=64,96 v=96,32", "a = MatMul(x, w) r = Softmax(a) y = MatMul(r, v)"),
]


def correlated(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Rows of a few factors, some noise, and inputs of very different size; some are never other than zero."""
    random, width = np.random.default_rng(seed), shape[-1]
    basis = np.random.default_rng(99)
    factors = random.normal(size=(*shape[:-1], width // 4)) @ basis.normal(size=(width // 4, width))
    rows = (factors + 0.3 * random.normal(size=shape)) * np.exp(0.5 * basis.normal(size=width)) / 8
    rows[..., 5:9] = 0
    return rows.astype(np.float32)


def network(tensors: str, text: str) -> onnx.ModelProto:
    proto = model(tensors.replace("N", "4"), text)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    del proto.graph.value_info[:]
    return proto


def samples(shape: tuple[int, ...], fitted: int = 10, seed: int = 0) -> OnSamples:
    feeds = [{"x": correlated(shape, seed + number)} for number in range(fitted + 3)]
    return OnSamples(Calibration(feeds[:fitted], feeds[fitted:]), options=PLAIN)


def quantized(proto: onnx.ModelProto, given: OnSamples | None, bits: int = 4) -> tuple[onnx.ModelProto, WeightOnly]:
    graph = load(proto)
    before = to_proto(graph)
    result, report = weight_only(graph, bits, 16, infer_shapes(graph), samples=given)
    assert to_proto(graph) == before, "the graph that was given stays"
    after = to_proto(result)
    onnx.checker.check_model(after, full_check=True)
    return after, report


def noise(found: onnx.ModelProto, wanted: onnx.ModelProto, feed: dict[str, np.ndarray]) -> float:
    one, two = (next(iter(open_session(proto, PLAIN).run(feed).values())) for proto in (found, wanted))
    return float(np.square(one - two).sum() / np.square(two).sum())


def shape_of(tensors: str) -> tuple[int, ...]:
    sizes = tensors.split()[0].removeprefix("x:N,").split(",")
    return (64, *map(int, sizes))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("tensors", "text"), FORMS, ids=["bias", "gemm", "transposed", "batches"])
def test_samples_halve_the_error(tensors: str, text: str, bits: int) -> None:
    proto, shape = network(tensors, text), shape_of(tensors)
    plain, without = quantized(proto, None, bits)
    fitted, report = quantized(proto, samples(shape), bits)
    feed = {"x": correlated(shape, 1000)}
    assert noise(fitted, proto, feed) < (0.5 if bits == 4 else 0.7) * noise(plain, proto, feed)
    assert without.fitted == ()
    assert set(report.fitted) == set(report.quantized) == set(without.quantized)
    assert [one.bytes_after for one in report.stored] == [one.bytes_after for one in without.stored]
    kinds = {node.op_type for node in fitted.graph.node}
    assert kinds <= {node.op_type for node in plain.graph.node} | {"Add"}


def test_few_rows_change_no_integer() -> None:
    """What fits fewer rows than there are inputs says nothing of others; a bias still takes the mean back."""
    proto = network(*FORMS[0])
    given = samples((2, 64), fitted=4)
    plain, fitted = (quantized(proto, one)[0] for one in (None, given))
    one, two = (dict(stored_tensors(load(found))) for found in (plain, fitted))
    for name in ("w_quantized", "v_quantized"):
        np.testing.assert_array_equal(*(np.asarray(read_values(found[name]), np.int8) for found in (one, two)))


def test_zeros_stay_zero() -> None:
    proto = network(*FORMS[0])
    held = next(tensor for tensor in proto.graph.initializer if tensor.name == "w")
    weights = numpy_helper.to_array(held) * (np.random.default_rng(0).random((64, 96)) < 0.5)
    held.CopyFrom(numpy_helper.from_array(weights.astype(np.float32), "w"))
    result, report = quantized(proto, samples((64, 64)))
    assert len(report.fitted) == 2
    found = read_values(dict(stored_tensors(load(result)))["w_quantized"])
    assert (np.asarray(found, np.int8)[weights == 0] == 0).all()


def test_shared_weights_are_rounded_by_themselves() -> None:
    proto = network("x:N,64 w=64,64 v=64,32", "a = MatMul(x, w) b = Tanh(a) d = MatMul(b, w) y = MatMul(d, v)")
    plain, _ = quantized(proto, None)
    fitted, report = quantized(proto, samples((64, 64)))
    one, two = (dict(stored_tensors(load(found)))["w_quantized"] for found in (plain, fitted))
    np.testing.assert_array_equal(*(np.asarray(read_values(found), np.int8) for found in (one, two)))
    assert len(report.quantized) == 3
    assert len(report.fitted) == 1


def sums_of(rows: np.ndarray, matrix: np.ndarray) -> Moments:
    sums = Moments.empty(*matrix.shape)
    sums.add(rows, rows @ matrix)
    return sums


def test_what_held_out_rows_do_not_gain_from_is_undone() -> None:
    """Rows to fit in which every second input is silent, and held-out rows in which the others are."""
    graph = load(model("x:5,64 w=64,8", "y = MatMul(x, w)"))
    (weight,) = weights_of(graph, infer_shapes(graph))
    matrix = weight.matrix()
    rows = np.random.default_rng(1).normal(size=(2, 1, 300, 64))
    rows[0, ..., ::2] = 0
    rows[1, ..., 1::2] = 0
    start = searched(matrix.astype(np.float32), GRID)
    numbers, bias = start.numbers().astype(np.float64), np.zeros((1, 8))
    found = {}
    for name, held_out in (("same", rows[0]), ("other", rows[1])):
        given = BlockRounding(weight, start)
        sums = sums_of(rows[0], matrix), sums_of(held_out, matrix)
        found[name] = given.decide(Fit(solve, sums), numbers, bias)
        assert found[name].after <= found[name].before
        assert given.fitted == found[name].better
        np.testing.assert_array_equal(given.blocks.numbers(), found[name].matrix.astype(np.float32))
    assert found["same"].after < 0.85 * found["same"].before
    assert found["other"].after > 0.9 * found["other"].before
    assert np.isfinite(found["other"].matrix).all()


def test_weights_that_are_not_wanted_stay_as_they_are() -> None:
    """Also those that only a Transpose brings to their operator."""
    text = "a = MatMul(x, w) r = Relu(a) t = Transpose<perm=[1,0]>(v) [last] y = MatMul(r, t)"
    proto = network("x:N,64 w=64,96 v=32,96", text)
    graph = load(proto)
    result, report = weight_only(
        graph, 4, 16, infer_shapes(graph), wanted=lambda name, operator: name != "last", samples=samples((64, 64))
    )
    assert report.fitted == report.quantized == ("MatMul_0",)
    (found,) = (read_values(tensor) for _, tensor in stored_tensors(result) if set(tensor.shape) == {32, 96})
    (given,) = (numpy_helper.to_array(tensor) for tensor in proto.graph.initializer if tensor.name == "v")
    np.testing.assert_array_equal(found if found.shape == given.shape else found.T, given)


def test_inputs_that_are_all_mean() -> None:
    """Their covariance is what rounding leaves of large numbers, and has no Cholesky factor."""
    graph = load(model("x:5,64 w=64,8", "y = MatMul(x, w)"))
    (weight,) = weights_of(graph, infer_shapes(graph))
    rows = 1e8 + np.random.default_rng(0).normal(size=(1, 300, 64)) * 1e-3
    sums = sums_of(rows, weight.matrix()), sums_of(rows[:, :100], weight.matrix())
    with pytest.raises(np.linalg.LinAlgError):
        Compensation.of(sums[0].centered()[0], 1e-3)
    given = BlockRounding.of(weight, GRID)
    found = given.decide(Fit(solve, sums), given.blocks.numbers().astype(np.float64), np.zeros((1, 8)))
    assert np.isfinite(found.matrix).all()
    assert np.isfinite(found.bias).all()
    assert found.after <= found.before
