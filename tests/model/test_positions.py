"""Where a head begins to look."""

import pytest
import torch

from mlm.batch import ragged
from mlm.model.config import EncoderConfig, preset
from mlm.model.encoder import Encoder

WORDS = torch.arange(5, 45).tolist()


def first_weights(config: EncoderConfig) -> torch.Tensor:
    """(heads, s, s): what the first layer of a fresh model sees in a text of 40 different words."""
    torch.manual_seed(0)
    weights: list[list[torch.Tensor]] = []
    Encoder(config)(ragged([WORDS]), backend="reference", weights=weights)
    return weights[0][0]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rope_theta": 160_000.0},
        {"num_attention_heads": 8},
        {"attention": ("local",), "local_rope_theta": 500.0},
    ],
    ids=["mini", "large_theta", "narrow_heads", "local_first"],
)
def test_heads_of_a_fresh_model_begin_at_neighbours(changes):
    config = preset("modern", "mini", vocab_size=97, **changes)
    weights = first_weights(config)
    place = torch.arange(len(WORDS))
    for head, seen in enumerate(weights):
        offset = (head // 2 + 1) * (1 if head % 2 else -1)
        there = place + offset
        inside = (there >= 0) & (there < len(WORDS))
        assert (seen.argmax(-1) == there)[inside].float().mean() > 0.9
        # An even look at 40 tokens would give each 0.025.
        assert seen[place[inside], there[inside]].mean() > 0.25


@pytest.mark.parametrize(
    "changes", [{"attention_bias": False}, {"position": "alibi"}, {"position": "none"}]
)
def test_only_rope_with_biases_begins_there(changes):
    config = preset("modern", "mini", vocab_size=97, **changes)
    weights = first_weights(config)
    assert weights[2:].amax() < 0.15  # ALiBi's steepest heads favour what is near, as ever
    bias = Encoder(config).layers[0].mixer.qkv.bias
    assert bias is None or not bias.any()


def test_only_the_first_layer_begins_there():
    encoder = Encoder(preset("modern", "mini", vocab_size=97))
    first, *others = (layer.mixer.qkv.bias for layer in encoder.layers)
    assert first[:512].any()
    assert not first[512:].any()
    assert not any(bias.any() for bias in others)


@pytest.mark.parametrize(
    ("family", "changes", "has"),
    [
        ("modern", {}, True),
        ("modern", {"attention_bias": False}, False),
        ("bert", {}, True),
        ("bert", {"bias": False}, False),
        ("bert", {"bias": False, "attention_bias": True}, True),
    ],
)
def test_biases_of_attention_follow_the_others_unless_named(family, changes, has):
    config = preset(family, "tiny", vocab_size=97, **changes)
    mixer = Encoder(config).layers[0].mixer
    assert config.attention_bias is has
    assert (mixer.qkv.bias is not None, mixer.out.bias is not None) == (has, has)
