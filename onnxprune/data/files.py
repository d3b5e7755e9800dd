"""Reading sample sources: every source becomes parts of named arrays."""

import contextlib
import os
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType

import numpy as np

from onnxprune.data.images import image_files
from onnxprune.data.scripts import run_script, script_of
from onnxprune.data.source import UNNAMED, Part, Source
from onnxprune.errors import CalibrationError

_UNREADABLE = (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error, NotImplementedError)
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@dataclass(frozen=True)
class _Stored:
    """An array in an archive, read when rows of it are asked for."""

    path: Path
    name: str
    shape: tuple[int, ...]

    def __getitem__(self, rows: "slice | np.ndarray | EllipsisType", /) -> np.ndarray:
        try:
            with np.load(self.path, allow_pickle=False) as archive:
                return np.asarray(archive[self.name][rows])
        except _UNREADABLE as error:
            raise _unreadable(self.path, error) from error


def read_source(source: object, read_images: Callable[[Path], Source]) -> Source:
    """Returns the parts of a source; ``read_images`` reads a folder of images.

    Raises:
        CalibrationError: The source is missing or of an unknown kind; a file is unreadable (while iterating).
    """
    if isinstance(source, str | os.PathLike):
        return _read_path(os.fspath(source), read_images)
    if isinstance(source, np.ndarray):
        return Source("array", [{UNNAMED: source}])
    if isinstance(source, Mapping):
        return Source("array", [_arrays(source)])
    if isinstance(source, Iterable):
        return Source("array", _read_iterable(source, ""), sized=False)
    raise CalibrationError(
        f"samples of the type {type(source).__name__} are not understood:"
        " give a path, an array, a dict of arrays or an iterable of dicts"
    )


def _read_path(text: str, read_images: Callable[[Path], Source]) -> Source:
    path = Path(text)
    if os.path.isdir(path):
        return _read_folder(path, read_images)
    script = script_of(text)
    if script is not None and (script[0] != path or os.path.exists(path)):
        return _read_script(text, *script)
    if not os.path.exists(path):
        raise CalibrationError(f"{path}: there is no such file: check the path of the samples")
    if path.suffix == ".npz":
        return Source(text, (_read_npz(file) for file in [path]))
    if path.suffix == ".npy":
        return Source(text, ({UNNAMED: _read_npy(file)} for file in [path]))
    raise CalibrationError(
        f"{path}: samples with the suffix {path.suffix!r} are not understood:"
        " give .npz, .npy, a folder of .npz or of images, or script.py:function"
    )


def _read_folder(path: Path, read_images: Callable[[Path], Source]) -> Source:
    archives, images = sorted(path.glob("*.npz")), image_files(path)
    if archives and images:
        raise CalibrationError(f"{path}: the folder has .npz files and images: keep them in folders of their own")
    if images:
        return read_images(path)
    if archives:
        return Source(str(path), (_read_npz(file) for file in archives))
    raise CalibrationError(
        f"{path}: the folder has no .npz file and no image (.jpg, .jpeg, .png, .bmp): put samples there"
    )


def _read_npz(path: Path) -> Part:
    """Returns the arrays of an archive; only their headers are read here."""
    try:
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):
                file.seek(0)
                np.lib.format.read_magic(file)
                raise CalibrationError(f"{path}: the file holds one unnamed array: name it .npy")
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy"): _header(path, archive, name) for name in archive.namelist()}
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error


def _header(path: Path, archive: zipfile.ZipFile, name: str) -> _Stored:
    with archive.open(name) as member:
        shape, _, dtype = _HEADERS[np.lib.format.read_magic(member)](member)
    if dtype.hasobject:
        raise ValueError("Python objects")
    return _Stored(path, name.removesuffix(".npy"), shape)


def _read_npy(path: Path) -> np.ndarray:
    try:
        with path.open("rb") as file:
            if zipfile.is_zipfile(file):
                raise CalibrationError(f"{path}: the file is an archive of named arrays: name it .npz")
            file.seek(0)
            np.lib.format.read_magic(file)
        mapped: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error
    return mapped


def _unreadable(path: Path, error: Exception) -> CalibrationError:
    if any(words in str(error) for words in ("allow_pickle", "Object arrays", "Python objects")):
        return CalibrationError(f"{path}: pickled objects are never loaded: save plain numeric arrays")
    return CalibrationError(f"{path}: the file is unreadable or damaged: write it again with numpy.savez or numpy.save")


def _read_script(origin: str, path: Path, function: str) -> Source:
    found = run_script(path, function)
    if isinstance(found, Mapping):
        return Source(origin, [_arrays(found)])
    if hasattr(found, "__array__"):
        return Source(origin, [{UNNAMED: np.asarray(found)}])
    if isinstance(found, Generator):
        return Source(origin, _read_generator(found, origin), sized=False)
    raise CalibrationError(
        f"{origin}: {function!r} returned the type {type(found).__name__}: yield dicts of arrays from it"
    )


def _read_generator(items: Generator[object, None, None], origin: str) -> Iterator[Part]:
    """Reads what a script yields, and lets its function end where no more is wanted."""
    with contextlib.closing(items):
        yield from _read_iterable(items, f"{origin}: ")


def _read_iterable(source: Iterable[object], where: str) -> Iterator[Part]:
    for index, item in enumerate(source):
        if isinstance(item, Mapping):
            yield _arrays(item)
        elif hasattr(item, "__array__"):
            yield {UNNAMED: np.asarray(item)}
        else:
            raise CalibrationError(
                f"{where}part {index} of the samples is of the type {type(item).__name__}:"
                " yield dicts of arrays with the input names as keys, or arrays for the only input"
            )


def _arrays(mapping: Mapping[str, object]) -> dict[str, np.ndarray]:
    try:
        return {name: np.asarray(value) for name, value in mapping.items()}
    except (TypeError, ValueError) as error:
        raise CalibrationError("the samples are no regular arrays: give arrays of one size per input") from error
