"""Raising the opset: the same numbers, names and metadata, whatever the operators."""

from pathlib import Path

import cases
import numpy as np
import onnx
import pytest
from law import Case
from onnx import helper, numpy_helper, parser
from onnx_text import model, random_feeds, with_measured_outputs

from onnxprune.errors import ModelError, OnnxPruneError, UnsupportedOpError
from onnxprune.model.graph import stored_tensors
from onnxprune.model.io import Graph, load, to_proto
from onnxprune.quantize.opset import raised
from onnxprune.runtime.session import SessionOptions, open_session

PLAIN = SessionOptions(threads=1, optimize=False)
LIGHT = Path(onnx.__file__).parent / "backend/test/data/light/light_squeezenet.onnx"

OLD = [
    ("softmax", "x:2,3,4,5", "y = Softmax<axis=1>(x)", 9),
    ("softmax_default", "x:2,3,4,5", "y = Softmax(x)", 11),
    ("softmax_last", "x:N,3,5", "y = Softmax<axis=2>(x)", 12),
    ("softmax_negative", "x:2,3,4,5", "y = LogSoftmax<axis=-2>(x)", 11),
    ("hardmax", "x:2,3,4,5", "y = Hardmax<axis=1>(x)", 9),
    ("upsample_nearest", "x:1,2,3,4 s=f{1,1,2,3}", "y = Upsample<mode='nearest'>(x, s)", 9),
    ("upsample_linear", "x:1,2,3,4 s=f{1,1,2,2}", "y = Upsample<mode='linear'>(x, s)", 9),
    ("upsample_attribute", "x:1,2,3,4", "y = Upsample<mode='linear', scales=[1.0, 1.0, 2.0, 2.0]>(x)", 7),
    ("resize_nearest", "x:1,2,3,4 s=f{1,1,2.5,1.5}", "y = Resize<mode='nearest'>(x, s)", 10),
    ("resize_shrinks", "x:1,2,7,9 s=f{1,1,0.6,0.7}", "y = Resize<mode='nearest'>(x, s)", 10),
    ("resize_linear", "x:1,2,5,4 s=f{1,1,0.6,1.7}", "y = Resize<mode='linear'>(x, s)", 10),
    ("dropout", "x:2,6", "y = Dropout<ratio=0.3>(x)", 9),
    ("clip", "x:2,6", "y = Clip<min=-0.5, max=0.5>(x)", 9),
    ("clip_above", "x:2,6", "y = Clip<max=0.5>(x)", 10),
    ("pad", "x:1,2,3,4", "y = Pad<pads=[0,0,1,1,0,0,1,1], value=2.0>(x)", 9),
    ("slice", "x:4,6", "y = Slice<starts=[1], ends=[5], axes=[1]>(x)", 9),
    ("split", "x:4,6", "a, b = Split<axis=1, split=[2, 4]>(x)", 11),
    ("split_even", "x:4,6", "a, b = Split<axis=1>(x)", 12),
    ("mean", "x:2,3,4,5", "y = ReduceMean<axes=[2,3]>(x)", 11),
    ("sum", "x:2,3,4,5", "y = ReduceSum<axes=[1], keepdims=0>(x)", 11),
    ("squeeze", "x:2,1,6", "a = Squeeze<axes=[1]>(x) y = Unsqueeze<axes=[0]>(a)", 11),
    ("top", "x:4,6", "y, i = TopK<axis=1, k=3>(x)", 9),
    ("norm", "x:2,3,4,4 s=+3 b=3 m=3 v=+3", "y = BatchNormalization<epsilon=0.001>(x, s, b, m, v)", 9),
    ("scatter", "x:4,6 i={0,1} u=2", "a = Reshape(x, k) y = Scatter<axis=0>(a, i, u)", 9),
    ("lstm", "x:3,2,4 w=1,20,4 r=1,20,5", "y, h, c = LSTM<hidden_size=5>(x, w, r)", 9),
    ("cast", "x:2,6", "a = Cast<to=7>(x) b = Equal(a, a) y = Where(b, x, x)", 11),
    ("quantized", "x:2,6 s=f#0.1", "q = QuantizeLinear(x, s) y = DequantizeLinear(q, s)", 10),
    ("grid", "x:1,1,4,4 g:1,3,3,2", "y = GridSample<mode='bilinear'>(x, g)", 16),
]


