"""Ranges judged behind functions of one number: what lies where they are flat need not be told apart."""

import numpy as np
import pytest
from onnx_text import model

from onnxprune.model.io import load
from onnxprune.model.sizes import infer_shapes
from onnxprune.quantize.functions import functions_of
from onnxprune.quantize.grids import UNSIGNED, scale_of
from onnxprune.quantize.merge import merged
from onnxprune.quantize.placement import place
from onnxprune.quantize.quantize import Settings, placed, prepared, quantize_graph
from onnxprune.quantize.ranges import Histogram, least_squares, least_squares_behind
from onnxprune.quantize.targets import target_of
from onnxprune.recover.sequential import Calibration

SHAPES = "x:N,8,8,8 w=16,8,3,3 v=8,16,3,3"
SWISH = "a = Conv (x, w) g = Sigmoid (a) r = Mul (a, g) y = Conv (r, v)"
SPELLED = ("x:N,8,8,8 w=16,8,3,3 v=8,16,3,3 three=f#3 zero=f#0 six=f#6",
           "a = Conv (x, w) s = Add (a, three) c = Clip (s, zero, six) m = Mul (a, c) d = Div (m, six) "
           "y = Conv (d, v)")  # fmt: skip
CPU = target_of("ort-cpu")


def found_in(text, shapes=SHAPES):
    graph = load(model(shapes, text))
    whole, placement = placed(prepared(graph, Settings(CPU)), CPU, None)
    return functions_of(whole, placement)


def hard_swish(values):
    return values * np.clip(values + 3, 0, 6) / 6


@pytest.mark.parametrize(("shapes", "text", "right"), [
    (SHAPES, SWISH, lambda values: values / (1 + np.exp(-values))),
    (*SPELLED, hard_swish),
    ("x:N,8,8,8 w=16,8,3,3 v=8,16,3,3", "a = Conv (x, w) r = HardSwish (a) y = Conv (r, v)", hard_swish),
])  # fmt: skip
def test_a_function_is_what_the_graph_computes(shapes, text, right):
    values = np.linspace(-8, 8, 33)
    (made,) = found_in(text, shapes)["a"].results(values)
    assert np.abs(made - right(values)).max() < 1e-5


def test_who_reads_the_tensor_itself_counts_too():
    found = found_in("a = Conv (x, w) g = Sigmoid (a) r = Mul (a, g) s = Concat <axis = 1> (r, a) y = Conv (s, v)",
                     "x:N,8,8,8 w=16,8,3,3 v=8,32,3,3")  # fmt: skip
    values = np.linspace(-4, 4, 9).reshape(3, 3)
    first, second = found["a"].results(values)
    assert np.array_equal(first, values)
    assert np.abs(second - values / (1 + np.exp(-values))).max() < 1e-5


def test_a_product_of_two_tensors_is_no_function_of_one():
    text = "a = Conv (x, w) b = Conv (x, w) m = Mul (a, b) y = Conv (m, v)"
    assert found_in(text) == {}


def test_constants_with_a_number_for_each_channel_end_it():
    found = found_in("a = Conv (x, w) g = Sigmoid (a) k = Mul (a, g) r = Mul (k, c) y = Conv (r, v)",
                     f"{SHAPES} c=16,1,1")  # fmt: skip
    assert found["a"].ends == ("k",)


def test_a_range_need_not_reach_where_a_hard_swish_is_zero():
    histogram = Histogram.empty()
    histogram.add(np.random.default_rng(0).normal(0, 4, 20000).astype(np.float32))
    plain = least_squares(histogram, UNSIGNED)
    behind = least_squares_behind(histogram, UNSIGNED, lambda values: [hard_swish(values)])
    assert plain[0] < -8
    assert -6 < behind[0] <= -2.9
    values = np.random.default_rng(1).normal(0, 4, 20000)
    errors = [np.square(hard_swish(scale_of(*ends, UNSIGNED).rounded(values)) - hard_swish(values)).sum()
              for ends in (plain, behind)]  # fmt: skip
    assert errors[1] < 0.7 * errors[0]


def test_a_bend_that_readers_see_is_not_cut_off():
    """All that is cut has an error of one sign, which the readers add up."""
    histogram = Histogram.empty()
    histogram.add(np.random.default_rng(0).normal(0, 4, 20000).astype(np.float32))
    behind = least_squares_behind(histogram, UNSIGNED, lambda values: [np.where(values < 0, values / 10, values)])
    assert behind[0] < -6


def test_a_quantized_network_has_such_a_range():
    graph = load(model(*SPELLED))
    random = np.random.default_rng(0)
    feeds = [{"x": random.normal(size=(8, 8, 8, 8)).astype(np.float32)} for _ in range(5)]

    def low(method):
        settings = Settings(CPU, method, reduce_range=True, round=False)
        made = quantize_graph(graph, Calibration(feeds[:4], feeds[4:]), settings)[0]
        node = next(node for node in made.nodes if node.name == "a/quantize")
        return -float(node.inputs[1].values) * int(node.inputs[2].values)

    assert low("mse") < 1.5 * low("auto") < 0


def test_tensors_that_share_a_scale_are_left_to_it():
    graph = merged(load(model(SHAPES, "a = Conv (x, w) p = MaxPool <kernel_shape = [2, 2]> (a) g = Sigmoid (p) "
                                      "r = Mul (p, g) y = Conv (r, v)")))  # fmt: skip
    placement = place(graph, infer_shapes(graph), CPU)
    assert placement.scale("p") == placement.scale("a")
    assert "p" not in functions_of(graph, placement)
