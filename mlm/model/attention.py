"""Softmax attention over ragged batches: the only file that knows kernels.

Every path takes (T, 3, N, H) queries, keys and values of T tokens in N heads of width H, and gives
(T, N, H). Sequences never see each other. The paths agree with `reference`, which a test holds.

Shapes: ``B`` sequences, ``S`` tokens in the longest, ``T`` tokens in all, ``N`` heads, ``H`` width.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mlm.batch import Batch
from mlm.model.dropout import drop

# Above this length the (B, N, S, S) weights of `matmul` cost more memory than they save time.
_MATMUL_MAX_SEQLEN = 1024


@dataclass
class Layout:
    """Where each token of a batch stands, worked out once and used by every layer."""

    cu_seqlens: Tensor
    max_seqlen: int
    backend: str | None = None
    """A path to insist on; None chooses by device, precision, dropout and length."""
    weights: list[list[Tensor]] | None = None
    """Where `reference` leaves its weights: a list a layer of B tensors (N, s, s)."""

    @functools.cached_property
    def slots(self) -> Tensor | None:
        """(T,) int64: each token's place in the padded layout (B · S); None where it is equal."""
        lengths = self.cu_seqlens.diff()
        tokens = int(self.cu_seqlens[-1])
        if tokens == lengths.numel() * self.max_seqlen:
            return None
        gaps = torch.arange(lengths.numel(), device=lengths.device) * self.max_seqlen
        shift = gaps - self.cu_seqlens[:-1]
        return torch.arange(tokens, device=lengths.device) + shift.repeat_interleave(lengths)

    @functools.cached_property
    def _visible(self) -> dict[int | None, Tensor | None]:
        return {}

    def visible(self, window: int | None) -> Tensor | None:
        """(B or 1, 1, S or 1, S) bool: which keys a query sees; None where it sees them all.

        Filler queries see everything, so that no softmax is over nothing.
        """
        if window is not None and window >= self.max_seqlen - 1:
            window = None
        if window not in self._visible:
            self._visible[window] = self._build_visible(window)
        return self._visible[window]

    def _build_visible(self, window: int | None) -> Tensor | None:
        place = torch.arange(self.max_seqlen, device=self.cu_seqlens.device)
        near = None
        if window is not None:
            near = (place[:, None] - place).abs() <= window  # (S, S)
        if self.slots is None:
            return None if near is None else near[None, None]
        real = place < self.cu_seqlens.diff()[:, None]  # (B, S)
        if near is None:
            return (real | ~real.any(-1, keepdim=True))[:, None, None]
        return ((real[:, None] & near) | ~real[..., None])[:, None]


def attend(qkv: Tensor, layout: Layout, window: int | None = None, dropout: float = 0.0) -> Tensor:
    """Attention by the path that fits, or by the one that ``layout`` insists on.

    Args:
        qkv: (T, 3, N, H), rotated already where RoPE is used.
        layout: the batch's layout.
        window: a token sees ``window`` tokens to each side; None for all of its sequence.
        dropout: share of attention weights dropped; 0 outside training.

    Returns:
        (T, N, H).
    """
    backend = layout.backend or choose_backend(
        qkv.device.type, qkv.dtype, dropout, layout.max_seqlen, torch.is_grad_enabled()
    )
    return BACKENDS[backend](qkv, layout, window, dropout)


def choose_backend(
    device: str, dtype: torch.dtype, dropout: float, max_seqlen: int, learns: bool = True
) -> str:
    """The name of the path that `attend` takes; ``learns`` where gradients are wanted."""
    if device == "cuda" and dtype in (torch.float16, torch.bfloat16) and dropout == 0.0:
        return "varlen"
    if device == "cpu" and max_seqlen <= _MATMUL_MAX_SEQLEN:
        return "matmul" if learns or dtype != torch.float32 else "sdpa"
    return "sdpa"


def prepare(batch: Batch, backend: str | None, weights: list[list[Tensor]] | None) -> Layout:
    """The layout of ``batch``."""
    return Layout(batch.cu_seqlens, batch.max_seqlen, backend, weights)


