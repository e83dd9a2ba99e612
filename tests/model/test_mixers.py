"""Fourier mixing and recurrence: against what they are elsewhere, and in an encoder."""

import math

import pytest
import torch
from small_models import save_masked_lm, small_config
from torch import nn
from transformers.models.fnet.configuration_fnet import FNetConfig
from transformers.models.fnet.modeling_fnet import FNetBasicFourierTransform

from mlm.batch import Batch, ragged
from mlm.checkpoint import load_masked_lm
from mlm.huggingface import native_class
from mlm.model.config import MATRICES
from mlm.model.encoder import Encoder
from mlm.model.layout import Layout
from mlm.model.mixers import MIXERS, FourierMixing, Recurrence, build_mixer

LENGTHS = (5, 1, 30, 12)


def sequences(width=32, lengths=LENGTHS):
    torch.manual_seed(0)
    return [torch.randn(length, width) for length in lengths]


def layout(lengths=LENGTHS):
    ends = torch.tensor([0, *lengths]).cumsum(0).int()
    return Layout(ends, max(lengths), sum(lengths))


def test_the_transform_is_fnets_scaled():
    parts = sequences()
    found = FourierMixing(small_config(), None)(torch.cat(parts), layout(), None)
    theirs = FNetBasicFourierTransform(FNetConfig(use_tpu_fourier_optimizations=False))
    for part, mixed in zip(parts, found.split(list(LENGTHS)), strict=True):
        expected = theirs(part[None])[0][0] / math.sqrt(part.numel())
        torch.testing.assert_close(mixed, expected, atol=1e-5, rtol=1e-4)


def test_a_recurrence_reads_each_sequence_both_ways():
    mixer, parts = Recurrence(small_config(bias=True), None), sequences()
    found = mixer(torch.cat(parts), layout(), None)
    for part, mixed in zip(parts, found.split(list(LENGTHS)), strict=True):
        alone, _ = mixer.lstm(part)
        torch.testing.assert_close(mixed, alone, atol=1e-6, rtol=1e-5)
    # What the first token knows comes from the last one, and the other way round.
    changed = [part.clone() for part in parts]
    changed[2][-1] += 1
    again = mixer(torch.cat(changed), layout(), None)
    assert not torch.equal(again[6], found[6])
    assert torch.equal(again[:6], found[:6])


@pytest.mark.parametrize("kind", MIXERS)
def test_the_weights_are_as_many_as_the_arithmetic_counts(kind):
    config = small_config("modern", attention=(kind,))
    weights = [p for p in build_mixer(config, 0).parameters() if p.ndim == 2]
    assert sum(p.numel() for p in weights) == MATRICES[kind] * config.hidden_size**2


@pytest.mark.parametrize("pattern", [("fourier",), ("lstm",), ("fourier", "local", "lstm")])
@pytest.mark.parametrize("family", ["bert", "modern"])
def test_a_sequence_does_not_depend_on_its_company(family, pattern):
    encoder = Encoder(small_config(family, attention=pattern)).double()
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(5, 50, (n,), generator=generator).tolist() for n in LENGTHS]
    together = encoder(ragged(rows))
    together.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())
    for row, part in zip(rows, together.split(list(LENGTHS)), strict=True):
        torch.testing.assert_close(encoder(ragged([row])), part, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["fourier", "lstm"])
def test_empty_sequences_are_nothing(kind):
    """As `torch.compile` gets them, for shapes that stand still."""
    encoder = Encoder(small_config("modern", attention=(kind,)))
    plain = ragged([[2, 7, 3], [2, 3]])
    ends = nn.functional.pad(plain.cu_seqlens, (0, 3), value=plain.num_tokens)
    padded = Batch(plain.input_ids, plain.position_ids, ends, plain.max_seqlen)
    torch.testing.assert_close(encoder(padded), encoder(plain))


@pytest.mark.parametrize("family", ["bert", "modern"])
def test_no_class_of_transformers_mixes_so_and_the_folder_is_our_own(family, tmp_path):
    config = small_config(family, attention=("fourier", "global"))
    assert "attention" in native_class(config, "masked_lm").reason
    state = save_masked_lm(tmp_path / "model", config)
    again = load_masked_lm(tmp_path / "model")
    assert again.encoder.config.attention == ("fourier", "global")
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())
