"""Pretraining as a Lightning module: the masked-LM loss, and validation that can be compared."""

from __future__ import annotations

from torchmetrics import MeanMetric

from mlm.batch import Batch
from mlm.model.heads import MaskedLanguageModel
from mlm.objectives import masked_lm
from mlm.training.base import SumLossModule, Sums
from mlm.training.budget import Budget
from mlm.training.datamodule import VALIDATION_RATE, DataOptions
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
        still: bool = False,
    ) -> None:
        """
        Args:
            model: what is trained.
            data: batch size, masking rates.
            optimizer: the optimizer and its schedule.
            budget: the length of the run.
            seed: of dropout.
            still: pad the masked positions to one length for the whole run, for `torch.compile`.
        """
        tokens = data.batch_size * data.sequence_length
        super().__init__(model, optimizer, budget, seed, expected_count=VALIDATION_RATE * tokens)
        self.data = data
        self.still = still
        self.validation_loss = MeanMetric()
        self.validation_accuracy = MeanMetric()

    @property
    def masking_rate(self) -> float:
        """The share of the ordinary tokens masked in the present step."""
        return falling(self.data.mlm_probability, self.data.mlm_probability_end, self.progress)

    def sums(self, batch: Batch) -> Sums:
        """Mask at the present rate, and score."""
        highest = max(self.data.mlm_probability, self.data.mlm_probability_end)
        capacity = int(batch.num_tokens * highest) + 1 if self.still else None
        masked = masked_lm.at_rate(batch, self.masking_rate, capacity)
        return Sums(*masked_lm.loss(self.model, masked))

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
        self.log_validation(
            {"val/loss": loss, "val/perplexity": loss.exp(), "val/accuracy": accuracy}
        )
