"""Where each token of a batch stands, and which others it sees: worked out once, for all layers.

Shapes: ``B`` sequences, ``S`` tokens in the longest, ``T`` tokens in all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mlm.batch import Batch

# Sequences are padded together if they are this long at least, of the longest of them; those that
# are no longer than the second number always are, and so are all where little is filler anyway.
_ALIKE, _SHORT, _FULL = 0.7, 128, 0.9


class Group(NamedTuple):
    """Some sequences of a batch."""

    tokens: Tensor
    """(t,) int64: where their tokens stand in the batch."""
    layout: Layout
    """Their own."""


class Places(NamedTuple):
    """Where each head's row of a token stands, unpadded and padded, as int64 to take rows by."""

    inward: Tensor
    """(3 · B · N · S,): the row of (T, 3, N) for each of (3, B, N, S). What fills a sequence up is
    its own last token."""
    back: Tensor
    """(T · 3 · N,): the row of (3, B, N, S) for each of (T, 3, N)."""
    outward: Tensor
    """(T · N,): the row of (B, N, S) for each of (T, N)."""


@dataclass
class Layout:
    """The geometry of a batch; what a path asks for is built when it first does.

    `torch.compile` follows all of it but `groups`, so that an encoder is one graph.
    """

    cu_seqlens: Tensor
    """(B + 1,) int32: where each sequence starts, and T at the end."""
    max_seqlen: int
    """S."""
    num_tokens: int
    """T, a Python int as S is, so that neither a device nor `torch.compile` has to stop for it."""
    backend: str | None = None
    """A path to insist on; None chooses by device, precision, dropout and length."""
    weights: list[list[Tensor]] | None = None
    """Where `reference` leaves its weights: a list a layer of B tensors (N, s, s)."""
    causal: bool = False
    """Whether a query sees no key after it."""
    slopes: Tensor | None = None
    """(N,) float32: what a head's scores lose with each place between query and key, see
    `mlm.model.positions.alibi_slopes`."""
    _made: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    @property
    def slots(self) -> Tensor | None:
        """(T,) int64: each token's place in the padded layout (B · S); None where it is equal."""
        return self._once("slots", self._build_slots)

    def places(self, heads: int) -> Places:
        """How rows of ``heads`` heads are padded and unpadded; only where `slots` is not None."""
        return self._once(("places", heads), lambda: self._build_places(heads))

    @functools.cached_property
    def groups(self) -> list[Group]:
        """Sequences of like lengths, longest first; none where they are alike, or on other devices.

        Padding all to the longest would multiply the work where lengths differ much.
        """
        if self.cu_seqlens.device.type != "cpu" or self.max_seqlen <= _SHORT or self.slots is None:
            return []
        starts, lengths = self.cu_seqlens[:-1].numpy(), self.cu_seqlens.diff().numpy()
        if lengths.sum() >= _FULL * self.max_seqlen * len(lengths):
            return []
        order = np.argsort(-lengths, kind="stable")[: np.count_nonzero(lengths)]
        bounds = [0]
        for place, length in enumerate(lengths[order]):
            longest = lengths[order[bounds[-1]]]
            if longest > _SHORT and length < _ALIKE * longest:
                bounds.append(place)
        if len(bounds) == 1:
            return []
        parts = np.split(order, bounds[1:])
        return [self._group(starts[part], lengths[part]) for part in parts]

    @functools.cached_property
    def ungroup(self) -> Tensor:
        """(T,) int64: where each token stands among the tokens of all `groups`, end to end."""
        return torch.cat([group.tokens for group in self.groups]).argsort()

    def visible(self, window: int | None) -> Tensor | None:
        """(B or 1, 1, S or 1, S) bool: which keys a query sees; None where it sees them all.

        Filler queries see everything, so that no softmax is over nothing.
        """
        if window is not None and window >= self.max_seqlen - 1:
            window = None
        return self._once(("visible", window), lambda: self._build_visible(window))

    def bias(self, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """What is added to scores: `visible` as 0 and -inf, less what distance costs.

        (B or 1, 1 or N, 1 or S, S); None where that is nothing.
        """
        visible = self.visible(window)
        if visible is None and self.slopes is None:
            return None
        return self._once(("bias", window, dtype), lambda: self._build_bias(visible, dtype))

    def band(self, window: int, block: int, dtype: torch.dtype) -> Tensor:
        """(T / block, 1 or N, block, 3 block): `bias` of blocks of queries across all sequences.

        The keys are those of the block itself and of its neighbours to both sides, which hold all
        that a query sees: ``block`` is at least ``window``.
        """
        key = ("band", window, block, dtype)
        return self._once(key, lambda: self._build_band(window, block, dtype))

    def _once(self, key: Any, build: Callable[[], Any]) -> Any:
        # A layer that is recomputed may not change what is outside it. The compiler finds out by
        # itself what is the same in all of them.
        if torch.compiler.is_dynamo_compiling():
            return build()
        if key not in self._made:
            self._made[key] = build()
        return self._made[key]

    def _build_slots(self) -> Tensor | None:
        lengths, device = self.cu_seqlens.diff(), self.cu_seqlens.device
        if self.num_tokens == lengths.numel() * self.max_seqlen:
            return None
        shift = torch.arange(lengths.numel(), device=device) * self.max_seqlen
        shift = shift - self.cu_seqlens[:-1]
        shift = shift.repeat_interleave(lengths, output_size=self.num_tokens)
        return torch.arange(self.num_tokens, device=device) + shift

    def _build_places(self, heads: int) -> Places:
        assert self.slots is not None
        starts, stops = self.cu_seqlens[:-1, None].long(), self.cu_seqlens[1:, None].long()
        count, device = len(starts), self.cu_seqlens.device
        place = torch.arange(self.max_seqlen, device=device)
        head = torch.arange(heads, device=device)
        kind = torch.arange(3, device=device)
        # A sequence of nothing is filled with whatever token there is.
        token = torch.minimum(starts + place, stops - 1).clamp(min=0)  # (B, S)
        inward = (token[:, None] * 3 + kind[:, None, None, None]) * heads + head[:, None]
        sequence, place = self.slots // self.max_seqlen, self.slots % self.max_seqlen
        outward = (sequence[:, None] * heads + head) * self.max_seqlen + place[:, None]  # (T, N)
        back = outward[:, None] + kind[:, None] * (count * heads * self.max_seqlen)
        return Places(inward.flatten(), back.flatten(), outward.flatten())

    def _build_visible(self, window: int | None) -> Tensor | None:
        place = torch.arange(self.max_seqlen, device=self.cu_seqlens.device)
        near = None
        if window is not None or self.causal:
            near = _in_reach(place - place[:, None], window, self.causal)  # (S, S)
        if self.slots is None:
            return None if near is None else near[None, None]
        real = place < self.cu_seqlens.diff()[:, None]  # (B, S)
        if near is None:
            return (real | ~real.any(-1, keepdim=True))[:, None, None]
        return ((real[:, None] & near) | ~real[..., None])[:, None]

    def _build_bias(self, visible: Tensor | None, dtype: torch.dtype) -> Tensor:
        if self.slopes is None:
            assert visible is not None
            return _as_bias(visible, dtype)
        place = torch.arange(self.max_seqlen, device=self.cu_seqlens.device)
        far = self._cost(place - place[:, None])
        if visible is not None:
            far = far.masked_fill(~visible, -torch.inf)
        return far.to(dtype)

    def _cost(self, offsets: Tensor) -> Tensor:
        """(N, …) float32: what heads add to the scores of keys at such offsets."""
        assert self.slopes is not None
        return -self.slopes.view(-1, *(1,) * offsets.ndim) * offsets.abs()

    def _group(self, starts: np.ndarray, lengths: np.ndarray) -> Group:
        ends = np.cumsum(lengths)
        tokens = np.arange(ends[-1]) + np.repeat(starts - (ends - lengths), lengths)
        cu_seqlens = torch.from_numpy(np.concatenate([[0], ends]).astype(np.int32))
        sizes = int(lengths.max()), len(tokens)
        layout = Layout(cu_seqlens, *sizes, causal=self.causal, slopes=self.slopes)
        return Group(torch.from_numpy(tokens.astype(np.int64)), layout)

    def _build_band(self, window: int, block: int, dtype: torch.dtype) -> Tensor:
        device = self.cu_seqlens.device
        place = torch.arange(-(-self.num_tokens // block) * block, device=device)
        # Counted from 1, so that 0, which stands beyond the ends, is no one's; filler has the last.
        sequence = torch.bucketize(place, self.cu_seqlens, right=True)
        queries = sequence.view(-1, 1, block, 1)
        keys = neighbourhoods(sequence.view(-1, 1, block))[:, :, None]
        offset = torch.arange(3 * block, device=device) - block
        offset = offset - torch.arange(block, device=device)[:, None]
        near = _in_reach(offset, window, self.causal)
        seen = (queries == keys) & near
        if self.slopes is None:
            return _as_bias(seen, dtype)
        return self._cost(offset).masked_fill(~seen, -torch.inf).to(dtype)


def _in_reach(offsets: Tensor, window: int | None, causal: bool) -> Tensor:
    """Whether a query sees the key that stands so many places after it."""
    near = offsets <= 0 if causal else torch.ones_like(offsets, dtype=torch.bool)
    return near if window is None else near & (offsets.abs() <= window)


def _as_bias(visible: Tensor, dtype: torch.dtype) -> Tensor:
    zeros = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return zeros.masked_fill_(~visible, -torch.inf)


def neighbourhoods(blocks: Tensor) -> Tensor:
    """(blocks, N, w, …) → (blocks, N, 3 w, …): each with its neighbours, 0 beyond the ends."""
    framed = F.pad(blocks, (0, 0) * (blocks.ndim - 1) + (1, 1))
    return torch.cat([framed[:-2], framed[1:-1], framed[2:]], dim=2)


def prepare(batch: Batch, backend: str | None, weights: list[list[Tensor]] | None) -> Layout:
    """The layout of ``batch``."""
    sizes = batch.max_seqlen, batch.num_tokens
    return Layout(batch.cu_seqlens, *sizes, backend, weights, batch.causal)
