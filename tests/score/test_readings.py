"""What reads units beside operators with stored weights: the other side of a product, and the steps of a recurrence."""

from dataclasses import replace

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper
from onnx_text import model

import onnxprune as op
from onnxprune.channels.groups import Channels
from onnxprune.runtime.session import SessionOptions, open_session
from onnxprune.score.readings import Reading, Runs, readings, readings_by_group

OPTIONS = SessionOptions(threads=1)

ATTENTION = (
    "x:N,12,10 wq=10,16 bq=16 wk=10,16 bk=16",
    "q0 = MatMul(x, wq) q = Add(q0, bq) k0 = MatMul(x, wk) k = Add(k0, bk) "
    "t = Transpose<perm=[0,2,1]>(k) y = MatMul(q, t)",
)
HEADS = (
    "x:N,12,10 wq=10,12 wk=10,12 to={0,0,3,4}",
    "q0 = MatMul(x, wq) k0 = MatMul(x, wk) q1 = Reshape(q0, to) k1 = Reshape(k0, to) "
    "q = Transpose<perm=[0,2,1,3]>(q1) k = Transpose<perm=[0,2,3,1]>(k1) y = MatMul(q, k)",
)
RECURRENT = (
    "x:8,N,6 w0=6,12 w=1,64,12 r=1,64,16 b=1,128 v=16,5 d={1}",
    "h = MatMul(x, w0) a = LSTM<hidden_size=16>(h, w, r, b) s = Squeeze(a, d) y = MatMul(s, v)",
)


def changed(proto: ModelProto, changes: dict[str, tuple[object, float]]) -> ModelProto:
    """Returns the model with parts of tensors multiplied."""
    for tensor in proto.graph.initializer:
        if tensor.name in changes:
            values = numpy_helper.to_array(tensor).copy()
            place, factor = changes[tensor.name]
            values[place] *= np.float32(factor)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return proto


def found(proto: ModelProto, seed: int = 0) -> tuple[Channels, Runs, list[Reading]]:
    shape = [dim.dim_value or 40 for dim in proto.graph.input[0].type.tensor_type.shape.dim]
    rng = np.random.default_rng(seed)
    feeds = [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(2)]
    channels, runs = op.analyze(proto), Runs(feeds, options=OPTIONS)
    return channels, runs, list(readings(channels, runs))


@pytest.mark.parametrize("net", [ATTENTION, HEADS], ids=["one head", "three heads"])
def test_a_reading_knows_what_the_product_loses(net: tuple[str, str]) -> None:
    """Of independent queries and keys: both sides are permuted on their own, so that nothing ties them."""
    proto = model(*net)
    channels, runs, all_readings = found(proto)
    (name,) = {one.group for one in all_readings}
    sides = len(all_readings) // 2
    rng = np.random.default_rng(1)
    lost, energy = np.zeros(channels.group(name).units), 0.0
    for feeds in runs.feeds:
        q, k = open_session(with_outputs(proto, ["q", "k"]), OPTIONS).run(feeds).values()
        k = k if net is HEADS else k.swapaxes(1, 2)
        q, k = q.reshape(40, sides, 12, -1), k.reshape(40, sides, -1, 12)
        k = k[rng.permutation(40)]
        energy += float(np.square(q @ k).mean(axis=(0, 2, 3)).sum()) / 2
        for unit in range(lost.size):
            lost[unit] += np.square(q[..., unit, None] * k[:, :, unit, None]).mean(axis=(0, 2, 3)).sum() / 2
    power = np.zeros(lost.size)
    for one in all_readings:
        power[one.units] += (np.square(one.weights).sum(axis=1) * np.diagonal(one.covariance))[one.rows[:, 0]] / 2
        assert one.energy / 2 == pytest.approx(energy, rel=0.1)
    np.testing.assert_allclose(power, lost, rtol=0.1)


def with_outputs(proto: ModelProto, names: list[str]) -> ModelProto:
    copy = type(proto)()
    copy.CopyFrom(proto)
    del copy.graph.output[:]
    copy.graph.output.extend(type(proto.graph.output[0])(name=name) for name in names)
    for output in copy.graph.output:
        output.type.tensor_type.elem_type = 1
    return copy


@pytest.mark.parametrize("score", ["obs", "activation"])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_query_dimension_without_keys_goes_first(score: str, seed: int) -> None:
    """Its own weights are the largest of all, so that magnitudes keep it."""
    proto = changed(
        model(*ATTENTION, seed=seed),
        {"wq": ((..., 5), 20), "wk": ((..., 5), 1e-3), "bk": (5, 1e-3)},
    )
    channels, runs, _ = found(proto, seed)
    assert int(op.score(channels, score, runs).values["MatMul_0"].argmin()) == 5
    assert int(op.score(channels, "l2").values["MatMul_0"].argmax()) == 5


@pytest.mark.parametrize("seed", [0, 1])
def test_a_dimension_that_another_one_stands_for_goes_first(seed: int) -> None:
    proto = model(*ATTENTION, seed=seed)
    for tensor in proto.graph.initializer:
        values = numpy_helper.to_array(tensor).copy()
        values[..., 3] = values[..., 9] * (2 if tensor.name in ("wq", "bq") else -0.5)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    channels, runs, _ = found(proto, seed)
    order = np.argsort(op.score(channels, "obs", runs).values["MatMul_0"])
    assert set(order[:4].tolist()) & {3, 9}


@pytest.mark.parametrize("score", ["obs", "activation"])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_hidden_unit_that_nothing_reads_goes_first(score: str, seed: int) -> None:
    proto = changed(model(*RECURRENT, seed=seed), {"r": ((..., 7), 1e-3), "v": (7, 1e-3)})
    channels, runs, _ = found(proto, seed)
    assert int(op.score(channels, score, runs).values["LSTM_1"].argmin()) == 7


def test_hidden_units_that_other_hidden_units_alone_read_count() -> None:
    """The output reads half of them; of the others the recurrence reads one more than the rest."""
    proto = changed(model(*RECURRENT), {"v": (slice(8, 16), 0), "r": ((..., slice(9, 16)), 0.01)})
    channels, runs, _ = found(proto)
    values = op.score(channels, "obs", runs).values["LSTM_1"]
    assert int(values[8:].argmax()) == 0


def test_inputs_of_a_recurrence_are_read() -> None:
    proto = changed(model(*RECURRENT), {"w": ((..., 4), 1e-3)})
    channels, runs, every = found(proto)
    assert [one.weights.shape for one in every if one.group == "MatMul_0"] == [(12, 64)]
    assert int(op.score(channels, "obs", runs).values["MatMul_0"].argmin()) == 4


def test_groups_come_whole_and_as_early_as_they_can() -> None:
    chain = (
        "x:N,6 w1=6,8 w2=8,10 w3=10,5 w4=5,3",
        "a = MatMul(x, w1) r = Relu(a) b = MatMul(r, w2) s = Relu(b) c = MatMul(s, w3) y = MatMul(c, w4)",
    )
    channels, runs, single = found(model(*chain))
    names = [group.name for group in channels.prunable]
    steps: list[str | float] = []
    told = replace(runs, progress=lambda _, fraction: steps.append(fraction))
    for name, read in readings_by_group(channels, told):
        steps.append(name)
        assert all(one.group == name for one in read)
    assert len(single) == len(names) == 3
    assert steps == [names[0], 1 / 3, names[1], 2 / 3, names[2], 1.0]