def same(before: onnx.ModelProto, opset: int) -> Graph:
    """Returns a model raised to an opset, found to be valid and to compute the same bits or nearly."""
    onnx.checker.check_model(before, full_check=True)
    feeds = random_feeds(before, np.random.default_rng(0))
    result = raised(load(before), opset)
    after = to_proto(result)
    onnx.checker.check_model(after, full_check=True)
    assert [value.name for value in after.graph.input] == [value.name for value in before.graph.input]
    assert [value.name for value in after.graph.output] == [value.name for value in before.graph.output]
    assert result.opset == opset
    wanted, found = (open_session(proto, PLAIN).run(feeds) for proto in (before, after))
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-6, atol=1e-6)
    return result


@pytest.mark.parametrize("opset", [17, 21])
@pytest.mark.parametrize(("tensors", "text", "before"), [row[1:] for row in OLD], ids=[row[0] for row in OLD])
def test_what_changed_computes_the_same(tensors: str, text: str, before: int, opset: int) -> None:
    text = text.replace("'", '"')
    if "k)" in text:
        tensors += " k={24}"
    same(model(tensors, text, before), opset)


@pytest.mark.parametrize("before", [9, 11, 12, 13])
def test_a_sample_of_all_cases_computes_the_same(before: int) -> None:
    groups = [group for group in vars(cases).values() if isinstance(group, tuple)]
    every = [one for group in groups for one in group if isinstance(one, Case)]
    tried = 0
    for case in every[before % 7 :: 12]:
        random = "training_mode" in case.text or "Dropout" in case.text or "MeanVariance" in case.text
        if case.opset < before or random:
            continue
        try:
            proto = model(case.tensors, case.text, before)
            onnx.checker.check_model(proto, full_check=True)
            open_session(proto, PLAIN).run(random_feeds(proto, np.random.default_rng(0)))
        except (OnnxPruneError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
            continue  # the case is of another opset
        same(proto, 21)
        tried += 1
    assert tried >= 5


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_attributes_become_inputs_of_the_type_of_the_data(kind: type) -> None:
    text = "a = Clip<min=-0.5, max=0.5>(x) y = Pad<pads=[0,1,0,1], value=2.0>(a)"
    onnx.checker.check_model(to_proto(raised(load(model("x:2,6", text, 9, kind)), 21)), full_check=True)


def light_network() -> Graph:
    """Returns a network of opset 9 whose weights, all alike in the file, are random and stored as they used to be."""
    proto, random = onnx.load(LIGHT), np.random.default_rng(0)
    shapes = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    for node in [node for node in proto.graph.node if node.op_type == "ConstantOfShape"]:
        values = random.normal(size=shapes[node.input[0]]).astype(np.float32)
        values *= (2 / values[0].size) ** 0.5
        proto.graph.initializer.append(numpy_helper.from_array(values, node.output[0]))
        proto.graph.input.append(helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, values.shape))
        proto.graph.node.remove(node)
    return load(proto)


def test_a_real_network_of_opset_9() -> None:
    graph, random = light_network(), np.random.default_rng(1)
    before = to_proto(graph)
    after = to_proto(raised(graph, 21))
    assert before.ir_version == 3
    assert after.ir_version == 10
    feeds = {graph.inputs[0].name: random.normal(size=graph.inputs[0].shape).astype(np.float32)}
    wanted, found = (open_session(proto, PLAIN).run(feeds) for proto in (before, after))
    for name, values in wanted.items():
        assert np.ptp(values) > 0
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-7)
    assert [value.name for value in after.graph.input] == [graph.inputs[0].name], "stored tensors are no inputs now"


