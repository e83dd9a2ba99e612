"""Pretraining as a Lightning module: the masked-LM loss, and validation that can be compared."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torchmetrics import MeanMetric

from mlm.batch import Batch
from mlm.data.masking_units import LONGEST_UNIT
from mlm.model.encoder import Encoder
from mlm.model.heads import MaskedLanguageModel
from mlm.objectives import masked_lm
from mlm.training.base import SumLossModule, Sums
from mlm.training.budget import Budget
from mlm.training.compiling import Mode, compiled, may_vary
from mlm.training.datamodule import VALIDATION_RATE, DataOptions
from mlm.training.evaluation import bits_per_character
from mlm.training.optimizers import OptimizerOptions
from mlm.training.schedules import falling


class PretrainingModule(SumLossModule):
    """Masked-language-model pretraining of ``model``."""

    model: MaskedLanguageModel

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
    ) -> None:
        """
        Args:
            model: what is trained.
            data: batch size, masking rates.
            optimizer: the optimizer and its schedule.
            budget: the length of the run.
            seed: of dropout.
            compile: see `compiled`; batches must be of still shapes, and their masked positions are
                padded to one number for the whole run.
            characters_per_token: of the text that validation reads; with it the loss is also told
                in bits per character, which do not depend on the tokenizer.
            probe: gives an accuracy that is told after each validation, as by `Probe`.
        """
        tokens = data.batch_size * data.sequence_length
        super().__init__(model, optimizer, budget, seed, expected_count=VALIDATION_RATE * tokens)
        self.data = data
        self.characters_per_token, self.probe = characters_per_token, probe
        self.still = bool(compile)
        self._loss = compiled(masked_lm.loss, compile)
        self.validation_loss = MeanMetric()
        self.validation_accuracy = MeanMetric()

    @property
    def masking_rate(self) -> float:
        """The share of the ordinary tokens masked in the present step."""
        return falling(self.data.mlm_probability, self.data.mlm_probability_end, self.progress)

    def sums(self, batch: Batch) -> Sums:
        """Mask at the present rate, and score."""
        capacity = None
        if self.still:
            may_vary(batch.cu_seqlens)
            rows = batch.num_tokens // self.data.sequence_length
            highest = max(self.data.mlm_probability, self.data.mlm_probability_end)
            spare = 0 if self.data.masking == "token" else LONGEST_UNIT
            capacity = rows * (math.ceil(self.data.sequence_length * highest) + spare)
        masked = masked_lm.at_rate(batch, self.masking_rate, capacity)
        return Sums(*self._loss(self.model, masked))

    def extra_metrics(self) -> dict[str, float]:
        """The rate that moves with the budget."""
        return {"masking_rate": self.masking_rate}

    def on_validation_epoch_start(self) -> None:
        """Forget what the last validation saw."""
        self.validation_loss.reset()
        self.validation_accuracy.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss and accuracy at the fixed rate with the fixed masks."""
        if self.stop_asked:
            return
        masked = masked_lm.at_rate(batch, VALIDATION_RATE)
        loss, targets, right = masked_lm.score(self.model, masked)
        count = targets.clamp(min=1)
        self.validation_loss.update(loss / count, weight=targets)
        self.validation_accuracy.update(right / count, weight=targets)

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
        if self.probe is not None:
            found["val/probe_accuracy"] = torch.tensor(self.probe(self.model.encoder))
        self.log_validation(found)
