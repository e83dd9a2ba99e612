"""When a run is saved, and what stays of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from mlm.console import say
from mlm.errors import check_count
from mlm.training.base import SumLossModule
from mlm.training.run_directory import PLACES, checkpoints_in, step_of


@dataclass(frozen=True)
class CheckpointOptions:
    """What is kept of a run."""

    every_n_steps: int | None = 1000
    """Save every so many steps; null saves at the end only. Before a cooldown is saved anyway."""
    keep: int = 3
    """How many checkpoints stay; older ones are removed."""
    first: bool = False
    """Save the model before its first step too, as step 0, and keep it."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run, by name."""
        check_count("checkpoint.every_n_steps", self.every_n_steps)
        check_count("checkpoint.keep", self.keep)


class Checkpoints(Callback):
    """Saves every ``every_n_steps`` steps and at the end, and keeps the last ``keep``.

    It saves when the next batch begins: by then the step's validation is done and logged. Where the
    rate begins to cool down one more is saved beside them, ``before_cooldown/step_…``, which stays:
    from there a run can go on for longer. Where a run goes back to an earlier one, those of later
    steps go: they would be taken for its newest.
    """

    def __init__(
        self, run_dir: Path, every_n_steps: int | None, keep: int, first: bool = False
    ) -> None:
        self.run_dir = run_dir
        self.directory, self.stable = (run_dir / place for place in PLACES)
        self.every_n_steps, self.keep, self.first = every_n_steps, keep, first
        self._saved: int | None = None
        self._cooling = True  # unless a checkpoint says otherwise; older ones do not say

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """What a run starts from needs no saving, unless it is wanted for comparison."""
        self._saved = trainer.global_step
        # Before its first step only the first rank knows what a run has spent. A run that ended
        # just where its rate begins to cool down has still to save what was before.
        self._cooling = self._cooling and trainer.global_step > 0 and _is_cooling(module)
        if not trainer.should_stop:
            self._remove_later(trainer)
        if self.first and trainer.global_step == 0:
            self._save(trainer)

    def _remove_later(self, trainer: Trainer) -> None:
        for path in checkpoints_in(self.run_dir):
            if step_of(path) > trainer.global_step:
                trainer.strategy.remove_checkpoint(path)
                if trainer.is_global_zero:
                    say(f"{path}: is of what comes anew now, removed")

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        """Save if the step before this batch was due, or the last of the stable phase."""
        every = self.every_n_steps
        if every and trainer.global_step % every == 0 and self._saved != trainer.global_step:
            self._save(trainer)
        if not self._cooling and _is_cooling(module):
            self._cooling = True
            trainer.save_checkpoint(self.stable / f"step_{trainer.global_step:08d}")

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Save the end of the run."""
        if self._saved != trainer.global_step:
            self._save(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Whether the rate was cooling down, and what was before it saved."""
        return {"cooling": self._cooling}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self._cooling = state_dict["cooling"]

    def _save(self, trainer: Trainer) -> None:
        self._saved = trainer.global_step
        trainer.save_checkpoint(self.directory / f"step_{trainer.global_step:08d}")
        saved = sorted(self.directory.glob("step_*"))
        if self.first and saved[0].name == "step_00000000":
            saved = saved[1:]
        for old in saved[: -self.keep]:
            trainer.strategy.remove_checkpoint(old)


def _is_cooling(module: LightningModule) -> bool:
    assert isinstance(module, SumLossModule)
    share = module.optimizer_options.cooling
    return share > 0 and module.progress >= 1 - share
