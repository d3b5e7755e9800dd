"""Lengths of pruned axes that are used as data keep the original's number; shapes follow without it."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx_text import model, random_feeds, with_measured_outputs

from onnxprune.channels.groups import analyze
from onnxprune.model.io import to_proto
from onnxprune.runtime.session import SessionOptions, open_session
from onnxprune.surgery.gates import silence
from onnxprune.surgery.slice import slice_channels

PLAIN = SessionOptions(threads=1, optimize=False)
CHAIN = "x:N,T,6 w=6,8 v=8,4 two=#2 three=f#3"
RETURNED = "a = MatMul(x, w) s = Shape(a) y = MatMul(a, v)"


def outputs_of(tensors: str, text: str, opset: int = 17) -> tuple[dict, dict, list[str]]:
    """Returns what the masked reference and the sliced model give on sizes that analysis has not seen, and the
    operators of the sliced model. The wide group loses more than half.
    """
    proto = with_measured_outputs(model(tensors, text, opset))
    channels = analyze(proto, {"x": (2, 5, 6)})
    removals = {group.name: [0, 2, 3, 5, 7] for group in channels.prunable if group.units == 8}
    assert removals
    sliced = slice_channels(channels, removals)
    feeds = random_feeds(proto, np.random.default_rng(0), {"N": 3, "T": 4})
    masked, small = (open_session(to_proto(g), PLAIN).run(feeds) for g in (silence(channels, removals), sliced))
    return masked, small, [node.op for node in sliced.nodes]


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        (RETURNED, "s", [3, 4, 8]),
        (RETURNED.replace("Shape(a)", "Size(a)"), "s", 96),
        (RETURNED.replace("Shape(a)", "Shape<start=-1>(a)"), "s", [8]),
        (RETURNED.replace("Shape(a)", "Shape<end=2>(a)"), "s", [3, 4]),
        (RETURNED + " c = Gather(s, two)", "c", 8),
        (RETURNED + " c = Gather(s, two) f = Cast<to=1>(c) p = Pow(f, three)", "p", 512.0),
    ],
)
def test_a_length_that_is_returned_is_the_original(text: str, name: str, value: object) -> None:
    masked, small, _ = outputs_of(CHAIN, text)
    np.testing.assert_array_equal(masked[name], value)
    np.testing.assert_array_equal(small[name], value)
    np.testing.assert_allclose(small["y"], masked["y"], rtol=1e-5, atol=1e-6)


def test_a_length_that_decides_at_other_sizes() -> None:
    text = (
        "a = MatMul(x, w) s = Shape(a) c = Gather(s, two) t = Gather(s, one) k = Greater(c, t) i = Cast<to=7>(k) "
        "y = MatMul(a, v)"
    )
    masked, small, _ = outputs_of(CHAIN + " one=#1", text)
    assert (masked["i"], small["i"]) == (1, 1)


@pytest.mark.parametrize(
    "text",
    [
        "a = MatMul(x, w) b = Neg(a) s = Shape(a) r = Reshape(b, s) y = MatMul(r, v)",
        "a = MatMul(x, w) s = Shape(a) o = ConstantOfShape<value=int64[1] {1}>(rank) n = Mul(o, minus) q = Equal(s, n) "
        "p = Where(q, o, s) e = Expand(u, p) d = Add(a, e) y = MatMul(d, v)",
    ],
)
def test_shapes_follow_by_themselves(text: str) -> None:
    tensors = CHAIN.replace(" two=#2 three=f#3", " u=1,1,8 minus=#-1 rank={3}")
    masked, small, operators = outputs_of(tensors, text)
    assert operators == [node.op_type for node in model(tensors, text).graph.node]
    np.testing.assert_allclose(small["y"], masked["y"], rtol=1e-5, atol=1e-6)


def test_only_the_length_that_is_used_is_read_as_it_was() -> None:
    text = (
        "a = MatMul(x, w) s = Shape(a) b = Reshape(a, s) z = Shape(b) c = Gather(z, two) f = Cast<to=1>(c) "
        "d = Div(b, f) y = MatMul(d, v)"
    )
    masked, small, operators = outputs_of(CHAIN, text)
    assert sorted(operators) == sorted(["Add", *(node.op_type for node in model(CHAIN, text).graph.node)])
    np.testing.assert_allclose(small["y"], masked["y"], rtol=1e-5, atol=1e-6)


def test_a_length_that_a_free_dimension_adds_to() -> None:
    tensors = "x:1,T,6 p=1,8,6 w=6,3 v=3,4 one=#1 axis={1}"
    text = (
        "e = Concat<axis=1>(p, x) a = MatMul(e, w) r = Relu(a) s = Shape(r) c = Gather(s, one) f = Cast<to=1>(c) "
        "n = Size(r) t = ReduceSum(r, axis) d = Div(t, f) y = MatMul(d, v)"
    )
    proto = with_measured_outputs(model(tensors, text))
    channels = analyze(proto)
    removals = {group.name: [0, 2, 3, 5, 7] for group in channels.prunable if group.units == 8}
    sliced = open_session(to_proto(slice_channels(channels, removals)), PLAIN)
    proto.graph.initializer[0].CopyFrom(_kept(proto.graph.initializer[0], [1, 4, 6]))
    small = open_session(proto, PLAIN)
    for length in (4, 9):
        feeds = random_feeds(proto, np.random.default_rng(0), {"T": length})
        expected, found = small.run(feeds), sliced.run(feeds)
        assert found["n"] == 3 * (8 + length)
        np.testing.assert_allclose(found["y"] * (8 + length), expected["y"] * (3 + length), rtol=1e-5, atol=1e-6)


def _kept(tensor: onnx.TensorProto, places: list[int]) -> onnx.TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(tensor)[:, places], tensor.name)
