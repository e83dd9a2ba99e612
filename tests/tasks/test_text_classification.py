"""Labels, what is wrong with them, and metrics against scikit-learn's."""

import random

import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, matthews_corrcoef
from toy import table, toy_config

from mlm.errors import UserError
from tasks.options import DataOptions, ModelOptions
from tasks.settings import TaskSettings, task_settings
from tasks.text_classification import TextClassification, label_text, sort_labels


@pytest.fixture(scope="session")
def config(tokenizer):
    return toy_config("bert", tokenizer)


def fitted(rows, config, **settings):
    task = TextClassification(TaskSettings(**settings))
    return task, task.fit(rows, config)


def labelled(tmp_path, labels):
    return table(tmp_path, ["text", "label"], [("a film", label) for label in labels])


# --- the label set ---


@pytest.mark.parametrize(
    ("values", "labels", "targets"),
    [
        (["pos", "neg", "pos"], ("neg", "pos"), [1, 0, 1]),
        ([10, 9, 2, 10], ("2", "9", "10"), [2, 1, 0, 2]),
        ([1, -1, 0], ("-1", "0", "1"), [2, 0, 1]),
        (["10", "b", "9"], ("10", "9", "b"), [0, 2, 1]),
        (["été", "hiver"], ("hiver", "été"), [1, 0]),
    ],
)
def test_labels_come_from_the_training_data_sorted(tmp_path, config, values, labels, targets):
    rows = labelled(tmp_path, values)
    task, _ = fitted(rows, config)
    assert task.settings.labels == labels
    assert task.targets(rows) == targets


def test_a_given_list_keeps_its_order(tmp_path, config):
    rows = labelled(tmp_path, [0, 1, 1])
    options = task_settings(DataOptions(labels=[1, 0]), ModelOptions("x"))
    task = TextClassification(options)
    task.fit(rows, config)
    assert task.settings.labels == ("1", "0")
    assert task.targets(rows) == [1, 0, 0]


def test_labels_of_any_type_are_texts():
    values = ["a", 3, 3.0, True, False]
    assert [label_text(v) for v in values] == ["a", "3", "3", "true", "false"]
    assert [label_text(v) for v in (None, "", "  ", float("nan"))] == [None] * 4
    assert sort_labels(["2", "10", "1", "2"]) == ("1", "2", "10")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", "", "b"], r"table\.csv: row 2: column 'label': the label is empty"),
        (["a", "b", "   "], r"table\.csv: row 3: column 'label': the label is empty"),
        (["a", "a"], r"table\.csv: column 'label' holds one class only \('a'\)"),
    ],
)
def test_bad_labels_are_named_with_their_row(tmp_path, config, labels, message):
    with pytest.raises(UserError, match=message):
        fitted(labelled(tmp_path, labels), config)


def test_a_label_outside_the_given_list_is_refused(tmp_path, config):
    with pytest.raises(UserError, match=r"row 3: column 'label': label 'c' is not in data\.labels"):
        fitted(labelled(tmp_path, ["a", "b", "c"]), config, labels=("a", "b"))


@pytest.mark.parametrize(
    ("labels", "message"),
    [(("a", "a", "b"), "'a' stands there twice"), (("a",), "needs 2 classes or more")],
)
def test_a_given_list_must_be_a_set_of_two_or_more(labels, message):
    with pytest.raises(UserError, match=message):
        TextClassification(TaskSettings(labels=labels))


def test_fractions_are_no_classes(tmp_path, config):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from tasks.rows import Rows

    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"text": ["a", "b"], "label": [1.0, 2.5]}), path)
    with pytest.raises(UserError, match=r"row 2: .*2\.5 is not a class; .*--task regression"):
        fitted(Rows.read(path), config)


def test_rare_and_missing_classes_are_one_line_each(tmp_path, config):
    _, remarks = fitted(labelled(tmp_path, ["a", "a", "b", "c"]), config)
    assert len(remarks) == 1
    assert "one example only of 'b', 'c'" in remarks[0]
    _, remarks = fitted(labelled(tmp_path, ["a", "b", "a", "b"]), config, labels=("a", "b", "z"))
    assert len(remarks) == 1
    assert "no example of 'z'" in remarks[0]


