"""The encoder: every preset, ragged against padded, sequences apart."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from mlm.batch import Batch, ragged
from mlm.errors import UserError
from mlm.model.config import FAMILIES, SIZES, EncoderConfig, preset
from mlm.model.encoder import Encoder
from mlm.model.heads import MaskedLanguageModel
from mlm.model.layout import prepare
from mlm.model.positions import alibi_slopes

VARIANTS = {
    "bert": preset("bert", "tiny", vocab_size=97),
    "modern": preset("modern", "tiny", vocab_size=97, local_attention=8),
    "modern_4_layers": preset(
        "modern",
        "tiny",
        vocab_size=97,
        local_attention=4,
        num_hidden_layers=4,
        local_rope_theta=100.0,
    ),
    "no_biases": preset("modern", "tiny", vocab_size=97, attention_bias=False),
    "sinusoidal": preset("bert", "tiny", vocab_size=97, position="sinusoidal"),
    "no_positions": preset("bert", "tiny", vocab_size=97, position="none"),
    "alibi": preset("modern", "tiny", vocab_size=97, local_attention=8, position="alibi"),
    "rms_norm": preset("modern", "tiny", vocab_size=97, norm="rms_norm", activation="silu"),
    "pre_norm_bert": preset("bert", "tiny", vocab_size=97, layer="pre_norm", final_norm=True),
}


def sequences(seed: int = 0, lengths: tuple[int, ...] = (3, 40, 17, 1, 64)) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(5, 97, (n,), generator=generator).tolist() for n in lengths]


def spread(model: torch.nn.Module) -> None:
    """Give every parameter a random value, so that none hides behind its initial one."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.2)


