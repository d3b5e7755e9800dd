"""Two models on the same samples: their accuracy, and how closely the outputs agree."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from onnxprune.data.samples import Samples
from onnxprune.errors import CalibrationError, ModelError, UsageError
from onnxprune.runtime.session import Session
from onnxprune.validate import metrics

METRICS = ("top1", "top5", "agreement", "cosine", "mse")
_TOP = {"top1": 1, "top5": 5}

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Fidelity:
    """How closely the candidate follows the base.

    Attributes:
        agreement: Share of equal decisions of the classifying output; None where there is no such output.
        cosine: Mean over samples and outputs.
        sqnr_db: Lowest over outputs; inf where all are equal.
        max_abs: Largest difference over outputs.
    """

    agreement: float | None
    cosine: float
    sqnr_db: float
    max_abs: float


@dataclass(frozen=True)
class Comparison:
    """Metrics of the base (``before``) and of the candidate (``after``), and their likeness."""

    before: dict[str, float | None]
    after: dict[str, float | None]
    fidelity: Fidelity
    samples: int


@dataclass
class _OutputSums:
    """Running sums over the batches of one output."""

    signal: float = 0.0
    noise: float = 0.0
    values: int = 0
    cosines: float = 0.0
    samples: int = 0
    max_abs: float = 0.0

    def add(self, base: np.ndarray, candidate: np.ndarray) -> None:
        signal, noise = metrics.power(base, candidate)
        self.signal += signal
        self.noise += noise
        self.values += base.size
        cosines = metrics.cosines(base, candidate)
        self.cosines += float(cosines.sum())
        self.samples += cosines.size
        self.max_abs = max(self.max_abs, metrics.max_abs(base, candidate))


@dataclass
class _Sums:
    """Running sums over batches: per output, and of decisions."""

    outputs: dict[str, _OutputSums] = field(default_factory=dict)
    agreeing: int = 0
    decisions: int = 0
    hits_base: int = 0
    hits_candidate: int = 0
    samples: int = 0


def compare(
    base: Session,
    candidate: Session,
    samples: Samples,
    *,
    metric: str | None = None,
    batch: int = 32,
    progress: Progress | None = None,
) -> Comparison:
    """Returns metrics of both models on the samples; outputs are streamed, never kept.

    ``metric`` is one of ``METRICS``; by default ``top1`` with labels, else ``agreement`` with the base, or ``cosine``
    where no output classifies. The classifying output is the first float output with at least two axes.

    Raises:
        UsageError: The metric is unknown, or needs labels or a classifying output that are not there.
        ModelError: The outputs differ, or a model does not run on the samples.
        CalibrationError: The labels do not fit the classifying output.
    """
    _check(base, candidate, samples, metric)
    top = metric or ("top1" if samples.labels is not None else None)
    sums = _Sums()
    for (start, stop), feeds in zip(samples.slices(batch), samples.batches(batch), strict=True):
        before = base.run(feeds)
        after = candidate.run(feeds, base.outputs)
        _check_alike(before, after)
        _add_outputs(sums, before, after)
        decision = _classifying(before)
        if decision is not None:
            same = metrics.agreement_hits(before[decision], after[decision])
            sums.agreeing += int(same.sum())
            sums.decisions += same.size
        if top in _TOP and samples.labels is not None:
            name = _required(decision)
            _add_hits(sums, before[name], after[name], samples.labels[start:stop], _TOP[top])
        sums.samples += stop - start
        if progress is not None:
            progress("compare", min(stop / samples.count, 1.0))
    return _comparison(sums, top)


def _check(base: Session, candidate: Session, samples: Samples, metric: str | None) -> None:
    if metric is not None and metric not in METRICS:
        raise UsageError(f"the metric {metric!r} is unknown: choose one of {', '.join(METRICS)}")
    if metric in _TOP and samples.labels is None:
        raise UsageError(f"the metric {metric} needs labels: add 'labels' to the samples, or choose agreement")
    missing = [repr(name) for name in base.outputs if name not in candidate.outputs]
    if missing:
        raise ModelError(f"the candidate lacks the output {', '.join(missing)}: compare models with the same outputs")


def _check_alike(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> None:
    for name, array in before.items():
        kinds = [
            value.shape if isinstance(value, np.ndarray) else type(value).__name__ for value in (array, after[name])
        ]
        if kinds[0] != kinds[1]:
            raise ModelError(
                f"the output {name!r} is {kinds[0]} in the base and {kinds[1]} in the candidate: "
                "compare models with the same outputs"
            )


def _add_outputs(sums: _Sums, before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> None:
    """Adds the float outputs, or, where there are none, the integer ones."""
    numeric = {name: array for name, array in before.items() if isinstance(array, np.ndarray)}
    chosen = [name for name, array in numeric.items() if array.dtype.kind == "f"]
    chosen = chosen or [name for name, array in numeric.items() if array.dtype.kind in "iub"]
    for name in chosen:
        sums.outputs.setdefault(name, _OutputSums()).add(numeric[name], after[name])


def _classifying(outputs: dict[str, np.ndarray]) -> str | None:
    for name, array in outputs.items():
        if isinstance(array, np.ndarray) and array.dtype.kind == "f" and array.ndim >= 2:
            return name
    return None


def _required(decision: str | None) -> str:
    if decision is None:
        raise UsageError("no output of the model has classes to compare with labels: choose the metric cosine or mse")
    return decision


def _add_hits(sums: _Sums, before: np.ndarray, after: np.ndarray, labels: np.ndarray, k: int) -> None:
    classes = before.shape[metrics.class_axis(before.ndim)]
    if labels.size and int(labels.max()) >= classes:
        raise CalibrationError(
            f"a label is {labels.max()} and the model tells {classes} classes apart: number the classes from 0"
        )
    sums.hits_base += int(metrics.topk_hits(before, labels, k).sum())
    sums.hits_candidate += int(metrics.topk_hits(after, labels, k).sum())


def _comparison(sums: _Sums, metric: str | None) -> Comparison:
    fidelity = _fidelity(sums)
    chosen = metric or ("cosine" if fidelity.agreement is None else "agreement")
    before, after = _metric_values(chosen, sums, fidelity)
    return Comparison({chosen: before}, {chosen: after}, fidelity, sums.samples)


def _metric_values(name: str, sums: _Sums, fidelity: Fidelity) -> tuple[float, float]:
    if name in _TOP:
        return sums.hits_base / sums.samples, sums.hits_candidate / sums.samples
    if name == "cosine":
        return 1.0, fidelity.cosine
    if name == "mse":
        values = sum(output.values for output in sums.outputs.values())
        return 0.0, sum(output.noise for output in sums.outputs.values()) / max(values, 1)
    if fidelity.agreement is None:
        raise UsageError("no output of the model has classes to agree on: choose the metric cosine or mse")
    return 1.0, fidelity.agreement


def _fidelity(sums: _Sums) -> Fidelity:
    outputs = list(sums.outputs.values())
    if not outputs or not sums.samples:
        raise ModelError("the model has no numeric output to compare: give it an output of numbers")
    return Fidelity(
        agreement=sums.agreeing / sums.decisions if sums.decisions else None,
        cosine=float(np.mean([output.cosines / max(output.samples, 1) for output in outputs])),
        sqnr_db=min(metrics.decibels(output.signal, output.noise) for output in outputs),
        max_abs=max(output.max_abs for output in outputs),
    )
