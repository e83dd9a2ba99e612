"""Replaced-token detection: which tokens are another model's guesses?

ELECTRA (https://arxiv.org/abs/2003.10555). A shallow generator fills in the masked tokens, by
chance as it finds them likely, and is trained as a masked language model. The encoder that is kept
learns to tell at every token whether it was replaced. Both share the embeddings; the generator has
the encoder's width and a part of its depth, as in DeBERTaV3 (https://arxiv.org/abs/2111.09543).

Shapes: ``T`` tokens in all, ``M`` masked positions, ``D`` model width, ``V`` vocabulary.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlm.batch import Batch
from mlm.data.masking import IGNORE_INDEX
from mlm.model.config import EncoderConfig
from mlm.model.encoder import init_weights
from mlm.model.feed_forward import build_activation
from mlm.model.heads import MaskedLanguageModel
from mlm.objectives import masked_lm
from mlm.objectives.cross_entropy import summed_cross_entropy
from mlm.objectives.sums import Loss, Score, Second


class DetectionHead(nn.Module):
    """dense → activation → one number a token."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = build_activation(config)
        self.classifier = nn.Linear(config.hidden_size, 1)
        init_weights(self, config)

    def forward(self, hidden: Tensor) -> Tensor:
        """(T, D) → (T,): above 0 where the token seems to be replaced."""
        logits: Tensor = self.classifier(self.activation(self.dense(hidden)))
        return logits.squeeze(-1)


class ReplacedTokenDetector(nn.Module):
    """The encoder with its detection head, and the generator that makes its tasks."""

    def __init__(self, model: MaskedLanguageModel, generator_layers: int) -> None:
        """
        Args:
            model: its encoder becomes the one that detects; its head and embeddings are the
                generator's too.
            generator_layers: the generator's depth.
        """
        super().__init__()
        self.config, self.encoder = model.config, model.encoder
        self.detector = DetectionHead(model.config)
        self.generator = MaskedLanguageModel(
            model.config.replace(num_hidden_layers=generator_layers)
        )
        self.generator.encoder.embeddings = model.encoder.embeddings
        self.generator.head = model.head

    def forward(self, batch: Batch) -> Tensor:
        """(T,): above 0 where a token of ``batch`` seems to be replaced."""
        logits: Tensor = self.detector(self.encoder(batch))
        return logits


def loss(model: ReplacedTokenDetector, batch: Batch) -> Loss:
    """The generator's loss, and the detector's, on a batch that `masked_lm.at_rate` has masked."""
    assert batch.labels is not None
    logits = model.generator(batch)
    corrupted, replaced, counts = corrupt(batch, draw(logits.detach()), model.config)
    first = summed_cross_entropy(logits, batch.labels)  # which spends the logits
    guesses = model(corrupted).float()
    each = F.binary_cross_entropy_with_logits(guesses, replaced.float(), reduction="none")
    return Loss(first, (batch.labels != IGNORE_INDEX).sum(), (each * counts).sum())


@torch.no_grad()
def score(model: ReplacedTokenDetector, batch: Batch) -> Score:
    """How well the generator fills in a batch that `masked_lm.at_rate` has masked."""
    return masked_lm.score(model.generator, batch)


@torch.no_grad()
def score_second(model: ReplacedTokenDetector, batch: Batch) -> Second:
    """At how many tokens of ``batch`` the detector is right."""
    corrupted, replaced, counts = corrupt(batch, draw(model.generator(batch)), model.config)
    right = (model(corrupted) > 0) == replaced
    return Second((right & counts).sum(), counts.sum())


def draw(logits: Tensor) -> Tensor:
    """A token each, by the softmax of its logits: (M, V) → (M,) int64.

    One random number a row and a running sum: a number a token, as `multinomial` draws, would cost
    a CPU more than the generator.
    """
    sums = logits.float().softmax(-1).cumsum(-1)
    point = torch.rand(len(sums), 1, device=logits.device) * sums[:, -1:]
    found = torch.searchsorted(sums, point, right=True).squeeze(1)
    return found.clamp_(max=logits.shape[1] - 1)


def corrupt(batch: Batch, tokens: Tensor, config: EncoderConfig) -> tuple[Batch, Tensor, Tensor]:
    """Put guesses in the places of masked tokens.

    Args:
        batch: masked; positions whose label is `IGNORE_INDEX` stay as they are.
        tokens: (M,) the guesses.
        config: whose [CLS] and [SEP] are not looked at.

    Returns:
        The batch to be judged; (T,) bool, where a token is not what it was; and (T,) bool, where
        that counts. A guess that is right replaces nothing.
    """
    positions, labels = batch.masked_positions, batch.labels
    assert positions is not None
    assert labels is not None
    ids = batch.input_ids
    known, there = labels != IGNORE_INDEX, ids.index_select(0, positions)
    original = ids.index_copy(0, positions, torch.where(known, labels, there))
    corrupted = ids.index_copy(0, positions, torch.where(known, tokens, there))
    counts = (original != config.cls_token_id) & (original != config.sep_token_id)
    bare = replace(batch, input_ids=corrupted, masked_positions=None, labels=None)
    return bare, corrupted != original, counts
