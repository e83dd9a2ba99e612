"""A set's mistakes, found before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlm.errors import UserError, look_up
from mlm.model.config import EncoderConfig
from mlm.training.guards import GuardOptions
from mlm.training.logging import LoggingOptions
from mlm.training.optimizers import OptimizerOptions
from mlm.training.trainer import check_trainer, choose_budget
from tasks.base import Task, find_task
from tasks.options import CheckpointOptions, DataOptions, LoraOptions, LossOptions, ModelOptions
from tasks.rows import Rows
from tasks.settings import task_settings
from tasks.suite.data import cut, read_sources
from tasks.suite.plan import SuiteSet


def check_set(entry: SuiteSet, config: EncoderConfig, data_dir: Path) -> str:
    """Read all that a set names, and refuse what cannot be run on an encoder.

    Returns:
        The metric that counts: the suite's, or the task's own.

    Raises:
        UserError: by the suite's file and line, and the table's name and row.
    """
    try:
        task = _task(entry)
        sources = read_sources(entry, data_dir)
        (train,) = sources["train"]
        task.fit(train, config)
        for rows in (train, *sources["validation"], *sources["test"]):
            _check_rows(task, rows)
        tables = cut(entry, sources)
        # Of a few rows that are drawn, a class may be gone.
        _task(entry).fit(Rows(tables["train"], train.path), config)
        metric = _metric(entry, task)
        monitor = entry.settings["checkpoint"]["monitor"] or metric
        task.higher_is_better(monitor.removeprefix("val/"))  # refuses what is no metric
        _check_settings(entry.settings, tables["train"].num_rows)
    except UserError as error:
        raise UserError(f"{entry.where}: {error}") from None
    return metric


def _task(entry: SuiteSet) -> Task:
    settings = entry.settings
    data, model = DataOptions(**settings["data"]), ModelOptions(**settings["model"])
    task = find_task(entry.task)(task_settings(data, model))
    task.train_with(LossOptions(**settings["loss"]))
    return task


def _check_rows(task: Task, rows: Rows) -> None:
    task.inputs(rows)
    task.targets(rows)
    task.remarks(rows)


def _metric(entry: SuiteSet, task: Task) -> str:
    """The metric that counts; more of it must be better, so that a table reads one way."""
    known = {name: name for name, higher in task.directions().items() if higher}
    return look_up(known, entry.metric or task.monitor, "metric")


def _check_settings(settings: Mapping[str, Any], rows: int) -> None:
    OptimizerOptions(**settings["optimizer"])
    LoraOptions(**settings["lora"])
    CheckpointOptions(**settings["checkpoint"])
    LoggingOptions(**settings["logging"])
    GuardOptions.of(settings)
    trainer = settings["trainer"]
    check_trainer(trainer)
    if trainer["devices"] != 1 or trainer["num_nodes"] != 1:
        raise UserError("trainer.devices: a suite trains on one device; leave it out")
    choose_budget(settings["budget"], trainer, rows / settings["data"]["batch_size"])