def _reference(qkv: Tensor, layout: Layout, window: int | None, dropout: float) -> Tensor:
    """One sequence at a time, by the formula (https://arxiv.org/abs/1706.03762, section 3.2.1)."""
    outputs, kept = [], []
    bounds = layout.cu_seqlens.tolist()
    for start, stop in itertools.pairwise(bounds):
        query, key, value = qkv[start:stop].permute(1, 2, 0, 3)  # each (N, s, H)
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        if window is not None:
            place = torch.arange(stop - start, device=qkv.device)
            scores = scores.masked_fill((place[:, None] - place).abs() > window, -torch.inf)
        weights = scores.softmax(-1)
        kept.append(weights.detach())
        outputs.append((F.dropout(weights, dropout) @ value).transpose(0, 1))
    if layout.weights is not None:
        layout.weights.append(kept)
    return torch.cat(outputs)


def _varlen(qkv: Tensor, layout: Layout, window: int | None, dropout: float) -> Tensor:
    """FlashAttention over `cu_seqlens`: CUDA, 16 bit, no dropout."""
    from torch.nn.attention.varlen import varlen_attn

    query, key, value = qkv.unbind(1)
    cu, longest = layout.cu_seqlens, layout.max_seqlen
    sides = (-1, -1) if window is None else (window, window)
    mixed = varlen_attn(query, key, value, cu, cu, longest, longest, window_size=sides)
    assert isinstance(mixed, Tensor)  # a tuple only where more than the output is asked for
    return mixed


def _matmul(qkv: Tensor, layout: Layout, window: int | None, dropout: float) -> Tensor:
    """Plain matrix products on padded sequences.

    On CPUs this trains about three times faster in bfloat16 than `scaled_dot_product_attention`,
    whose backward pass does not use the matrix instructions well (see benchmarks/LOG.md).
    """
    query, key, value = _pad(qkv, layout)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)  # (B, N, S, S)
    visible = layout.visible(window)
    if visible is not None:
        hidden = torch.zeros(visible.shape, dtype=qkv.dtype, device=qkv.device)
        scores = scores + hidden.masked_fill_(~visible, -torch.inf)
    weights = scores.softmax(-1)
    if dropout:
        weights = drop(weights, dropout)
    return _unpad(weights @ value, layout)


def _sdpa(qkv: Tensor, layout: Layout, window: int | None, dropout: float) -> Tensor:
    """`scaled_dot_product_attention` on padded sequences: any device, any precision."""
    query, key, value = _pad(qkv, layout)
    visible = layout.visible(window)
    padded = F.scaled_dot_product_attention(query, key, value, visible, dropout_p=dropout)
    return _unpad(padded, layout)


def _pad(qkv: Tensor, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
    """(T, 3, N, H) → three (B, N, S, H); filler is 0."""
    sequences = layout.cu_seqlens.numel() - 1
    if layout.slots is not None:
        padded = qkv.new_zeros(sequences * layout.max_seqlen, *qkv.shape[1:])
        qkv = padded.index_copy(0, layout.slots, qkv)
    query, key, value = qkv.view(sequences, layout.max_seqlen, *qkv.shape[1:]).permute(
        2, 0, 3, 1, 4
    )
    return query, key, value


def _unpad(padded: Tensor, layout: Layout) -> Tensor:
    """(B, N, S, H) → (T, N, H)."""
    flat = padded.transpose(1, 2).flatten(0, 1)
    if layout.slots is None:
        return flat
    if torch.compiler.is_compiling():  # fuses the gradient itself
        return flat.index_select(0, layout.slots)
    return _Take.apply(flat, layout.slots)


class _Take(torch.autograd.Function):
    """`index_select` of distinct rows: its gradient can be copied, where torch's must add."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.rows = rows.shape[0]
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        zeros = gradients[0].new_zeros(ctx.rows, *gradients[0].shape[1:])
        return zeros.index_copy(0, index, gradients[0]), None


BACKENDS: dict[str, Callable[[Tensor, Layout, int | None, float], Tensor]] = {
    "reference": _reference,
    "varlen": _varlen,
    "matmul": _matmul,
    "sdpa": _sdpa,
}
