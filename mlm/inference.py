"""Pretrained models in use: likely tokens for a mask, and vectors for texts.

Both compute in fp32, in ragged batches of texts of like lengths, and answer in input order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from tokenizers import Tokenizer

from mlm.batch import evaluation_tokens, length_batches, ragged
from mlm.checkpoint import build_encoder, build_masked_lm, read_folder
from mlm.data.tokenizer import special_ids
from mlm.embedding import Progress, embed_texts, encode_texts
from mlm.errors import UserError, look_up
from mlm.model.heads import MaskedLanguageModel
from mlm.model.pooling import POOLINGS
from mlm.sentence_vectors import sentence_vectors
from mlm.training.precision import choose_device


class FillMask:
    """The likeliest tokens for each ``[MASK]`` in a text.

    Args:
        directory: a pretrained model's folder, such as ``runs/x/model``.
        device: `auto`, `cpu`, `cuda` or `mps`, or a `torch.device`.

    Raises:
        UserError: no such folder, a damaged one, or a model with another head.

    >>> FillMask("runs/x/model")("The [MASK] sat.", top_k=1)  # doctest: +SKIP
    [{'text': 'The [MASK] sat.', 'masks': [[{'token': 'cat', 'score': 0.31}]]}]
    """

    def __init__(self, directory: str | Path, device: str | torch.device = "auto") -> None:
        folder = read_folder(directory)
        self.tokenizer = folder.tokenizer
        self.model = build_masked_lm(folder).to(choose_device(device))

    @classmethod
    def from_pretrained(cls, directory: str | Path, device: str | torch.device = "auto") -> Self:
        """The same, by the name that people know."""
        return cls(directory, device)

    def __call__(self, texts: str | Sequence[str], top_k: int = 5) -> list[dict[str, Any]]:
        """As `fill_masks`; one text is a list of one."""
        texts = [texts] if isinstance(texts, str) else texts
        return fill_masks(self.model, self.tokenizer, texts, top_k)


class Embedder:
    """One vector a text, by any model's encoder.

    Args:
        directory: a model folder; its head is not used.
        pooling: `mean` or `max` over a text's tokens, or `cls` for its first token; None is what
            the folder says, as those of sentence-transformers do, else the mean.
        normalize: scale every vector to length 1, so that a dot product is the cosine; None is what
            the folder says, else no.
        device: `auto`, `cpu`, `cuda` or `mps`, or a `torch.device`.

    Raises:
        UserError: no such folder, a damaged one, or an unknown pooling.

    >>> Embedder("runs/x/model")(["one text", "and another"]).shape  # doctest: +SKIP
    (2, 256)
    """

    def __init__(
        self,
        directory: str | Path,
        pooling: str | None = None,
        normalize: bool | None = None,
        device: str | torch.device = "auto",
    ) -> None:
        if pooling is not None:
            look_up(POOLINGS, pooling, "pooling")
        folder = read_folder(directory)
        how = sentence_vectors(folder.directory, folder.info)
        self.tokenizer = folder.tokenizer
        self.encoder = build_encoder(folder).to(choose_device(device))
        self.pooling = how.pooling if pooling is None else pooling
        self.normalize = how.normalize if normalize is None else normalize
        self.max_length = how.max_length

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        pooling: str | None = None,
        normalize: bool | None = None,
        device: str | torch.device = "auto",
    ) -> Self:
        """The same, by the name that people know."""
        return cls(directory, pooling, normalize, device)

    def __call__(self, texts: str | Sequence[str], progress: Progress | None = None) -> np.ndarray:
        """As `embed_texts`; one text is a list of one."""
        texts = [texts] if isinstance(texts, str) else texts
        return embed_texts(
            self.encoder,
            self.tokenizer,
            texts,
            self.pooling,
            self.normalize,
            self.max_length,
            progress,
        )


@torch.inference_mode()
def fill_masks(
    model: MaskedLanguageModel, tokenizer: Tokenizer, texts: Sequence[str], top_k: int = 5
) -> list[dict[str, Any]]:
    """The likeliest tokens for each mask of each text.

    Args:
        model: in eval mode.
        tokenizer: the model's.
        texts: with any number of the tokenizer's mask tokens; a text without one needs no model.
        top_k: tokens a mask, at most as many as there are.

    Returns:
        One JSON-ready object a text, in their order: ``{"text", "masks": [[{"token", "score"}, …],
        …]}``, the likeliest first, the token as the vocabulary has it, the score its probability.

    Raises:
        UserError: a text longer than the model's positions (cutting it could cut the mask off), or
            a ``top_k`` below 1.
    """
    if top_k < 1:
        raise UserError(f"top_k: {top_k} is not a number of tokens; choose 1 or more")
    ids = encode_texts(tokenizer, texts)
    limit = model.config.max_position_embeddings
    for number, sequence in enumerate(ids, start=1):
        if len(sequence) > limit:
            raise UserError(
                f"text {number}: {len(sequence)} tokens are more than the model's {limit} "
                f"positions; shorten it"
            )
    mask = special_ids(tokenizer).mask
    known = tokenizer.get_vocab_size()  # an embedding may have more rows, to fill a power of two
    answers: list[dict[str, Any]] = [{"text": text, "masks": []} for text in texts]
    places = np.array([place for place, sequence in enumerate(ids) if mask in sequence], np.int64)
    tokens = evaluation_tokens(_device(model).type)
    for chosen in length_batches([len(ids[place]) for place in places], tokens):
        batch = ragged([ids[place] for place in places[chosen]])
        positions = (batch.input_ids == mask).nonzero()[:, 0]
        batch = replace(batch, masked_positions=positions).to(_device(model))
        best = model(batch).softmax(-1)[:, :known].topk(min(top_k, known))
        found = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        for place in places[chosen]:
            for _ in range(int((ids[place] == mask).sum())):
                pairs = zip(*next(found), strict=True)
                guesses = [{"token": tokenizer.id_to_token(i), "score": p} for i, p in pairs]
                answers[place]["masks"].append(guesses)
    return answers


def _device(module: torch.nn.Module) -> torch.device:
    return next(module.parameters()).device
