"""Local functions are replaced by their bodies, and nothing else about the model changes."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxprune.channels.groups import analyze
from onnxprune.model.inline import inlined, without_functions
from onnxprune.model.io import load, to_proto
from onnxprune.runtime.session import SessionOptions, open_session
from onnxprune.surgery.slice import slice_channels
from onnxprune.validate.proof import prove

TEXT = """
<ir_version: 10, opset_import: ["": 18, "pkg.torch": 1], metadata_props: ["author": "someone"]>
g (float[N,6] x, bool c) => (float[N,4] y) {
  a = pkg.torch.linear<alpha=0.5>(x, w)
  b = pkg.torch.linear<alpha=2.0>(a, v)
  z = If (c) <then_branch = t () => (float[N,8] p) { p = pkg.torch.linear<alpha=3.0>(a__1, v2) },
              else_branch = e () => (float[N,8] q) { q = Identity(b) }>
  d = MatMul(z, u2)
  y = MatMul(b, u)
}
<domain: "pkg.torch", opset_import: ["": 17, "pkg.torch": 1, "com.microsoft": 1]>
linear <alpha> (s, w) => (r) {
  a = pkg.torch.product(s, w)
  k = Constant<value_float: float = @alpha>()
  m = Mul(a, k)
  r = com.microsoft.QuickGelu(m)
}
<domain: "pkg.torch", opset_import: ["": 18]>
product (s, w) => (r) { r = MatMul(s, w) }
"""
WEIGHTS = {"w": (6, 8), "v": (8, 8), "u": (8, 4), "a__1": (2, 8), "v2": (8, 8), "u2": (8, 4)}


def calling(text: str = TEXT) -> onnx.ModelProto:
    model = parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in WEIGHTS.items():
        model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape, np.float32), name))
    for position, node in enumerate(model.functions[0].node):
        node.name = f"n{position}"
    model.graph.metadata_props.add(key="graph", value="kept")
    return model


def nodes_of(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    found = list(model.graph.node)
    for node in found:
        for attribute in node.attribute:
            found.extend(attribute.g.node)
    return found


def test_a_model_without_functions_is_returned_as_it_is() -> None:
    model = calling()
    del model.functions[:]
    assert inlined(model) is model


def test_calls_disappear_and_the_model_computes_the_same() -> None:
    model = calling()
    before = model.SerializeToString()
    result = inlined(model)
    assert model.SerializeToString() == before
    assert not result.functions
    assert "pkg.torch" not in {node.domain for node in nodes_of(result)}
    onnx.checker.check_model(result, full_check=True)
    rng = np.random.default_rng(1)
    for condition in (True, False):
        feeds = {"x": rng.standard_normal((3, 6), np.float32), "c": np.array(condition)}
        options = SessionOptions(threads=1)
        expected, found = open_session(model, options).run(feeds), open_session(result, options).run(feeds)
        assert np.array_equal(expected["y"], found["y"])


def test_weights_properties_and_unique_names_stay() -> None:
    model = calling()
    result = inlined(model)
    assert list(result.graph.initializer) == list(model.graph.initializer)
    assert {entry.key for entry in result.metadata_props} == {"author"}
    assert {entry.key for entry in result.graph.metadata_props} == {"graph"}
    assert {entry.domain for entry in result.opset_import} >= {"", "com.microsoft"}
    names = [node.name for node in nodes_of(result) if node.name]
    assert len(set(names)) == len(names) > 8
    outputs = [name for node in nodes_of(result) for name in node.output]
    assert len({*outputs, *WEIGHTS}) == len(outputs) + len(WEIGHTS)


def test_graphs_are_treated_as_models_are() -> None:
    model = calling()
    graph = load(model)
    graph.external = True
    result = without_functions(graph)
    assert result.external
    assert to_proto(result) == inlined(model)
    plain = load(inlined(model))
    assert without_functions(plain) is plain


def test_weights_inside_functions_can_be_pruned() -> None:
    model = calling()
    channels = analyze(model, {"x": (2, 6)})
    assert [group.units for group in channels.prunable] == [
        group.units for group in analyze(inlined(model), {"x": (2, 6)}).prunable
    ]
    group = next(group for group in channels.prunable if any(axis.tensor == "w" for axis in group.weights))
    assert group.units == 8
    chosen = {group.name: [1, 2, 5]}
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 6), np.float32), "c": np.array(True)}
    result = prove(channels, chosen, slice_channels(channels, chosen), [feeds], SessionOptions(threads=1))
    assert result.passed, result


def test_a_function_that_shadows_a_standard_operator_wins() -> None:
    text = """
    <ir_version: 10, opset_import: ["": 18]> g (float[N,6] x) => (float[N,8] y) { a = MatMul(x, w) y = Relu(a) }
    <domain: "", opset_import: ["": 18]> Relu (s) => (r) { r = Neg(s) }
    """
    model = calling(text)
    result = inlined(model)
    assert [node.op_type for node in result.graph.node] == ["MatMul", "Neg"]


def test_a_function_of_another_version_stays_where_operators_changed() -> None:
    text = """
    <ir_version: 10, opset_import: ["": 18, "own": 1]>
    g (float[N,6] x) => (float[N,1] y) { a = MatMul(x, w) y = own.f(a) }
    <domain: "own", opset_import: ["": 17]> f (s) => (r) { r = ReduceMean<axes=[1]>(s) }
    """
    result = inlined(calling(text))
    assert [node.op_type for node in result.graph.node] == ["MatMul", "f"]
    reasons = {str(group.frozen) for group in analyze(result, {"x": (2, 6)}).groups}
    assert any(reason.startswith("no channel rule for f") for reason in reasons)


def test_what_cannot_be_inlined_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(model: onnx.ModelProto) -> onnx.ModelProto:
        raise RuntimeError("no")

    monkeypatch.setattr("onnx.inliner.inline_local_functions", fail)
    model = calling()
    assert inlined(model) is model
