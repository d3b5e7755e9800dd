"""Samples from a folder of images: decoded, resized on the shorter side and cut out of the centre.

Images in subfolders have classes. Subfolders whose names are numbers are the classes of these numbers; others are
numbered in the order of the alphabet, provided that there are as many as the model tells apart.
"""

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import EllipsisType
from typing import TYPE_CHECKING

import numpy as np

from onnxprune.data.preprocess import InputForm, Steps
from onnxprune.data.source import UNNAMED, Rows, Source
from onnxprune.errors import CalibrationError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from onnxprune.runtime.session import InputSpec

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png")

_MODES = {1: "L", 3: "RGB"}
_DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
"""Modes whose values do not fit into eight bits; converting them would cut the values off."""


@dataclass(frozen=True)
class ImageForm:
    """How an input takes images."""

    layout: str
    channels: int
    height: int
    width: int
    steps: Steps = field(default_factory=Steps)

    @property
    def shape(self) -> tuple[int, int, int]:
        """The sizes of one image."""
        first = (self.channels, self.height, self.width)
        return first if self.layout == "nchw" else (*first[1:], first[0])


@dataclass(frozen=True)
class ImageStack:
    """Images of one size, decoded when they are read."""

    files: tuple[Path, ...]
    form: ImageForm

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of images, and the sizes of one."""
        return (len(self.files), *self.form.shape)

    def __getitem__(self, rows: "slice | np.ndarray | EllipsisType", /) -> np.ndarray:
        chosen = np.arange(len(self.files))[rows]
        result = np.empty((len(chosen), *self.form.shape), np.uint8)
        for place, index in enumerate(chosen):
            result[place] = decode(self.files[index], self.form)
        return result


def image_files(folder: Path) -> list[Path]:
    """Returns all images below a folder, in the order of the alphabet; hidden files are left out."""
    below = [entry for entry in folder.iterdir() if entry.is_dir()]  # a link to a folder may stand for a class
    places = [(str(folder), [entry.name for entry in folder.iterdir() if entry.is_file()])]
    places += [(place, names) for entry in below for place, _, names in os.walk(entry)]
    found = [Path(place, name) for place, names in places for name in names if not name.startswith(".")]
    return sorted(path for path in found if path.suffix.lower() in SUFFIXES)


def image_source(folder: Path, specs: Sequence["InputSpec"], form: InputForm) -> Source:
    """Returns the images of a folder, with labels where the model classifies and the subfolders tell the classes.

    Raises:
        UsageError: Pillow is missing, or the size of the input is open.
        CalibrationError: The model takes no images.
    """
    if importlib.util.find_spec("PIL") is None:
        raise UsageError(f'{folder}: images need Pillow: install "onnxprune[images]", or give .npz files')
    if len(specs) != 1:
        raise CalibrationError(
            f"{folder}: images do not feed a model with {len(specs)} inputs: give .npz files with one array for each"
        )
    spec = specs[0]
    files = tuple(image_files(folder))
    steps = form.preprocess.for_inputs(specs).get(spec.name, Steps())
    stack = ImageStack(files, image_form(spec, steps, form.shapes.get(spec.name, spec.shape)))
    labels, note = class_labels(folder, files, form.classes)
    arrays: dict[str, Rows] = {UNNAMED: stack}
    if labels is not None:
        arrays["labels"] = labels
    return Source(str(folder), [arrays], ordered=False, notes=(note,) if note else ())


def image_form(spec: "InputSpec", steps: Steps, shape: Sequence[int | str | None]) -> ImageForm:
    """Returns how an input takes images.

    Raises:
        UsageError: Layout or size is open, and no option says it.
        CalibrationError: The input takes no images of one or three channels.
    """
    words = "x".join("?" if size is None else str(size) for size in shape)
    if len(shape) != 4:
        raise CalibrationError(f"the input {spec.name!r} of the shape {words} takes no images: give .npz files")
    places = [layout for layout, size in (("nchw", shape[1]), ("nhwc", shape[3])) if size in _MODES]
    layout = steps.layout or (places[0] if len(places) == 1 else None)
    if layout is None:
        raise UsageError(
            f"the shape {words} of the input {spec.name!r} does not say where its channels are:"
            " give --preprocess with layout=nchw or layout=nhwc"
        )
    depth, height, width = shape[1:] if layout == "nchw" else (shape[3], shape[1], shape[2])
    channels = depth if isinstance(depth, int) else 3
    if channels not in _MODES:
        raise CalibrationError(
            f"the input {spec.name!r} of the shape {words} takes images of {channels} channels, files have 1 or 3:"
            " give .npz files"
        )
    sizes = [size if isinstance(size, int) else None for size in (height, width)]
    given = steps.size or (steps.crop if None in sizes else None) or (None, None)
    tall, wide = given[0] or sizes[0], given[1] or sizes[1]
    if tall is None or wide is None:
        raise UsageError(
            f"the input {spec.name!r} leaves the size of images open: give --preprocess with size=224,"
            f" or --input-shape {spec.name}:1x3x224x224"
        )
    return ImageForm(layout, channels, tall, wide, steps)


def class_labels(folder: Path, files: Sequence[Path], classes: int | None) -> tuple[np.ndarray | None, str | None]:
    """Returns the class of every image, or none and why where the subfolders do not tell it."""
    parts = [file.relative_to(folder).parts for file in files]
    names = sorted({part[0] for part in parts if len(part) > 1})
    if not names or classes is None:
        return None, None
    if any(len(part) == 1 for part in parts):
        return None, f"{folder}: some images lie beside the subfolders, so none has a label"
    if all(name.isdecimal() and name.isascii() for name in names):
        return np.array([int(part[0]) for part in parts], np.int64), None
    if classes not in (0, len(names)):
        return None, (
            f"{folder}: {len(names)} subfolders do not tell which of the {classes} classes of the model they are, "
            "so the images have no labels: name the subfolders by the numbers of the classes"
        )
    return np.array([names.index(part[0]) for part in parts], np.int64), None


def decode(file: Path, form: ImageForm) -> np.ndarray:
    """Returns one image as uint8, in the layout and the size of the form.

    Raises:
        CalibrationError: The file is damaged, or its values have more than eight bits.
    """
    from PIL import Image

    try:
        with Image.open(file) as image:
            deep = image.mode in _DEEP
            pure = image if deep else image.convert(_MODES[form.channels])
    except (Image.DecompressionBombError, OSError, SyntaxError, ValueError, EOFError) as error:
        raise CalibrationError(f"{file}: the image is unreadable or damaged: remove or replace it") from error
    if deep:
        raise CalibrationError(f"{file}: the image has more than 8 bits a channel: give .npy or .npz instead")
    fitted = fit(pure, form, file)
    pixels = np.asarray(fitted).reshape(form.height, form.width, form.channels)
    if form.steps.color == "bgr":
        pixels = pixels[:, :, ::-1]
    return pixels.transpose(2, 0, 1) if form.layout == "nchw" else pixels


def fit(image: "Image", form: ImageForm, file: Path) -> "Image":
    """Returns an image of the form's size: shorter side first, then the centre, then what is left to do.

    Raises:
        CalibrationError: The image is smaller than the cut.
    """
    target = form.height, form.width
    crop = form.steps.crop or target
    height, width = _before_crop((image.height, image.width), form.steps.resize, crop)
    if height < crop[0] or width < crop[1]:
        raise CalibrationError(
            f"{file}: the image is {height}x{width} before {crop[0]}x{crop[1]} are cut out: give a larger resize"
        )
    resized = _resized(image, height, width)
    top, left = round((height - crop[0]) / 2), round((width - crop[1]) / 2)
    cut = resized.crop((left, top, left + crop[1], top + crop[0]))
    return _resized(cut, *target)


def _before_crop(size: tuple[int, int], resize: tuple[int, ...] | None, crop: tuple[int, int]) -> tuple[int, int]:
    """Returns the height and width that an image gets before its centre is cut out."""
    if resize is not None and len(resize) == 2:
        return resize[0], resize[1]
    height, width = size
    if resize is not None:
        shorter = resize[0]
        return (shorter, shorter * width // height) if height <= width else (shorter * height // width, shorter)
    scale = max(crop[0] / height, crop[1] / width)
    return max(crop[0], round(height * scale)), max(crop[1], round(width * scale))


def _resized(image: "Image", height: int, width: int) -> "Image":
    from PIL.Image import Resampling

    if (image.height, image.width) == (height, width):
        return image
    return image.resize((width, height), Resampling.BILINEAR)
