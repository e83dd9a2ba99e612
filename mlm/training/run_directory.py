"""The folder of a run: what it may hold before, and what is written first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pytorch_lightning.utilities import rank_zero_only

from mlm.checkpoint import check_replaceable
from mlm.config_files import to_yaml
from mlm.console import say
from mlm.errors import UserError
from mlm.files import atomic_file, sweep
from mlm.training.checkpoint_io import STEP, latest_checkpoint

LOCK = ".lock"
"""Held by the process that writes in a run's folder."""
PLACES = ("checkpoints", "before_cooldown")
"""Where in a run's folder its checkpoints are."""


def choose_checkpoint(run_dir: Path, resume: str) -> Path | None:
    """The checkpoint that a run starts from; None for a fresh start.

    Args:
        run_dir: the run's folder.
        resume: `never` wants an empty folder, `auto` takes its newest whole checkpoint if there is
            one, anything else is the path of a checkpoint, of this run or, where the folder has
            none, of another.

    Raises:
        UserError: the folder holds something and nobody said to resume, something stands where the
            model is to go, or there is no such checkpoint, or it is not of the run in the folder.
    """
    # Other ranks start when the first has begun to write.
    if is_rank_zero():
        if resume == "never":
            _refuse_what_is_there(run_dir)
        else:
            check_replaceable(run_dir / "model")  # or all the training would be for nothing
    if resume == "never":
        return None
    return _newest(run_dir) if resume == "auto" else _named(resume, run_dir)


def _refuse_what_is_there(run_dir: Path) -> None:
    if run_dir.exists() and any(path.name != LOCK for path in run_dir.iterdir()):
        raise UserError(
            f"{run_dir}: is not empty; choose another --run_dir, or go on with --resume auto"
        )


def _newest(run_dir: Path) -> Path | None:
    if is_rank_zero():
        for place in PLACES:
            if (run_dir / place).is_dir():
                sweep(run_dir / place)  # a run that is complete will not write there again
    found = newest_checkpoint(run_dir)
    if is_rank_zero():
        say(
            f"no checkpoint in {run_dir} yet, starting afresh"
            if found is None
            else f"going on from {found}"
        )
    return found


def _named(resume: str, run_dir: Path) -> Path:
    checkpoint = Path(resume)
    if not (checkpoint.is_dir() and STEP.fullmatch(checkpoint.name)):
        raise UserError(f"--resume {resume}: no such checkpoint folder (…/step_00001000)")
    # Those of later steps would be removed, as what its own run has gone back from.
    if is_rank_zero() and checkpoints_in(run_dir) and not _is_in(run_dir, checkpoint):
        raise UserError(
            f"--resume {resume}: {run_dir} holds checkpoints of a run of its own; choose another "
            "--run_dir, or go on from those with --resume auto"
        )
    return checkpoint


def _is_in(run_dir: Path, checkpoint: Path) -> bool:
    """Whether a checkpoint is of the run in ``run_dir``, where a folder may be a link."""
    own = {path.resolve() for path in (run_dir, *(run_dir / place for place in PLACES))}
    parent = checkpoint.parent.resolve()
    return not own.isdisjoint({parent, *parent.parents})


def checkpoints_in(run_dir: Path) -> list[Path]:
    """All checkpoints of a run, whole or not."""
    found = (path for place in PLACES for path in (run_dir / place).glob("step_*"))
    return [path for path in found if STEP.fullmatch(path.name)]


def newest_checkpoint(run_dir: Path) -> Path | None:
    """A run's newest checkpoint that is whole, be it the one before its cooldown."""
    found = (latest_checkpoint(run_dir / place) for place in PLACES)
    return max((path for path in found if path is not None), key=step_of, default=None)


def resumed_step(checkpoint: Path | None, resume: str) -> int | None:
    """The step that a run goes on from: 0 where `auto` found no checkpoint, None for a new run."""
    if checkpoint is None:
        return 0 if resume == "auto" else None
    return step_of(checkpoint)


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was saved."""
    return int(checkpoint.name.removeprefix("step_"))


def is_rank_zero() -> bool:
    """Whether this process is the one that writes; known before the ranks have met."""
    return getattr(rank_zero_only, "rank", 0) == 0


@rank_zero_only
def write_config(run_dir: Path, settings: dict[str, Any]) -> None:
    """Write every resolved setting to ``run_dir/config.yaml``."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with atomic_file(run_dir / "config.yaml") as draft:
        draft.write_text(to_yaml(settings))
