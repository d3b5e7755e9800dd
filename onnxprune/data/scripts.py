"""Samples from a Python script: ``script.py`` or ``script.py:function``."""

import contextlib
import sys
import traceback
import types
from collections.abc import Generator, Iterable, Iterator, Mapping
from pathlib import Path

from onnxprune.errors import CalibrationError

FUNCTION = "samples"
"""The function that is called where none is named."""

_END = object()


def script_of(path: str) -> tuple[Path, str] | None:
    """Returns the script and the function that a path names, or ``None`` where it names no script."""
    file, found, function = path.rpartition(":")
    if found and file.endswith(".py"):
        return Path(file), function
    return (Path(path), FUNCTION) if path.endswith(".py") else None


def run_script(path: Path, function: str) -> object:
    """Returns what a function of a script returns; for an iterable, a generator that consumes it on demand.

    What the script prints goes to stderr. Modules beside it can be imported.

    Raises:
        CalibrationError: The script cannot be read, has no such function, or fails (also while iterating).
    """
    try:
        code = path.read_bytes()
    except OSError as error:
        reason = (error.strerror or "unreadable").lower()
        raise CalibrationError(f"{path}: the script cannot be read ({reason}): check the path") from error
    module = types.ModuleType(f"onnxprune script {path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses look their module up there
    with _running(path):
        exec(compile(code, str(path), "exec"), module.__dict__)
    call = getattr(module, function, None)
    if not callable(call):
        raise CalibrationError(
            f"{path}: the script has no function {function!r}: define it, or name another as {path.name}:FUNCTION"
        )
    with _running(path):
        result: object = call()
        if isinstance(result, Mapping) or hasattr(result, "__array__") or not isinstance(result, Iterable):
            return result
        items = iter(result)
    return _items(path, items)


def _items(path: Path, items: Iterator[object]) -> Generator[object, None, None]:
    try:
        while True:
            with _running(path):
                item = next(items, _END)
            if item is _END:
                return
            yield item
    finally:
        if isinstance(items, Generator):
            with _running(path):
                items.close()


@contextlib.contextmanager
def _running(path: Path) -> Iterator[None]:
    """Lets the script import its neighbours and keep stdout clean; tells what goes wrong in one sentence."""
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except (Exception, SystemExit) as error:
        words = " ".join(str(error).split())
        kind = type(error).__name__
        said = f"{kind}: {words[:160]}" if words else kind
        raise CalibrationError(f"{path}, line {_line(path, error)}: {said}: repair the script") from error
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)


def _line(path: Path, error: BaseException) -> int:
    """Returns the last line of the script that an error passed through."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return error.lineno or 1
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return (lines[-1] if lines else None) or 1
