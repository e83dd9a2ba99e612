"""How far a run is: a bar on a terminal, a line now and then in a file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from mlm.console import duration
from mlm.training.base import SumLossModule


class BudgetProgress(ProgressBar):
    """Loss, tokens per second and time left, on standard error."""

    def __init__(self, every_n_steps: int, tokens_per_second: Callable[[], float]) -> None:
        super().__init__()
        self._enabled = True
        self._every_n_steps = every_n_steps
        self._tokens_per_second = tokens_per_second
        self._bar: Progress | None = None
        self._logged = 0

    def disable(self) -> None:
        """Called by Lightning on every rank but the first."""
        self._enabled = False

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Open the bar where there is a terminal."""
        assert isinstance(module, SumLossModule)
        self._logged = module.spent.steps
        if self._enabled and sys.stderr.isatty():
            columns = (BarColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task("starting", total=1.0)
            self._bar.start()

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        """Tell how far it is."""
        assert isinstance(module, SumLossModule)
        steps = module.spent.steps
        if not self._enabled or steps == self._logged:
            return
        due = steps == 1 or trainer.should_stop or steps % self._every_n_steps == 0
        if self._bar is not None:
            text = self._describe(module)
            self._bar.update(self._task, completed=module.progress, description=text)
        elif due:
            self._logged = steps
            self._say(self._describe(module))

    def _describe(self, module: SumLossModule) -> str:
        progress, seconds = module.progress, module.spent.seconds - module.spent.before
        left = duration(seconds * (1 - progress) / progress) if progress else "?"
        return (
            f"step {module.spent.steps:,}  {progress:4.0%}  "
            f"loss {module.step_metrics['train/loss']:.3f}  "
            f"{self._tokens_per_second():,.0f} tokens/s  {left} left"
        )

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Tell what validation found."""
        assert isinstance(module, SumLossModule)
        if module.stop_agreed:
            return
        found = {k: v for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        if self._enabled and found and not trainer.sanity_checking:
            values = "  ".join(f"{name} {float(value):.4f}" for name, value in found.items())
            self._say(f"step {trainer.global_step:,}  {values}")

    def _say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def on_exception(
        self, trainer: Trainer, module: LightningModule, exception: BaseException
    ) -> None:
        """Close the bar, so that the error stands below it."""
        self.on_train_end(trainer, module)
