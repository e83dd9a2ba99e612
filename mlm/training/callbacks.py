"""What happens beside the steps: the end of the budget, signals, throughput."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from mlm.console import say
from mlm.training.base import SumLossModule
from mlm.training.datamodule import STOPPING, TimedLoader

# So late in a budget of time only the end is validated, or a validation could outlast the budget.
_LATE = 0.95
# A launcher and a job system may both pass one stop on, within so many seconds.
_SAME_STOP = 1.0
_STOPPING = b"mlm: stopping after this step, and saving; once more leaves at once\n"


class EndOfBudget(Callback):
    """Stops the trainer when the budget is spent or a signal came, at the same step on all ranks.

    After the last step Lightning validates once more; after a signal there is no time for that, and
    a validation that was due is left to `MakeUpValidation`. In the last twentieth of a budget of
    time there is none before the end, nor where one would not be over by then.
    """

    def __init__(self) -> None:
        self._longest = 0.0  # a validation and a step, in seconds
        self._began: float | None = None

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """A run that was finished before has nothing to go on with."""
        assert isinstance(module, SumLossModule)
        self._batches = trainer.limit_val_batches
        if module.spent.is_over(module.budget):
            if trainer.is_global_zero:
                say(f"the budget is spent since step {module.spent.steps}: nothing left to train")
            if not module.validation_due:
                trainer.limit_val_batches = 0
            trainer.should_stop = True

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        """Look, after each finished step."""
        assert isinstance(module, SumLossModule)
        over = module.spent.is_over(module.budget)
        late = not over and self._is_late(module)
        done, interval = trainer.fit_loop.epoch_loop.batch_idx + 1, trainer.val_check_batch
        asked = interval is not None and done % interval == 0
        if module.stop_agreed:
            module.validation_due = over or (asked and not late)
        trainer.limit_val_batches = 0 if late or module.stop_agreed else self._batches
        if asked and not late:
            self._began = module.spent.seconds
        trainer.should_stop |= over or module.stop_agreed

    def state_dict(self) -> dict[str, Any]:
        """What a run that goes on must know, to leave out what it would have left out."""
        return {"longest": self._longest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self._longest = state_dict["longest"]

    def _is_late(self, module: SumLossModule) -> bool:
        """Whether a validation might outlast the budget; by readings that all ranks share."""
        if module.budget.unit != "seconds":
            return False
        seconds = module.spent.seconds
        if self._began is not None and seconds > self._began:  # not the same step's next part
            self._longest, self._began = max(self._longest, seconds - self._began), None
        return module.progress > _LATE or seconds + self._longest > module.budget.amount


class MakeUpValidation(Callback):
    """Validates, before it goes on, where a signal has kept the run before from it.

    So the best state is chosen among those that it would be chosen among without the signal. Stands
    after `StopOnSignal` in a list of callbacks, for a signal may come again.
    """

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Do what Lightning does between two batches (`_TrainingEpochLoop.on_advance_end`)."""
        assert isinstance(module, SumLossModule)
        if not module.validation_due:
            return
        module.validation_due = False
        first = trainer._logger_connector._first_loop_iter
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.run()
        trainer.training = True
        trainer._logger_connector._first_loop_iter = first
        if trainer.should_stop:
            trainer.limit_val_batches = 0


class StopOnSignal(Callback):
    """SIGTERM, SIGINT and SIGUSR1 ask for a stop; a second one, a second later, is obeyed at once.

    Handlers only set a flag: ranks agree on it with the next step's count, or at the end of a
    validation, whose rest is left out, so that none of them waits for a partner that has left.
    Stands after `Checkpoints` in a list of callbacks, to guard the last save too.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Take over from Lightning's handlers, which talk to other ranks inside the signal."""
        assert isinstance(module, SumLossModule)
        asked: list[float] = []

        def ask(number: int, frame: FrameType | None) -> None:
            now = time.monotonic()
            if asked and now - asked[0] > _SAME_STOP:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            if not asked and trainer.is_global_zero:
                os.write(2, _STOPPING)  # print is not safe inside a signal
            asked.append(now)
            module.stop_asked = True

        for number in STOPPING:
            self._before[number] = signal.signal(number, ask)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Put the former handlers back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def on_exception(
        self, trainer: Trainer, module: LightningModule, exception: BaseException
    ) -> None:
        """Put the former handlers back."""
        self.on_train_end(trainer, module)


class StepMetrics(Callback):
    """Logs loss, rates, tokens per second, MFU and the share of time spent waiting for data.

    It does so every ``every_n_steps`` steps, and at the first and the last. ``token_flops`` are the
    floating-point operations of training on a token, ``peak`` what one device does in a second.
    """

    def __init__(self, every_n_steps: int, token_flops: float, peak: float) -> None:
        self.every_n_steps = every_n_steps
        self.token_flops, self.peak = token_flops, peak
        self.tokens_per_second = 0.0
        self._seconds = self._waited = 0.0
        self._tokens = self._step = 0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Count from here."""
        assert isinstance(module, SumLossModule)
        self._tokens, self._step = module.spent.tokens, module.spent.steps
        self._resume_clock()

    def _resume_clock(self) -> None:
        self._since = time.perf_counter()

    def _pause_clock(self) -> None:
        self._seconds += time.perf_counter() - self._since

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Validation is no training time."""
        self._pause_clock()

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Go on."""
        self._resume_clock()

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        """Log, every so many finished steps."""
        assert isinstance(module, SumLossModule)
        step = module.spent.steps
        due = step == 1 or trainer.should_stop or step % self.every_n_steps == 0
        if step == self._step or not due:
            return
        self._step = step
        self._pause_clock()
        loader = trainer.train_dataloader
        waited = loader.waited if isinstance(loader, TimedLoader) else 0.0
        tokens = module.spent.tokens - self._tokens
        self.tokens_per_second = tokens / self._seconds
        arithmetic = self.token_flops * tokens / self._seconds
        metrics = {
            **module.step_metrics,
            "tokens_per_second": self.tokens_per_second,
            "mfu": arithmetic / (self.peak * trainer.world_size),
            "data_wait": (waited - self._waited) / self._seconds,
            "seconds": module.spent.seconds,
        }
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step)
        self._tokens, self._waited, self._seconds = module.spent.tokens, waited, 0.0
        self._resume_clock()
