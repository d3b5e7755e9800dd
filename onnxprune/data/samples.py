"""Samples: arrays whose first axis counts samples, read from files, arrays or iterables and checked against a model.

An input is *constant* (fed unchanged with every batch) where the model gives it no axes, or where its array has exactly
the shape that the model fixes while other inputs bring samples of their own: a sample rate, an initial state.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from onnxprune.data.checks import Arrangement, arrange, checked_labels, merge, single_input_name
from onnxprune.data.files import read_source
from onnxprune.errors import CalibrationError, UsageError

if TYPE_CHECKING:
    from onnxprune.runtime.session import InputSpec

DataSource: TypeAlias = (
    "str | os.PathLike[str] | np.ndarray | Mapping[str, np.ndarray] | Iterable[Mapping[str, np.ndarray]] | Samples"
)


@dataclass(frozen=True)
class Samples:
    """Inputs of a model, first axis = samples.

    Attributes:
        arrays: The inputs that differ between samples; all have the same first axis.
        labels: One integer class per sample, or None.
        origin: ``"random"``, ``"array"``, or the path that was read.
        seed: The seed of random samples.
        constants: The inputs that are fed unchanged with every batch.
        fixed_batch: The number of samples that the model takes in one run, or None where it is free.
    """

    arrays: dict[str, np.ndarray]
    labels: np.ndarray | None = None
    origin: str = "array"
    seed: int | None = None
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    fixed_batch: int | None = None

    @property
    def count(self) -> int:
        """The number of samples."""
        return next((len(array) for array in self.arrays.values()), 1)

    @property
    def random(self) -> bool:
        """Whether the samples were drawn, not measured."""
        return self.origin == "random"

    def take(self, count: int) -> "Samples":
        """Returns the first samples: at most ``count``, in whole runs of a fixed batch, at least one run."""
        return self._part(0, self._whole_runs(min(count, self.count)))

    def split(self, fraction: float = 0.2) -> tuple["Samples", "Samples"]:
        """Returns the samples to estimate from and the last ``fraction``, held out from every estimate.

        Both are all the samples where there is only one run of the model.
        """
        run = self.fixed_batch or 1
        if not self.arrays or self.count < 2 * run:
            return self, self
        held_out = min(self._whole_runs(round(self.count * fraction)), self.count - run)
        return self._part(0, self.count - held_out), self._part(self.count - held_out, self.count)

    def batches(self, size: int) -> Iterator[dict[str, np.ndarray]]:
        """Yields the feeds of one run after the other, constants included.

        ``size`` gives way to ``fixed_batch``; then samples that fill no run are left out.
        """
        for start, stop in self.slices(size):
            yield {name: array[start:stop] for name, array in self.arrays.items()} | self.constants

    def slices(self, size: int) -> Iterator[tuple[int, int]]:
        """Yields the first and the past-the-last sample of every batch that ``batches`` yields."""
        step = self.fixed_batch or max(size, 1)
        last = self.count - self.count % step if self.fixed_batch else self.count
        for start in range(0, last, step):
            yield start, min(start + step, last)

    def _whole_runs(self, count: int) -> int:
        run = self.fixed_batch or 1
        return max(count // run, 1) * run

    def _part(self, start: int, stop: int) -> "Samples":
        arrays = {name: array[start:stop] for name, array in self.arrays.items()}
        return replace(self, arrays=arrays, labels=None if self.labels is None else self.labels[start:stop])


def load_samples(source: DataSource, specs: Sequence["InputSpec"], *, limit: int = 1024) -> Samples:
    """Returns the first ``limit`` samples of a source, checked against the inputs of a model.

    Sources are an ``.npz`` file (keys = input names, optional ``labels``), a directory of them, an ``.npy`` file or an
    array for a model with one input, a dict of arrays, an iterable of such dicts (joined along the first axis), or
    ``Samples``. Numbers are converted only where no value changes its kind: float to float, integer to integer.

    Raises:
        CalibrationError: The source cannot be read or does not fit the model.
        UsageError: The limit is not positive.
    """
    if limit < 1:
        raise UsageError(f"the number of samples is {limit}, but must be at least 1")
    if isinstance(source, Samples):
        return source.take(limit)
    reserved = {spec.name for spec in specs}
    parts: list[Arrangement] = []
    labels: list[np.ndarray] = []
    total = 0
    origin, chunks = read_source(source)
    for chunk in chunks:
        arrays = _single(chunk, specs, limit) if isinstance(chunk, np.ndarray) else dict(chunk)
        marks = None if "labels" in reserved else arrays.pop("labels", None)
        part = arrange(arrays, specs, origin)
        parts.append(part)
        if marks is not None:
            labels.append(checked_labels(marks, part.count, origin))
        total += part.count
        if total >= limit:
            break
    return _joined(merge(parts, origin), labels, len(parts), origin).take(limit)


def batch_size(specs: Sequence["InputSpec"], preferred: int = 32) -> int:
    """Returns how many samples one run takes: the size that the model fixes, else ``preferred``."""
    first = [spec.shape[0] for spec in specs if spec.shape]
    fixed = [size for size in first if isinstance(size, int)]
    if not fixed or len(fixed) < len(first):
        return preferred
    return 1 if 1 in fixed else fixed[0]


def _single(array: np.ndarray, specs: Sequence["InputSpec"], limit: int) -> dict[str, np.ndarray]:
    """Returns the only input, cut to the limit before anything reads a large mapped file."""
    name = single_input_name(specs)
    run = batch_size(specs, preferred=1)
    return {name: np.array(array[: max(limit, run)]) if array.ndim else array}


def _joined(whole: Arrangement, labels: list[np.ndarray], parts: int, origin: str) -> Samples:
    if labels and len(labels) != parts:
        raise CalibrationError(
            f"{origin}: only {len(labels)} of {parts} parts have 'labels': give labels in every part or in none"
        )
    result = Samples(
        arrays=whole.arrays,
        labels=np.concatenate(labels) if labels else None,
        origin=origin,
        constants=whole.constants,
        fixed_batch=whole.fixed_batch,
    )
    run = whole.fixed_batch or 1
    if whole.arrays and result.count < run:
        raise CalibrationError(
            f"{origin}: {result.count} samples do not fill one run of the model, which takes {run} at a time:"
            f" give at least {run}"
        )
    return result
