"""What pretraining and fine-tuning share: a loss that is a sum, a budget, and keyed randomness."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, Literal, NamedTuple

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from mlm.batch import Batch
from mlm.console import say
from mlm.data.keys import mix
from mlm.errors import RunError, UserError
from mlm.training.budget import Budget, Spent
from mlm.training.checkpoint_io import check_same_model
from mlm.training.clock import Clock
from mlm.training.gradients import (
    all_reduce_sum,
    clip_factor,
    gradient_factor,
    rescale_gradients,
)
from mlm.training.optimizers import OptimizerOptions, build_optimizer, set_learning_rate
from mlm.training.schedules import learning_rate_factor


class Sums(NamedTuple):
    """What one micro-batch adds to its step; divide by `targets` when all of them are in."""

    loss: Tensor
    """() : the sum of the losses of all targets, with its graph."""
    targets: Tensor
    """() : how many targets there were."""


class SumLossModule(LightningModule):
    """Trains ``model`` on sums.

    Automatic optimization: Lightning accumulates, clips and steps. This class follows the budget,
    sets the learning rate, keys dropout, and rescales the gradients to the global count of targets
    where it clips them, so that one rank, two ranks and accumulation take the same step.

    Subclasses say what a batch's sums are, and how to validate.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerOptions,
        budget: Budget,
        seed: int,
        expected_count: float,
    ) -> None:
        """
        Args:
            model: what is trained and saved.
            optimizer: the optimizer and its schedule.
            budget: the length of the run, which the schedule follows.
            seed: of everything random.
            expected_count: about how many targets a step has; keeps gradients near their final size
                during backward, and changes nothing else.
        """
        super().__init__()
        self.model = model
        self.optimizer_options, self.budget, self.seed = optimizer, budget, seed
        self.spent = Spent()
        self.clock = Clock()
        """Whose readings are the seconds spent; the first rank's decide for all."""
        self.on_nonfinite: Literal["stop", "skip"] = "stop"
        """What is done where a step's loss or gradient is not finite."""
        self.on_oom: Literal["stop", "split"] = "stop"
        """What whoever runs it does where memory is too small."""
        self.stop_asked = False
        """Set by a signal handler on any rank; all ranks hear of it at the next step."""
        self.stop_agreed = False
        self.validation_due = False
        """Whether a signal has cut short, or left out, what was to be validated at this step."""
        self.step_metrics: dict[str, float] = {}
        """What the last finished step had, over all ranks and micro-batches."""
        self.compiles = False
        """Whether its first step is compiled, for which no schedule waits."""
        self.kind_of_step = ""
        """Of the last finished one: only losses of one kind can be compared."""
        # All are constants; DDP would send them in validation too, of which ranks have unequal
        # shares, and wait.
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in self.named_buffers()]
        self._constant = 1.0 / expected_count
        self._factor = 1.0  # of the step's gradients, see `gradient_factor`

    @abstractmethod
    def sums(self, batch: Batch) -> Sums:
        """The micro-batch's sums."""

    def extra_metrics(self) -> dict[str, float]:
        """More to log about the present step."""
        return {}

    @property
    def progress(self) -> float:
        """The share of the budget spent, in [0, 1]."""
        return self.spent.progress(self.budget)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer of the options; its learning rate is set at each step."""
        return build_optimizer(self.model, self.optimizer_options)

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        """Copy beside the computing, which Lightning does with bare tensors only."""
        return batch.to(device, non_blocking=device.type == "cuda")

    def on_train_start(self) -> None:
        """Start the clock and an empty tally."""
        is_first = self.global_rank == 0
        if is_first:
            self.clock.start(self.spent.steps, self.spent.seconds)
        if not self.spent.steps:  # only the first rank knows what went by before
            before = self.clock.read(0) if is_first else 0.0
            told = torch.tensor(before, dtype=torch.float64, device=self.device)
            seconds = float(all_reduce_sum(told))
            self.spent = Spent(seconds=seconds, before=seconds)
        self._start_tally()

    def _start_tally(self) -> None:
        # loss, targets, tokens; float64 holds counts exactly.
        self._tally = torch.zeros(3, dtype=torch.float64, device=self.device)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Set the learning rate, and key dropout by the place in the run, so that resumes agree."""
        part = batch_idx % self.trainer.accumulate_grad_batches
        key = mix(self.seed, self.trainer.global_step, part, self.global_rank)
        torch.manual_seed(key >> 1)
        if part == 0:
            options = self.optimizer_options
            factor = learning_rate_factor(
                options.schedule, self.progress, options.rising, options.cooling
            )
            set_learning_rate(self.trainer.optimizers[0], factor)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The micro-batch's sum of losses times a constant."""
        loss, targets = self.sums(batch)
        tokens = torch.tensor(batch.num_tokens, device=self.device)
        self._tally += torch.stack([x.detach().double() for x in (loss, targets, tokens)])
        return loss * self._constant

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Add up what all ranks did, and find what makes a mean of the gradients of their sums."""
        # One rank's clock decides for all, so that all of them stop at the same step.
        seconds = self.clock.read(self.spent.steps + 1) if self.global_rank == 0 else 0.0
        mine = torch.tensor([seconds, self.stop_asked], dtype=torch.float64, device=self.device)
        tally = all_reduce_sum(torch.cat([self._tally, mine])).tolist()
        loss, targets, tokens, seconds, stop = tally
        trainer = self.trainer
        self._factor = gradient_factor(
            self._constant, targets, trainer.world_size, trainer.accumulate_grad_batches
        )
        self.step_metrics = {
            "train/loss": loss / max(targets, 1.0),
            "learning_rate": max(group["lr"] for group in optimizer.param_groups),
            **self.extra_metrics(),
        }
        before = seconds if self.compiles and not self.spent.steps else self.spent.before
        self.spent = Spent(self.spent.steps + 1, self.spent.tokens + int(tokens), seconds, before)
        self.step_metrics["tokens"] = self.spent.tokens
        self.stop_agreed = stop > 0
        self._start_tally()

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Make the gradients those of the mean and clip them; nothing not finite goes through.

        Both are one factor, so that they are read and written once.

        Raises:
            RunError: a step's loss or gradient is not finite, and that is not to be skipped.
        """
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = self._factor * float(nn.utils.get_total_norm(gradients))
        self.step_metrics["gradient_norm"] = norm
        if self._is_finite():
            by_value = gradient_clip_algorithm == "value"
            clips = clip_factor(norm, None if by_value else gradient_clip_val)
            rescale_gradients(self.model, self._factor * clips)
            if by_value:
                self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        what = ", ".join(f"{n} {self.step_metrics[n]:g}" for n in ("train/loss", "gradient_norm"))
        if self.on_nonfinite == "stop":
            raise RunError(
                f"step {self.spent.steps}: not finite ({what}); nothing of it is saved. Lower "
                "--optimizer.lr, find the module with --detect_anomaly true, or leave such steps "
                "out with --on_nonfinite skip"
            )
        if self.trainer.is_global_zero:
            say(f"step {self.spent.steps}: not finite ({what}), left out")
        optimizer.zero_grad(set_to_none=True)  # an optimizer passes over what has no gradient

    def _is_finite(self) -> bool:
        """Of the step's loss and gradient on all ranks; fp16's scaler looks after gradients."""
        watched = [self.step_metrics["train/loss"]]
        if getattr(self.trainer.precision_plugin, "scaler", None) is None:
            watched.append(self.step_metrics["gradient_norm"])
        bad = torch.tensor(sum(not math.isfinite(value) for value in watched), device=self.device)
        return not int(all_reduce_sum(bad))

    def stops_validation(self) -> bool:
        """Whether a signal came during a validation, on any rank: what it found is then dropped."""
        asked = torch.tensor(float(self.stop_asked), device=self.device)
        if all_reduce_sum(asked) > 0:
            self.stop_agreed = self.trainer.should_stop = self.validation_due = True
        return self.stop_agreed

    def log_validation(self, metrics: dict[str, Tensor]) -> None:
        """Log what a validation found at the step it followed; Lightning would say one less."""
        self.log_dict(metrics, logger=False)
        values = {name: float(value) for name, value in metrics.items()}
        for logger in self.loggers:
            logger.log_metrics(values, step=self.spent.steps)

    def training_weights(self, checkpoint: dict[str, Any]) -> dict[str, Tensor]:
        """The weights of ``checkpoint`` as this module holds them, not as model folders do."""
        weights: dict[str, Tensor] = checkpoint["state_dict"]
        return weights

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the budget has used, and whether its last step is still to be validated."""
        spent = self.spent
        checkpoint["spent"] = [spent.steps, spent.tokens, spent.seconds, spent.before]
        checkpoint["validation_due"] = self.validation_due
        checkpoint["optimizer"] = self.optimizer_options.name

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from the weights, and from what the budget had used.

        Lightning counts batches too, but a checkpoint written inside a hook catches its counters
        in the middle; how many were done follows from the steps. A run is one epoch, which one that
        was stopped is still within: else its validations would be counted from where it went on.

        Raises:
            UserError: it is of another model or optimizer.
        """
        name = checkpoint.get("optimizer", self.optimizer_options.name)
        if name != self.optimizer_options.name:
            raise UserError(
                f"--resume: this checkpoint is of --optimizer.name {name}; go on with the same"
            )
        checkpoint["state_dict"] = self.training_weights(checkpoint)
        check_same_model(checkpoint["state_dict"], self.state_dict())
        self.spent = Spent(*checkpoint["spent"])
        self.validation_due = checkpoint.get("validation_due", False)
        loop = checkpoint["loops"]["fit_loop"]
        done = self.spent.steps * self.trainer.accumulate_grad_batches
        for counters in (
            loop["epoch_loop.batch_progress"]["total"],
            loop["epoch_loop.batch_progress"]["current"],
        ):
            counters.update(dict.fromkeys(counters, done))
        for counters in (loop["epoch_progress"]["total"], loop["epoch_progress"]["current"]):
            counters.update(ready=1, started=1, processed=0, completed=0)
