"""Losses to train with, where the plain one is not what is wanted; all of them sums over examples.

They are divided by the number of examples, not by the sum of their weights as torch's mean is: what
an example adds to a step then does not depend on which others it meets there, and neither on how a
batch is divided over ranks. Over the whole training set balanced weights sum to its size.

Shapes: ``N`` examples, ``C`` classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100
"""The label of an example, or of a token, that no loss is taken of."""


def balanced_weights(counts: Sequence[int]) -> list[float]:
    """n / (k · count) for each of k classes in n examples, as scikit-learn's `balanced`.

    A class without examples counts in neither and has 1.

    >>> balanced_weights([6, 2, 0])
    [0.6666666666666666, 2.0, 1.0]
    """
    there = [count for count in counts if count]
    return [sum(there) / (len(there) * count) if count else 1.0 for count in counts]


def positive_weights(counts: Sequence[int], rows: int) -> list[float]:
    """(rows − count) / count for each class: all rows with it then count as those without it.

    A class that no row has, or every one, has 1.

    >>> positive_weights([5, 2, 0, 10], 10)
    [1.0, 4.0, 1.0, 1.0]
    """
    return [(rows - count) / count if 0 < count < rows else 1.0 for count in counts]


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    focal_gamma: float = 0.0,
) -> Tensor:
    """Cross-entropy of skewed, noisy or mostly easy labels.

    Args:
        logits: (N, C).
        labels: (N,) classes, or `IGNORED`.
        weights: (C,) how much an example of each class counts; None is 1 each.
        label_smoothing: the share of the target that is spread over all classes, theirs weighted
            too, as torch has it (https://arxiv.org/abs/1512.00567, section 7).
        focal_gamma: multiply by (1 − p)^γ, p being the probability of the label
            (https://arxiv.org/abs/1708.02002).

    Returns:
        () the sum.
    """
    losses = F.cross_entropy(
        logits,
        labels,
        weight=weights,
        ignore_index=IGNORED,
        reduction="none",
        label_smoothing=label_smoothing,
    )
    if focal_gamma:
        losses = losses * (focal_gamma * _log_doubt(logits, labels)).exp()
    return losses.sum()


def _log_doubt(logits: Tensor, labels: Tensor) -> Tensor:
    """log(1 − p) of the labels, (N,): from the other logits, for 1 − p is 0 where p rounds to 1."""
    own = F.one_hot(labels.clamp(min=0), logits.shape[-1]).bool()
    others = logits.masked_fill(own, -torch.inf)
    return others.logsumexp(-1) - logits.logsumexp(-1)


def binary_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    focal_gamma: float = 0.0,
) -> Tensor:
    """Cross-entropy of each class by itself, yes or no.

    Args:
        logits: (N, C).
        labels: (N, C) of 0 and 1.
        weights: (C,) how much a yes counts beside a no; None is 1.
        label_smoothing: the share of a target that is spread over yes and no.
        focal_gamma: multiply by (1 − p)^γ, p being the probability of the label
            (https://arxiv.org/abs/1708.02002).

    Returns:
        () the sum.
    """
    targets = labels.to(logits.dtype)
    losses = F.binary_cross_entropy_with_logits(
        logits,
        targets * (1 - label_smoothing) + label_smoothing / 2,
        pos_weight=weights,
        reduction="none",
    )
    if focal_gamma:
        log_doubt = F.logsigmoid(logits * (1 - 2 * targets))
        losses = losses * (focal_gamma * log_doubt).exp()
    return losses.sum()


def binary_symmetric_kl(first: Tensor, second: Tensor) -> Tensor:
    """½ (KL(p‖q) + KL(q‖p)) of each class's yes and no in two (N, C) logits, summed: ()."""
    return 0.5 * ((first.sigmoid() - second.sigmoid()) * (first - second)).sum()


def symmetric_kl(first: Tensor, second: Tensor) -> Tensor:
    """½ (KL(p‖q) + KL(q‖p)) of the distributions of two (N, C) logits, summed: ()."""
    p, q = first.log_softmax(-1), second.log_softmax(-1)
    return 0.5 * ((p.exp() - q.exp()) * (p - q)).sum()
