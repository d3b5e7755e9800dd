"""One pass over samples: the same readings however it is cut, and no more at once than is allowed."""

import numpy as np
import pytest
from onnx import numpy_helper, parser

from onnxprune.errors import CalibrationError
from onnxprune.model.io import load
from onnxprune.model.sizes import infer_shapes
from onnxprune.quantize import calibrate
from onnxprune.quantize.calibrate import ROWS, choose_ranges, read
from onnxprune.quantize.placement import place
from onnxprune.quantize.ranges import METHODS
from onnxprune.quantize.targets import TARGETS
from onnxprune.runtime.session import SessionOptions

OPTIONS = SessionOptions(threads=1)
LARGE = 1 << 30
TWO = "c = Conv <pads = [1, 1, 1, 1]> (x, w) r = Relu (c) y = Conv <pads = [1, 1, 1, 1]> (r, w)"


def graph_of(text=TWO, shape="N, 16, 6, 6", more=""):
    model = parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> agraph (float[{shape}] x{more}) => (float y) {{ {text} }}'
    )
    weights = np.random.default_rng(0).normal(size=(16, 16, 3, 3)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    return load(model)


def feeds_of(*counts, seed=0):
    random = np.random.default_rng(seed)
    return [{"x": random.normal(size=(count, 16, 6, 6)).astype(np.float32)} for count in counts]


def placement_of(graph, target="ort-cpu"):
    return place(graph, infer_shapes(graph), TARGETS[target])


def same(left, right):
    assert left.histograms.keys() == right.histograms.keys()
    for name, one in left.histograms.items():
        np.testing.assert_array_equal(one.counts, right.histograms[name].counts)
        assert (one.low, one.high) == pytest.approx((right.histograms[name].low, right.histograms[name].high), 1e-6)


def sessions(monkeypatch):
    """What is asked of every session: how many bytes each of its runs gives back."""
    found, opened = [], calibrate.open_session

    def watched(graph, options):
        session = opened(graph, options)
        runs = []
        found.append(runs)

        class Watched:
            def run(self, feed, names):
                values = session.run(feed, names)
                runs.append(sum(value.nbytes for value in values.values()))
                return values

        return Watched()

    monkeypatch.setattr(calibrate, "open_session", watched)
    return found


def test_runs_are_cut_where_too_much_would_come_back(monkeypatch):
    graph, feeds = graph_of(), feeds_of(7, 3)
    placement = placement_of(graph)
    whole = read(graph, placement, feeds, LARGE, OPTIONS)
    found = sessions(monkeypatch)
    each = 4 * 16 * 36 * len(placement.tensors)
    monkeypatch.setattr(calibrate, "AT_ONCE", 2 * each)
    same(read(graph, placement, feeds, LARGE, OPTIONS), whole)
    assert len(found) == 1
    assert len(found[0]) == 4 + 2
    assert max(found[0]) <= 2 * each


def test_the_memory_does_not_grow_with_the_samples(monkeypatch):
    graph = graph_of()
    placement = placement_of(graph)
    monkeypatch.setattr(calibrate, "AT_ONCE", 100_000)
    most = []
    for count in (8, 64):
        found = sessions(monkeypatch)
        readings = read(graph, placement, feeds_of(count), LARGE, OPTIONS)
        kept = sum(part.nbytes for parts in readings.rows.values() for part in parts)
        kept_rows = {sum(part.shape[1] for part in parts) for parts in readings.rows.values()}
        most.append((max(found[0]), kept))
        monkeypatch.undo()
        monkeypatch.setattr(calibrate, "AT_ONCE", 100_000)
        assert kept_rows == {min(ROWS, count * 36)}
    assert most[1][0] <= 100_000
    assert most[1][1] <= ROWS * 16 * 9 * 4 * 2


def test_tensors_that_do_not_fit_wait_for_another_pass(monkeypatch):
    graph, feeds = graph_of(), feeds_of(2, 2)
    placement = placement_of(graph)
    whole = read(graph, placement, feeds, LARGE, OPTIONS)
    found, heard = sessions(monkeypatch), []
    few = read(graph, placement, feeds, 4 * 16 * 36, OPTIONS, lambda stage, done: heard.append(done))
    same(few, whole)
    assert len(found) == len(placement.tensors) - 1, "the input is not asked for"
    assert max(map(max, found)) == 4 * 16 * 36
    assert heard == sorted(heard)
    assert heard[-1] == 1.0


@pytest.mark.parametrize("runs", [1, 3, ROWS, ROWS + 200])
def test_rows_of_any_number_of_runs_are_as_many(runs):
    graph = graph_of()
    found = read(graph, placement_of(graph), feeds_of(*([20] if runs < 10 else [1]) * runs), LARGE, OPTIONS)
    for parts in found.rows.values():
        assert sum(part.shape[1] for part in parts) == ROWS


def test_a_number_of_samples_that_the_model_fixes_is_not_cut(monkeypatch):
    monkeypatch.setattr(calibrate, "AT_ONCE", 1)
    for graph, feeds in (
        (graph_of(shape="4, 16, 6, 6"), feeds_of(4, 4)),
        (
            graph_of(TWO.replace("y =", "v =") + " y = Add (v, s)", more=", float[2, 1, 1, 1, 1] s"),
            [{**feed, "s": np.ones((2, 1, 1, 1, 1), np.float32)} for feed in feeds_of(3)],
        ),
    ):
        found = sessions(monkeypatch)
        read(graph, placement_of(graph), feeds, LARGE, OPTIONS)
        assert [len(runs) for runs in found] == [len(feeds)]
        monkeypatch.undo()
        monkeypatch.setattr(calibrate, "AT_ONCE", 1)


def test_inputs_without_axes_are_fed_with_every_run(monkeypatch):
    monkeypatch.setattr(calibrate, "AT_ONCE", 1)
    graph = graph_of(TWO.replace("y =", "v =") + " y = Mul (v, s)", more=", float s")
    feeds = [{**feed, "s": np.array(2, np.float32)} for feed in feeds_of(3)]
    found = sessions(monkeypatch)
    read(graph, placement_of(graph), feeds, LARGE, OPTIONS)
    assert len(found[0]) == 3


def test_where_only_an_input_is_rounded_nothing_needs_to_run():
    graph = graph_of("y = Conv (x, w)")
    feeds = feeds_of(4)
    placement = placement_of(graph, "tensorrt")
    assert placement.tensors == ["x"]
    found = read(graph, placement, feeds, LARGE, OPTIONS)
    grid = TARGETS["tensorrt"].activations
    assert choose_ranges(found, placement, grid, "minmax") == {"x": (feeds[0]["x"].min(), feeds[0]["x"].max())}


def test_without_memory_for_rows_the_ranges_come_from_histograms_alone():
    graph = graph_of()
    placement = placement_of(graph)
    found = read(graph, placement, feeds_of(4), 0, OPTIONS)
    assert found.rows == {}
    grid = TARGETS["ort-cpu"].activations
    chosen = choose_ranges(found, placement, grid, "auto")
    assert chosen == {name: METHODS["mse"](one, grid) for name, one in found.histograms.items()}


def test_a_tensor_that_no_sample_reaches_is_named():
    graph = graph_of()
    feeds = [{"x": np.full((1, 16, 6, 6), np.nan, np.float32)}]
    placement = placement_of(graph)
    found = read(graph, placement, feeds, LARGE, OPTIONS)
    with pytest.raises(CalibrationError, match="no sample reaches the tensor"):
        choose_ranges(found, placement, TARGETS["ort-cpu"].activations, "minmax")
