"""How tokens exchange information: one mixer a layer, by its name in `EncoderConfig.attention`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence

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
        width, bias = config.hidden_size, bool(config.attention_bias)
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)

    def forward(self, hidden: Tensor, layout: Layout, rotation: Rotation | None) -> Tensor:
        """(T, D) → (T, D)."""
        qkv = self.qkv(hidden).view(-1, 3, self.heads, self.head_dim)  # (T, 3, N, H)
        if rotation is not None:
            qkv = rotate(qkv, rotation)
        dropout = self.dropout if self.training else 0.0
        return self.out(attend(qkv, layout, self.window, dropout).flatten(1))


class FourierMixing(nn.Module):
    """The real part of a Fourier transform over tokens and width, without weights.

    As FNet (https://arxiv.org/abs/2105.03824), but scaled to keep the variance: its sums are √(s D)
    times as large, which only a norm right after them bears. Positions come from elsewhere.
    """

    def __init__(self, config: EncoderConfig, window: int | None) -> None:
        super().__init__()

    def forward(self, hidden: Tensor, layout: Layout, rotation: Rotation | None) -> Tensor:
        """(T, D) → (T, D), each sequence by itself."""
        wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        parts = wide.split(layout.cu_seqlens.diff().tolist())
        mixed = [torch.fft.fft2(part, norm="ortho").real for part in parts if len(part)]
        return torch.cat(mixed).to(hidden.dtype)


class Recurrence(nn.Module):
    """A bidirectional LSTM, half the width each way (https://arxiv.org/abs/1802.05365)."""

    def __init__(self, config: EncoderConfig, window: int | None) -> None:
        super().__init__()
        width = config.hidden_size
        self.lstm = nn.LSTM(width, width // 2, bias=config.bias, bidirectional=True)

    def forward(self, hidden: Tensor, layout: Layout, rotation: Rotation | None) -> Tensor:
        """(T, D) → (T, D), each sequence by itself; in fp32, which recurrences want."""
        parts = hidden.to(next(self.parameters()).dtype).split(layout.cu_seqlens.diff().tolist())
        packed = pack_sequence([part for part in parts if len(part)], enforce_sorted=False)
        with torch.autocast(hidden.device.type, enabled=False):
            found: PackedSequence = self.lstm(packed)[0]
        return torch.cat(unpack_sequence(found)).to(hidden.dtype)


MIXERS: dict[str, type[SelfAttention] | type[FourierMixing] | type[Recurrence]] = {
    "global": SelfAttention,
    "local": SelfAttention,
    "fourier": FourierMixing,
    "lstm": Recurrence,
}


def build_mixer(config: EncoderConfig, index: int) -> nn.Module:
    """The mixer of layer ``index``."""
    return MIXERS[config.layer_attention(index)](config, config.layer_window(index))
