"""Reading sample sources: every source becomes an iterator of arrays or of dicts of arrays."""

import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np

from onnxprune.errors import CalibrationError

Chunk: TypeAlias = np.ndarray | Mapping[str, np.ndarray]

_UNREADABLE = (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error, NotImplementedError)


def read_source(source: object) -> tuple[str, Iterator[Chunk]]:
    """Returns where samples come from, and their parts.

    Raises:
        CalibrationError: The source is missing or of an unknown kind; a file is unreadable (while iterating).
    """
    if isinstance(source, str | os.PathLike):
        return _read_path(Path(source))
    if isinstance(source, np.ndarray):
        return "array", iter([source])
    if isinstance(source, Mapping):
        return "array", iter([_arrays(source)])
    if isinstance(source, Iterable):
        return "array", _read_iterable(source)
    raise CalibrationError(
        f"samples of the type {type(source).__name__} are not understood:"
        " give a path, an array, a dict of arrays or an iterable of dicts"
    )


def _read_path(path: Path) -> tuple[str, Iterator[Chunk]]:
    if os.path.isdir(path):
        files = sorted(path.glob("*.npz"))
        if not files:
            raise CalibrationError(f"{path}: the directory has no .npz file: write samples there with numpy.savez")
        return str(path), (_read_npz(file) for file in files)
    if not os.path.exists(path):
        raise CalibrationError(f"{path}: there is no such file: check the path of the samples")
    if path.suffix == ".npz":
        return str(path), (_read_npz(file) for file in [path])
    if path.suffix == ".npy":
        return str(path), (_read_npy(file) for file in [path])
    raise CalibrationError(
        f"{path}: samples with the suffix {path.suffix!r} are not understood: give .npz, .npy or a directory of .npz"
    )


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.ndarray):
                return {name: archive[name] for name in archive.files}
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error
    raise CalibrationError(f"{path}: the file holds one unnamed array: name it .npy")


def _read_npy(path: Path) -> np.ndarray:
    try:
        with path.open("rb") as file:
            if zipfile.is_zipfile(file):
                raise CalibrationError(f"{path}: the file is an archive of named arrays: name it .npz")
            file.seek(0)
            np.lib.format.read_magic(file)
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> CalibrationError:
    if any(words in str(error) for words in ("allow_pickle", "Object arrays", "Python objects")):
        return CalibrationError(f"{path}: pickled objects are never loaded: save plain numeric arrays")
    return CalibrationError(f"{path}: the file is unreadable or damaged: write it again with numpy.savez or numpy.save")


def _read_iterable(source: Iterable[object]) -> Iterator[Chunk]:
    for index, item in enumerate(source):
        if not isinstance(item, Mapping):
            raise CalibrationError(
                f"part {index} of the samples is of the type {type(item).__name__}:"
                " yield dicts of arrays with the input names as keys"
            )
        yield _arrays(item)


def _arrays(mapping: Mapping[str, object]) -> dict[str, np.ndarray]:
    try:
        return {name: np.asarray(value) for name, value in mapping.items()}
    except (TypeError, ValueError) as error:
        raise CalibrationError("the samples are no regular arrays: give arrays of one size per input") from error
