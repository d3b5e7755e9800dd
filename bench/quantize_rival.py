"""The quantizer of ONNX Runtime at its best: uint8 activations, a scale for each channel, lists of operators tried."""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quant_pre_process, quantize_static

from onnxprune.model.io import load, save
from onnxprune.quantize.merge import merged
from onnxprune.quantize.opset import raised
from onnxprune.runtime.arithmetic import saturates

OPSET = 17
LISTS: dict[str, list[str] | None] = {"all operators": None, "with weights": ["Conv", "Gemm", "MatMul"]}

Feeds = dict[str, np.ndarray]


class Reader(CalibrationDataReader):
    """Feeds for calibration, one after the other."""

    def __init__(self, feeds: Sequence[Feeds]) -> None:
        self._left = iter(feeds)

    def get_next(self) -> Feeds | None:
        return next(self._left, None)


def rivals(path: Path, feeds: Sequence[Feeds]) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Yields what the quantizer makes of a model; weights in Constant nodes and old opsets are put right before."""
    logging.getLogger().setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        plain, ready, out = (Path(folder) / name for name in ("plain.onnx", "ready.onnx", "out.onnx"))
        save(merged(raised(load(path), OPSET)), plain)
        try:
            quant_pre_process(str(plain), str(ready), skip_symbolic_shape=True)
        except Exception:  # of any kind: its shape inference is not for every model
            ready = plain
        for name, operators in LISTS.items():
            for reduced in (False, True) if saturates() else (False,):
                quantize_static(
                    str(ready), str(out), Reader(feeds), quant_format=QuantFormat.QDQ, per_channel=True,
                    activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, reduce_range=reduced,
                    op_types_to_quantize=operators,
                )  # fmt: skip
                yield f"{name}, {7 if reduced else 8} bits", onnx.load(out)
