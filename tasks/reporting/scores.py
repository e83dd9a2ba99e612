"""Scores from the evidence of single inputs, as fast as a bootstrap needs them.

They are those of the tasks' own metrics; tests compare the two.

Shapes: ``N`` inputs, ``C`` classes.
"""

from __future__ import annotations

import numpy as np


def classification_scores(evidence: np.ndarray, outputs: int, classes: int) -> dict[str, float]:
    """Of (N, 2) decided and true classes: accuracy, macro F1, MCC, and F1 of the second of two.

    Args:
        evidence: numbers of classes.
        outputs: how many classes the model knows.
        classes: how many there are, with those that only the data has.
    """
    decided, true = evidence.T.astype(np.int64)
    counts = np.bincount(true * classes + decided, minlength=classes**2).reshape(classes, classes)
    counts = counts.astype(np.float64)
    hits, of_true, of_decided = counts.diagonal(), counts.sum(1), counts.sum(0)
    there = of_true + of_decided > 0
    f1 = 2 * hits / np.maximum(of_true + of_decided, 1)
    total = counts.sum()
    covariance = total * hits.sum() - of_true @ of_decided
    spread = (total**2 - of_true @ of_true) * (total**2 - of_decided @ of_decided)
    found = {
        "accuracy": float(hits.sum() / total),
        "macro_f1": float(f1[there].mean()),
        "mcc": float(covariance / np.sqrt(spread)) if spread > 0 else 0.0,
    }
    return found | ({"f1": float(f1[1])} if outputs == 2 else {})


def multi_label_scores(evidence: np.ndarray) -> dict[str, float]:
    """Of (N, 2 C) decided and true 0s and 1s: micro and macro F1, and whole rows that are right."""
    decided, true = np.split(evidence.astype(bool), 2, axis=1)
    hits, counts = (decided & true).sum(0), decided.sum(0) + true.sum(0)
    there = counts > 0
    return {
        "micro_f1": float(2 * hits.sum() / max(counts.sum(), 1)),
        "macro_f1": float((2 * hits[there] / counts[there]).mean()) if there.any() else 0.0,
        "exact_match": float((decided == true).all(1).mean()),
    }


def regression_scores(evidence: np.ndarray) -> dict[str, float]:
    """Of (N, 2) predicted and true numbers: the two correlations and the mean squared error."""
    predicted, true = evidence.T
    return correlation_scores(evidence) | {"mse": float(np.square(predicted - true).mean())}


def correlation_scores(evidence: np.ndarray) -> dict[str, float]:
    """Of (N, 2) numbers: Pearson's and Spearman's correlation."""
    from scipy.stats import rankdata

    return {"pearson": _pearson(evidence), "spearman": _pearson(rankdata(evidence, axis=0))}


def tagging_scores(evidence: np.ndarray) -> dict[str, float]:
    """Of (N, 5) entities right, predicted and true, words right and words in each sentence."""
    right, predicted, true, words_right, words = evidence.sum(0)
    return {
        "f1": float(2 * right / max(predicted + true, 1)),
        "precision": float(right / max(predicted, 1)),
        "recall": float(right / max(true, 1)),
        "accuracy": float(words_right / max(words, 1)),
    }


def _pearson(pairs: np.ndarray) -> float:
    a, b = (pairs - pairs.mean(0)).T
    spread = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / spread) if spread > 0 else float("nan")
