"""The ragged batch: what data makes and models take.

Shapes: ``T`` tokens in all, ``N`` sequences end to end, ``M`` masked positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

MULTIPLE = 32
"""Tokens and masked positions are filled up to multiples of it: in bf16 on a CPU oneDNN generates
code for each size of a product, which can take longer than that product (benchmarks/LOG.md)."""


@dataclass(frozen=True)
class Batch:
    """``N`` sequences laid end to end: no padding, so every layer sees real tokens only.

    Sequence ``i`` is ``input_ids[cu_seqlens[i] : cu_seqlens[i + 1]]``.
    """

    input_ids: Tensor
    """(T,) int64: token ids, special tokens included."""
    position_ids: Tensor
    """(T,) int64: the place of each token in its own sequence, from 0."""
    cu_seqlens: Tensor
    """(N + 1,) int32: where each sequence starts, and T at the end."""
    max_seqlen: int
    """The length of the longest sequence, a Python int so that kernels need no device sync."""
    token_type_ids: Tensor | None = None
    """(T,) int64: 0 for the first text of a pair, 1 for the second; None means all 0."""
    labels: Tensor | None = None
    """What is to be predicted: (M,) original ids in pretraining, the task's own otherwise."""
    rows: Tensor | None = None
    """(N,) int64: which input each sequence is a window of, where one may have several; in
    pretraining, which row of its step it stands in, where that is asked for."""
    masked_positions: Tensor | None = None
    """(M,) int64 in [0, T): the positions that the masked-LM head reads, ascending but for 0s whose
    labels are ignored."""
    replacements: Tensor | None = None
    """(M,) int64: what stands there when masked: 80 % [MASK], 10 % random, 10 % as it was."""
    mask_thresholds: Tensor | None = None
    """(M,) float32: a position is masked at rate p exactly when its threshold is at most p."""
    pair_labels: Tensor | None = None
    """(N,) int64: of a sequence of two texts, 1 where the second follows the first and 0 where it
    does not; `IGNORE_INDEX` for a sequence of one text."""
    causal: bool = False
    """Whether a token sees only itself and what stands before it."""

    @property
    def num_sequences(self) -> int:
        """N."""
        return self.cu_seqlens.numel() - 1

    @property
    def num_tokens(self) -> int:
        """T."""
        return self.input_ids.numel()

    @property
    def sequence_lengths(self) -> Tensor:
        """(N,) int32: tokens in each sequence."""
        return self.cu_seqlens.diff()

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """The same batch with ``function`` applied to every tensor in it."""
        changes: dict[str, Any] = {
            f.name: function(value)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        return replace(self, **changes)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch on ``device``; Lightning calls this by its name."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory; the DataLoader calls this by its name."""
        return self.map(lambda tensor: tensor.pin_memory())


def ragged(
    sequences: Sequence[Sequence[int] | np.ndarray],
    token_type_ids: Sequence[Sequence[int] | np.ndarray] | None = None,
    labels: Tensor | None = None,
) -> Batch:
    """Lay ``sequences`` of token ids end to end.

    Args:
        sequences: N lists of token ids, special tokens included, none of them empty.
        token_type_ids: N lists of the same lengths, or None for all 0.
        labels: passed on as they are.

    >>> ragged([[2, 7, 3], [2, 3]]).cu_seqlens.tolist()
    [0, 3, 5]
    """
    lengths = np.fromiter((len(s) for s in sequences), dtype=np.int64, count=len(sequences))
    if lengths.size == 0 or lengths.min() == 0:
        raise ValueError("a batch needs at least one sequence, and no sequence may be empty")
    batch = end_to_end(_join(sequences), lengths)
    types = None if token_type_ids is None else torch.from_numpy(_join(token_type_ids))
    return replace(batch, token_type_ids=types, labels=labels)


def end_to_end(ids: np.ndarray, lengths: np.ndarray) -> Batch:
    """The batch of sequences that stand end to end already.

    Args:
        ids: (T,) int64: special tokens included.
        lengths: (N,) int64: tokens of each sequence, none of them empty.
    """
    ends = np.cumsum(lengths)
    return Batch(
        input_ids=torch.from_numpy(ids),
        position_ids=torch.from_numpy(np.arange(len(ids)) - np.repeat(ends - lengths, lengths)),
        cu_seqlens=torch.from_numpy(np.concatenate([[0], ends]).astype(np.int32)),
        max_seqlen=int(lengths.max()),
    )


def filled_up(batch: Batch, token: int) -> Batch:
    """A multiple of `MULTIPLE` tokens: ``batch`` itself, or with one more sequence at the end.

    Args:
        batch: T tokens.
        token: what the sequence consists of, at position 0 throughout.

    >>> filled_up(ragged([[2, 7, 3], [2, 3]]), token=0).cu_seqlens.tolist()
    [0, 3, 5, 32]
    """
    missing = -batch.num_tokens % MULTIPLE
    if not missing:
        return batch
    types = batch.token_type_ids
    return replace(
        batch,
        input_ids=F.pad(batch.input_ids, (0, missing), value=token),
        position_ids=F.pad(batch.position_ids, (0, missing)),
        cu_seqlens=F.pad(batch.cu_seqlens, (0, 1), value=batch.num_tokens + missing),
        max_seqlen=max(batch.max_seqlen, missing),
        token_type_ids=None if types is None else F.pad(types, (0, missing)),
    )


def _join(sequences: Sequence[Sequence[int] | np.ndarray]) -> np.ndarray:
    return np.concatenate([np.asarray(s, np.int64) for s in sequences])


def evaluation_tokens(device: str) -> int:
    """Tokens at once where nothing is learned: what a CPU's caches hold, what keeps a GPU busy."""
    return 2_048 if device == "cpu" else 16_384


def length_batches(lengths: Sequence[int] | np.ndarray, max_tokens: int) -> list[np.ndarray]:
    """All places in batches of like lengths, longest first, none above ``max_tokens`` padded.

    A sequence longer than that has a batch of its own.

    >>> [batch.tolist() for batch in length_batches([5, 1, 4, 2], max_tokens=8)]
    [[0], [2, 3], [1]]
    """
    order = np.argsort(-np.asarray(lengths, np.int64), kind="stable")
    batches, start = [], 0
    while start < len(order):
        stop = start + max(1, max_tokens // int(lengths[order[start]]))
        batches.append(order[start:stop])
        start = stop
    return batches
