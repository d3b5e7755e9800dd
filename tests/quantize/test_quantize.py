"""The whole step: trained networks stay accurate, the same input gives the same bytes, and errors say the way out."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_text import model

import onnxprune
from onnxprune.errors import CalibrationError, PlanError, UsageError
from onnxprune.model.io import load, to_proto
from onnxprune.quantize.quantize import quantize
from onnxprune.quantize.ranges import AUTO, METHODS
from onnxprune.runtime.session import SessionOptions, open_session

NETWORK = ("x:N,3,8,8 w=16,3,3,3 b=16 g=+16 h=16 m=16 p=+16 u=16,16,3,3 k=16,4 o=4",
           "a = Conv <pads = [1, 1, 1, 1]> (x, w, b) n = BatchNormalization (a, g, h, m, p) r = Relu (n) "
           "c = Conv <pads = [1, 1, 1, 1]> (r, u) s = Add (c, r) t = Relu (s) q = GlobalAveragePool (t) "
           "f = Flatten (q) y = Gemm (f, k, o)")  # fmt: skip


def samples(count: int = 60, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3, 8, 8)).astype(np.float32)


def run(proto: onnx.ModelProto, feeds: dict[str, np.ndarray], *, integers: bool = True) -> np.ndarray:
    return next(iter(open_session(proto, SessionOptions(threads=1, integers=integers)).run(feeds).values()))


def sqnr(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(10 * np.log10(np.square(wanted).sum() / np.square(found - wanted).sum()))


@pytest.fixture(scope="module")
def noise() -> dict[str, float]:
    """Signal to noise of a network by the method of its ranges, on samples with outliers."""
    proto, fitted, held = model(*NETWORK), samples(), samples(100, 1)
    fitted[3, 0, 2, 2] = 40
    wanted = run(proto, {"x": held})
    return {name: sqnr(run(to_proto(quantize(proto, {"x": fitted}, calibration=name)), {"x": held}), wanted)
            for name in (*METHODS, AUTO)}  # fmt: skip


@pytest.mark.parametrize("method", [*METHODS, AUTO])
def test_every_method_of_ranges(noise: dict[str, float], method: str) -> None:
    assert noise[method] > 15


def test_the_best_of_all_ranges_is_none_of_the_bad_ones(noise: dict[str, float]) -> None:
    assert noise[AUTO] > min(noise[name] for name in METHODS)
    assert noise[AUTO] > max(noise[name] for name in METHODS) - 3
    assert noise[AUTO] > noise["minmax"] + 0.3


@pytest.mark.parametrize("target", ["ort-cpu", "tensorrt", "generic"])
def test_the_same_input_gives_the_same_bytes(target: str) -> None:
    proto = model(*NETWORK)
    given = proto.SerializeToString()
    made = [to_proto(quantize(proto, {"x": samples()}, target)).SerializeToString() for _ in range(2)]
    assert made[0] == made[1]
    assert proto.SerializeToString() == given


def test_every_form_of_a_model_and_of_samples(tmp_path: Path) -> None:
    proto, path, data = model(*NETWORK), tmp_path / "model.onnx", tmp_path / "samples.npz"
    onnx.save(proto, path)
    np.savez(data, x=samples())
    pairs = ((path, data), (str(path), {"x": samples()}), (proto, samples()), (load(path), data))
    made = [to_proto(onnxprune.quantize(*pair)).SerializeToString() for pair in pairs]
    assert made == made[:1] * 4


@pytest.mark.parametrize("opset", [9, 10, 12, 21])
@pytest.mark.parametrize("target", ["ort-cpu", "tensorrt"])
def test_old_opsets_are_raised_as_far_as_needed(opset: int, target: str) -> None:
    text = NETWORK[1].replace("r = Relu (n)", "r = Clip <min = 0.0, max = 6.0> (n)") if opset < 11 else NETWORK[1]
    proto = model(NETWORK[0], text, opset=opset)
    made = to_proto(quantize(proto, {"x": samples()}, target))
    onnx.checker.check_model(made, full_check=True)
    assert made.opset_import[0].version == max(opset, 13)
    held = {"x": samples(100, 1)}
    assert sqnr(run(made, held, integers=target == "ort-cpu"), run(proto, held)) > 25


def largest_weight(proto: onnx.ModelProto) -> int:
    held = [one for one in proto.graph.initializer if one.data_type == onnx.TensorProto.INT8]
    return max(np.abs(onnx.numpy_helper.to_array(one).astype(int)).max() for one in held)


@pytest.mark.parametrize("reduced", [True, False])
def test_weights_of_seven_or_eight_bits(reduced: bool) -> None:
    made = to_proto(quantize(model(*NETWORK), {"x": samples()}, reduce_range=reduced))
    assert largest_weight(made) == (64 if reduced else 127)
    assert largest_weight(to_proto(quantize(model(*NETWORK), {"x": samples()}, "tensorrt"))) == 127


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5])
def test_constant_samples(value: float) -> None:
    proto = model(*NETWORK)
    same = {"x": np.full((30, 3, 8, 8), value, np.float32)}
    made = to_proto(quantize(proto, same))
    assert sqnr(run(made, same), run(proto, same)) > 25
    assert np.isfinite(run(made, {"x": samples()})).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_no_numbers(value: float) -> None:
    seen = samples()
    seen[5, 0, 0, 0] = value
    with pytest.raises(CalibrationError, match="'x' has NaN or infinite values: remove or repair those samples"):
        quantize(model(*NETWORK), {"x": seen})


def test_what_a_model_makes_infinite_has_no_part_in_ranges() -> None:
    proto = model("x:N,3,8,8 w=16,3,1,1 u=16,16,1,1", "z = Reciprocal (x) a = Conv (z, w) r = Relu (a) y = Conv (r, u)")
    seen = samples() + np.sign(samples())
    seen[0, :, 0, 0] = 0
    made = to_proto(quantize(proto, {"x": seen}))
    held = {"x": samples(100, 1) + np.sign(samples(100, 1))}
    assert sqnr(run(made, held), run(proto, held)) > 20


def test_weights_of_zeros() -> None:
    proto = model(*NETWORK)
    for tensor in proto.graph.initializer:
        if len(tensor.dims) > 1:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros(tensor.dims, np.float32), tensor.name))
    for target in ("ort-cpu", "tensorrt", "generic"):
        made = to_proto(quantize(proto, {"x": samples()}, target))
        np.testing.assert_allclose(run(made, {"x": samples()}), run(proto, {"x": samples()}), rtol=0.01)


def test_few_samples_and_little_memory() -> None:
    proto, held = model(*NETWORK), {"x": samples(100, 1)}
    for count, memory, floor in ((1, "2GB", 8), (4, "2GB", 12), (60, "1KB", 25)):
        made = to_proto(quantize(proto, {"x": samples(count)}, max_memory=memory))
        assert sqnr(run(made, held), run(proto, held)) > floor, (count, memory)


ACTIVATIONS = ("x:N,4,8", "t = Transpose <perm = [0, 2, 1]> (x) y = MatMul (x, t)")


@pytest.mark.parametrize(
    ("error", "words", "options"),
    [
        (UsageError, "no target 'tpu': choose one of ort-cpu, ort-cuda, tensorrt, generic", {"target": "tpu"}),
        (UsageError, "has no int8 convolutions.*: give --fp16, or --weights int4", {"target": "ort-cuda"}),
        (UsageError, "no way 'luck' to choose ranges: choose one of minmax", {"calibration": "luck"}),
        (UsageError, "--reduce-range", {"reduce_range": "perhaps"}),
        (UsageError, "--max-memory", {"max_memory": "much"}),
        (UsageError, "--seed", {"seed": 0.5}),
    ],
)
def test_options_that_make_no_sense(error: type[Exception], words: str, options: dict[str, object]) -> None:
    with pytest.raises(error, match=words):
        quantize(model(*NETWORK), {"x": samples(4)}, **options)


def test_models_with_nothing_to_quantize() -> None:
    data = {"x": np.zeros((4, 4, 8), np.float32)}
    with pytest.raises(PlanError, match="quantized for ort-cpu, its weights are computed, not stored: choose another"):
        quantize(model(*ACTIVATIONS), data)
    with pytest.raises(PlanError, match="no operator with stored weights"):
        quantize(model("x:N,4,8", "y = Exp (x)"), data)
    with pytest.raises(PlanError, match="too few: the target gains from 16 on: choose another --target"):
        quantize(model("x:N,3,8,8 w=4,3,3,3", "y = Conv (x, w)"), {"x": samples(4)}, "tensorrt")
    half = model("x:N,3,8,8 w=4,3,3,3", "y = Conv (x, w)", dtype=np.float16)
    with pytest.raises(PlanError, match="it does not compute in float32"):
        quantize(half, {"x": samples(4).astype(np.float16)})


def test_samples_that_do_not_fit() -> None:
    with pytest.raises(CalibrationError):
        quantize(model(*NETWORK), {"x": samples(4)[:, :2]})


def test_what_callers_may_override_stays_as_it_is() -> None:
    """From IR version 4 on, an initializer that is an input too is a default that a caller may replace."""
    proto = model(*NETWORK)
    for name in ("w", "o"):
        tensor = next(one for one in proto.graph.initializer if one.name == name)
        proto.graph.input.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
    made = to_proto(quantize(proto, {"x": samples()}))
    before = {tensor.name: tensor.SerializeToString() for tensor in proto.graph.initializer}
    after = {tensor.name: tensor.SerializeToString() for tensor in made.graph.initializer}
    assert {name: after[name] for name in ("w", "o")} == {name: before[name] for name in ("w", "o")}
    readers = {name for node in made.graph.node for name in node.input}
    assert {"w", "o"} <= readers
    feeds = {"x": samples(4, 1)}
    other = {**feeds, "w": np.zeros((16, 3, 3, 3), np.float32)}
    assert not np.allclose(run(made, other), run(made, feeds))
