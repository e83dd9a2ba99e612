"""From one vector a token to one vector a sequence, by name.

Shapes: ``T`` tokens in all, ``N`` sequences, ``D`` model width.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def pool_cls(hidden: Tensor, cu_seqlens: Tensor) -> Tensor:
    """The first token of each sequence, (T, D) → (N, D).

    >>> pool_cls(torch.arange(4.0)[:, None], torch.tensor([0, 3, 4])).tolist()
    [[0.0], [3.0]]
    """
    return hidden.index_select(0, cu_seqlens[:-1])


def pool_mean(hidden: Tensor, cu_seqlens: Tensor) -> Tensor:
    """The mean over each sequence's tokens, [CLS] and [SEP] included, (T, D) → (N, D).

    >>> pool_mean(torch.arange(4.0)[:, None], torch.tensor([0, 3, 4])).tolist()
    [[1.0], [3.0]]
    """
    # A sum over hundreds of tokens loses digits in 16 bit.
    pooled = torch.segment_reduce(hidden.float(), "mean", offsets=cu_seqlens.long())
    return pooled.to(hidden.dtype)


def pool_max(hidden: Tensor, cu_seqlens: Tensor) -> Tensor:
    """The largest of each number over a sequence's tokens, (T, D) → (N, D).

    >>> pool_max(torch.tensor([[1.0], [-5.0], [0.0], [-2.0]]), torch.tensor([0, 3, 4])).tolist()
    [[1.0], [-2.0]]
    """
    pooled = torch.segment_reduce(hidden.float(), "max", offsets=cu_seqlens.long())
    return pooled.to(hidden.dtype)


POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": pool_cls,
    "mean": pool_mean,
    "max": pool_max,
}
