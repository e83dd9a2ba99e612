"""`mlm evaluate-suite`: what it checks, runs, resumes and reports; and the shipped suites."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from toy import number_rows, toy_rows, write_csv

from mlm.cli import main
from mlm.config_files import shipped_configs
from mlm.data.hub import is_hub
from tasks.commands.evaluate_suite import find_suite
from tasks.rows import Rows
from tasks.suite.data import cut, read_sources

SUITE = """
protocol:
  data: {batch_size: 16, max_length: 32}
  trainer: {max_epochs: 1, accelerator: cpu}
  logging: {wandb: off}
sets:
  - name: toy
    train: train.csv
    train_rows: 120
    validation: 40
    test: [dev.csv, more.csv]
    metric: macro_f1
    settings:
      optimizer: {lr: 0.003}
  - name: numbers
    task: regression
    train: numbers.csv
    validation: numbers_dev.csv
    test: numbers_dev.csv
    metric: spearman
    settings:
      trainer: {max_steps: 3}
"""


@pytest.fixture
def folder(tmp_path):
    """The suite's file and tables."""
    for name, count, seed in (("train", 200, 1), ("dev", 30, 2), ("more", 20, 3)):
        write_csv(tmp_path / f"{name}.csv", ["text", "label"], toy_rows(count, seed))
    header = ["sentence1", "sentence2", "label"]
    for name, count in (("numbers", 64), ("numbers_dev", 20)):
        write_csv(tmp_path / f"{name}.csv", header, number_rows(count, 1))
    (tmp_path / "suite.yaml").write_text(SUITE)
    return tmp_path


@pytest.fixture
def call(folder, pretrained):
    """Run the command on the suite, with further options."""

    def run(*more):
        return main(words(folder, pretrained, *more))

    return run


def words(folder, pretrained, *more):
    return [
        *("evaluate-suite", "--suite", str(folder / "suite.yaml"), "--data_dir", str(folder)),
        *("--model", str(pretrained["bert"]), "--output", str(folder / "out"), *more),
    ]


def change(folder, old, new):
    path = folder / "suite.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def read(path):
    return json.loads(path.read_text())


def test_a_suite_is_trained_scored_and_reported(folder, call, capsys):
    assert call("--seeds", "2", "--keep_models", "true") == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    report = read(folder / "out" / "suite.json")
    assert report["sets"] == printed
    assert [line["set"] for line in printed] == ["toy", "numbers"]
    toy, numbers = printed
    assert toy["rows"] == {"train": 120, "validation": 40, "test": 50}
    assert toy["values"] == toy["scores"]["macro_f1"]
    assert toy["mean"] == pytest.approx(sum(toy["values"]) / 2)
    assert toy["std"] == pytest.approx(abs(toy["values"][0] - toy["values"][1]) / 2**0.5)
    assert report["mean"] == pytest.approx((toy["mean"] + numbers["mean"]) / 2)
    # A set's own limit takes the place of the protocol's.
    assert read(folder / "out" / "numbers" / "seed_1" / "results.json")["step"] == 3
    assert "| toy | macro_f1 | " in (folder / "out" / "suite.md").read_text()
    # The score is that of `mlm evaluate` on the joined tables.
    model, test = folder / "out/toy/seed_1/model", folder / "out/toy/data/test.parquet"
    assert main(["evaluate", "--model", str(model), "--data", str(test)]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["macro_f1"] == pytest.approx(toy["values"][1])


def test_rows_for_choosing_are_cut_off_train_and_are_always_the_same(folder):
    (entry, _) = find_suite(str(folder / "suite.yaml")).sets
    sources = read_sources(entry, folder)
    (train,) = sources["train"]
    table = train.table.append_column("row", [list(range(200))])
    first, second = (cut(entry, sources | {"train": [Rows(table, train.path)]}) for _ in range(2))
    assert first == second
    learnt, held_out = (first[name]["row"].to_pylist() for name in ("train", "validation"))
    assert (len(learnt), len(held_out)) == (120, 40)
    assert len({*learnt, *held_out}) == 160
    assert held_out != list(range(40)), "drawn, not the first ones"
    joined = [row for part in sources["test"] for row in part.table.to_pylist()]
    assert first["test"].to_pylist() == joined


def test_what_is_finished_is_not_trained_again(folder, call, capsys):
    assert call("--only", "numbers") == 0
    score = folder / "out" / "numbers" / "seed_0" / "score.json"
    before = score.stat().st_mtime_ns
    assert not (score.parent / "model").exists()
    assert not (score.parent / "checkpoints").exists()
    assert call() == 2
    assert "is not empty" in capsys.readouterr().err
    (folder / "numbers.csv").unlink()  # the tables are kept with the results
    write_csv(folder / "numbers.csv", ["sentence1", "sentence2", "label"], number_rows(40, 5))
    assert call("--resume", "auto", "--seeds", "2", "--only", "numbers") == 0
    assert score.stat().st_mtime_ns == before
    assert pq.read_metadata(folder / "out/numbers/data/train.parquet").num_rows == 64
    assert call("--resume", "auto", "--only", "toy") == 0
    assert [line["set"] for line in read(folder / "out" / "suite.json")["sets"]] == [
        "toy",
        "numbers",
    ]


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_suite_that_was_killed_goes_on(folder, pretrained, call, capsys, number):
    change(folder, "{max_steps: 3}", "{max_steps: 500}\n      checkpoint: {every_n_steps: 25}")
    command = [sys.executable, "-m", "mlm", *words(folder, pretrained)]
    numbers = folder / "out" / "numbers" / "seed_0"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        limit = time.monotonic() + 60
        while not list(numbers.glob("checkpoints/step_*")):
            assert time.monotonic() < limit
            assert process.poll() is None
            time.sleep(0.02)
        os.kill(process.pid, number)
        process.wait(30)
    assert process.returncode == (143 if number == signal.SIGTERM else -number)
    assert [line["set"] for line in read(folder / "out" / "suite.json")["sets"]] == ["toy"]
    before = (folder / "out" / "toy" / "seed_0" / "score.json").stat().st_mtime_ns
    assert call("--resume", "auto") == 0
    assert f"going on from {numbers / 'checkpoints' / 'step_'}" in capsys.readouterr().err
    assert (folder / "out" / "toy" / "seed_0" / "score.json").stat().st_mtime_ns == before
    assert len(read(folder / "out" / "suite.json")["sets"]) == 2


def test_a_suite_that_was_stopped_while_it_scored_ends_as_if_it_was_not(
    folder, call, monkeypatch, capsys
):
    import tasks.suite.run as run

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "_score", interrupt)
    assert call("--only", "toy") == 130
    monkeypatch.undo()
    assert call("--only", "toy", "--resume", "auto") == 0
    resumed = read(folder / "out" / "suite.json")["sets"]
    capsys.readouterr()
    (folder / "out").rename(folder / "first")
    assert call("--only", "toy") == 0
    assert read(folder / "out" / "suite.json")["sets"][0]["values"] == resumed[0]["values"]


