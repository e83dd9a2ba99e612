"""Several runs: what is said of them together, those that collapsed, and runs beside each other."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from test_finetuning import losses, options, run, same_weights, words
from toy import toy_rows, write_csv

from mlm.errors import RunError, UserError
from tasks import seeds
from tasks.question_answering import QuestionAnswering
from tasks.regression import Regression
from tasks.seeds import best_of, count_workers, spread, train_in_processes
from tasks.settings import TaskSettings
from tasks.text_classification import TextClassification
from tasks.token_classification import TokenClassification

# --- what collapsed ---


@pytest.mark.parametrize(
    ("kind", "decisions", "targets", "expected"),
    [
        (TextClassification, [1, 1, 1], [0, 1, 1], True),
        (TextClassification, [1, 0, 1], [0, 1, 1], False),
        (TextClassification, [1, 1, 1], [1, 1, 1], False),  # and all right
        (Regression, [2.0, 2.001, 2.0], [1.0, 2.0, 3.0], True),
        (Regression, [2.0, 2.1, 2.0], [1.0, 2.0, 3.0], False),
        (TokenClassification, [np.array([0, 0]), np.array([0])], [np.array([0, 1])], True),
        (TokenClassification, [np.array([0, 1]), np.array([0])], [np.array([0, 1])], False),
        (QuestionAnswering, ["", ""], [[], [(3, "Paris")]], True),
        (QuestionAnswering, ["", "Paris"], [[], [(3, "Paris")]], False),
    ],
)
def test_one_answer_for_all_rows_is_a_collapse(kind, decisions, targets, expected):
    assert kind(TaskSettings()).collapsed(decisions, targets) is expected


@pytest.fixture
def lopsided(tmp_path):
    """Options of runs that learn nothing: nearly all is of one class."""
    rows = [(text, "pos" if i < 38 else "neg") for i, (text, _) in enumerate(toy_rows(40, 1))]
    train = write_csv(tmp_path / "train.csv", ["text", "label"], rows)
    return f"--train {train} --trainer.max_steps 12 --optimizer.lr 0.01"


def test_collapsed_runs_are_named_and_count(lopsided, toy, pretrained, tmp_path, capsys):
    found = run(toy, pretrained["modern"], tmp_path / "run", f"{lopsided} --seeds 2")
    assert found["collapsed"] == [0, 1]
    assert found["accuracy"]["mean"] == pytest.approx(0.5)
    lines = [line for line in capsys.readouterr().err.splitlines() if "collapsed" in line]
    assert len(lines) == 1
    assert "2 of 2 runs, seeds 0, 1" in lines[0]
    one = json.loads((tmp_path / "run" / "seed_0" / "results.json").read_text())
    assert one["collapsed"] is True


def test_a_single_run_that_collapsed_is_told_too(lopsided, toy, pretrained, tmp_path, capsys):
    assert run(toy, pretrained["modern"], tmp_path / "run", lopsided)["collapsed"]
    lines = [line for line in capsys.readouterr().err.splitlines() if "collapsed" in line]
    assert len(lines) == 1
    assert "one answer for all rows: try another --seed" in lines[0]


def test_words_that_were_decided_come_in_their_order(tokenizer):
    task = TokenClassification(TaskSettings(labels=("O", "B-PER"), max_length=8, stride=0))
    inputs = [tuple(["film"] * 9), ("house",)]
    examples = task.encode(inputs, tokenizer)
    assert len(examples) > 2  # windows
    outputs = [torch.eye(2)[[i % 2] * len(e.input_ids)] for i, e in enumerate(examples)]
    first, last = task.decisions(inputs, examples, outputs)
    expected = np.full(9, -1)
    for i, example in enumerate(examples[:-1]):
        expected[example.places[example.places >= 0]] = i % 2
    assert first.tolist() == expected.tolist()
    assert last.tolist() == [(len(examples) - 1) % 2]


# --- what is said of several ---


def test_the_spread_is_numpys_and_one_value_has_none():
    values = [0.5, 0.9, 0.7, 0.1]
    found = spread(values)
    assert found["mean"] == pytest.approx(np.mean(values))
    assert found["std"] == pytest.approx(np.std(values, ddof=1))
    assert found["median"] == pytest.approx(0.6)
    assert spread([3.0])["std"] == 0.0


def test_what_is_not_a_number_is_never_best():
    nan = math.nan
    assert best_of([{"x": nan}, {"x": 3.0}, {"x": 2.0}], "x", higher_is_better=False) == 2
    assert best_of([{"x": nan}, {"x": nan}], "x", higher_is_better=True) == 0


# --- what is kept of the best ---


def test_runs_that_were_moved_are_taken_from_where_they_are(toy, pretrained, tmp_path, capsys):
    more = "--seeds 2 --trainer.max_steps 2"
    run(toy, pretrained["bert"], tmp_path / "first", more)
    moved = (tmp_path / "first").rename(tmp_path / "moved")
    shutil.rmtree(moved / "model")
    found = run(toy, pretrained["bert"], moved, f"{more} --resume auto --report true")
    best = moved / f"seed_{found['best_seed']}"
    assert found["model"] == str(moved / "model")
    assert same_weights(moved / "model", best / "model")
    assert f"{best / 'report'}: is not there" in capsys.readouterr().err  # nobody wanted one then
    shutil.rmtree(best / "model")
    with pytest.raises(UserError, match=f"{best / 'model'}: is not there any more; take {best}"):
        run(toy, pretrained["bert"], moved, f"{more} --resume auto")


def test_what_stands_where_the_best_goes_is_named_at_once(toy, pretrained, tmp_path):
    (tmp_path / "run" / "model" / "onnx").mkdir(parents=True)
    with pytest.raises(UserError, match=r"run/model: holds something other .* \(onnx\)"):
        run(toy, pretrained["bert"], tmp_path / "run", "--seeds 2 --resume auto")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["model"]


# --- beside each other ---


def test_as_many_at_once_as_there_are_devices(toy, pretrained, tmp_path, monkeypatch):
    def workers(more, jobs=4):
        return count_workers(options(toy, pretrained["bert"], tmp_path / "run", more), jobs)

    assert workers("") == 1
    assert workers("--parallel_seeds 3") == 3
    assert workers("--parallel_seeds 9") == 4
    monkeypatch.setattr(seeds, "resolve_device", lambda accelerator: "cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert workers("") == 3
    assert workers("", jobs=1) == 1
    assert workers("--trainer.devices 2") == 1  # refused as ever, once it trains
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    shares = [seeds._share(slot, 4)["CUDA_VISIBLE_DEVICES"] for slot in range(4)]
    assert shares == ["0", "1", "2", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6,7")
    assert seeds._share(1, 3)["CUDA_VISIBLE_DEVICES"] == "6"
    with pytest.raises(UserError, match="have one device each"):
        workers("--parallel_seeds 2 --trainer.devices 2")
    with pytest.raises(UserError, match="must lie between 1 and"):
        workers("--parallel_seeds 0")


@pytest.fixture
def one_thread(monkeypatch):
    """Sums over another number of threads end in another last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(seeds, "_share", lambda slot, workers: {"OMP_NUM_THREADS": "1"})
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_runs_beside_each_other_are_those_in_turn(toy, pretrained, tmp_path, capsys):
    more = "--seeds 2 --trainer.max_steps 4"
    in_turn = run(toy, pretrained["bert"], tmp_path / "turn", more)
    beside = run(toy, pretrained["bert"], tmp_path / "beside", f"{more} --parallel_seeds 2")
    assert "seed_1: " in capsys.readouterr().err
    assert beside["accuracy"] == in_turn["accuracy"]
    assert beside["seeds"] == [0, 1]
    for seed in ("seed_0", "seed_1"):
        assert losses(tmp_path / "beside" / seed) == losses(tmp_path / "turn" / seed)
    best = f"seed_{beside['best_seed']}"
    assert same_weights(tmp_path / "beside/model", tmp_path / "turn" / best / "model")
    # Finished ones are left as they are.
    again = f"{more} --parallel_seeds 2 --resume auto"
    assert run(toy, pretrained["bert"], tmp_path / "beside", again) == beside