def padded_reference(encoder: Encoder, rows: list[list[int]]) -> list[torch.Tensor]:
    """The same encoder written as everyone else does: padding, and a mask over it."""
    c = encoder.config
    length = max(map(len, rows))
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    real = torch.zeros(len(rows), length, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)], real[i, : len(row)] = torch.tensor(row), True
    e = encoder.embeddings
    place = torch.arange(length)
    x = e.word(ids)
    if e.position is not None:
        x = x + e.position(place)
    if e.token_type is not None:
        x = x + e.token_type(torch.zeros_like(ids))
    x = e.norm(x)

    def turn(vectors: torch.Tensor, theta: float) -> torch.Tensor:  # complex numbers, as RoFormer
        half = c.head_dim // 2
        angle = place[:, None] * theta ** (-torch.arange(half) / half)
        rotated = torch.complex(vectors[..., :half], vectors[..., half:]) * torch.polar(
            torch.ones_like(angle), angle
        )
        return torch.cat([rotated.real, rotated.imag], -1)

    def attention(layer: torch.nn.Module, x: torch.Tensor, kind: str) -> torch.Tensor:
        q, k, v = layer.qkv(x).unflatten(-1, (3, c.num_attention_heads, c.head_dim)).unbind(2)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        if c.position == "rope":
            theta = c.rope_theta if kind == "global" else c.local_rope_theta
            q, k = turn(q, theta), turn(k, theta)
        scores = q @ k.transpose(-1, -2) / c.head_dim**0.5
        if c.position == "alibi":
            heads = c.num_attention_heads
            slopes = 2 ** (-8 * torch.arange(1, heads + 1) / heads)
            scores = scores - slopes[:, None, None] * (place[:, None] - place).abs()
        hidden = ~real[:, None, None]
        if kind == "local":
            hidden = hidden | ((place[:, None] - place).abs() > c.local_attention // 2)
        weights = scores.masked_fill(hidden, -1e30).softmax(-1)
        return layer.out((weights @ v).transpose(1, 2).flatten(2))

    for index, layer in enumerate(encoder.layers):
        kind = c.layer_attention(index)
        if c.layer == "post_norm":
            x = layer.mixer_norm(x + attention(layer.mixer, x, kind))
            x = layer.feed_forward_norm(x + layer.feed_forward(x))
        else:
            x = x + attention(layer.mixer, layer.mixer_norm(x), kind)
            x = x + layer.feed_forward(layer.feed_forward_norm(x))
    x = encoder.final_norm(x)
    return [x[i, : len(row)] for i, row in enumerate(rows)]


@pytest.mark.parametrize("backend", [None, "sdpa", "reference"])
@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_ragged_equals_padded(config, backend):
    encoder = Encoder(config)
    spread(encoder)
    rows = sequences()
    ours = encoder(ragged(rows), backend=backend)
    torch.testing.assert_close(
        ours, torch.cat(padded_reference(encoder, rows)), rtol=1e-4, atol=1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize(("family", "size"), itertools.product(FAMILIES, SIZES))
def test_ragged_equals_padded_on_every_preset(family, size):
    encoder = Encoder(preset(family, size, vocab_size=97))
    rows = sequences(lengths=(3, 150, 17))
    with torch.no_grad():
        ours = encoder(ragged(rows))
        theirs = torch.cat(padded_reference(encoder, rows))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_sequences_of_a_batch_are_isolated_bit_for_bit(config):
    encoder = Encoder(config)
    spread(encoder)
    rows = sequences()
    before = encoder(ragged(rows))
    rows[1] = sequences(seed=1)[1]
    after = encoder(ragged(rows))
    changed = torch.zeros(len(before), dtype=torch.bool)
    changed[3:43] = True
    assert torch.equal(before[~changed], after[~changed])
    assert not torch.allclose(before[changed], after[changed])


@pytest.mark.parametrize("config", [VARIANTS["bert"], VARIANTS["modern"]], ids=["bert", "modern"])
def test_gradients_equal_the_reference(config):
    grads = []
    for backend in ("reference", None):
        model = Encoder(config).double()
        spread(model)
        model(ragged(sequences()), backend=backend).square().sum().backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=1e-6, atol=1e-6, msg=name)


def test_logits_are_computed_at_masked_positions_alone():
    model = MaskedLanguageModel(VARIANTS["modern"])
    spread(model)
    batch = ragged(sequences())
    positions = torch.tensor([2, 5, 50])
    everywhere = model(batch)
    there = model(replace(batch, masked_positions=positions))
    assert everywhere.shape == (batch.num_tokens, 97)
    torch.testing.assert_close(there, everywhere[positions])


def test_head_is_tied_to_the_word_embedding():
    model = MaskedLanguageModel(VARIANTS["bert"])
    assert "head.decoder.weight" not in model.state_dict()
    batch = replace(ragged([[7, 8]]), masked_positions=torch.tensor([0]))
    F.cross_entropy(model(batch), torch.tensor([42])).backward()
    assert model.encoder.embeddings.word.weight.grad[42].abs().sum() > 0


def test_dropout_acts_in_training_only():
    config = preset("bert", "tiny", vocab_size=97, hidden_dropout=0.3, attention_dropout=0.3)
    encoder, batch = Encoder(config), ragged(sequences())
    assert not torch.equal(encoder(batch), encoder(batch))
    encoder.eval()
    assert torch.equal(encoder(batch), encoder(batch))


def test_token_types_change_the_output():
    encoder = Encoder(VARIANTS["bert"])
    pair = ragged([[5, 6, 7, 8]], token_type_ids=[[0, 0, 1, 1]])
    zeros = ragged([[5, 6, 7, 8]], token_type_ids=[[0, 0, 0, 0]])
    assert not torch.allclose(encoder(pair), encoder(zeros))
    torch.testing.assert_close(encoder(zeros), encoder(ragged([[5, 6, 7, 8]])))


def test_attention_weights_of_every_layer_can_be_seen():
    config = VARIANTS["modern_4_layers"]
    weights: list[list[torch.Tensor]] = []
    Encoder(config)(ragged(sequences()), backend="reference", weights=weights)
    assert len(weights) == 4
    assert [tuple(w.shape) for w in weights[0]] == [(2, n, n) for n in (3, 40, 17, 1, 64)]


def test_initial_scale():
    encoder = Encoder(preset("modern", "small", vocab_size=1000))
    config = encoder.config
    layer = encoder.layers[0]
    assert layer.mixer.qkv.weight.std().item() == pytest.approx(0.02, rel=0.02)
    adds = 0.02 / (2 * config.num_hidden_layers) ** 0.5
    assert layer.mixer.out.weight.std().item() == pytest.approx(adds, rel=0.02)
    assert layer.feed_forward.down.weight.std().item() == pytest.approx(adds, rel=0.02)


@pytest.mark.parametrize(
    ("family", "size", "millions"),
    # bert with a pooler, google's sizes: 110 M and 335 M for base and large, 4.4 M for tiny.
    [
        ("bert", "tiny", 4.4),
        ("bert", "mini", 11.1),
        ("bert", "base", 108.9),
        ("bert", "large", 334.1),
    ],
)
def test_presets_have_the_published_sizes(family, size, millions):
    with torch.device("meta"):
        encoder = Encoder(preset(family, size))
    assert sum(p.numel() for p in encoder.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"position": "ropes"}, "did you mean rope"),
        ({"attention": ["globl"]}, "global"),
        ({"norm": "layernorm"}, "layer_norm"),
        ({"feed_forward": "gated"}, "glu"),
        ({"activation": "gelo"}, "gelu"),
        ({"layer": "prenorm"}, "pre_norm"),
        ({"num_attention_heads": 7}, "num_attention_heads"),
        ({"hiden_size": 7}, "hidden_size"),
    ],
)
def test_mistakes_are_named(changes, named):
    with pytest.raises(UserError, match=named) as caught:
        Encoder(preset("bert", "tiny", vocab_size=97, **changes))
    assert "\n" not in str(caught.value)