def test_a_set_that_fails_is_reported_and_the_others_go_on(folder, call, monkeypatch, capsys):
    import tasks.suite.run as run

    real = run.finetune

    def breaks(settings):
        if "toy" in settings["run_dir"]:
            raise RuntimeError("the machine | is tired")
        return real(settings)

    monkeypatch.setattr(run, "finetune", breaks)
    assert call() == 1
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1].startswith("mlm: 1 of 2 sets failed: toy (see ")
    failed, done = map(json.loads, captured.out.splitlines())
    assert failed["error"] == "the machine | is tired"
    assert done["mean"] is not None
    assert read(folder / "out" / "suite.json")["mean"] is None
    assert "failed: the machine / is tired" in (folder / "out" / "suite.md").read_text()
    monkeypatch.undo()
    assert call("--resume", "auto") == 0
    assert "error" not in read(folder / "out" / "suite.json")["sets"][0]


def test_results_of_two_protocols_are_not_mixed(folder, call, capsys):
    assert call("--only", "numbers") == 0
    change(folder, "batch_size: 16", "batch_size: 8")
    for name in ("numbers", "toy"):  # the report would have both
        assert call("--only", name, "--resume", "auto") == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert "out/numbers: holds results with another settings.data.batch_size;" in line
    shutil.rmtree(folder / "out" / "numbers")
    assert call("--only", "toy", "--resume", "auto") == 0
    assert [line["set"] for line in read(folder / "out" / "suite.json")["sets"]] == ["toy"]


def test_sets_of_another_precision_are_not_left_out_in_silence(folder, call, capsys):
    assert call("--only", "numbers") == 0
    assert call("--only", "toy", "--resume", "auto", "--precision", "bf16") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "out/numbers: holds results with another precision;" in line
    assert not (folder / "out" / "toy").exists()


def test_older_results_go_on_that_say_less(folder, call):
    """They have no precision, and were saved at the end only."""
    assert call("--only", "numbers") == 0
    kept = folder / "out" / "numbers" / "set.json"
    older = read(kept)
    del older["precision"]
    older["settings"]["checkpoint"]["every_n_steps"] = None
    kept.write_text(json.dumps(older))
    assert call("--only", "toy", "--resume", "auto") == 0
    names = [line["set"] for line in read(folder / "out" / "suite.json")["sets"]]
    assert names == ["toy", "numbers"]


