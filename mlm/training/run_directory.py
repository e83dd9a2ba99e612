"""The folder of a run: what it may hold before, and what is written first."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pytorch_lightning.utilities import rank_zero_only

from mlm.config_files import to_yaml
from mlm.console import say
from mlm.errors import UserError
from mlm.files import atomic_file, sweep
from mlm.training.checkpoint_io import latest_checkpoint

LOCK = ".lock"
"""Held by the process that writes in a run's folder."""


def choose_checkpoint(run_dir: Path, resume: str) -> Path | None:
    """The checkpoint that a run starts from; None for a fresh start.

    Args:
        run_dir: the run's folder.
        resume: `never` wants an empty folder, `auto` takes its newest whole checkpoint if there is
            one, anything else is the path of a checkpoint.

    Raises:
        UserError: the folder holds something and nobody said to resume, or there is no such
            checkpoint.
    """
    if resume == "auto":
        if is_rank_zero() and (run_dir / "checkpoints").is_dir():
            sweep(run_dir / "checkpoints")  # a run that is complete will not write there again
        found = latest_checkpoint(run_dir / "checkpoints")
        if is_rank_zero():
            say(
                f"no checkpoint in {run_dir} yet, starting afresh"
                if found is None
                else f"going on from {found}"
            )
        return found
    if resume != "never":
        if not (Path(resume).is_dir() and re.fullmatch(r"step_\d+", Path(resume).name)):
            raise UserError(f"--resume {resume}: no such checkpoint folder (…/step_00001000)")
        return Path(resume)
    # Other ranks start when the first has begun to write.
    if is_rank_zero() and run_dir.exists() and any(p.name != LOCK for p in run_dir.iterdir()):
        raise UserError(
            f"{run_dir}: is not empty; choose another --run_dir, or go on with --resume auto"
        )
    return None


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
