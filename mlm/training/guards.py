"""Around a run: one at a time in a folder, and what the machine does to it said in one line."""

from __future__ import annotations

import errno
import gc
import os
import re
import socket
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Callback

from mlm.console import say
from mlm.errors import RunError, UserError
from mlm.files import take_lock
from mlm.memory import ran_out
from mlm.training.base import SumLossModule
from mlm.training.clock import Clock
from mlm.training.run_directory import LOCK, is_rank_zero, newest_checkpoint, step_of
from mlm.training.spikes import WatchSpikes
from mlm.training.stall import EndStalled

T = TypeVar("T")

_DISK_FULL = re.compile("No space left|PytorchStreamWriter failed|Disk quota exceeded")
_WORKER_GONE = re.compile(
    r"DataLoader worker \(pid.*?\) (exited unexpectedly|is killed.*?)(?=\W|$)"
)
_WORKER_STUCK = re.compile(r"DataLoader timed out")
_RANK_GONE = re.compile(
    r"Connection (closed|reset|refused)|Broken pipe|Timed out waiting|Socket Timeout|NCCL"
)
GO_ON = "go on with the same options and --resume auto"
"""What to do about a run that ended too soon."""


# What Lightning raises where it finds settings that it cannot run, some of them only as it begins.
REFUSALS = (MisconfigurationException,)


class OutOfMemoryError(RunError):
    """A step did not fit; with fewer rows at once it would."""


@dataclass(frozen=True)
class GuardOptions:
    """What is done where something goes wrong."""

    on_nonfinite: Literal["stop", "skip"] = "stop"
    """Where a step's loss or gradient is not finite: stop before it is taken, or leave it out."""
    on_spike: Literal["record", "rollback"] = "record"
    """Where the loss suddenly rises: record it, or also go back to the last checkpoint and leave
    out the rows since."""
    on_oom: Literal["stop", "split"] = "stop"
    """Where memory is too small: stop, or halve the rows computed at once until they fit; the batch
    and the loss stay the same. On one device only."""
    detect_anomaly: bool = False
    """Stop at the first number that is not finite and name the module it came from; slow."""
    stall_timeout: float = 300.0
    """Seconds that a loader process, or another rank, may keep a run waiting."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run, by name."""
        if self.stall_timeout <= 0:
            raise UserError(f"stall_timeout: {self.stall_timeout} is not above 0")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> GuardOptions:
        """Those among the settings of a run."""
        return cls(**{field.name: settings[field.name] for field in fields(cls)})


def guard_callbacks(
    options: GuardOptions, run_dir: Path, load: Callable[[Path], dict[str, Any]]
) -> list[Callback]:
    """What watches a run's steps; ``load`` reads one of its checkpoints."""
    rolls_back = options.on_spike == "rollback"
    return [
        WatchSpikes(run_dir / "checkpoints" if rolls_back else None, load),
        EndStalled(options.stall_timeout),
    ]


def guard(module: SumLossModule, options: GuardOptions, run_dir: Path) -> None:
    """Set what ``module`` itself does about numbers that go wrong, and about the clock."""
    module.on_nonfinite, module.on_oom = options.on_nonfinite, options.on_oom
    if module.budget.unit == "seconds":
        module.clock = Clock(run_dir / "clock.txt")


def guarded(run: Callable[[dict[str, Any]], T], settings: dict[str, Any]) -> T:
    """``run(settings)``, alone in its run directory, and again with fewer rows where that is asked.

    Raises:
        UserError: as `only_run_in` and `in_one_line`.
        RunError: as `in_one_line`.
    """
    with only_run_in(Path(settings["run_dir"])) if is_rank_zero() else nullcontext():
        while True:
            try:
                with in_one_line():
                    return run(settings)
            except OutOfMemoryError:
                smaller = _with_smaller_pieces(settings)
                if smaller is None:
                    raise
                settings = smaller
            # Not in the clause above: there the exception still holds the tensors of its frames.
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def _with_smaller_pieces(settings: dict[str, Any]) -> dict[str, Any] | None:
    """The same run with twice as many micro-batches; None where that is not wanted or possible."""
    trainer = settings["trainer"]
    pieces = 2 * trainer["accumulate_grad_batches"]
    alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
    if settings["on_oom"] == "stop" or not alone or settings["data"]["batch_size"] % pieces:
        return None
    say(f"out of memory; going on with --trainer.accumulate_grad_batches {pieces}")
    return settings | {
        "trainer": trainer | {"accumulate_grad_batches": pieces},
        "resume": _begin_again(settings["resume"], Path(settings["run_dir"])),
    }


