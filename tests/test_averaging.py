"""The mean of several models."""

import json

import pytest
import torch
from small_models import random_state, save_classifier, save_masked_lm, small_config

from mlm.checkpoint import load_masked_lm, read_folder
from mlm.cli import main
from mlm.model.heads import MaskedLanguageModel


def folder(path, seed, family="bert", **changes):
    config = small_config(family, **changes)
    save_masked_lm(path, config, state=random_state(MaskedLanguageModel(config), seed))
    return path


def average(*models, output):
    return main(["average", "--models", *map(str, models), "--output", str(output)])


@pytest.mark.parametrize("family", ["bert", "modern"])
def test_every_weight_is_the_mean(tmp_path, capsys, family):
    models = [folder(tmp_path / str(seed), seed, family) for seed in range(3)]
    assert average(*models, output=tmp_path / "mean") == 0
    assert json.loads(capsys.readouterr().out) == {
        "model": str(tmp_path / "mean"),
        "averaged": 3,
        "head": "masked_lm",
    }
    states = [read_folder(model).state for model in models]
    found = read_folder(tmp_path / "mean")
    assert found.info["averaged"] == 3
    for name, tensor in found.state.items():
        mean = sum(state[name].double() for state in states) / 3
        assert torch.equal(tensor, mean.to(tensor.dtype)), name
    load_masked_lm(tmp_path / "mean")


def test_a_mean_of_one_model_twice_is_that_model(tmp_path):
    model = folder(tmp_path / "a", 0)
    assert average(model, model, output=tmp_path / "mean") == 0
    one, mean = read_folder(model).state, read_folder(tmp_path / "mean").state
    assert all(torch.equal(mean[name], one[name]) for name in one)


def test_a_classifier_stays_one(tmp_path):
    save_classifier(tmp_path / "a")
    assert average(tmp_path / "a", tmp_path / "a", output=tmp_path / "mean") == 0
    found = read_folder(tmp_path / "mean")
    assert found.head == "sequence_classification"
    assert found.labels == ["no", "yes"]
    assert found.info["task"] == "text_classification"


def test_how_they_were_trained_does_not_matter(tmp_path):
    one, other = folder(tmp_path / "a", 0), folder(tmp_path / "b", 1, hidden_dropout=0.3)
    assert average(one, other, output=tmp_path / "mean") == 0


def test_another_pooling_is_another_kind(tmp_path, capsys):
    for name, pooling in (("a", "cls"), ("b", "mean")):
        save_classifier(tmp_path / name, pooling)
    assert average(tmp_path / "a", tmp_path / "b", output=tmp_path / "mean") == 2
    assert "has another pooling than" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "what"),
    [({"num_hidden_layers": 2}, "encoder"), ({"family": "modern"}, "encoder")],
)
def test_models_of_two_kinds_have_none(tmp_path, capsys, changes, what):
    one, other = folder(tmp_path / "a", 0), folder(tmp_path / "b", 1, **changes)
    assert average(one, other, output=tmp_path / "mean") == 2
    error = capsys.readouterr().err
    assert f"{other}: has another {what} than {one}" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "mean").exists()


def test_mistakes_are_one_line(tmp_path, capsys):
    one, other = folder(tmp_path / "a", 0), folder(tmp_path / "b", 1)
    before = read_folder(one).state
    for models, output, named in (
        ([one], tmp_path / "mean", "two model folders or more"),
        ([one, other], one, "is there already"),
        ([one, tmp_path / "missing"], tmp_path / "mean", "missing"),
    ):
        assert average(*models, output=output) == 2
        error = capsys.readouterr().err
        assert named in error
        assert error.count("\n") == 1
    assert all(torch.equal(before[name], tensor) for name, tensor in read_folder(one).state.items())
    assert not (tmp_path / "mean").exists()
