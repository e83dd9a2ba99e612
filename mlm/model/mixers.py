"""How tokens exchange information."""

from torch import Tensor, nn

from mlm.model.attention import attend
from mlm.model.config import EncoderConfig
from mlm.model.layout import Layout
from mlm.model.positions import Rotation, rotate


class SelfAttention(nn.Module):
    """Multi-head self-attention, global or in a window (https://arxiv.org/abs/1706.03762)."""

    def __init__(self, config: EncoderConfig, window: int | None) -> None:
        super().__init__()
        self.heads, self.head_dim = config.num_attention_heads, config.head_dim
        self.window = window
        self.dropout = config.attention_dropout
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.bias)
        self.out = nn.Linear(config.hidden_size, config.hidden_size, bias=config.bias)

    def forward(self, hidden: Tensor, layout: Layout, rotation: Rotation | None) -> Tensor:
        """(T, D) → (T, D)."""
        qkv = self.qkv(hidden).view(-1, 3, self.heads, self.head_dim)  # (T, 3, N, H)
        if rotation is not None:
            qkv = rotate(qkv, rotation)
        dropout = self.dropout if self.training else 0.0
        return self.out(attend(qkv, layout, self.window, dropout).flatten(1))
