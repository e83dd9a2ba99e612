"""The feed-forward half of a layer, by name."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from mlm.errors import look_up
from mlm.model.config import EncoderConfig

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,  # https://arxiv.org/abs/1606.08415
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
        gate, value = self.up(hidden).chunk(2, dim=-1)
        return self.down(self.activation(gate) * value)


FEED_FORWARDS: dict[str, type[MLP] | type[GLU]] = {"mlp": MLP, "glu": GLU}


def build_activation(config: EncoderConfig) -> Callable[[Tensor], Tensor]:
    """The function that ``config.activation`` names."""
    return look_up(ACTIVATIONS, config.activation, "model.activation")


def build_feed_forward(config: EncoderConfig) -> nn.Module:
    """The layer that ``config.feed_forward`` names, (T, D) → (T, D)."""
    return look_up(FEED_FORWARDS, config.feed_forward, "model.feed_forward")(config)
