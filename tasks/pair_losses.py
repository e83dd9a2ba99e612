"""Losses of sentence vectors, from pairs of texts; all of them sums over the pairs.

Cosines are worked out in fp32 even under autocast: 16 bit would round a cosine of 0.9 to 0.9 ±
0.002, and a small temperature multiplies that.

Shapes: ``N`` pairs, ``K`` texts of each (two, and a third that does not belong to them where there
are hard negatives), ``C`` candidates, ``D`` model width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def cosines(vectors: Tensor) -> Tensor:
    """Of the first two texts of each pair: (N, K, D) → (N,) in fp32."""
    return F.cosine_similarity(vectors[:, 0].float(), vectors[:, 1].float(), dim=-1)


# --- pairs with scores ---


def cosent(cosines: Tensor, scores: Tensor, temperature: float) -> Tensor:
    """CoSENT (https://kexue.fm/archives/8847): the higher score shall have the higher cosine.

    N · log(1 + Σ exp((cᵢ − cⱼ) / t)) over all i, j of which j has the higher score: times N, so
    that the mean over a step's pairs is that of its micro-batches. Only the order of the scores
    counts.

    Args:
        cosines: (N,).
        scores: (N,).
        temperature: t.

    Returns:
        () the loss, N times.
    """
    order = scores.argsort()
    sorted_scores, logits = scores[order], cosines[order] / temperature
    lower = torch.searchsorted(sorted_scores, sorted_scores)  # (N,) how many scores are lower
    # Sums over all that are lower, for each, without an N × N matrix.
    sums = torch.cat([logits.new_full((1,), -torch.inf), logits.logcumsumexp(0)])
    return len(scores) * torch.cat([logits.new_zeros(1), sums[lower] - logits]).logsumexp(0)


def squared_error(cosines: Tensor, scores: Tensor, temperature: float) -> Tensor:
    """Of the cosine as a guess at the score, which lies in [0, 1]; summed, without temperature."""
    return (cosines - scores).square().sum()


SCORED: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "cosent": cosent,
    "cosine": squared_error,
}

# --- pairs without ---


def not_wrong(queries: Tensor, answers: Tensor, candidates: Tensor) -> Tensor:
    """Which candidates would be false negatives, as numbers of texts tell.

    Args:
        queries: (N,) the texts that look for their partner.
        answers: (N,) their partners.
        candidates: (C,) the texts that they look among.

    Returns:
        (N, C) bool: the query itself, or what any pair of the batch has as an answer to it.
    """
    alike = (queries[:, None] == queries).float()
    right = alike @ (answers[:, None] == candidates).float() > 0
    return right | (candidates == queries[:, None])


def in_batch_negatives(
    vectors: Tensor, texts: Tensor, temperature: float, symmetric: bool = False
) -> Tensor:
    """Each first text shall find its second among those of the batch, by cosine.

    The cross-entropy over cosines / temperature: InfoNCE (https://arxiv.org/abs/1807.03748), or
    multiple-negatives ranking (https://arxiv.org/abs/1705.00652). The candidates are the second
    texts of all pairs and, where there are any, all third ones; what is `not_wrong` is left out.

    Args:
        vectors: (N, K, D).
        texts: (N, K) a number for each text, the same for the same text.
        temperature: what cosines are divided by.
        symmetric: the mean of that and of each second text finding its first.

    Returns:
        () the sum over the pairs.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        first, second, *negatives = F.normalize(vectors.float(), dim=-1).unbind(1)
        queries, answers, *others = texts.unbind(1)
        loss = _ranking(
            first @ torch.cat([second, *negatives]).T / temperature,
            not_wrong(queries, answers, torch.cat([answers, *others])),
        )
        if symmetric:
            backward = first @ second.T / temperature
            excluded = not_wrong(answers, queries, queries)
            loss = (loss + _ranking(backward.T, excluded)) / 2
        return loss


def _ranking(logits: Tensor, excluded: Tensor) -> Tensor:
    """Cross-entropy of (N, C) logits whose right answers are on the diagonal, summed."""
    own = torch.eye(*logits.shape, dtype=torch.bool, device=logits.device)
    logits = logits.masked_fill(excluded & ~own, -torch.inf)
    places = torch.arange(len(logits), device=logits.device)
    return F.cross_entropy(logits, places, reduction="sum")


UNSCORED: dict[str, Callable[[Tensor, Tensor, float, bool], Tensor]] = {
    "in_batch_negatives": in_batch_negatives,
}
