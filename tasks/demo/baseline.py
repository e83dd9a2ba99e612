"""What a neural classifier has to beat: the majority class, and a linear model over words.

Shapes: ``B`` texts, ``F`` features (words and pairs of words).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, normalize

_WORD = re.compile(r"\w+")


def ngrams(text: str) -> list[str]:
    """The words of ``text`` in lower case, then its pairs of neighbouring words.

    >>> ngrams("Not bad!")
    ['not', 'bad', 'not bad']
    """
    words = _WORD.findall(text.lower())
    return words + [f"{left} {right}" for left, right in pairwise(words)]


def majority_class(labels: Sequence[str]) -> str:
    """The commonest label, the first in the alphabet where several are equally common."""
    counts = Counter(labels)
    return min(counts, key=lambda label: (-counts[label], label))


def wilson_interval(correct: float, total: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share of ``correct`` in ``total``; holds for small counts as well.

    https://doi.org/10.1080/01621459.1927.10502953
    """
    share, spread = correct / total, z * z / total
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / total + spread / (4 * total)) / (1 + spread)
    return middle - half, middle + half


@dataclass(frozen=True)
class BagOfWords:
    """Logistic regression over tf-idf of words and word pairs, for two classes."""

    vocabulary: dict[str, int]
    """Feature to column."""
    idf: Tensor
    """(F,) float64: the weight of each feature, higher where fewer texts have it."""
    weight: Tensor
    """(F,) float64."""
    bias: Tensor
    """() float64."""
    labels: tuple[str, str]
    """What a score below and above 0 stands for."""

    @classmethod
    def fit(cls, texts: Sequence[str], labels: Sequence[str], c: float = 1.0) -> BagOfWords:
        """Learn from ``texts``; the result follows from them alone, there is nothing random in it.

        Args:
            texts: B texts.
            labels: B labels, of two kinds.
            c: how much the texts count against the penalty on the weights, as in scikit-learn.
        """
        negative, positive = sorted(set(labels))
        found = [ngrams(text) for text in texts]
        vocabulary = {f: i for i, f in enumerate(sorted({f for row in found for f in row}))}
        frequency = _counts(found, vocabulary).gt(0).sum(0)
        idf = torch.log((1 + len(texts)) / (1 + frequency.double())) + 1
        features = normalize(_counts(found, vocabulary) * idf)
        targets = torch.tensor([float(label == positive) for label in labels], dtype=torch.double)

        weight = torch.zeros(len(vocabulary), dtype=torch.double, requires_grad=True)
        bias = torch.zeros((), dtype=torch.double, requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [weight, bias], max_iter=500, tolerance_grad=1e-8, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            logits = features @ weight + bias
            errors = binary_cross_entropy_with_logits(logits, targets, reduction="sum")
            loss = weight @ weight / 2 + c * errors
            loss.backward()
            return loss

        optimizer.step(closure)
        return cls(vocabulary, idf, weight.detach(), bias.detach(), (negative, positive))

    def scores(self, texts: Sequence[str]) -> Tensor:
        """(B,) float64: the log odds of the second label; words never seen count for nothing."""
        counts = _counts([ngrams(text) for text in texts], self.vocabulary)
        return normalize(counts * self.idf) @ self.weight + self.bias

    def predict(self, texts: Sequence[str]) -> list[str]:
        """One label a text."""
        return [self.labels[score > 0] for score in self.scores(texts).tolist()]


def _counts(found: Sequence[Sequence[str]], vocabulary: dict[str, int]) -> Tensor:
    """(B, F) float64: how often each text has each feature."""
    counts = torch.zeros(len(found), len(vocabulary), dtype=torch.double)
    for row, features in zip(counts, found, strict=True):
        for feature, count in Counter(features).items():
            if feature in vocabulary:
                row[vocabulary[feature]] = count
    return counts
