"""How well vectors order pairs, and find partners; over a whole set, never batch by batch.

Imported where metrics are made, for torchmetrics takes seconds.

Shapes: ``N`` pairs, ``U`` different second texts, ``D`` model width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.functional import pearson_corrcoef, spearman_corrcoef
from torchmetrics.utilities import dim_zero_cat

# Similarities at once: 64 MiB of them.
_MOST = 1 << 24

CUTOFFS = (1, 5, 10)


class WholeSet(Metric):
    """Scores of all that was seen, in any order and on any rank.

    Args:
        score: (outputs (N, …) in one row each, labels (N, …)) → scores by their names.
        labels: (0, …), none of the labels, of their kind and shape.
    """

    full_state_update = False

    def __init__(
        self, score: Callable[[Tensor, Tensor], dict[str, Tensor]], labels: Tensor
    ) -> None:
        super().__init__()
        self.score, self.no_labels = score, labels
        self.outputs: list[Tensor]
        self.labels: list[Tensor]
        for name in ("outputs", "labels"):
            self.add_state(name, [], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forget all pairs."""
        super().reset()
        # A rank that sees no batch must gather what the others do, of as many axes.
        self.outputs.append(torch.empty(0, device=self.device))
        self.labels.append(self.no_labels.to(self.device))

    def update(self, outputs: Tensor, labels: Tensor) -> None:
        """See some pairs: (n, …) and (n, …)."""
        self.outputs.append(outputs.float().flatten())
        self.labels.append(labels)

    def compute(self) -> dict[str, Tensor]:
        """The scores."""
        outputs, labels = map(dim_zero_cat, (self.outputs, self.labels))
        return self.score(outputs.view(len(labels), -1), labels)


def correlations(cosines: Tensor, scores: Tensor) -> dict[str, Tensor]:
    """Spearman's and Pearson's correlation of (N,) cosines with (N,) scores."""
    cosines, scores = cosines.double(), scores.double()
    return {
        "spearman": torch.as_tensor(spearman_corrcoef(cosines, scores)),
        "pearson": torch.as_tensor(pearson_corrcoef(cosines, scores)),
    }


def retrieval(vectors: Tensor, texts: Tensor, temperature: float) -> dict[str, Tensor]:
    """How well each first text finds its second among all second texts, by cosine.

    A text that stands there several times is one candidate. Candidates that would be no mistake
    (`tasks.pair_losses.not_wrong`) are passed over; one that is as near as the right one comes
    before it, so that vectors which are all the same find nothing.

    Args:
        vectors: (N, 2, D) fp32.
        texts: (N, 2) a number for each text, the same for the same text.
        temperature: of `loss`.

    Returns:
        `recall@k`, the share of first texts whose second is among the nearest k; `mrr`, the mean of
        1 / rank; `loss`, as `in_batch_negatives` with the whole set as batch.
    """
    (first, second), (queries, answers) = vectors.unbind(1), texts.unbind(1)
    unique, place = answers.unique(return_inverse=True)
    representative = torch.empty_like(unique).scatter_(
        0, place, torch.arange(len(place), device=place.device)
    )
    candidates = F.normalize(second[representative], dim=-1)
    ranks, losses = [], []
    for rows in torch.arange(len(texts), device=texts.device).split(max(1, _MOST // len(texts))):
        similarities = F.normalize(first[rows], dim=-1) @ candidates.T  # (n, U)
        own = similarities.gather(1, place[rows][:, None])
        asked = queries[rows][:, None]
        row, column = ((queries == asked) | (answers == asked)).nonzero().unbind(1)
        similarities[row, place[column]] = -torch.inf
        ranks.append(1 + (~(own > similarities)).sum(1))  # what is NaN is found last, not first
        logits = torch.cat([own, similarities], 1) / temperature
        losses.append(logits.logsumexp(1) - logits[:, 0])
    rank = torch.cat(ranks)
    found = {f"recall@{k}": (rank <= k).double().mean() for k in CUTOFFS}
    return found | {"mrr": rank.double().reciprocal().mean(), "loss": torch.cat(losses).mean()}
