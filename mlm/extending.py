"""A model for a tokenizer with more tokens: new rows, each from its word's old pieces."""

from __future__ import annotations

from dataclasses import replace

import torch
from tokenizers import Tokenizer

from mlm.checkpoint import ModelFolder
from mlm.data.tokenizer import num_ids

# Tensors with a row a token: the embedding, and what the heads have of their own.
_ROWS = ("encoder.embeddings.word.weight", "head.bias", "head.decoder.weight")


def extend_vocabulary(folder: ModelFolder, tokenizer: Tokenizer) -> ModelFolder:
    """``folder`` with ``tokenizer``, which `extends` its own.

    The row of a new token starts as the mean of the rows of the pieces that its word was cut into
    until now, in the embedding and in the head alike.
    """
    old, rows = folder.tokenizer, folder.config.vocab_size
    count = max(rows, num_ids(tokenizer))
    new = range(num_ids(old), num_ids(tokenizer))
    names = [str(tokenizer.id_to_token(number)) for number in new]
    pieces = [old.encode(name, add_special_tokens=False).ids for name in names]
    state = dict(folder.state)
    for name in _ROWS:
        if name not in state:
            continue
        before = state[name]
        after = torch.zeros(count, *before.shape[1:], dtype=before.dtype)
        after[:rows] = before
        for number, ids in zip(new, pieces, strict=True):
            after[number] = before[ids].float().mean(0) if ids else before.float().mean(0)
        state[name] = after
    config = folder.config.replace(vocab_size=count)
    return replace(folder, config=config, state=state, tokenizer=tokenizer)
