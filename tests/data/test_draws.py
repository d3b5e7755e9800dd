"""Which samples are drawn, and which are held out."""

from pathlib import Path

import numpy as np
import pytest

import onnxprune.data.files
from onnxprune.data.samples import Samples, load_samples
from onnxprune.errors import CalibrationError
from onnxprune.runtime.session import InputSpec

F32 = np.dtype(np.float32)
SPEC = InputSpec("x", F32, ("N", 2))
ROWS = np.arange(200, dtype=np.float32).reshape(100, 2)
LABELS = np.arange(100)


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, object]:
    """The same hundred samples in every source whose samples can be counted."""
    np.savez(tmp_path / "d.npz", x=ROWS, labels=LABELS)
    np.save(tmp_path / "d.npy", ROWS)
    (tmp_path / "parts").mkdir()
    for number, (start, stop) in enumerate(((0, 7), (7, 50), (50, 51), (51, 100))):
        np.savez_compressed(tmp_path / "parts" / f"{number}.npz", x=ROWS[start:stop], labels=LABELS[start:stop])
    arrays = {"x": ROWS, "labels": LABELS}
    return {
        "npz": tmp_path / "d.npz", "npy": tmp_path / "d.npy", "parts": tmp_path / "parts", "array": ROWS,
        "dict": arrays, "samples": Samples({"x": ROWS}, LABELS),
    }  # fmt: skip


def test_every_source_draws_the_same_samples(sources: dict[str, object]):
    found = {name: load_samples(source, [SPEC], limit=30, seed=5) for name, source in sources.items()}
    for samples in found.values():
        drawn = samples.arrays["x"]
        assert len(np.unique(drawn[:, 0])) == samples.count == 30
        np.testing.assert_array_equal(drawn, found["npz"].arrays["x"])
        np.testing.assert_array_equal(drawn[:, 1], drawn[:, 0] + 1)
        if samples.labels is not None:
            np.testing.assert_array_equal(samples.labels * 2, drawn[:, 0])
    assert found["array"].labels is None
    assert found["parts"].labels is not None


def test_the_draw_follows_the_seed(sources: dict[str, object]):
    rows = {seed: load_samples(sources["parts"], [SPEC], limit=30, seed=seed).arrays["x"] for seed in (0, 1, 2**70)}
    for seed, drawn in rows.items():
        np.testing.assert_array_equal(load_samples(sources["parts"], [SPEC], limit=30, seed=seed).arrays["x"], drawn)
        assert drawn[:, 0].max() > 100, "not the first samples only"
        assert (np.diff(drawn[:, 0]) < 0).any(), "not in the order of the file"
    assert not np.array_equal(rows[0], rows[1])


def test_all_samples_stay_in_their_order(sources: dict[str, object]):
    for source in sources.values():
        for limit in (100, 1024):
            np.testing.assert_array_equal(load_samples(source, [SPEC], limit=limit, seed=3).arrays["x"], ROWS)


@pytest.mark.parametrize("limit", [2, 30, 99, 100])
def test_held_out_samples_are_never_estimated_from(sources: dict[str, object], limit: int):
    for source in sources.values():
        first, held_out = load_samples(source, [SPEC], limit=limit, seed=1).split()
        both = np.concatenate([first.arrays["x"], held_out.arrays["x"]])
        assert len(np.unique(both[:, 0])) == limit == first.count + held_out.count
        assert held_out.count == max(round(limit / 5), 1)


def test_whole_runs_are_drawn():
    spec = InputSpec("x", F32, (4, 2))
    samples = load_samples(ROWS[:22], [spec], limit=11, seed=1)
    assert len(np.unique(samples.arrays["x"][:, 0])) == samples.count == 8
    assert load_samples(ROWS, [spec], limit=1).count == 4
    assert load_samples(Samples({"x": ROWS}, fixed_batch=4), [spec], limit=11).count == 8
    assert load_samples((ROWS[start : start + 3] for start in range(0, 99, 3)), [spec], limit=1).count == 4
    with pytest.raises(CalibrationError, match="do not fill one run"):
        load_samples(ROWS[:3], [spec], limit=2)


def test_constants_are_not_drawn_from():
    specs = [SPEC, InputSpec("state", F32, (2, 1, 3)), InputSpec("rate", np.dtype(np.int64), ())]
    arrays = {"x": ROWS, "state": np.ones((2, 1, 3), np.float32), "rate": np.array(5)}
    samples = load_samples(arrays, specs, limit=2)
    assert samples.count == 2
    assert {name: array.shape for name, array in samples.constants.items()} == {"state": (2, 1, 3), "rate": ()}


def test_archives_without_drawn_samples_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for number in range(50):
        np.savez(tmp_path / f"{number:02}.npz", x=ROWS[2 * number : 2 * number + 2])
    read = []
    inner = np.load

    def load(path: Path, **options: object) -> object:
        read.append(path)
        return inner(path, **options)

    monkeypatch.setattr(onnxprune.data.files.np, "load", load)
    assert load_samples(tmp_path, [SPEC], limit=5).count == 5
    assert 1 < len(read) <= 5


def test_a_damaged_archive_among_others(tmp_path: Path):
    np.savez(tmp_path / "a.npz", x=ROWS)
    np.savez_compressed(tmp_path / "b.npz", x=np.random.default_rng(0).random((50, 2), np.float32))
    content = bytearray((tmp_path / "b.npz").read_bytes())
    content[len(content) // 2] ^= 255
    (tmp_path / "b.npz").write_bytes(content)
    with pytest.raises(CalibrationError, match=r"b\.npz: the file is unreadable or damaged"):
        load_samples(tmp_path, [SPEC])
    (tmp_path / "b.npz").write_bytes(content[:100])
    with pytest.raises(CalibrationError, match=r"b\.npz: the file is unreadable or damaged"):
        load_samples(tmp_path, [SPEC], limit=1)


def test_archives_that_disagree(tmp_path: Path):
    np.savez(tmp_path / "a.npz", x=ROWS)
    np.savez(tmp_path / "b.npz", y=ROWS, z=ROWS)
    with pytest.raises(CalibrationError, match="no array for 'x' and unexpected 'y', 'z'"):
        load_samples(tmp_path, [SPEC])
