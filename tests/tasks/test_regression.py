"""Numbers: targets, what is wrong with them, units, and metrics against SciPy's."""

import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from toy import number_rows, table, toy_config

from mlm.batch import ragged
from mlm.errors import UserError
from tasks.heads import TaskModel
from tasks.regression import Regression
from tasks.settings import TaskSettings

HEADER = ["sentence1", "sentence2", "label"]


@pytest.fixture(params=["bert", "modern"])
def config(request, tokenizer):
    return toy_config(request.param, tokenizer)


def fitted(rows, config):
    task = Regression(TaskSettings())
    task.fit(rows, config)
    return task


@pytest.mark.parametrize("value", ["", "good", "nan", "inf", "-inf", "1,5"])
def test_what_is_no_number_is_named_with_its_row(tmp_path, value):
    rows = table(tmp_path, HEADER, [("a", "b", 1), ("a", "b", value)])
    with pytest.raises(UserError, match=r"table\.csv: row 2: column 'label': .* is not a number"):
        Regression(TaskSettings()).targets(rows)


def test_numbers_may_stand_as_text(tmp_path):
    rows = table(tmp_path, HEADER, [("a", "b", "1.5"), ("a", "b", "-2"), ("a", "b", "1e3")])
    assert Regression(TaskSettings()).targets(rows) == [1.5, -2.0, 1000.0]


def test_one_number_only_cannot_be_learnt(tmp_path, tokenizer):
    rows = table(tmp_path, HEADER, [("a", "b", 3), ("c", "d", 3.0)])
    with pytest.raises(UserError, match="holds one number only"):
        fitted(rows, toy_config("bert", tokenizer))


def test_a_label_set_makes_no_sense():
    with pytest.raises(UserError, match="no label set"):
        Regression(TaskSettings(labels=("a", "b")))


def test_the_loss_is_in_units_of_the_variance(tmp_path, config):
    rows = table(tmp_path, HEADER, number_rows(100, 0))
    task = fitted(rows, config)
    targets = torch.tensor(task.targets(rows))
    mean = torch.full((100, 1), targets.mean().item())
    loss, count = task.loss(mean, targets)
    assert count == 100
    assert loss.item() / count == pytest.approx(1.0, rel=1e-4)


def test_it_starts_at_the_mean_and_a_folder_gives_the_number_itself(tmp_path, config):
    task = fitted(table(tmp_path, HEADER, number_rows(100, 0)), config)
    model = TaskModel(config, task.build_head(config)).eval()
    batch = ragged([[2, 5, 6, 3], [2, 7, 3]])
    outputs = model(batch)
    assert (outputs - task.mean).abs().max() < task.deviation

    restored = Regression.restore(task.info(), ["LABEL_0"])
    assert restored.deviation == task.deviation
    plain = TaskModel(config, restored.build_head(config)).eval()
    plain.load_state_dict(task.saved_state(model.state_dict()))
    torch.testing.assert_close(plain(batch), outputs, rtol=1e-6, atol=1e-4)


def test_saving_and_going_on_changes_no_bit(tmp_path, config):
    task = fitted(table(tmp_path, HEADER, number_rows(100, 0)), config)
    state = TaskModel(config, task.build_head(config)).state_dict()
    again = task.training_state(task.saved_state(state))
    assert all(torch.equal(again[name], state[name]) for name in state)


def test_metrics_equal_those_of_scipy(config):
    task = Regression(TaskSettings())
    generator = torch.Generator().manual_seed(0)
    labels = torch.randn(200, generator=generator).round(decimals=1)  # with ties
    outputs = (labels + torch.randn(200, generator=generator))[:, None]
    metrics = task.metrics()
    for part in torch.arange(200).split(64):
        metrics.update(task.decide(outputs[part]), labels[part])
    values = {name: value.item() for name, value in metrics.compute().items()}
    found = outputs[:, 0].numpy()
    assert values["pearson"] == pytest.approx(pearsonr(found, labels.numpy())[0], abs=1e-5)
    assert values["spearman"] == pytest.approx(spearmanr(found, labels.numpy())[0], abs=1e-5)
    assert values["mse"] == pytest.approx(((found - labels.numpy()) ** 2).mean(), rel=1e-5)
