"""A fine-tuning run, from its settings to a model folder; several of them, with several seeds."""

from __future__ import annotations

import math
import shutil
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from mlm.checkpoint import ModelFolder, read_folder
from mlm.errors import UserError
from mlm.files import atomic_file, atomic_folder
from mlm.huggingface import native_class
from mlm.memory import keep_freed_memory
from mlm.model.attention import backend_names
from mlm.model.config import EncoderConfig
from mlm.training.anomaly import naming_anomalies
from mlm.training.budget import Budget
from mlm.training.callbacks import Checkpoints, EndOfBudget, StepMetrics, StopOnSignal
from mlm.training.checkpoint_io import FolderCheckpointIO
from mlm.training.flops import flops_per_token, peak_flops
from mlm.training.guards import GuardOptions, guard, guard_callbacks, guarded
from mlm.training.logging import LoggingOptions, build_loggers, close_loggers, log_table, say
from mlm.training.optimizers import OptimizerOptions
from mlm.training.precision import resolve_device, resolve_precision
from mlm.training.progress import BudgetProgress
from mlm.training.run_directory import choose_checkpoint, resumed_step, write_config
from mlm.training.trainer import build_trainer, choose_budget
from tasks.base import Task, find_task
from tasks.datamodule import FineTuningDataModule
from tasks.encoding import Example
from tasks.folders import save_task_folder, start_model
from tasks.inference import Predictor
from tasks.module import FineTuningModule, KeepBest
from tasks.options import (
    SPECIFIC,
    CheckpointOptions,
    DataOptions,
    LossOptions,
    ModelOptions,
    task_settings,
)
from tasks.reports import as_csv, as_text, model_card, read_json, write_json
from tasks.rows import Rows

_DEFAULT_EPOCHS = 3
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


def finetune(settings: dict[str, Any]) -> dict[str, Any]:
    """Fine-tune as ``settings`` say and leave the best state at ``run_dir/model``.

    Args:
        settings: the options of ``mlm finetune``, nested by group.

    Returns:
        For one seed its scores on the validation set; for several, for each score its mean,
        standard deviation and values.

    Raises:
        UserError: settings or tables that cannot be run.
        RunError: the machine, or numbers that are not finite, ended the run.
        SystemExit: 143; a signal ended the run early, and its state is saved.
    """
    if settings["seeds"] < 1:
        raise UserError(f"--seeds {settings['seeds']}: give 1 or more")
    keep_freed_memory()
    return guarded(_finetune, settings)


def _finetune(settings: dict[str, Any]) -> dict[str, Any]:
    run_dir, seed, number = Path(settings["run_dir"]), settings["seed"], settings["seeds"]
    if settings["resume"] == "never":
        choose_checkpoint(run_dir, "never")  # refuses the folder before the long work
    elif settings["resume"] != "auto" and number > 1:
        raise UserError("--resume: with several --seeds only auto can go on")
    prepared = prepare(settings)
    if number == 1:
        return run_seed(prepared, run_dir, seed)
    results = [run_seed(prepared, run_dir / f"seed_{s}", s) for s in range(seed, seed + number)]
    return _summarise(results, prepared, run_dir)


def prepare(settings: dict[str, Any]) -> Prepared:
    """Read and check everything that a run needs, before anything is written."""
    data, model = DataOptions(**settings["data"]), ModelOptions(**settings["model"])
    loss = LossOptions(**settings["loss"])
    task = find_task(settings["task"])(task_settings(data, model))
    task.train_with(loss)
    folder = read_folder(model.path)
    changes = {
        name: value
        for name in ("hidden_dropout", "attention_dropout")
        if (value := getattr(model, name)) is not None
    }
    config = folder.config.replace(**changes)
    if loss.r_drop and not any((model.dropout, config.hidden_dropout, config.attention_dropout)):
        raise UserError(
            "loss.r_drop: without dropout both passes are the same; set model.dropout above 0"
        )
    checkpoint = CheckpointOptions(**settings["checkpoint"])
    train, validation = Rows.read(settings["train"]), Rows.read(settings["validation"])
    remarks = task.fit(train, config) + task.remarks(validation)
    monitor = (checkpoint.monitor or task.monitor).removeprefix("val/")
    task.higher_is_better(monitor)  # refuses what is no metric
    examples = task.examples(train, folder.tokenizer)
    held_out = task.examples(validation, folder.tokenizer)
    for line in remarks:
        _warn(line)
    _say_what_is_read(task, {"train": examples, "validation": held_out})
    trainer = dict(settings["trainer"])
    device = resolve_device(trainer["accelerator"])
    trainer["precision"] = resolve_precision(trainer["precision"], device)
    steps = len(examples) / data.batch_size  # an epoch
    budget = choose_budget(settings["budget"], trainer, steps)
    if budget is None:
        trainer["max_epochs"] = _DEFAULT_EPOCHS
    if isinstance(interval := trainer["val_check_interval"], float):
        trainer["val_check_interval"] = math.ceil(interval * steps)
    _say_what_runs(config, device, trainer["precision"], task)
    resolved = settings | {
        "task": task.name,
        "data": asdict(data) | _resolved(task),
        "model": asdict(model)
        | {
            "pooling": task.settings.pooling,
            "hidden_dropout": config.hidden_dropout,
            "attention_dropout": config.attention_dropout,
        },
        "checkpoint": asdict(checkpoint) | {"monitor": monitor},
        "trainer": trainer,
    }
    inputs, targets = task.inputs(validation), task.targets(validation)
    return Prepared(resolved, task, folder, config, examples, held_out, inputs, targets)


