"""What stands on an encoder to answer a question about a whole text, or about each of its tokens.

    hidden (T, D) ─ pooling ─ (N, D) ─ dense, activation, norm, dropout ─ classifier ─ (N, C)
    hidden (T, D) ─ dense, activation, norm in ModernBERT ─ dropout ─ classifier ─ (T, C)

Each head is that of a family in transformers, so that a folder opens there unchanged.

Shapes: ``T`` tokens in all, ``N`` sequences of ``S`` tokens at most, ``D`` model width, ``C``
outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlm.batch import Batch
from mlm.errors import UserError, look_up
from mlm.model.config import EncoderConfig
from mlm.model.dropout import Dropout
from mlm.model.encoder import Encoder, init_weights
from mlm.model.feed_forward import build_activation
from mlm.model.norms import build_norm
from tasks.pooling import ScalarMix, build_pooling

# dense → this, of BERT and RoBERTa, DistilBERT, EuroBERT; None is ModernBERT's, the masked-LM
# head's own first half: dense → the encoder's activation → norm.
POOLERS: dict[str, Callable[[Tensor], Tensor] | None] = {
    "tanh": torch.tanh,
    "relu": F.relu,
    "gelu": F.gelu,
    "transform": None,
}


class PooledHead(nn.Module):
    """A vector a sequence → ``num_outputs`` numbers a sequence.

    Args:
        config: the encoder's; its `pooler` names what stands before the classifier.
        num_outputs: C.
        pooling: `cls`, `mean`, `max` or `attention`.
        dropout: before the classifier, in training.

    Raises:
        UserError: an unknown pooling or pooler.
    """

    def __init__(
        self, config: EncoderConfig, num_outputs: int, pooling: str, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.pool = build_pooling(pooling, config.hidden_size)
        activation = look_up(POOLERS, config.pooler, "model.pooler")
        own = activation is not None  # then its dense always has a bias
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=own or config.bias)
        self.activation = activation if activation is not None else build_activation(config)
        self.norm: nn.Module = nn.Identity() if own else build_norm(config)
        self.dropout = Dropout(dropout)
        self.classifier = nn.Linear(config.hidden_size, num_outputs)
        init_weights(self, config)

    def forward(self, hidden: Tensor, batch: Batch) -> Tensor:
        """(T, D) → (N, C) in fp32."""
        return self.classify(self.pool(hidden, batch.cu_seqlens))

    def classify(self, pooled: Tensor) -> Tensor:
        """(N, D) → (N, C) in fp32."""
        pooled = self.dropout(self.norm(self.activation(self.dense(pooled))))
        return linear_fp32(self.classifier, pooled)


class TokenHead(nn.Module):
    """A vector a token → ``num_outputs`` numbers a token.

    Args:
        config: the encoder's; with the pooler `transform`, as in ModernBERT, dense, activation and
            norm stand before the classifier, and nothing does otherwise.
        num_outputs: C.
        dropout: before the classifier, in training.
    """

    def __init__(self, config: EncoderConfig, num_outputs: int, dropout: float = 0.0) -> None:
        super().__init__()
        whole, width = config.pooler == "transform", config.hidden_size
        self.dense = nn.Linear(width, width, bias=config.bias) if whole else nn.Identity()
        self.activation = build_activation(config) if whole else nn.Identity()
        self.norm = build_norm(config) if whole else nn.Identity()
        self.dropout = Dropout(dropout)
        self.classifier = nn.Linear(config.hidden_size, num_outputs)
        init_weights(self, config)

    def forward(self, hidden: Tensor, batch: Batch) -> Tensor:
        """(T, D) → (T, C) in fp32."""
        hidden = self.dropout(self.norm(self.activation(self.dense(hidden))))
        return linear_fp32(self.classifier, hidden)


class SpanHead(TokenHead):
    """How likely a span begins, and ends, at each token: a `TokenHead` of two outputs, padded."""

    def __init__(self, config: EncoderConfig, dropout: float = 0.0) -> None:
        super().__init__(config, 2, dropout)

    def forward(self, hidden: Tensor, batch: Batch) -> Tensor:
        """(T, D) → (N, S, 2) in fp32, −∞ beyond a sequence's end."""
        logits = super().forward(hidden, batch)
        places = torch.arange(batch.max_seqlen, device=hidden.device)
        there = places < batch.sequence_lengths[:, None]  # (N, S)
        padded = logits.new_full((*there.shape, 2), -math.inf)
        return padded.masked_scatter(there[..., None], logits)


def linear_fp32(linear: nn.Linear, x: Tensor) -> Tensor:
    """``linear`` in fp32 even under autocast.

    16 bit would round logits, and a number such as 3.97 to 3.97 ± 0.01.
    """
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x.float(), linear.weight.float(), linear.bias.float())


def default_pooling(config: EncoderConfig) -> str:
    """`cls` for the bert family, `mean` for the modern one: what each is native with."""
    return "cls" if config.layer == "post_norm" else "mean"


def check_layers(layers: int, config: EncoderConfig) -> None:
    """Refuse, by a `UserError`, a mix of layers that the encoder does not have."""
    there = config.num_hidden_layers
    if type(layers) is not int or not 1 <= layers <= there + 1:
        raise UserError(
            f"model.layers: {layers} must lie between 1 and {there + 1}: the model's {there} "
            "layers, and its embeddings below them"
        )


class TaskModel(nn.Module):
    """An encoder with a task's head on it.

    Args:
        config: the encoder's.
        head: reads (T, D) and the batch.
        layers: how many of the encoder's last layers are mixed for it; 1 is the last alone.

    Raises:
        UserError: more layers than there are.
    """

    def __init__(self, config: EncoderConfig, head: nn.Module, layers: int = 1) -> None:
        super().__init__()
        check_layers(layers, config)
        self.config = config
        self.encoder = Encoder(config)
        self.mix = ScalarMix(layers) if layers > 1 else None
        self.head = head

    def forward(self, batch: Batch) -> Tensor:
        """The head's outputs: (N, C) for a pooled head, (T, C) for one that reads every token."""
        states: list[Tensor] | None = None if self.mix is None else []
        hidden = self.encoder(batch, states=states)
        return self.head(self.mixed(hidden, states), batch)

    def mixed(self, hidden: Tensor, states: list[Tensor] | None) -> Tensor:
        """What the head reads: the encoder's output (T, D), or several of its ``states`` in one.

        All of them go through the final norm: in pre-norm encoders they grow from layer to layer.
        """
        if self.mix is None or states is None:
            return hidden
        last = states[-len(self.mix.weights) : -1]
        return self.mix([*map(self.encoder.final_norm, last), hidden])
