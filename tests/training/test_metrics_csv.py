"""metrics.csv: exact, there row by row, and whole again after a kill at any byte."""

import math
import os
import pickle

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_only

from mlm.errors import UserError
from mlm.training.metrics_csv import MetricsCSV, read_metrics


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.csv"


@pytest.fixture
def earlier(path):
    """The file of a run that validated every second step, up to step 4."""
    log = MetricsCSV(path)
    for step in range(1, 5):
        log.log_metrics({"train/loss": 1 / step}, step)
        if step % 2 == 0:
            log.log_metrics({"val/loss": step / 7}, step)
    return path


def alone(path):
    return list(path.parent.iterdir()) == [path]


def test_numbers_come_back_exactly(path):
    values = [0.1 + 0.2, 5e-324, 1.7976931348623157e308, -0.0, math.inf, 3, 2**70, True]
    values += [np.float32(0.1), torch.tensor(0.1), torch.tensor(7)]
    log = MetricsCSV(path)
    for step, value in enumerate([*values, math.nan]):
        log.log_metrics({"x": value}, step)
    found = read_metrics(path)
    *numbers, last = found["x"]
    assert numbers == values
    assert [type(n) for n in numbers] == [
        type(v.item() if hasattr(v, "item") else int(v) if v is True else v) for v in values
    ]
    assert math.copysign(1, numbers[3]) == -1
    assert math.isnan(last)
    assert found["step"] == list(range(12))


def test_a_row_is_there_when_logged_and_the_file_not_before(path):
    log = MetricsCSV(path)
    assert not path.exists()
    log.log_metrics({"train/loss": 2.5, "epoch": 0}, 10)
    assert path.read_text() == "step,train/loss\n10,2.5\n"
    log.log_metrics({"epoch": 1}, 11)
    log.log_metrics({"train/loss": 2, "step": 12}, 12)
    assert path.read_text() == "step,train/loss\n10,2.5\n12,2\n"


def test_a_new_column_widens_the_rows_before(path):
    log = MetricsCSV(path)
    log.log_metrics({"b": 1.0}, 1)
    log.log_metrics({"a": 2.0, "b": 3.0}, 2)
    log.log_metrics({"c": 4.0}, 2)
    assert path.read_text() == "step,b,a,c\n1,1.0,,\n2,3.0,2.0,\n2,,,4.0\n"
    assert read_metrics(path)["a"] == [None, 2.0, None]
    assert alone(path)


def test_names_may_hold_anything(path):
    names = ['f1/"so, so"', "f1/two\nlines", "f1/größer ✓"]
    log = MetricsCSV(path)
    for step, name in enumerate(names):
        log.log_metrics({name: 0.5}, step)
    assert list(read_metrics(path)) == ["step", *names]
    MetricsCSV(path, resumed_step=1).log_metrics({names[2]: 1}, 2)
    assert read_metrics(path)[names[2]] == [None, None, 1]


def test_resume_cuts_what_the_checkpoint_has_not_seen(earlier):
    with earlier.open("a") as file:
        file.write("5,0.2")  # torn: perhaps it was 0.25
    MetricsCSV(earlier, resumed_step=2).log_metrics({"train/loss": 9.0}, 3)
    assert earlier.read_text() == (
        f"step,train/loss,val/loss\n1,1.0,\n2,0.5,\n2,,{2 / 7!r}\n3,9.0,\n"
    )
    assert alone(earlier)


def test_killed_at_any_byte_it_goes_on(earlier):
    whole = earlier.read_bytes()
    rows = list(zip(*read_metrics(earlier).values(), strict=True))
    for length in range(len(whole) + 1):
        earlier.write_bytes(whole[:length])
        log = MetricsCSV(earlier, resumed_step=4)
        log.log_metrics({"train/loss": 0.125, "val/loss": 0.25}, 5)
        found = list(zip(*read_metrics(earlier).values(), strict=True))
        assert found[-1] == (5, 0.125, 0.25)
        assert found[:-1] == rows[: len(found) - 1]
        assert len(found) - 1 == max(whole[:length].count(b"\n") - 1, 0)


