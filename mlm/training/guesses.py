"""A table of what a model guesses at the first masks of the validation split."""

from __future__ import annotations

from typing import Any

import torch

from mlm.data.masking import IGNORE_INDEX
from mlm.data.store import TokenStore
from mlm.data.tokenizer import load_tokenizer
from mlm.model.heads import MaskedLanguageModel
from mlm.objectives import masked_lm
from mlm.training.batches import VALIDATION_RATE, ValidationBatches, vocabulary_of
from mlm.training.logging import log_table
from mlm.training.module import PretrainingModule


def log_guesses(
    module: PretrainingModule, store: TokenStore, length: int, loggers: list[Any]
) -> None:
    """Log twenty of them."""
    rows = guesses(module.objective.masked_lm_of(module.model), store, length)[:20]
    columns = ["context", "token", "guess", "score"]
    log_table(loggers, "val/guesses", columns, rows, module.spent.steps)


@torch.inference_mode()
def guesses(
    model: MaskedLanguageModel, store: TokenStore, length: int
) -> list[tuple[str, str, str, float]]:
    """(words around a mask, what stood there, the first guess, its probability), of one row."""
    tokenizer = load_tokenizer(store.tokenizer_dir)
    batches = ValidationBatches(store.split("validation"), vocabulary_of(store), length, 1)
    device = next(model.parameters()).device
    batch = masked_lm.at_rate(batches[0], VALIDATION_RATE).to(device)
    model.eval()
    scores, found = model(batch).float().softmax(-1).max(-1)
    assert batch.masked_positions is not None
    assert batch.labels is not None
    columns = batch.masked_positions, batch.labels, found, scores
    rows = []
    counts = batch.labels != IGNORE_INDEX
    for position, label, guess, value in zip(*(x[counts].tolist() for x in columns), strict=True):
        around = batch.input_ids[max(0, position - 12) : position + 12].tolist()
        context = tokenizer.decode(around, skip_special_tokens=False)
        name = tokenizer.id_to_token
        rows.append((context, str(name(label)), str(name(guess)), value))
    return rows
