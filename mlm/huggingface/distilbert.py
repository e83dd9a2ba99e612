"""DistilBERT (https://arxiv.org/abs/1910.01108): BERT without token types, and other names."""

from mlm.huggingface.bert import POST_NORM
from mlm.huggingface.family import REQUIRED, Family, Head, Setting

_LAYER = "distilbert.transformer.layer.*"

DISTILBERT = Family(
    model_type="distilbert",
    prefix="distilbert.",
    heads={
        "masked_lm": Head(
            "DistilBertForMaskedLM",
            {
                "head.dense": "vocab_transform",
                "head.norm": "vocab_layer_norm",
                "head": "vocab_projector",
            },
            required={"tie_word_embeddings": True},
        ),
        "sequence_classification": Head(
            "DistilBertForSequenceClassification",
            {"head.dense": "pre_classifier", "head.classifier": "classifier"},
            fixed={"pooler": "relu"},
        ),
        "token_classification": Head(
            "DistilBertForTokenClassification", {"head.classifier": "classifier"}
        ),
        "question_answering": Head(
            "DistilBertForQuestionAnswering", {"head.classifier": "qa_outputs"}
        ),
        "multiple_choice": Head(
            "DistilBertForMultipleChoice",
            {"head.dense": "pre_classifier", "head.classifier": "classifier"},
            fixed={"pooler": "relu"},
            outputs=1,
        ),
        "encoder": Head("DistilBertModel", {}),
    },
    modules={
        "encoder.embeddings.word": "distilbert.embeddings.word_embeddings",
        "encoder.embeddings.position": "distilbert.embeddings.position_embeddings",
        "encoder.embeddings.norm": "distilbert.embeddings.LayerNorm",
        "encoder.layers.*.mixer.qkv": (
            f"{_LAYER}.attention.q_lin",
            f"{_LAYER}.attention.k_lin",
            f"{_LAYER}.attention.v_lin",
        ),
        "encoder.layers.*.mixer.out": f"{_LAYER}.attention.out_lin",
        "encoder.layers.*.mixer_norm": f"{_LAYER}.sa_layer_norm",
        "encoder.layers.*.feed_forward.up": f"{_LAYER}.ffn.lin1",
        "encoder.layers.*.feed_forward.down": f"{_LAYER}.ffn.lin2",
        "encoder.layers.*.feed_forward_norm": f"{_LAYER}.output_layer_norm",
    },
    fixed=POST_NORM | {"position_offset": 0, "type_vocab_size": 0, "norm_eps": 1e-12},
    settings={
        "vocab_size": Setting(("vocab_size",), 30_522),
        "hidden_size": Setting(("dim",), 768),
        "num_hidden_layers": Setting(("n_layers",), 6),
        "num_attention_heads": Setting(("n_heads",), 12),
        "intermediate_size": Setting(("hidden_dim",), 3072),
        "max_position_embeddings": Setting(("max_position_embeddings",), 512),
        "activation": Setting(("activation",), "gelu"),
        "hidden_dropout": Setting(("dropout",), 0.1),
        "attention_dropout": Setting(("attention_dropout",), 0.1),
        "initializer_range": Setting(("initializer_range",), 0.02),
    },
    required=REQUIRED,
    tied={"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"},
    unused=("distilbert.embeddings.position_ids",),
)