def test_inside_bodies() -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 11]>
    agraph (bool c, float[2,3,4] x) => (float[2,3,4] y) {
       y = If (c) <
          then_branch = yes () => (float[2,3,4] a) { a = Softmax<axis=1>(x) },
          else_branch = no () => (float[2,3,4] b) { s = Squeeze<axes=[0]>(x0) b = Add(x, s) }
       >
       x0 = Unsqueeze<axes=[0]>(x)
    }
    """
    proto = parser.parse_model(text)
    proto.graph.node.sort(key=lambda node: node.op_type, reverse=True)
    result = raised(load(proto), 21)
    after = to_proto(result)
    onnx.checker.check_model(after, full_check=True)
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    for chosen in (True, False):
        feeds = {"c": np.array(chosen), "x": x}
        wanted, found = (open_session(one, PLAIN).run(feeds)["y"] for one in (proto, after))
        np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_the_rest_of_the_model_stays() -> None:
    text = "a = Clip<min=0.0>(x) b = com.microsoft.Gelu(a) y = MatMul(b, w)"
    proto = with_measured_outputs(model("x:2,6 w=6,2000", text, 10))
    proto.producer_name, proto.doc_string, proto.ir_version = "someone", "a text", 13
    proto.metadata_props.add(key="k", value="v")
    proto.graph.node[1].doc_string = "kept"
    result = same(proto, 21)
    after = to_proto(result)
    assert (after.producer_name, after.doc_string, after.ir_version) == ("someone", "a text", 13)
    assert after.metadata_props == proto.metadata_props
    assert {entry.domain: entry.version for entry in after.opset_import} == {"": 21, "com.microsoft": 1}
    assert next(node for node in after.graph.node if node.op_type == "Gelu").doc_string == "kept"
    (before,) = (stored for name, stored in stored_tensors(raised(load(proto), 10)) if name == "w")
    (stored,) = (stored for name, stored in stored_tensors(raised(load(proto), 21)) if name == "w")
    assert stored._values.tensor is before._values.tensor, "weights are not copied"


@pytest.mark.parametrize(("opset", "version"), [(13, 8), (19, 9), (21, 10)])
def test_the_ir_version_rises_no_further_than_needed(opset: int, version: int) -> None:
    assert to_proto(raised(load(model("x:2,6", "y = Relu(x)", 9)), opset)).ir_version == version


def test_nothing_happens_where_the_opset_is_there() -> None:
    proto = model("x:2,6", "y = Relu(x)", 17)
    assert to_proto(raised(load(proto), 13)) == proto


@pytest.mark.parametrize(
    ("tensors", "text", "opset", "reason"),
    [
        ("x:2,3,4 s=3 b=3 m=3 v=+3", "y, n, w = BatchNormalization(x, s, b, m, v)", 9, "training"),
        ("x:2,4,3 s=2 b=2", "y = GroupNormalization<num_groups=2>(x, s, b)", 18, "scales whole groups"),
        ("x:2,3,4 s=12 b=12 m=12 v=+12", "y = BatchNormalization<spatial=0>(x, s, b, m, v)", 7, "Attribute spatial"),
    ],
)
def test_what_has_no_equal_is_refused(tensors: str, text: str, opset: int, reason: str) -> None:
    with pytest.raises(UnsupportedOpError, match=f"{reason}.*export the model at opset 21 or newer"):
        raised(load(model(tensors, text, opset)), 21)


def test_an_opset_that_onnx_does_not_know() -> None:
    with pytest.raises(ModelError, match="upgrade onnx"):
        raised(load(model("x:2,6", "y = Relu(x)", 17)), 99)


def test_before_opset_7() -> None:
    proto = model("x:2,6,4 w=4", "y = Add<broadcast=1>(x, w)", 6)
    after = to_proto(raised(load(proto), 13))
    x = np.random.default_rng(0).normal(size=(2, 6, 4)).astype(np.float32)
    (stored,) = (numpy_helper.to_array(tensor) for tensor in proto.graph.initializer)
    np.testing.assert_allclose(open_session(after, PLAIN).run({"x": x})["y"], x + stored, rtol=1e-6)
