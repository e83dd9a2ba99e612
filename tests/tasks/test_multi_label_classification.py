"""Any number of classes a text: against torch, scikit-learn, transformers; and what is refused."""

import json
import random
from itertools import product

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score
from test_finetuning import run, words
from torch.nn import functional as F
from toy import FILLER, table, toy_config, write_csv, write_jsonl

from mlm.checkpoint import read_folder
from mlm.cli import main
from mlm.errors import UserError
from tasks.inference import Predictor
from tasks.losses import binary_cross_entropy, binary_symmetric_kl, positive_weights
from tasks.multi_label_classification import MultiLabelClassification, read_labels
from tasks.options import LossOptions
from tasks.rows import Rows
from tasks.settings import TaskSettings

TASK = "--task multi_label_classification"
# class: the words that tell it
TELLING = {"joy": ["wonderful"], "love": ["moving"], "fear": ["dull"]}


def emotion_rows(count, seed):
    """Texts with words of some of the classes among fillers, and those classes."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        labels = [label for label in TELLING if draw.random() < 0.4]
        text = [draw.choice(TELLING[label]) for label in labels] + draw.choices(FILLER, k=4)
        draw.shuffle(text)
        rows.append((" ".join(text), labels))
    return rows


@pytest.fixture(scope="module")
def emotions(tmp_path_factory):
    root = tmp_path_factory.mktemp("emotions")
    return {
        name: write_csv(
            root / f"{name}.csv",
            ["text", "labels"],
            [(text, "|".join(labels)) for text, labels in emotion_rows(count, seed)],
        )
        for name, count, seed in (("train", 600, 1), ("validation", 100, 2))
    }


def fitted(rows, tokenizer, **settings):
    task = MultiLabelClassification(TaskSettings(**settings))
    task.fit(rows, toy_config("bert", tokenizer))
    return task


# --- losses ---


def drawn(seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(6, 4, generator=generator, dtype=torch.float64)
    labels = (torch.rand(6, 4, generator=generator) < 0.4).long()
    return logits.requires_grad_(), labels


def same_with_gradients(found, expected, at):
    torch.testing.assert_close(found, expected)
    ours, theirs = (torch.autograd.grad(x, at, retain_graph=True)[0] for x in (found, expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_torchs(smoothing):
    logits, labels = drawn()
    weights = torch.tensor([0.5, 1, 2, 4], dtype=torch.float64)
    targets = labels * (1 - smoothing) + (1 - labels.double()) * 0 + smoothing / 2
    expected = F.binary_cross_entropy_with_logits(
        logits, targets, pos_weight=weights, reduction="sum"
    )
    same_with_gradients(binary_cross_entropy(logits, labels, weights, smoothing), expected, logits)


def test_focal_loss_is_its_formula():
    logits, labels = drawn()
    p = logits.sigmoid()
    right = torch.where(labels == 1, p, 1 - p)
    expected = -((1 - right) ** 2 * right.log()).sum()
    same_with_gradients(binary_cross_entropy(logits, labels, focal_gamma=2.0), expected, logits)


def test_the_divergence_is_that_of_yes_and_no():
    (first, _), (second, _) = drawn(0), drawn(1)
    p, q = (torch.stack([x.sigmoid(), 1 - x.sigmoid()]) for x in (first, second))
    expected = 0.5 * ((p - q) * (p.log() - q.log())).sum()
    same_with_gradients(binary_symmetric_kl(first, second), expected, first)


def test_positive_weights_balance_each_class():
    assert positive_weights([5, 2, 0, 10], 10) == [1.0, 4.0, 1.0, 1.0]


# --- what is read ---


@pytest.mark.parametrize(
    ("value", "labels", "expected"),
    [
        ("a | b", (), ["a", "b"]),
        ("", (), []),
        (None, (), []),
        ([], (), []),
        (["b", "a"], (), ["b", "a"]),
        (3, (), ["3"]),
        ([3, 1], (), ["3", "1"]),
        ([0, 1, 1.0], ("a", "b", "c"), ["b", "c"]),
        ([1, 2], ("1", "2"), ["1", "2"]),
    ],
)
def test_a_cell_holds_names_or_says_of_each_class_whether_it_is_there(value, labels, expected):
    assert read_labels(value, labels) == expected


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([0, 1, 0.5], "0.5 is neither 0 nor 1"),
        ([0, 1, -1], "-1 is neither 0 nor 1"),
        ([0, 1], "2 numbers for 3 classes"),
        (["d"], "label 'd' is not in data.labels"),
        (["a", "a"], "label 'a' stands there twice"),
        (["a", None], "a label is empty"),
    ],
)
def test_a_wrong_cell_is_named_with_file_and_row(tmp_path, pretrained, capsys, value, said):
    kind = [1, 0, 1] if isinstance(value, list) and isinstance(value[0], int) else ["a"]
    lines = [{"text": "a film", "labels": kind}, {"text": "a story", "labels": value}]
    path = write_jsonl(tmp_path / "rows.jsonl", lines)
    rows = {"train": path, "validation": path}
    more = f"{TASK} --data.labels [a,b,c]"
    assert main(["finetune", *words(rows, pretrained["bert"], tmp_path / "run", more)]) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("mlm: ")]
    assert f"{path}: row 2: column 'labels': " in line
    assert said in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", [[["a"]], {"a": 1}, [1.5]])
def test_what_is_no_list_of_names_is_refused(value):
    with pytest.raises(ValueError, match="is not a class"):
        read_labels(value)


def test_0s_and_1s_without_names_are_no_labels(tmp_path, tokenizer):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"text": "a film", "labels": [0, 0, 1]}])
    with pytest.raises(UserError, match=r"row 1: .*name the classes with --data\.labels"):
        fitted(Rows.read(path), tokenizer)


@pytest.mark.parametrize("threshold", [0.0, 1.0, float("nan")])
def test_a_threshold_lies_between_0_and_1(threshold):
    with pytest.raises(UserError, match=r"data\.threshold: .* must lie between 0 and 1"):
        MultiLabelClassification(TaskSettings(threshold=threshold))


def test_no_label_at_all_is_refused(tmp_path, tokenizer):
    rows = table(tmp_path, ["text", "labels"], [("a film", ""), ("a story", "")])
    with pytest.raises(UserError, match="holds no label in any row"):
        fitted(rows, tokenizer)


def test_weights_are_one_a_class(tmp_path, tokenizer):
    rows = table(tmp_path, ["text", "labels"], [("a film", "a|b"), ("a story", "b")])
    task = MultiLabelClassification(TaskSettings())
    task.train_with(LossOptions(class_weights=[1.0]))
    with pytest.raises(UserError, match="1 weights for 2 classes"):
        task.fit(rows, toy_config("bert", tokenizer))


# --- scores ---


def test_scores_are_those_of_scikit_learn_and_unseen_classes_are_missed(tmp_path, tokenizer):
    rows = table(tmp_path, ["text", "labels"], [("x", "a"), ("y", "b|c"), ("z", "")])
    task = fitted(rows, tokenizer, threshold=0.4)
    draw = random.Random(0)
    cells = [[name for name in "abcz" if draw.random() < 0.4] for _ in range(50)]
    lines = [(str(i), "|".join(cell)) for i, cell in enumerate(cells)]
    held_out = table(tmp_path, ["text", "labels"], lines)
    (remark,) = task.remarks(held_out)
    assert "'z' not among the labels trained on" in remark
    examples = task.label(task.encode([("x",)] * 50, tokenizer), task.targets(held_out))
    outputs = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    metrics = task.metrics()
    for part in np.array_split(np.arange(50), 7):
        batch = task.collate([examples[place] for place in part])
        task.update(metrics, outputs[torch.from_numpy(part)], batch)
    values = metrics.compute()
    truth = np.array([[name in cell for name in "abcz"] for cell in cells])
    found = np.pad(outputs.sigmoid().numpy() > 0.4, ((0, 0), (0, 1)))
    for average in ("micro", "macro"):
        expected = f1_score(truth, found, average=average, zero_division=0)
        assert values[f"{average}_f1"] == pytest.approx(expected, abs=1e-6)
    assert values["exact_match"] == pytest.approx(accuracy_score(truth, found))
    (header, *lines) = task.tables(values)["per_class"]
    assert header == ["label", "rows", "precision", "recall", "f1"]
    for line, rows_there, f1 in zip(
        lines, truth.sum(0), f1_score(truth, found, average=None, zero_division=0), strict=True
    ):
        assert line[1] == str(rows_there)
        assert float(line[4]) == pytest.approx(f1, abs=1e-4)
    task.targets(table(tmp_path, ["text", "labels"], [("later", "y")]))
    assert task.tables(values)["per_class"] == [header, *lines]


def test_windows_vote_with_their_mean_probability(tmp_path, tokenizer):
    task = fitted(table(tmp_path, ["text", "labels"], [("x", "a|b")]), tokenizer)
    outputs = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    owner = torch.tensor([0, 0, 1, 1, 1])
    pooled = task.pool_windows(outputs, owner, 2).sigmoid()
    expected = torch.stack([outputs.sigmoid()[owner == text].mean(0) for text in (0, 1)])
    torch.testing.assert_close(pooled, expected)


# --- the whole path ---


@pytest.mark.parametrize(("family", "loss"), product(["bert", "modern"], ["", "balanced"]))
def test_it_learns_and_loads_in_transformers(family, loss, emotions, pretrained, tmp_path, capsys):
    from transformers import AutoModelForSequenceClassification

    more = f"{TASK} --trainer.max_epochs 6"
    if loss:
        more += " --loss.class_weights balanced --loss.r_drop 0.5 --model.dropout 0.1"
    found = run(emotions, pretrained[family], tmp_path / "run", more)
    # In so few steps a post-norm encoder with random weights finds one class for sure.
    assert found["micro_f1"] > {"bert": 0.6, "modern": 0.9}[family]
    assert (tmp_path / "run" / "per_class.csv").read_text().startswith("label,rows,precision")

    folder = str(tmp_path / "run" / "model")
    capsys.readouterr()
    assert main(["evaluate", "--model", folder, "--data", str(emotions["validation"])]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["micro_f1"] == pytest.approx(found["micro_f1"])

    theirs = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert theirs.config.problem_type == "multi_label_classification"
    predictor = Predictor.from_pretrained(folder, "cpu", "fp32")
    for text, labels in emotion_rows(20, 3):
        (answer,) = predictor([text])
        ids = torch.tensor([read_folder(folder).tokenizer.encode(text).ids])
        expected = theirs(ids).logits[0].sigmoid().tolist()
        assert list(answer["scores"].values()) == pytest.approx(expected, abs=1e-5)
        names = theirs.config.id2label
        assert answer["labels"] == [names[i] for i, p in enumerate(expected) if p > 0.5]
        assert set(answer) == {"text", "labels", "scores"}
        assert isinstance(labels, list)
