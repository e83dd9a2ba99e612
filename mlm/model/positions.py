"""Where a token stands: absolute positions added to embeddings, or something in attention.

Shapes: ``T`` tokens, ``D`` model width, ``N`` heads, ``H`` head width.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mlm.errors import look_up
from mlm.model.config import EncoderConfig


class LearnedPositions(nn.Embedding):
    """A trained vector a position, as in BERT (https://arxiv.org/abs/1810.04805)."""

    def __init__(self, config: EncoderConfig) -> None:
        rows = config.max_position_embeddings + config.position_offset
        super().__init__(rows, config.hidden_size)
        self.offset = config.position_offset

    def forward(self, position_ids: Tensor) -> Tensor:
        """(T,) int64 → (T, D)."""
        return super().forward(position_ids + self.offset if self.offset else position_ids)


class SinusoidalPositions(nn.Module):
    """Fixed sines and cosines (https://arxiv.org/abs/1706.03762, section 3.5)."""

    table: Tensor

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.register_buffer(
            "table",
            sinusoids(config.max_position_embeddings, config.hidden_size),
            persistent=False,
        )

    def forward(self, position_ids: Tensor) -> Tensor:
        """(T,) int64 → (T, D)."""
        return self.table[position_ids]


def sinusoids(length: int, width: int) -> Tensor:
    """(length, width) float32: sines at even columns, cosines at odd ones."""
    frequencies = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    angles = torch.arange(length)[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width]


class Rotation(NamedTuple):
    """What RoPE needs for one batch: (T, 1, 1, H / 2) cosines and sines of each token's angles."""

    cos: Tensor
    sin: Tensor


def rotation(position_ids: Tensor, head_dim: int, theta: float) -> Rotation:
    """Angles in float32, whatever autocast says: bfloat16 cannot tell positions above 256 apart."""
    if torch.compiler.is_dynamo_compiling():
        return Rotation(*_opaque_rotation(position_ids, head_dim, theta))
    return Rotation(*_cos_and_sin(position_ids, head_dim, theta))


def _cos_and_sin(position_ids: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    exponents = torch.arange(0, head_dim, 2, device=position_ids.device, dtype=torch.float32)
    angles = position_ids[:, None].float() * theta ** (-exponents / head_dim)  # (T, H/2)
    return angles.cos()[:, None, None], angles.sin()[:, None, None]


# The compiler may not look inside: it would compute the sines anew in every layer, for every head.
_opaque_rotation = torch.library.custom_op("mlm::rotation", _cos_and_sin, mutates_args=())


@_opaque_rotation.register_fake
def _(position_ids: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    shape = (position_ids.shape[0], 1, 1, head_dim // 2)
    cos = torch.empty(shape, dtype=torch.float32, device=position_ids.device)
    return cos, torch.empty_like(cos)


def rotate(qkv: Tensor, by: Rotation) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """Turn queries and keys by their positions' angles (https://arxiv.org/abs/2104.09864).

    The pairs that turn together are component i and i + H/2, as transformers has it.

    Args:
        qkv: (T, 3, N, H): queries, keys and values; the values stay as they are.
        by: the batch's rotation.

    Returns:
        (T, 3, N, H), or while compiling (T, N, H) three times, which need not be put together and
        taken apart again, forward and backward.
    """
    cos, sin = by.cos.to(qkv.dtype), by.sin.to(qkv.dtype)
    if torch.compiler.is_compiling():  # fuses copies and gradients itself
        query, key, value = qkv.unbind(1)
        sign = 2 * torch.arange(2, device=sin.device, dtype=sin.dtype) - 1
        sin = sin * sign[:, None]  # (T, 1, 2, H/2)
        return _turn_halves(query, cos, sin), _turn_halves(key, cos, sin), value
    return _Rotate.apply(qkv, cos, sin)


def _turn_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(T, N, H) turned: halves exchanged by a flip, which compilers read where they write."""
    halves = x.unflatten(-1, (2, -1))  # (T, N, 2, H/2)
    return (halves * cos + halves.flip(-2) * sin).flatten(-2)


class _Rotate(torch.autograd.Function):
    """Turns in one copy: a rotation's gradient is the rotation back, so nothing need be kept."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(qkv, cos, sin)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(gradients[0], cos, -sin), None, None


def _turn(qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    turned = qkv.clone(memory_format=torch.contiguous_format)
    first, second = qkv[:, :2].chunk(2, dim=-1)
    new_first, new_second = turned[:, :2].chunk(2, dim=-1)
    torch.mul(first, cos, out=new_first).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=new_second).addcmul_(first, sin)
    return turned


def alibi_slopes(heads: int) -> Tensor:
    """(heads,) float32: by how much a head's score falls with each place of distance.

    Powers of 2^(-8 / heads), and for a number that is no power of two some of those of the next one
    between them (https://arxiv.org/abs/2108.12409, section 3). To both sides alike, as MosaicBERT
    has it (https://arxiv.org/abs/2312.17482).

    >>> alibi_slopes(4).tolist()
    [0.25, 0.0625, 0.015625, 0.00390625]
    """
    whole = 1 << (heads.bit_length() - 1)
    slopes = 2.0 ** (-8.0 / whole * torch.arange(1, whole + 1))
    between = 2.0 ** (-4.0 / whole * torch.arange(1, 2 * (heads - whole) + 1, 2))
    return torch.cat([slopes, between])


# What is added to the embeddings; None where positions enter attention, or nowhere.
POSITIONS: dict[str, type[LearnedPositions] | type[SinusoidalPositions] | None] = {
    "learned": LearnedPositions,
    "sinusoidal": SinusoidalPositions,
    "rope": None,
    "alibi": None,
    "none": None,
}


def build_positions(config: EncoderConfig) -> nn.Module | None:
    """The absolute positions that ``config.position`` names, None where there are none."""
    kind = look_up(POSITIONS, config.position, "model.position")
    return None if kind is None else kind(config)
