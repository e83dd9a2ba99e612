"""How far a long job is: a bar on a terminal, a line now and then in a file; on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from mlm.console import duration

_SECONDS_BETWEEN_LINES = 15


def say(message: str) -> None:
    """One line for people."""
    print(message, file=sys.stderr, flush=True)


class Meter:
    """Shows the share done, MB/s and time left of one job; a context manager.

    Args:
        job: what it is.
        share: asked for the share that is done, in [0, 1], or None where nobody can know.
    """

    def __init__(self, job: str, share: Callable[[], float | None]) -> None:
        self._job, self._share = job, share
        self._bytes = 0
        self._start = self._said = time.monotonic()
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            columns = (BarColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task(job, total=None)

    def __enter__(self) -> Meter:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def megabytes(self) -> float:
        """Of text, done."""
        return self._bytes / 1e6

    def add(self, size: int) -> None:
        """``size`` more bytes of text are done."""
        self._bytes += size
        now = time.monotonic()
        if now - self._said < (_SECONDS_BETWEEN_LINES if self._bar is None else 0.1):
            return
        self._said = now
        seconds, share = now - self._start, self._share()
        text = f"{self._job}: {self.megabytes:,.0f} MB, {self.megabytes / seconds:.1f} MB/s"
        if share:
            text += f", {share:.0%}, {duration(seconds * (1 - share) / share)} left"
        if self._bar is None:
            say(text)
        else:
            self._bar.update(self._task, description=text, completed=share, total=share and 1)
