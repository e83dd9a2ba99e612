"""How well a pretrained encoder fills in masks: figures that can be compared between runs."""

from __future__ import annotations

import math

import torch

from mlm.data.packing import Split
from mlm.model.heads import MaskedLanguageModel
from mlm.objectives import masked_lm
from mlm.training.batches import VALIDATION_RATE, ValidationBatches


@torch.inference_mode()
def evaluate_masked_lm(
    model: MaskedLanguageModel,
    split: Split,
    vocabulary: masked_lm.Vocabulary,
    characters: int,
    sequence_length: int = 128,
    batch_size: int = 64,
) -> dict[str, float]:
    """Loss at the fixed rate with the fixed masks, as in validation, in the model's precision.

    Args:
        model: in eval mode.
        split: documents as token ids.
        vocabulary: what masking must know of the tokenizer.
        characters: how many characters of text the split's tokens stand for.
        sequence_length: tokens in a row.
        batch_size: rows at once.

    Returns:
        `loss` in nats a masked token, `perplexity`, `accuracy`, and `bits_per_character`: the loss
        of a token spread over its characters, which does not depend on the tokenizer.
    """
    device = next(model.parameters()).device
    loss = count = correct = 0.0
    batches = ValidationBatches(split, vocabulary, sequence_length, batch_size)
    for index in range(len(batches)):
        batch = masked_lm.at_rate(batches[index].to(device), VALIDATION_RATE)
        found = masked_lm.score(model, batch)
        loss += float(found.loss)
        count += int(found.targets)
        correct += int(found.right)
    mean = loss / max(count, 1)
    tokens = int(split.ends[len(split.ends) - 1])
    return {
        "loss": mean,
        "perplexity": math.exp(mean),
        "accuracy": correct / max(count, 1),
        "bits_per_character": bits_per_character(mean, characters / tokens),
    }


def bits_per_character(loss: float, characters_per_token: float) -> float:
    """A loss in nats a token, spread over the token's characters: the tokenizer does not matter."""
    return loss / (math.log(2) * characters_per_token)
