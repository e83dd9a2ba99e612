"""The demo, step by step. Each step is a command that the reader can type, and is shown as one."""

from __future__ import annotations

import importlib
import json
import shlex
import shutil
import time
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch

from mlm.arguments import CommandParser, settings
from mlm.checkpoint import load_masked_lm, read_folder
from mlm.data.prepare import PrepareOptions, prepare
from mlm.errors import UserError
from mlm.files import atomic_file
from mlm.inference import FillMask, fill_masks
from mlm.model.heads import MaskedLanguageModel
from mlm.training.budget import parse_budget
from mlm.training.metrics_csv import read_metrics
from mlm.training.pretraining import pretrain
from tasks.demo import REVIEWS_TEST, REVIEWS_TRAIN, report
from tasks.demo.corpus import python_documentation
from tasks.finetuning import finetune
from tasks.inference import Classifier
from tasks.reporting.baselines import bag_of_words, majority
from tasks.reporting.statistics import wilson_interval

VOCAB_SIZE = 8192
HELD_OUT = 60
"""Of the training reviews, so many choose the best state instead: thirty pairs."""

SENTENCES = (
    "A function [MASK] a value to its caller.",
    "The [MASK] statement imports a module.",
    "Return [MASK] if the object is a string.",
    "[MASK] a list of all the files in the directory.",
    "Raise ValueError if the argument is not a [MASK].",
    "This method is called when the [MASK] is closed.",
)
"""Chosen before any model was trained, and not changed since."""

_MARKER = "demo.json"
_MADE_BY = {"command": "mlm demo"}
_OURS = {_MARKER, "corpus.jsonl", "store", "train.jsonl", "validation.jsonl", "test.jsonl"} | {
    f"{run}{ending}"
    for run in ("pretrain", "finetune", "finetune_random")
    for ending in ("", ".log")
}
_COMMANDS = {
    "prepare": "mlm.commands.prepare",
    "pretrain": "mlm.commands.pretrain",
    "finetune": "tasks.commands.finetune",
}

Review = dict[str, str]


def demo(
    output: Path, budget: str = "150s", seeds: int = 3, start: float | None = None
) -> dict[str, Any]:
    """Run the whole path, say what happens, and leave the figures in ``output/demo.json``.

    Args:
        output: the folder for everything; that of an earlier demo is replaced.
        budget: how long to pretrain.
        seeds: how often the classifier is trained, from pretrained and from random weights.
        start: when it began, by ``time.monotonic``; None for now.

    Returns:
        The figures.

    Raises:
        UserError: ``output`` holds something that no demo has put there, or a limit is none.
    """
    parse_budget(budget)
    if seeds < 1:
        raise UserError(f"--seeds {seeds}: give 1 or more")
    claim(output)
    figures: dict[str, Any] = {**_MADE_BY, "seconds": {}}
    clock = time.monotonic() if start is None else start

    def lap(name: str) -> None:
        nonlocal clock
        figures["seconds"][name] = round(time.monotonic() - clock, 1)
        clock = time.monotonic()

    lap("start")

    report.heading("1  Text into tokens")
    figures["corpus"] = write_corpus(output / "corpus.jsonl")
    report.corpus(figures["corpus"])
    figures["store"] = prepare_store(output)
    report.store(figures["store"])
    lap("prepare")

    report.heading("2  Pretraining: guess the hidden words")
    figures["pretraining"] = run_pretraining(output, budget)
    report.pretraining(figures["pretraining"])
    lap("pretrain")

    report.heading("3  Fill in the blank, before and after")
    model = output / "pretrain" / "model"
    figures["fill_mask"] = before_and_after(model, SENTENCES)
    report.guesses(figures["fill_mask"])
    lap("fill-mask")

    report.heading("4  Fine-tuning: is a review positive or negative?")
    train, test = read_reviews(REVIEWS_TRAIN), read_reviews(REVIEWS_TEST)
    write_reviews(output / "train.jsonl", train[:-HELD_OUT])
    write_reviews(output / "validation.jsonl", train[-HELD_OUT:])
    write_reviews(output / "test.jsonl", test)
    report.paragraph(
        f"Each training {seeds} times, for some seconds; what they log is beside them."
    )
    figures["accuracy"] = compare(output, model, train, test, seeds)
    report.accuracy(figures["accuracy"])
    figures["predictions"] = predictions(output / "finetune" / "model", test)
    report.predictions(figures["predictions"])
    lap("finetune")

    with atomic_file(output / _MARKER) as draft:
        draft.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", "utf-8")
    report.farewell(output, figures["seconds"])
    return figures


def claim(output: Path) -> None:
    """Make ``output`` an empty folder of ours.

    Raises:
        UserError: there is something else at that place.
    """
    if output.exists():
        try:
            marker = json.loads((output / _MARKER).read_text("utf-8"))
            ours = marker["command"] == _MADE_BY["command"]
        except (OSError, ValueError, TypeError, KeyError):
            ours = output.is_dir() and not any(output.iterdir())
        if not ours:
            raise UserError(f"{output}: is there and not from an earlier demo; choose --output")
        strange = sorted({path.name for path in output.iterdir()} - _OURS)
        if strange:
            raise UserError(
                f"{output / strange[0]}: no demo has put this there; move it, or choose --output"
            )
        for path in output.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    # The marker comes first, so that what a stopped demo leaves is known to be ours.
    with atomic_file(output / _MARKER) as draft:
        draft.write_text(json.dumps(_MADE_BY) + "\n")


