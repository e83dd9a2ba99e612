"""The feed-forward half of a layer, by name."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlm.errors import look_up
from mlm.model.config import EncoderConfig
from mlm.model.gelu import gelu

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "relu": F.relu,
}


class MLP(nn.Module):
    """down(act(up(x))), as in BERT."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.bias)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.bias)
        self.activation = build_activation(config)

    def forward(self, hidden: Tensor) -> Tensor:
        """(T, D) → (T, D)."""
        return self.down(self.activation(self.up(hidden)))


class GLU(nn.Module):
    """down(act(a) · b) with [a, b] = up(x): gated (https://arxiv.org/abs/2002.05202)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=config.bias)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.bias)
        self.activation = build_activation(config)

    def forward(self, hidden: Tensor) -> Tensor:
        """(T, D) → (T, D)."""
        gate, value = halves(self.up, hidden)
        return self.down(self.activation(gate) * value)


def halves(linear: nn.Linear, x: Tensor) -> tuple[Tensor, ...]:
    """Both halves of what ``linear`` gives, (T, D) → two of (T, I)."""
    if torch.compiler.is_compiling() and type(linear) is nn.Linear:
        # Two products: their gradients then need not be put together, which a compiler does by
        # computing each of the two, with all that led to it, for either half.
        biases = (None, None) if linear.bias is None else linear.bias.chunk(2)
        weights = linear.weight.chunk(2)
        return tuple(F.linear(x, w, b) for w, b in zip(weights, biases, strict=True))
    return linear(x).chunk(2, dim=-1)


FEED_FORWARDS: dict[str, type[MLP] | type[GLU]] = {"mlp": MLP, "glu": GLU}


def build_activation(config: EncoderConfig) -> Callable[[Tensor], Tensor]:
    """The function that ``config.activation`` names."""
    return look_up(ACTIVATIONS, config.activation, "model.activation")


def build_feed_forward(config: EncoderConfig) -> nn.Module:
    """The layer that ``config.feed_forward`` names, (T, D) → (T, D)."""
    return look_up(FEED_FORWARDS, config.feed_forward, "model.feed_forward")(config)
