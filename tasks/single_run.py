"""One fine-tuning run, with one seed: from what was prepared to a model folder and its scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlm.checkpoint import ModelFolder
from mlm.errors import UserError
from mlm.model.config import EncoderConfig
from mlm.training.anomaly import naming_anomalies
from mlm.training.budget import Budget
from mlm.training.callbacks import EndOfBudget, MakeUpValidation, StepMetrics, StopOnSignal
from mlm.training.checkpoint_io import FolderCheckpointIO, check_same_kind
from mlm.training.checkpoints import Checkpoints
from mlm.training.flops import flops_per_token, peak_flops
from mlm.training.guards import GO_ON, GuardOptions, guard, guard_callbacks
from mlm.training.logging import (
    LoggingOptions,
    build_loggers,
    close_loggers,
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
from tasks.lora import Lora, describe_learning
from tasks.module import FineTuningModule, KeepBest
from tasks.options import CheckpointOptions, DataOptions, ModelOptions
from tasks.reporting.text import model_card, read_json, write_json
from tasks.scoring import answer_with_best, report, show_answers


@dataclass(frozen=True)
class Prepared:
    """What the runs of all seeds and of a search share."""

    settings: dict[str, Any]
    """Every setting, resolved."""
    task: Task
    folder: ModelFolder
    config: EncoderConfig
    train: list[Example]
    validation: list[Example]
    validation_inputs: list[Any]
    validation_targets: list[Any]
    baselines: Callable[[], Mapping[str, Sequence[Any]]]
    """What simpler ways decide of the validation rows; worked out when first asked for."""
    lora: Lora | None = None


def run_seed(prepared: Prepared, job: Mapping[str, Any]) -> dict[str, Any]:
    """Train once; the scores of the best state on the validation set.

    Args:
        prepared: what is read already.
        job: every setting of this run, resolved: those prepared, but for its folder, its seed and
            what a search has changed.
    """
    run_dir, seed, task = Path(job["run_dir"]), job["seed"], prepared.task
    if job["resume"] == "auto" and (run_dir / "results.json").is_file():
        say(f"{run_dir}: is finished; nothing to go on with")
        return read_json(run_dir / "results.json")
    start = choose_checkpoint(run_dir, job["resume"])
    data, trainer_settings = DataOptions(**job["data"]), dict(job["trainer"])
    steps = len(prepared.train) / data.batch_size  # an epoch
    if isinstance(interval := trainer_settings["val_check_interval"], float):
        trainer_settings["val_check_interval"] = math.ceil(interval * steps)
    settings = {**job, "seeds": 1, "search": "none", "trainer": trainer_settings}
    optimizer = OptimizerOptions(**settings["optimizer"])
    checkpoint = CheckpointOptions(**settings["checkpoint"])
    budget = choose_budget(settings["budget"], trainer_settings, steps)
    assert isinstance(budget, Budget)

    torch.manual_seed(seed)
    model = start_model(ModelOptions(**settings["model"]), prepared.folder, task, prepared.config)
    if prepared.lora:
        prepared.lora.put_on(model, task)
        if is_rank_zero():
            say(describe_learning(model))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError("model.freeze: leaves nothing to learn; freeze fewer layers")
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
        partial(_holds, run_dir / "model", job["resume"] == "auto"),
    )
    step = resumed_step(start, settings["resume"])
    loggers = build_loggers(LoggingOptions(**settings["logging"]), run_dir, settings, step)
    files = FolderCheckpointIO(save, save.check)
    trainer = build_trainer(
        trainer_settings,
        [
            EndOfBudget(),
            metrics,
            BudgetProgress(every_n_steps, lambda: metrics.tokens_per_second),
            *guard_callbacks(guards, run_dir, files.load_checkpoint),
            keep_best,
            Checkpoints(run_dir, checkpoint.every_n_steps, checkpoint.keep),
            StopOnSignal(),
            MakeUpValidation(),
        ],
        loggers,
        files,
    )
    several = job["seeds"] > 1 or job["search"] != "none"
    if several and trainer.world_size > 1:
        raise UserError(
            "--seeds, --search: several runs are trained on one device; add --trainer.devices 1"
        )
    write_config(run_dir, settings)
    (run_dir / "results.json").unlink(missing_ok=True)
    with naming_anomalies(model, lambda: module.spent.steps + 1, guards.detect_anomaly):
        trainer.fit(module, datamodule=datamodule, ckpt_path=start, weights_only=True)
    if keep_best.best_step is None:  # stopped before the first validation
        keep_best.save_now(trainer)
    if module.stop_agreed:
        close_loggers(loggers)
        say(f"stopped after step {module.spent.steps}; {GO_ON}")
        raise SystemExit(143)
    if not trainer.is_global_zero:
        return {}
    module.clock.close()
    step = keep_best.best_step or module.spent.steps
    answered = answer_with_best(prepared, run_dir)
    show_answers(task, answered, run_dir, loggers, step)
    result = {
        "model": str(run_dir / "model"),
        "seed": seed,
        "step": keep_best.best_step,
        "seconds": module.spent.seconds,
        "collapsed": task.collapsed(answered.decisions, answered.targets),
        **answered.scores(),
    }
    if settings["report"]:
        report(prepared, answered, run_dir, loggers, step)
    close_loggers(loggers)
    write_json(run_dir / "results.json", result)  # last: a run that has them is finished
    return result


def _holds(model: Path, repeats: bool, step: int) -> bool:
    """Whether a model folder is of ``step``; or of a later one, to which the run comes again."""
    if not (model / "config.json").is_file():
        return False
    known = int(read_json(model / "config.json")["mlm"]["steps"])
    return known == step or (repeats and known > step)


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

    def check(self, folder: ModelFolder) -> None:
        """Refuse a checkpoint that the run cannot go on from."""
        prepared = self.prepared
        labels = list(prepared.task.settings.labels) or None
        check_same_kind(folder, prepared.config, prepared.folder.tokenizer, labels)

    def best(self, run_dir: Path, weights: dict[str, Tensor]) -> None:
        """The model folder of a run, and its adapters alone beside it."""
        prepared = self.prepared
        if prepared.lora:
            prepared.lora.save(run_dir / "adapter", weights, prepared.task, prepared.folder)
        self(run_dir / "model", weights)
