"""BERT (https://arxiv.org/abs/1810.04805), and MiniLM, which is BERT distilled."""

from mlm.huggingface.family import REQUIRED, Family, Head, Setting
from mlm.model.config import EncoderConfig

POST_NORM = {
    "layer": "post_norm",
    "position": "learned",
    "attention": ("global",),
    "feed_forward": "mlp",
    "norm": "layer_norm",
    "bias": True,
    "attention_bias": True,
    "embedding_norm": True,
    "final_norm": False,
    "lm_head": "transform",
}
"""What BERT, RoBERTa and DistilBERT have in common."""

SETTINGS = {
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
}

ENCODER_REQUIRED = REQUIRED | {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}


def encoder_modules(prefix: str) -> dict[str, str | tuple[str, ...]]:
    """The encoder's modules in BERT's names, which RoBERTa kept."""
    layer = f"{prefix}encoder.layer.*"
    return {
        "encoder.embeddings.word": f"{prefix}embeddings.word_embeddings",
        "encoder.embeddings.position": f"{prefix}embeddings.position_embeddings",
        "encoder.embeddings.token_type": f"{prefix}embeddings.token_type_embeddings",
        "encoder.embeddings.norm": f"{prefix}embeddings.LayerNorm",
        "encoder.layers.*.mixer.qkv": (
            f"{layer}.attention.self.query",
            f"{layer}.attention.self.key",
            f"{layer}.attention.self.value",
        ),
        "encoder.layers.*.mixer.out": f"{layer}.attention.output.dense",
        "encoder.layers.*.mixer_norm": f"{layer}.attention.output.LayerNorm",
        "encoder.layers.*.feed_forward.up": f"{layer}.intermediate.dense",
        "encoder.layers.*.feed_forward.down": f"{layer}.output.dense",
        "encoder.layers.*.feed_forward_norm": f"{layer}.output.LayerNorm",
    }


def needs_a_token_type(config: EncoderConfig) -> str | None:
    """Their embedding of token types cannot be left out."""
    return None if config.type_vocab_size else "type_vocab_size is 0 where {} has at least 1"


_POOLER = {"head.dense": "bert.pooler.dense"}

BERT = Family(
    model_type="bert",
    prefix="bert.",
    heads={
        "masked_lm": Head(
            "BertForMaskedLM",
            {
                "head.dense": "cls.predictions.transform.dense",
                "head.norm": "cls.predictions.transform.LayerNorm",
                "head": "cls.predictions",
            },
            required={"tie_word_embeddings": True},
            also=("BertForPreTraining",),
        ),
        "sequence_classification": Head(
            "BertForSequenceClassification",
            _POOLER | {"head.classifier": "classifier"},
            fixed={"pooler": "tanh"},
        ),
        "token_classification": Head(
            "BertForTokenClassification", {"head.classifier": "classifier"}
        ),
        "question_answering": Head("BertForQuestionAnswering", {"head.classifier": "qa_outputs"}),
        "multiple_choice": Head(
            "BertForMultipleChoice",
            _POOLER | {"head.classifier": "classifier"},
            fixed={"pooler": "tanh"},
            outputs=1,
        ),
        "encoder": Head("BertModel", _POOLER),
    },
    modules=encoder_modules("bert."),
    fixed=POST_NORM | {"position_offset": 0},
    settings=SETTINGS,
    required=ENCODER_REQUIRED,
    tied={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    unused=("bert.embeddings.position_ids", "bert.pooler.", "cls.seq_relationship."),
    refuses=needs_a_token_type,
)
