"""Checking arrays against the inputs of a model: names, shapes, types, values and counts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune.data.source import UNNAMED, Part
from onnxprune.errors import CalibrationError

if TYPE_CHECKING:
    from onnxprune.runtime.session import InputSpec


@dataclass(frozen=True)
class Arrangement:
    """Arrays told apart: those that count samples, those fed unchanged, and how many samples one run takes."""

    arrays: dict[str, np.ndarray]
    constants: dict[str, np.ndarray]
    fixed_batch: int | None

    @property
    def count(self) -> int:
        """The number of samples."""
        return next((len(array) for array in self.arrays.values()), 1)


@dataclass(frozen=True)
class Counted:
    """What the shapes of arrays say: which inputs count samples, how many there are, and how many one run takes."""

    names: frozenset[str]
    count: int
    fixed_batch: int | None


def named(part: Part, specs: Sequence["InputSpec"]) -> Part:
    """Returns the arrays under the names of the inputs: a single array feeds a single input, whatever its name.

    Raises:
        CalibrationError: One array without a name is there for several inputs.
    """
    if UNNAMED in part and len(specs) != 1:
        raise CalibrationError(
            f"one array does not feed a model with {len(specs)} inputs: give a dict or .npz with {_expected(specs)}"
        )
    others = [name for name in part if name != "labels"]
    if len(specs) != 1 or len(others) != 1 or specs[0].name in part:
        return part
    return {specs[0].name if name == others[0] else name: array for name, array in part.items()}


def count_samples(arrays: Part, specs: Sequence["InputSpec"], origin: str) -> Counted:
    """Returns what the shapes of the arrays say about samples.

    Raises:
        CalibrationError: Names, numbers of axes or counts do not fit the model.
    """
    _check_names(arrays, specs, origin)
    for spec in specs:
        _check_rank(arrays[spec.name].shape, spec, origin)
    shapes = {spec.name: arrays[spec.name].shape for spec in specs}
    counting = _counting_inputs(shapes, specs)
    _check_counts({spec.name: shapes[spec.name][0] for spec in counting}, origin)
    names = frozenset(spec.name for spec in counting)
    constants = [spec for spec in specs if spec.name not in names]
    count = shapes[counting[0].name][0] if counting else 1
    return Counted(names, count, _fixed_batch(counting, constants, shapes, origin))


def arrange(
    arrays: Mapping[str, np.ndarray], specs: Sequence["InputSpec"], counted: Counted, origin: str
) -> Arrangement:
    """Returns the arrays, converted to the types of the model and told apart.

    Raises:
        CalibrationError: Shapes, types or values do not fit the model.
    """
    for spec in specs:
        _check_shape(arrays[spec.name].shape, spec, origin)
    converted = {spec.name: _convert(arrays[spec.name], spec, origin) for spec in specs}
    return Arrangement(
        arrays={name: array for name, array in converted.items() if name in counted.names},
        constants={name: array for name, array in converted.items() if name not in counted.names},
        fixed_batch=counted.fixed_batch,
    )


def merge(parts: Sequence[Arrangement], origin: str, places: Sequence[np.ndarray] | None = None) -> Arrangement:
    """Returns the parts joined along the first axis, every sample at its place where places are given.

    Raises:
        CalibrationError: There are no samples, or the parts do not fit together.
    """
    if not parts:
        raise CalibrationError(f"{origin}: there are no samples: give at least one")
    first = parts[0]
    if len(parts) == 1 and places is None:
        return first
    for part in parts[1:]:
        _check_alike(first, part, origin)
    joined = {name: joined_rows([part.arrays[name] for part in parts], places) for name in first.arrays}
    return Arrangement(joined, first.constants, first.fixed_batch)


def joined_rows(parts: Sequence[np.ndarray], places: Sequence[np.ndarray] | None) -> np.ndarray:
    """Returns the rows of all parts, one part after the other, or each row at its place."""
    if places is None:
        return np.concatenate(parts)
    result = np.empty((sum(map(len, parts)), *parts[0].shape[1:]), parts[0].dtype)
    for part, place in zip(parts, places, strict=True):
        result[place] = part
    return result


def checked_labels(labels: np.ndarray, count: int, origin: str) -> np.ndarray:
    """Returns one int64 label per sample.

    Raises:
        CalibrationError: The labels are not integers, or not one per sample.
    """
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu":
        raise CalibrationError(f"{origin}: 'labels' are of the type {labels.dtype}: give integer class numbers")
    if labels.size != count or labels.shape not in ((count,), (count, 1)):
        raise CalibrationError(
            f"{origin}: 'labels' has the shape {_words(labels.shape)} for {count} samples: give one label per sample"
        )
    if int(labels.min(initial=0)) < 0:
        raise CalibrationError(f"{origin}: 'labels' has the value {labels.min()}: give class numbers from 0 on")
    return labels.reshape(count).astype(np.int64)


def _check_names(arrays: Part, specs: Sequence["InputSpec"], origin: str) -> None:
    known = {spec.name for spec in specs}
    missing = [repr(spec.name) for spec in specs if spec.name not in arrays]
    unexpected = [repr(name) for name in arrays if name not in known]
    if not missing and not unexpected:
        return
    problems = [f"no array for {', '.join(missing)}"] if missing else []
    problems += [f"unexpected {', '.join(unexpected)}"] if unexpected else []
    raise CalibrationError(f"{origin}: {' and '.join(problems)}: the model expects {_expected(specs)}")


def _check_rank(shape: tuple[int, ...], spec: "InputSpec", origin: str) -> None:
    where, wanted = f"{origin}: {spec.name!r} has the shape {_words(shape)}", _words(spec.shape)
    if len(shape) != len(spec.shape):
        hint = "add an axis for the samples" if len(shape) == len(spec.shape) - 1 else "reshape it"
        raise CalibrationError(f"{where}, but the model expects {len(spec.shape)} axes ({wanted}): {hint}")
    if shape and shape[0] == 0:
        raise CalibrationError(f"{where}, which holds zero samples: give at least one")


def _check_shape(shape: tuple[int, ...], spec: "InputSpec", origin: str) -> None:
    where, wanted = f"{origin}: {spec.name!r} has the shape {_words(shape)}", _words(spec.shape)
    for axis, (size, fixed) in enumerate(zip(shape, spec.shape, strict=True)):
        if axis and isinstance(fixed, int) and size != fixed:
            raise CalibrationError(f"{where}, but axis {axis} of {wanted} is {fixed}: prepare the data as in training")


def _counting_inputs(shapes: Mapping[str, tuple[int, ...]], specs: Sequence["InputSpec"]) -> list["InputSpec"]:
    """Returns the inputs whose first axis counts samples, by the rule at the head of ``samples.py``."""
    ranked = [spec for spec in specs if spec.shape]
    counting = [spec for spec in ranked if spec.shape[0] != shapes[spec.name][0]]
    if counting:
        return counting
    # Every array is exactly one run of a model with fixed sizes, so only the count is open.
    sizes = [spec.shape[0] for spec in ranked]
    return [spec for spec in ranked if spec.shape[0] == (1 if 1 in sizes else sizes[0])]


def _check_counts(counts: Mapping[str, int], origin: str) -> None:
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name!r} {count}" for name, count in counts.items())
        raise CalibrationError(
            f"{origin}: the inputs have different numbers of samples ({listed}): give one row per sample in each"
        )


def _fixed_batch(
    counting: Sequence["InputSpec"],
    constants: Sequence["InputSpec"],
    shapes: Mapping[str, tuple[int, ...]],
    origin: str,
) -> int | None:
    """Returns how many samples one run takes; a constant that shares the name of a free batch axis fixes it too."""
    free = {spec.shape[0] for spec in counting if isinstance(spec.shape[0], str)}
    sizes = {spec.shape[0] for spec in counting if isinstance(spec.shape[0], int)}
    for spec in constants:
        sizes |= {size for size, name in zip(shapes[spec.name], spec.shape, strict=True) if name in free}
    if len(sizes) > 1:
        raise CalibrationError(
            f"{origin}: the inputs fix different batches ({', '.join(map(str, sorted(sizes)))}):"
            " give constant inputs in exactly the shape that the model fixes"
        )
    return next(iter(sizes), None)


def _check_alike(first: Arrangement, part: Arrangement, origin: str) -> None:
    if first.arrays.keys() != part.arrays.keys() or first.fixed_batch != part.fixed_batch:
        raise CalibrationError(f"{origin}: the parts differ in which inputs are constant: give equal shapes in each")
    for name, array in first.arrays.items():
        if array.shape[1:] != part.arrays[name].shape[1:]:
            raise CalibrationError(
                f"{origin}: {name!r} has the shape {_words(array.shape)} in one part and"
                f" {_words(part.arrays[name].shape)} in another: pad or resize the samples to one size"
            )
    for name, array in first.constants.items():
        if not np.array_equal(array, part.constants[name]):
            raise CalibrationError(
                f"{origin}: the constant input {name!r} differs between the parts: give one value for all samples"
            )


def _convert(array: np.ndarray, spec: "InputSpec", origin: str) -> np.ndarray:
    where = f"{origin}: {spec.name!r}"
    if array.dtype == np.object_:
        raise CalibrationError(f"{where} holds Python objects: give a plain numeric array")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise CalibrationError(f"{where} has NaN or infinite values: remove or repair those samples")
    if array.dtype == spec.dtype:
        return np.asarray(array)
    if not _convertible(array, spec.dtype):
        raise CalibrationError(
            f"{where} is of the type {array.dtype}, but the model expects {spec.dtype}:"
            f" convert it with .astype(numpy.{spec.dtype}), scaled as in training"
        )
    with np.errstate(over="ignore"):
        result = array.astype(spec.dtype)
    if result.dtype.kind == "f" and not np.isfinite(result).all():
        raise CalibrationError(f"{where} has values beyond the range of {spec.dtype}: scale it as in training")
    return result


def _convertible(array: np.ndarray, wanted: np.dtype[Any]) -> bool:
    if array.dtype.kind == "f":
        return wanted.kind == "f"
    if array.dtype.kind not in "iub" or wanted.kind not in "iu":
        return False
    if np.can_cast(array.dtype, wanted, "safe") or not array.size:
        return True
    limits = np.iinfo(wanted)
    return int(array.min()) >= limits.min and int(array.max()) <= limits.max


def _expected(specs: Sequence["InputSpec"]) -> str:
    return ", ".join(f"{spec.name!r} {spec.dtype} {_words(spec.shape)}" for spec in specs)


def _words(shape: Sequence[int | str | None]) -> str:
    return "x".join("?" if size is None else str(size) for size in shape) or "scalar"
