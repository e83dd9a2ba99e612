"""What scores are worth: intervals, baselines, calibration, thresholds, and the files of it."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error
from toy import (
    FILLER,
    number_rows,
    question_rows,
    tagged_rows,
    toy_rows,
    write_csv,
    write_folder,
    write_jsonl,
)

from mlm.cli import main
from tasks.base import find_task
from tasks.inference import Predictor
from tasks.reporting.baselines import bag_of_words, majority
from tasks.reporting.build import answer, build_report
from tasks.reporting.statistics import (
    at_threshold,
    bootstrap,
    calibration_error,
    confidences,
    cross_fitted_error,
    fit_temperature,
    reliability,
    threshold_for,
)
from tasks.reporting.write import as_markdown, mistake_table
from tasks.rows import Rows

# -- statistics ------------------------------------------------------------------------------------


def mean(evidence):
    return {"mean": float(evidence.mean())}


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng, covered = np.random.default_rng(0), 0
    for number in range(200):
        low, high = bootstrap(rng.random((150, 1)) < 0.7, mean, 200, seed=number)["mean"]
        covered += low <= 0.7 <= high
    assert 180 <= covered <= 199  # 190 ± 3 standard deviations


def test_an_interval_is_as_wide_as_the_normal_one():
    drawn = np.random.default_rng(1).normal(size=(400, 1))
    low, high = bootstrap(drawn, mean)["mean"]
    assert high - low == pytest.approx(2 * 1.96 * drawn.std() / 20, rel=0.1)
    assert bootstrap(drawn, mean) == bootstrap(drawn, mean)


def test_a_score_that_is_no_number_has_no_interval():
    assert all(map(math.isnan, bootstrap(np.ones((5, 1)), lambda _: {"x": math.nan})["x"]))


@pytest.fixture
def overconfident():
    """Logits three times as large as the probabilities that the targets were drawn by."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6000, 4, generator=generator) * 1.5
    targets = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
    return 3 * logits, targets


def test_the_calibration_error_is_torchmetrics(overconfident):
    logits, targets = overconfident
    expected = multiclass_calibration_error(logits.softmax(-1), targets, 4, n_bins=15)
    found = calibration_error(reliability(*confidences(logits, targets)))
    assert found == pytest.approx(float(expected), abs=1e-5)


def test_a_temperature_is_found_again(overconfident):
    logits, targets = overconfident
    assert fit_temperature(logits, targets) == pytest.approx(3, rel=0.05)
    beyond = torch.cat([targets[:-1], torch.tensor([4])])  # a class that no output stands for
    assert fit_temperature(logits, beyond) == pytest.approx(3, rel=0.05)
    assert fit_temperature(logits[:1], torch.tensor([4])) == 1
    before = calibration_error(reliability(*confidences(logits, targets)))
    assert cross_fitted_error(logits, targets) < 0.03 < 0.15 < before


@pytest.mark.parametrize("precision", [0.5, 0.8, 0.9, 1.0])
def test_a_threshold_is_the_lowest_with_its_precision(precision):
    rng = np.random.default_rng(2)
    probabilities = rng.integers(0, 40, 300) / 40
    members = rng.random(300) < probabilities
    found = threshold_for(probabilities, members, precision)

    def reached(threshold):
        return members[probabilities >= threshold].mean() >= precision

    allowed = [t for t in np.unique(probabilities) if reached(t)]
    assert found == (min(allowed) if allowed else None)
    if found is not None:
        chosen = at_threshold(probabilities, members, found)
        assert chosen["precision"] >= precision
        assert chosen["recall"] == members[probabilities >= found].sum() / members.sum()


def test_a_label_that_is_never_right_has_no_threshold():
    assert threshold_for(np.array([0.9, 0.1]), np.array([False, False]), 0.5) is None
    assert math.isnan(at_threshold(np.array([0.9]), np.array([False]), 0.95)["precision"])


# -- baselines -------------------------------------------------------------------------------------


def test_the_majority_breaks_ties_by_name():
    assert majority(["b", "a", "b"]) == "b"
    assert majority(["b", "a"]) == "a"


def test_a_bag_of_words_learns_single_words():
    train, test = (list(zip(*toy_rows(n, n), strict=True)) for n in (400, 100))
    found = bag_of_words(*train, test[0])
    assert np.mean(np.array(found) == np.array(test[1])) > 0.95
    assert bag_of_words(["!", "?", "!"], [0, 1, 0], ["…", "a"]) == [0, 0]


# -- evidence --------------------------------------------------------------------------------------


def label_lists(count, seed):
    rows = toy_rows(count, seed)
    return [(text, "|".join([label, "long"][: 1 + (len(text) > 40)])) for text, label in rows]