def test_killed_while_it_widens_the_old_file_stands(earlier, monkeypatch):
    before = earlier.read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    log = MetricsCSV(earlier, resumed_step=4)
    monkeypatch.setattr(type(earlier), "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        log.log_metrics({"new": 1.0}, 5)
    assert earlier.read_bytes() == before
    assert alone(earlier)


def test_a_resumed_run_without_the_file_begins_one(path):
    MetricsCSV(path, resumed_step=80).log_metrics({"x": 1}, 81)
    assert read_metrics(path) == {"step": [81], "x": [1]}


def test_a_new_run_never_touches_the_file_of_another(earlier):
    before = earlier.read_bytes()
    with pytest.raises(UserError, match=r"metrics\.csv: holds the metrics of another run"):
        MetricsCSV(earlier)
    assert earlier.read_bytes() == before


@pytest.mark.parametrize("line", ["3,0.3", "3,x,", "x,1,2", "", "3,1,2,3", "\x00\x00\x00,1,"])
def test_damage_in_the_middle_is_named(earlier, line):
    lines = earlier.read_text().splitlines()
    earlier.write_text("\n".join([*lines[:2], line, *lines[2:]]) + "\n")
    before = earlier.read_bytes()
    with pytest.raises(UserError, match="line 3 is damaged"):
        MetricsCSV(earlier, resumed_step=4)
    assert earlier.read_bytes() == before


def test_what_is_no_metrics_file(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_metrics(tmp_path / "none.csv")
    (tmp_path / "other.csv").write_text("text,label\nfine,1\n")
    with pytest.raises(UserError, match="first column is not `step`"):
        read_metrics(tmp_path / "other.csv")


def test_a_mistaken_call_is_an_error(path):
    log = MetricsCSV(path)
    with pytest.raises(TypeError, match="a metric is a number"):
        log.log_metrics({"x": "high"}, 1)
    with pytest.raises(ValueError, match="with their step"):
        log.log_metrics({"x": 1.0})
    assert not path.exists()


def test_a_full_disk_is_not_silent(path, monkeypatch):
    log = MetricsCSV(path)
    log.log_metrics({"x": 1.0}, 1)
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:-2]))
    with pytest.raises(OSError, match="the disk is full"):
        log.log_metrics({"x": 2.0}, 2)


def test_only_rank_zero_writes(earlier, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    before = earlier.read_bytes()
    MetricsCSV(earlier).log_metrics({"train/loss": 1.0}, 9)
    MetricsCSV(earlier, resumed_step=1).log_metrics({"train/loss": 1.0}, 9)
    assert earlier.read_bytes() == before


def test_it_travels_to_another_process(earlier):
    log = pickle.loads(pickle.dumps(MetricsCSV(earlier, resumed_step=4)))
    log.log_metrics({"val/loss": 1.0}, 5)
    assert read_metrics(earlier)["val/loss"][-1] == 1.0


class Line(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, index):
        loss = self.layer(batch).mean()
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, index):
        self.log("val/loss", self.layer(batch).mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_a_trainer_logs_to_two(tmp_path):
    data = torch.utils.data.DataLoader(torch.ones(8, 2), batch_size=2)
    logs = [MetricsCSV(tmp_path / name / "metrics.csv") for name in "ab"]
    trainer = pl.Trainer(
        logger=logs,
        max_epochs=1,
        accelerator="cpu",
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(Line(), data, data)
    assert trainer.log_dir == str(tmp_path / "a")
    found = read_metrics(tmp_path / "a" / "metrics.csv")
    assert list(found) == ["step", "train/loss", "val/loss"]
    assert sum(v is not None for v in found["train/loss"]) == 4
    assert found["val/loss"][-1] == trainer.callback_metrics["val/loss"].item()
    assert logs[0].path.read_bytes() == logs[1].path.read_bytes()
