"""A number for a text, or for a pair of texts."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from mlm.batch import Batch
from mlm.errors import UserError
from mlm.model.config import EncoderConfig
from tasks.encoding import Example
from tasks.heads import PooledHead
from tasks.long_texts import LongTextTask, mean_by
from tasks.rows import Rows
from tasks.settings import TaskSettings

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

    from tasks.reporting.kinds import RegressionReporter

_SCALED = ("head.classifier.weight", "head.classifier.bias")


class ScaledHead(PooledHead):
    """A head whose classifier works in units of ``scale``, and starts at the targets' mean."""

    def __init__(
        self, config: EncoderConfig, pooling: str, dropout: float, scale: float, mean: float
    ) -> None:
        super().__init__(config, 1, pooling, dropout)
        self.scale = scale
        nn.init.constant_(self.classifier.bias, mean / scale)

    def forward(self, hidden: Tensor, batch: Batch) -> Tensor:
        """(T, D) → (N, 1) in the target's own unit."""
        return super().forward(hidden, batch) * self.scale


class Regression(LongTextTask):
    """A real number; the loss is the squared error in units of the targets' variance.

    While training, the classifier works in a unit near the targets' deviation, so that learning
    rates suit any target. In a model folder it gives the number itself.
    """

    name = "regression"
    monitor = "pearson"
    losses = frozenset({"r_drop"})

    def __init__(self, settings: TaskSettings) -> None:
        super().__init__(settings)
        if settings.labels:
            raise UserError("data.labels: a regression has no label set; leave it out")
        self.deviation = 1.0  # of the training targets: the unit of the loss
        self.mean = 0.0
        self.scale = 1.0  # the classifier's unit

    def fit(self, rows: Rows, config: EncoderConfig) -> list[str]:
        """Also take the targets' mean and standard deviation."""
        remarks = super().fit(rows, config)
        targets = self.targets(rows)
        self.mean, self.deviation = statistics.fmean(targets), statistics.pstdev(targets)
        if self.deviation == 0:
            raise UserError(
                f"{rows.path}: column {self.settings.label_column!r} holds one number only "
                f"({targets[0]}); there is nothing to learn"
            )
        # A power of two: saving and going on then change no digit.
        self.scale = 2.0 ** round(math.log2(self.deviation))
        return remarks

    def targets(self, rows: Rows) -> list[float]:
        """Each row's number."""
        return rows.numbers(self.settings.label_column)

    def build_head(self, config: EncoderConfig, dropout: float = 0.0) -> nn.Module:
        """(T, D) → (N, 1)."""
        assert self.settings.pooling is not None
        return ScaledHead(config, self.settings.pooling, dropout, self.scale, self.mean)

    def loss(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Squared errors in units of the targets' variance, summed over the examples."""
        errors = (self.decide(outputs) - labels) / self.deviation
        return errors.square().sum(), torch.tensor(len(labels), device=outputs.device)

    def divergence(self, first: Tensor, second: Tensor) -> Tensor:
        """Squared differences of two passes, in the loss's unit, summed over the examples."""
        return ((first - second) / self.deviation).square().sum()

    def metrics(self) -> MetricCollection:
        """Pearson's and Spearman's correlation, and the mean squared error."""
        from torchmetrics import MeanSquaredError, SpearmanCorrCoef

        from tasks.metrics import Pearson

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that ranks need all values is no news
            metrics = {
                "pearson": Pearson(),
                "spearman": SpearmanCorrCoef(),
                "mse": MeanSquaredError(),
            }
        return self.collected(metrics, torch.empty(0))

    def pool_windows(self, outputs: Tensor, owner: Tensor, count: int) -> Tensor:
        """The numbers of windows → those of texts, their mean."""
        return mean_by(outputs.float(), owner, count)

    def decide(self, outputs: Tensor) -> Tensor:
        """(N, 1) → (N,)."""
        return outputs.squeeze(-1)

    def predictions(self, outputs: Tensor) -> list[dict[str, Any]]:
        """The number, as `score`."""
        return [{"score": score} for score in self.decide(outputs).tolist()]

    def reporter(self) -> RegressionReporter:
        """Intervals, and the largest mistakes."""
        from tasks.reporting.kinds import RegressionReporter

        return RegressionReporter()

    def decisions(
        self, inputs: Sequence[Any], examples: Sequence[Example], outputs: Sequence[Tensor]
    ) -> list[Any]:
        """Each text's number."""
        return self.decide(self.of_texts(examples, outputs)).tolist()

    def collapsed(self, decisions: Sequence[Any], targets: Sequence[Any]) -> bool:
        """Whether the predictions differ by less than a hundredth of what the targets do."""
        return statistics.pstdev(decisions) < 0.01 * statistics.pstdev(targets)

    def saved_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights, with the classifier in the target's own unit."""
        return state | {name: state[name] * self.scale for name in _SCALED}

    def training_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights, with the classifier in the unit of training."""
        return state | {name: state[name] / self.scale for name in _SCALED}

    def info(self) -> dict[str, Any]:
        """Also the unit of the loss, and what transformers calls this."""
        return {**super().info(), "deviation": self.deviation, "problem_type": "regression"}

    @classmethod
    def restore(cls, info: Mapping[str, Any], labels: Sequence[str]) -> Self:
        """Also take back the unit of the loss; the single output's name is no label."""
        task = super().restore(info, ())
        deviation = info.get("deviation", 1.0)
        if type(deviation) not in (int, float) or not 1e-300 < deviation < 1e300:
            raise UserError(f"mlm.deviation: {str(deviation)[:80]!r} is no number above 0")
        task.deviation = float(deviation)
        return task
