"""A linear classifier on frozen vectors, at each validation."""

import random

import pytest
import torch

from mlm.data.tokenizer import load_tokenizer
from mlm.errors import UserError
from mlm.model.config import preset
from mlm.model.encoder import Encoder
from mlm.training.metrics_csv import read_metrics
from mlm.training.pretraining import pretrain
from mlm.training.probe import ProbeOptions, build_probe


def table(path, rows):
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    return path


def sentences(count, seed):
    """Texts of two classes that one word tells apart."""
    rng = random.Random(seed)
    words = {"cat": ["cat", "fish"], "tree": ["tree", "stone"]}
    for number in range(count):
        label = ("cat", "tree")[number % 2]
        yield f"the old {rng.choice(words[label])} sat here", label


@pytest.fixture
def tables(tmp_path):
    train = table(tmp_path / "train.csv", sentences(60, 0))
    return train, table(tmp_path / "dev.csv", sentences(40, 1))


@pytest.fixture
def encoder(store):
    torch.manual_seed(0)
    vocab_size = load_tokenizer(store / "tokenizer").get_vocab_size()
    return Encoder(preset("modern", "tiny", vocab_size=vocab_size)).eval()


def options(tables, **more):
    return ProbeOptions(str(tables[0]), str(tables[1]), **more)


def test_it_finds_what_is_there_and_no_more(tables, tmp_path, store, encoder):
    tokenizer = load_tokenizer(store / "tokenizer")
    probe = build_probe(options(tables), tokenizer)
    assert probe(encoder) == probe(encoder) == 1.0
    rng = random.Random(0)
    shuffled = [(text, rng.choice(["cat", "tree"])) for text, _ in sentences(400, 2)]
    by_chance = (
        table(tmp_path / "a.csv", shuffled[:200]),
        table(tmp_path / "b.csv", shuffled[200:]),
    )
    assert 0.35 < build_probe(options(by_chance), tokenizer)(encoder) < 0.65


def test_it_is_told_and_changes_nothing(tables, pretrain_settings, tmp_path):
    words = "--budget 6steps --trainer.val_check_interval 3 --model.hidden_dropout 0.1"
    pretrain(pretrain_settings(f"{words} --run_dir {tmp_path / 'plain'}"))
    words += f" --probe.train {tables[0]} --probe.validation {tables[1]}"
    found = pretrain(pretrain_settings(f"{words} --run_dir {tmp_path / 'probed'}"))
    plain, probed = (read_metrics(tmp_path / run / "metrics.csv") for run in ("plain", "probed"))
    assert probed["train/loss"] == plain["train/loss"]
    told = [value for value in probed["val/probe_accuracy"] if value is not None]
    assert len(told) == 2
    assert told[-1] == found["val/probe_accuracy"]
    assert all(0 <= value <= 1 for value in told)


def test_none_is_none(store):
    assert build_probe(ProbeOptions(), load_tokenizer(store / "tokenizer")) is None
    with pytest.raises(UserError, match="probe: there is none"):
        build_probe(ProbeOptions(rows=50), load_tokenizer(store / "tokenizer"))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"validation": None}, r"--probe\.validation"),
        ({"train": None}, r"--probe\.train"),
        ({"rows": 3}, r"probe\.rows: 3"),
        ({"text_column": "texts"}, r"train\.csv: no column 'texts'.*did you mean 'text'"),
        ({"label_column": "stars"}, r"train\.csv: no column 'stars'"),
        ({"train": "missing.csv"}, r"missing\.csv"),
    ],
)
def test_mistakes_are_named(tables, store, change, named):
    given = {"train": str(tables[0]), "validation": str(tables[1])} | change
    with pytest.raises(UserError, match=named) as caught:
        build_probe(ProbeOptions(**given), load_tokenizer(store / "tokenizer"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ([("a", "x"), ("b", "x")], "only one class in its first 2 rows"),
        ([], "no rows"),
    ],
)
def test_tables_that_teach_nothing(tables, store, tmp_path, rows, named):
    useless = table(tmp_path / "useless.csv", rows)
    with pytest.raises(UserError, match=named):
        build_probe(options((useless, tables[1])), load_tokenizer(store / "tokenizer"))


def test_a_row_without_a_label(tables, store, tmp_path):
    path = tmp_path / "holes.jsonl"
    path.write_text('{"text": "a", "label": 1}\n{"text": "b", "label": null}\n')
    with pytest.raises(UserError, match=r"holes\.jsonl: row 2: its label is nothing"):
        build_probe(options((path, tables[1])), load_tokenizer(store / "tokenizer"))


def test_a_mistake_costs_no_run(tables, pretrain_settings, tmp_path):
    with pytest.raises(UserError, match=r"--probe\.validation"):
        pretrain(pretrain_settings(f"--budget 3steps --probe.train {tables[0]}"))
    assert not (tmp_path / "run").exists()
