"""Texts to vectors, by any encoder: in ragged batches of texts of like lengths, in input order."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.nn import functional as F

from mlm.batch import evaluation_tokens, length_batches, ragged
from mlm.errors import UserError, look_up
from mlm.model.encoder import Encoder
from mlm.model.pooling import POOLINGS

_LOG = logging.getLogger(__name__)

Progress = Callable[[int], None]


def embed_texts(
    encoder: Encoder,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    pooling: str = "mean",
    normalize: bool = False,
    max_length: int | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """One vector a text.

    A longer text is cut, [SEP] kept, and a warning is logged.

    Args:
        encoder: in eval mode.
        tokenizer: the encoder's.
        texts: n texts; the empty one has a vector like any other.
        pooling: a name in `POOLINGS`.
        normalize: scale every vector to length 1.
        max_length: tokens of a text that are read, at most the encoder's positions; None is those.
        progress: called with the number of texts done since the last call.

    Returns:
        (n, D) float32.

    Raises:
        UserError: an unknown ``pooling``.
    """
    look_up(POOLINGS, pooling, "pooling")
    ids = encode_texts(tokenizer, texts)
    positions = encoder.config.max_position_embeddings
    limit = min(positions, max_length or positions)
    if cut := sum(len(sequence) > limit for sequence in ids):
        _LOG.warning("mlm: %d of %d texts were cut to %d tokens", cut, len(ids), limit)
    return embed_ids(encoder, shorten(ids, limit), pooling, normalize, progress)


@torch.inference_mode()
def embed_ids(
    encoder: Encoder,
    ids: Sequence[np.ndarray],
    pooling: str = "mean",
    normalize: bool = False,
    progress: Progress | None = None,
) -> np.ndarray:
    """As `embed_texts`, for sequences of ids that the encoder has positions for."""
    device, pool = next(encoder.parameters()).device, POOLINGS[pooling]
    vectors = np.empty((len(ids), encoder.config.hidden_size), dtype=np.float32)
    tokens = evaluation_tokens(device.type)
    for chosen in length_batches([len(sequence) for sequence in ids], tokens):
        batch = ragged([ids[place] for place in chosen]).to(device)
        pooled = pool(encoder(batch), batch.cu_seqlens)
        if normalize:
            pooled = F.normalize(pooled, dim=-1)
        vectors[chosen] = pooled.cpu().numpy()
        if progress is not None:
            progress(len(chosen))
    return vectors


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    """Token ids of each text, special tokens included.

    Raises:
        UserError: a text that is not valid Unicode, by its number.
    """
    for number, text in enumerate(texts, start=1):
        try:
            text.encode()
        except UnicodeEncodeError:  # an argument that was not UTF-8 arrives with half surrogates
            raise UserError(f"text {number}: is not valid Unicode") from None
    return [np.asarray(e.ids) for e in tokenizer.encode_batch_fast(list(texts))]


def shorten(ids: Sequence[np.ndarray], limit: int) -> list[np.ndarray]:
    """Sequences of at most ``limit`` ids: the beginning, and [SEP] at the end."""
    return [s if len(s) <= limit else np.append(s[: limit - 1], s[-1]) for s in ids]
