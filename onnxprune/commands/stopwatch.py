"""Seconds by stage."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from onnxprune.slim import Progress


class Stopwatch:
    """Times stages and announces them to the caller's progress callback."""

    def __init__(self, progress: Progress | None = None) -> None:
        self.progress = progress
        self._start = time.perf_counter()
        self._seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times what happens inside."""
        start = time.perf_counter()
        if self.progress is not None:
            self.progress(name, 0.0)
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start
            if self.progress is not None:
                self.progress(name, 1.0)

    def total(self) -> dict[str, float]:
        """Returns the seconds of every stage so far, and of the whole."""
        return {**self._seconds, "total": time.perf_counter() - self._start}
