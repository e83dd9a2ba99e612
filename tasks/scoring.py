"""What the best state of a run reaches on the validation set: shown, logged, and reported."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlm.files import atomic_file
from mlm.training.logging import log_image, log_table
from mlm.training.precision import resolve_device
from tasks.base import Task
from tasks.inference import Predictor
from tasks.reporting.build import Answered, Baselines, answer, build_report
from tasks.reporting.text import as_csv, as_text
from tasks.reporting.write import PICTURE, mistake_table, score_table, write_report

if TYPE_CHECKING:
    from tasks.single_run import Prepared

_SHOWN_PREDICTIONS = 200


def answer_with_best(prepared: Prepared, run_dir: Path) -> Answered:
    """The validation rows, answered by the saved folder, read back, in fp32."""
    settings, task = prepared.settings, prepared.task
    best = Predictor.from_pretrained(
        run_dir / "model",
        resolve_device(settings["trainer"]["accelerator"]),
        "fp32",
        task=type(task),
    )
    return answer(
        best,
        task,
        settings["validation"],
        prepared.validation,
        prepared.validation_inputs,
        prepared.validation_targets,
    )


def show_answers(
    task: Task, answered: Answered, run_dir: Path, loggers: Sequence[Any], step: int
) -> None:
    """Print, write and log the tables of the metrics, and log the first predictions."""
    for name, table in task.tables(answered.metrics).items():
        print(f"{name.replace('_', ' ')}:\n{as_text(table)}", file=sys.stderr)
        with atomic_file(run_dir / f"{name}.csv") as draft:
            draft.write_text(as_csv(table), encoding="utf-8")
        log_table(loggers, f"val/{name}", table[0], table[1:], step)
    inputs = answered.inputs[:_SHOWN_PREDICTIONS]
    count = sum(example.row < len(inputs) for example in answered.examples)
    answers = task.answers(inputs, answered.examples[:count], answered.outputs[:count])
    shown = [
        task.shown(row) | found | {"expected": task.label_name(target)}
        for row, found, target in zip(inputs, answers, answered.targets, strict=False)
    ]
    lines = [[str(value) for value in row.values()] for row in shown]
    log_table(loggers, "val/predictions", list(shown[0]), lines, step)


def report(
    prepared: Prepared, answered: Answered, run_dir: Path, loggers: Sequence[Any], step: int
) -> None:
    """Write what the scores are worth to ``run_dir/report``, show it, and log it."""
    found = build_report(
        prepared.task,
        answered,
        Baselines(prepared.settings["train"], prepared.baselines()),
        validation=answered,
        precision=prepared.settings["report_precision"],
    )
    write_report(run_dir / "report", found)
    table = score_table(found)
    print(f"scores:\n{as_text(table)}", file=sys.stderr)
    log_table(loggers, "val/scores", table[0], table[1:], step)
    if found["mistakes"]:
        table = mistake_table(found)
        log_table(loggers, "val/mistakes", table[0], table[1:], step)
    if "calibration" in found:
        log_image(loggers, "val/reliability", run_dir / "report" / PICTURE, step)