def test_one_that_cannot_run_is_named(toy, pretrained, tmp_path, monkeypatch):
    more = "--trainer.max_steps 2"
    job = options(toy, pretrained["bert"], tmp_path / "seed_0", more)
    broken = {**job, "train": "no/such.csv"}
    with pytest.raises(UserError, match=r"seed_0: no/such\.csv: no such file"):
        train_in_processes([broken], 1)
    failure = seeds._failure(1, "run/seed_3: the machine is gone")
    assert isinstance(failure, RunError)
    assert "seed_3" in str(failure)


def test_a_signal_reaches_all_and_they_can_go_on(toy, pretrained, tmp_path):
    run_dir = tmp_path / "run"
    more = "--seeds 2 --parallel_seeds 2 --trainer.max_steps 100000"
    parent = subprocess.Popen(
        [sys.executable, "-m", "mlm", "finetune", *words(toy, pretrained["bert"], run_dir, more)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    ready = [run_dir / seed / "metrics.csv" for seed in ("seed_0", "seed_1")]
    end = time.monotonic() + 60
    while not all(path.is_file() for path in ready) and time.monotonic() < end:
        time.sleep(0.1)
    parent.send_signal(signal.SIGTERM)
    _, err = parent.communicate(timeout=60)
    assert parent.returncode == 143, err
    for path in ready:
        assert len(list((path.parent / "checkpoints").iterdir())) == 1
        assert not (path.parent / "results.json").exists()


@pytest.mark.parametrize("number", [0, -1, 2**31])
def test_a_number_of_seeds_that_never_ends_is_refused(number, toy, pretrained, tmp_path):
    with pytest.raises(UserError, match=f"--seeds {number}: give 1 or more, and 1000 at most"):
        run(toy, pretrained["bert"], tmp_path / "run", f"--seeds={number}")
    assert not (tmp_path / "run").exists()
