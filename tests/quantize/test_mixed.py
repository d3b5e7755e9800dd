"""Mixed precision: what costs most stays float, and no more than that."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx_text import model

from onnxprune.errors import PlanError
from onnxprune.model.io import Graph, load
from onnxprune.model.sizes import infer_shapes
from onnxprune.quantize.mixed import ranked, within
from onnxprune.quantize.placement import COSTLY
from onnxprune.quantize.quantize import Settings, quantize_graph
from onnxprune.quantize.targets import target_of
from onnxprune.recover.sequential import Calibration
from onnxprune.runtime.session import open_session

FRAGILE = "c2"
"""It reads channels of very different sizes, of which the small ones matter, through one scale; a gate forbids others.

What makes them would round them too, because an integer convolution writes integers: both have to stay float.
"""


@pytest.fixture(scope="module")
def network() -> Graph:
    proto = model(
        "x:N,3,8,8 w=8,3,3,3 u=8,8,3,3 v=8,8,3,3 k=8,4",
        "a = Conv <pads = [1, 1, 1, 1]> (x, w) g = Sigmoid (a) r = Mul (a, g) "
        "c2 = Conv <pads = [1, 1, 1, 1]> (r, u) s = Relu (c2) "
        "c3 = Conv <pads = [1, 1, 1, 1]> (s, v) t = Relu (c3) q = GlobalAveragePool (t) f = Flatten (q) "
        "y = MatMul (f, k)",
    )
    for tensor in proto.graph.initializer:
        values = numpy_helper.to_array(tensor).copy()
        if tensor.name == "w":
            values[0] *= 500
        if tensor.name == "u":
            values[:, 0] /= 5000
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return load(proto)


@pytest.fixture(scope="module")
def runs() -> Calibration:
    random = np.random.default_rng(0)
    feeds = [{"x": random.normal(size=(8, 3, 8, 8)).astype(np.float32)} for _ in range(5)]
    return Calibration(feeds[:4], feeds[4:])


SETTINGS = Settings(target_of("ort-cpu"), "minmax", reduce_range=True)


def loss(network: Graph, runs: Calibration):
    """Returns the error of the outputs on held-out samples, relative to what they are."""
    feeds = runs.held_out[0]
    wanted = open_session(network).run(feeds)["y"]

    def lost(graph: Graph) -> float:
        found = open_session(graph).run(feeds)["y"]
        return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))

    return lost


def operators(network: Graph, runs: Calibration) -> list[str]:
    return [weight.operator for weight in quantize_graph(network, runs, SETTINGS)[1].weights]


def name_of(network: Graph, result: str) -> str:
    return next(str(node.name or node.outputs[0].name) for node in network.nodes if node.outputs[0].name == result)


def test_those_first_that_cost_much_alone(network: Graph, runs: Calibration) -> None:
    names = operators(network, runs)
    order = ranked(network, runs, SETTINGS, names)
    assert sorted(order) == sorted(names)
    assert set(order[:2]) == {name_of(network, "a"), name_of(network, FRAGILE)}


def test_of_equal_costs_those_first_that_compute_little(runs: Calibration) -> None:
    """Two sides of a sum with as much to lose; one takes 25 times as long."""
    network = load(model(
        "x:N,3,8,8 w=6,3,1,1 v=6,3,5,5 one=1",
        "a = Conv (x, w) b = Conv <pads = [2, 2, 2, 2]> (x, v) s = Sigmoid (a) t = Sigmoid (b) y = Add (s, t)",
    ))  # fmt: skip
    order = ranked(network, runs, SETTINGS, operators(network, runs))
    assert order == [name_of(network, "a"), name_of(network, "b")]


def test_as_few_stay_float_as_the_limit_needs(network: Graph, runs: Calibration) -> None:
    lost = loss(network, runs)
    whole = lost(quantize_graph(network, runs, SETTINGS)[0])
    result, placement, _ = within(network, runs, SETTINGS, lost, whole / 3)
    assert lost(result) <= whole / 3
    left = [one.node for one in placement.left if one.reason == COSTLY]
    assert set(left) == {name_of(network, "a"), name_of(network, FRAGILE)}
    assert len(placement.weights) == placement.eligible - 2


def test_nothing_stays_float_where_nothing_is_lost(network: Graph, runs: Calibration) -> None:
    _, placement, _ = within(network, runs, SETTINGS, lambda graph: 0.0, 0.0)
    assert len(placement.weights) == placement.eligible


def test_a_limit_that_nothing_meets(network: Graph, runs: Calibration) -> None:
    with pytest.raises(PlanError, match=r"no operator can be quantized within --max-drop 0\.01"):
        within(network, runs, SETTINGS, lambda graph: 1.0, 0.01)


def test_left_operators_keep_their_weights(network: Graph, runs: Calibration) -> None:
    costly = frozenset({name_of(network, FRAGILE)})
    result, placement, _ = quantize_graph(network, runs, Settings(target_of("ort-cpu"), round=False, costly=costly))
    assert len(placement.weights) == placement.eligible - 1
    node = next(node for node in result.nodes if node.outputs[0].name == FRAGILE)
    before = next(node for node in network.nodes if node.outputs[0].name == FRAGILE)
    assert np.array_equal(node.inputs[1].values, before.inputs[1].values)
    assert infer_shapes(result).types[FRAGILE] == onnx.TensorProto.FLOAT
