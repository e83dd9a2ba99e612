"""Small random models and a tokenizer, for tests of what stands around a model."""

import functools

import torch
from tokenizers import Tokenizer

from mlm.checkpoint import save_folder
from mlm.data.tokenizer import special_ids, train_tokenizer
from mlm.model.config import EncoderConfig, preset
from mlm.model.encoder import Encoder
from mlm.model.heads import MaskedLanguageModel

TEXTS = [
    "The cat sat on the mat, and the dog lay by the door.",
    "A gripping, quietly funny film!",
    "Nothing here is new; all of it is dull.",
    "naïve café — 東京 is large",
    "",
    "one two three four five six seven eight nine ten " * 3,
]


@functools.cache
def tokenizer(kind: str = "wordpiece") -> Tokenizer:
    """A tokenizer of a few hundred tokens."""
    return train_tokenizer([text * 3 for text in TEXTS], kind, vocab_size=300)


def small_config(family: str = "modern", **changes: object) -> EncoderConfig:
    """A config of three layers, with short windows, that fits `tokenizer`."""
    special = special_ids(tokenizer())
    sizes = {
        "vocab_size": tokenizer().get_vocab_size(),
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
        "pad_token_id": special.pad,
        "cls_token_id": special.cls,
        "sep_token_id": special.sep,
        "mask_token_id": special.mask,
    }
    if family == "modern":
        sizes["local_attention"] = 6
    return preset(family, "tiny").replace(**(sizes | changes))


def random_state(model: torch.nn.Module, seed: int = 0) -> dict[str, torch.Tensor]:
    """Values far from those of an initialisation, so that no bias and no norm is left untested."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(tensor.shape, generator=generator) * 0.2 + (tensor.mean() > 0.5)
        for name, tensor in model.state_dict().items()
    }


def save_masked_lm(directory, config: EncoderConfig, **more: object) -> dict[str, torch.Tensor]:
    """Save a random masked language model and return its tensors."""
    arguments = {"head": "masked_lm", "tokenizer": tokenizer(), "info": {}} | more
    state = arguments.pop("state", None) or random_state(MaskedLanguageModel(config))
    save_folder(directory, config=config, state=state, **arguments)
    return state


def save_classifier(directory, pooling: str = "cls", **changes: object) -> None:
    """Save a random classifier of two labels, as `mlm finetune` does."""
    config = small_config("bert", **changes)
    generator = torch.Generator().manual_seed(0)
    state = {
        "head.dense.weight": torch.randn(32, 32, generator=generator),
        "head.dense.bias": torch.randn(32, generator=generator),
        "head.classifier.weight": torch.randn(2, 32, generator=generator),
        "head.classifier.bias": torch.randn(2, generator=generator),
    }
    encoder = random_state(Encoder(config), 1)
    save_folder(
        directory,
        config=config,
        head="sequence_classification",
        state=state | {f"encoder.{k}": v for k, v in encoder.items()},
        tokenizer=tokenizer(),
        info={"task": "text_classification", "text_column": ["text"], "pooling": pooling},
        labels=["no", "yes"],
    )
