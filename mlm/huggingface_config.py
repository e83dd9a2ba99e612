"""config.json as transformers writes it, in both directions, by the tables of huggingface.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

from mlm.errors import UserError
from mlm.huggingface import (
    ACTIVATIONS,
    MODERNBERT,
    Family,
    layer_kinds,
    layer_pattern,
    nearest_family,
)
from mlm.model.config import EncoderConfig

_KINDS = {"global": "full_attention", "local": "sliding_attention"}
_DEFAULTS = {f.name: f.default for f in fields(EncoderConfig)}


class NativeConfig(NamedTuple):
    """What a config.json of transformers says."""

    config: EncoderConfig
    head: str
    """One of `mlm.huggingface.HEADS`."""
    labels: list[str] | None
    """The names of a classifier's outputs, in their order."""
    pooling: str | None
    """`cls` or `mean`, where the head reads one vector a text."""


def write_config(
    config: EncoderConfig, head: str, labels: Sequence[str] | None, pooling: str | None = None
) -> dict[str, Any]:
    """The config.json of the native class of ``config`` and ``head``.

    Args:
        config: an encoder that `native_class` has a class for.
        head: one of `mlm.huggingface.HEADS`.
        labels: the names of a classifier's outputs, in their order.
        pooling: `cls` or `mean`; None is the family's own.
    """
    family = nearest_family(config)
    values: dict[str, Any] = {
        "architectures": [family.heads[head].name],
        "model_type": family.model_type,
    }
    for ours, setting in family.settings.items():
        value = getattr(config, ours)
        value = ACTIVATIONS[value][0] if ours == "activation" else value
        values |= dict.fromkeys(setting.keys, value)
    values |= {
        "tie_word_embeddings": True,
        "pad_token_id": config.pad_token_id,
        "cls_token_id": config.cls_token_id,
        "sep_token_id": config.sep_token_id,
        "mask_token_id": config.mask_token_id,
    }
    if family is MODERNBERT:
        values |= _write_layers(config)
        values |= {
            "decoder_bias": True,
            "bos_token_id": config.cls_token_id,
            "eos_token_id": config.sep_token_id,
            "classifier_pooling": pooling or "mean",
        }
    if labels is not None:
        values["id2label"] = {str(index): label for index, label in enumerate(labels)}
        values["label2id"] = {label: index for index, label in enumerate(labels)}
    return values


def read_config(values: Mapping[str, Any], family: Family) -> NativeConfig:
    """What `write_config` wrote, or any version of transformers.

    Raises:
        UserError: a value that is not of its kind, or that would change the numbers and that we do
            not compute, by its key.
    """
    head = _read_head(values, family)
    required = dict(family.required)
    if head == "masked_lm":
        required |= {"tie_word_embeddings": True, "decoder_bias": True}
    for key, value in required.items():
        if values.get(key) not in (None, value):
            raise UserError(f"{key} {values[key]!r} is not supported, only {value!r}")
    ours: dict[str, Any] = dict(family.fixed)
    for name, setting in family.settings.items():
        found = [values.get(key, setting.default) for key in setting.keys]
        if setting.together and any(value != found[0] for value in found):
            pairs = ", ".join(f"{k} {v!r}" for k, v in zip(setting.keys, found, strict=True))
            raise UserError(f"{pairs}: only one value for all of them is supported")
        ours[name] = checked(name, found[0], setting.keys[0])
    ours["activation"] = _read_activation(ours["activation"], family)
    if family is MODERNBERT:
        ours |= _read_layers(values, ours["num_hidden_layers"])
    labels = None if head == "masked_lm" else read_labels(values)
    pooling = None
    if head == "sequence_classification":
        pooling = values.get("classifier_pooling", "cls") if family is MODERNBERT else "cls"
        if pooling not in ("cls", "mean"):
            raise UserError(f"classifier_pooling {pooling!r} is not supported, only 'cls', 'mean'")
    return NativeConfig(EncoderConfig(**ours), head, labels, pooling)


def read_labels(values: Mapping[str, Any]) -> list[str]:
    """The names under ``id2label`` in their order; without any, there are two.

    Raises:
        UserError: its keys are not 0, 1, ….
    """
    names = values.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    if not isinstance(names, dict) or set(names) != {str(index) for index in range(len(names))}:
        raise UserError("id2label: its keys are not the numbers from 0 on")
    return [str(names[str(index)]) for index in range(len(names))]


def checked(setting: str, value: Any, key: str | None = None) -> Any:
    """``value``, if it is of the kind that ``setting`` of `EncoderConfig` holds.

    Raises:
        UserError: it is not, naming ``key``, where the value was found.
    """
    default = _DEFAULTS[setting]
    least = 0 if setting.endswith("_token_id") or setting == "type_vocab_size" else 1
    match default:
        case bool():
            fits, kind = isinstance(value, bool), "true or false"
        case int():
            fits, kind = type(value) is int and value >= least, f"a whole number from {least} on"
        case float():
            fits, kind = type(value) in (int, float) and value >= 0, "a number from 0 on"
        case str():
            fits, kind = isinstance(value, str), "a name"
        case _:
            fits = isinstance(value, list) and all(isinstance(item, str) for item in value)
            kind = "a list of names"
    if not fits:
        raise UserError(f"{key or setting}: {value!r} is not {kind}")
    return float(value) if isinstance(default, float) else value


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
    }
    for every in range(1, len(kinds) + 1):
        if kinds == _every(every, len(kinds)):
            values["global_attn_every_n_layers"] = every
            break
    return values


def _read_layers(values: Mapping[str, Any], layers: int) -> dict[str, Any]:
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


def _every(number: int, layers: int) -> list[str]:
    """Global attention in every ``number``-th layer, from the first on."""
    return ["local" if index % number else "global" for index in range(layers)]


def _read_head(values: Mapping[str, Any], family: Family) -> str:
    names = values.get("architectures")
    for head, (name, _) in family.heads.items():
        if names == [name]:
            return head
    known = ", ".join(head.name for head in family.heads.values())
    raise UserError(f"architectures {names!r} is not supported, only {known}")


def _read_activation(theirs: str, family: Family) -> str:
    for ours, names in ACTIVATIONS.items():
        if theirs in names:
            return ours
    key = family.settings["activation"].keys[0]
    known = ", ".join(name for names in ACTIVATIONS.values() for name in names)
    raise UserError(f"{key} {theirs!r} is not supported, only {known}")
