"""What ONNX Runtime makes of a quantized model: which of its operators really run on integers."""

import tempfile
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import onnx

from onnxprune.runtime.session import SessionOptions, open_session

INTEGER = frozenset({
    "ConvInteger", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat", "MatMulNBits", "QGemm",
    "QLinearConv", "QLinearMatMul",
})  # fmt: skip
"""Operators that multiply integers, or read integers as weights."""


def on_integers(model: onnx.ModelProto, names: Collection[str], options: SessionOptions | None = None) -> set[str]:
    """Returns which of some operators run on integers, as the runtime has optimized the model.

    Args:
        model: The model; it is not changed.
        names: Results of the operators, by which they are found.
        options: Where it runs.

    Raises:
        ModelError: ONNX Runtime cannot load the model.
    """
    marked = onnx.ModelProto()
    marked.CopyFrom(model)
    marks = {}
    for number, node in enumerate(marked.graph.node):
        wanted = next((name for name in node.output if name in names), None)
        if wanted is not None:
            node.name = f"marked:{number}:"
            marks[node.name] = wanted
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        path = Path(folder) / "optimized.onnx"
        open_session(marked, replace(options or SessionOptions(), optimized=path))
        optimized = onnx.load(path, load_external_data=False)
    found = {node.name for node in optimized.graph.node if node.op_type in INTEGER}
    return {wanted for mark, wanted in marks.items() if any(name.startswith(mark) for name in found)}
