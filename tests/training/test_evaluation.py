"""Evaluation against the loss written out."""

import math

import numpy as np
import pytest
import torch

from mlm.model.config import preset
from mlm.model.heads import MaskedLanguageModel
from mlm.objectives.masked_lm import Vocabulary
from mlm.training.batches import ValidationBatches
from mlm.training.evaluation import evaluate_masked_lm

VOCABULARY = Vocabulary(size=60, cls=2, sep=3, mask=4, special=(0, 1, 2, 3, 4))


class InMemory:
    def __init__(self, lengths: list[int]) -> None:
        self.ends = np.cumsum(lengths)
        self.ids = np.random.default_rng(0).integers(5, 60, self.ends[-1]).astype(np.uint16)

    def tokens(self, start: int, stop: int) -> np.ndarray:
        return self.ids[start:stop]


def test_a_uniform_model_has_the_loss_of_a_uniform_guess():
    model = MaskedLanguageModel(preset("modern", "tiny", vocab_size=60)).eval()
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    found = evaluate_masked_lm(model, InMemory([50, 9, 200]), VOCABULARY, 1000, sequence_length=32)
    assert found["loss"] == pytest.approx(math.log(60), abs=1e-5)
    assert found["perplexity"] == pytest.approx(60, rel=1e-4)
    assert found["bits_per_character"] == pytest.approx(math.log2(60) * 259 / 1000, rel=1e-5)


@pytest.mark.parametrize("size", [1, 3, 64])
def test_figures_do_not_depend_on_the_batch_size(size):
    torch.manual_seed(0)
    model = MaskedLanguageModel(preset("modern", "tiny", vocab_size=60)).eval()
    split = InMemory([50, 9, 200])
    one = evaluate_masked_lm(model, split, VOCABULARY, 1000, 32, batch_size=2)
    other = evaluate_masked_lm(model, split, VOCABULARY, 1000, 32, batch_size=size)
    assert other == pytest.approx(one, rel=1e-5)


def test_the_validation_mask_is_fixed_for_ever():
    batch = ValidationBatches(InMemory([50, 9, 200]), VOCABULARY, 32, 2)[0]
    ids = batch.input_ids.numpy()
    assert batch.masked_positions.tolist() == [1, 9, 10, 13, 15, 35, 37, 42, 51, 58]
    assert not np.isin(ids[batch.masked_positions], VOCABULARY.special).any()
