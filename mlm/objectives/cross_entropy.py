"""Cross-entropy over a vocabulary, without the large temporaries of the plain formula.

Shapes: ``M`` positions, ``V`` vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mlm.data.masking import IGNORE_INDEX

# Logits at a time: as many as stay in a processor's cache, at 4 bytes each.
_PIECE = 1 << 19


def summed_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The sum of -log softmax(logits)[label] over positions, in fp32.

    On a CPU, where a gradient is wanted, ``logits`` is spent: the gradient takes its place, piece
    by piece while it is in cache. So nothing of its size is made, where the plain formula makes
    five, four of them in fp32. Anything that needs the logits as they were is told so by autograd.

    Args:
        logits: (M, V).
        labels: (M,) int64; `IGNORE_INDEX` where a position does not count.

    Returns:
        () float32.
    """
    spends = logits.device.type == "cpu" and logits.requires_grad
    if not spends or torch.compiler.is_compiling():
        return F.cross_entropy(logits.float(), labels, ignore_index=IGNORE_INDEX, reduction="sum")
    total: Tensor = _SummedCrossEntropy.apply(logits, labels)
    return total


class _SummedCrossEntropy(torch.autograd.Function):
    """The gradient of -log softmax(z)[y] is softmax(z) - onehot(y)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        counts = (labels != IGNORE_INDEX).float()[:, None]
        labels = labels.clamp(min=0)[:, None]
        total = counts.new_zeros(())
        rows = max(1, _PIECE // logits.shape[1])
        for part, label, count in zip(
            *(x.split(rows) for x in (logits, labels, counts)), strict=True
        ):
            log_p = torch.log_softmax(part, dim=-1, dtype=torch.float32)
            total -= (log_p.gather(1, label) * count).sum()
            part.copy_(log_p.exp_().scatter_add_(1, label, -torch.ones_like(count)))
            if not count.all():
                part.mul_(count)
        ctx.save_for_backward(logits)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(gradients[0]), None
