"""Repair of LSTM, GRU and RNN: rows of a step, hidden units that are made up for, and what is left alone."""

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper
from onnx_text import model

import onnxprune as op
from onnxprune.model.graph import stored_tensors
from onnxprune.model.io import Graph, load, read_values
from onnxprune.model.linear import Holders
from onnxprune.model.recurrent import recurrent_nodes
from onnxprune.recover.least_squares import shift, solve, statistics
from onnxprune.recover.recurrent import Passage, Task, fit
from onnxprune.recover.sequential import Calibration, Repaired, Settings, repair
from onnxprune.runtime.session import SessionOptions, open_session
from onnxprune.score.readings import Runs
from onnxprune.surgery.gone import Gone
from onnxprune.surgery.slice import slice_channels

OPTIONS = SessionOptions(threads=1)
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def network(
    kind: str, direction: str = "forward", more: str = "", inputs: str = "x, w, r, b", seed: int = 0
) -> ModelProto:
    """Returns an operator with 16 hidden units, and a linear one that reads the states of all steps."""
    sides, gates = 2 if direction == "bidirectional" else 1, GATES[kind]
    tensors = (
        f"x:10,N,6 w={sides},{gates * 16},6 r={sides},{gates * 16},16 b={sides},{gates * 32} v={sides * 16},5 "
        f"to={{0,0,{sides * 16}}}" + (" n:hN" if "n" in inputs else "") + (f" i={sides},4,16" if " i" in inputs else "")
    )
    text = (
        f'a = {kind}<hidden_size=16, direction="{direction}"{more}>({inputs}) t = Transpose<perm=[0,2,1,3]>(a) '
        "s = Reshape(t, to) y = MatMul(s, v)"
    )
    proto = model(tensors, text, seed=seed)
    for tensor in proto.graph.initializer:
        if tensor.name in "wrb":
            values = numpy_helper.to_array(tensor) * np.float32(0.3)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return proto


def runs(seed: int, count: int = 32) -> dict[str, np.ndarray]:
    """Returns sequences that drift slowly in 3 of 6 dimensions."""
    rng = np.random.default_rng(seed)
    steps = rng.standard_normal((10, count, 3)) @ np.random.default_rng(0).standard_normal((3, 6))
    noise = 0.1 * rng.standard_normal((10, count, 6))
    return {"x": (0.3 * np.cumsum(steps, axis=0) + noise).astype(np.float32)}


def repaired(proto: ModelProto, method: object = solve, units: int = 8) -> tuple[Graph, Graph, list[Repaired]]:
    """Returns the network with fewer hidden units, and the same repaired."""
    channels = op.analyze(proto)
    calibration = Calibration([runs(seed) for seed in range(3)], [runs(3)])
    scores = op.score(channels, "obs", Runs(calibration.fitted, options=OPTIONS)).values[proto.graph.node[0].name]
    removals = {proto.graph.node[0].name: tuple(sorted(np.argsort(scores)[:units].tolist()))}
    small = slice_channels(channels, removals)
    settings = Settings(method, options=OPTIONS)
    return small, *repair(small, channels.graph, Gone(channels, removals), calibration, settings)


def stored(graph: Graph) -> dict[str, np.ndarray]:
    return {name: read_values(tensor) for name, tensor in stored_tensors(graph)}


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("layout", [0, 1])
def test_rows_make_the_states(direction: str, layout: int) -> None:
    proto = network("RNN", direction)
    del proto.graph.node[1:], proto.graph.output[:]
    proto.graph.output.append(onnx.helper.make_tensor_value_info("a", 1, None))
    feeds = runs(0, 4)
    data, result = feeds["x"], open_session(proto, OPTIONS).run(feeds)["a"]
    graph = load(proto)
    (one,) = recurrent_nodes(graph, Holders(graph))
    given = (data, result) if not layout else (data.swapaxes(0, 1), result.transpose(2, 0, 1, 3))
    one.node.attrs["layout"] = layout
    inputs, before = one.rows(*given)
    weights, recurrence, bias = one.weights()
    made = np.tanh(inputs @ weights.swapaxes(1, 2) + before @ recurrence.swapaxes(1, 2) + bias.sum(axis=0)[:, None])
    backward = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[direction]
    for side, turned in enumerate(backward):
        own = result[::-1, side] if turned else result[:, side]
        np.testing.assert_allclose(made[side], own.reshape(-1, 16), atol=1e-5)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(("kind", "more"), [("LSTM", ""), ("GRU", ""), ("GRU", ", linear_before_reset=1"), ("RNN", "")])