def test_a_metric_that_depends_on_the_columns(folder, call):
    named = "task: sentence_embedding\n    settings: {data: {label_column: label}}"
    change(folder, "    settings:\n      trainer: {max_steps: 3}", "")
    change(folder, "task: regression", named)
    assert call("--only", "numbers") == 0
    (line,) = read(folder / "out" / "suite.json")["sets"]
    assert line["metric"] == "spearman"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("sets:", "sets: [", "suite.yaml, line 7: not valid YAML"),
        ("protocol:", "protcol:", "line 2: protcol: no such setting; did you mean protocol?"),
        ("batch_size: 16", "batch_sise: 16", "line 3: data.batch_sise: no such setting; did you"),
        ("batch_size: 16", "batch_size: many", "line 3: data.batch_size: expected an integer"),
        ("batch_size: 16", "batch_size: 0", "line 7: set toy: data.batch_size: 0 must"),
        ("wandb: off}", "wandb: off}\n  seed: 3", "line 6: seed: no such setting"),
        ("accelerator: cpu", "devices: 2", "trainer.devices: a suite trains on one device"),
        ("max_steps: 3", "max_steps: 0", "max_steps"),
        ("    metric: spearman", "    metrik: spearman", "line 20: metrik: no such setting"),
        ("metric: spearman", "metric: accuracy", "set numbers: metric: 'accuracy' is not known"),
        ("metric: spearman", "metric: mse", "metric: 'mse' is not known"),
        ("task: regression", "task: regresion", "set numbers: task: 'regresion' is not known"),
        ("train_rows: 120", "train_rows: 0", "line 9: train_rows: expected a number of rows"),
        ("train_rows: 120", "train_rows: 170", "has 200 rows, and 210 are to be drawn"),
        ("name: numbers", "name: toy", "set toy: the name stands there twice"),
        ("name: numbers", "name: ../x", "line 15: name: expected letters"),
        ("    test: numbers_dev.csv\n", "", "line 15: a set needs test"),
        ("train: numbers.csv", "train: nowhere.csv", "nowhere.csv: no such file"),
        (
            "train: numbers.csv",
            "train: train.csv",
            "train.csv: row 1: column 'label': 'pos' is not a number",
        ),
        ("more.csv", "numbers.csv", "numbers.csv: no column 'text'"),
        ("max_length: 32", "max_length: 320", "data.max_length: 320 is beyond"),
        ("optimizer: {lr: 0.003}", "model: {layers: 99}", "layers"),
        ("lr: 0.003", "name: sdg", "sdg"),
        (SUITE, "sets: []", "sets: expected a list of sets"),
        (SUITE, "", "expected named values such as `protocol`"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_trained(folder, call, capsys, old, new, message):
    change(folder, old, new)
    assert call() == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert message in line
    assert "suite.yaml" in line
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--only", "numbrs"), "--only: 'numbrs' is not known; choose one of toy, numbers; did"),
        (("--seeds", "0"), "--seeds 0: give 1 or more"),
        (("--suite", "gleu"), "--suite gleu: no such file; the shipped ones are glue, sentiment"),
        (("--resume", "always"), "--resume"),
        (("--model", "nowhere/model"), "nowhere/model"),
    ],
)
def test_a_mistake_on_the_command_line(folder, call, capsys, words, message):
    assert call(*words) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (folder / "out").exists()


# --- the suites that are there ---

SHIPPED = sorted(path.stem for path in (shipped_configs() / "suites").glob("*.yaml"))
BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "suite.yaml"


def test_there_are_shipped_suites():
    assert {"glue", "sentiment"} <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_suite_reads_the_hub_and_is_never_scored_by_what_it_chose_by(name):
    suite = find_suite(name)
    for entry in suite.sets:
        sources = [entry.train, *entry.test]
        sources += [entry.validation] if isinstance(entry.validation, str) else []
        assert all(is_hub(s) and s.count(":") == 3 for s in sources)
        assert len(set(sources)) == len(sources)
        assert entry.metric


def test_the_suite_of_the_benchmarks():
    suite = find_suite(str(BENCHMARK))
    assert len(suite.sets) == 11
    named = {entry.name: entry for entry in suite.sets}
    assert named["imdb"].train_rows == 5000
    assert named["imdb"].settings["data"]["long_texts"] == "windows"
    assert named["cola"].test == ("cola/dev.parquet", "cola/dev_ood.parquet")
    for entry in suite.sets:
        assert entry.validation not in entry.test
        assert entry.train not in entry.test


def test_a_suite_reads_sets_of_the_hub(folder, call, monkeypatch, capsys):
    import datasets

    tables = {"train": toy_rows(80, 1), "validation": toy_rows(20, 2)}

    def load_dataset(name, config, *, split, streaming):
        assert (name, config, streaming) == ("me/toy", "small", False)
        if split not in tables:
            raise ValueError(f"Unknown split {split}")
        return datasets.Dataset.from_list(
            [{"text": t, "label": label} for t, label in tables[split]]
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    change(folder, "train: train.csv\n    train_rows: 120", "train: hub:me/toy:small:train")
    change(folder, "[dev.csv, more.csv]", "hub:me/toy:small:test")
    assert call("--only", "toy") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "hub:me/toy:small:test: cannot be read from the Hugging Face Hub" in line
    assert "Unknown split" in line
    change(folder, "small:test", "small:validation")
    assert call("--only", "toy") == 0
    rows = read(folder / "out" / "suite.json")["sets"][0]["rows"]
    assert rows == {"train": 40, "validation": 40, "test": 20}
