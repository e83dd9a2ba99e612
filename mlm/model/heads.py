"""The masked-LM head, and the encoder under it.

Shapes: ``T`` tokens, ``M`` masked positions, ``D`` model width, ``V`` vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlm.batch import Batch
from mlm.errors import look_up
from mlm.model.config import EncoderConfig
from mlm.model.encoder import Encoder, init_weights
from mlm.model.feed_forward import build_activation
from mlm.model.norms import build_norm


class MaskedLMHead(nn.Module):
    """dense → activation → norm → vocabulary (https://arxiv.org/abs/1810.04805).

    The projection to the vocabulary is the word embedding itself (https://arxiv.org/abs/1608.05859)
    with a bias of its own, so it is handed in rather than held.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=config.bias)
        self.activation = build_activation(config)
        self.norm = build_norm(config)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        init_weights(self, config)

    def start_at(self, frequencies: Tensor) -> None:
        """Begin with guessing every token as often as it occurs.

        Training would lead the bias there (https://arxiv.org/abs/2212.09686).

        Args:
            frequencies: (V,), above 0, in any unit.
        """
        logarithms = frequencies.log()
        with torch.no_grad():
            self.bias.copy_(logarithms - logarithms.mean())

    def features(self, hidden: Tensor) -> Tensor:
        """(M, D) → (M, D): what is projected to the vocabulary."""
        features: Tensor = self.norm(self.activation(self.dense(hidden)))
        return features

    def projection(self, word_embedding: Tensor) -> tuple[Tensor, Tensor | None]:
        """(V, D) → weight (V, D) and bias (V,) of the projection."""
        return word_embedding, self.bias

    def forward(self, hidden: Tensor, word_embedding: Tensor) -> Tensor:
        """(M, D) and (V, D) → (M, V) logits."""
        return F.linear(self.features(hidden), *self.projection(word_embedding))


class LinearLMHead(nn.Module):
    """One map from the encoder's output to the vocabulary, with weights of its own (EuroBERT)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        init_weights(self, config)

    def features(self, hidden: Tensor) -> Tensor:
        """(M, D) as it is."""
        return hidden

    def projection(self, word_embedding: Tensor) -> tuple[Tensor, Tensor | None]:
        """Weight (V, D) of the map, and no bias; the word embedding is not used."""
        return self.decoder.weight, None

    def forward(self, hidden: Tensor, word_embedding: Tensor) -> Tensor:
        """(M, D) → (M, V) logits; the word embedding is not used."""
        return self.decoder(hidden)


LM_HEADS: dict[str, type[MaskedLMHead] | type[LinearLMHead]] = {
    "transform": MaskedLMHead,
    "linear": LinearLMHead,
}


class MaskedLanguageModel(nn.Module):
    """An encoder that guesses the tokens behind a mask."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.head = look_up(LM_HEADS, config.lm_head, "model.lm_head")(config)

    def forward(self, batch: Batch) -> Tensor:
        """Logits where they are asked for, and nowhere else.

        Returns:
            (M, V) at ``batch.masked_positions``, or (T, V) where that is None.
        """
        return self.head(asked_for(self.encoder(batch), batch), self.encoder.embeddings.word.weight)

    def unprojected(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The logits before their projection, for losses that do not want them all at once.

        Args:
            hidden: (M, D), of the encoder.

        Returns:
            features (M, D), weight (V, D) and bias (V,) or None: features · weightᵀ + bias is what
            `forward` gives.
        """
        features = self.head.features(hidden)
        return features, *self.head.projection(self.encoder.embeddings.word.weight)


def asked_for(hidden: Tensor, batch: Batch) -> Tensor:
    """(T, D) → (M, D) at ``batch.masked_positions``, or (T, D) where that is None."""
    if batch.masked_positions is None:
        return hidden
    return hidden.index_select(0, batch.masked_positions)
