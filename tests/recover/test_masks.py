"""Masked weights: zeros stay zero, and what is left makes up for them."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import scipy.linalg
from onnx import numpy_helper
from onnx_text import model

from onnxprune.channels.groups import analyze
from onnxprune.model.io import to_proto
from onnxprune.recover.least_squares import solve
from onnxprune.recover.moments import Moments
from onnxprune.recover.recover import recover
from onnxprune.recover.sequential import Calibration, Settings, repair
from onnxprune.runtime.session import SessionOptions, open_session
from onnxprune.surgery.gone import Gone

MODELS = Path(__file__).parents[2] / "models"
OPTIONS = SessionOptions(threads=1)
OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")

NET = (
    "x:N,4,8,8 w0=16,4,3,3 b0=16 w1=16,1,3,3 w2=16,8,3,3 w3=16,8,2,2 w4=10,8 w5=10,12",
    "a = Conv<pads=[1,1,1,1]>(x, w0, b0) r = Relu(a) c = Conv<pads=[1,1,1,1], group=16>(r, w1) q = Relu(c) "
    "d = Conv<pads=[1,1,1,1], group=2>(q, w2) s = Relu(d) t = ConvTranspose<strides=[2,2]>(s, w3) u = Relu(t) "
    "p = GlobalAveragePool(u) f = Flatten(p) g = Gemm<transB=1>(f, w4) h = Relu(g) y = MatMul(h, w5)",
)


def masked(proto: onnx.ModelProto, sparsity: float | None) -> onnx.ModelProto:
    """Returns the model without the smallest weights of every operator, or without two of four along its inputs."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    stored = {tensor.name: tensor for tensor in result.graph.initializer}
    for node in result.graph.node:
        tensor = stored.get(node.input[1]) if node.op_type in OPERATORS else None
        if tensor is None:
            continue
        values = numpy_helper.to_array(tensor).copy()
        if sparsity is not None:
            values[np.abs(values) < np.quantile(np.abs(values), sparsity)] = 0
        else:
            summed = 0 if node.op_type in ("MatMul", "ConvTranspose") else 1
            if values.shape[summed] % 4:
                continue
            fours = np.moveaxis(values, summed, -1).copy().reshape(-1, 4)
            np.put_along_axis(fours, np.argsort(np.abs(fours), axis=1)[:, :2], 0, axis=1)
            turned = np.moveaxis(values, summed, -1).shape
            values = np.moveaxis(fours.reshape(turned), -1, summed)
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))
    return result


def zeros(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) == 0 for t in proto.graph.initializer if len(t.dims) > 1}


def test_every_column_is_solved_on_its_own_support() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 300, 12)) @ rng.standard_normal((2, 12, 12)) + 0.5
    y = x @ rng.standard_normal((2, 12, 5)) + rng.standard_normal((2, 300, 5))
    free = rng.random((2, 12, 5)) < 0.5
    free[0, :, 0] = False
    sums = Moments.empty(2, 12, 5)
    sums.add(x, y)
    start = rng.standard_normal((2, 12, 5)) * free
    found = solve(sums, sums, start, np.zeros((2, 5)), free, strengths=[1e-9])
    assert (found.matrix[~free] == 0).all()
    made = x @ found.matrix + found.bias[:, None]
    for group in range(2):
        for column in range(5):
            stacked = np.hstack([x[group][:, free[group, :, column]], np.ones((300, 1))])
            best = stacked @ scipy.linalg.lstsq(stacked, y[group, :, column])[0]
            least = np.square(best - y[group, :, column]).sum()
            assert np.square(made[group, :, column] - y[group, :, column]).sum() == pytest.approx(least, rel=1e-4)


def test_inputs_that_do_not_vary() -> None:
    """Variances of them are zero, or what rounding makes of zero."""
    rng = np.random.default_rng(0)
    x = np.concatenate([np.full((1, 200, 6), 0.1), np.zeros((1, 200, 6)), rng.standard_normal((1, 200, 6))])
    y = rng.standard_normal((3, 200, 4)) + x[..., :4]
    sums = Moments.empty(3, 6, 4)
    sums.add(x, y)
    free = rng.random((3, 6, 4)) < 0.5
    found = solve(sums, sums, np.zeros((3, 6, 4)), np.zeros((3, 4)), free)
    assert np.isfinite(found.matrix).all()
    assert np.abs(found.matrix).max() < 10
    assert found.after < found.before