def run_seed(prepared: Prepared, run_dir: Path, seed: int) -> dict[str, Any]:
    """Train with one seed; the scores of the best state on the validation set."""
    settings, task = prepared.settings, prepared.task
    if settings["resume"] == "auto" and (run_dir / "results.json").is_file():
        say(f"{run_dir}: is finished; nothing to go on with")
        return read_json(run_dir / "results.json")
    start = choose_checkpoint(run_dir, settings["resume"])
    settings = settings | {"run_dir": str(run_dir), "seed": seed, "seeds": 1}
    data, trainer_settings = DataOptions(**settings["data"]), settings["trainer"]
    optimizer = OptimizerOptions(**settings["optimizer"])
    checkpoint = CheckpointOptions(**settings["checkpoint"])
    budget = choose_budget(
        settings["budget"], trainer_settings, len(prepared.train) / data.batch_size
    )
    assert isinstance(budget, Budget)

    torch.manual_seed(seed)
    model = start_model(ModelOptions(**settings["model"]), prepared.folder, task, prepared.config)
    model.encoder.recompute = settings["activation_checkpointing"]
    module = FineTuningModule(model, task, optimizer, budget, data.batch_size, seed)
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
    whole = settings["model"]["freeze"] == "none"  # what a frozen part saves is not counted
    metrics = StepMetrics(
        every_n_steps,
        flops_per_token(prepared.config, lengths, head_share=0.0),
        peak_flops(device, trainer_settings["precision"]) if whole else math.nan,
    )
    save = _ModelSaver(prepared, module)
    assert checkpoint.monitor is not None
    keep_best = KeepBest(
        partial(save, run_dir / "model"),
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
        ],
        loggers,
        files,
    )
    if prepared.settings["seeds"] > 1 and trainer.world_size > 1:
        raise UserError("--seeds: several are trained on one device; add --trainer.devices 1")
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
) -> dict[str, float]:
    """What the saved folder, read back, reaches on the validation set, in fp32."""
    accelerator = prepared.settings["trainer"]["accelerator"]
    task = prepared.task
    best = Predictor.from_pretrained(
        run_dir / "model", resolve_device(accelerator), "fp32", task=type(task)
    )
    values = best.compute(prepared.validation, task)
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
    return {name: float(value) for name, value in values.items() if value.ndim == 0}


class _ModelSaver:
    """Writes a run's weights as a model folder."""

    def __init__(self, prepared: Prepared, module: FineTuningModule) -> None:
        self.prepared, self.module = prepared, module

    def __call__(self, directory: Path, weights: dict[str, Tensor]) -> None:
        prepared = self.prepared
        found = self.module.trainer.callback_metrics
        scores = {k: float(v) for k, v in found.items() if k.startswith("val/")}
        save_task_folder(
            directory,
            weights,
            prepared.config,
            prepared.task,
            prepared.folder.tokenizer,
            info={"steps": self.module.spent.steps},
            card=model_card(prepared.task, scores, self.module.spent.steps),
        )


def _summarise(results: list[dict[str, Any]], prepared: Prepared, run_dir: Path) -> dict[str, Any]:
    """Mean, deviation and values of each score; the best seed's folder becomes the run's."""
    monitor = prepared.settings["checkpoint"]["monitor"]
    if not all(results):  # another rank than the first
        return {}
    sign = 1 if prepared.task.higher_is_better(monitor) else -1
    best = max(results, key=lambda result: sign * result[monitor])
    with atomic_folder(run_dir / "model") as draft:
        shutil.copytree(best["model"], draft, dirs_exist_ok=True)
    summary: dict[str, Any] = {
        "model": str(run_dir / "model"),
        "monitor": monitor,
        "seeds": [result["seed"] for result in results],
        "best_seed": best["seed"],
    }
    for name in [n for n in results[0] if n not in ("model", "seed", "step")]:
        values = [result[name] for result in results]
        summary[name] = {
            "mean": statistics.fmean(values),
            "std": statistics.stdev(values),
            "values": values,
        }
    write_config(run_dir, prepared.settings)
    write_json(run_dir / "results.json", summary)
    return summary


def _resolved(task: Task) -> dict[str, Any]:
    """The data settings that the task has settled."""
    found = task.settings
    return {
        "text_column": list(found.text_column),
        "label_column": found.label_column,
        "labels": list(found.labels) or None,
        "max_length": found.max_length,
        **{name: getattr(found, name) for name in SPECIFIC},
    }


@rank_zero_only
def _warn(line: str) -> None:
    say(f"warning: {line}")


@rank_zero_only
def _say_what_is_read(task: Task, examples: dict[str, list[Example]]) -> None:
    for name, found in examples.items():
        cut = sum(e.truncated for e in found)
        end = f", {cut:,} cut to {task.settings.max_length} tokens" if cut else ""
        number = found[-1].row + 1
        parts = f" in {len(found):,} windows" if len(found) > number else ""
        say(f"{name}: {number:,} examples{parts}{end}")


@rank_zero_only
def _say_what_runs(config: EncoderConfig, device: str, precision: str, task: Task) -> None:
    dtype = torch.bfloat16 if precision.startswith("bf16") else torch.float32
    length = task.settings.max_length or config.max_position_embeddings
    windows = map(config.layer_window, range(config.num_hidden_layers))
    paths = backend_names(device, dtype, config.attention_dropout, length, windows)
    native = native_class(config, task.layout, task.settings.pooling, task.settings.layers)
    fits = f"loads in transformers as {native.name}" if native.name else f"own: {native.reason}"
    say(f"{device}, {precision}, attention by {paths}; the model {fits}")
