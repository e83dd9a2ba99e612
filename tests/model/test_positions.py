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
    ("family", "changes"),
    [
        ("modern", {}),
        ("modern", {"rope_theta": 160_000.0}),
        ("modern", {"num_attention_heads": 8}),
        ("modern", {"attention": ("local",), "local_rope_theta": 500.0}),
        ("bert", {}),
        ("bert", {"num_attention_heads": 16}),
        ("bert", {"type_vocab_size": 0, "position_offset": 2}),
        ("bert", {"layer": "pre_norm", "embedding_norm": False, "final_norm": True}),
        ("bert", {"bias": False, "norm": "rms_norm"}),
        ("modern", {"position": "learned"}),
    ],
    ids=[
        *("mini", "large_theta", "narrow_heads", "local_first"),
        *("bert", "bert_narrow_heads", "roberta", "bert_pre_norm", "bert_without_biases"),
        "modern_learned",
    ],
)
def test_heads_of_a_fresh_model_begin_at_neighbours(family, changes):
    config = preset(family, "mini", vocab_size=97, **changes)
    weights = first_weights(config)
    place = torch.arange(len(WORDS))
    for head, seen in enumerate(weights[:8]):
        offset = (head // 2 + 1) * (1 if head % 2 else -1)
        there = place + offset
        inside = (there >= 0) & (there < len(WORDS))
        assert (seen.argmax(-1) == there)[inside].float().mean() > 0.9
        # An even look at 40 tokens would give each 0.025.
        assert seen[place[inside], there[inside]].mean() > 0.25


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("modern", {"attention_bias": False}),
        ("modern", {"position": "alibi"}),
        ("modern", {"position": "none"}),
        ("bert", {"position": "sinusoidal"}),
    ],
)
def test_other_positions_begin_anywhere(family, changes):
    config = preset(family, "mini", vocab_size=97, **changes)
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


def test_positions_get_sixteen_numbers_to_themselves_and_words_the_same_length():
    tables = Encoder(preset("bert", "mini", vocab_size=97)).embeddings.requires_grad_(False)
    for table in (tables.word, tables.token_type):
        assert not table.weight[:, :16].any()
    pairs = tables.position.weight[:, :16].unflatten(-1, (2, 8))
    torch.testing.assert_close(pairs.norm(dim=1), torch.full((512, 8), 8**-0.5))
    assert tables.word.weight.norm(dim=1).mean() == pytest.approx(1, rel=0.02)
    for table in (tables.position, tables.token_type):
        assert table.weight[:, 16:].std() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 8, "num_attention_heads": 1},  # too narrow to give any of it away
        {"hidden_size": 16, "num_attention_heads": 2},
        {"attention": ("fourier", "global")},
        {"attention": ("lstm",)},
        {"initializer_range": 0.0},
    ],
    ids=["width_8", "width_16", "fourier", "lstm", "no_weights"],
)
def test_where_there_is_no_room_for_it_a_model_begins_as_it_can(changes):
    encoder = Encoder(preset("bert", "tiny", vocab_size=97, **changes))
    assert encoder(ragged([WORDS])).isfinite().all()
    if "hidden_size" not in changes and encoder.config.initializer_range:
        assert encoder.embeddings.word.weight[:, :16].any()


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
