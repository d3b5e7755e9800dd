import numpy as np
import onnx
import pytest
from onnx import parser

from onnxprune.data.samples import Samples
from onnxprune.errors import CalibrationError, ModelError, UsageError
from onnxprune.runtime.session import Session, SessionOptions, open_session
from onnxprune.validate.compare import compare

HEAD = '<ir_version: 8, opset_import: ["": 17]>\n'


def session(text: str) -> Session:
    return open_session(parser.parse_model(HEAD + text), SessionOptions(threads=1))


def linear(weight: np.ndarray, extra: str = "") -> Session:
    rows, columns = weight.shape
    model = parser.parse_model(
        HEAD + f"agraph (float[N, {rows}] x) => (float[N, {columns}] logits) {{ logits = MatMul (x, w) {extra}}}"
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight.astype(np.float32), "w"))
    return open_session(model, SessionOptions(threads=1))


IDENTITY = np.eye(6)
SWAPPED = np.eye(6)[[1, 0, 2, 3, 4, 5]]


def samples(count: int = 30, labels: bool = False) -> Samples:
    classes = np.arange(count) % 6
    rows = np.eye(6, dtype=np.float32)[classes] * 2
    return Samples({"x": rows}, labels=classes if labels else None)


def test_labels_give_top1_of_both():
    result = compare(linear(IDENTITY), linear(SWAPPED), samples(labels=True), batch=7)
    assert result.before == {"top1": 1.0}
    assert result.after == {"top1": pytest.approx(4 / 6)}
    assert result.samples == 30


def test_top5_on_request():
    weight = np.eye(6) * -1
    result = compare(linear(IDENTITY), linear(weight), samples(labels=True), metric="top5")
    assert result.before == {"top5": 1.0}
    assert result.after == {"top5": 0.0}


def test_without_labels_agreement_is_the_metric():
    result = compare(linear(IDENTITY), linear(SWAPPED), samples())
    assert result.before == {"agreement": 1.0}
    assert result.after == {"agreement": pytest.approx(4 / 6)}
    assert result.fidelity.agreement == pytest.approx(4 / 6)
    assert result.fidelity.cosine == pytest.approx(4 / 6)
    assert result.fidelity.max_abs == 2.0


def test_batches_do_not_change_the_result():
    weight = np.random.default_rng(0).standard_normal((6, 6))
    data = Samples({"x": np.random.default_rng(1).standard_normal((29, 6)).astype(np.float32)})
    whole = compare(linear(IDENTITY), linear(weight), data, batch=100)
    parts = compare(linear(IDENTITY), linear(weight), data, batch=4)
    assert whole.fidelity.agreement == parts.fidelity.agreement
    assert whole.fidelity.cosine == pytest.approx(parts.fidelity.cosine)
    assert whole.fidelity.sqnr_db == pytest.approx(parts.fidelity.sqnr_db)
    assert whole.fidelity.max_abs == pytest.approx(parts.fidelity.max_abs, rel=1e-6)


def test_metrics_by_name():
    half = linear(IDENTITY * 0.5)
    assert compare(linear(IDENTITY), half, samples(), metric="mse").after == {"mse": pytest.approx(1 / 6)}
    assert compare(linear(IDENTITY), half, samples(), metric="mse").before == {"mse": 0.0}
    assert compare(linear(IDENTITY), half, samples(), metric="cosine").after == {"cosine": pytest.approx(1.0)}
    assert compare(linear(IDENTITY), half, samples(), metric="cosine").fidelity.sqnr_db == pytest.approx(
        6.0206, abs=1e-3
    )
    assert compare(linear(IDENTITY), half, samples(labels=True), metric="agreement").after == {"agreement": 1.0}


def test_unknown_metric_and_missing_labels_are_usage_errors():
    with pytest.raises(UsageError, match="'f1' is unknown"):
        compare(linear(IDENTITY), linear(IDENTITY), samples(), metric="f1")
    with pytest.raises(UsageError, match="needs labels"):
        compare(linear(IDENTITY), linear(IDENTITY), samples(), metric="top1")


def test_no_classifying_output():
    text = "agraph (float[N] x) => (float[N] y) { y = Relu (x) }"
    other = "agraph (float[N] x) => (float[N] y) { y = Abs (x) }"
    data = Samples({"x": np.linspace(-1, 1, 8, dtype=np.float32)}, labels=np.zeros(8, dtype=np.int64))
    result = compare(session(text), session(other), data, metric="cosine")
    assert result.fidelity.agreement is None
    assert result.fidelity.max_abs == 1.0
    with pytest.raises(UsageError, match="no output"):
        compare(session(text), session(other), data)
    with pytest.raises(UsageError, match="no output"):
        compare(session(text), session(other), data, metric="agreement")
    unlabelled = Samples(data.arrays)
    assert set(compare(session(text), session(other), unlabelled).after) == {"cosine"}


def test_outputs_that_are_no_floats_are_left_out():
    text = """agraph (float[N, 3] x) => (int64[N, 1] best, float[N, 3] y) {
        best = ArgMax <axis = 1> (x)
        y = Relu (x)
    }"""
    data = Samples({"x": np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)})
    assert compare(session(text), session(text.replace("Relu", "Abs")), data).fidelity.max_abs < 5
    integers = "agraph (float[N, 3] x) => (int64[N, 1] best) { best = ArgMax <axis = 1> (x) }"
    result = compare(session(integers), session(integers.replace("ArgMax", "ArgMin")), data)
    assert result.fidelity.agreement is None
    assert result.fidelity.max_abs > 0


def test_a_candidate_with_nan_is_not_close():
    broken = np.eye(6) * np.nan
    result = compare(linear(IDENTITY), linear(broken), samples(labels=True))
    assert result.after == {"top1": 0.0}
    assert result.fidelity.agreement == 0.0
    assert result.fidelity.cosine == 0.0
    assert result.fidelity.max_abs == float("inf")


def test_the_candidate_needs_the_same_outputs():
    other = session("agraph (float[N, 6] x) => (float[N, 6] z) { z = Relu (x) }")
    with pytest.raises(ModelError, match="lacks the output 'logits'"):
        compare(linear(IDENTITY), other, samples())


def test_labels_that_do_not_fit_the_output():
    text = "agraph (float[N, 6] x, int64[3] s) => (float[N, 2, 3] y) { y = Reshape (x, s) }"
    data = Samples(samples().arrays, labels=np.zeros(30, dtype=np.int64), constants={"s": np.array([-1, 2, 3])})
    with pytest.raises(CalibrationError, match="one row of classes"):
        compare(session(text), session(text), data)


def test_fixed_batch_and_progress():
    text = "agraph (float[4, 6] x) => (float[4, 6] y) { y = Relu (x) }"
    seen: list[float] = []
    data = Samples(samples().arrays, labels=np.arange(30) % 6, fixed_batch=4)
    result = compare(session(text), session(text), data, progress=lambda stage, fraction: seen.append(fraction))
    assert result.samples == 28
    assert result.after == {"top1": 1.0}
    assert len(seen) == 7
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(28 / 30)
