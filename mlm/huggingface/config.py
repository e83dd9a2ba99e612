"""config.json as transformers writes it, in both directions, by the families' tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mlm.errors import UserError
from mlm.huggingface.family import ACTIVATIONS, Family
from mlm.huggingface.native import POOLED, nearest_family
from mlm.huggingface.values import checked
from mlm.model.config import EncoderConfig


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
        pooling: `cls` or `mean`; None is the first of the family's.
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
        **family.write_more(config),
    }
    if family.pooling_key is not None:
        values[family.pooling_key] = family.poolings[pooling or next(iter(family.poolings))]
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
    for key, value in (family.required | family.heads[head].required).items():
        if values.get(key) not in (None, value):
            raise UserError(f"{key} {values[key]!r} is not supported, only {value!r}")
    # What a class of the family leaves no choice in, the others have no key for.
    ours: dict[str, Any] = {
        name: value
        for table in (family.fixed, *(other.fixed for other in family.heads.values()))
        for name, value in table.items()
        if name not in family.settings
    }
    for name, setting in family.settings.items():
        found = [values.get(key, setting.default) for key in setting.keys]
        if setting.together and any(value != found[0] for value in found):
            pairs = ", ".join(f"{k} {v!r}" for k, v in zip(setting.keys, found, strict=True))
            raise UserError(f"{pairs}: only one value for all of them is supported")
        ours[name] = checked(name, found[0], setting.keys[0])
    ours["activation"] = _read_activation(ours["activation"], family)
    for name, value in family.heads[head].fixed.items():
        if ours[name] != value:
            key = family.settings[name].keys[0]
            raise UserError(f"{key} {values[key]!r} is not supported, only {value!r}")
    ours |= family.read_more(values, ours)
    labels = None if head in ("masked_lm", "encoder") else read_labels(values)
    if outputs := family.heads[head].outputs:
        labels = [f"LABEL_{index}" for index in range(outputs)]
    pooling = _read_pooling(values, family) if head in POOLED else None
    return NativeConfig(EncoderConfig(**ours), head, labels, pooling)


def _read_pooling(values: Mapping[str, Any], family: Family) -> str:
    theirs = family.default_pooling
    if family.pooling_key is not None:
        theirs = values.get(family.pooling_key, theirs)
    for ours, name in family.poolings.items():
        if name == theirs:
            return ours
    known = ", ".join(map(repr, family.poolings.values()))
    raise UserError(f"{family.pooling_key} {theirs!r} is not supported, only {known}")


def read_labels(values: Mapping[str, Any]) -> list[str]:
    """The names under ``id2label`` in their order; without any, there are two.

    Raises:
        UserError: its keys are not 0, 1, ….
    """
    names = values.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    if not isinstance(names, dict) or set(names) != {str(index) for index in range(len(names))}:
        raise UserError("id2label: its keys are not the numbers from 0 on")
    return [str(names[str(index)]) for index in range(len(names))]


def _read_head(values: Mapping[str, Any], family: Family) -> str:
    names = values.get("architectures")
    for role, head in family.heads.items():
        if names in [[name] for name in (head.name, *head.also)]:
            return role
    known = ", ".join(head.name for head in family.heads.values())
    raise UserError(f"architectures {names!r} is not supported, only {known}")


def _read_activation(theirs: str, family: Family) -> str:
    for ours, names in ACTIVATIONS.items():
        if theirs in names:
            return ours
    key = family.settings["activation"].keys[0]
    known = ", ".join(name for names in ACTIVATIONS.values() for name in names)
    raise UserError(f"{key} {theirs!r} is not supported, only {known}")
