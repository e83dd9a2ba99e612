"""What of an encoder a head reads: several layers in one, and its tokens' vectors in one a text.

Shapes: ``T`` tokens in all, ``N`` sequences, ``D`` model width, ``K`` layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mlm.errors import look_up
from mlm.model.pooling import POOLINGS

Pooling = Callable[[Tensor, Tensor], Tensor]
"""(T, D) and cu_seqlens (N + 1,) → (N, D)."""


def attention_pool(hidden: Tensor, cu_seqlens: Tensor, query: Tensor) -> Tensor:
    """The tokens' vectors, weighted by a softmax over each sequence of their product with a query.

    As the word attention of https://aclanthology.org/N16-1174, without its inner layer.

    Args:
        hidden: (T, D).
        cu_seqlens: (N + 1,).
        query: (D,); at 0 this is the mean.

    Returns:
        (N, D).
    """
    offsets, vectors = cu_seqlens.long(), hidden.float()
    owner = torch.repeat_interleave(offsets.diff())  # (T,)
    scores = vectors @ query.float() / math.sqrt(len(query))
    # Any shift leaves a softmax as it is; the largest score keeps exp in range.
    shift = torch.segment_reduce(scores.detach(), "max", offsets=offsets)
    weights = (scores - shift[owner]).exp()
    total = torch.segment_reduce(weights, "sum", offsets=offsets)
    pooled = torch.segment_reduce(weights[:, None] * vectors, "sum", offsets=offsets)
    return (pooled / total[:, None]).to(hidden.dtype)


class AttentionPooling(nn.Module):
    """`attention_pool` with a query of its own, which starts at 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(width))

    def forward(self, hidden: Tensor, cu_seqlens: Tensor) -> Tensor:
        """(T, D) → (N, D)."""
        return attention_pool(hidden, cu_seqlens, self.query)


# Those with weights of their own; those without stand in mlm/model/pooling.py.
LEARNT: dict[str, type[AttentionPooling]] = {"attention": AttentionPooling}


def check_pooling(name: str) -> None:
    """Refuse, by a `UserError` with the nearest name, what is no pooling."""
    look_up({**POOLINGS, **LEARNT}, name, "model.pooling")


def build_pooling(name: str, width: int) -> Pooling:
    """The pooling called ``name`` of vectors of ``width``; a module where it has weights.

    Raises:
        UserError: an unknown name.
    """
    check_pooling(name)
    return LEARNT[name](width) if name in LEARNT else POOLINGS[name]


class ScalarMix(nn.Module):
    """γ · Σ softmax(w)ₖ · hₖ: several layers in one (ELMo, https://arxiv.org/abs/1802.05365).

    It starts as the mean of the layers.
    """

    def __init__(self, layers: int) -> None:
        """``layers`` is K, how many are mixed."""
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(layers))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        """K times (T, D) → (T, D)."""
        shares = self.scale * self.weights.softmax(0)
        mixed = shares[0] * states[0]
        for share, state in zip(shares[1:], states[1:], strict=True):
            mixed = mixed + share * state
        return mixed.to(states[0].dtype)
