"""Softmax attention over ragged batches: the only file that knows kernels.

Every path takes (T, 3, N, H) queries, keys and values of T tokens in N heads of width H, and gives
(T, N, H). Sequences never see each other. The paths agree with `reference`, which a test holds.

Shapes: ``B`` sequences, ``S`` tokens in the longest, ``T`` tokens in all, ``N`` heads, ``H`` width.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mlm.model.dropout import drop
from mlm.model.layout import Layout, neighbourhoods

# Above this length `matmul` does not keep the (B, N, S, S) weights for the backward pass.
_MATMUL_MAX_SEQLEN = 1024
# `varlen_attn` knows windows from here on.
_WINDOWS_IN_VARLEN = torch.__version__ >= "2.11"
# Queries at a time, in `pieces` and at least in `banded`.
_PIECE, _BLOCK = 256, 64


def attend(
    qkv: Tensor | tuple[Tensor, Tensor, Tensor],
    layout: Layout,
    window: int | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention by the path that fits, or by the one that ``layout`` insists on.

    Args:
        qkv: (T, 3, N, H), or (T, N, H) three times; rotated already where RoPE is used.
        layout: the batch's layout.
        window: a token sees ``window`` tokens to each side; None for all of its sequence.
        dropout: share of attention weights dropped; 0 outside training.

    Returns:
        (T, N, H).
    """
    first = qkv[0]
    backend = layout.backend or choose_backend(
        first.device.type,
        first.dtype,
        dropout,
        layout.max_seqlen,
        window,
        torch.is_grad_enabled(),
        layout.slopes is not None,
        first.shape[-1],
    )
    if isinstance(qkv, tuple):
        if backend == "varlen":
            return _varlen_apart(*qkv, layout, window)
        qkv = torch.stack(qkv, dim=1)
    free = layout.backend is None and not torch.compiler.is_compiling()
    if free and backend in _PADDED and (groups := layout.groups):
        parts = [attend(_take(qkv, g.tokens), g.layout, window, dropout) for g in groups]
        return _take(torch.cat(parts), layout.ungroup)
    return BACKENDS[backend](qkv, layout, window, dropout)


def choose_backend(
    device: str,
    dtype: torch.dtype,
    dropout: float,
    max_seqlen: int,
    window: int | None = None,
    learns: bool = True,
    sloped: bool = False,
    width: int = 64,
) -> str:
    """The name of the path that `attend` takes.

    ``learns`` where gradients are wanted, ``sloped`` where scores fall with distance (ALiBi),
    ``width`` of a head. What is fastest was measured: see benchmarks/LOG.md.
    """
    sixteen = dtype in (torch.float16, torch.bfloat16)
    windowed = window is None or _WINDOWS_IN_VARLEN
    # The kernel wants such widths, and a GPU that has bf16: fp16 is what older ones compute in.
    has_kernel = dtype == torch.bfloat16 and width % 8 == 0 and width <= 256
    if device == "cuda" and has_kernel and dropout == 0.0 and windowed and not sloped:
        return "varlen"
    if device != "cpu":
        return "sdpa"
    if window is not None and max_seqlen > 4 * max(window, _BLOCK):
        return "banded"
    if max_seqlen <= _MATMUL_MAX_SEQLEN and (learns or sixteen):
        return "matmul"
    return "pieces" if sixteen else "sdpa"


def backend_names(
    device: str,
    dtype: torch.dtype,
    dropout: float,
    max_seqlen: int,
    windows: Iterable[int | None],
    sloped: bool = False,
    width: int = 64,
) -> str:
    """The paths that training takes in layers of these windows, for people; `none` without any."""
    common = device, dtype, dropout, max_seqlen
    found = (choose_backend(*common, w, sloped=sloped, width=width) for w in windows)
    return " and ".join(dict.fromkeys(found)) or "none"


def _reference(qkv: Tensor, layout: Layout, window: int | None, dropout: float) -> Tensor:
    """One sequence at a time, by the formula (https://arxiv.org/abs/1706.03762, section 3.2.1)."""
    outputs, kept = [], []
    bounds = layout.cu_seqlens.tolist()
    for start, stop in itertools.pairwise(bounds):
        query, key, value = qkv[start:stop].permute(1, 2, 0, 3)  # each (N, s, H)
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        place = torch.arange(stop - start, device=qkv.device)
        after = place - place[:, None]  # how many places a key stands after a query
        if layout.slopes is not None:
            scores = scores - layout.slopes[:, None, None] * after.abs()
        if window is not None:
            scores = scores.masked_fill(after.abs() > window, -torch.inf)
        if layout.causal:
            scores = scores.masked_fill(after > 0, -torch.inf)
        weights = scores.softmax(-1)
        kept.append(weights.detach())
        outputs.append((F.dropout(weights, dropout) @ value).transpose(0, 1))
    if layout.weights is not None:
        layout.weights.append(kept)
    return torch.cat(outputs)


def _varlen(qkv: Tensor, layout: Layout, window: int | None, dropout: float) -> Tensor:
    """FlashAttention over `cu_seqlens`: CUDA, bf16, no dropout."""
    query, key, value = qkv.unbind(1)
    return _varlen_apart(query, key, value, layout, window)