TABLES = {
    "text_classification": lambda path, n, seed: write_csv(
        path, ["text", "label"], toy_rows(n, seed)
    ),
    "multi_label_classification": lambda path, n, seed: write_csv(
        path, ["text", "labels"], label_lists(n, seed)
    ),
    "regression": lambda path, n, seed: write_csv(
        path, ["sentence1", "sentence2", "label"], number_rows(n, seed)
    ),
    "token_classification": lambda path, n, seed: write_jsonl(path, tagged_rows(n, seed)),
    "question_answering": lambda path, n, seed: write_jsonl(path, question_rows(n, seed)),
    "sentence_embedding": lambda path, n, seed: write_csv(
        path, ["sentence1", "sentence2", "label"], number_rows(n, seed)
    ),
}
NAMES = {"token_classification": "rows.jsonl", "question_answering": "rows.jsonl"}
SETTINGS = {"sentence_embedding": {"label_column": "label"}}


def answered(predictor, rows):
    task = predictor.task
    examples = task.examples(rows, predictor.tokenizer)
    return answer(predictor, task, str(rows.path), examples, task.inputs(rows), task.targets(rows))


@pytest.mark.parametrize("name", TABLES)
def test_scores_of_the_evidence_are_the_tasks_own(name, tmp_path, tokenizer):
    file = NAMES.get(name, "rows.csv")
    train = TABLES[name](tmp_path / file, 80, 1)
    settings = SETTINGS.get(name, {})
    folder = write_folder(tmp_path / "model", find_task(name), train, tokenizer, **settings)
    predictor = Predictor.from_pretrained(folder, "cpu", "fp32")
    data = answered(predictor, Rows.read(TABLES[name](tmp_path / f"test_{file}", 60, 2)))
    report = build_report(predictor.task, data)
    assert report["rows"] == 60
    reporter = predictor.task.reporter()
    found = reporter.scores_of(reporter.evidence(data.decisions, data.targets))
    own = {n: float(v) for n, v in data.metrics.items() if v.ndim == 0 and n != "loss"}
    assert found == pytest.approx(own, abs=1e-4, rel=1e-5)
    for score in own:
        numbers = report["scores"][score]
        assert numbers["low"] <= numbers["high"]
    assert "low" not in report["scores"]["loss"]
    json.loads(json.dumps(report))
    assert as_markdown(report).startswith(f"# {name.replace('_', ' ').capitalize()} on ")


def test_labels_not_trained_on_are_mistakes(tmp_path, tokenizer, classifier):
    rows = [*toy_rows(40, 3), *((text, "new") for text, _ in toy_rows(20, 4))]
    data = Rows.read(write_csv(tmp_path / "test.csv", ["text", "label"], rows))
    predictor = Predictor.from_pretrained(classifier, "cpu", "fp32")
    found = answered(predictor, data)
    report = build_report(predictor.task, found, validation=found)
    assert report["scores"]["accuracy"]["value"] <= 40 / 60
    assert len([m for m in report["mistakes"] if m["expected"] == "new"]) == 20
    assert set(report["thresholds"]["labels"]) == {"neg", "pos"}


def test_a_text_with_bars_and_line_breaks_stays_one_cell(tmp_path, classifier):
    rows = [("a | b\nthe film " * 40, "pos"), ("a | b", "neg")] * 3
    data = Rows.read(write_csv(tmp_path / "test.csv", ["text", "label"], rows))
    predictor = Predictor.from_pretrained(classifier, "cpu", "fp32")
    report = build_report(predictor.task, answered(predictor, data))
    assert report["mistakes"]
    lines = as_markdown(report).splitlines()
    table = lines[lines.index("## Worst mistakes") + 2 :]
    assert len(table) == 2 + len(report["mistakes"])
    for line in table:
        assert len(re.findall(r"(?<!\\)\|", line)) == 6
    assert mistake_table(report)[1][1].startswith("a | b")


def test_windows_are_reported_by_text(tmp_path, tokenizer, toy):
    folder = write_folder(
        tmp_path / "model",
        find_task("text_classification"),
        toy["train"],
        tokenizer,
        long_texts="windows",
        max_length=12,
        stride=2,
    )
    rows = [(f"{' '.join(FILLER * 2)} {text}", label) for text, label in toy_rows(30, 8)]
    data = Rows.read(write_csv(tmp_path / "test.csv", ["text", "label"], rows))
    predictor = Predictor.from_pretrained(folder, "cpu", "fp32")
    found = answered(predictor, data)
    assert len(found.examples) > 60
    report = build_report(predictor.task, found)
    assert sum(count for _, _, count in report["calibration"]["bins"]) == 30


# -- commands --------------------------------------------------------------------------------------


