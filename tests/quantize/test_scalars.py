"""Hard sigmoids become one operator, convolutions take in the numbers before them, and nothing changes."""

import numpy as np
import pytest
from onnx import helper, numpy_helper
from onnx_text import model

from onnxprune.model.io import load, to_proto
from onnxprune.quantize.placement import COSTLY
from onnxprune.quantize.quantize import Settings, quantize_graph
from onnxprune.quantize.scalars import folded
from onnxprune.quantize.targets import target_of
from onnxprune.recover.sequential import Calibration
from onnxprune.runtime.session import open_session

HEAD = "x:N,3,8,8 w=6,3,3,3 b=6 v=4,6,1,1 u=4 g=6,2,3,3 z=6,2,1,1 three=1 zero=1 six=1 sixth=1 "
SWISH = "c = Conv (x, w, b) s = Add (c, three) k = Clip (s, zero, six) m = Mul (c, k) d = Div (m, six) y = Conv (d, v)"
NUMBERS = {"three": 3.0, "zero": 0.0, "six": 6.0, "sixth": 1 / 6}


def network(text: str, **numbers: float):
    proto = model(HEAD, text)
    for tensor in proto.graph.initializer:
        if tensor.name in NUMBERS:
            value = np.asarray({**NUMBERS, **numbers}[tensor.name], np.float32)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return proto


def images(seed: int, count: int = 16) -> dict[str, np.ndarray]:
    return {"x": 3 * np.random.default_rng(seed).standard_normal((count, 3, 8, 8), np.float32)}


def kinds(graph) -> list[str]:
    return [node.op for node in graph.nodes if node.op != "Constant"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (SWISH, ["Conv", "HardSigmoid", "Mul", "Conv"]),
        (SWISH.replace("Add (c, three)", "Add (three, c)").replace("Mul (c, k)", "Mul (k, c)"),
         ["Conv", "HardSigmoid", "Mul", "Conv"]),
        (SWISH.replace("Div (m, six)", "Mul (m, sixth)"), ["Conv", "HardSigmoid", "Mul", "Conv"]),
        (SWISH.replace("m = Mul (c, k) d = Div (m, six)", "d = Div (k, six)"), ["Conv", "HardSigmoid", "Conv"]),
    ],
)  # fmt: skip
def test_what_is_spelled_out_becomes_one(text: str, expected: list[str]) -> None:
    proto = network(text)
    small = folded(load(proto))
    assert kinds(small) == expected
    wanted, found = (open_session(one).run(images(0))["y"] for one in (proto, to_proto(small)))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


AFFINE = "c = Conv (x, w, b) t = Mul (c, three) a = Add (t, sixth) y = Conv (a, v)"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (AFFINE, ["Conv", "Conv"]),
        (AFFINE.replace("Mul (c, three)", "Identity (c)"), ["Conv", "Identity", "Conv"]),
        (AFFINE.replace("(a, v)", "(a, v, u)"), ["Conv", "Conv"]),
        (AFFINE.replace("y = Conv", "y = Conv <pads = [1, 0, 1, 0]>"), ["Conv", "Add", "Conv"]),
        (AFFINE.replace("Conv (a, v)", "Conv <group = 3, pads = [1, 1, 1, 1]> (a, g)"), ["Conv", "Add", "Conv"]),
        (AFFINE.replace("Conv (a, v)", "Conv <group = 3> (a, g)"), ["Conv", "Conv"]),
        (AFFINE.replace("Mul (c, three)", "Sigmoid (c)").replace("y = Conv", "y = Conv <pads = [1, 1, 1, 1]>"),
         ["Conv", "Sigmoid", "Add", "Conv"]),
        (AFFINE.replace("Add (t, sixth)", "Identity (t)"), ["Conv", "Mul", "Identity", "Conv"]),
        (AFFINE.replace("y = Conv (a, v)", "e = Conv (a, v) y = Conv (a, v)").replace("y =", "f =") + " y = Add (e, f)",
         ["Conv", "Mul", "Add", "Conv", "Conv", "Add"]),
        (AFFINE.replace("Conv (a, v)", "ConvTranspose (a, z)"), ["Conv", "Mul", "Add", "ConvTranspose"]),
    ],
)  # fmt: skip
def test_convolutions_take_in_numbers_before_them(text: str, expected: list[str]) -> None:
    proto = network(text)
    small = folded(load(proto))
    assert kinds(small) == expected
    wanted, found = (open_session(one).run(images(0))["y"] for one in (proto, to_proto(small)))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        (SWISH, {"zero": -1.0}),
        (SWISH.replace("Div (m, six)", "Div (m, three)"), {}),
        (SWISH.replace("Div (m, six)", "Div (six, m)"), {}),
        (SWISH.replace("Div (m, six)", "Sub (m, six)"), {}),
        (SWISH.replace("y = ", "e = Mul (s, d) y = ").replace("(d, v)", "(e, v)"), {}),
        (SWISH.replace("y = ", "e = Mul (k, d) y = ").replace("(d, v)", "(e, v)"), {}),
        (SWISH.replace("Add (c, three)", "Add (c, x)").replace("Conv (x, w, b)", "Identity (x)").replace("(d, v)",
         "(d, d)").replace("Conv (d", "Add (d"), {}),
    ],
)  # fmt: skip
def test_what_is_no_hard_sigmoid_stays(text: str, numbers: dict[str, float]) -> None:
    before = load(network(text, **numbers))
    assert kinds(folded(before)) == kinds(before)


def test_outputs_and_what_callers_may_give_stay() -> None:
    shown, given = network(SWISH), network(SWISH)
    shown.graph.output.append(helper.make_tensor_value_info("m", 1, None))
    given.graph.input.append(helper.make_tensor_value_info("six", 1, []))
    for proto in (shown, given):
        assert "HardSigmoid" not in kinds(folded(load(proto)))


def test_in_integers_it_is_spelled_out_and_in_floats_it_is_one() -> None:
    proto = network(SWISH)
    runs = Calibration([images(1), images(2)], [images(3)])
    settings = Settings(target_of("ort-cpu"), reduce_range=True)
    whole, placement, _ = quantize_graph(load(proto), runs, settings)
    assert len(placement.weights) == 2
    assert "HardSigmoid" not in kinds(whole)
    second = next(one.operator for one in placement.weights if one.result == "y")
    mixed, placement, _ = quantize_graph(
        load(proto), runs, Settings(target_of("ort-cpu"), reduce_range=True, costly=frozenset({second}))
    )
    assert [one.reason for one in placement.left if one.node == second] == [COSTLY]
    assert kinds(mixed).count("HardSigmoid") == 1
    assert "Clip" not in kinds(mixed)
