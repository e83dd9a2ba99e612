"""Pretraining as a Lightning module: an objective's loss, and validation that can be compared."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MeanMetric

from mlm.batch import Batch
from mlm.data.masking_units import LONGEST_UNIT
from mlm.errors import UserError
from mlm.memory import ran_out
from mlm.model.encoder import Encoder
from mlm.model.heads import MaskedLanguageModel
from mlm.objectives import masked_lm
from mlm.objectives.table import OBJECTIVES, ObjectiveOptions, is_causal, prepared
from mlm.training.base import SumLossModule, Sums
from mlm.training.batches import VALIDATION_RATE
from mlm.training.budget import Budget
from mlm.training.compiling import Mode, compiled, may_vary
from mlm.training.data_options import DataOptions
from mlm.training.evaluation import bits_per_character
from mlm.training.optimizers import OptimizerOptions
from mlm.training.ramps import ramped, ramped_length, row_ranks, with_length, with_rows
from mlm.training.schedules import falling


class PretrainingModule(SumLossModule):
    """Pretraining of an encoder by one of the objectives; `model` is all that is trained."""

    def __init__(
        self,
        model: MaskedLanguageModel,
        data: DataOptions,
        optimizer: OptimizerOptions,
        budget: Budget,
        seed: int = 0,
        compile: bool | Mode = False,
        characters_per_token: float | None = None,
        probe: Callable[[Encoder], float] | None = None,
        objective: ObjectiveOptions | None = None,
    ) -> None:
        """
        Args:
            model: what is trained, with whatever the objective adds to it.
            data: batch size, masking rates.
            optimizer: the optimizer and its schedule.
            budget: the length of the run.
            seed: of dropout.
            compile: see `compiled`; batches must be of still shapes, and their masked positions are
                padded to one number for the whole run.
            characters_per_token: of the text that validation reads; with it the loss is also told
                in bits per character, which do not depend on the tokenizer.
            probe: gives an accuracy that is told after each validation, as by `Probe`.
            objective: what it learns; masked language modelling where there is none.
        """
        tokens = data.batch_size * data.sequence_length
        self.objective_options = options = objective or ObjectiveOptions()
        self.objective = OBJECTIVES[options.name]
        whole = self.objective.build(model, options)
        super().__init__(whole, optimizer, budget, seed, expected_count=VALIDATION_RATE * tokens)
        self.data, self.config = data, model.config
        self._whole: Batch | None = None  # the first batch of a ramped run, before it is tried
        self._is_tried = not data.is_ramped
        self._ranks = row_ranks(data.batch_size) if data.batch_size_start else None
        self._kept = set(model.state_dict())
        if self.objective.head == "encoder":
            self._kept = {name for name in self._kept if name.startswith("encoder.")}
        self.characters_per_token, self.probe = characters_per_token, probe
        self.still = self.compiles = bool(compile)
        self._loss = compiled(self.objective.loss, compile)
        self.validation_loss = MeanMetric()
        self.validation_accuracy = MeanMetric()
        self.validation_second = MeanMetric()

    @property
    def masking_rate(self) -> float:
        """The share of the ordinary tokens masked in the present step."""
        return falling(self.data.mlm_probability, self.data.mlm_probability_end, self.progress)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """What of a training batch the present step takes."""
        if not self.data.is_ramped or not self.trainer.training:
            return batch
        if not self._is_tried and self._whole is None:
            self._whole = batch
        return self.ramped(batch)

    def ramped(self, batch: Batch) -> Batch:
        """As many of a batch's rows, and in pieces so long, as the present progress allows."""
        data, progress = self.data, self.progress
        if self._ranks is not None:
            rows = ramped(data.batch_size_start, data.batch_size, progress, data.rising)
            batch = with_rows(batch, self._ranks < rows)
        length = ramped_length(
            data.sequence_length_start, data.sequence_length, progress, data.rising
        )
        if length == data.sequence_length:
            return batch
        return with_length(batch, length, self.config.cls_token_id, self.config.sep_token_id)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """As of every run; before the first one, a look whether a ramp's largest batch fits."""
        if self._whole is not None:
            self._try(self._whole.to(self.device))
            self._whole, self._is_tried = None, True
        return super().training_step(batch, batch_idx)

    def _try(self, batch: Batch) -> None:
        """Compute a step's gradients, and drop them.

        Raises:
            UserError: memory is too small, and nothing is to be done about that.
        """
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        devices = [self.device] if self.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices):
                torch.autograd.grad(self.sums(batch).loss, parameters, allow_unused=True)
        except Exception as error:
            if self.on_oom == "split" or not ran_out(error):
                raise
            raise UserError(
                f"data: the ramp ends above this device's memory, at {self.data.batch_size} rows "
                f"of {self.data.sequence_length} tokens; lower --data.batch_size or raise "
                "--trainer.accumulate_grad_batches"
            ) from None

    def sums(self, batch: Batch) -> Sums:
        """Mask at the present rate, and score."""
        capacity = None
        if self.still:
            may_vary(batch.cu_seqlens)
            rows = batch.num_tokens // self.data.sequence_length
            highest = max(self.data.mlm_probability, self.data.mlm_probability_end)
            spare = 0 if self.data.masking == "token" else LONGEST_UNIT
            capacity = rows * (math.ceil(self.data.sequence_length * highest) + spare)
        step, sep = self.spent.steps, self.config.sep_token_id
        self.kind_of_step = "causal" if is_causal(self.objective_options, self.seed, step) else ""
        batch = prepared(
            batch, self.objective_options, self.masking_rate, capacity, self.seed, step, sep
        )
        total, targets, second = self._loss(self.model, batch)
        return Sums(total if second is None else total + self._second_weight() * second, targets)

    def _second_weight(self) -> float:
        """What the second loss's sum is multiplied by, so that its mean has the weight wanted.

        One number for all micro-batches and ranks: as many masked tokens as there are expected to
        be for each of its targets, which are tokens, or pairs of which a row has one.
        """
        asked = self.objective_options.weight
        weight = self.objective.weight if asked is None else asked
        assert weight is not None
        tokens = self.data.sequence_length if self.objective.negatives else 1
        return weight * self.masking_rate * tokens

    def folder_weights(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Those of `model` that stand in a model folder; the objective has the others."""
        return {name: tensor for name, tensor in weights.items() if name in self._kept}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what no model folder holds, too."""
        super().on_save_checkpoint(checkpoint)
        more = {n: t for n, t in self.model.state_dict().items() if n not in self._kept}
        if more:
            checkpoint["objective"] = more

    def training_weights(self, checkpoint: dict[str, Any]) -> dict[str, Tensor]:
        """Those of the model folder, and the objective's own.

        Raises:
            UserError: the checkpoint is of another objective.
        """
        own: dict[str, Tensor] = checkpoint.get("objective", {})
        if own.keys() != self.model.state_dict().keys() - self._kept:
            raise UserError(
                f"objective.name: the checkpoint is not of {self.objective_options.name}; resume "
                "with the objective that it was trained with"
            )
        return super().training_weights(checkpoint) | {f"model.{n}": t for n, t in own.items()}

    def extra_metrics(self) -> dict[str, float]:
        """The rate that moves with the budget."""
        return {"masking_rate": self.masking_rate}

    def on_validation_epoch_start(self) -> None:
        """Forget what the last validation saw."""
        for metric in (self.validation_loss, self.validation_accuracy, self.validation_second):
            metric.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss and accuracy at the fixed rate with the fixed masks; batches of pairs come last."""
        if self.stop_asked:
            return
        objective, masked = self.objective, masked_lm.at_rate(batch, VALIDATION_RATE)
        if batch.pair_labels is None:
            loss, targets, right = objective.score(self.model, masked)
            count = targets.clamp(min=1)
            self.validation_loss.update(loss / count, weight=targets)
            self.validation_accuracy.update(right / count, weight=targets)
        if objective.score_second and (batch.pair_labels is not None or not objective.negatives):
            right, targets = objective.score_second(self.model, masked)
            self.validation_second.update(right / targets.clamp(min=1), weight=targets)

    def on_validation_epoch_end(self) -> None:
        """Log the means over all ranks."""
        if self.stops_validation():
            return
        loss = self.validation_loss.compute()
        accuracy = self.validation_accuracy.compute()
        found = {"val/loss": loss, "val/perplexity": loss.exp(), "val/accuracy": accuracy}
        if self.characters_per_token is not None:
            bits = bits_per_character(float(loss), self.characters_per_token)
            found["val/bits_per_character"] = torch.tensor(bits)
        if self.objective.metric:
            second = self.validation_second.compute()
            if not second.isnan():  # --trainer.limit_val_batches may leave no batch of pairs
                found[self.objective.metric] = second
        if self.probe is not None:
            encoder = self.model.encoder
            assert isinstance(encoder, Encoder)
            found["val/probe_accuracy"] = torch.tensor(self.probe(encoder))
        self.log_validation(found)
