"""What objectives tell of a batch: sums, to be divided when all batches are in."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Loss(NamedTuple):
    """What training needs of a batch."""

    sum: Tensor
    """() float32: the sum of the cross-entropies over the vocabulary, in nats, with its graph."""
    targets: Tensor
    """() int64: how many positions were predicted."""
    second: Tensor | None = None
    """() float32: the sum of an objective's second loss, in nats, with its graph."""


class Score(NamedTuple):
    """What validation tells of a batch."""

    loss: Tensor
    """() float32: the sum of the cross-entropies over the vocabulary, in nats."""
    targets: Tensor
    """() int64: how many positions were predicted."""
    right: Tensor
    """() int64: how many first guesses were right."""


class Second(NamedTuple):
    """What validation tells of an objective's second loss on a batch."""

    right: Tensor
    """() int64: how many were right."""
    targets: Tensor
    """() int64: how many there were."""
