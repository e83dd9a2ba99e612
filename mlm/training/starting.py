"""Where a fresh model begins: at what can be counted in its store."""

from __future__ import annotations

import time

import torch

from mlm.data.cooccurrence import word_vectors
from mlm.data.store import TokenStore
from mlm.errors import UserError
from mlm.model.heads import MaskedLanguageModel, MaskedLMHead
from mlm.objectives.table import ObjectiveOptions
from mlm.training.batches import token_counts
from mlm.training.logging import say


def check_start(objective: ObjectiveOptions, model: MaskedLanguageModel, trained: bool) -> None:
    """Refuse what only a fresh model can do.

    Args:
        objective: what is asked for.
        model: that is to begin so.
        trained: whether it was trained before.

    Raises:
        UserError: it cannot.
    """
    if objective.start_at_frequencies and (trained or not isinstance(model.head, MaskedLMHead)):
        raise UserError(
            "objective.start_at_frequencies: only a fresh head with a bias can; leave it out"
        )
    if objective.start_at_cooccurrences and trained:
        raise UserError("objective.start_at_cooccurrences: only a fresh model can; leave it out")


def start(
    model: MaskedLanguageModel, store: TokenStore, objective: ObjectiveOptions, seed: int
) -> float:
    """Let a fresh model begin at what the store's training split says; the seconds it took.

    Args:
        model: initialised plainly.
        store: the texts that it will be trained on.
        objective: which of the ways to begin are asked for.
        seed: of the run.
    """
    began, split = time.monotonic(), store.split("train")
    if objective.start_at_frequencies:
        assert isinstance(model.head, MaskedLMHead)  # see check_start
        model.head.start_at(torch.from_numpy(token_counts(split, store.vocab_size)))
    embeddings = model.encoder.embeddings
    width = int(embeddings.own_columns.sum())  # 0 where all begins at 0
    if objective.start_at_cooccurrences is not False and width:
        say(f"{store.path}: counting what stands near what, where the words are to begin")
        vectors = word_vectors(split, store.vocab_size, width, seed)
        embeddings.start_at(torch.from_numpy(vectors))
    return time.monotonic() - began
