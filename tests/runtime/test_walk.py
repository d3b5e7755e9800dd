"""A walk computes what a session computes, piece by piece, and keeps no more than later pieces read."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from onnx_text import model, random_feeds

from onnxprune.model.io import load, write_values
from onnxprune.model.sizes import infer_shapes
from onnxprune.runtime import walk as walk_module
from onnxprune.runtime.session import SessionOptions, open_session
from onnxprune.runtime.walk import Memory, Walk, run_size

RESIDUAL = ("x:N,6 w=6,8 v=8,8 u=8,5", "a = MatMul(x, w) b = Relu(a) c = MatMul(b, v) d = Add(c, b) y = MatMul(d, u)")
OPTIONS = SessionOptions(threads=1)


def walked(limit: int) -> tuple[Walk, list[dict[str, np.ndarray]], object]:
    proto = model(*RESIDUAL)
    feeds = [random_feeds(proto, np.random.default_rng(seed), {"N": 4}) for seed in range(3)]
    return Walk(load(proto), feeds, Memory(limit), OPTIONS), feeds, proto


@pytest.mark.parametrize("limit", [1 << 30, 0])
def test_every_tensor_is_what_a_session_computes(limit: int) -> None:
    walk, feeds, proto = walked(limit)
    for name in ("b", "d", "y"):
        walk.reach([name])
    found = list(walk.values("y"))
    for feed, y in zip(feeds, found, strict=True):
        np.testing.assert_allclose(y, open_session(proto, OPTIONS).run(feed)["y"], rtol=1e-5)


def test_what_nothing_reads_any_more_is_forgotten() -> None:
    walk, _, _ = walked(1 << 30)
    walk.reach(["b"])
    walk.release(["b"])
    walk.reach(["d"])
    with pytest.raises(KeyError):
        list(walk.values("b"))
    walk.release(["d"])
    assert len(list(walk.values("d"))) == 3  # y still reads it


def test_weights_may_change_before_they_are_reached() -> None:
    proto = model(*RESIDUAL)
    graph = load(proto)
    feed = random_feeds(proto, np.random.default_rng(0), {"N": 4})
    walk = Walk(graph, [feed], Memory(1 << 30), OPTIONS)
    walk.reach(["d"])
    last = graph.nodes[-1].inputs[1]
    write_values(last, np.zeros_like(last.values))
    walk.reach(["y"])
    assert not next(walk.values("y")).any()


def test_files_go_when_what_they_hold_is_forgotten(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    walk, _, _ = walked(0)
    walk.reach(["b"])
    assert len(list(tmp_path.rglob("*.npy"))) == 3
    walk.release(["b"])
    walk.reach(["y"])
    walk.release(["y"])
    assert len(list(tmp_path.rglob("*.npy"))) == 3  # y is an output, all else is gone


@pytest.mark.parametrize("samples", [1, 9])
@pytest.mark.parametrize(("limit", "expected"), [(1 << 40, 64), (10 * 4 * 800, 10), (1, 1)])
def test_runs_are_as_large_as_the_largest_activation_lets_them_be(
    samples: int, limit: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walk_module, "LARGEST_TENSOR", limit)
    graph = load(model("x:N,6 w=6,8 v=8,800", "a = MatMul(x, w) b = MatMul(a, v) y = ReduceSum(b)"))
    assert run_size(graph, infer_shapes(graph, {"x": (samples, 6)}), {"x": np.zeros((1, 6), np.float32)}) == expected