def settings_of(command: str, options: Sequence[str]) -> dict[str, Any]:
    """Show ``mlm command options``, and give the settings that it runs with."""
    report.command(shlex.join(["mlm", command, *options]))
    parser = CommandParser(command, "")
    importlib.import_module(_COMMANDS[command]).add_arguments(parser)
    return settings(parser.parse(options))


def write_corpus(path: Path) -> dict[str, int]:
    """Write Python's documentation, one document a line; its size."""
    size = {"documents": 0, "words": 0, "bytes": 0}
    with atomic_file(path) as draft, draft.open("w", encoding="utf-8") as file:
        for document in python_documentation():
            file.write(json.dumps({"text": document}, ensure_ascii=False) + "\n")
            size["documents"] += 1
            size["words"] += len(document.split())
            size["bytes"] += len(document.encode())
    return size


def prepare_store(output: Path) -> dict[str, Any]:
    """``mlm prepare`` on the corpus; its report."""
    options = ["--corpus", str(output / "corpus.jsonl"), "--output", str(output / "store")]
    options += ["--vocab_size", str(VOCAB_SIZE), "--validation_share", "0.02"]
    return prepare(PrepareOptions(**settings_of("prepare", options)))


def run_pretraining(output: Path, budget: str) -> dict[str, Any]:
    """``mlm pretrain`` on the store; its last validation and its learning curve."""
    run_dir = output / "pretrain"
    options = ["--config", "demo", "--store", str(output / "store"), "--run_dir", str(run_dir)]
    found = pretrain(settings_of("pretrain", [*options, "--budget", budget]))
    model = load_masked_lm(run_dir / "model")
    return {
        **found,
        "weights": sum(weight.numel() for weight in model.parameters()),
        "vocab_size": model.config.vocab_size,
        "curve": learning_curve(run_dir / "metrics.csv"),
    }


def learning_curve(path: Path, points: int = 10) -> list[dict[str, float]]:
    """About ``points`` evenly spaced rows of the training loss in ``metrics.csv``."""
    metrics = read_metrics(path)
    names = ("step", "seconds", "tokens", "train/loss")
    rows = [
        dict(zip(names, row, strict=True))
        for row in zip(*(metrics[name] for name in names), strict=True)
        if row[-1] is not None
    ]
    chosen = sorted({round(i * (len(rows) - 1) / (points - 1)) for i in range(points)})
    return [rows[i] for i in chosen]


def before_and_after(model: Path, sentences: Sequence[str]) -> list[dict[str, Any]]:
    """The best guesses for each sentence's mask, from random weights and from ``model``."""
    trained = FillMask(model)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        random = MaskedLanguageModel(read_folder(model).config).eval()
    before = fill_masks(random, trained.tokenizer, sentences, top_k=3)
    after = trained(sentences, top_k=3)
    return [
        {"text": text, "before": b["masks"][0], "after": a["masks"][0]}
        for text, b, a in zip(sentences, before, after, strict=True)
    ]


def compare(
    output: Path, model: Path, train: list[Review], test: list[Review], seeds: int
) -> list[dict[str, Any]]:
    """Accuracy on the test reviews: two baselines, random weights, pretrained weights."""
    texts, labels = [r["text"] for r in train], [r["label"] for r in train]
    test_texts = [r["text"] for r in test]
    linear = bag_of_words(texts, labels, test_texts)
    table = [
        score("majority class", [[majority(labels)] * len(test)], test),
        score("bag of words, logistic regression", [linear], test),
    ]
    for name, folder, extra in (
        ("this encoder from random weights", "finetune_random", ["--model.random", "true"]),
        ("this encoder, pretrained", "finetune", []),
    ):
        options = ["--config", "demo", "--model", str(model)]
        for split in ("train", "validation"):
            options += [f"--{split}", str(output / f"{split}.jsonl")]
        options += ["--run_dir", str(output / folder), "--seeds", str(seeds), *extra]
        chosen = settings_of("finetune", options)
        with (output / f"{folder}.log").open("w") as log, redirect_stderr(log):
            finetune(chosen)
        folders = sorted((output / folder).glob("seed_*")) or [output / folder]
        answers = [Classifier.from_pretrained(f / "model")(test_texts) for f in folders]
        table.append(score(name, [[a["label"] for a in found] for found in answers], test))
    return table


def score(name: str, runs: Sequence[Sequence[str]], test: Sequence[Review]) -> dict[str, Any]:
    """The share of right labels, of each run and in the mean, with the interval of the mean."""
    right = [
        sum(label == review["label"] for label, review in zip(labels, test, strict=True))
        for labels in runs
    ]
    mean = sum(right) / len(right)
    return {
        "name": name,
        "accuracy": mean / len(test),
        "interval": wilson_interval(mean, len(test)),
        "runs": [count / len(test) for count in right],
        "n": len(test),
    }


def predictions(model: Path, test: Sequence[Review], each: int = 3) -> list[dict[str, Any]]:
    """The first test reviews that the model gets right, and the first that it gets wrong."""
    answers = Classifier.from_pretrained(model)([review["text"] for review in test])
    rows = [
        {"text": a["text"], "label": r["label"], "predicted": a["label"], "score": a["score"]}
        for a, r in zip(answers, test, strict=True)
    ]
    right = [row for row in rows if row["predicted"] == row["label"]]
    wrong = [row for row in rows if row["predicted"] != row["label"]]
    return right[:each] + wrong[:each]


def read_reviews(path: Path) -> list[Review]:
    """The rows of a file of reviews."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def write_reviews(path: Path, reviews: Sequence[Review]) -> None:
    """The same the other way round."""
    with atomic_file(path) as draft:
        lines = [json.dumps(review, ensure_ascii=False) + "\n" for review in reviews]
        draft.write_text("".join(lines), encoding="utf-8")
