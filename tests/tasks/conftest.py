"""What the tests of tasks share."""

import pytest
from toy import (
    number_rows,
    toy_rows,
    toy_tokenizer,
    write_csv,
    write_folder,
    write_pretrained,
)

from tasks.regression import Regression
from tasks.text_classification import TextClassification


@pytest.fixture(scope="session")
def tokenizer():
    return toy_tokenizer()


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory, tokenizer):
    """{family: a model folder with random weights}."""
    root = tmp_path_factory.mktemp("pretrained")
    return {f: write_pretrained(root / f, f, tokenizer) for f in ("bert", "modern")}


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """{split: a table of the toy task}."""
    root = tmp_path_factory.mktemp("toy")
    return {
        name: write_csv(root / f"{name}.csv", ["text", "label"], toy_rows(count, seed))
        for name, count, seed in (("train", 400, 1), ("validation", 80, 2), ("test", 80, 3))
    }


@pytest.fixture(scope="session")
def numbers(tmp_path_factory):
    """{split: a table of pairs and numbers}."""
    root = tmp_path_factory.mktemp("numbers")
    header = ["sentence1", "sentence2", "label"]
    return {
        name: write_csv(root / f"{name}.csv", header, number_rows(count, seed))
        for name, count, seed in (("train", 300, 1), ("validation", 60, 2))
    }


@pytest.fixture(scope="session")
def classifier(tmp_path_factory, toy, tokenizer):
    folder = tmp_path_factory.mktemp("classifier") / "model"
    return write_folder(folder, TextClassification, toy["train"], tokenizer)


@pytest.fixture(scope="session")
def regressor(tmp_path_factory, numbers, tokenizer):
    folder = tmp_path_factory.mktemp("regressor") / "model"
    return write_folder(folder, Regression, numbers["train"], tokenizer, "bert")
