"""Masked language modelling, and whether a sequence's second text follows its first.

BERT's second loss, on the CLS token (https://arxiv.org/abs/1810.04805, section 3.1). Which pairs
there are is the data's business: see `mlm.data.pairs`.

Shapes: ``T`` tokens in all, ``N`` sequences, ``D`` model width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlm.batch import Batch
from mlm.data.masking import IGNORE_INDEX
from mlm.model.config import EncoderConfig
from mlm.model.encoder import init_weights
from mlm.model.heads import MaskedLanguageModel
from mlm.objectives import masked_lm
from mlm.objectives.sums import Loss, Second


class PairHead(nn.Module):
    """dense → tanh → two classes, on the CLS token, as BERT's pooler and its second head."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.classifier = nn.Linear(config.hidden_size, 2)
        init_weights(self, config)

    def forward(self, hidden: Tensor) -> Tensor:
        """(N, D) → (N, 2) logits."""
        logits: Tensor = self.classifier(self.dense(hidden).tanh())
        return logits


class PairedMaskedLM(MaskedLanguageModel):
    """A masked language model with a head for pairs."""

    def __init__(self, model: MaskedLanguageModel) -> None:
        """``model`` is what both objectives train."""
        nn.Module.__init__(self)
        self.config, self.encoder, self.head = model.config, model.encoder, model.head
        self.pair_head = PairHead(model.config)

    def pair_logits(self, hidden: Tensor, batch: Batch) -> Tensor:
        """(T, D) → (N, 2), at each sequence's CLS token."""
        starts = batch.cu_seqlens[:-1].long().clamp(max=batch.num_tokens - 1)  # some are empty
        return self.pair_head(hidden.index_select(0, starts))


def loss(model: PairedMaskedLM, batch: Batch) -> Loss:
    """Both losses on a batch that `masked_lm.at_rate` has masked."""
    hidden = model.encoder(batch)
    labels = batch.pair_labels
    if labels is None:
        labels = torch.full_like(batch.cu_seqlens[:-1], IGNORE_INDEX, dtype=torch.int64)
    logits = model.pair_logits(hidden, batch).float()
    second = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum")
    return masked_lm.loss_of(model, hidden, batch)._replace(second=second)


@torch.no_grad()
def score_second(model: PairedMaskedLM, batch: Batch) -> Second:
    """How many of the pairs of ``batch`` are told right."""
    labels = batch.pair_labels
    assert labels is not None
    guesses = model.pair_logits(model.encoder(batch), batch).argmax(-1)
    return Second((guesses == labels).sum(), (labels != IGNORE_INDEX).sum())
