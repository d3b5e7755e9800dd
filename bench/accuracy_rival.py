"""The nearest tool, onnxsim (``onnxsim.pruning``), where it is installed: ``pip install --no-deps onnxsim``."""

import functools
import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace

import onnx
from accuracy_sheet import Outcome, Sizes, Subject, verdict

from onnxprune.errors import OnnxPruneError

BATCH = 64

Prune = Callable[[onnx.ModelProto, float], onnx.ModelProto]


@dataclass(frozen=True)
class Rival:
    """The better of what the tool makes by magnitude and by Wanda, or why there is nothing."""

    best: Outcome | None
    note: str

    @property
    def accuracy(self) -> str:
        """Accuracy and what is left of the multiply-accumulates."""
        return f"{self.best.accuracy:.1f} at {self.best.macs:.3f}" if self.best else self.note

    @property
    def alike(self) -> str:
        """Agreement and cosine, and what is left of the multiply-accumulates."""
        return f"{self.best.alike} at {self.best.macs:.3f}" if self.best else self.note


def version() -> str:
    """Returns the version that is installed, in words."""
    if importlib.util.find_spec("onnxsim") is None:
        return "onnxsim is not installed"
    return f"onnxsim {importlib.metadata.version('onnxsim')}"


def rival(subject: Subject, share: float, sizes: Sizes) -> Rival:
    """Returns the best that onnxsim leaves of a network at a share of its multiply-accumulates or above.

    The pruned fraction is the largest hundredth that does not go below the share: what this package is measured at is
    never more than what onnxsim may keep. Wanda reads the calibration draw of seed 0.
    """
    if importlib.util.find_spec("onnxsim") is None:
        return Rival(None, "not installed")
    try:
        return _best(subject, share, sizes)
    except (OnnxPruneError, RuntimeError, ValueError, KeyError, IndexError, TypeError) as error:
        return Rival(None, f"fails ({type(error).__name__})")


def _best(subject: Subject, share: float, sizes: Sizes) -> Rival:
    from onnxsim.pruning import apply_structured_pruning, apply_structured_wanda_pruning

    inputs = subject.inputs(subject.recipe(sizes))
    feeds = [] if inputs.given is None else list(inputs.given.batches(BATCH))
    ways: dict[str, Prune] = {
        "l2": lambda model, sparsity: apply_structured_pruning(model, sparsity=sparsity),
        "wanda": lambda model, sparsity: apply_structured_wanda_pruning(model, feeds, sparsity=sparsity),
    }

    @functools.cache
    def left(percent: int) -> float:
        return subject.macs(ways["l2"](subject.proto(), percent / 100), inputs)

    low, high = 0, 99
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if left(middle) >= share else (low, middle - 1)
    if left(low) > 1 - 1e-9:
        return Rival(None, "removes nothing")
    found = []
    for name, way in ways.items():
        model = way(subject.proto(), low / 100)
        found.append(replace(verdict(subject, model, subject.macs(model, inputs)), allocation=name))
    return Rival(max(found, key=lambda one: (one.accuracy, one.cosine)), "")
