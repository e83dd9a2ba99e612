"""RoBERTa (https://arxiv.org/abs/1907.11692) and XLM-RoBERTa (https://arxiv.org/abs/1911.02116).

Their positions are counted from ``pad_token_id + 1``, so their tables have as many rows before
the first; ``max_position_embeddings`` counts those too.
"""

from collections.abc import Mapping
from typing import Any

from mlm.errors import UserError
from mlm.huggingface.bert import (
    ENCODER_REQUIRED,
    POST_NORM,
    SETTINGS,
    encoder_modules,
    needs_a_token_type,
)
from mlm.huggingface.family import Family, Head, Setting, Values
from mlm.model.config import EncoderConfig


def _read_positions(values: Values, ours: Mapping[str, Any]) -> dict[str, Any]:
    pad = values.get("pad_token_id", 1)
    if type(pad) is not int or not 0 <= pad < ours["max_position_embeddings"] - 1:
        raise UserError(f"pad_token_id: {pad!r} leaves no positions; they begin after it")
    rows = ours["max_position_embeddings"]
    return {"position_offset": pad + 1, "max_position_embeddings": rows - pad - 1}


def _write_positions(config: EncoderConfig) -> dict[str, Any]:
    return {
        "max_position_embeddings": config.max_position_embeddings + config.position_offset,
        "bos_token_id": config.cls_token_id,
        "eos_token_id": config.sep_token_id,
    }


def _refuses(config: EncoderConfig) -> str | None:
    if config.position_offset != config.pad_token_id + 1:
        first = config.pad_token_id + 1
        return f"position_offset is {config.position_offset} where {{}} has {first}"
    return needs_a_token_type(config)


_POOLER = {"head.dense": "roberta.pooler.dense"}

ROBERTA = Family(
    model_type="roberta",
    prefix="roberta.",
    heads={
        "masked_lm": Head(
            "RobertaForMaskedLM",
            {
                "head.dense": "lm_head.dense",
                "head.norm": "lm_head.layer_norm",
                "head": "lm_head",
            },
            fixed={"activation": "gelu"},
            required={"tie_word_embeddings": True},
        ),
        "sequence_classification": Head(
            "RobertaForSequenceClassification",
            {"head.dense": "classifier.dense", "head.classifier": "classifier.out_proj"},
            fixed={"pooler": "tanh"},
        ),
        "token_classification": Head(
            "RobertaForTokenClassification", {"head.classifier": "classifier"}
        ),
        "question_answering": Head(
            "RobertaForQuestionAnswering", {"head.classifier": "qa_outputs"}
        ),
        "multiple_choice": Head(
            "RobertaForMultipleChoice",
            _POOLER | {"head.classifier": "classifier"},
            fixed={"pooler": "tanh"},
            outputs=1,
        ),
        "encoder": Head("RobertaModel", _POOLER),
    },
    modules=encoder_modules("roberta."),
    fixed=POST_NORM,
    settings=SETTINGS | {"vocab_size": Setting(("vocab_size",), 50_265)},
    required=ENCODER_REQUIRED,
    tied={
        "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    },
    unused=("roberta.embeddings.position_ids", "roberta.pooler."),
    read_more=_read_positions,
    write_more=_write_positions,
    refuses=_refuses,
)

XLM_ROBERTA = ROBERTA.named("xlm-roberta", "XLMRoberta", 30_522)
