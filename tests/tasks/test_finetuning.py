"""Runs in miniature: they learn, keep the best, resume, and do not depend on how batches divide."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from toy import toy_rows, write_csv, write_pretrained

from mlm.arguments import CommandParser, settings
from mlm.checkpoint import read_folder
from mlm.cli import main
from mlm.errors import RunError, UserError
from mlm.training.metrics_csv import read_metrics
from tasks import Classifier
from tasks.commands.finetune import add_arguments
from tasks.finetuning import finetune
from tasks.inference import Predictor
from tasks.module import FineTuningModule, KeepBest

SMALL = (
    "--trainer.accelerator cpu --trainer.precision fp32 --trainer.log_every_n_steps 1 "
    "--logging.wandb off --optimizer.lr 0.003 --report false"
)


def words(toy, model, run_dir, more=""):
    return (
        f"--model {model} --train {toy['train']} --validation {toy['validation']} "
        f"--run_dir {run_dir} {SMALL} {more}"
    ).split()


def options(*args):
    parser = CommandParser("finetune", "")
    add_arguments(parser)
    return settings(parser.parse(words(*args)))


def run(*args):
    return finetune(options(*args))


def losses(run_dir: Path) -> dict[int, float]:
    rows = read_metrics(run_dir / "metrics.csv")
    pairs = zip(rows["step"], rows["train/loss"], strict=True)
    return {int(step): loss for step, loss in pairs if loss is not None}


def validations(run_dir: Path, metric: str) -> dict[int, float]:
    rows = read_metrics(run_dir / "metrics.csv")
    pairs = zip(rows["step"], rows[f"val/{metric}"], strict=True)
    return {int(step): value for step, value in pairs if value is not None}


def same_weights(one: Path, other: Path) -> bool:
    a, b = read_folder(one).state, read_folder(other).state
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- the whole path ---


@pytest.mark.parametrize("family", ["bert", "modern"])
def test_finetune_evaluate_predict(family, toy, pretrained, tmp_path, capsys):
    run_dir = tmp_path / "run"
    command = words(toy, pretrained[family], run_dir, "--trainer.max_epochs 12")
    assert main(["finetune", *command]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["accuracy"] > 0.9
    assert "true \\ predicted" in err
    assert "loads in transformers as" in err
    names = {"checkpoints", "config.yaml", "confusion_matrix.csv", "metrics.csv", "model"}
    assert {p.name for p in run_dir.iterdir()} == names | {"results.json"}
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert config["data"]["labels"] == ["neg", "pos"]
    assert config["data"]["text_column"] == ["text"]
    assert config["model"]["pooling"] == {"bert": "cls", "modern": "mean"}[family]
    info = read_folder(run_dir / "model").info
    assert info["task"] == "text_classification"
    assert info["text_column"] == ["text"]

    model, test = str(run_dir / "model"), str(toy["test"])
    assert main(["evaluate", "--model", model, "--data", test]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert set(scores) == {"loss", "accuracy", "macro_f1", "mcc", "f1"}
    assert scores["accuracy"] > 0.9

    output = tmp_path / "answers.jsonl"
    assert main(["predict", "--model", model, "--input", test, "--output", str(output)]) == 0
    answers = [json.loads(line) for line in output.read_text().splitlines()]
    rows = toy_rows(80, 3)
    assert [a["text"] for a in answers] == [text for text, _ in rows]
    right = np.mean([a["label"] == label for a, (_, label) in zip(answers, rows, strict=True)])
    assert right == pytest.approx(scores["accuracy"], abs=0.02)

    classifier = Classifier.from_pretrained(model)
    (one,) = classifier(["a gripping, quietly funny film"])
    assert one["label"] == "pos"
    assert set(one) == {"text", "label", "score", "scores"}


def test_a_fine_tuned_folder_answers_the_same_in_transformers(toy, pretrained, tmp_path):
    transformers = pytest.importorskip("transformers")
    texts = [text for text, _ in toy_rows(16, 9)] + ["", "film " * 100]
    for family, model in pretrained.items():
        run_dir = tmp_path / family
        run(toy, model, run_dir, "--trainer.max_steps 5")
        tokenizer = transformers.AutoTokenizer.from_pretrained(run_dir / "model")
        theirs = transformers.AutoModelForSequenceClassification.from_pretrained(run_dir / "model")
        inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            expected = theirs.eval()(**inputs).logits.softmax(-1)
        answers = Classifier.from_pretrained(run_dir / "model", precision="fp32")(texts)
        found = torch.tensor([list(answer["scores"].values()) for answer in answers])
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
        assert theirs.config.id2label == {0: "neg", 1: "pos"}


def test_regression_of_pairs(numbers, pretrained, tmp_path, capsys):
    more = "--task regression --trainer.max_epochs 6 --optimizer.lr 0.01"
    found = run(numbers, pretrained["modern"], tmp_path / "run", more)
    assert found["pearson"] > 0.9
    assert found["loss"] == pytest.approx(found["mse"] / 17.2**2, rel=0.1)
    capsys.readouterr()
    command = ["predict", "--model", str(tmp_path / "run" / "model"), "--text"]
    assert main([*command, "funny " * 5, "film", "the house", "film"]) == 0
    high, low = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert high["text"] == ["funny " * 5, "film"]
    assert 990 < low["score"] < high["score"] < 1070


def test_pretraining_is_left_out_on_request(toy, tmp_path, tokenizer):
    model = write_pretrained(tmp_path / "model", "modern", tokenizer)
    given = read_folder(model).state["encoder.layers.0.mixer.qkv.weight"]
    for random, more in ((False, ""), (True, "--model.random true")):
        run_dir = tmp_path / str(random)
        run(toy, model, run_dir, f"--trainer.max_steps 1 --optimizer.lr 1e-8 {more}")
        used = read_folder(run_dir / "model").state["encoder.layers.0.mixer.qkv.weight"]
        assert torch.allclose(used, given, atol=1e-6) is not random


def test_tables_go_to_the_loggers(toy, pretrained, tmp_path, monkeypatch):
    logged = {}

    def log_table(loggers, name, columns, rows, step):
        logged[name] = [list(columns), *map(list, rows)]

    monkeypatch.setattr("tasks.scoring.log_table", log_table)
    run(toy, pretrained["bert"], tmp_path / "run", "--trainer.max_steps 2")
    assert logged["val/confusion_matrix"][0] == ["true \\ predicted", "neg", "pos"]
    header, *rows = logged["val/predictions"]
    assert header == ["text", "label", "score", "scores", "expected"]
    assert [(row[0], row[4]) for row in rows] == toy_rows(80, 2)


# --- the loss is a sum over the global batch ---


def test_accumulation_changes_no_loss(toy, pretrained, tmp_path):
    curves = []
    for accumulation in (1, 2, 4):
        run_dir = tmp_path / str(accumulation)
        more = f"--model.dropout 0 --trainer.accumulate_grad_batches {accumulation}"
        run(toy, pretrained["bert"], run_dir, f"{more} --trainer.max_steps 10")
        curves.append(losses(run_dir))
    assert list(curves[0]) == list(range(1, 11))
    for other in curves[1:]:
        assert other == pytest.approx(curves[0], abs=1e-4)


def test_workers_change_nothing(toy, pretrained, tmp_path):
    for workers in (0, 2):
        more = f"--data.num_workers {workers} --trainer.max_steps 6"
        run(toy, pretrained["modern"], tmp_path / str(workers), more)
    assert losses(tmp_path / "0") == losses(tmp_path / "2")
    assert same_weights(tmp_path / "0" / "model", tmp_path / "2" / "model")


@pytest.mark.slow
def test_two_processes_change_no_loss(toy, pretrained, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    common = "--model.dropout 0 --trainer.max_steps 10 --trainer.val_check_interval 5"
    for run_dir, more in ((one, ""), (two, "--trainer.devices 2 --trainer.strategy ddp")):
        command = words(toy, pretrained["modern"], run_dir, f"{common} {more}")
        done = subprocess.run(
            [sys.executable, "-m", "mlm", "finetune", *command],
            check=True, timeout=300, capture_output=True, text=True,
        )  # fmt: skip
        assert len(done.stdout.splitlines()) == 1
    assert losses(two) == pytest.approx(losses(one), abs=1e-4)
    for metric in ("loss", "accuracy", "macro_f1"):
        found = validations(two, metric)
        assert found == pytest.approx(validations(one, metric), abs=1e-4)


# --- the best state, early stopping ---


class Best:
    """`KeepBest` fed with values by hand."""

    def __init__(self, **options):
        self.saved = []
        self.trainer = SimpleNamespace(
            callback_metrics={}, sanity_checking=False, should_stop=False,
            global_step=0, is_global_zero=True,
            strategy=SimpleNamespace(lightning_module_state_dict=lambda: {"model.a": 1, "b": 2}),
        )  # fmt: skip
        self.callback = KeepBest(self.save, "val/x", **options)

    def save(self, weights):
        assert list(weights) == ["a"]
        self.saved.append(self.trainer.global_step)

    def see(self, *values):
        for value in values:
            if self.trainer.should_stop:
                break
            self.trainer.global_step += 10
            self.trainer.callback_metrics["val/x"] = torch.tensor(value)
            self.callback.on_validation_end(self.trainer, None)
        return self


def test_the_first_of_equal_states_is_kept():
    best = Best().see(0.5, 0.7, 0.7, 0.6)
    assert best.saved == [10, 20]
    assert (best.callback.best_step, best.callback.best) == (20, pytest.approx(0.7))
    assert not best.trainer.should_stop


def test_less_may_be_better():
    assert Best(higher_is_better=False).see(0.5, 0.7, 0.4).saved == [10, 30]


def test_patience_counts_validations_in_a_row():
    best = Best(patience=2).see(0.5, 0.4, 0.6, 0.6, 0.5, 0.9)
    assert best.saved == [10, 30]
    assert best.trainer.should_stop
    assert best.trainer.global_step == 50


def test_what_is_not_a_number_is_never_best():
    assert Best().see(float("nan"), 0.1, float("nan"), 0.05).saved == [10, 20]


def test_a_best_that_is_not_here_or_of_another_metric_is_forgotten():
    state = Best().see(0.9).callback.state_dict()
    gone, other = Best(holds=lambda step: False), Best()
    gone.callback.load_state_dict(state)
    other.callback.load_state_dict(state | {"monitor": "val/y"})
    assert gone.see(0.5).saved == other.see(0.5).saved == [10]


def test_a_run_that_goes_on_elsewhere_leaves_a_model_there(toy, pretrained, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    words = "--trainer.max_steps 4 --trainer.val_check_interval 2 --checkpoint.every_n_steps 2"
    run(toy, pretrained["bert"], one, words)
    (start,) = (one / "checkpoints").iterdir()
    found = run(toy, pretrained["bert"], two, f"{words} --resume {start}")
    assert found["model"] == str(two / "model")
    assert same_weights(two / "model", start / "model")
    assert (two / "results.json").is_file()


def test_nothing_left_to_learn_is_refused(numbers, pretrained, tmp_path):
    words = "--task sentence_embedding --model.freeze encoder --trainer.max_steps 2"
    with pytest.raises(UserError, match=r"model\.freeze: leaves nothing to learn"):
        run(numbers, pretrained["bert"], tmp_path / "run", words)


def test_best_is_remembered_over_a_resume():
    first, second = Best(patience=2).see(0.5, 0.4), Best(patience=2)
    second.callback.load_state_dict(first.callback.state_dict())
    second.see(0.3)
    assert second.saved == []
    assert second.trainer.should_stop


@pytest.mark.parametrize(("monitor", "choose"), [("accuracy", max), ("val/loss", min)])
def test_the_model_folder_is_the_best_state(toy, pretrained, tmp_path, monitor, choose):
    run_dir = tmp_path / "run"
    more = (
        "--optimizer.lr 0.05 --trainer.max_steps 24 --trainer.val_check_interval 3 "
        f"--checkpoint.monitor {monitor}"
    )
    found = run(toy, pretrained["bert"], run_dir, more)  # so fast that it gets worse again
    metric = monitor.removeprefix("val/")
    curve = validations(run_dir, metric)
    best = choose(curve.values())
    assert found["step"] == next(step for step, value in curve.items() if value == best)
    assert found[metric] == pytest.approx(best, abs=1e-4)
    assert read_folder(run_dir / "model").info["steps"] == found["step"]


def test_early_stopping_ends_the_run(toy, pretrained, tmp_path):
    more = "--trainer.max_steps 400 --trainer.val_check_interval 10 --checkpoint.patience 2"
    found = run(toy, pretrained["modern"], tmp_path / "run", f"{more} --optimizer.lr 0.01")
    curve = validations(tmp_path / "run", "accuracy")
    assert max(curve) == found["step"] + 20 < 400
    assert max(losses(tmp_path / "run")) == max(curve)


# --- limits, seeds, resume ---


def test_epochs_steps_and_intervals(toy, pretrained, tmp_path):
    run(toy, pretrained["bert"], tmp_path / "a", "--trainer.max_epochs 2")  # 12.5 steps each
    assert max(losses(tmp_path / "a")) == 25
    assert list(validations(tmp_path / "a", "loss")) == [13, 25]
    more = "--trainer.max_steps 5 --trainer.val_check_interval 1000"
    run(toy, pretrained["bert"], tmp_path / "b", more)
    assert list(validations(tmp_path / "b", "loss")) == [5]


def test_seeds_are_trained_in_turn_and_the_best_is_kept(toy, pretrained, tmp_path, capsys):
    run_dir = tmp_path / "run"
    command = words(toy, pretrained["modern"], run_dir, "--seeds 3 --trainer.max_steps 8")
    assert main(["finetune", *command]) == 0
    found = json.loads(capsys.readouterr().out)
    values = found["accuracy"]["values"]
    assert found["accuracy"]["mean"] == pytest.approx(np.mean(values))
    assert found["accuracy"]["std"] == pytest.approx(np.std(values, ddof=1))
    assert found["accuracy"]["median"] == np.median(values)
    each = [json.loads((run_dir / f"seed_{i}" / "results.json").read_text()) for i in range(3)]
    assert [result["accuracy"] for result in each] == values
    assert found["seeds"] == [0, 1, 2]
    assert values[found["best_seed"]] == max(values)
    assert same_weights(run_dir / "model", run_dir / f"seed_{found['best_seed']}" / "model")
    assert not same_weights(run_dir / "seed_0" / "model", run_dir / "seed_1" / "model")
    assert losses(run_dir / "seed_0") != losses(run_dir / "seed_1")
    assert json.loads((run_dir / "results.json").read_text()) == found


@pytest.mark.parametrize("task", ["text_classification", "regression"])
def test_resume_is_bit_identical(toy, numbers, pretrained, tmp_path, task):
    data = toy if task == "text_classification" else numbers
    more = (
        f"--task {task} --model.hidden_dropout 0.1 --trainer.max_steps 8 "
        "--trainer.val_check_interval 2 --checkpoint.every_n_steps 3 --checkpoint.keep 5"
    )
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    run(data, pretrained["bert"], whole, more)
    run(data, pretrained["bert"], halves, more)
    for late in ("step_00000006", "step_00000008"):
        (halves / "checkpoints" / late).rename(tmp_path / f"late-{late}")
    (halves / "results.json").unlink()
    run(data, pretrained["bert"], halves, f"{more} --resume auto")
    assert losses(halves) == losses(whole)
    assert validations(halves, "loss") == validations(whole, "loss")
    assert same_weights(halves / "model", whole / "model")
    last = "checkpoints/step_00000008/model"
    assert same_weights(halves / last, whole / last)


def test_a_run_that_died_before_its_first_checkpoint_starts_afresh(toy, pretrained, tmp_path):
    whole, died = tmp_path / "whole", tmp_path / "died"
    for run_dir in (whole, died):
        run(toy, pretrained["bert"], run_dir, "--trainer.max_steps 4")
    shutil.rmtree(died / "checkpoints")
    (died / "results.json").unlink()
    run(toy, pretrained["bert"], died, "--trainer.max_steps 4 --resume auto")
    assert losses(died) == losses(whole)


def test_a_finished_run_is_left_as_it_is(toy, pretrained, tmp_path, capsys):
    found = run(toy, pretrained["bert"], tmp_path / "run", "--trainer.max_steps 3")
    before = (tmp_path / "run" / "metrics.csv").read_text()
    again = run(toy, pretrained["bert"], tmp_path / "run", "--trainer.max_steps 3 --resume auto")
    assert again == found
    assert "is finished" in capsys.readouterr().err
    assert (tmp_path / "run" / "metrics.csv").read_text() == before


def test_a_finished_run_that_was_moved_says_where_it_is(toy, pretrained, tmp_path):
    run(toy, pretrained["bert"], tmp_path / "first", "--trainer.max_steps 1")
    moved = (tmp_path / "first").rename(tmp_path / "moved")
    again = run(toy, pretrained["bert"], moved, "--trainer.max_steps 1 --resume auto")
    assert again["model"] == str(moved / "model")


def test_a_run_is_saved_on_its_way(toy, pretrained, tmp_path, monkeypatch):
    step = FineTuningModule.training_step

    def fail(module, *args):
        if module.spent.steps == 500:
            raise MemoryError
        return step(module, *args)

    monkeypatch.setattr(FineTuningModule, "training_step", fail)
    more = "--trainer.max_steps 1000 --trainer.val_check_interval 1000 --data.batch_size 2"
    more += " --trainer.log_every_n_steps 500"
    with pytest.raises(RunError, match="out of memory"):
        run(toy, pretrained["bert"], tmp_path / "run", more)
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert saved.name == "step_00000500"


def test_the_table_of_a_search_has_a_line_for_each_run(toy, pretrained, tmp_path, capsys):
    run(toy, pretrained["bert"], tmp_path / "run", "--search small --trainer.max_steps 1")
    lines = [line.split() for line in capsys.readouterr().err.splitlines()]
    place = lines.index(["search:"])
    assert lines[place + 1] == ["optimizer.lr", "data.batch_size", "accuracy", "best"]
    assert sorted(words[-1] for words in lines[place + 2 : place + 8]) == ["False"] * 5 + ["True"]


def test_sigterm_saves_and_exits_with_143(toy, pretrained, tmp_path, capsys):
    run_dir = tmp_path / "run"

    def terminate():
        while not (run_dir / "metrics.csv").is_file():  # there since the first step
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=terminate, daemon=True).start()
    with pytest.raises(SystemExit) as ended:
        run(toy, pretrained["modern"], run_dir, "--trainer.max_steps 100000")
    assert ended.value.code == 143
    assert "--resume auto" in capsys.readouterr().err
    (saved,) = (run_dir / "checkpoints").iterdir()
    assert int(saved.name.removeprefix("step_")) == max(losses(run_dir))
    assert read_folder(saved / "model").head == "sequence_classification"
    assert len(Classifier.from_pretrained(run_dir / "model")(["a film"])) == 1
    assert list(run_dir.rglob(".*")) == []


@pytest.mark.parametrize(
    ("hook", "step"),
    [
        ("validation_step", 4),
        ("validation_step", 8),
        ("training_step", 3),
        ("training_step", 4),
        ("training_step", 8),
    ],
)
def test_a_signal_loses_no_validation(toy, pretrained, tmp_path, monkeypatch, hook, step):
    """Step 4 is validated, and step 8, the last; on resume, where the signal kept a run from it."""
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    more = "--trainer.max_steps 8 --trainer.val_check_interval 4"
    expected = run(toy, pretrained["modern"], whole, more)
    before, struck = getattr(FineTuningModule, hook), []

    def strike(self, *args):
        # A step counts when it is done.
        if not struck and self.spent.steps == step - (hook == "training_step"):
            struck.append(step)
            os.kill(os.getpid(), signal.SIGTERM)
        return before(self, *args)

    monkeypatch.setattr(FineTuningModule, hook, strike)
    with pytest.raises(SystemExit) as ended:
        run(toy, pretrained["modern"], halves, more)
    assert ended.value.code == 143
    assert max(losses(halves)) == step
    found = run(toy, pretrained["modern"], halves, f"{more} --resume auto")
    assert validations(halves, "loss") == validations(whole, "loss")
    assert losses(halves) == losses(whole)
    assert same_weights(halves / "model", whole / "model")
    own = ("model", "seconds")
    assert {k: v for k, v in found.items() if k not in own} == {
        k: v for k, v in expected.items() if k not in own
    }


# --- what cannot be run ---


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ("--train no/such.csv", r"no/such\.csv: no such file"),
        ("--validation no/such.csv", r"no/such\.csv: no such file"),
        ("--model no/such/model", "no/such/model"),
        ("--task regresion", "did you mean regression"),
        ("--task regression", r"row 1: column 'label': 'pos' is not a number"),
        ("--data.text_column review", r"no column 'review' among 'text', 'label'"),
        ("--data.label_column lable", r"no column 'lable'.*did you mean 'label'"),
        ("--data.labels [pos,neu]", r"row 2: column 'label': label 'neg' is not in data\.labels"),
        ("--data.labels []", r"data\.labels: the list is empty"),
        ("--data.max_length 65", r"data\.max_length: 65 is beyond the model's 64 positions"),
        ("--data.max_length 2", r"data\.max_length: 2 leaves no room"),
        ("--data.batch_size 0", r"data\.batch_size: 0 must be at least 1"),
        ("--model.pooling maen", r"model\.pooling: 'maen'.*did you mean mean"),
        ("--model.layers 4", r"model\.layers: 4 must lie between 1 and 3"),
        ("--model.dropout 1.5", r"model\.dropout: 1\.5"),
        ("--checkpoint.monitor acuracy", r"checkpoint\.monitor: 'acuracy'.*did you mean accuracy"),
        ("--checkpoint.monitor confusion_matrix", r"checkpoint\.monitor"),
        ("--checkpoint.patience 0", r"checkpoint\.patience"),
        ("--trainer.accumulate_grad_batches 3", "multiple of 3"),
        ("--optimizer.schedule linaer", "did you mean linear"),
        ("--seeds 0", "--seeds 0"),
        ("--resume no/such/checkpoint", "no/such/checkpoint"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(toy, pretrained, tmp_path, more, named):
    with pytest.raises(UserError, match=named) as caught:
        run(toy, pretrained["modern"], tmp_path / "run", f"--trainer.max_steps 1 {more}")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("header", "rows", "named"),
    [
        (["text", "label"], [], "has no rows"),
        (["text", "label"], [("a", "x"), ("b", "x")], "one class only"),
        (["text", "label"], [("a", "x"), ("b", "")], "row 2: column 'label': the label is empty"),
        (["review", "label"], [("a", "x"), ("b", "y")], "no column 'text', nor 'sentence1'"),
    ],
)
def test_bad_tables_exit_with_2(toy, pretrained, tmp_path, capsys, header, rows, named):
    train = write_csv(tmp_path / "train.csv", header, rows)
    command = words(toy, pretrained["modern"], tmp_path / "run", f"--train {train}")
    assert main(["finetune", *command]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert named in lines[0]
    assert str(train) in lines[0]
    assert not (tmp_path / "run").exists()


def test_a_damaged_model_is_named(toy, tmp_path, tokenizer):
    model = write_pretrained(tmp_path / "model", "modern", tokenizer)
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-5] ^= 1
    (model / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match=r"model\.safetensors: damaged"):
        run(toy, model, tmp_path / "run")


def test_labels_that_only_validation_has_are_one_warning(toy, pretrained, tmp_path, capsys):
    rows = [*toy_rows(20, 4), ("a film", "new"), ("a story", "newer")]
    held_out = write_csv(tmp_path / "v.csv", ["text", "label"], rows)
    more = f"--trainer.max_steps 20 --validation {held_out}"
    found = run(toy, pretrained["modern"], tmp_path / "run", more)
    warnings = [x for x in capsys.readouterr().err.splitlines() if "warning" in x]
    assert len(warnings) == 1
    assert "2 of 22 rows count as wrong" in warnings[0]
    matrix = (tmp_path / "run" / "confusion_matrix.csv").read_text().splitlines()
    assert matrix[0] == "true \\ predicted,neg,pos,new,newer"
    right = sum(int(line.split(",")[i + 1]) for i, line in enumerate(matrix[1:]))
    assert found["accuracy"] == pytest.approx(right / 22)


def test_what_is_not_native_is_said(toy, pretrained, tmp_path, capsys):
    more = "--trainer.max_steps 1 --model.pooling mean"
    run(toy, pretrained["bert"], tmp_path / "run", more)
    lines = [line for line in capsys.readouterr().err.splitlines() if "pooling" in line]
    assert len(lines) == 1
    assert "BertForSequenceClassification has 'cls'" in lines[0]
    assert Classifier.from_pretrained(tmp_path / "run" / "model").task.settings.pooling == "mean"


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ("--model.pooling max", "pooling is 'max' where BertForSequenceClassification has 'cls'"),
        ("--model.pooling attention", "pooling is 'attention' where"),
        ("--model.layers 3", "layers is 3 where BertForSequenceClassification has 1"),
    ],
)
def test_heads_of_our_own_learn_and_answer_the_same_from_their_folder(
    toy, pretrained, tmp_path, capsys, more, reason
):
    found = run(toy, pretrained["bert"], tmp_path / "run", f"--trainer.max_epochs 6 {more}")
    assert found["accuracy"] > 0.9
    assert reason in capsys.readouterr().err
    folder = tmp_path / "run" / "model"
    state = read_folder(folder).state
    learnt = [name for name in state if name in ("head.pool.query", "mix.weights")]
    assert len(learnt) == ("max" not in more)
    assert all(state[name].abs().max() > 0 for name in learnt)
    again = json.loads((tmp_path / "run" / "results.json").read_text())
    assert validations(tmp_path / "run", "loss")[found["step"]] == pytest.approx(again["loss"])
    # The head of a folder is started from where it fits, and a mix is not.
    run(toy, folder, tmp_path / "more", "--trainer.max_steps 1 --model.layers 2")


def test_a_task_of_ones_own_is_one_file(toy, pretrained, tmp_path, monkeypatch):
    (tmp_path / "shouting.py").write_text(
        "from tasks.text_classification import TextClassification\n"
        "class Shouting(TextClassification):\n"
        "    '''Answers in capitals.'''\n"
        "    def predictions(self, outputs):\n"
        "        return [{'label': a['label'].upper()} for a in super().predictions(outputs)]\n"
    )
    monkeypatch.chdir(tmp_path)
    run(
        toy,
        pretrained["modern"],
        tmp_path / "run",
        "--task shouting.Shouting --trainer.max_steps 9",
    )
    folder = tmp_path / "run" / "model"
    # The folder names it, and that alone must not import it.
    with pytest.raises(UserError, match=r"--task shouting\.Shouting"):
        Predictor.from_pretrained(folder)
    (answer,) = Predictor.from_pretrained(folder, task="shouting.Shouting")(["a film"])
    assert answer["label"] in ("POS", "NEG")
