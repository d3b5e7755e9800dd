"""What Constant nodes hold becomes stored; integers count as weights less their zero point."""

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import helper, numpy_helper, parser

from onnxprune.model.cost import cost, weight_tensors
from onnxprune.model.fold import store_constants
from onnxprune.model.io import load, to_proto
from onnxprune.runtime.session import SessionOptions, open_session

BODY = """agraph (float[2] x, bool[1] o) => (float[2] y, float[2] c, float[2] z) {
    a = Constant <value = float[2] {1, 2}> ()
    c = Constant <value = float[2] {3, 4}> ()
    i = Constant <value_floats = [5.0, 6.0]> ()
    b = Constant <value = float[2] {7, 8}> ()
    d = Add (x, a)
    e = Mul (d, c)
    y = Sub (e, b)
    z = If (o) <then_branch = t () => (float[2] s) { s = Add (i, x) },
                else_branch = f () => (float[2] s) { k = Constant <value = float[2] {9, 9}> () s = Add (k, x) }>
}"""


def built(text: str, **weights: np.ndarray) -> onnx.ModelProto:
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items())
    return model


def test_constants_become_stored_but_for_results_and_what_bodies_read() -> None:
    model = built(BODY)
    graph = load(model)
    store_constants(graph)
    found = to_proto(graph)
    onnx.checker.check_model(found, full_check=True)
    left = [node.output[0] for node in found.graph.node if node.op_type == "Constant"]
    assert sorted(left) == ["c", "i"]
    assert {one.name for one in found.graph.initializer} == {"a", "b"}
    for choice in (True, False):
        feeds = {"x": np.array([0.5, -1], np.float32), "o": np.array([choice])}
        before, after = (open_session(one, SessionOptions(threads=1)).run(feeds) for one in (model, found))
        for name, wanted in before.items():
            np.testing.assert_array_equal(after[name], wanted)
    again = load(found)
    store_constants(again)
    assert len(again.nodes) == len(graph.nodes)


def dequantized(values, zero=None, shape=None, axis: int | None = None, block: int | None = None) -> gs.Graph:
    """A graph that adds dequantized integers to its input."""
    attributes = {name: value for name, value in (("axis", axis), ("block_size", block)) if value is not None}
    scale = np.ones(() if zero is None else np.shape(zero), np.float32)
    stored = {"w": values, "s": scale, **({} if zero is None else {"z": np.asarray(zero, values.dtype)})}
    nodes = [helper.make_node("DequantizeLinear", list(stored), ["d"], **attributes),
             helper.make_node("Add", ["x", "d"], ["y"])]  # fmt: skip
    x, y = (helper.make_tensor_value_info(name, 1, values.shape) for name in "xy")
    tensors = [numpy_helper.from_array(array, name) for name, array in stored.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))


VALUES = np.array([[0, 3, 5, 0], [3, 3, 0, 7], [1, 0, 3, 3]], np.uint8)


@pytest.mark.parametrize(
    ("options", "zeros"),
    [
        ({}, VALUES == 0),
        ({"zero": 3}, VALUES == 3),
        ({"zero": [3]}, VALUES == 3),
        ({"zero": [0, 3, 1], "axis": 0}, VALUES == [[0], [3], [1]]),
        ({"zero": [0, 3, 5, 7]}, VALUES == [0, 3, 5, 7]),
        ({"zero": [0, 3, 5, 7], "axis": -1}, VALUES == [0, 3, 5, 7]),
        ({"zero": [[0, 3], [3, 7], [1, 3]], "axis": 1, "block": 2},
         VALUES == [[0, 0, 3, 3], [3, 3, 7, 7], [1, 1, 3, 3]]),
        ({"zero": [[0, 3, 5, 7], [3, 0, 3, 3]], "axis": 0, "block": 2},
         VALUES == [[0, 3, 5, 7], [0, 3, 5, 7], [3, 0, 3, 3]]),
    ],
)  # fmt: skip
def test_an_integer_that_stands_for_zero_is_zero(options: dict, zeros: np.ndarray) -> None:
    graph = dequantized(VALUES, **options)
    found = cost(graph)
    assert (found.parameters, found.nonzero_parameters) == (12, int((~zeros).sum()))
    ((name, values),) = weight_tensors(graph)
    assert name == "w"
    np.testing.assert_array_equal(values == 0, zeros)


def test_int8_less_its_zero_point_does_not_overflow() -> None:
    graph = dequantized(np.array([-128, 127, 100], np.int8), zero=100)
    ((_, values),) = weight_tensors(graph)
    np.testing.assert_array_equal(values, [-228, 27, 0])


def test_quantized_weights_count_as_many_as_float_ones() -> None:
    text = "agraph (float[1, 4] x) => (float[1, 8] y) {{ {0} }}"
    plain = cost(load(built(text.format("y = MatMul (x, w)"), w=np.ones((4, 8), np.float32))))
    integers = built(text.format("d = DequantizeLinear <axis = 1> (w, s, z) y = MatMul (x, d)"),
                     w=np.ones((4, 8), np.int8), s=np.ones(8, np.float32), z=np.zeros(8, np.int8))  # fmt: skip
    found = cost(load(integers))
    assert (found.parameters, found.nonzero_parameters, found.macs) == (32, 32, 32)
    assert (plain.parameters, plain.nonzero_parameters, plain.macs) == (32, 32, 32)
    assert found.per_node[-1].parameters + found.per_node[0].parameters == 32
