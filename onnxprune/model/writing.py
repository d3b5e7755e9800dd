"""Files that appear whole or not at all: a temporary file beside them, and one rename."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from onnxprune.errors import OutputError


def write_whole(path: Path, data: bytes) -> None:
    """Put a file at ``path``; an earlier one of that name stays as it is until the new one is complete.

    Raises:
        OutputError: the folder is missing or closed, the disk is full, or ``path`` is a folder.
    """
    try:
        with temporary(path) as (file, name):
            finish(file, data)
            os.replace(name, path)
        sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> OutputError:
    """Return what to raise where the system refuses to write."""
    reason = error.strerror or str(error)
    return OutputError(f"'{path}' cannot be written ({reason}): free some space or choose another folder")


@contextlib.contextmanager
def temporary(path: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """Give a new file beside ``path``; unless it was renamed, it is gone afterwards, whatever happened."""
    # "x" and not mkstemp: the file gets the permissions that the user's umask gives, and is never somebody else's.
    name = path.with_name(f".{path.name[:50]}.{secrets.token_hex(8)}.tmp")
    try:
        with name.open("xb") as file:
            yield file, name
    finally:
        with contextlib.suppress(OSError):
            name.unlink()


def finish(file: BinaryIO, data: bytes = b"") -> None:
    """Write the rest, make sure that it has reached the disk, and close."""
    file.write(data)
    file.flush()
    os.fsync(file.fileno())
    file.close()


def sync_folder(folder: Path) -> None:
    """Make the new names last; not every system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
