"""Files that a command is about to write: checked before any work is done."""

import os
from collections.abc import Sequence
from pathlib import Path

from onnxprune.errors import ModelError, OutputError, UsageError


def check_outputs(models: Sequence[Path], reports: Sequence[Path], source: Path, *, force: bool) -> None:
    """Checks that every output can be written and destroys nothing.

    Raises:
        ModelError: the input does not exist.
        UsageError: an output is the input, is named twice, or exists and ``force`` is not set.
        OutputError: a folder is missing or not writable.
    """
    if not source.exists():
        raise ModelError(f"{str(source)!r} does not exist: give the path of an .onnx file")
    seen: set[Path] = set()
    for path in (*models, *reports):
        real = path.resolve()
        if real == source.resolve() or (path.exists() and os.path.samefile(path, source)):
            raise UsageError(
                f"the output {str(path)!r} is the input, which is never written: give another path with -o"
            )
        if real in seen:
            raise UsageError(f"{str(path)!r} is named for two outputs: give them different names")
        seen.add(real)
        if path.is_dir():
            raise OutputError(f"the output {str(path)!r} is a folder: give the path of a file")
        if path.exists() and not force and path in models:
            raise UsageError(f"{str(path)!r} exists: give --force to replace it, or another path")
        if not real.parent.is_dir():
            raise OutputError(f"the folder {str(real.parent)!r} does not exist: make it first, or give another path")
        if not os.access(real.parent, os.W_OK):
            raise OutputError(f"the folder {str(real.parent)!r} cannot be written to: give a path in another folder")


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    from onnxprune.report.files import write_whole

    write_whole(path, text)
