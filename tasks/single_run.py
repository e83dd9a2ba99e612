"""One fine-tuning run, with one seed: from what was prepared to a model folder and its scores."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlm.checkpoint import ModelFolder
from mlm.errors import UserError
from mlm.files import atomic_file
from mlm.model.config import EncoderConfig
from mlm.training.anomaly import naming_anomalies
from mlm.training.budget import Budget
from mlm.training.callbacks import (
    Checkpoints,
    EndOfBudget,
    MakeUpValidation,
    StepMetrics,
    StopOnSignal,
)
from mlm.training.checkpoint_io import FolderCheckpointIO
from mlm.training.flops import flops_per_token, peak_flops
from mlm.training.guards import GuardOptions, guard, guard_callbacks
from mlm.training.logging import (
    LoggingOptions,
    build_loggers,
    close_loggers,
    log_image,
    log_table,
    say,
)
from mlm.training.optimizers import OptimizerOptions
from mlm.training.precision import resolve_device
from mlm.training.progress import BudgetProgress
from mlm.training.run_directory import choose_checkpoint, is_rank_zero, resumed_step, write_config
from mlm.training.trainer import build_trainer, choose_budget
from tasks.base import Task
from tasks.datamodule import FineTuningDataModule
from tasks.encoding import Example
from tasks.folders import save_task_folder, start_model
from tasks.inference import Predictor
from tasks.lora import Lora, describe_learning
from tasks.module import FineTuningModule, KeepBest
from tasks.options import (
    CheckpointOptions,
    DataOptions,
    ModelOptions,
)
from tasks.reporting.build import Answered, Baselines, build_report
from tasks.reporting.write import PICTURE, mistake_table, score_table, write_report
from tasks.reports import as_csv, as_text, model_card, read_json, write_json
from tasks.rows import Rows

_SHOWN_PREDICTIONS = 200


@dataclass(frozen=True)
class Prepared:
    """What the runs of all seeds share."""

    settings: dict[str, Any]
    """Every setting, resolved."""
    task: Task
    folder: ModelFolder
    config: EncoderConfig
    train: list[Example]
    validation: list[Example]
    validation_inputs: list[Any]
    validation_targets: list[Any]
    train_rows: Rows
    lora: Lora | None = None

    @cached_property
    def baselines(self) -> dict[str, Sequence[Any]]:
        """What simpler ways decide of the validation rows, the same for all seeds."""
        return self.task.reporter().baselines(self.train_rows, self.validation_inputs)


def run_seed(prepared: Prepared, run_dir: Path, seed: int) -> dict[str, Any]:
    """Train with one seed; the scores of the best state on the validation set."""
    settings, task = prepared.settings, prepared.task
    if settings["resume"] == "auto" and (run_dir / "results.json").is_file():
        say(f"{run_dir}: is finished; nothing to go on with")
        return read_json(run_dir / "results.json")
    start = choose_checkpoint(run_dir, settings["resume"])
    settings = settings | {"run_dir": str(run_dir), "seed": seed, "seeds": 1, "search": "none"}
    data, trainer_settings = DataOptions(**settings["data"]), settings["trainer"]
    optimizer = OptimizerOptions(**settings["optimizer"])
    checkpoint = CheckpointOptions(**settings["checkpoint"])
    budget = choose_budget(
        settings["budget"], trainer_settings, len(prepared.train) / data.batch_size
    )
    assert isinstance(budget, Budget)

    torch.manual_seed(seed)
    model = start_model(ModelOptions(**settings["model"]), prepared.folder, task, prepared.config)
    if prepared.lora:
        prepared.lora.put_on(model, task)
        if is_rank_zero():
            say(describe_learning(model))
    model.encoder.recompute = settings["activation_checkpointing"]
    module = FineTuningModule(model, task, optimizer, budget, data.batch_size, seed, prepared.lora)
    guards = GuardOptions.of(settings)
    guard(module, guards, run_dir)
    accumulation = trainer_settings["accumulate_grad_batches"]
    datamodule = FineTuningDataModule(
        task,
        prepared.train,
        prepared.validation,
        data,
        seed,
        accumulation,
        guards.stall_timeout,
    )
    device = resolve_device(trainer_settings["accelerator"])
    lengths = np.array([len(e.input_ids) for e in prepared.train])
    every_n_steps = trainer_settings["log_every_n_steps"]
    whole = (
        settings["model"]["freeze"] == "none" and not prepared.lora
    )  # what a frozen part saves is not counted
    metrics = StepMetrics(
        every_n_steps,
        flops_per_token(prepared.config, lengths, head_share=0.0),
        peak_flops(device, trainer_settings["precision"]) if whole else math.nan,
    )
    save = _ModelSaver(prepared, module)
    assert checkpoint.monitor is not None
    keep_best = KeepBest(
        partial(save.best, run_dir),
        f"val/{checkpoint.monitor}",
        task.higher_is_better(checkpoint.monitor),
        checkpoint.patience,
    )
    step = resumed_step(start, settings["resume"])
    loggers = build_loggers(LoggingOptions(**settings["logging"]), run_dir, settings, step)
    files = FolderCheckpointIO(save)
    trainer = build_trainer(
        trainer_settings,
        optimizer,
        [
            EndOfBudget(),
            metrics,
            BudgetProgress(every_n_steps, lambda: metrics.tokens_per_second),
            *guard_callbacks(guards, run_dir, files.load_checkpoint),
            keep_best,
            Checkpoints(run_dir / "checkpoints", checkpoint.every_n_steps, checkpoint.keep),
            StopOnSignal(),
            MakeUpValidation(),
        ],
        loggers,
        files,
    )
    several = prepared.settings["seeds"] > 1 or prepared.settings["search"] != "none"
    if several and trainer.world_size > 1:
        raise UserError(
            "--seeds, --search: several runs are trained on one device; add --trainer.devices 1"
        )
    write_config(run_dir, settings)
    with naming_anomalies(model, lambda: module.spent.steps + 1, guards.detect_anomaly):
        trainer.fit(module, datamodule=datamodule, ckpt_path=start, weights_only=True)
    if keep_best.best_step is None:  # stopped before the first validation
        keep_best.save_now(trainer)
    if module.stop_agreed:
        close_loggers(loggers)
        say(f"stopped after step {module.spent.steps}; go on with --resume auto")
        raise SystemExit(143)
    if not trainer.is_global_zero:
        return {}
    module.clock.close()
    scores = _score_best(prepared, run_dir, loggers, keep_best.best_step or module.spent.steps)
    close_loggers(loggers)
    result = {
        "model": str(run_dir / "model"),
        "seed": seed,
        "step": keep_best.best_step,
        "seconds": module.spent.seconds,
        **scores,
    }
    write_json(run_dir / "results.json", result)
    return result


def _score_best(
    prepared: Prepared, run_dir: Path, loggers: Sequence[Any], step: int
) -> dict[str, Any]:
    """What the saved folder, read back, reaches on the validation set, in fp32."""
    accelerator = prepared.settings["trainer"]["accelerator"]
    task = prepared.task
    best = Predictor.from_pretrained(
        run_dir / "model", resolve_device(accelerator), "fp32", task=type(task)
    )
    values, outputs = best.compute_and_keep(prepared.validation, task)
    for name, table in task.tables(values).items():
        print(f"{name.replace('_', ' ')}:\n{as_text(table)}", file=sys.stderr)
        with atomic_file(run_dir / f"{name}.csv") as draft:
            draft.write_text(as_csv(table), encoding="utf-8")
        log_table(loggers, f"val/{name}", table[0], table[1:], step)
    answers = best(prepared.validation_inputs[:_SHOWN_PREDICTIONS])
    labels = map(task.label_name, prepared.validation_targets[: len(answers)])
    shown = [a | {"expected": label} for a, label in zip(answers, labels, strict=True)]
    log_table(
        loggers,
        "val/predictions",
        list(shown[0]),
        [[str(value) for value in row.values()] for row in shown],
        step,
    )
    answered = Answered(
        prepared.settings["validation"],
        prepared.validation_inputs,
        prepared.validation_targets,
        prepared.validation,
        outputs,
        values,
    )
    if prepared.settings["report"]:
        _report(prepared, answered, run_dir, loggers, step)
    decisions = task.decisions(answered.inputs, answered.examples, outputs)
    return {
        "collapsed": task.collapsed(decisions, prepared.validation_targets),
        **{name: float(value) for name, value in values.items() if value.ndim == 0},
    }


def _report(
    prepared: Prepared, answered: Answered, run_dir: Path, loggers: Sequence[Any], step: int
) -> None:
    """Write what the scores are worth to ``run_dir/report``, show it, and log it."""
    report = build_report(
        prepared.task,
        answered,
        Baselines(prepared.settings["train"], prepared.baselines),
        precision=prepared.settings["report_precision"],
    )
    write_report(run_dir / "report", report)
    table = score_table(report)
    print(f"scores:\n{as_text(table)}", file=sys.stderr)
    log_table(loggers, "val/scores", table[0], table[1:], step)
    if report["mistakes"]:
        table = mistake_table(report)
        log_table(loggers, "val/mistakes", table[0], table[1:], step)
    if "calibration" in report:
        log_image(loggers, "val/reliability", run_dir / "report" / PICTURE, step)


class _ModelSaver:
    """Writes a run's weights as a model folder, adapters merged."""

    def __init__(self, prepared: Prepared, module: FineTuningModule) -> None:
        self.prepared, self.module = prepared, module

    def __call__(self, directory: Path, weights: dict[str, Tensor]) -> None:
        prepared = self.prepared
        found = self.module.trainer.callback_metrics
        scores = {k: float(v) for k, v in found.items() if k.startswith("val/")}
        if prepared.lora:
            weights = prepared.lora.merged(weights)
        save_task_folder(
            directory,
            weights,
            prepared.config,
            prepared.task,
            prepared.folder.tokenizer,
            info={"steps": self.module.spent.steps},
            card=model_card(prepared.task, scores, self.module.spent.steps),
        )

    def best(self, run_dir: Path, weights: dict[str, Tensor]) -> None:
        """The model folder of a run, and its adapters alone beside it."""
        prepared = self.prepared
        if prepared.lora:
            prepared.lora.save(run_dir / "adapter", weights, prepared.task, prepared.folder)
        self(run_dir / "model", weights)
