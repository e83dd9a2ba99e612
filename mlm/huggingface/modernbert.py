"""ModernBERT (https://arxiv.org/abs/2412.13663)."""

from collections.abc import Mapping
from typing import Any

from mlm.errors import UserError
from mlm.huggingface.family import REQUIRED, Family, Head, Setting, Values
from mlm.huggingface.values import checked, layer_kinds, layer_pattern
from mlm.model.config import EncoderConfig

_KINDS = {"global": "full_attention", "local": "sliding_attention"}


def _write_layers(config: EncoderConfig) -> dict[str, Any]:
    kinds = layer_kinds(config)
    values: dict[str, Any] = {
        "layer_types": [_KINDS[kind] for kind in kinds],
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": config.rope_theta},
            "sliding_attention": {"rope_type": "default", "rope_theta": config.local_rope_theta},
        },
        # The keys from before transformers 5, which text-embeddings-inference still reads.
        "global_rope_theta": config.rope_theta,
        "local_rope_theta": config.local_rope_theta,
        "decoder_bias": True,
        "bos_token_id": config.cls_token_id,
        "eos_token_id": config.sep_token_id,
    }
    for every in range(1, len(kinds) + 1):
        if kinds == _every(every, len(kinds)):
            values["global_attn_every_n_layers"] = every
            break
    return values


def _read_layers(values: Values, settings: Mapping[str, Any]) -> dict[str, Any]:
    layers = settings["num_hidden_layers"]
    every = checked(
        "num_hidden_layers",
        values.get("global_attn_every_n_layers", 3),
        "global_attn_every_n_layers",
    )
    kinds = values.get("layer_types")
    if kinds is None:
        kinds = [_KINDS[kind] for kind in _every(every, layers)]
    ours = {theirs: kind for kind, theirs in _KINDS.items()}
    if not isinstance(kinds, list) or len(kinds) != layers or any(k not in ours for k in kinds):
        raise UserError(f"layer_types: must name {' or '.join(ours)} for each of {layers} layers")
    theta = values.get("global_rope_theta", 160_000.0)
    local_theta = values.get("local_rope_theta", 10_000.0)
    thetas = {"full_attention": theta, "sliding_attention": local_theta or theta}
    for kind, given in (values.get("rope_parameters") or {}).items():
        known = kind in thetas and isinstance(given, dict)
        if not known or given.get("rope_type", "default") != "default":
            raise UserError(f"rope_parameters.{kind} {given!r}: only 'default' RoPE is supported")
        if extra := set(given) - {"rope_type", "rope_theta"}:
            raise UserError(f"rope_parameters.{kind}.{min(extra)} is not supported")
        thetas[kind] = given.get("rope_theta", thetas[kind])
    return {
        "attention": layer_pattern([ours[kind] for kind in kinds]),
        "rope_theta": checked("rope_theta", thetas["full_attention"]),
        "local_rope_theta": checked("rope_theta", thetas["sliding_attention"], "local_rope_theta"),
    }


def _refuses(config: EncoderConfig) -> str | None:
    other = [kind for kind in layer_kinds(config) if kind not in _KINDS]
    return f"attention has {other[0]!r} where {{}} has global and local" if other else None


def _every(number: int, layers: int) -> list[str]:
    """Global attention in every ``number``-th layer, from the first on."""
    return ["local" if index % number else "global" for index in range(layers)]


# What stands between encoder and labels is the masked-LM head's own first half.
_HEAD = {"head.dense": "head.dense", "head.norm": "head.norm"}
_CLASSIFIER = _HEAD | {"head.classifier": "classifier"}
_POOLER = {"pooler": "transform"}

MODERNBERT = Family(
    model_type="modernbert",
    prefix="model.",
    heads={
        "masked_lm": Head(
            "ModernBertForMaskedLM",
            _HEAD | {"head": "decoder"},
            required={"tie_word_embeddings": True, "decoder_bias": True},
        ),
        "sequence_classification": Head(
            "ModernBertForSequenceClassification", _CLASSIFIER, fixed=_POOLER
        ),
        "token_classification": Head(
            "ModernBertForTokenClassification", _CLASSIFIER, fixed=_POOLER
        ),
        "question_answering": Head("ModernBertForQuestionAnswering", _CLASSIFIER, fixed=_POOLER),
        "multiple_choice": Head(
            "ModernBertForMultipleChoice", _CLASSIFIER, fixed=_POOLER, outputs=1
        ),
        "encoder": Head("ModernBertModel", {}),
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
        "position_offset": 0,
        "feed_forward": "glu",
        "norm": "layer_norm",
        "embedding_norm": True,
        "final_norm": True,
        "type_vocab_size": 0,
        "lm_head": "transform",
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
        "attention_bias": Setting(("attention_bias",), False),
        "bias": Setting(("mlp_bias", "norm_bias", "classifier_bias"), False, True),
        # Theirs drops inside the feed-forward layer, ours after it: only training can tell.
        "hidden_dropout": Setting(("mlp_dropout", "embedding_dropout"), 0.0),
        "attention_dropout": Setting(("attention_dropout",), 0.0),
        "initializer_range": Setting(("initializer_range",), 0.02),
    },
    poolings={"mean": "mean", "cls": "cls"},
    pooling_key="classifier_pooling",
    required=REQUIRED,
    tied={"decoder.weight": "model.embeddings.tok_embeddings.weight"},
    read_more=_read_layers,
    write_more=_write_layers,
    refuses=_refuses,
)