def test_fewer_hidden_units_follow_the_original(
    kind: str, more: str, direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The states that stay come nearer to what they were, and what reads them gains more than from its own repair."""
    proto = network(kind, direction, more)
    small, better, found = repaired(proto)
    monkeypatch.setattr("onnxprune.model.recurrent.GATES", {})
    _, plain, _ = repaired(proto)
    feeds = runs(9, 64)
    expected, *others = (open_session(graph, OPTIONS).run(feeds)["y"] for graph in (proto, small, plain, better))
    errors = [float(np.square(other - expected).mean() / expected.var()) for other in others]
    assert found[0].after < 0.5 * found[0].before
    assert errors[2] < 0.9 * errors[1]
    assert errors[1] < errors[0]


@pytest.mark.parametrize("method", [statistics, shift])
def test_other_methods_never_lose(method: object) -> None:
    _, _, found = repaired(network("LSTM"), method)
    assert found[0].node == "LSTM_0"
    assert found[0].after <= found[0].before


def test_without_a_bias_nothing_is_shifted() -> None:
    small, better, found = repaired(network("LSTM", inputs="x, w, r"))
    assert found[0].after < 0.5 * found[0].before
    assert stored(better).keys() == stored(small).keys()


def test_weights_that_are_zero_stay_zero() -> None:
    proto = network("GRU")
    for tensor in proto.graph.initializer:
        if tensor.name in ("w", "r"):
            values = numpy_helper.to_array(tensor).copy()
            values[..., 1::2] = 0
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    small, better, found = repaired(proto)
    assert found[0].kept
    for name in ("w", "r"):
        np.testing.assert_array_equal(stored(better)[name] == 0, stored(small)[name] == 0)


def test_steps_from_a_given_state_are_left_out() -> None:
    graph = load(network("LSTM", "bidirectional", inputs="x, w, r, b, , i"))
    (one,) = recurrent_nodes(graph, Holders(graph))
    result = np.random.default_rng(0).standard_normal((10, 2, 4, 16))
    inputs, before = one.rows(np.arange(240.0).reshape(10, 4, 6), result)
    assert before.shape == (2, 36, 16)
    np.testing.assert_array_equal(before[0, :4], result[0, 0])
    np.testing.assert_array_equal(before[1, :4], result[9, 1])
    np.testing.assert_array_equal(inputs[1, 0], np.arange(240.0).reshape(10, 4, 6)[8, 0])


@pytest.mark.parametrize("case", ["lengths", "last state alone", "weights that another node reads"])
def test_what_cannot_be_seen_stays(case: str) -> None:
    proto = network("LSTM", inputs="x, w, r, b" + (", n" if case == "lengths" else ""))
    node = proto.graph.node[0]
    if case == "last state alone":
        node.output[:] = ["", "a"]
    elif case == "weights that another node reads":
        proto.graph.node.append(type(node)(op_type="Identity", input=["r"], output=["other"]))
    graph = load(proto)
    assert list(recurrent_nodes(graph, Holders(graph))) == []


def test_the_fit_is_that_of_least_squares() -> None:
    """Inputs, the states before and a shift, stacked; the target is what the gates that stay add up."""
    proto = network("LSTM")
    channels = op.analyze(proto)
    removals = {"LSTM_0": tuple(range(8))}
    small = slice_channels(channels, removals)
    (old,) = recurrent_nodes(channels.graph, Holders(channels.graph))
    (new,) = recurrent_nodes(small, Holders(small))
    rng = np.random.default_rng(0)
    data, states = rng.standard_normal((1, 10, 20, 6)), rng.standard_normal((1, 10, 1, 20, 16))
    passages = [Passage(data[0], data[0], states[0], states[0][..., 8:])] * 2
    rows = np.concatenate([np.arange(16 * gate + 8, 16 * gate + 16) for gate in range(4)])
    task = Task(new, old, rows, passages, 1, list)
    own = [passages[0].wanted + 0.1 * rng.standard_normal(passages[0].wanted.shape)] * 2
    weights, recurrence, bias = fit(task, own, lambda *given: solve(*given, strengths=[1e-12]), rng)

    before, after = old.rows(data[0], states[0]), new.rows(data[0], own[0])
    whole = [one[0] for one in (*old.weights()[:2], *old.weights()[2])]
    target = (before[0][0] @ whole[0].T + before[1][0] @ whole[1].T + whole[2] + whole[3])[:, rows]
    stacked = np.concatenate([after[0][0], after[1][0], np.ones((200, 1))], axis=1)
    expected = np.linalg.lstsq(stacked, target, rcond=None)[0]
    np.testing.assert_allclose(weights[0].T, expected[:6], atol=1e-6)
    np.testing.assert_allclose(recurrence[0].T, expected[6:14], atol=1e-6)
    np.testing.assert_allclose(bias.sum(axis=0)[0], expected[14], atol=1e-6)
