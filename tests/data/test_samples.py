from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from onnxprune.data.samples import Samples, batch_size, load_samples
from onnxprune.errors import CalibrationError, UsageError
from onnxprune.runtime.session import InputSpec

F32, F16, I64, I32 = (np.dtype(kind) for kind in (np.float32, np.float16, np.int64, np.int32))
IMAGE = InputSpec("x", F32, ("N", 3, None))
ROWS = np.random.default_rng(0).standard_normal((10, 3, 4)).astype(np.float32)

RECURRENT = (
    InputSpec("state", F32, (2, "N", 5)),
    InputSpec("x", F32, ("N", 8)),
    InputSpec("rate", I64, ()),
)


def recurrent(count: int, batch: int = 1) -> dict[str, np.ndarray]:
    return {
        "x": np.ones((count, 8), np.float32),
        "state": np.zeros((2, batch, 5), np.float32),
        "rate": np.array(16000),
    }


def test_array_dict_iterable_and_samples_give_the_same():
    halves = [{"x": ROWS[:4]}, {"x": ROWS[4:]}]
    for source in (ROWS, {"x": ROWS}, {"any": ROWS}, halves, [ROWS[:4], ROWS[4:]], iter(halves), Samples({"x": ROWS})):
        samples = load_samples(source, [IMAGE])
        np.testing.assert_array_equal(samples.arrays["x"], ROWS)
        assert (samples.count, samples.origin, samples.random, samples.labels) == (10, "array", False, None)


def test_files_give_the_same(tmp_path: Path):
    np.save(tmp_path / "x.npy", ROWS)
    np.savez(tmp_path / "x.npz", x=ROWS, labels=np.arange(10))
    (tmp_path / "parts").mkdir()
    np.savez(tmp_path / "parts" / "b.npz", x=ROWS[6:], labels=np.arange(6, 10).astype(np.uint8))
    np.savez(tmp_path / "parts" / "a.npz", x=ROWS[:6], labels=np.arange(6)[:, None])
    for name, labelled in (("x.npy", False), ("x.npz", True), ("parts", True)):
        samples = load_samples(tmp_path / name, [IMAGE])
        np.testing.assert_array_equal(samples.arrays["x"], ROWS)
        assert samples.origin == str(tmp_path / name)
        assert samples.arrays["x"].flags.writeable, "not a view of the file"
        assert (samples.labels is not None) == labelled
        if samples.labels is not None:
            assert samples.labels.dtype == np.int64
            np.testing.assert_array_equal(samples.labels, np.arange(10))


def test_limit_takes_the_first_samples_of_a_generator_and_stops_reading():
    given = []

    def endless() -> Iterator[dict[str, np.ndarray]]:
        try:
            while True:
                given.append(3)
                yield {"x": ROWS[:3], "labels": np.arange(3)}
        finally:
            given.append("closed")

    samples = load_samples(endless(), [IMAGE], limit=7, seed=1)
    assert samples.count == 7
    np.testing.assert_array_equal(samples.labels, [0, 1, 2, 0, 1, 2, 0])
    assert given == [3, 3, 3, "closed"]
    assert load_samples(endless(), [IMAGE], limit=3).count == 3
    assert given[4:] == [3, "closed"]
    with pytest.raises(UsageError, match="at least 1"):
        load_samples(ROWS, [IMAGE], limit=0)


def test_an_input_may_be_called_labels():
    spec = InputSpec("labels", F32, ("N", 3))
    samples = load_samples({"labels": np.ones((2, 3), np.float32)}, [spec])
    assert samples.labels is None
    assert samples.count == 2


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (np.float64, np.float32),
        (np.float16, np.float32),
        (np.float32, np.float16),
        (np.int32, np.int64),
        (np.uint8, np.int32),
        (np.int64, np.int32),
        (np.bool_, np.int64),
    ],
)
def test_numbers_of_one_kind_are_converted(given: type, wanted: type):
    samples = load_samples(np.ones((2, 3), given), [InputSpec("x", np.dtype(wanted), ("N", 3))])
    assert samples.arrays["x"].dtype == wanted
    np.testing.assert_array_equal(samples.arrays["x"], np.ones((2, 3)))