# --- labels that only evaluation has ---


def with_unseen(tmp_path, config):
    task, _ = fitted(labelled(tmp_path, ["a", "b"] * 3), config)
    rows = labelled(tmp_path, ["a", "b", "new", "a", "newer"])
    return task, rows


def test_labels_not_trained_on_are_one_warning(tmp_path, config):
    task, rows = with_unseen(tmp_path, config)
    (line,) = task.remarks(rows)
    assert "'new', 'newer' not among the labels trained on; 2 of 5 rows count as wrong" in line
    assert task.remarks(labelled(tmp_path, ["a", "b"])) == []


def test_they_count_as_wrong_and_cost_no_loss(tmp_path, config):
    task, rows = with_unseen(tmp_path, config)
    labels = torch.tensor(task.targets(rows))
    outputs = torch.tensor([[9.0, 0], [0, 9], [9, 0], [9, 0], [0, 9]])  # right where it can be
    metrics = task.metrics()
    metrics.update(task.decide(outputs), labels)
    values = metrics.compute()
    truth, found = ["a", "b", "new", "a", "newer"], ["a", "b", "a", "a", "b"]
    assert values["accuracy"].item() == pytest.approx(3 / 5)
    assert values["macro_f1"].item() == pytest.approx(f1_score(truth, found, average="macro"))
    assert values["mcc"].item() == pytest.approx(matthews_corrcoef(truth, found))
    loss, count = task.loss(outputs, labels)
    assert count == 3
    assert loss.item() == pytest.approx(3 * torch.log1p(torch.tensor(-9.0).exp()).item(), rel=1e-3)
    lines = task.tables(values)["confusion_matrix"]
    assert lines[0][1:] == ["a", "b", "new", "newer"]
    assert [line[0] for line in lines[1:]] == ["a", "b", "new", "newer"]


# --- metrics ---


@pytest.mark.parametrize("classes", [2, 5])
def test_metrics_equal_those_of_scikit_learn(tmp_path, config, classes):
    draw = random.Random(classes)
    names = [f"c{i}" for i in range(classes)]
    truth = names + [draw.choice(names) for _ in range(300)]
    rows = labelled(tmp_path, truth)
    task, _ = fitted(rows, config)
    outputs = torch.randn(len(truth), classes, generator=torch.Generator().manual_seed(0))
    outputs[torch.arange(len(truth)), task.targets(rows)] += 1.0
    metrics = task.metrics()
    for part in torch.arange(len(truth)).split(64):
        metrics.update(task.decide(outputs[part]), torch.tensor(task.targets(rows))[part])
    values = metrics.compute()
    found = [names[i] for i in outputs.argmax(-1)]
    assert values["accuracy"].item() == pytest.approx(accuracy_score(truth, found))
    assert values["macro_f1"].item() == pytest.approx(f1_score(truth, found, average="macro"))
    assert values["mcc"].item() == pytest.approx(matthews_corrcoef(truth, found), abs=1e-6)
    assert values["confusion_matrix"].tolist() == confusion_matrix(truth, found).tolist()
    if classes == 2:
        assert values["f1"].item() == pytest.approx(f1_score(truth, found, pos_label="c1"))
    else:
        assert "f1" not in values


def test_the_loss_is_the_sum_of_cross_entropies(tmp_path, config):
    task, _ = fitted(labelled(tmp_path, ["a", "b", "c"] * 2), config)
    outputs, labels = torch.randn(7, 3), torch.tensor([0, 1, 2, 0, 1, 2, 2])
    loss, count = task.loss(outputs, labels)
    picked = outputs.log_softmax(-1)[torch.arange(7), labels]
    torch.testing.assert_close(loss, -picked.sum())
    assert count == 7


def test_scores_are_a_distribution(tmp_path, config):
    task, _ = fitted(labelled(tmp_path, ["a", "b", "c"] * 2), config)
    (answer,) = task.predictions(torch.tensor([[0.0, 2.0, 1.0]]))
    assert answer["label"] == "b"
    assert answer["score"] == answer["scores"]["b"]
    assert list(answer["scores"]) == ["a", "b", "c"]
    assert sum(answer["scores"].values()) == pytest.approx(1.0)
