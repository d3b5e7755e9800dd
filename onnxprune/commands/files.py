"""Files that a command is about to write: checked before any work is done."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from onnxprune.errors import ModelError, OutputError, UsageError
from onnxprune.model.writing import write_whole


def check_outputs(models: Sequence[Path], texts: Sequence[Path], inputs: Sequence[Path], *, force: bool) -> None:
    """Checks that every output can be written and destroys nothing.

    Args:
        models: Outputs that are replaced only with ``force``.
        texts: Reports and logs, which are replaced.
        inputs: Files that the command reads, the model first.
        force: Whether existing outputs may be replaced.

    Raises:
        ModelError: the model does not exist.
        UsageError: an output is an input, is named twice, or exists and ``force`` is not set.
        OutputError: a folder is missing or not writable.
    """
    if not os.path.exists(inputs[0]):
        raise ModelError(f"{str(inputs[0])!r} does not exist: give the path of an .onnx file")
    seen: set[Path] = set()
    for path in (*models, *texts):
        _check_place(path)
        if any(_same(path, source) for source in inputs):
            raise UsageError(f"the output {str(path)!r} is an input, which is never written: give another path")
        real = Path(os.path.realpath(path))
        if real in seen:
            raise UsageError(f"{str(path)!r} is named for two outputs: give them different names")
        seen.add(real)
        if not os.path.lexists(path):
            continue
        if not force and path in models:
            raise UsageError(f"{str(path)!r} exists: give --force to replace it, or another path")
        if path in models and _is_weights_of(path, inputs[0]):
            raise UsageError(
                f"the output {str(path)!r} holds weights of the input, which is never written: give another path"
            )


def default_output(model: Path) -> Path:
    """Returns where the result goes if nothing is said: ``<stem>.slim.onnx`` beside the model.

    Raises:
        ModelError: the path of the model names no file.
    """
    if not model.name:
        raise ModelError(f"{str(model)!r} is a folder: give the path of an .onnx file in it")
    return model.with_name(f"{model.stem}.slim.onnx")


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    write_whole(path, text.encode("utf-8", "backslashreplace"))


def _check_place(path: Path) -> None:
    """Checks that a plain file can stand at ``path``."""
    folder = path.parent
    if os.path.isdir(path) or not path.name:
        raise OutputError(f"the output {str(path)!r} is a folder: give the path of a file")
    if not os.path.isdir(folder):
        raise OutputError(f"the folder {str(folder)!r} does not exist: make it first, or give another path")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"the folder {str(folder)!r} cannot be written to: give a path in another folder")
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        reason = error.strerror
        raise OutputError(f"the output {str(path)!r} cannot be written ({reason}): give another path") from error
    if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
        raise OutputError(f"the output {str(path)!r} is not a plain file: give another path")


def _same(path: Path, source: Path) -> bool:
    if os.path.realpath(path) == os.path.realpath(source):
        return True
    return os.path.exists(path) and os.path.exists(source) and os.path.samefile(path, source)


def _is_weights_of(path: Path, model: Path) -> bool:
    from onnxprune.model.external import weights_files

    return any(_same(path, file) for file in weights_files(model))
