"""Where fresh models begin: at what is counted in their store, and only fresh ones."""

import pytest
import torch

from mlm.checkpoint import load_masked_lm
from mlm.data.cooccurrence import word_vectors
from mlm.data.store import TokenStore
from mlm.errors import UserError
from mlm.training.metrics_csv import read_metrics
from mlm.training.pretraining import pretrain


def first_words(run):
    """The words of a run's model before its first step."""
    model = load_masked_lm(run / "checkpoints" / "step_00000000" / "model")
    return model.encoder.embeddings.word.weight.detach()


@pytest.mark.parametrize("family", ["modern", "bert"])
def test_words_begin_at_their_vectors(family, pretrain_settings, store, tmp_path):
    words = f"--model.family {family} --checkpoint.first true --budget 1step --seed 3"
    for name, asked in (("there", ""), ("anywhere", "--objective.start_at_cooccurrences false")):
        pretrain(pretrain_settings(f"{words} {asked} --run_dir {tmp_path / name}"))
    found, plain = (first_words(tmp_path / name) for name in ("there", "anywhere"))
    own = plain.any(0)
    assert own.all() == (family == "modern")  # the others are the places'
    opened = TokenStore.open(store)
    vectors = word_vectors(opened.split("train"), opened.vocab_size, int(own.sum()), 3)
    seen = torch.from_numpy(vectors.any(1))
    assert seen.sum() > 40
    length = 1.7 if family == "modern" else 1.0
    expected = length * torch.from_numpy(vectors)[seen]
    assert torch.allclose(found[seen][:, own], expected, atol=1e-6)
    assert torch.equal(found[~seen], plain[~seen])
    assert not found[:, ~own].any()


@pytest.mark.parametrize("objective", ["masked_and_causal", "replaced_tokens", "sentence_order"])
def test_every_objective_can_begin_there(objective, pretrain_settings, tmp_path):
    pretrain(pretrain_settings(f"--objective.name {objective} --budget 2steps"))
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert "start_at_cooccurrences: null" in config


def test_what_begins_at_0_stays_there(pretrain_settings, tmp_path):
    pretrain(
        pretrain_settings("--model.initializer_range 0 --checkpoint.first true --budget 1step")
    )
    assert not first_words(tmp_path / "run").any()


def test_what_is_trained_already_goes_on_from_where_it_is(pretrain_settings, tmp_path):
    pretrain(pretrain_settings("--budget 2steps"))
    model = tmp_path / "run" / "model"
    before = load_masked_lm(model).encoder.embeddings.word.weight
    words = f"--model {model} --checkpoint.first true --budget 1step"
    pretrain(pretrain_settings(f"{words} --run_dir {tmp_path / 'on'}"))
    assert torch.equal(first_words(tmp_path / "on"), before)
    asked = f"{words} --objective.start_at_cooccurrences true --run_dir {tmp_path / 'asked'}"
    with pytest.raises(UserError, match=r"start_at_cooccurrences: only a fresh model"):
        pretrain(pretrain_settings(asked))
    assert not (tmp_path / "asked").exists()


def test_a_budget_of_time_pays_for_the_counting(pretrain_settings, tmp_path, monkeypatch):
    monkeypatch.setattr("mlm.training.pretraining.start", lambda *_: 50.0)
    pretrain(pretrain_settings("--budget 51s"))
    seconds = read_metrics(tmp_path / "run" / "metrics.csv")["seconds"]
    assert 50 < min(s for s in seconds if s is not None) < 52
    assert max(s for s in seconds if s is not None) < 53