@pytest.mark.parametrize(
    ("array", "wanted"),
    [
        (np.ones((2, 3), np.uint8), np.float32),
        (np.ones((2, 3), np.int64), np.float32),
        (np.ones((2, 3), np.float32), np.int64),
        (np.full((2, 3), 2**40), np.int32),
        (np.full((2, 3), -1), np.uint8),
        (np.array([["a"]]), np.float32),
    ],
)
def test_other_conversions_are_refused(array: np.ndarray, wanted: type):
    with pytest.raises(CalibrationError, match=r"convert it with \.astype"):
        load_samples(array, [InputSpec("x", np.dtype(wanted), ("N", array.shape[1]))])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad: float):
    rows = ROWS.copy()
    rows[3, 1, 2] = bad
    with pytest.raises(CalibrationError, match="NaN or infinite"):
        load_samples(rows, [IMAGE])


def test_overflow_of_float16_is_refused():
    with pytest.raises(CalibrationError, match="beyond the range of float16"):
        load_samples(np.full((1, 2), 1e6, np.float32), [InputSpec("x", F16, ("N", 2))])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({}, "no array for 'x'.*'x' float32 Nx3x\\?"),
        ({"x": ROWS, "z": ROWS}, "unexpected 'z'"),
        ({"y": ROWS, "z": ROWS}, "no array for 'x' and unexpected 'y', 'z'"),
        (ROWS[0], "add an axis for the samples"),
        (ROWS[None], "expects 3 axes"),
        (ROWS[:, :2], "axis 1 of Nx3x\\? is 3"),
        (ROWS[:0], "zero samples"),
        ([], "there are no samples"),
        ([[1.0, 2.0]], "part 0 of the samples is of the type list"),
        ([ROWS[0]], "add an axis for the samples"),
        (3, "of the type int"),
        ({"x": [[1.0], [1.0, 2.0]]}, "regular arrays"),
        ({"x": np.full((1, 3, 1), None)}, "Python objects"),
        ({"x": ROWS, "labels": np.arange(9)}, "one label per sample"),
        ({"x": ROWS, "labels": np.arange(10) * 1.0}, "integer class numbers"),
        ({"x": ROWS, "labels": np.zeros((10, 2), np.int64)}, "one label per sample"),
        ([{"x": ROWS}, {"x": ROWS[:, :, :2]}], "pad or resize"),
        ([{"x": ROWS, "labels": np.arange(10)}, {"x": ROWS}], "only 1 of 2 parts have 'labels'"),
    ],
)
def test_what_does_not_fit_is_refused(source: object, message: str):
    with pytest.raises(CalibrationError, match=message):
        load_samples(source, [IMAGE])


def test_one_array_does_not_feed_two_inputs():
    with pytest.raises(CalibrationError, match="does not feed a model with 3 inputs"):
        load_samples(ROWS, RECURRENT)


def test_inputs_with_different_counts_are_refused():
    specs = [InputSpec("a", F32, ("N", 2)), InputSpec("b", F32, ("N", 2))]
    with pytest.raises(CalibrationError, match="'a' 3, 'b' 4"):
        load_samples({"a": np.ones((3, 2), np.float32), "b": np.ones((4, 2), np.float32)}, specs)


