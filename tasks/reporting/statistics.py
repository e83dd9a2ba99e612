"""How far a score, and a probability, can be trusted; pure functions.

Shapes: ``N`` inputs, ``S`` numbers of evidence each, ``M`` choices of one out of ``C`` classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

# Resamples of a percentile interval; the ends of one of 95 % then move by about a tenth of its
# standard error (Efron & Tibshirani, An Introduction to the Bootstrap, chapter 13).
RESAMPLES = 1_000
INTERVAL = 0.95
# As in https://arxiv.org/abs/1706.04599.
BINS = 15
_TEMPERATURES = (0.02, 50.0)

Scores = Callable[[np.ndarray], Mapping[str, float]]


def bootstrap(
    evidence: np.ndarray, scores_of: Scores, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of scores, over resampled inputs.

    Args:
        evidence: (N, S), what of each input the scores are made of.
        scores_of: (N, S) → scores by their names; those that are not numbers are passed over.
        resamples: how many sets of N inputs are drawn, with replacement.
        seed: of the draws.

    Returns:
        For each score the two ends of the interval that holds 95 % of the resampled ones.
    """
    rng, drawn = np.random.default_rng(seed), []
    for _ in range(resamples):
        drawn.append(scores_of(evidence[rng.integers(0, len(evidence), len(evidence))]))
    ends = ((1 - INTERVAL) / 2, (1 + INTERVAL) / 2)
    found = {}
    for name in drawn[0]:
        values = np.array([scores[name] for scores in drawn])
        values = values[~np.isnan(values)]
        low, high = np.quantile(values, ends) if len(values) else (np.nan, np.nan)
        found[name] = (float(low), float(high))
    return found


def wilson_interval(correct: float, total: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share of ``correct`` in ``total``; holds for small counts as well.

    https://doi.org/10.1080/01621459.1927.10502953
    """
    share, spread = correct / total, z * z / total
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / total + spread / (4 * total)) / (1 + spread)
    return middle - half, middle + half


def reliability(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> list[list[float]]:
    """Of each bin of confidence that holds any: mean confidence, share that is right, count.

    >>> reliability(np.array([0.95, 0.99, 0.6]), np.array([1, 0, 1]), bins=10)
    [[0.6, 1.0, 1.0], [0.97, 0.5, 2.0]]
    """
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    found = []
    for number in np.unique(place):
        inside = place == number
        found.append(
            [float(confidence[inside].mean()), float(right[inside].mean()), float(inside.sum())]
        )
    return found


def calibration_error(table: list[list[float]]) -> float:
    """Expected calibration error: how far confidence is from being right, over all of a table.

    Of equally wide bins, as `reliability` makes them; https://arxiv.org/abs/1706.04599, section 2.

    >>> calibration_error([[0.6, 1.0, 1.0], [0.9, 0.5, 3.0]])
    0.4
    """
    total = sum(count for _, _, count in table)
    gaps = (count * abs(confidence - right) for confidence, right, count in table)
    return round(sum(gaps) / total, 12)


def confidences(
    logits: Tensor, targets: Tensor, temperature: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """(M,) the likeliest class's probability, and (M,) whether it is the target."""
    confidence, chosen = (logits.double() / temperature).softmax(-1).max(-1)
    return confidence.numpy(), (chosen == targets).numpy()


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """What to divide logits by, so that the targets are likeliest; 1 leaves them.

    The loss is convex in the inverse of it, so that thirds of an interval find it
    (https://arxiv.org/abs/1706.04599, section 4.2).

    Args:
        logits: (M, C).
        targets: (M,); those that are none of the C classes are passed over.
    """
    from scipy.optimize import minimize_scalar

    known = targets < logits.shape[-1]
    logits, targets = logits[known].double(), targets[known]
    if not len(targets):
        return 1.0

    def loss(log_temperature: float) -> float:
        return float(F.cross_entropy(logits / np.exp(log_temperature), targets))

    ends = tuple(np.log(_TEMPERATURES))
    return float(np.exp(minimize_scalar(loss, bounds=ends, method="bounded").x))


def cross_fitted_error(logits: Tensor, targets: Tensor, seed: int = 0) -> float:
    """The calibration error after a temperature that other rows were asked for: halves in turn."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(targets)))
    halves = order[::2], order[1::2]
    found = []
    for fitted, measured in (halves, halves[::-1]):
        temperature = fit_temperature(logits[fitted], targets[fitted])
        found.append(confidences(logits[measured], targets[measured], temperature))
    confidence, right = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return calibration_error(reliability(confidence, right))


def threshold_for(probabilities: np.ndarray, members: np.ndarray, precision: float) -> float | None:
    """The lowest probability from which on a label is right so often; None if there is none.

    Args:
        probabilities: (N,) of the label.
        members: (N,) whether it is the right one.
        precision: wanted of the rows that are at or above the threshold.

    >>> threshold_for(np.array([0.9, 0.8, 0.7, 0.6]), np.array([1, 1, 0, 1]), 0.75)
    0.6
    """
    order = np.argsort(-probabilities, kind="stable")
    values, hits = probabilities[order], np.cumsum(members[order])
    # Rows of one probability are taken together.
    last = np.append(values[1:] != values[:-1], True)
    reached = last & (hits >= precision * np.arange(1, len(hits) + 1)) & (hits > 0)
    return float(values[np.flatnonzero(reached)[-1]]) if reached.any() else None


def at_threshold(
    probabilities: np.ndarray, members: np.ndarray, threshold: float
) -> dict[str, Any]:
    """Precision and recall of a label from a threshold on, and how many rows are at or above it."""
    chosen = probabilities >= threshold
    hits = float((chosen & members.astype(bool)).sum())
    return {
        "rows": int(chosen.sum()),
        "precision": hits / chosen.sum() if chosen.any() else float("nan"),
        "recall": hits / members.sum() if members.any() else float("nan"),
    }