@pytest.mark.parametrize("sparsity", [0.5, 0.8, None])
def test_zeros_stay_and_the_error_goes(sparsity: float | None) -> None:
    proto = model(*NET)
    small = masked(proto, sparsity)
    x = np.random.default_rng(0).standard_normal((160, 4, 8, 8), np.float32)
    other = {"x": np.random.default_rng(1).standard_normal((64, 4, 8, 8), np.float32)}
    expected = open_session(proto, OPTIONS).run(other)["y"]

    def error(one: onnx.ModelProto) -> float:
        return float(np.square(open_session(one, OPTIONS).run(other)["y"] - expected).mean())

    before, kept = error(small), zeros(small)
    errors = {}
    for method in ("bias", "statistics", "least-squares"):
        better = to_proto(recover(small, proto, x, method))
        errors[method] = error(better)
        assert all((now >= kept[name]).all() for name, now in zeros(better).items() if name in kept)
    assert errors["least-squares"] < 0.5 * before
    assert errors["least-squares"] < 0.8 * errors["bias"]
    if sparsity is None:
        weights = {t.name: numpy_helper.to_array(t) for t in better.graph.initializer}["w2"]
        counts = (np.moveaxis(weights, 1, -1).reshape(-1, 4) != 0).sum(axis=1)
        assert (counts == 2).all()


def test_only_operators_that_differ_or_read_what_does_are_repaired() -> None:
    proto = model(*NET)
    channels = analyze(proto)
    small = channels.graph.copy()
    changed = next(node for node in small.nodes if node.op == "ConvTranspose").inputs[1]
    values = changed.values.copy()
    values[:, :, 0] = 0
    changed.values = values
    x = np.random.default_rng(0).standard_normal((96, 4, 8, 8), np.float32)
    runs = Calibration([{"x": x[:64]}], [{"x": x[64:]}])
    heard: list[tuple[str, float]] = []
    settings = Settings(solve, options=OPTIONS, progress=lambda stage, done: heard.append((stage, done)))
    _, found = repair(small, channels.graph, Gone(channels, {}), runs, settings)
    assert [one.node for one in found] == ["ConvTranspose_6", "Gemm_10", "MatMul_12"]
    assert heard == [("recover", pytest.approx(part / 3)) for part in (1, 2, 3)]
    _, found = repair(channels.graph, channels.graph, Gone(channels, {}), runs, settings)
    assert found == []


def test_zeros_of_the_original_are_no_mask() -> None:
    """A weight that was zero by chance may become another number."""
    proto = model("x:N,8 w=8,12 v=12,4", "a = MatMul(x, w) r = Relu(a) y = MatMul(r, v)")
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    values = {name: numpy_helper.to_array(tensor).copy() for name, tensor in stored.items()}
    values["v"][0] = 0
    stored["v"].CopyFrom(numpy_helper.from_array(values["v"], "v"))
    small = onnx.ModelProto()
    small.CopyFrom(proto)
    values["w"][::2] = 0
    values["v"][1] = 0
    for tensor in small.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))
    x = np.random.default_rng(0).standard_normal((200, 8), np.float32)
    better = to_proto(recover(small, proto, x))
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in better.graph.initializer}
    assert (found["w"][::2] == 0).all()
    assert (found["v"][1] == 0).all()
    assert (found["v"][0] != 0).any()


def test_a_trained_network_without_most_of_its_weights() -> None:
    data, labelled = np.load(MODELS / "calibration.npz")["image"][:64], np.load(MODELS / "validation.npz")
    proto = onnx.load(MODELS / "vit.onnx")
    small = masked(proto, 0.8)
    better = to_proto(recover(small, proto, {"image": data}))
    right = []
    for one in (proto, small, better):
        logits = open_session(one, SessionOptions(threads=2)).run({"image": labelled["image"][:300]})["logits"]
        right.append(float((logits.argmax(axis=1) == labelled["labels"][:300]).mean()))
    assert right[1] < 0.5
    assert right[2] > right[0] - 0.07
    assert all((now >= zeros(small)[name]).all() for name, now in zeros(better).items())
