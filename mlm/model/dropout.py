"""Dropout whose random numbers do not cost more than the network (https://arxiv.org/abs/1207.0580).

On a CPU torch draws one number for every element, which takes more than half of a fine-tuning step.
Here one draw of 64 bits decides about four elements, by a generator that NumPy brings, seeded from
torch's: so `torch.manual_seed` still decides everything.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


def drop(x: Tensor, p: float) -> Tensor:
    """Each element becomes 0 with probability ``p``, or else x / (1 - p), as `F.dropout` has it.

    Args:
        x: any shape, floating point.
        p: in [0, 1]; on a CPU rounded to 1/65,536, and the scale follows what it was rounded to.
    """
    if p == 0.0:
        return x
    dropped = round(p * 65_536)
    if x.device.type != "cpu" or dropped == 65_536 or torch.compiler.is_compiling():
        return F.dropout(x, p)
    kept = random_int16(x.shape).ge_(dropped - 32_768)
    return _Keep.apply(x, kept, 65_536 / (65_536 - dropped))


def random_int16(shape: torch.Size) -> Tensor:
    """Uniform int16 of ``shape``, by SFC64 (https://pracrand.sourceforge.net/RNG_engines.txt)."""
    seed = int(torch.randint(2**63 - 1, ()))
    draws = np.random.SFC64(seed).random_raw(-(-shape.numel() // 4))
    return torch.from_numpy(draws.view(np.int16))[: shape.numel()].view(shape)


class _Keep(torch.autograd.Function):
    """x · kept · scale, where ``kept`` holds 0 and 1; the gradient is the same of the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.scale = scale
        return (x * kept).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (kept,) = ctx.saved_tensors
        return (gradients[0] * kept).mul_(ctx.scale), None, None


class Dropout(nn.Dropout):
    """`drop` in training, in place of torch's module."""

    def forward(self, x: Tensor) -> Tensor:
        """(…) → (…)."""
        return drop(x, self.p) if self.training else x
