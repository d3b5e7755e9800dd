"""Emitted files: valid, with integers where they should be, and the caller's names and types as they were."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx_text import model, random_feeds

from onnxprune.model.io import Graph, load, to_proto
from onnxprune.model.sizes import infer_shapes
from onnxprune.quantize.emit import Scales, weight_scales, with_integers, with_pairs
from onnxprune.quantize.grids import REDUCED, scale_of
from onnxprune.quantize.merge import merged
from onnxprune.quantize.placement import Placement, place
from onnxprune.quantize.targets import TARGETS, Target
from onnxprune.runtime.fusion import on_integers
from onnxprune.runtime.session import SessionOptions, open_session

CONVS = "x:1,16,8,8 w=16,16,3,3 u=16,16,3,3 v=16,16,3,3"
CASES = {
    "chain": (CONVS, "c = Conv (x, w) r = Relu (c) d = Conv (r, u) y = Abs (d)"),
    "output": (f"{CONVS} b=16", "c = Conv (x, w, b) r = Relu (c) y = Conv (r, u, b)"),
    "outputs": (CONVS, "y = Conv (x, w) z = Conv <pads = [1, 1, 1, 1]> (y, u) t = Abs (y) s = Add (t, z)"),
    "clipped output": (CONVS, "c = Conv (x, w) y = Relu (c)"),
    "residual": (CONVS, "a = Conv <pads = [1, 1, 1, 1]> (x, w) r = Relu (a) b = Conv <pads = [1, 1, 1, 1]> (r, u) "
                 "s = Add (b, r) t = Relu (s) c = Conv (t, v) y = Abs (c)"),
    "shared": ("x:1,16,8,8 w=16,16,3,3", "a = Conv (x, w) r = Relu (a) b = Conv (r, w) y = Abs (b)"),
    "pooled": (CONVS, "a = Conv (x, w) p = MaxPool <kernel_shape = [2, 2]> (a) c = Conv (p, u) y = Abs (c)"),
    "scaled": (f"{CONVS} k=f#0.25", "a = Conv (x, w) r = Relu (a) m = Mul (r, k) c = Conv (m, u) y = Abs (c)"),
    "scaled output": (f"{CONVS} k=f#0.25", "a = Conv (x, w) r = Relu (a) m = Mul (r, k) c = Conv (m, u) y = Abs (m)"),
    "concat": ("x:1,16,8,8 w=16,16,3,3 u=16,16,3,3 v=16,32,3,3",
               "a = Conv (x, w) b = Conv (x, u) c = Concat <axis = 1> (a, b) d = Conv (c, v) y = Abs (d)"),
    "depthwise": ("x:1,16,8,8 w=16,1,3,3 u=16,16,1,1 b=16",
                  "a = Conv <group = 16> (x, w, b) d = Conv (a, u) y = Abs (d)"),
    "gemms": ("x:4,32 w=32,16 b=16 v=16,32", "a = Gemm (x, w, b) r = Relu (a) y = Gemm (r, v)"),
    "transposed gemm": ("x:4,32 w=16,32 b=16", "a = Gemm <transB = 1> (x, w, b) y = Abs (a)"),
    "products": ("x:N,4,32 w=32,16 b=16 v=16,32", "a = MatMul (x, w) s = Add (a, b) r = Relu (s) y = MatMul (r, v)"),
    "up": (CONVS, "a = ConvTranspose (x, w) r = Relu (a) c = Conv (r, u) y = Abs (c)"),
    "line": ("x:1,16,20 w=16,16,3 u=16,16,3", "a = Conv (x, w) r = Relu (a) c = Conv (r, u) y = Abs (c)"),
    "stored operand": (f"{CONVS} k=1,16,6,6", "a = Conv (x, w) m = Mul (a, k) c = Conv (m, u) y = Abs (c)"),
    "body": (f"{CONVS} o:b1", "c = Conv (x, w) r = Relu (c) d = Conv (r, u) z = If (o) <then_branch = t () => "
             "(float[1, 16, 6, 6] s) { s = Abs (c) }, else_branch = e () => (float[1, 16, 6, 6] s) { s = Neg (r) }>"),
    "names": (f"{CONVS} x_scale=16,1,1 w_quantized=16,1,1",
              "c = Conv (x, w) x_quantized = Relu (c) w_dequantized = Conv (x_quantized, u) p = Abs (w_dequantized) "
              "q = Max (p, x_scale) y = Sub (w_quantized, q)"),
}  # fmt: skip
ALL = [(name, target) for name in CASES for target in ("ort-cpu", "tensorrt", "generic")]


def model_of(name: str) -> onnx.ModelProto:
    proto = model(*CASES[name])
    if name == "outputs":  # also what other nodes read
        proto.graph.output.append(onnx.helper.make_tensor_value_info("y", 1, [1, 16, 6, 6]))
    return proto


@dataclass(frozen=True)
class Emitted:
    given: onnx.ModelProto
    graph: Graph
    placement: Placement
    scales: Scales
    made: onnx.ModelProto
    feeds: dict[str, np.ndarray]


def emitted(proto: onnx.ModelProto, target: Target, grid=None) -> Emitted:
    """Ranges are those of one run; weights are rounded to the nearest."""
    graph = merged(load(proto))
    placement = place(graph, infer_shapes(graph), target)
    feeds = random_feeds(proto, np.random.default_rng(2))
    probe = to_proto(graph)
    known = {one.name for one in (*probe.graph.output, *probe.graph.input)}
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in placement.tensors if name not in known)
    values = {**feeds, **open_session(probe, SessionOptions(threads=1)).run(feeds)}
    ranges: dict[str, list[np.ndarray]] = {}
    for name in placement.tensors:
        ranges.setdefault(placement.scale(name), []).append(values[name].ravel())
    tensors = {
        name: scale_of(np.concatenate(seen).min(), np.concatenate(seen).max(), target.activations)
        for name, seen in ranges.items()
    }
    weights = weight_scales(placement, tensors, grid or target.weights, target)
    before = to_proto(graph).SerializeToString()
    scales = Scales(tensors, weights)
    made = with_integers(with_pairs(graph, placement, tensors), placement, scales, target)
    assert to_proto(graph).SerializeToString() == before
    return Emitted(proto, graph, placement, scales, to_proto(made), feeds)


@pytest.fixture(scope="module")
def cache():
    return {}


@pytest.fixture
def case(cache, request) -> Emitted:
    name, target = request.param
    if request.param not in cache:
        cache[request.param] = emitted(model_of(name), TARGETS[target])
    return cache[request.param]


every = pytest.mark.parametrize("case", ALL, indirect=True, ids=lambda pair: f"{pair[1]}: {pair[0]}")
for_cpu = pytest.mark.parametrize(
    "case", [one for one in ALL if one[1] == "ort-cpu"], indirect=True, ids=lambda p: p[0]
)


def run(proto: onnx.ModelProto, feeds: dict[str, np.ndarray], *, integers: bool = False) -> dict[str, np.ndarray]:
    options = SessionOptions(threads=1, optimize=integers, integers=integers)
    return open_session(proto, options).run(feeds)


def stored(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {one.name: numpy_helper.to_array(one) for one in proto.graph.initializer}


def noise(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.square(found - wanted).sum() / np.square(wanted - wanted.mean()).sum())


@every
def test_files_are_valid_and_close_to_the_original(case: Emitted) -> None:
    onnx.checker.check_model(case.made, full_check=True)
    before, after = run(case.given, case.feeds), run(case.made, case.feeds)
    for name, wanted in before.items():
        assert noise(after[name], wanted) < 0.01, name


@every
def test_inputs_and_outputs_are_as_they_were(case: Emitted) -> None:
    for side in ("input", "output"):
        protos = case.given, case.made
        before, after = ({one.name: one.type for one in getattr(proto.graph, side)} for proto in protos)
        assert list(before) == list(after)
        assert before == after


@every
def test_every_name_is_made_once_before_it_is_read(case: Emitted) -> None:
    seen = {one.name for one in (*case.made.graph.input, *case.made.graph.initializer)}
    assert len(seen) == len(case.made.graph.input) + len(case.made.graph.initializer)
    for node in case.made.graph.node:
        assert {name for name in node.input if name} <= seen, node
        assert not set(node.output) & seen, node
        seen.update(node.output)
    names = [node.name for node in case.made.graph.node]
    assert len(set(names)) == len(names)


@every
def test_weights_are_int8_with_a_scale_for_each_output(case: Emitted, request: pytest.FixtureRequest) -> None:
    held, producers = stored(case.made), {name: node for node in case.made.graph.node for name in node.output}
    target = TARGETS[request.node.callspec.params["case"][1]]
    for weight in case.placement.weights:
        node = next(n for n in case.made.graph.node if {weight.result, f"{weight.result}_float"} & set(n.output)
                    and n.op_type == weight.node.op)  # fmt: skip
        source = producers[node.input[1]]
        assert source.op_type == "DequantizeLinear"
        integers, scale, zero = (held[name] for name in source.input)
        assert (integers.dtype, scale.dtype, zero.dtype) == (np.int8, np.float32, np.int8)
        axis = {attribute.name: attribute.i for attribute in source.attribute}["axis"]
        assert scale.shape == zero.shape == (integers.shape[axis],)
        assert integers.min() >= -127
        assert not zero.any()
        bias = producers.get(node.input[2]) if len(node.input) > 2 else None
        if target.integer_bias and len(node.input) > 2:
            assert held[bias.input[0]].dtype == np.int32
            assert len(bias.input) == 2
            data = held[producers[node.input[0]].input[1]]
            np.testing.assert_array_equal(held[bias.input[1]], data * scale)
        else:
            assert bias is None


@every
def test_scales_are_positive_and_zero_points_are_written(case: Emitted) -> None:
    held = stored(case.made)
    pairs = [node for node in case.made.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert pairs
    for node in pairs:
        assert (held[node.input[1]] >= np.finfo(np.float32).tiny).all()
        integers = held.get(node.input[0])
        if integers is None or integers.dtype != np.int32:
            assert held[node.input[2]].shape == held[node.input[1]].shape


@for_cpu
def test_the_runtime_computes_all_of_them_in_integers(case: Emitted) -> None:
    products = [node for node in case.made.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    names = {name for node in products for name in node.output}
    assert len(names) >= len(case.placement.weights)
    found = on_integers(case.made, names, SessionOptions(threads=1))
    expected = {weight.result for weight in case.placement.weights}
    assert {name.removesuffix("_float") for name in found} == expected


@for_cpu
def test_integers_compute_what_their_floats_do(case: Emitted, request: pytest.FixtureRequest) -> None:
    """With weights of 7 bits, which no machine's integer arithmetic overflows."""
    name, _ = request.node.callspec.params["case"]
    made = emitted(model_of(name), TARGETS["ort-cpu"], REDUCED)
    fake, real = run(made.made, made.feeds), run(made.made, made.feeds, integers=True)
    for result, wanted in fake.items():
        assert noise(real[result], wanted) < 1e-3, result


