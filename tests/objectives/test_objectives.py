"""Objectives beside masked language modelling, each against its formula."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mlm.data.masking import IGNORE_INDEX
from mlm.data.pairs import Pair
from mlm.model.config import preset
from mlm.model.heads import MaskedLanguageModel
from mlm.objectives import masked_and_causal, masked_lm, pair_order, replaced_tokens
from mlm.objectives.masked_lm import Vocabulary, at_rate, collate
from mlm.objectives.pair_order import PairedMaskedLM
from mlm.objectives.replaced_tokens import ReplacedTokenDetector, corrupt, draw
from mlm.objectives.table import OBJECTIVES, ObjectiveOptions, prepared

VOCABULARY = Vocabulary(size=200, cls=2, sep=3, mask=4, special=(0, 1, 2, 3, 4))


def config(family="modern"):
    special = {"cls_token_id": 2, "sep_token_id": 3, "mask_token_id": 4}
    return preset(family, "tiny", vocab_size=200).replace(**special)


def model(family="modern"):
    torch.manual_seed(0)
    return MaskedLanguageModel(config(family).replace(initializer_range=0.2)).double()


def rows(count=6):
    rng = np.random.default_rng(0)
    return [
        [rng.integers(5, 200, n).astype(np.uint16) for n in rng.integers(2, 40, rng.integers(1, 4))]
        for _ in range(count)
    ]


def paired_rows():
    data = rows()
    for number, row in enumerate(data[:-1]):  # one row has none
        cut = max(1, len(row[0]) // 3)
        row[0] = Pair(row[0][:cut], row[0][cut:], number % 2 == 0)
    return data


def test_a_pair_is_one_sequence_of_two_types():
    first, second, alone = np.array([10, 11]), np.array([12, 13, 14]), np.array([15])
    batch = collate([[Pair(first, second, False), alone]], [0], VOCABULARY, 0.3)
    assert batch.input_ids.tolist() == [2, 10, 11, 3, 12, 13, 14, 3, 2, 15, 3]
    assert batch.token_type_ids.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0]
    assert batch.cu_seqlens.tolist() == [0, 8, 11]
    assert batch.pair_labels.tolist() == [0, IGNORE_INDEX]


def test_special_tokens_of_pairs_are_never_masked():
    batch = collate(paired_rows(), range(6), VOCABULARY, 1.0)
    assert (batch.labels >= 5).all()
    assert len(batch.labels) == int((batch.input_ids >= 5).sum())


@pytest.mark.parametrize("family", ["bert", "modern"])
def test_the_loss_of_pairs(family):
    plain = model(family)
    paired = PairedMaskedLM(plain).double()
    batch = at_rate(collate(paired_rows(), range(6), VOCABULARY, 0.3), 0.3)
    found, of_masks = pair_order.loss(paired, batch), masked_lm.loss(plain, batch)
    torch.testing.assert_close(found.sum, of_masks.sum)
    assert found.targets == of_masks.targets
    hidden = plain.encoder(batch)[batch.cu_seqlens[:-1].long()]
    logits = paired.pair_head(hidden)
    there = batch.pair_labels != IGNORE_INDEX
    assert there.sum() == 5
    wanted = F.cross_entropy(logits[there].float(), batch.pair_labels[there], reduction="sum")
    torch.testing.assert_close(found.second, wanted)
    score = pair_order.score_second(paired, batch)
    assert score.targets == 5
    assert score.right == (logits.argmax(-1) == batch.pair_labels)[there].sum()


def test_no_pair_is_no_loss_but_a_gradient():
    paired = PairedMaskedLM(model()).double()
    found = pair_order.loss(paired, at_rate(collate(rows(), range(6), VOCABULARY, 0.3), 0.3))
    (found.sum + found.second).backward()
    assert found.second == 0
    assert (paired.pair_head.dense.weight.grad == 0).all()  # not None: ranks must agree


def test_still_shapes_change_no_loss_of_pairs():
    paired = PairedMaskedLM(model()).double()
    loose = at_rate(collate(paired_rows(), range(6), VOCABULARY, 0.3), 0.2)
    still = collate(paired_rows(), range(6), VOCABULARY, 0.3, still_length=200)
    assert still.pair_labels.numel() == still.num_sequences
    a, b = (pair_order.loss(paired, x) for x in (loose, at_rate(still, 0.2, capacity=300)))
    torch.testing.assert_close(a.sum, b.sum)
    torch.testing.assert_close(a.second, b.second)


def test_guesses_are_drawn_as_they_are_likely():
    torch.manual_seed(0)
    logits = torch.tensor([[0.0, 1.0, -torch.inf, 2.0, -torch.inf]])
    count = 20_000
    found = torch.bincount(draw(logits.expand(count, 5)), minlength=5) / count
    p = logits.softmax(-1)[0]
    assert ((found - p).abs() <= 4 * (p * (1 - p) / count).sqrt()).all()
    assert draw(torch.zeros(0, 5)).shape == (0,)


def test_what_is_replaced():
    batch = at_rate(collate(rows(), range(6), VOCABULARY, 0.3), 0.3)
    known = batch.labels != IGNORE_INDEX
    positions, labels = batch.masked_positions[known], batch.labels[known]
    guesses = labels.clone()
    guesses[::2] = 5 + (labels[::2] - 5 + 1) % 195  # every other one is wrong
    missing = torch.full((len(known) - len(guesses),), 7)  # where there is nothing to guess
    judged, replaced, counts = corrupt(batch, torch.cat([guesses, missing]), config())
    assert replaced.nonzero().flatten().tolist() == positions[::2].tolist()
    original = collate(rows(), range(6), VOCABULARY, 0.3).input_ids
    assert torch.equal(judged.input_ids[~replaced], original[~replaced])
    assert torch.equal(judged.input_ids[positions], guesses)
    assert torch.equal(counts, original >= 5)
    assert judged.masked_positions is None


@pytest.mark.parametrize("capacity", [None, 150])
def test_the_loss_of_a_detector(capacity):
    detector = ReplacedTokenDetector(model(), 1).double()
    assert detector.generator.encoder.embeddings is detector.encoder.embeddings
    batch = at_rate(collate(rows(), range(6), VOCABULARY, 0.3), 0.3, capacity)
    torch.manual_seed(1)
    found = replaced_tokens.loss(detector, batch)
    torch.manual_seed(1)
    guesses = draw(detector.generator(batch).detach())
    judged, replaced, counts = corrupt(batch, guesses, config())
    p = detector(judged).sigmoid()
    wanted = -torch.where(replaced, p.log(), (1 - p).log())[counts].sum()
    torch.testing.assert_close(found.second, wanted.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.sum, masked_lm.loss(detector.generator, batch).sum)
    assert 0 < replaced.sum() < found.targets + 1


def test_the_detectors_gradient_does_not_reach_the_generators_layers():
    detector = ReplacedTokenDetector(model(), 1).double()
    batch = at_rate(collate(rows(), range(6), VOCABULARY, 0.3), 0.3)
    replaced_tokens.loss(detector, batch).second.backward()
    layers = detector.generator.encoder.layers.parameters()
    assert all(p.grad is None or not p.grad.any() for p in layers)
    assert detector.encoder.embeddings.word.weight.grad.abs().sum() > 0


def test_every_token_is_predicted_from_those_before():
    data, plain = rows(), model()
    batch = masked_and_causal.causal(collate(data, range(6), VOCABULARY, 0.3), sep=3)
    assert batch.causal
    found = masked_lm.loss(plain, batch)
    total, count = 0.0, 0
    for row in data:
        for ids in row:
            framed = np.concatenate([[2], ids, [3]])
            for stop in range(1, len(framed)):  # one prefix at a time
                prefix = collate([[ids]], [0], VOCABULARY, 0.3)
                cut = replace(
                    prefix,
                    input_ids=prefix.input_ids[:stop],
                    position_ids=prefix.position_ids[:stop],
                    cu_seqlens=torch.tensor([0, stop], dtype=torch.int32),
                    max_seqlen=stop,
                    masked_positions=torch.tensor([stop - 1]),
                    labels=None,
                    causal=True,
                )
                total -= float(plain(cut).log_softmax(-1)[0, int(framed[stop])])
                count += 1
    assert found.targets == count
    assert float(found.sum) == pytest.approx(total, rel=1e-6)


def test_what_fills_a_batch_up_is_not_predicted():
    still = collate(rows(), range(6), VOCABULARY, 0.3, still_length=200)
    loose = collate(rows(), range(6), VOCABULARY, 0.3)
    a, b = (masked_lm.loss(model(), masked_and_causal.causal(x, 3)) for x in (loose, still))
    assert a.targets == b.targets
    torch.testing.assert_close(a.sum, b.sum)


def test_a_share_of_the_steps_is_causal():
    made = collate(rows(), range(6), VOCABULARY, 0.3)
    options = ObjectiveOptions("masked_and_causal", causal_share=0.25)
    kinds = [prepared(made, options, 0.2, None, 3, step, 3).causal for step in range(1000)]
    assert abs(sum(kinds) - 250) < 4 * (1000 * 0.25 * 0.75) ** 0.5
    plain = ObjectiveOptions("masked_lm")
    assert not any(prepared(made, plain, 0.2, None, 3, step, 3).causal for step in range(50))


def test_every_objective_tells_its_own():
    for name, objective in OBJECTIVES.items():
        assert (objective.weight is None) == (objective.score_second is None), name
        assert bool(objective.metric) == (objective.score_second is not None), name