def _begin_again(resume: str, run_dir: Path) -> str:
    """`--resume` of the same run once more: a checkpoint that was named, until it has saved one."""
    if resume in ("never", "auto"):
        return "auto"
    newest = newest_checkpoint(run_dir)
    has_saved = newest is not None and step_of(newest) >= step_of(Path(resume))
    return "auto" if has_saved else resume


@contextmanager
def only_run_in(run_dir: Path) -> Iterator[None]:
    """Hold ``run_dir`` for this process, on one rank of those that share it.

    The lock ends with the process however it dies. A folder that is empty afterwards is taken away.

    Raises:
        UserError: another run is in it, or it cannot be made.
    """
    made = not run_dir.exists()
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UserError(f"{run_dir}: is a file; choose another --run_dir") from None
    path = run_dir / LOCK
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            take_lock(descriptor, run_dir)
            if os.fstat(descriptor).st_nlink == 0:  # taken away by a run that has just ended
                raise BlockingIOError
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode(errors="replace") or "another process"
            raise UserError(
                f"{run_dir}: a run is going on in it ({holder}); wait for it, stop it, or choose "
                "another --run_dir"
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            if made:
                with suppress(OSError):  # it holds something by now
                    run_dir.rmdir()
    finally:
        os.close(descriptor)


@contextmanager
def in_one_line() -> Iterator[None]:
    """Turn what libraries raise where the machine fails into what a person can act on.

    Raises:
        OutOfMemoryError: a step did not fit into memory.
        UserError: the disk is full.
        RunError: a loader process or another rank is gone.
    """
    try:
        yield
    except (UserError, RunError):
        raise
    except Exception as error:
        found = explain(error)
        if found is None:
            raise
        raise found from error


def explain(error: Exception) -> Exception | None:
    """What ``error`` means for the person who runs this; None where it is a bug of ours."""
    text = f"{error} {error.__cause__ or ''}"
    if isinstance(error, REFUSALS):
        return UserError(f"trainer: {str(error).splitlines()[0]}")
    if ran_out(error):
        return OutOfMemoryError(
            "out of memory: compute fewer rows at once with --trainer.accumulate_grad_batches 2 "
            "(or 4, 8, …; the same batch, the same loss) or let --on_oom split find the number; "
            "--activation_checkpointing true and a smaller --data.sequence_length help too"
        )
    code = error.errno if isinstance(error, OSError) else None
    if code in (errno.ENOSPC, errno.EDQUOT) or _DISK_FULL.search(text):
        if isinstance(error, OSError) and error.filename:
            return UserError(f"{error.filename}: the disk is full; free some space and {GO_ON}")
        return UserError(
            "the disk is full, or else /dev/shm, which loader processes need; free some space and "
            + GO_ON
        )
    match = _WORKER_GONE.search(text)
    if match or _broke_off(error):
        what = match[0] if match else f"a DataLoader worker is gone ({error})"
        return RunError(
            f"{what}; it was probably killed for memory (see --data.num_workers, and the size "
            f"of /dev/shm); {GO_ON}"
        )
    if _WORKER_STUCK.search(text):
        return RunError(
            "a loader process has given nothing for as long as --stall_timeout allows; is the disk "
            f"of the data still there? {GO_ON}"
        )
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if distributed and isinstance(error, RuntimeError) and _RANK_GONE.search(text):
        return RunError(f"another process of this run is gone or does not answer; {GO_ON}")
    return None


def _broke_off(error: Exception) -> bool:
    """Whether another process of this machine ended while it handed something over."""
    if not isinstance(error, ConnectionError | EOFError):
        return False
    frames = traceback.extract_tb(error.__traceback__)
    return any("multiprocessing" in Path(frame.filename).parts for frame in frames)