def test_products_with_a_bias_run_in_integers_at_fixed_sizes() -> None:
    made = emitted(model("x:2,4,32 w=32,16 b=16", "a = MatMul (x, w) s = Add (a, b) y = Abs (s)"), TARGETS["ort-cpu"])
    assert on_integers(made.made, {"a"}, SessionOptions(threads=1)) == {"a"}


def test_zeros_stay_zero() -> None:
    proto = model(*CASES["residual"])
    mask = np.random.default_rng(0).random((16, 16, 3, 3)) < 0.5
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * mask, tensor.name))
    for target in ("ort-cpu", "tensorrt"):
        held = stored(emitted(proto, TARGETS[target]).made)
        for name in "wuv":
            assert not held[f"{name}_quantized"][~mask].any()
            assert (held[f"{name}_quantized"][mask] != 0).mean() > 0.95


def test_channels_of_zeros_have_a_scale() -> None:
    proto = model(*CASES["output"])
    for tensor in proto.graph.initializer:
        values = numpy_helper.to_array(tensor).copy()
        values[:4] = 0
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for target in TARGETS.values():
        if target.refused is None:
            made = emitted(proto, target)
            found = run(made.made, made.feeds)["y"]
            assert np.isfinite(found).all()
            np.testing.assert_array_equal(found[:, :4], 0)


