"""Losses are sums: the same gradient for one rank, for two, and for accumulation.

A loss is the sum over the global batch's targets divided by their global count. The count is known
only when all micro-batches of all ranks are done, so backward takes each sum times a constant, and
the finished gradients are rescaled once, together with their clipping.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def all_reduce_sum(values: Tensor) -> Tensor:
    """The sum of ``values`` over all ranks, on every rank; ``values`` itself where there is one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        values = values.clone()
        torch.distributed.all_reduce(values)
    return values


def rescale_gradients(module: nn.Module, factor: float) -> None:
    """Multiply every gradient of ``module`` by ``factor``, in place."""
    if factor == 1.0:  # as in fine-tuning on one device, where every step has all its examples
        return
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    torch._foreach_mul_(gradients, factor)


def gradient_factor(constant: float, count: float, world_size: int, accumulation: int) -> float:
    """What turns the gradients that backward leaves into those of sum / count.

    Args:
        constant: what each micro-batch's sum was multiplied by before backward.
        count: targets in the global batch: all micro-batches of all ranks.
        world_size: ranks, over which DDP takes the mean.
        accumulation: micro-batches a step, over which Lightning takes the mean.
    """
    return world_size * accumulation / (constant * max(count, 1.0))


def clip_factor(norm: float, limit: float | None) -> float:
    """What brings gradients of this norm down to ``limit``, as `torch.nn.utils` has it.

    >>> clip_factor(0.5, 1.0), round(clip_factor(4.0, 1.0), 4), clip_factor(4.0, None)
    (1.0, 0.25, 1.0)
    """
    return min(1.0, limit / (norm + 1e-6)) if limit else 1.0