def _varlen_apart(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, window: int | None
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    cu, longest = layout.cu_seqlens, layout.max_seqlen
    before = -1 if window is None else window  # -1 is without end
    after = 0 if layout.causal else before
    sides: dict[str, Any] = {"window_size": (before, after)}
    if not _WINDOWS_IN_VARLEN:
        sides = {"is_causal": layout.causal}
    mixed = varlen_attn(query, key, value, cu, cu, longest, longest, **sides)
    assert isinstance(mixed, Tensor)  # a tuple only where more than the output is asked for
    return mixed


def _matmul(qkv: Tensor, layout: Layout, window: int | None, dropout: float) -> Tensor:
    """Plain matrix products on padded sequences.

    On CPUs this trains about three times faster in bfloat16 than `scaled_dot_product_attention`,
    whose backward pass does not use the matrix instructions well (see benchmarks/LOG.md).
    """
    query, key, value = _pad(qkv, layout)
    return _unpad(_mix(query, key, value, layout.bias(window, qkv.dtype), dropout), layout)


def _pieces(qkv: Tensor, layout: Layout, window: int | None, dropout: float) -> Tensor:
    """As `matmul`, some queries at a time, whose weights the backward pass computes anew.

    So memory grows with S, not with S² (https://arxiv.org/abs/2112.05682).
    """
    query, key, value = (x.contiguous() for x in _pad(qkv, layout))
    bias = layout.bias(window, qkv.dtype)
    parts = []
    for start in range(0, layout.max_seqlen, _PIECE):
        piece = slice(start, start + _PIECE)
        seen = bias if bias is None or bias.shape[2] == 1 else bias[:, :, piece]
        parts.append(
            checkpoint(_mix, query[:, :, piece], key, value, seen, dropout, use_reentrant=False)
        )
    return _unpad(torch.cat(parts, dim=2), layout)


def _mix(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropout: float) -> Tensor:
    """softmax(q kᵀ / √H + bias) v: (…, q, H), (…, k, H), (…, k, H) → (…, q, H)."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if bias is not None:
        scores = scores + bias
    weights = scores.softmax(-1)
    if dropout:
        weights = drop(weights, dropout)
    return weights @ value


def _banded(qkv: Tensor, layout: Layout, window: int | None, dropout: float) -> Tensor:
    """Blocks of queries, one window long, against the three blocks of keys around each.

    The cost of a token does not grow with its sequence (https://arxiv.org/abs/2004.05150, appendix
    A), and blocks run across sequences, so there is no padding.
    """
    if window is None:
        return _matmul(qkv, layout, window, dropout)
    tokens, block = qkv.shape[0], max(window, _BLOCK)
    filled = F.pad(qkv, (0, 0) * 3 + (0, -tokens % block))
    query, key, value = filled.view(-1, block, *qkv.shape[1:]).permute(2, 0, 3, 1, 4)
    band = layout.band(window, block, qkv.dtype)
    mixed = _mix(query, neighbourhoods(key), neighbourhoods(value), band, dropout)
    return mixed.transpose(1, 2).flatten(0, 1)[:tokens]


def _sdpa(qkv: Tensor, layout: Layout, window: int | None, dropout: float) -> Tensor:
    """`scaled_dot_product_attention` on padded sequences: any device, any precision."""
    query, key, value = _pad(qkv, layout)
    sloped = layout.slopes is not None
    mask = layout.bias(window, query.dtype) if sloped else layout.visible(window)
    padded = F.scaled_dot_product_attention(query, key, value, mask, dropout_p=dropout)
    return _unpad(padded, layout)


def _pad(qkv: Tensor, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
    """(T, 3, N, H) → three (B, N, S, H); what fills up may be anything that is finite."""
    sequences = layout.cu_seqlens.numel() - 1
    _, _, heads, width = qkv.shape
    if layout.slots is None or torch.compiler.is_compiling():  # which fuses what it copies
        if layout.slots is not None:
            padded = qkv.new_zeros(sequences * layout.max_seqlen, *qkv.shape[1:])
            qkv = padded.index_copy(0, layout.slots, qkv)
        shape = sequences, layout.max_seqlen, 3, heads, width
        query, key, value = qkv.view(shape).permute(2, 0, 3, 1, 4)
        return query, key, value
    # One copy into the order in which products want it, and one back.
    places = layout.places(heads)
    rows: Tensor = _Place.apply(qkv.reshape(-1, width), places.inward, places.back)
    query, key, value = rows.view(3, sequences, heads, layout.max_seqlen, width)
    return query, key, value


def _unpad(padded: Tensor, layout: Layout) -> Tensor:
    """(B, N, S, H) → (T, N, H)."""
    _, heads, _, width = padded.shape
    if layout.slots is None:
        return padded.transpose(1, 2).flatten(0, 1)
    if torch.compiler.is_compiling():
        return padded.transpose(1, 2).flatten(0, 1).index_select(0, layout.slots)
    outward = layout.places(heads).outward
    return _take(padded.reshape(-1, width), outward).view(-1, heads, width)


class _Place(torch.autograd.Function):
    """`index_select` of rows that may come more than once, where the gradient of one is all."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (back,) = ctx.saved_tensors
        return gradients[0].index_select(0, back), None, None


def _take(rows: Tensor, index: Tensor) -> Tensor:
    """`index_select` of distinct rows: its gradient can be copied, where torch's must add."""
    taken: Tensor = _Take.apply(rows, index)
    return taken


class _Take(torch.autograd.Function):
    """See `_take`."""

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


# These pad sequences to the longest.
_PADDED = ("matmul", "pieces", "sdpa")

BACKENDS: dict[str, Callable[[Tensor, Layout, int | None, float], Tensor]] = {
    "reference": _reference,
    "varlen": _varlen,
    "matmul": _matmul,
    "pieces": _pieces,
    "banded": _banded,
    "sdpa": _sdpa,
}
