"""What stands on an encoder to answer a question about a whole text.

    hidden (T, D) ─ pooling ─ (N, D) ─ dense, activation, norm, dropout ─ classifier ─ (N, C)

The two heads are those of `BertForSequenceClassification` and of
`ModernBertForSequenceClassification`, so that a folder opens in either unchanged.

Shapes: ``T`` tokens in all, ``N`` sequences, ``D`` model width, ``C`` outputs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlm.batch import Batch
from mlm.errors import look_up
from mlm.model.config import EncoderConfig
from mlm.model.encoder import Encoder, init_weights
from mlm.model.feed_forward import build_activation
from mlm.model.norms import build_norm
from mlm.model.pooling import POOLINGS


class PooledHead(nn.Module):
    """A vector a sequence → ``num_outputs`` numbers a sequence.

    Args:
        config: the encoder's; its `layer` decides between BERT's head and ModernBERT's.
        num_outputs: C.
        pooling: `cls` or `mean`.
        dropout: before the classifier, in training.

    Raises:
        UserError: an unknown pooling.
    """

    def __init__(
        self, config: EncoderConfig, num_outputs: int, pooling: str, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.pool = look_up(POOLINGS, pooling, "model.pooling")
        if config.layer == "post_norm":  # the tanh pooler of BERT, whose dense always has a bias
            self.dense = nn.Linear(config.hidden_size, config.hidden_size)
            self.activation: Callable[[Tensor], Tensor] = torch.tanh
            self.norm: nn.Module = nn.Identity()
        else:  # the masked-LM head's own first half, as in ModernBERT
            self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=config.bias)
            self.activation = build_activation(config)
            self.norm = build_norm(config)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(config.hidden_size, num_outputs)
        init_weights(self, config)

    def forward(self, hidden: Tensor, batch: Batch) -> Tensor:
        """(T, D) → (N, C) in fp32."""
        pooled = self.pool(hidden, batch.cu_seqlens)  # (N, D)
        pooled = self.dropout(self.norm(self.activation(self.dense(pooled))))
        # 16 bit would round logits, and a number such as 3.97 to 3.97 ± 0.01.
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(
                pooled.float(), self.classifier.weight.float(), self.classifier.bias.float()
            )


def default_pooling(config: EncoderConfig) -> str:
    """`cls` for the bert family, `mean` for the modern one: what each is native with."""
    return "cls" if config.layer == "post_norm" else "mean"


class TaskModel(nn.Module):
    """An encoder with a task's head on it."""

    def __init__(self, config: EncoderConfig, head: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.head = head

    def forward(self, batch: Batch) -> Tensor:
        """The head's outputs: (N, C) for a pooled head."""
        return self.head(self.encoder(batch), batch)
