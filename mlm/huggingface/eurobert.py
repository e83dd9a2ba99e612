"""EuroBERT (https://arxiv.org/abs/2503.05500): Llama's layers, looking both ways.

Only with as many key and value heads as query heads, as in the 210 M model.
"""

from collections.abc import Mapping
from typing import Any

from mlm.errors import UserError
from mlm.huggingface.family import REQUIRED, Family, Head, Setting, Values
from mlm.huggingface.values import checked
from mlm.model.config import EncoderConfig


def _read_more(values: Values, settings: Mapping[str, Any]) -> dict[str, Any]:
    heads = settings["num_attention_heads"]
    for key, only in (
        ("num_key_value_heads", heads),
        ("head_dim", settings["hidden_size"] // heads),
    ):
        if values.get(key) not in (None, only):
            raise UserError(f"{key} {values[key]!r} is not supported, only {only}")
    rope = values.get("rope_parameters") or {}
    if not isinstance(rope, dict) or rope.get("rope_type", "default") != "default":
        raise UserError(f"rope_parameters {rope!r}: only 'default' RoPE is supported")
    if extra := set(rope) - {"rope_type", "rope_theta"}:
        raise UserError(f"rope_parameters.{min(extra)} is not supported")
    theta = checked("rope_theta", rope.get("rope_theta", values.get("rope_theta", 10_000.0)))
    return {"rope_theta": theta, "local_rope_theta": theta}


def _write_more(config: EncoderConfig) -> dict[str, Any]:
    return {
        "num_key_value_heads": config.num_attention_heads,
        "head_dim": config.head_dim,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "rope_theta": config.rope_theta,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": config.cls_token_id,
        "eos_token_id": config.sep_token_id,
    }


EUROBERT = Family(
    model_type="eurobert",
    prefix="model.",
    heads={
        "masked_lm": Head(
            "EuroBertForMaskedLM",
            {"head.decoder": "lm_head"},
            fixed={"lm_head": "linear"},
            required={"tie_word_embeddings": False},
        ),
        "sequence_classification": Head(
            "EuroBertForSequenceClassification",
            {"head.dense": "dense", "head.classifier": "classifier"},
            fixed={"pooler": "gelu"},
        ),
        "token_classification": Head(
            "EuroBertForTokenClassification", {"head.classifier": "classifier"}
        ),
        "encoder": Head("EuroBertModel", {}),
    },
    modules={
        "encoder.embeddings.word": "model.embed_tokens",
        "encoder.layers.*.mixer_norm": "model.layers.*.input_layernorm",
        "encoder.layers.*.mixer.qkv": (
            "model.layers.*.self_attn.q_proj",
            "model.layers.*.self_attn.k_proj",
            "model.layers.*.self_attn.v_proj",
        ),
        "encoder.layers.*.mixer.out": "model.layers.*.self_attn.o_proj",
        "encoder.layers.*.feed_forward_norm": "model.layers.*.post_attention_layernorm",
        "encoder.layers.*.feed_forward.up": (
            "model.layers.*.mlp.gate_proj",
            "model.layers.*.mlp.up_proj",
        ),
        "encoder.layers.*.feed_forward.down": "model.layers.*.mlp.down_proj",
        "encoder.final_norm": "model.norm",
    },
    fixed={
        "layer": "pre_norm",
        "position": "rope",
        "position_offset": 0,
        "attention": ("global",),
        "feed_forward": "glu",
        "norm": "rms_norm",
        "bias": False,
        "attention_bias": False,
        "embedding_norm": False,
        "final_norm": True,
        "type_vocab_size": 0,
    },
    settings={
        "vocab_size": Setting(("vocab_size",), 128_256),
        "hidden_size": Setting(("hidden_size",), 768),
        "num_hidden_layers": Setting(("num_hidden_layers",), 12),
        "num_attention_heads": Setting(("num_attention_heads",), 12),
        "intermediate_size": Setting(("intermediate_size",), 3072),
        "max_position_embeddings": Setting(("max_position_embeddings",), 8192),
        "activation": Setting(("hidden_act",), "silu"),
        "norm_eps": Setting(("rms_norm_eps",), 1e-5),
        "attention_dropout": Setting(("attention_dropout",), 0.0),
        "initializer_range": Setting(("initializer_range",), 0.02),
    },
    poolings={"mean": "mean", "cls": "bos"},
    default_pooling="late",
    pooling_key="classifier_pooling",
    required=REQUIRED | {"attention_bias": False, "mlp_bias": False},
    read_more=_read_more,
    write_more=_write_more,
)
