"""Makes trained ONNX networks smaller and faster, on the ONNX file itself, and proves what that cost and gained.

One call does everything::

    result = onnxprune.slim("model.onnx", channels=0.5, data="calibration.npz")
    result.save("model.slim.onnx")

and the steps are here one by one: load, analyze, score, plan, apply, prove, recover,
quantize, validate, save.
"""

import importlib
from typing import TYPE_CHECKING, Any

# Rooms that share their name with a public function are loaded before it, or loading them later would hide it.
import onnxprune.plan
import onnxprune.quantize
import onnxprune.recover
import onnxprune.score
import onnxprune.slim
import onnxprune.validate  # noqa: F401

del plan, quantize, recover, score, slim, validate  # noqa: F821

if TYPE_CHECKING:
    from onnxprune.channels.groups import analyze
    from onnxprune.commands.bench import bench
    from onnxprune.commands.check import check
    from onnxprune.commands.compare import compare, validate
    from onnxprune.commands.inspect import inspect
    from onnxprune.model.io import load, save, to_proto
    from onnxprune.plan.plan import Plan, plan
    from onnxprune.quantize.quantize import quantize
    from onnxprune.recover.recover import recover
    from onnxprune.score.scores import score
    from onnxprune.slim import Recipe, Result, slim
    from onnxprune.surgery.apply import apply
    from onnxprune.validate.proof import prove

_HOMES = {
    "Plan": "plan.plan", "Recipe": "slim", "Result": "slim", "analyze": "channels.groups", "apply": "surgery.apply",
    "bench": "commands.bench", "check": "commands.check", "compare": "commands.compare", "inspect": "commands.inspect",
    "load": "model.io", "plan": "plan.plan", "prove": "validate.proof", "quantize": "quantize.quantize",
    "recover": "recover.recover",
    "save": "model.io", "score": "score.scores", "slim": "slim", "to_proto": "model.io",
    "validate": "commands.compare",
}  # fmt: skip

__all__ = [
    "Plan", "Recipe", "Result", "analyze", "apply", "bench", "check", "compare", "inspect", "load", "plan", "prove",
    "quantize", "recover", "save", "score", "slim", "to_proto", "validate",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that ``import onnxprune`` costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'onnxprune' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"onnxprune.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