@pytest.mark.parametrize("size", [1e-6, 1e6])
def test_a_bias_beside_tiny_weights_fits_into_its_integers(size: float) -> None:
    proto = model("x:1,16,8,8 w=16,16,3,3 b=16", "a = Conv (x, w, b) y = Abs (a)")
    held = {one.name: one for one in proto.graph.initializer}
    for name, factor in (("w", 1e-3 / size), ("b", 1.0)):
        values = (numpy_helper.to_array(held[name]) * factor).astype(np.float32)
        held[name].CopyFrom(numpy_helper.from_array(values, name))
    made = emitted(proto, TARGETS["ort-cpu"])
    assert np.abs(stored(made.made)["a_bias_quantized"].astype(np.int64)).max() <= 1.0001 * 2**30
    found, wanted = (run(one, made.feeds)["y"] for one in (made.made, made.given))
    assert noise(found, wanted) < 0.01


def test_weights_that_two_share_beside_different_biases() -> None:
    """Both read the same integers, so the scales of both biases are those of the same weights."""
    proto = model("x:1,16,8,8 w=16,16,3,3 b=16 k=16", "a = Conv (x, w, b) r = Relu (a) c = Conv (r, w, k) y = Abs (c)")
    held = {one.name: one for one in proto.graph.initializer}
    for name, factor in (("w", 1e-5), ("b", 1e4)):
        held[name].CopyFrom(numpy_helper.from_array(numpy_helper.to_array(held[name]) * np.float32(factor), name))
    made = emitted(proto, TARGETS["ort-cpu"]).made
    found, producers = stored(made), {name: node for node in made.graph.node for name in node.output}
    for node in made.graph.node:
        if node.op_type == "Conv":
            data, weights, bias = (found[producers[name].input[1]] for name in node.input)
            np.testing.assert_array_equal(bias, data * weights)


def test_a_file_of_the_zoo_keeps_its_header(tmp_path: Path) -> None:
    proto = model(*CASES["chain"])
    proto.producer_name, proto.doc_string = "somebody", "words"
    made = emitted(proto, TARGETS["generic"]).made
    assert (made.producer_name, made.doc_string, made.ir_version) == ("somebody", "words", proto.ir_version)
    assert made.opset_import[0].version == 17
