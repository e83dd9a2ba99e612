"""Which class of transformers a model is."""

from __future__ import annotations

from typing import NamedTuple

from mlm.huggingface.bert import BERT
from mlm.huggingface.distilbert import DISTILBERT
from mlm.huggingface.eurobert import EUROBERT
from mlm.huggingface.family import Family
from mlm.huggingface.modernbert import MODERNBERT
from mlm.huggingface.roberta import ROBERTA, XLM_ROBERTA
from mlm.huggingface.values import layer_kinds, layer_pattern
from mlm.model.config import EncoderConfig

# By their model_type. Where two are the same to us, the first is written.
FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (BERT, ROBERTA, XLM_ROBERTA, DISTILBERT, MODERNBERT, EUROBERT)
}
HEADS = tuple(BERT.heads)
# Those that read one vector a text.
POOLED = ("sequence_classification", "multiple_choice")


class Native(NamedTuple):
    """The answer of `native_class`."""

    name: str | None
    """The class in transformers, None where there is none."""
    reason: str = ""
    """The first choice that no class has, where there is none."""


def native_class(
    config: EncoderConfig, head: str, pooling: str | None = None, layers: int = 1
) -> Native:
    """Which class of transformers is this model, or the choice that keeps it from being one.

    Args:
        config: the encoder's.
        head: one of `HEADS`, or another, which is never native.
        pooling: `cls`, `mean`, … where the head reads one vector a text; None is the family's own.
        layers: how many of the encoder's layers the head reads.

    >>> native_class(EncoderConfig(), "masked_lm").name
    'BertForMaskedLM'
    >>> native_class(EncoderConfig(position="sinusoidal"), "masked_lm").reason
    "position is 'sinusoidal' where BertForMaskedLM has 'learned'"
    """
    family = nearest_family(config)
    if head not in family.heads:
        return Native(None, f"transformers has no {family.model_type} class for head {head!r}")
    name = family.heads[head].name
    ours = _comparable(config)
    for setting, value in (family.fixed | family.heads[head].fixed).items():
        if ours[setting] != value:
            return Native(None, f"{setting} is {ours[setting]!r} where {name} has {value!r}")
    if reason := family.refuses(config):
        return Native(None, reason.format(name))
    if head in POOLED and pooling not in (None, *family.poolings):
        only = " or ".join(map(repr, family.poolings))
        return Native(None, f"pooling is {pooling!r} where {name} has {only}")
    if layers != 1:
        return Native(None, f"layers is {layers} where {name} has 1")
    return Native(name)


def nearest_family(config: EncoderConfig) -> Family:
    """The family that shares most with ``config``, whether or not it has a place for all of it."""
    ours = _comparable(config)

    def differences(family: Family) -> tuple[int, int]:
        wrong = sum(ours[setting] != value for setting, value in family.fixed.items())
        return wrong + (family.refuses(config) is not None), ours["layer"] != family.fixed["layer"]

    return min(FAMILIES.values(), key=differences)


def _comparable(config: EncoderConfig) -> dict[str, object]:
    return config.to_dict() | {"attention": layer_pattern(layer_kinds(config))}
