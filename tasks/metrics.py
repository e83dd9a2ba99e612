"""Metrics that torchmetrics has not quite; imported where they are made, for it takes seconds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics import Metric, PearsonCorrCoef
from torchmetrics.classification import MulticlassF1Score
from torchmetrics.utilities import dim_zero_cat


class PositiveF1(MulticlassF1Score):
    """F1 of class 1, in two-class tasks the positive one; further classes are never right."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, average="none")

    def compute(self) -> Tensor:
        """() in [0, 1]."""
        return torch.as_tensor(super().compute())[1]


class Pearson(PearsonCorrCoef):
    """Pearson's correlation, of which more is better.

    torchmetrics leaves that open, since −1 is a correlation too; of a target with its prediction
    it would be a mistake.
    """

    higher_is_better = True


class PerText(Metric):
    """A metric of whole texts of which windows are seen, in any order and on any rank.

    Args:
        metric: of the texts.
        see: lets it see (outputs (n, C), labels (n, …)) of n texts.
        pool: (outputs of windows (W, C), number of each one's text (W,), n) → outputs (n, C).
        labels: (0, …), none of the labels, of their kind and shape.
    """

    full_state_update = False

    def __init__(
        self,
        metric: Metric,
        see: Callable[[Metric, Tensor, Tensor], None],
        pool: Callable[[Tensor, Tensor, int], Tensor],
        labels: Tensor,
    ) -> None:
        super().__init__()
        self.metric, self.see, self.pool, self.no_labels = metric, see, pool, labels
        metric.distributed_available_fn = lambda: False  # it sees what all ranks have seen
        self.outputs: list[Tensor]
        self.labels: list[Tensor]
        self.rows: list[Tensor]
        for name in ("outputs", "labels", "rows"):
            self.add_state(name, [], dist_reduce_fx="cat")
        self.reset()

    @property
    def higher_is_better(self) -> bool | None:  # type: ignore[override]
        """As of the metric."""
        return self.metric.higher_is_better

    def reset(self) -> None:
        """Forget all windows."""
        super().reset()
        # A rank that sees no batch must gather what the others do, of as many axes.
        self.outputs.append(torch.empty(0, device=self.device))
        self.labels.append(self.no_labels.to(self.device))
        self.rows.append(torch.empty(0, device=self.device, dtype=torch.long))

    def update(self, outputs: Tensor, labels: Tensor, rows: Tensor) -> None:
        """See some windows: (W, C), their texts' labels (W, …) and numbers (W,)."""
        self.outputs.append(outputs.float().flatten())
        self.labels.append(labels)
        self.rows.append(rows)

    def compute(self) -> Tensor:
        """The metric of all texts."""
        outputs, labels, rows = map(dim_zero_cat, (self.outputs, self.labels, self.rows))
        texts, owner = rows.unique(return_inverse=True)
        pooled = self.pool(outputs.view(len(rows), -1), owner, len(texts))
        of_texts = labels.new_empty(len(texts), *labels.shape[1:])
        of_texts[owner] = labels  # all windows of a text have the same
        self.metric.reset()
        self.see(self.metric, pooled, of_texts)
        value: Tensor = self.metric.compute()
        return value
