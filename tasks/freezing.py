"""Parts of an encoder that fine-tuning leaves as they are.

A frozen part has no gradients and no optimizer state, and it computes as it will in use: its
dropout is off.
"""

from __future__ import annotations

from torch import nn

from mlm.errors import UserError
from mlm.model.encoder import Encoder

Freeze = str | int
"""`none`, `embeddings`, `encoder`, or how many of the lowest layers, embeddings included."""


def frozen_parts(encoder: Encoder, freeze: Freeze) -> list[nn.Module]:
    """What of ``encoder`` is frozen.

    Raises:
        UserError: more layers than there are.
    """
    if freeze == "none":
        return []
    if freeze == "encoder":
        return [encoder]
    number = 0 if freeze == "embeddings" else int(freeze)
    there = len(encoder.layers)
    if not 0 <= number <= there:
        raise UserError(f"model.freeze: {number} must lie between 0 and the model's {there} layers")
    return [encoder.embeddings, *list(encoder.layers)[:number]]


def freeze_parts(encoder: Encoder, freeze: Freeze) -> None:
    """Take the gradients and the dropout of a part of ``encoder``, for good."""
    for part in frozen_parts(encoder, freeze):
        part.requires_grad_(False)
        part.eval()
