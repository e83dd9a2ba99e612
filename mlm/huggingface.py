"""How transformers says what we say: one table a family, read in both directions.

Every architecture that has a class of its own in transformers (https://github.com/huggingface/
transformers) is saved in that class's names, so a model folder of ours opens there with no code of
ours, and one of theirs opens here.

The tables are here with what reads them for tensors; huggingface_config.py reads them for
config.json.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mlm.errors import UserError
from mlm.model.config import EncoderConfig

State = dict[str, Tensor]


class Setting(NamedTuple):
    """One of our settings in a family's config.json."""

    keys: tuple[str, ...]
    """Their keys: the first is read, all are written."""
    default: Any
    """What the family's config class takes where the key is missing: their files leave it out."""
    together: bool = False
    """Whether all keys must agree, since we hold them as one."""


class Head(NamedTuple):
    """A class of transformers."""

    name: str
    """The class."""
    modules: dict[str, str]
    """{our module: theirs} of what it adds to the encoder."""


@dataclass(frozen=True)
class Family:
    """A family of transformers as data."""

    model_type: str
    heads: dict[str, Head]
    """{our head: their class}."""
    modules: dict[str, str | tuple[str, ...]]
    """{our module: theirs} of the encoder, `*` for the layer; a tuple is stacked in ours."""
    fixed: dict[str, Any]
    """Our settings that the family has no choice in."""
    settings: dict[str, Setting]
    """Our settings that the family has keys for."""
    required: dict[str, Any] = field(default_factory=dict)
    """Their keys that would change the numbers, at the one value that we compute."""
    tied: dict[str, str] = field(default_factory=dict)
    """Their names of tensors that are others again: older files hold both."""
    unused: tuple[str, ...] = ()
    """Beginnings of their names that may stand in a file of a class that does not read them."""


# Ours: theirs. The first of theirs is written; the others are the same function.
ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "gelu": ("gelu", "gelu_python"),
    "gelu_tanh": ("gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu_python_tanh"),
    "silu": ("silu", "swish"),
    "relu": ("relu",),
}

_REQUIRED: dict[str, Any] = {
    "rope_scaling": None,
    "partial_rotary_factor": 1.0,
    "per_layer_config": None,
    "quantization_config": None,
    "pruned_heads": {},
}

