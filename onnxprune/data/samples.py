"""Samples: arrays whose first axis counts samples, read from files, arrays or iterables and checked against a model.

An input is *constant* (fed unchanged with every batch) where the model gives it no axes, or where its array has exactly
the shape that the model fixes while other inputs bring samples of their own: a sample rate, an initial state.
"""

import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from onnxprune.data.checks import (
    Arrangement,
    Counted,
    arrange,
    checked_labels,
    count_samples,
    joined_rows,
    merge,
    named,
)
from onnxprune.data.files import read_source
from onnxprune.data.images import image_source
from onnxprune.data.preprocess import InputForm, Steps, is_image, prepared
from onnxprune.data.source import Part, Source
from onnxprune.errors import CalibrationError, UsageError

if TYPE_CHECKING:
    from onnxprune.runtime.session import InputSpec

DataSource: TypeAlias = (
    "str | os.PathLike[str] | np.ndarray | Mapping[str, np.ndarray] | Iterable[Mapping[str, np.ndarray] | np.ndarray]"
    " | Samples"
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
        notes: What the caller should know about them.
    """

    arrays: dict[str, np.ndarray]
    labels: np.ndarray | None = None
    origin: str = "array"
    seed: int | None = None
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    fixed_batch: int | None = None
    notes: tuple[str, ...] = ()

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

    def draw(self, count: int, seed: int) -> "Samples":
        """Returns ``count`` samples, in whole runs, drawn without replacement; all in their order where all fit."""
        if count >= self.count:
            return self.take(count)
        picks = _picks(self.count, count, self.fixed_batch or 1, seed)
        arrays = {name: array[picks] for name, array in self.arrays.items()}
        return replace(self, arrays=arrays, labels=None if self.labels is None else self.labels[picks])

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


def load_samples(
    source: DataSource,
    specs: Sequence["InputSpec"],
    *,
    limit: int = 1024,
    seed: int = 0,
    form: InputForm | None = None,
) -> Samples:
    """Returns at most ``limit`` samples of a source, checked against the inputs of a model.

    Sources are an ``.npz`` file (keys = input names, optional ``labels``), an ``.npy`` file or an array for a model
    with one input, a folder of ``.npz`` or of images, ``script.py:function``, a dict of arrays, an iterable of dicts or
    arrays (joined along the first axis), or ``Samples``. Of more samples, ``limit`` are drawn without replacement, in
    random order; iterables and scripts are consumed up to the limit instead. Images come in random order always.
    Numbers are converted only where no value changes its kind (float to float, integer to integer), except by
    preprocessing, and integer images, which are fed as floats with a note.

    Raises:
        CalibrationError: The source cannot be read or does not fit the model.
        UsageError: The limit is not positive, or the preprocessing is for other inputs.
    """
    if limit < 1:
        raise UsageError(f"the number of samples is {limit}, but must be at least 1")
    if isinstance(source, Samples):
        if form is not None and form.preprocess.inputs:
            raise UsageError("--preprocess is for arrays and files, but these samples were read before: leave it out")
        return source.draw(limit, seed)
    form = form or InputForm()
    steps = form.preprocess.for_inputs(specs)
    found = read_source(source, lambda folder: image_source(folder, specs, form))
    reader = _Reader(specs, steps, found.origin)
    return _drawn(found, reader, limit, seed) if found.sized else _first(found, reader, limit)


def batch_size(specs: Sequence["InputSpec"], preferred: int = 32) -> int:
    """Returns how many samples one run takes: the size that the model fixes, else ``preferred``."""
    first = [spec.shape[0] for spec in specs if spec.shape]
    fixed = [size for size in first if isinstance(size, int)]
    if not fixed or len(fixed) < len(first):
        return preferred
    return 1 if 1 in fixed else fixed[0]


@dataclass
class _Reader:
    """Reads rows of parts, and remembers which integers were fed as floats, and which parts had labels."""

    specs: Sequence["InputSpec"]
    steps: Mapping[str, Steps]
    origin: str
    parts: list[Arrangement] = field(default_factory=list)
    labels: list[np.ndarray] = field(default_factory=list)
    ranges: dict[str, tuple[int, int]] = field(default_factory=dict)

    def count(self, part: Part) -> tuple[Part, Counted]:
        """Returns a part under the names of the inputs, and its samples."""
        part = named(part, self.specs)
        inputs = {name: part[name] for name in part if not self._labels(name)}
        return part, count_samples(inputs, self.specs, self.origin)

    def read(self, part: Part, counted: Counted, rows: "slice | np.ndarray") -> None:
        """Adds rows of a part."""
        if any(self._labels(name) for name in part):
            self.labels.append(checked_labels(part["labels"][...], counted.count, self.origin)[rows])
        arrays = {}
        for spec in self.specs:
            array = _plain(part[spec.name][rows if spec.name in counted.names else ...])
            steps = self.steps.get(spec.name)
            image = is_image(array, spec)
            if image and array.size and not (steps and steps.computes):
                low, high = self.ranges.get(spec.name, (array.max(), array.min()))
                self.ranges[spec.name] = int(min(low, array.min())), int(max(high, array.max()))
            arrays[spec.name] = prepared(array, steps or Steps(), spec, self.origin) if steps or image else array
        self.parts.append(arrange(arrays, self.specs, counted, self.origin))

    def joined(self, places: list[np.ndarray] | None, notes: tuple[str, ...]) -> Samples:
        """Returns all rows that were read."""
        whole = merge(self.parts, self.origin, places)
        if self.labels and len(self.labels) != len(self.parts):
            raise CalibrationError(
                f"{self.origin}: only {len(self.labels)} of {len(self.parts)} parts have 'labels':"
                " give labels in every part or in none"
            )
        run = whole.fixed_batch or 1
        if whole.arrays and whole.count < run:
            raise CalibrationError(
                f"{self.origin}: {whole.count} samples do not fill one run of the model, which takes {run} at a time:"
                f" give at least {run}"
            )
        unscaled = tuple(
            f"{name!r} holds integers from {low} to {high}, which are fed as floats without scaling:"
            " give --preprocess, such as scale=1/255, if training scaled them"
            for name, (low, high) in self.ranges.items()
        )
        return Samples(
            arrays=whole.arrays,
            labels=joined_rows(self.labels, places) if self.labels else None,
            origin=self.origin,
            constants=whole.constants,
            fixed_batch=whole.fixed_batch,
            notes=notes + unscaled,
        )

    def _labels(self, name: str) -> bool:
        return name == "labels" and all(spec.name != name for spec in self.specs)


def _first(found: Source, reader: _Reader, limit: int) -> Samples:
    """Returns the first samples; no more parts are asked for than the limit needs."""
    total = 0
    parts = iter(found.parts)
    try:
        for unnamed in parts:
            part, counted = reader.count(unnamed)
            wanted = max(limit, counted.fixed_batch or 1)
            reader.read(part, counted, slice(wanted - total))
            total += counted.count
            if total >= wanted:
                break
    finally:
        if isinstance(parts, Generator):
            parts.close()
    return reader.joined(None, found.notes).take(limit)


def _drawn(found: Source, reader: _Reader, limit: int, seed: int) -> Samples:
    """Returns a seeded draw from all samples; all of them, in their order, where the limit admits that."""
    parts = [reader.count(part) for part in found.parts]
    ends = np.cumsum([counted.count for _, counted in parts], dtype=np.int64)
    total = int(ends[-1]) if parts else 0
    if limit >= total and found.ordered:
        for part, counted in parts:
            reader.read(part, counted, slice(None))
        return reader.joined(None, found.notes).take(limit)
    picks = _picks(total, limit, parts[0][1].fixed_batch or 1, seed)
    order = np.argsort(picks)
    bounds = np.searchsorted(picks[order], ends)
    places = []
    for (part, counted), end, start, stop in zip(parts, ends, (0, *bounds[:-1]), bounds, strict=True):
        if start < stop:
            reader.read(part, counted, picks[order[start:stop]] - (end - counted.count))
            places.append(order[start:stop])
    return reader.joined(places, found.notes)


def _picks(total: int, limit: int, run: int, seed: int) -> np.ndarray:
    """Returns the samples of a draw without replacement: whole runs, and at least one."""
    wanted = max(min(limit, total) // run, 1) * run
    return np.random.default_rng(seed).choice(total, min(wanted, total), replace=False)


def _plain(array: np.ndarray) -> np.ndarray:
    """Returns an array that is no longer mapped to a file."""
    return np.array(array) if isinstance(array, np.memmap) else np.asarray(array)
