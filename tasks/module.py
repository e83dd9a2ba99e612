"""Fine-tuning as a Lightning module: the task's loss as a sum, and its metrics."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torchmetrics import MeanMetric

from mlm.batch import Batch
from mlm.errors import UserError
from mlm.training.base import SumLossModule, Sums
from mlm.training.budget import Budget
from mlm.training.checkpoint_io import without_prefix
from mlm.training.optimizers import OptimizerOptions
from tasks.base import Task
from tasks.heads import TaskModel
from tasks.lora import Lora


class FineTuningModule(SumLossModule):
    """Trains an encoder with a task's head on it."""

    model: TaskModel

    def __init__(
        self,
        model: TaskModel,
        task: Task,
        optimizer: OptimizerOptions,
        budget: Budget,
        batch_size: int,
        seed: int = 0,
        lora: Lora | None = None,
    ) -> None:
        """
        Args:
            model: what is trained.
            task: says what the loss and the metrics are.
            optimizer: the optimizer and its schedule.
            budget: the length of the run.
            batch_size: examples a step.
            seed: of dropout.
            lora: the adapters that ``model`` has.
        """
        super().__init__(model, optimizer, budget, seed, expected_count=batch_size)
        self.task, self.lora = task, lora
        self.metrics = task.metrics()
        self.validation_loss = MeanMetric()

    def sums(self, batch: Batch) -> Sums:
        """The task's loss over the micro-batch.

        With R-Drop (https://arxiv.org/abs/2106.14448) dropout draws twice: the loss is the mean of
        both passes', and a multiple of how far their outputs are apart.
        """
        assert batch.labels is not None
        outputs = self.model(batch)
        loss, count = self.task.training_loss(outputs, batch.labels)
        if alpha := self.task.loss_options.r_drop:
            second = self.model(batch)
            loss = (loss + self.task.training_loss(second, batch.labels)[0]) / 2
            loss = loss + alpha * self.task.divergence(outputs, second)
        return Sums(loss, count)

    def on_validation_epoch_start(self) -> None:
        """Forget what the last validation saw."""
        self.metrics.reset()
        self.validation_loss.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Update the task's metrics."""
        if self.stop_asked:
            return
        assert batch.labels is not None
        outputs = self.model(batch)
        loss, count = self.task.loss(outputs, batch.labels)
        self.validation_loss.update(loss / count.clamp(min=1), weight=count)
        self.task.update(self.metrics, outputs, batch)

    def on_validation_epoch_end(self) -> None:
        """Log the scores over all ranks."""
        if self.stops_validation():
            return
        # A task whose examples are parts of its inputs has a loss of whole inputs.
        values = {"loss": self.validation_loss.compute()} | self.metrics.compute()
        # Tables, such as a confusion matrix, are made once, from the best state.
        self.log_validation({f"val/{k}": v.float() for k, v in values.items() if v.ndim == 0})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adapters are kept as they are, too: the model folder has them merged."""
        super().on_save_checkpoint(checkpoint)
        if self.lora:
            checkpoint["lora"] = self.lora.kept(without_prefix(checkpoint["state_dict"]))

    def training_weights(self, checkpoint: dict[str, Any]) -> dict[str, Tensor]:
        """Weights come as model folders have them."""
        weights = self.task.training_state(without_prefix(checkpoint["state_dict"]))
        if self.lora:
            weights = self.lora.restored(self.model, weights, checkpoint.get("lora"))
        elif "lora" in checkpoint:
            raise UserError("--resume: this checkpoint has adapters; go on with its --lora.rank")
        return {f"model.{name}": value for name, value in weights.items()}


class KeepBest(Callback):
    """Calls ``save`` after each validation that beats all before, and stops without any.

    Args:
        save: writes a model folder with the given weights.
        monitor: the logged metric that decides, such as `val/accuracy`.
        higher_is_better: or less of it is.
        patience: stop after so many validations in a row that were not better; None never does.
    """

    def __init__(
        self,
        save: Callable[[dict[str, Tensor]], None],
        monitor: str,
        higher_is_better: bool = True,
        patience: int | None = None,
        holds: Callable[[int], bool] = lambda step: True,
    ) -> None:
        self.save, self.monitor, self.patience, self.holds = save, monitor, patience, holds
        self.higher_is_better = higher_is_better
        self.best: float | None = None
        self.best_step: int | None = None
        self.waited = 0

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Compare; a value that is only equal, or not a number, is no better."""
        cut_short = isinstance(module, SumLossModule) and module.stop_agreed
        if trainer.sanity_checking or cut_short:
            return
        value = float(trainer.callback_metrics[self.monitor])
        if self._is_better(value):
            self.best, self.best_step, self.waited = value, trainer.global_step, 0
            self.save_now(trainer)
            return
        self.waited += 1
        if self.patience is not None and self.waited >= self.patience:
            trainer.should_stop = True

    def save_now(self, trainer: Trainer) -> None:
        """Write the present state, whether it is best or not."""
        weights = without_prefix(trainer.strategy.lightning_module_state_dict())  # by all ranks
        if trainer.is_global_zero:
            self.save(weights)

    def _is_better(self, value: float) -> bool:
        if self.best is None or math.isnan(self.best):
            return True
        return value > self.best if self.higher_is_better else value < self.best

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know."""
        return {
            "monitor": self.monitor,
            "best": self.best,
            "best_step": self.best_step,
            "waited": self.waited,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there; but not where that best was by another metric, or is not here."""
        step = state_dict["best_step"]
        monitor = state_dict.get("monitor", self.monitor)  # older checkpoints do not say
        if monitor != self.monitor or step is None or not self.holds(step):
            return
        self.best, self.best_step = state_dict["best"], step
        self.waited = state_dict["waited"]
