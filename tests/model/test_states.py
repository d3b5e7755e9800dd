"""Initial states that are zeros disappear, whatever way they are computed; others stay."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxprune.channels.groups import analyze
from onnxprune.model.io import load, to_proto
from onnxprune.model.states import drop_zero_states
from onnxprune.runtime.session import SessionOptions, open_session

LAYERS = """
  shape = Shape(x) n = Gather(shape, one) batch = Unsqueeze(n, zero) z = Concat<axis=0>(two, batch, four)
  zeros = {zeros}
  h1 = Slice(zeros, zero, ones, zero) h2 = Slice(zeros, ones, two, zero)
  a, ha, ca = LSTM<hidden_size=4>(x, w, r, , , h1, h1) s = Squeeze(a, ones)
  b, hb, cb = LSTM<hidden_size=4>(s, w2, r2, , , h2, h2) t = Squeeze(b, ones) y = MatMul(t, u)
"""
SHAPES = {"w": (1, 16, 6), "r": (1, 16, 4), "w2": (1, 16, 4), "r2": (1, 16, 4), "u": (4, 5)}


def layers(zeros: str) -> onnx.ModelProto:
    header = '<ir_version: 8, opset_import: ["": 17]> g (float[T,N,6] x) => (float[T,N,5] y)'
    model = parser.parse_model(f"{header} {{ {LAYERS.format(zeros=zeros)} }}")
    rng = np.random.default_rng(0)
    for name, shape in SHAPES.items():
        model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape, np.float32), name))
    for name, value in {"one": 1, "zero": [0], "ones": [1], "two": [2], "four": [4]}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((), np.float32), "nothing"))
    return model


@pytest.mark.parametrize("zeros", ["ConstantOfShape(z)", "Expand(nothing, z)"])
def test_zero_states_disappear_with_what_computes_them(zeros: str) -> None:
    model = layers(zeros)
    graph = load(model)
    assert drop_zero_states(graph)
    assert [node.op for node in graph.nodes] == ["LSTM", "Squeeze", "LSTM", "Squeeze", "MatMul"]
    assert [len(node.inputs) for node in graph.nodes if node.op == "LSTM"] == [3, 3]
    feeds = {"x": np.random.default_rng(1).standard_normal((5, 2, 6), np.float32)}
    results = [open_session(m, SessionOptions(threads=1)).run(feeds)["y"] for m in (model, to_proto(graph))]
    assert np.array_equal(results[0], results[1])
    assert [group.units for group in analyze(graph).prunable] == [4, 4]
    assert not drop_zero_states(graph)


@pytest.mark.parametrize("zeros", ["ConstantOfShape<value = float[1] {0.5}>(z)", "RandomUniform<shape=[2,1,4]>()"])
def test_other_states_stay(zeros: str) -> None:
    graph = load(layers(zeros))
    count = len(graph.nodes)
    assert not drop_zero_states(graph)
    assert len(graph.nodes) == count
