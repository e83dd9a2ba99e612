"""The seconds that a run has taken, as its schedule saw them.

A budget of time makes the learning rate follow the clock, and a clock cannot be wound back: a run
that was killed would go on from its checkpoint with other rates than it had had. So what the clock
said at each step is on disk before it decides anything, and a resumed run is told the same again.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from mlm.errors import UserError
from mlm.files import atomic_file


class Clock:
    """Seconds of training, read once a step.

    Args:
        path: where readings are kept; None keeps none, for budgets that do not follow the clock.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._began = 0.0
        self._readings: dict[int, float] = {}

    def start(self, steps: int, seconds: float) -> None:
        """Go on after ``steps`` steps that took ``seconds``; readings from there on will repeat."""
        self._began = time.monotonic() - seconds
        if self.path is None:
            return
        self._readings = {step: read for step, read in _read(self.path).items() if step >= steps}
        # A reading that was killed while it was written would run into the next line.
        with atomic_file(self.path) as draft:
            draft.write_text("".join(_line(*reading) for reading in self._readings.items()))

    def read(self, step: int) -> float:
        """The seconds at the end of ``step``, as they were read the first time."""
        if step in self._readings:
            seconds = self._readings[step]
            self._began = time.monotonic() - seconds
            return seconds
        seconds = time.monotonic() - self._began
        if self.path is not None:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)
            try:
                os.write(descriptor, _line(step, seconds).encode())
                _sync(descriptor)
            finally:
                os.close(descriptor)
        return seconds

    def close(self) -> None:
        """The run is complete: nothing will be repeated."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


_sync = getattr(os, "fdatasync", os.fsync)  # macOS has no other


def _line(step: int, seconds: float) -> str:
    return f"{step} {seconds.hex()}\n"


def _read(path: Path) -> dict[int, float]:
    """The readings of whole lines."""
    if not path.is_file():
        return {}
    text = path.read_text(errors="replace")
    lines = text[: text.rfind("\n") + 1].splitlines()
    try:
        return {int(step): float.fromhex(seconds) for step, seconds in map(str.split, lines)}
    except ValueError:
        raise UserError(
            f"{path}: damaged; remove it, and the run goes on by the clock of today"
        ) from None
