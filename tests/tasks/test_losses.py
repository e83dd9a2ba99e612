"""Losses against torch's, scikit-learn's and the formulas of their papers, gradients included."""

import json
import math

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from test_finetuning import losses, options, run, validations, words
from torch.nn import functional as F
from torch.nn.functional import cross_entropy as torch_cross_entropy
from toy import number_rows, table, toy_config, toy_rows, write_csv

from mlm.batch import ragged
from mlm.cli import main
from mlm.errors import UserError
from mlm.training.budget import Budget
from mlm.training.optimizers import OptimizerOptions
from tasks.heads import TaskModel
from tasks.losses import IGNORED, balanced_weights, cross_entropy, symmetric_kl
from tasks.module import FineTuningModule
from tasks.options import LossOptions
from tasks.regression import Regression
from tasks.settings import TaskSettings
from tasks.text_classification import TextClassification

LABELS = torch.tensor([0, 2, 1, 1, 3, IGNORED])
WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64)


def logits(seed=0):
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    return (3 * drawn).requires_grad_()


def same_with_gradients(found, expected, *inputs):
    torch.testing.assert_close(found, expected)
    ours, theirs = (torch.autograd.grad(x, inputs, retain_graph=True) for x in (found, expected))
    torch.testing.assert_close(ours, theirs)


# --- the functions ---


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_weights_and_smoothing_are_those_of_torch(weights, smoothing):
    x = logits()
    expected = F.cross_entropy(
        x, LABELS, weights, ignore_index=IGNORED, reduction="sum", label_smoothing=smoothing
    )
    same_with_gradients(cross_entropy(x, LABELS, weights, smoothing), expected, x)


def test_smoothing_is_a_mixture_with_the_uniform_distribution():
    x = logits()
    target = 0.9 * F.one_hot(LABELS[:5], 4).double() + 0.1 / 4
    expected = -(target * x[:5].log_softmax(-1)).sum()
    same_with_gradients(cross_entropy(x, LABELS, label_smoothing=0.1), expected, x)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_focal_loss_follows_its_formula(gamma, weights):
    x = logits()
    p = x.softmax(-1)[torch.arange(5), LABELS[:5]]
    alpha = torch.ones(5).double() if weights is None else weights[LABELS[:5]]
    expected = -(alpha * (1 - p) ** gamma * p.log()).sum()
    same_with_gradients(cross_entropy(x, LABELS, weights, focal_gamma=gamma), expected, x)


def test_focal_loss_of_a_certain_answer_has_a_gradient():
    x = torch.tensor([[200.0, 0.0], [0.0, 200.0]], requires_grad=True)  # p is 1, and 0
    loss = cross_entropy(x, torch.tensor([0, 0]), focal_gamma=0.5)
    loss.backward()
    assert loss.item() == pytest.approx(200)
    assert x.grad.isfinite().all()
    assert x.grad[0].abs().max() < 1e-6


@pytest.mark.parametrize("labels", [[0, 0, 0, 1], [2, 0, 1, 1, 1, 1, 2]])
def test_balanced_weights_are_those_of_scikit_learn(labels):
    classes = np.unique(labels)
    expected = compute_class_weight("balanced", classes=classes, y=labels)
    found = balanced_weights([labels.count(c) for c in classes])
    assert found == pytest.approx(list(expected))
    assert sum(found[label] for label in labels) == pytest.approx(len(labels))


def test_symmetric_kl_is_the_mean_of_both_ways():
    x, y = logits(0), logits(1)
    p, q = x.log_softmax(-1), y.log_softmax(-1)
    both = [F.kl_div(a, b, reduction="sum", log_target=True) for a, b in ((p, q), (q, p))]
    same_with_gradients(symmetric_kl(x, y), sum(both) / 2, x, y)
    assert symmetric_kl(x, x).item() == 0


# --- what a task does with them ---


def fitted(tmp_path, tokenizer, labels="aaabc", **chosen):
    rows = table(tmp_path, ["text", "label"], [("a film", label) for label in labels])
    task = TextClassification(TaskSettings())
    task.train_with(LossOptions(**chosen))
    task.fit(rows, toy_config("bert", tokenizer))
    return task


def test_a_task_trains_with_them_and_reports_the_plain_loss(tmp_path, tokenizer):
    task = fitted(
        tmp_path, tokenizer, class_weights="balanced", label_smoothing=0.1, focal_gamma=2.0
    )
    x, labels = torch.randn(5, 3), torch.tensor([0, 0, 0, 1, 2])
    weights = torch.tensor([5 / 9, 5 / 3, 5 / 3])
    loss, count = task.training_loss(x, labels)
    assert count == 5  # examples, not weights
    torch.testing.assert_close(loss, cross_entropy(x, labels, weights, 0.1, 2.0))
    torch.testing.assert_close(
        task.loss(x, labels)[0], torch_cross_entropy(x, labels, reduction="sum")
    )


def test_without_options_a_loss_of_ones_own_is_trained_with(tmp_path, tokenizer):
    task = fitted(tmp_path, tokenizer)
    task.loss = lambda outputs, labels: ("mine", 1)
    assert task.training_loss(None, None) == ("mine", 1)