def test_evaluate_writes_a_report(classifier, toy, tmp_path, capsys):
    words = f"evaluate --model {classifier} --data {toy['test']} --device cpu"
    words += f" --report {tmp_path}/made/report --train {toy['train']}"
    assert main(f"{words} --validation {toy['validation']}".split()) == 0
    scores = json.loads(capsys.readouterr().out)
    folder = tmp_path / "made" / "report"
    assert sorted(p.name for p in folder.iterdir()) == [
        "reliability.png",
        "report.json",
        "report.md",
    ]
    report = json.loads((folder / "report.json").read_text())
    assert {name: x["value"] for name, x in report["scores"].items()} == pytest.approx(scores)
    assert report["baselines"]["majority class"]["accuracy"] == 0.5
    assert report["baselines"]["bag of words"]["accuracy"] > 0.95
    assert report["temperature"]["fitted_on"] == str(toy["validation"])
    assert report["thresholds"]["precision"] == 0.9
    mistakes = [m["confidence"] for m in report["mistakes"]]
    assert mistakes == sorted(mistakes, reverse=True)
    wrong = round((1 - scores["accuracy"]) * report["rows"])
    assert len(mistakes) == min(50, wrong)
    text = (folder / "report.md").read_text()
    for part in ("| accuracy |", "bag of words", "## Calibration", "## Confusion matrix"):
        assert part in text
    assert (folder / "reliability.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_is_chosen_on_the_rows_that_are_scored(classifier, toy, tmp_path, capsys):
    words = f"evaluate --model {classifier} --data {toy['test']} --report {tmp_path}/report"
    assert main(f"{words} --device cpu".split()) == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["calibration"]["expected_error"] > 0
    assert not {"temperature", "thresholds"} & report.keys()
    text = (tmp_path / "report" / "report.md").read_text()
    assert "## Calibration" in text
    assert "divided by" not in text
    assert "## Thresholds" not in text


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("--train {train}", "--train: is for a report; say where with --report"),
        ("--report {tmp} --report_precision 1.5", "--report_precision: 1.5 must lie above 0"),
        ("--report {tmp} --validation {tmp}/none.csv", "none.csv"),
        ("--report {train}", "train.csv"),
    ],
)
def test_a_report_that_cannot_be_made_is_one_line(more, said, classifier, toy, tmp_path, capsys):
    words = f"evaluate --model {classifier} --data {toy['test']} --device cpu "
    assert main((words + more.format(train=toy["train"], tmp=tmp_path)).split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not list(tmp_path.iterdir())


def test_a_label_that_only_the_rows_to_choose_by_have(classifier, toy, tmp_path, capsys):
    odd = tmp_path / "odd.csv"
    odd.write_text(Path(toy["validation"]).read_text() + "something else,never seen\n")
    words = ["evaluate", "--model", str(classifier), "--data", str(toy["test"]), "--device", "cpu"]
    assert main(words) == 0
    plain = capsys.readouterr().out
    assert main([*words, "--report", str(tmp_path / "report"), "--validation", str(odd)]) == 0
    out, err = capsys.readouterr()
    assert out == plain
    assert "never seen" in err


def test_a_pretrained_model_has_no_report(pretrained, toy, tmp_path, capsys):
    words = f"evaluate --model {pretrained['bert']} --data {toy['test']} --report {tmp_path}"
    assert main(words.split()) == 2
    assert "--report: only for a fine-tuned model" in capsys.readouterr().err


@pytest.mark.parametrize("seeds", [1, 2])
def test_finetune_leaves_a_report(seeds, toy, pretrained, tmp_path, capsys):
    words = f"finetune --model {pretrained['modern']} --run_dir {tmp_path}/run --seeds {seeds}"
    words += f" --train {toy['train']} --validation {toy['validation']} --logging.wandb off"
    assert main(f"{words} --budget 4steps --trainer.accelerator cpu".split()) == 0
    report = json.loads((tmp_path / "run" / "report" / "report.json").read_text())
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    value = report["scores"]["accuracy"]["value"]
    accuracy = results["accuracy"]
    assert value == (accuracy if seeds == 1 else max(accuracy["values"]))
    assert report["baselines"]["bag of words"]["accuracy"] > 0.9
    assert report["temperature"]["fitted_on"] == report["data"] == str(toy["validation"])
    assert "bag of words" in capsys.readouterr().err


def test_finetune_need_not_report(toy, pretrained, tmp_path):
    words = f"finetune --model {pretrained['bert']} --run_dir {tmp_path}/run --report false"
    words += f" --train {toy['train']} --validation {toy['validation']} --logging.wandb off"
    assert main(f"{words} --budget 2steps --trainer.accelerator cpu".split()) == 0
    assert not (tmp_path / "run" / "report").exists()
