"""Trained networks in integers: what they still know, and what the runtime makes of them."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxprune.model.cost import cost
from onnxprune.model.io import load, to_proto
from onnxprune.quantize.quantize import quantize
from onnxprune.runtime.fusion import on_integers
from onnxprune.runtime.session import SessionOptions, open_session

MODELS = Path(__file__).parents[2] / "models"
LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")

# Floors in dB. With 200 samples it was 40.7, 29.1 and 38.9 when this was written.
TRAINED = [
    ("resnet", "ort-cpu", 36, 14, 14), ("mobilenet", "tensorrt", 26, None, 28), ("vit", "ort-cpu", 34, 19, 27),
]  # fmt: skip


def run(proto: onnx.ModelProto, feeds: dict[str, np.ndarray], *, integers: bool = True) -> np.ndarray:
    return next(iter(open_session(proto, SessionOptions(threads=1, integers=integers)).run(feeds).values()))


@pytest.mark.parametrize(("name", "target", "floor", "fused", "products"), TRAINED)
def test_trained_networks(name: str, target: str, floor: float, fused: int | None, products: int) -> None:
    """At most half a point of accuracy goes; ``fused`` of the ``products`` run in integers, attention stays float."""
    before = to_proto(load(MODELS / f"{name}.onnx"))
    given = before.graph.input[0].name
    images = np.load(MODELS / "calibration.npz")["image"][:24]
    made = to_proto(quantize(MODELS / f"{name}.onnx", {given: images}, target))
    onnx.checker.check_model(made, full_check=True)
    held = np.load(MODELS / "validation.npz")
    feeds, labels = {given: held["image"][:1000]}, held["labels"][:1000]
    wanted, found = run(before, feeds), run(made, feeds, integers=target == "ort-cpu")
    assert 10 * np.log10(np.square(wanted).sum() / np.square(found - wanted).sum()) > floor
    assert np.mean(found.argmax(-1) == labels) >= np.mean(wanted.argmax(-1) == labels) - 0.005
    results = {one for node in made.graph.node if node.op_type in LINEAR for one in node.output}
    assert len(results) == products
    if fused is not None:
        assert len(on_integers(made, results, SessionOptions(threads=1))) == fused
    assert cost(load(made)).macs == cost(load(before)).macs
