"""Programs that share a machine in turns, each by a clock of its own.

    python benchmarks/turns.py CLOCK -m mlm pretrain …
    python benchmarks/turns.py CLOCK script.py …

runs a program whose monotonic clocks leave out what stands in the file CLOCK. `in_turns` starts
several so, lets one at a time run for a slice, and halts the others. So all of them have the whole
machine for as long as each other, and what disturbs it for minutes disturbs them all alike.
"""

from __future__ import annotations

import mmap
import os
import runpy
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from mlm.memory import without_small_caches

_SECONDS = struct.Struct("d")


class Turn:
    """A program that is halted, but in its turns.

    Args:
        clock: a file to be made, for the seconds that it was halted.
        words: what follows `python turns.py CLOCK`.
        log: where its output goes.
    """

    def __init__(self, clock: Path, words: Sequence[Any], log: Path) -> None:
        clock.write_bytes(_SECONDS.pack(0.0))
        self._file = clock.open("r+b")
        self._halted = mmap.mmap(self._file.fileno(), _SECONDS.size)
        self._log = log.open("w")
        self.command = [sys.executable, __file__, *map(str, (clock, *words))]
        self.process = subprocess.Popen(
            self.command, stdout=self._log, stderr=subprocess.STDOUT, env=_environment()
        )
        self._since = time.monotonic()
        self.process.send_signal(signal.SIGSTOP)

    def run(self, seconds: float) -> bool:
        """Let it run, and halt it again; whether it has ended."""
        (halted,) = _SECONDS.unpack(self._halted[:])
        self._halted[:] = _SECONDS.pack(halted + time.monotonic() - self._since)
        self.process.send_signal(signal.SIGCONT)
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGSTOP)
            self._since = time.monotonic()
            return False
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._halted.close()
        self._file.close()
        self._log.close()


def in_turns(programs: Sequence[Turn], seconds: float) -> None:
    """Run all to their ends, one at a time, ``seconds`` a turn.

    Raises:
        SystemExit: one did not end well.
    """
    # Unwinds as Ctrl-C does, so that nobody stays behind, halted for ever.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    running = list(programs)
    while running:
        for program in list(running):
            if program.run(seconds):
                running.remove(program)
                if program.process.returncode:
                    raise SystemExit(
                        f"ended with {program.process.returncode}, see {program._log.name}: "
                        f"{' '.join(program.command)}"
                    )


def _environment() -> dict[str, str]:
    quiet = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
    # As `mlm` would start itself anew, which would undo the clock of its own.
    return without_small_caches(os.environ) | quiet


def _run(clock: Path, words: list[str]) -> None:
    """Be the program that ``words`` name, by a clock that stands still while it is halted."""
    with clock.open("rb") as file:
        halted = mmap.mmap(file.fileno(), _SECONDS.size, access=mmap.ACCESS_READ)
    for name in ("monotonic", "perf_counter"):
        clock_of_all = getattr(time, name)
        setattr(time, name, lambda c=clock_of_all: c() - _SECONDS.unpack(halted[:])[0])
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        sys.path[0] = str(Path(words[0]).parent)
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    _run(Path(sys.argv[1]), sys.argv[2:])
