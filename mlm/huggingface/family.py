"""What a family of transformers is to us: one table, read in both directions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from mlm.model.config import EncoderConfig

Values = Mapping[str, Any]
"""A config.json."""


class Setting(NamedTuple):
    """One of our settings in a family's config.json."""

    keys: tuple[str, ...]
    """Their keys: the first is read, all are written."""
    default: Any
    """What the family's config class takes where the key is missing: their files leave it out."""
    together: bool = False
    """Whether all keys must agree, since we hold them as one."""


@dataclass(frozen=True)
class Head:
    """A class of transformers."""

    name: str
    """The class."""
    modules: dict[str, str]
    """{our module: theirs} of what it adds to the encoder."""
    fixed: dict[str, Any] = field(default_factory=dict)
    """Our settings that the class has no choice in, beside the family's."""
    required: dict[str, Any] = field(default_factory=dict)
    """Their keys that would change the numbers, at the one value that we compute."""
    outputs: int | None = None
    """How many numbers the classifier gives, where its config.json does not say."""
    also: tuple[str, ...] = ()
    """Other classes whose files hold all of this one, and more."""


def _nothing(values: Values, ours: Mapping[str, Any]) -> dict[str, Any]:
    return {}


def _no_keys(config: EncoderConfig) -> dict[str, Any]:
    return {}


def _accept(config: EncoderConfig) -> str | None:
    return None


@dataclass(frozen=True)
class Family:
    """A family of transformers as data."""

    model_type: str
    prefix: str
    """How their names of the encoder's tensors begin; files of the bare encoder leave it out."""
    heads: dict[str, Head]
    """{our head: their class}."""
    modules: dict[str, str | tuple[str, ...]]
    """{our module: theirs} of the encoder, `*` for the layer; a tuple is stacked in ours."""
    fixed: dict[str, Any]
    """Our settings that the family has no choice in."""
    settings: dict[str, Setting]
    """Our settings that the family has keys for."""
    poolings: dict[str, str] = field(default_factory=lambda: {"cls": "cls"})
    """{our pooling: theirs} of their pooled classifier."""
    default_pooling: str = "cls"
    """Theirs, where config.json names none."""
    pooling_key: str | None = None
    """Where config.json names it; None where there is no choice."""
    required: dict[str, Any] = field(default_factory=dict)
    """Their keys that would change the numbers, at the one value that we compute."""
    tied: dict[str, str] = field(default_factory=dict)
    """Their names of tensors that are others again: files may hold both, or either."""
    unused: tuple[str, ...] = ()
    """Beginnings of their names that may stand in a file of a class that does not read them."""
    read_more: Callable[[Values, Mapping[str, Any]], dict[str, Any]] = _nothing
    """(config.json, our settings so far) → ours that no single key holds."""
    write_more: Callable[[EncoderConfig], dict[str, Any]] = _no_keys
    """Those, as their keys."""
    refuses: Callable[[EncoderConfig], str | None] = _accept
    """What in a config, beside ``fixed``, the family has no place for."""

    def named(self, model_type: str, class_prefix: str, vocab_size: int) -> Family:
        """The same family under other names, as XLM-RoBERTa is RoBERTa.

        Args:
            model_type: in config.json.
            class_prefix: how its classes' names begin.
            vocab_size: its config class's default.
        """
        old = self.heads["encoder"].name.removesuffix("Model")
        heads = {
            role: replace(head, name=head.name.replace(old, class_prefix, 1))
            for role, head in self.heads.items()
        }
        settings = self.settings | {"vocab_size": Setting(("vocab_size",), vocab_size)}
        return replace(self, model_type=model_type, heads=heads, settings=settings)


# Ours: theirs. The first of theirs is written; the others are the same function.
ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "gelu": ("gelu", "gelu_python"),
    "gelu_tanh": ("gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu_python_tanh"),
    "silu": ("silu", "swish"),
    "relu": ("relu",),
}

# What no family of ours computes.
REQUIRED: dict[str, Any] = {
    "rope_scaling": None,
    "partial_rotary_factor": 1.0,
    "per_layer_config": None,
    "quantization_config": None,
    "pruned_heads": {},
}