def test_a_sequence_beyond_the_positions_is_refused():
    encoder = Encoder(preset("bert", "tiny", vocab_size=97, max_position_embeddings=8))
    with pytest.raises(UserError, match="9 tokens"):
        encoder(ragged([[5] * 9]))


def test_config_survives_plain_values():
    config = preset("modern", "mini")
    assert EncoderConfig(**config.to_dict()) == config


def test_ragged_batches():
    batch = ragged([[2, 7, 3], [2, 3]])
    assert isinstance(batch, Batch)
    assert batch.position_ids.tolist() == [0, 1, 2, 0, 1]
    assert (batch.num_sequences, batch.num_tokens, batch.max_seqlen) == (2, 5, 3)
    assert batch.sequence_lengths.tolist() == [3, 2]
    with pytest.raises(ValueError, match="empty"):
        ragged([[1], []])


@pytest.mark.parametrize("name", ["bert", "modern_4_layers"])
def test_states_are_what_an_encoder_cut_off_there_gives(name):
    encoder = Encoder(VARIANTS[name]).eval()
    spread(encoder)
    batch, states = ragged(sequences()), []
    whole = encoder(batch)
    assert torch.equal(encoder(batch, states=states), whole)
    assert len(states) == encoder.config.num_hidden_layers + 1
    for number, state in enumerate(states[1:], start=1):
        lower = Encoder(VARIANTS[name].replace(num_hidden_layers=number)).eval()
        lower.load_state_dict(encoder.state_dict(), strict=False)
        assert torch.equal(lower(batch), encoder.final_norm(state))
    assert torch.equal(states[0], encoder.embeddings(batch))


