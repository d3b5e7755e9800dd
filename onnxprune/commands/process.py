"""What a process owes its caller: one sentence about an error, an exit code, quiet streams, Ctrl-C that works."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxprune.errors import ModelError, OnnxPruneError, OutputError, ProviderError, SurgeryError, UsageError

if TYPE_CHECKING:
    from onnxprune.slim import Progress

INTERRUPTED = 130
UNEXPECTED = SurgeryError.exit_code
"""What no rule foresaw is our bug, as a failed proof is."""


@contextlib.contextmanager
def logs(verbose: int, log_file: Path | None) -> Iterator[None]:
    """Leads logs and Python's warnings to where the options say, and nowhere else."""
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr) if verbose else logging.NullHandler()]
    if log_file is not None:
        try:
            handlers.append(logging.FileHandler(log_file, encoding="utf-8"))
        except OSError as error:
            reason = error.strerror
            raise OutputError(
                f"the log {str(log_file)!r} cannot be written ({reason}): give another --log-file"
            ) from error
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        logging.root.addHandler(handler)
    ours = logging.getLogger("onnxprune")
    level = ours.level
    ours.setLevel(logging.DEBUG if verbose > 1 or log_file else logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        ours.setLevel(level)
        for handler in handlers:
            logging.root.removeHandler(handler)
            handler.close()


@contextlib.contextmanager
def bar(*, quiet: bool) -> Iterator[Progress | None]:
    """Yields a progress callback that draws on the terminal; nothing where there is none."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress as Bars

    with Bars(console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def show(stage: str, fraction: float) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=1.0)
            bars.update(tasks[stage], completed=fraction)

        yield show


def silence_stdout() -> None:
    """Leads stdout, which nobody reads or which is full, to nowhere, so that Python can flush it at the end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Keeps Ctrl-C until the end: compiled modules that are interrupted while they are imported drop it, or crash."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt


def explain(error: BaseException, context: Mapping[str, Any]) -> int:
    """Prints one sentence about what went wrong on stderr, and returns the exit code."""
    code, words = UNEXPECTED, f"{type(error).__name__} {error}".strip()
    message = f"this is a bug in onnxprune ({words}): please report it with the output of -vv"
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return UsageError.exit_code
    if was_interrupted(error):
        rest = "the model was already written, whole" if context.get("written") else "nothing was written"
        code, message = INTERRUPTED, f"interrupted: {rest}"
    elif isinstance(error, click.ClickException):
        code, message = UsageError.exit_code, usage(error)
    elif isinstance(error, OnnxPruneError):
        code, message = error.exit_code, str(error)
    elif isinstance(error, ImportError) and "onnxruntime" in str(error):
        message = f"ONNX Runtime cannot be loaded ({error}): install onnxruntime-gpu, or onnxruntime"
        code = ProviderError.exit_code
    elif isinstance(error, MemoryError):
        message = "there is not enough memory: close other programs or take a smaller model"
        code = ModelError.exit_code
    elif isinstance(error, OSError):
        silence_stdout()
        message = f"the output cannot be written ({words}): free some space or give another place"
        code = OutputError.exit_code
    shown = "".join(letter if letter.isprintable() else " " for letter in message)
    click.echo(f"onnxprune: {shown}", err=True)
    return code


def was_interrupted(error: BaseException | None) -> bool:
    """Returns whether Ctrl-C is behind an error; extension modules that are being imported put their own before it."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt | click.Abort):
            return True
        error = error.__cause__ or error.__context__
    return False


def usage(error: click.ClickException) -> str:
    """Returns the words of click as one sentence with the way out."""
    words = error.format_message().strip().rstrip(".")
    context = error.ctx if isinstance(error, click.UsageError) else None
    return f"{words[:1].lower()}{words[1:]}: see '{context.command_path if context else 'onnxprune'} --help'"