def test_files_that_are_damaged_missing_or_unknown(tmp_path: Path):
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 nothing")
    (tmp_path / "bad.npy").write_bytes(b"\x93NUMPY")
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "x.csv").write_text("1,2")
    (tmp_path / "folder").mkdir()
    whole = tmp_path / "whole.npz"
    np.savez_compressed(whole, x=ROWS)
    (tmp_path / "cut.npz").write_bytes(whole.read_bytes()[:-40])
    np.save(tmp_path / "pickled.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "pickled.npz", x=np.array([None], dtype=object))
    np.save(tmp_path / "array.npy", ROWS)
    (tmp_path / "array.npz").write_bytes((tmp_path / "array.npy").read_bytes())
    (tmp_path / "archive.npy").write_bytes(whole.read_bytes())
    cases = {
        "bad.npz": "unreadable or damaged",
        "bad.npy": "unreadable or damaged",
        "empty.npz": "unreadable or damaged",
        "cut.npz": "unreadable or damaged",
        "pickled.npy": "pickled objects are never loaded",
        "pickled.npz": "pickled objects are never loaded",
        "missing.npz": "no such file",
        "x.csv": "suffix '.csv'",
        "folder": "has no .npz file and no image",
        "array.npz": "name it .npy",
        "archive.npy": "name it .npz",
    }
    for name, message in cases.items():
        with pytest.raises(CalibrationError, match=message) as caught:
            load_samples(tmp_path / name, [IMAGE])
        assert name in str(caught.value)


def test_constant_inputs_are_fed_unchanged():
    samples = load_samples(recurrent(6), RECURRENT)
    assert set(samples.arrays) == {"x"}
    assert set(samples.constants) == {"state", "rate"}
    assert (samples.count, samples.fixed_batch) == (6, 1)
    feeds = list(samples.batches(32))
    assert len(feeds) == 6
    assert all(feed["x"].shape == (1, 8) and feed["state"].shape == (2, 1, 5) for feed in feeds)
    assert feeds[0]["rate"] == 16000


def test_a_constant_that_has_the_batch_axis_fixes_the_batch():
    samples = load_samples(recurrent(7, batch=3), RECURRENT)
    assert samples.fixed_batch == 3
    assert samples.count == 6
    assert [feed["x"].shape for feed in samples.batches(32)] == [(3, 8), (3, 8)]


def test_a_state_that_has_as_many_layers_as_there_are_samples_stays_constant():
    samples = load_samples(recurrent(2), RECURRENT)
    assert set(samples.arrays) == {"x"}
    assert samples.count == 2


def test_constants_must_not_change_between_parts():
    same = load_samples([recurrent(2), recurrent(3)], RECURRENT)
    assert same.count == 5
    other = recurrent(1) | {"rate": np.array(8000)}
    with pytest.raises(CalibrationError, match="'rate' differs between the parts"):
        load_samples([recurrent(2), other], RECURRENT)


def test_fixed_batch_of_one_runs_one_by_one():
    specs = [InputSpec("x", F32, (1, 2)), InputSpec("state", F32, (2, 1, 3))]
    state = np.zeros((2, 1, 3), np.float32)
    samples = load_samples({"x": np.ones((5, 2), np.float32), "state": state}, specs)
    assert [feed["x"].shape for feed in samples.batches(32)] == [(1, 2)] * 5
    one = load_samples({"x": np.ones((1, 2), np.float32), "state": state}, specs)
    assert one.count == 1
    assert next(one.batches(8))["state"].shape == (2, 1, 3)


def test_fixed_batch_runs_whole_batches():
    spec = InputSpec("x", F32, (4, 2))
    samples = load_samples(np.arange(22, dtype=np.float32).reshape(11, 2), [spec])
    assert samples.count == 8
    assert [feed["x"].shape for feed in samples.batches(1)] == [(4, 2), (4, 2)]
    first, held_out = samples.split()
    assert (first.count, held_out.count) == (4, 4)
    assert samples.take(5).count == 4
    with pytest.raises(CalibrationError, match="do not fill one run"):
        load_samples(np.ones((3, 2), np.float32), [spec])


def test_split_holds_the_last_fifth_out():
    samples = Samples({"x": ROWS}, labels=np.arange(10))
    first, held_out = samples.split()
    np.testing.assert_array_equal(first.arrays["x"], ROWS[:8])
    np.testing.assert_array_equal(held_out.arrays["x"], ROWS[8:])
    np.testing.assert_array_equal(held_out.labels, [8, 9])
    two = Samples({"x": ROWS[:2]}).split()
    assert (two[0].count, two[1].count) == (1, 1)
    one = Samples({"x": ROWS[:1]}).split()
    assert (one[0].count, one[1].count) == (1, 1)


def test_batches_keep_order_and_the_rest():
    feeds = list(Samples({"x": ROWS}).batches(4))
    assert [len(feed["x"]) for feed in feeds] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate([feed["x"] for feed in feeds]), ROWS)


def test_constants_alone_make_one_sample():
    samples = load_samples({"rate": np.array(1)}, [InputSpec("rate", I32, ())])
    assert samples.count == 1
    assert [feed["rate"].item() for feed in samples.batches(8)] == [1]


def test_batch_size_is_what_the_model_fixes():
    assert batch_size([IMAGE]) == 32
    assert batch_size([IMAGE], preferred=8) == 8
    assert batch_size([InputSpec("x", F32, (4, 2)), InputSpec("rate", I64, ())]) == 4
    assert batch_size([InputSpec("state", F32, (2, 1, 3)), InputSpec("x", F32, (1, 2))]) == 1
    assert batch_size(RECURRENT) == 32
