"""Normalisation layers, by name."""

from collections.abc import Callable

from torch import nn

from mlm.errors import look_up
from mlm.model.config import EncoderConfig


def _layer_norm(config: EncoderConfig) -> nn.Module:
    # https://arxiv.org/abs/1607.06450
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.bias)


def _rms_norm(config: EncoderConfig) -> nn.Module:
    # https://arxiv.org/abs/1910.07467
    return nn.RMSNorm(config.hidden_size, eps=config.norm_eps)


NORMS: dict[str, Callable[[EncoderConfig], nn.Module]] = {
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
}


def build_norm(config: EncoderConfig) -> nn.Module:
    """The norm that ``config.norm`` names, over the last dimension, (…, D) → (…, D)."""
    return look_up(NORMS, config.norm, "model.norm")(config)
