"""Metrics that torchmetrics has not quite; imported where they are made, for it takes seconds."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import PearsonCorrCoef
from torchmetrics.classification import MulticlassF1Score


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