@pytest.mark.parametrize("name", ["bert", "modern_4_layers"])
def test_recomputing_layers_keeps_less_and_changes_nothing(name):
    encoder = Encoder(VARIANTS[name].replace(hidden_dropout=0.1, attention_dropout=0.1)).train()
    batch = ragged(sequences())
    found = []
    for encoder.recompute in (False, True):
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        encoder.zero_grad()
        torch.manual_seed(0)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = encoder(batch)
        out.square().sum().backward()
        found.append((out, [p.grad.clone() for p in encoder.parameters()], sum(kept.values())))
    (plain, gradients, much), (again, same, little) = found
    assert torch.equal(plain, again)
    assert all(torch.equal(a, b) for a, b in zip(gradients, same, strict=True))
    assert little < much / 2


@pytest.mark.parametrize("heads", [1, 2, 4, 8, 12, 16, 20])
def test_slopes_are_those_of_bloom(heads):
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    table = build_alibi_tensor(torch.ones(1, 2), heads, torch.float32)  # slope times position
    torch.testing.assert_close(alibi_slopes(heads), table[:, 0, 1])


def test_distance_is_all_that_alibi_knows():
    """Read backwards, a text has the same vectors, as it has with no absolute positions."""
    torch.manual_seed(0)
    encoder = Encoder(VARIANTS["alibi"].replace(attention=("global",))).eval()
    spread(encoder)
    forth = encoder(ragged([[5, 6, 7, 8, 9]]))
    back = encoder(ragged([[9, 8, 7, 6, 5]]))
    torch.testing.assert_close(forth, back.flip(0), rtol=1e-4, atol=1e-5)
    alike = encoder(ragged([[5] * 4 + [6]]))
    assert not torch.isclose(alike[0], alike[3]).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_batch_that_is_filled_up_says_the_same(variant):
    """In bf16 on a CPU products come in a few sizes; what is filled in changes nothing."""
    encoder = Encoder(VARIANTS[variant])
    spread(encoder)
    batch = ragged(sequences())
    sizes = set()
    for part in encoder.modules():
        if isinstance(part, torch.nn.Linear):
            part.register_forward_hook(lambda _, given, __: sizes.add(len(given[0])))
    weights = torch.randn(batch.num_tokens, encoder.config.hidden_size)

    def gradients(hidden: torch.Tensor) -> torch.Tensor:
        found = torch.autograd.grad((hidden.float() * weights).sum(), encoder.parameters())
        return torch.cat([gradient.flatten() for gradient in found])

    def differs(found: torch.Tensor, wanted: torch.Tensor) -> float:
        return ((found - wanted).norm() / wanted.norm()).item()

    exact = encoder(batch)  # fp32, as it is
    assert sizes == {125}
    sizes.clear()
    with torch.autocast("cpu", torch.bfloat16):
        filled = encoder(batch)
        assert sizes == {128}
        plain = encoder.encode(batch, prepare(batch, None, None))
    assert filled.shape == exact.shape
    assert differs(filled, exact) < 1.2 * differs(plain, exact)
    wanted = gradients(exact)
    assert differs(gradients(filled), wanted) < 1.2 * differs(gradients(plain), wanted)


def test_few_tokens_are_filled_up_only_to_learn_from_them():
    encoder, batch = Encoder(VARIANTS["modern"]), ragged(sequences())
    many = ragged(sequences(lengths=(60,) * 9))
    sizes = []
    encoder.layers[0].mixer.out.register_forward_hook(
        lambda _, given, __: sizes.append(len(given[0]))
    )
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        encoder(batch)
        encoder(many)
        with torch.enable_grad():
            encoder(batch)
    assert sizes == [125, 544, 128]


def test_what_is_looked_at_is_not_filled_up():
    encoder, batch = Encoder(VARIANTS["modern"]), ragged(sequences())
    weights: list[list[torch.Tensor]] = []
    states: list[torch.Tensor] = []
    with torch.autocast("cpu", torch.bfloat16):
        encoder(batch, "reference", weights, states)
    assert [len(w) for w in weights] == [5, 5]
    assert {len(state) for state in states} == {125}
