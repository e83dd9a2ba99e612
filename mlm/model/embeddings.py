"""Token ids → vectors."""

import torch
from torch import Tensor, nn

from mlm.batch import Batch
from mlm.model.config import EncoderConfig
from mlm.model.dropout import Dropout
from mlm.model.norms import build_norm
from mlm.model.positions import build_positions

# How long a word is at first where it begins at a vector that means something: long enough that the
# first hundred updates do not undo that (benchmarks/LOG.md).
_LENGTH = 1.7


class Embeddings(nn.Module):
    """Word, position and token-type vectors summed, then norm and dropout."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.word = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position = build_positions(config)
        self.token_type = (
            nn.Embedding(config.type_vocab_size, config.hidden_size)
            if config.type_vocab_size
            else None
        )
        self.norm = build_norm(config) if config.embedding_norm else nn.Identity()
        self.dropout = Dropout(config.hidden_dropout)

    @property
    def own_columns(self) -> Tensor:
        """(D,) bool: which numbers of a fresh word are its own, and not left to positions."""
        return self.word.weight.any(dim=0)

    def start_at(self, vectors: Tensor) -> None:
        """Begin at these words; those whose vectors are 0 stay as they are.

        Args:
            vectors: (V, as many as there are `own_columns`), of a length of 1 or so.
        """
        with torch.no_grad():
            known = vectors.any(dim=1, keepdim=True)
            own = self.own_columns
            length = _LENGTH if self.position is None else 1.0  # as long as places, neighbours.py
            fresh = self.word.weight[:, own]
            self.word.weight[:, own] = torch.where(known, length * vectors, fresh)

    def forward(self, batch: Batch) -> Tensor:
        """A ragged batch of T tokens → (T, D)."""
        hidden = self.word(batch.input_ids)
        if self.position is not None:
            hidden = hidden + self.position(batch.position_ids)
        if self.token_type is not None:
            types = batch.token_type_ids
            only = types is None or self.token_type.num_embeddings == 1  # as in RoBERTa
            hidden = hidden + (self.token_type.weight[0] if only else self.token_type(types))
        return self.dropout(self.norm(hidden))
