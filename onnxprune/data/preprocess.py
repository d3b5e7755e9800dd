"""What is done to samples before a model sees them: ``(x * scale - mean) / std`` for each channel, layout and size."""

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune.data.settings import read_settings
from onnxprune.errors import CalibrationError, UsageError

if TYPE_CHECKING:
    from onnxprune.runtime.session import InputSpec

DTYPES = ("float16", "float32", "float64", "uint8", "int8", "uint16", "int16", "int32", "int64")
LAYOUTS = {"nchw": 1, "nhwc": -1}
"""The place of the channel axis in each layout."""


@dataclass(frozen=True)
class Steps:
    """What is done to one input; the fields are the keys of ``--preprocess``.

    Attributes:
        mean: Subtracted after scaling: one number, or one for each channel.
        std: Divided by at the end, likewise.
        scale: Multiplied by first, likewise.
        layout: How the model takes images; arrays in the other layout are transposed.
        size: Height and width of image files as the model takes them; from the shape of its input by default.
        resize: Shorter side that image files get before the cut, or height and width.
        crop: Height and width that are cut out of the centre; the size by default.
        color: Order of the channels of image files, ``rgb`` or ``bgr``.
        dtype: Type after the arithmetic; that of the model by default.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    layout: str | None = None
    size: tuple[int, int] | None = None
    resize: tuple[int, ...] | None = None
    crop: tuple[int, int] | None = None
    color: str | None = None
    dtype: str | None = None

    @property
    def computes(self) -> bool:
        """Whether values change."""
        return bool(self.mean or self.std or self.scale)

    def __str__(self) -> str:
        given = {item.name: getattr(self, item.name) for item in fields(self)}
        return ";".join(f"{name}={_shown(name, value)}" for name, value in given.items() if value)


@dataclass(frozen=True)
class Preprocess:
    """The steps of every input; those of the only input stand under the empty name."""

    inputs: Mapping[str, Steps] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [(name, part) for name, steps in self.inputs.items() for part in str(steps).split(";") if part]
        return ";".join(f"{name}.{part}" if name else part for name, part in parts)

    def for_inputs(self, specs: Sequence["InputSpec"]) -> dict[str, Steps]:
        """Returns the steps of every input that has some.

        Raises:
            UsageError: Steps are for no input of the model, or do not say for which of several.
        """
        known = [spec.name for spec in specs]
        listed = ", ".join(map(repr, known))
        result: dict[str, Steps] = {}
        for name, steps in self.inputs.items():
            if not name and len(known) != 1:
                raise UsageError(
                    f"--preprocess does not say for which of the inputs {listed} it is:"
                    f" put the name before each key, as in {known[0] if known else 'x'}.mean=0.5"
                )
            if name and name not in known:
                raise UsageError(f"--preprocess is for {name!r}, but the inputs are {listed}: give one of these names")
            chosen = name or known[0]
            if chosen in result:
                raise UsageError(f"--preprocess has keys with and without the name {chosen!r}: choose one way")
            result[chosen] = steps
        return result


@dataclass(frozen=True)
class InputForm:
    """How samples are brought into the form that a model takes.

    Attributes:
        preprocess: What is done to them.
        shapes: Concrete shapes of inputs with free dimensions.
        classes: How many classes the model tells apart; 0 where that is open, ``None`` where it does not classify.
    """

    preprocess: Preprocess = field(default_factory=Preprocess)
    shapes: Mapping[str, Sequence[int | str | None]] = field(default_factory=dict)
    classes: int | None = None


def parse_preprocess(value: object, what: str = "--preprocess") -> Preprocess:
    """Returns what a text such as ``mean=0.5;std=0.5;scale=1/255``, a YAML file or a mapping asks for.

    Raises:
        UsageError: The file cannot be read, or a key or a value is not understood.
    """
    if value is None or isinstance(value, Preprocess):
        return value or Preprocess()
    if isinstance(value, Mapping):
        return _from_mapping(value, what)
    if isinstance(value, os.PathLike) or (isinstance(value, str) and value.lower().endswith((".yaml", ".yml"))):
        return _from_mapping(read_settings(value), f"{what} {os.fspath(value)}")
    if not isinstance(value, str):
        raise UsageError(f"{what} is of the type {type(value).__name__}: give text, a dict or the path of a YAML file")
    pairs = []
    for item in filter(None, map(str.strip, value.split(";"))):
        key, found, text = item.partition("=")
        if not found:
            raise UsageError(f"{what}: {item!r} is not key=value: write 'mean=0.5;std=0.5', or name a .yaml file")
        pairs.append((key.strip(), text.strip()))
    return _from_pairs(pairs, what)


def prepared(array: np.ndarray, steps: Steps, spec: "InputSpec", origin: str) -> np.ndarray:
    """Returns an array as its input takes it.

    Raises:
        CalibrationError: The channels do not match the numbers, or the values the type.
    """
    where = f"{origin}: {spec.name!r}"
    array = _in_layout(array, steps, spec)
    if array.dtype.kind in "iuf" and (steps.computes or (array.dtype.kind in "iu" and spec.dtype.kind == "f")):
        array = _computed(array, steps, spec, where)
    if steps.dtype is None or array.dtype == steps.dtype:
        return array
    wanted = np.dtype(steps.dtype)
    if wanted.kind == "f" or array.dtype.kind not in "iuf":
        return array.astype(wanted) if array.dtype.kind in "iuf" else array
    limits = np.iinfo(wanted)
    rounded = np.rint(array) if array.dtype.kind == "f" else array
    if not (rounded.min(initial=0) >= limits.min and rounded.max(initial=0) <= limits.max):
        raise CalibrationError(f"{where} has values beyond the range of {wanted}: change scale, mean or dtype")
    return rounded.astype(wanted)


def is_image(array: np.ndarray, spec: "InputSpec") -> bool:
    """Returns whether integers are images for an input of floats: three axes or more."""
    return array.dtype.kind in "iu" and spec.dtype.kind == "f" and array.ndim >= 3


def _in_layout(array: np.ndarray, steps: Steps, spec: "InputSpec") -> np.ndarray:
    if steps.layout is None or array.ndim != 4:
        return array
    channel = LAYOUTS[steps.layout]
    fixed = spec.shape[channel] if len(spec.shape) == 4 else None
    sizes = (fixed,) if isinstance(fixed, int) else (1, 3)
    other = -1 if channel == 1 else 1
    if array.shape[channel] in sizes or array.shape[other] not in sizes:
        return array
    return array.transpose((0, 3, 1, 2) if channel == 1 else (0, 2, 3, 1))


def _computed(array: np.ndarray, steps: Steps, spec: "InputSpec", where: str) -> np.ndarray:
    result = array.astype(np.float64 if spec.dtype == np.float64 else np.float32)
    operations: tuple[tuple[str, Callable[..., Any]], ...] = (
        ("scale", np.multiply), ("mean", np.subtract), ("std", np.divide),
    )  # fmt: skip
    for name, operation in operations:
        numbers = getattr(steps, name)
        if numbers:
            operation(result, _along_channels(numbers, result, steps, f"{where}: {name}"), out=result)
    return result


def _along_channels(numbers: tuple[float, ...], array: np.ndarray, steps: Steps, where: str) -> np.ndarray:
    """Returns numbers in a shape that spreads them over the channel axis."""
    values = np.asarray(numbers, array.dtype)
    if len(numbers) == 1:
        return values.reshape(())
    places = sorted({1, array.ndim - 1} if array.ndim > 1 else set())
    if steps.layout is not None and array.ndim == 4:
        places = [LAYOUTS[steps.layout] % array.ndim]
    fitting = [place for place in places if array.shape[place] == len(numbers)]
    if len(fitting) != 1:
        shape = "x".join(map(str, array.shape))
        lack = "two axes of that size: say layout=nchw or layout=nhwc"
        lack = lack if fitting else "no channel axis of that size: give one number, or one for each channel"
        raise CalibrationError(f"{where} has {len(numbers)} numbers, and the shape {shape} has {lack}")
    return values.reshape([-1 if place == fitting[0] else 1 for place in range(array.ndim)])


def _from_mapping(value: Mapping[Any, Any], what: str) -> Preprocess:
    pairs: list[tuple[str, str]] = []
    for key, item in value.items():
        if isinstance(item, Mapping):
            pairs += [(f"{key}.{inner}", _text(setting)) for inner, setting in item.items()]
        else:
            pairs.append((str(key), _text(item)))
    return _from_pairs(pairs, what)


def _from_pairs(pairs: Sequence[tuple[str, str]], what: str) -> Preprocess:
    if not pairs:
        raise UsageError(f"{what} is empty: write something like 'mean=0.5;std=0.5;scale=1/255'")
    result: dict[str, Steps] = {}
    seen: set[str] = set()
    for name, text in pairs:
        owner, _, key = name.rpartition(".")
        if key not in _READERS:
            raise UsageError(f"{what}: the key {name!r} is unknown: choose from {', '.join(_READERS)}")
        if name in seen:
            raise UsageError(f"{what}: the key {name!r} is given twice: give it once")
        seen.add(name)
        read, way = _READERS[key]
        found = read(text)
        if not found:
            raise UsageError(f"{what}: {name}={text!r} is not understood: {way}")
        change: dict[str, Any] = {key: found}
        result[owner] = replace(result.get(owner, Steps()), **change)
    return Preprocess(result)


def _text(value: object) -> str:
    value = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
    return ",".join(_text(item) for item in value) if isinstance(value, list | tuple) else str(value)


def _numbers(text: str) -> tuple[float, ...]:
    items = text.split(",")
    numbers = tuple(number for item in items if (number := _number(item)) is not None)
    return numbers if len(numbers) == len(items) else ()


def _nonzero(text: str) -> tuple[float, ...]:
    numbers = _numbers(text)
    return numbers if all(numbers) else ()


def _number(text: str) -> float | None:
    """Returns a finite number, also one that is written as a fraction."""
    over, found, under = text.partition("/")
    try:
        number = float(over) / float(under) if found else float(over)
    except (ValueError, ZeroDivisionError):
        return None
    return number if math.isfinite(number) else None


def _sizes(text: str) -> tuple[int, ...] | None:
    if not re.fullmatch(r"0*[1-9]\d{0,5}(\s*[x,]\s*0*[1-9]\d{0,5})?", text, re.ASCII):
        return None
    return tuple(int(size) for size in re.split("[x,]", text))


def _height_and_width(text: str) -> tuple[int, int] | None:
    sizes = _sizes(text)
    return None if sizes is None else (sizes[0], sizes[-1])


def _one_of(words: Sequence[str]) -> Callable[[str], str | None]:
    return lambda text: text.lower() if text.lower() in words else None


_READERS: dict[str, tuple[Callable[[str], Any], str]] = {
    "mean": (_numbers, "give numbers such as 0.485,0.456,0.406"),
    "std": (_nonzero, "give numbers other than 0, such as 0.229,0.224,0.225"),
    "scale": (_nonzero, "give numbers other than 0, such as 1/255"),
    "layout": (_one_of(tuple(LAYOUTS)), "give nchw or nhwc"),
    "size": (_height_and_width, "give one size, or height and width as in 224x224"),
    "resize": (_sizes, "give the shorter side, or height and width as in 256x320"),
    "crop": (_height_and_width, "give one size, or height and width as in 224x224"),
    "color": (_one_of(("rgb", "bgr")), "give rgb or bgr"),
    "dtype": (_one_of(DTYPES), f"give one of {', '.join(DTYPES)}"),
}


def _shown(name: str, value: object) -> str:
    if not isinstance(value, tuple):
        return str(value)
    separator = "x" if name in ("size", "resize", "crop") else ","
    return separator.join(str(item).removesuffix(".0") for item in value)