# https://arxiv.org/abs/1810.04805
BERT = Family(
    model_type="bert",
    heads={
        "masked_lm": Head(
            "BertForMaskedLM",
            {
                "head.dense": "cls.predictions.transform.dense",
                "head.norm": "cls.predictions.transform.LayerNorm",
                "head": "cls.predictions",
            },
        ),
        "sequence_classification": Head(
            "BertForSequenceClassification",
            {"head.dense": "bert.pooler.dense", "head.classifier": "classifier"},
        ),
        "token_classification": Head(
            "BertForTokenClassification", {"head.classifier": "classifier"}
        ),
    },
    modules={
        "encoder.embeddings.word": "bert.embeddings.word_embeddings",
        "encoder.embeddings.position": "bert.embeddings.position_embeddings",
        "encoder.embeddings.token_type": "bert.embeddings.token_type_embeddings",
        "encoder.embeddings.norm": "bert.embeddings.LayerNorm",
        "encoder.layers.*.mixer.qkv": (
            "bert.encoder.layer.*.attention.self.query",
            "bert.encoder.layer.*.attention.self.key",
            "bert.encoder.layer.*.attention.self.value",
        ),
        "encoder.layers.*.mixer.out": "bert.encoder.layer.*.attention.output.dense",
        "encoder.layers.*.mixer_norm": "bert.encoder.layer.*.attention.output.LayerNorm",
        "encoder.layers.*.feed_forward.up": "bert.encoder.layer.*.intermediate.dense",
        "encoder.layers.*.feed_forward.down": "bert.encoder.layer.*.output.dense",
        "encoder.layers.*.feed_forward_norm": "bert.encoder.layer.*.output.LayerNorm",
    },
    fixed={
        "layer": "post_norm",
        "position": "learned",
        "attention": ("global",),
        "feed_forward": "mlp",
        "norm": "layer_norm",
        "bias": True,
        "embedding_norm": True,
        "final_norm": False,
    },
    settings={
        "vocab_size": Setting(("vocab_size",), 30_522),
        "hidden_size": Setting(("hidden_size",), 768),
        "num_hidden_layers": Setting(("num_hidden_layers",), 12),
        "num_attention_heads": Setting(("num_attention_heads",), 12),
        "intermediate_size": Setting(("intermediate_size",), 3072),
        "max_position_embeddings": Setting(("max_position_embeddings",), 512),
        "type_vocab_size": Setting(("type_vocab_size",), 2),
        "activation": Setting(("hidden_act",), "gelu"),
        "norm_eps": Setting(("layer_norm_eps",), 1e-12),
        "hidden_dropout": Setting(("hidden_dropout_prob",), 0.1),
        "attention_dropout": Setting(("attention_probs_dropout_prob",), 0.1),
        "initializer_range": Setting(("initializer_range",), 0.02),
    },
    required=_REQUIRED
    | {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False},
    tied={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    unused=("bert.embeddings.position_ids", "bert.pooler.", "cls.seq_relationship."),
)

# What stands between encoder and labels in ModernBERT is the masked-LM head's own first half.
_MODERN_HEAD = {"head.dense": "head.dense", "head.norm": "head.norm"}
_MODERN_CLASSIFIER = _MODERN_HEAD | {"head.classifier": "classifier"}

# https://arxiv.org/abs/2412.13663
MODERNBERT = Family(
    model_type="modernbert",
    heads={
        "masked_lm": Head("ModernBertForMaskedLM", _MODERN_HEAD | {"head": "decoder"}),
        "sequence_classification": Head("ModernBertForSequenceClassification", _MODERN_CLASSIFIER),
        "token_classification": Head("ModernBertForTokenClassification", _MODERN_CLASSIFIER),
    },
    modules={
        "encoder.embeddings.word": "model.embeddings.tok_embeddings",
        "encoder.embeddings.norm": "model.embeddings.norm",
        "encoder.layers.*.mixer_norm": "model.layers.*.attn_norm",
        "encoder.layers.*.mixer.qkv": "model.layers.*.attn.Wqkv",
        "encoder.layers.*.mixer.out": "model.layers.*.attn.Wo",
        "encoder.layers.*.feed_forward_norm": "model.layers.*.mlp_norm",
        "encoder.layers.*.feed_forward.up": "model.layers.*.mlp.Wi",
        "encoder.layers.*.feed_forward.down": "model.layers.*.mlp.Wo",
        "encoder.final_norm": "model.final_norm",
    },
    fixed={
        "layer": "pre_norm",
        "position": "rope",
        "feed_forward": "glu",
        "norm": "layer_norm",
        "embedding_norm": True,
        "final_norm": True,
        "type_vocab_size": 0,
    },
    settings={
        "vocab_size": Setting(("vocab_size",), 50_368),
        "hidden_size": Setting(("hidden_size",), 768),
        "num_hidden_layers": Setting(("num_hidden_layers",), 22),
        "num_attention_heads": Setting(("num_attention_heads",), 12),
        "intermediate_size": Setting(("intermediate_size",), 1152),
        "max_position_embeddings": Setting(("max_position_embeddings",), 8192),
        "local_attention": Setting(("local_attention",), 128),
        "activation": Setting(("hidden_activation", "classifier_activation"), "gelu", True),
        "norm_eps": Setting(("norm_eps",), 1e-5),
        "bias": Setting(
            ("attention_bias", "mlp_bias", "norm_bias", "classifier_bias"), False, True
        ),
        # Theirs drops inside the feed-forward layer, ours after it: only training can tell.
        "hidden_dropout": Setting(("mlp_dropout", "embedding_dropout"), 0.0),
        "attention_dropout": Setting(("attention_dropout",), 0.0),
        "initializer_range": Setting(("initializer_range",), 0.02),
    },
    required=_REQUIRED,
    tied={"decoder.weight": "model.embeddings.tok_embeddings.weight"},
)

FAMILIES: dict[str, Family] = {family.model_type: family for family in (BERT, MODERNBERT)}
HEADS = tuple(BERT.heads)


class Native(NamedTuple):
    """The answer of `native_class`."""

    name: str | None
    """The class in transformers, None where there is none."""
    reason: str = ""
    """The first choice that no class has, where there is none."""


def native_class(config: EncoderConfig, head: str, pooling: str | None = None) -> Native:
    """Which class of transformers is this model, or the choice that keeps it from being one.

    Args:
        config: the encoder's.
        head: one of `HEADS`, or another, which is never native.
        pooling: `cls` or `mean` where the head reads one vector a text; None is the family's own.

    >>> native_class(EncoderConfig(), "masked_lm").name
    'BertForMaskedLM'
    >>> native_class(EncoderConfig(position="sinusoidal"), "masked_lm").reason
    "position is 'sinusoidal' where BertForMaskedLM has 'learned'"
    """
    family = nearest_family(config)
    if head not in family.heads:
        return Native(None, f"transformers has no {family.model_type} class for head {head!r}")
    name = family.heads[head].name
    ours = config.to_dict() | {"attention": layer_pattern(layer_kinds(config))}
    for setting, value in family.fixed.items():
        if ours[setting] != value:
            return Native(None, f"{setting} is {ours[setting]!r} where {name} has {value!r}")
    if "type_vocab_size" in family.settings and not config.type_vocab_size:
        return Native(None, f"type_vocab_size is 0 where {name} has at least 1")
    if head == "sequence_classification" and family is BERT and pooling not in (None, "cls"):
        return Native(None, f"pooling is {pooling!r} where {name} has 'cls'")
    return Native(name)


def nearest_family(config: EncoderConfig) -> Family:
    """The family that has its norms where ``config`` has them."""
    return BERT if config.layer == BERT.fixed["layer"] else MODERNBERT


def layer_kinds(config: EncoderConfig) -> list[str]:
    """`global` or `local` for each layer."""
    return [config.layer_attention(index) for index in range(config.num_hidden_layers)]


def layer_pattern(kinds: Sequence[str]) -> tuple[str, ...]:
    """The shortest pattern that, repeated, gives ``kinds``.

    >>> layer_pattern(["global", "local", "local", "global", "local"])
    ('global', 'local', 'local')
    """
    return next(
        tuple(kinds[:period])
        for period in range(1, len(kinds) + 1)
        if all(kind == kinds[index % period] for index, kind in enumerate(kinds))
    )


def to_native(state: Mapping[str, Tensor], family: Family, head: str) -> State:
    """Our tensors under the names of transformers, contiguous and otherwise untouched."""
    modules = _modules(family, head)
    native: State = {}
    for name, tensor in state.items():
        module, layer, parameter = _split(name)
        if module not in modules:
            raise ValueError(f"{family.heads[head].name} has no place for the tensor {name}")
        theirs = modules[module]
        for their_module, part in zip(theirs, tensor.chunk(len(theirs)), strict=True):
            native[_join(their_module, layer, parameter)] = part.contiguous()
    return native


def from_native(native: Mapping[str, Tensor], family: Family, head: str) -> State:
    """Tensors of transformers under our names: what `to_native` did, undone.

    All of the model's tensors must be there, and no other (see `drop_repeated`).
    """
    state: State = {}
    for module, theirs in _modules(family, head).items():
        for name in native:
            their_module, layer, parameter = _split(name)
            if their_module == theirs[0]:
                parts = [native[_join(part, layer, parameter)] for part in theirs]
                whole = torch.cat(parts) if len(parts) > 1 else parts[0].contiguous()
                state[_join(module, layer, parameter)] = whole
    return state


def drop_repeated(native: Mapping[str, Tensor], family: Family, head: str) -> State:
    """``native`` without what files of transformers may hold beside the model itself.

    Raises:
        UserError: a tensor that ought to be tied to another differs from it.
    """
    read = {module for theirs in _modules(family, head).values() for module in theirs}
    kept: State = {}
    for name, tensor in native.items():
        other = family.tied.get(name, "")
        if other in native:
            if not torch.equal(tensor, native[other]):
                raise UserError(f"the tensor {name} differs from {other}; only tied ones are known")
        elif _split(name)[0] in read or not name.startswith(family.unused):
            kept[name] = tensor
    return kept


def _modules(family: Family, head: str) -> dict[str, tuple[str, ...]]:
    modules = family.modules | family.heads[head].modules
    return {ours: (t,) if isinstance(t, str) else t for ours, t in modules.items()}


def _split(name: str) -> tuple[str, str, str]:
    """`a.layers.3.b.weight` → (`a.layers.*.b`, `3`, `weight`)."""
    module, _, parameter = name.rpartition(".")
    layer = re.search(r"\.(\d+)\.", module)
    if layer is None:
        return module, "", parameter
    return f"{module[: layer.start(1)]}*{module[layer.end(1) :]}", layer[1], parameter


def _join(module: str, layer: str, parameter: str) -> str:
    return f"{module.replace('*', layer)}.{parameter}"
