"""Masked language modelling: guess the tokens behind a mask (https://arxiv.org/abs/1810.04805).

The collator chooses candidates at the highest rate of the run and leaves the ids as they are;
`at_rate` then masks those that the present rate takes. So the rate may follow the wall clock, and
loader workers need not know it.

Shapes: ``T`` tokens in all, ``M`` candidates or masked positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mlm.batch import Batch, ragged
from mlm.data.masking import IGNORE_INDEX, mask_candidates
from mlm.model.heads import MaskedLanguageModel
from mlm.objectives.cross_entropy import summed_cross_entropy


@dataclass(frozen=True)
class Vocabulary:
    """What masking must know of a tokenizer."""

    size: int
    """Number of ids."""
    cls: int
    """Id of [CLS]."""
    sep: int
    """Id of [SEP]."""
    mask: int
    """Id of [MASK]."""
    special: tuple[int, ...]
    """All special ids: never masked, never a random replacement."""


def collate(
    rows: Sequence[Sequence[np.ndarray]],
    keys: Sequence[int],
    vocabulary: Vocabulary,
    max_rate: float,
    still_length: int | None = None,
) -> Batch:
    """Rows of documents' pieces → one ragged batch with its masking candidates.

    Args:
        rows: for each row the ordinary ids of its sequences; [CLS] and [SEP] are added here.
        keys: for each row the key of its mask.
        vocabulary: ids that masking must know.
        max_rate: the highest rate that `at_rate` will be asked for.
        still_length: the length of a full row, to make shapes stand still for `torch.compile`: the
            batch is filled up to rows · length tokens by sequences of their own without candidates,
            and the number of sequences up to a coarse step by empty ones.
    """
    sequences: list[np.ndarray] = []
    candidates, starts, start = [], [], 0
    for row, key in zip(rows, keys, strict=True):
        if not row:  # a window that holds nothing but [CLS] and [SEP] of its documents
            continue
        framed = [np.concatenate(([vocabulary.cls], ids, [vocabulary.sep])) for ids in row]
        ids = np.concatenate(framed)
        candidates.append(
            mask_candidates(
                ids, vocabulary.special, key, max_rate, vocabulary.size, vocabulary.mask
            )
        )
        starts.append(start)
        start += ids.size
        sequences += framed
    if still_length is not None:
        missing = len(rows) * still_length - start
        whole, rest = divmod(missing, still_length)
        sequences += [np.full(n, vocabulary.sep) for n in [still_length] * whole + [rest] if n]
    batch = ragged(sequences)
    if still_length is not None:
        step = max(8, len(rows) // 4)
        empty = -batch.num_sequences % step
        batch = replace(
            batch,
            cu_seqlens=F.pad(batch.cu_seqlens, (0, empty), value=batch.num_tokens),
            max_seqlen=still_length,
        )
    positions = np.concatenate([c.positions + s for c, s in zip(candidates, starts, strict=True)])
    return replace(
        batch,
        masked_positions=torch.from_numpy(positions),
        labels=torch.from_numpy(np.concatenate([c.labels for c in candidates])),
        replacements=torch.from_numpy(np.concatenate([c.replacements for c in candidates])),
        mask_thresholds=torch.from_numpy(np.concatenate([c.thresholds for c in candidates])),
    )


def at_rate(batch: Batch, rate: float, capacity: int | None = None) -> Batch:
    """Mask ``batch`` at ``rate``: the candidates whose thresholds are at most ``rate``.

    Args:
        batch: from `collate`.
        rate: share of the ordinary tokens to mask, at most `collate`'s ``max_rate``.
        capacity: a length to pad the masked positions to, so that their number stands still for
            `torch.compile`; a padded position is 0 and its label is `IGNORE_INDEX`.

    Returns:
        A batch with masked `input_ids`, and `masked_positions` and `labels` of those alone.
    """
    assert batch.masked_positions is not None
    assert batch.mask_thresholds is not None
    assert batch.replacements is not None
    assert batch.labels is not None
    taken = batch.mask_thresholds <= rate
    positions, labels = batch.masked_positions[taken], batch.labels[taken]
    input_ids = batch.input_ids.index_copy(0, positions, batch.replacements[taken])
    if capacity is not None:
        missing = (0, capacity - positions.numel())
        positions, labels = F.pad(positions, missing), F.pad(labels, missing, value=IGNORE_INDEX)
    return replace(
        batch,
        input_ids=input_ids,
        masked_positions=positions,
        labels=labels,
        replacements=None,
        mask_thresholds=None,
    )


class Loss(NamedTuple):
    """What training needs of a batch; sums, to be divided when all batches are in."""

    sum: Tensor
    """() float32: the sum of the cross-entropies, in nats, with its graph."""
    targets: Tensor
    """() int64: how many positions were masked."""


class Score(NamedTuple):
    """What validation tells of a batch; sums too."""

    loss: Tensor
    """() float32: the sum of the cross-entropies, in nats."""
    targets: Tensor
    """() int64: how many positions were masked."""
    right: Tensor
    """() int64: how many first guesses were right."""


def loss(model: MaskedLanguageModel, batch: Batch) -> Loss:
    """The loss of ``model`` on a batch that `at_rate` has masked."""
    assert batch.labels is not None
    total = summed_cross_entropy(model(batch), batch.labels)
    return Loss(total, (batch.labels != IGNORE_INDEX).sum())


@torch.no_grad()
def score(model: MaskedLanguageModel, batch: Batch) -> Score:
    """How well ``model`` does on a batch that `at_rate` has masked."""
    labels = batch.labels
    assert labels is not None
    logits = model(batch)
    return Score(
        summed_cross_entropy(logits, labels),
        (labels != IGNORE_INDEX).sum(),
        (logits.argmax(-1) == labels).sum(),
    )
