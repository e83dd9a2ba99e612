"""Cross-entropy over a vocabulary, without the large temporaries of the plain formula.

The gradient of -log softmax(z)[y] is softmax(z) - onehot(y), so it can be made where the logits
are: piece by piece, in the forward pass.

Shapes: ``M`` positions, ``D`` model width, ``V`` vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mlm.data.masking import IGNORE_INDEX

# Logits at a time, at 4 bytes each: as many as stay in a processor's cache; and as many as make
# products that are large enough for a GPU.
_PIECE = 1 << 19
_CUDA_PIECE = 1 << 27


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
    """See `summed_cross_entropy`."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        total = logits.new_zeros((), dtype=torch.float32)
        rows = max(1, _PIECE // logits.shape[1])
        for part, label in zip(logits.split(rows), labels.split(rows), strict=True):
            loss, gradient = _loss_and_gradient(part, label)
            total += loss
            part.copy_(gradient)
        ctx.save_for_backward(logits)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(gradients[0]), None


def projects_in_pieces(weight: Tensor) -> bool:
    """Whether `projected_cross_entropy` is to be taken with the projection ``weight``.

    On CUDA, where a gradient is wanted. Not while compiling, when the plain formula is fused; and
    not in fp16, whose gradients must be scaled before they are rounded.
    """
    cuda = weight.device.type == "cuda" and not torch.compiler.is_compiling()
    return cuda and torch.is_grad_enabled() and _dtype(weight) != torch.float16


def projected_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor
) -> Tensor:
    """`summed_cross_entropy` of the logits hidden · weightᵀ + bias, never all of them at once.

    Their gradients are made in the forward pass too, so only those of the arguments are kept; those
    of ``weight`` and ``bias`` are summed over the pieces in fp32.

    Args:
        hidden: (M, D).
        weight: (V, D).
        bias: (V,), or None.
        labels: (M,) int64; `IGNORE_INDEX` where a position does not count.

    Returns:
        () float32.
    """
    total: Tensor = _ProjectedCrossEntropy.apply(hidden, weight, bias, labels)
    return total


class _ProjectedCrossEntropy(torch.autograd.Function):
    """See `projected_cross_entropy`."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor
    ) -> Tensor:
        low = _dtype(weight)
        matrix, offset = weight.to(low), None if bias is None else bias.to(low)
        hidden_gradient = torch.empty_like(hidden)
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32)
        bias_gradient = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
        total = hidden.new_zeros((), dtype=torch.float32)
        rows = max(1, _CUDA_PIECE // weight.shape[0])
        pieces = zip(*(x.split(rows) for x in (hidden, labels, hidden_gradient)), strict=True)
        for part, label, part_gradient in pieces:
            part = part.to(low)
            loss, gradient = _loss_and_gradient(F.linear(part, matrix, offset), label)
            total += loss
            if bias_gradient is not None:
                bias_gradient += gradient.sum(0)
            gradient = gradient.to(low)
            part_gradient.copy_(gradient @ matrix)
            weight_gradient += gradient.mT @ part
        ctx.save_for_backward(hidden_gradient, weight_gradient, bias_gradient)
        ctx.dtypes = [x if x is None else x.dtype for x in (hidden, weight, bias)]
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        made = [x if x is None else x.mul_(gradients[0]) for x in ctx.saved_tensors]
        found = [x if x is None else x.to(dtype) for x, dtype in zip(made, ctx.dtypes, strict=True)]
        return *found, None


def _loss_and_gradient(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """() and (m, V), fp32: the summed loss of these logits, and its gradient."""
    counts = (labels != IGNORE_INDEX).float()[:, None]
    labels = labels.clamp(min=0)[:, None]
    log_p = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
    loss = -(log_p.gather(1, labels) * counts).sum()
    gradient = log_p.exp_().scatter_add_(1, labels, -torch.ones_like(counts))
    # A look at what counts costs a CPU nothing, and would stop a GPU.
    if logits.device.type != "cpu" or not counts.all():
        gradient.mul_(counts)
    return loss, gradient


def _dtype(weight: Tensor) -> torch.dtype:
    """What products with ``weight`` are computed in."""
    device = weight.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return weight.dtype