def test_weights_are_one_a_class(tmp_path, tokenizer):
    assert fitted(tmp_path, tokenizer, class_weights=[1, 2, 3]).class_weights == [1, 2, 3]
    with pytest.raises(UserError, match=r"loss\.class_weights: 2 weights for 3 classes \('a'"):
        fitted(tmp_path, tokenizer, class_weights=[1.0, 2.0])


@pytest.mark.parametrize("name", ["label_smoothing", "focal_gamma", "class_weights"])
def test_what_a_task_has_no_use_for_is_refused(name):
    chosen = LossOptions(**{name: "balanced" if name == "class_weights" else 0.1})
    with pytest.raises(UserError, match=rf"loss\.{name}: the task regression has no use for it"):
        Regression(TaskSettings()).train_with(chosen)


@pytest.mark.parametrize("kind", [TextClassification, Regression])
def test_r_drop_is_the_mean_of_two_passes_and_their_divergence(kind, tmp_path, tokenizer):
    pair = kind is Regression
    header = ["sentence1", "sentence2", "label"] if pair else ["text", "label"]
    rows = table(tmp_path, header, (number_rows if pair else toy_rows)(8, 0))
    config = toy_config("bert", tokenizer, hidden_dropout=0.2)
    task = kind(TaskSettings())
    task.train_with(LossOptions(r_drop=3.0))
    task.fit(rows, config)
    torch.manual_seed(0)
    model = TaskModel(config, task.build_head(config, 0.1))
    module = FineTuningModule(model, task, OptimizerOptions(), Budget("steps", 1), 8)
    batch = task.collate(task.examples(rows, tokenizer))
    torch.manual_seed(5)
    loss, count = module.sums(batch)
    torch.manual_seed(5)
    first, second = model(batch), model(batch)
    assert not torch.equal(first, second)
    plain = (task.loss(first, batch.labels)[0] + task.loss(second, batch.labels)[0]) / 2
    if pair:
        apart = ((first - second) / task.deviation).square().sum()
    else:
        p, q = first.log_softmax(-1), second.log_softmax(-1)
        apart = 0.5 * ((p.exp() * (p - q)).sum() + (q.exp() * (q - p)).sum())
    assert count == 8
    same_with_gradients(loss, plain + 3.0 * apart, *model.parameters())
    assert model.eval()(ragged([[2, 5, 3]])).shape[0] == 1


# --- in a run ---

ALL = "--loss.class_weights balanced --loss.label_smoothing 0.1 --loss.focal_gamma 1"


@pytest.fixture(scope="module")
def skewed(tmp_path_factory, toy):
    """Three of four are positive."""
    rows = [row for place, row in enumerate(toy_rows(200, 1)) if row[1] == "pos" or place % 6 == 1]
    train = tmp_path_factory.mktemp("skewed") / "train.csv"
    return toy | {"train": write_csv(train, ["text", "label"], rows)}


def test_accumulation_changes_no_loss_with_weights(skewed, pretrained, tmp_path):
    curves = []
    for accumulation in (1, 4):
        more = f"--model.dropout 0 --trainer.accumulate_grad_batches {accumulation} {ALL}"
        run_dir = tmp_path / str(accumulation)
        run(skewed, pretrained["bert"], run_dir, f"{more} --trainer.max_steps 6")
        curves.append(losses(run_dir))
    assert curves[1] == pytest.approx(curves[0], abs=1e-4)


def test_a_run_with_everything_learns_and_validates_plainly(skewed, pretrained, tmp_path, capsys):
    run_dir = tmp_path / "run"
    more = f"--trainer.max_epochs 8 {ALL} --loss.r_drop 1"
    assert main(["finetune", *words(skewed, pretrained["modern"], run_dir, more)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["macro_f1"] > 0.9
    command = ["evaluate", "--model", str(run_dir / "model"), "--data", str(skewed["validation"])]
    assert main(command) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["loss"] == pytest.approx(found["loss"])
    assert validations(run_dir, "loss")[found["step"]] == pytest.approx(found["loss"], rel=1e-4)


def test_a_list_of_weights_comes_from_the_command_line(toy):
    found = options(toy, "m", "r", "--loss.class_weights [1,2.5]")["loss"]
    assert LossOptions(**found).class_weights == [1, 2.5]


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ("--loss.label_smoothing 1", r"loss\.label_smoothing: 1\.0 must lie in \[0, 1\)"),
        ("--loss.focal_gamma -1", r"loss\.focal_gamma: -1\.0 must be at least 0"),
        ("--loss.r_drop -1", r"loss\.r_drop: -1\.0 must be at least 0"),
        ("--loss.class_weights [1,0]", r"loss\.class_weights: 0\.0 must be above 0"),
        ("--loss.class_weights [1,2,3]", "3 weights for 2 classes"),
        ("--loss.class_weights balancd", "--loss.class_weights: expected one of none, balanced"),
        ("--loss.r_drop 1 --model.dropout 0", r"loss\.r_drop: without dropout"),
        ("--loss.smoothing 1", "did you mean --loss.label_smoothing"),
    ],
)
def test_mistakes_are_one_line(toy, pretrained, tmp_path, more, named):
    with pytest.raises(UserError, match=named) as caught:
        run(toy, pretrained["modern"], tmp_path / "run", f"--trainer.max_steps 1 {more}")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_no_weight_is_infinite():
    with pytest.raises(UserError, match="inf must be above 0, and finite"):
        LossOptions(class_weights=[1.0, math.inf])
