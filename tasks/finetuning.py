"""A fine-tuning run, from its settings to a model folder; several of them, with several seeds."""

from __future__ import annotations

import functools
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_only

from mlm.checkpoint import check_replaceable, read_folder
from mlm.data.keys import check_seed
from mlm.errors import UserError
from mlm.files import atomic_folder
from mlm.huggingface import native_class
from mlm.memory import keep_freed_memory
from mlm.model.attention import backend_names
from mlm.model.config import EncoderConfig
from mlm.training.guards import guarded
from mlm.training.logging import say
from mlm.training.optimizers import OptimizerOptions
from mlm.training.precision import resolve_device, resolve_precision
from mlm.training.run_directory import choose_checkpoint, write_config
from mlm.training.trainer import check_trainer, choose_accelerator, choose_budget
from tasks.base import Task, find_task
from tasks.encoding import Example
from tasks.lora import plan_lora
from tasks.options import (
    CheckpointOptions,
    DataOptions,
    LoraOptions,
    LossOptions,
    ModelOptions,
    check_precision,
)
from tasks.reporting.text import as_text, write_json
from tasks.rows import Rows
from tasks.search import described, grid_jobs
from tasks.seeds import best_of, count_workers, jobs_of, summarise, train_in_processes
from tasks.settings import SPECIFIC, task_settings
from tasks.single_run import Prepared, run_seed

_DEFAULT_EPOCHS = 3
_MOST_SEEDS = 1000


def finetune(settings: dict[str, Any]) -> dict[str, Any]:
    """Fine-tune as ``settings`` say and leave the best state at ``run_dir/model``.

    Args:
        settings: the options of ``mlm finetune``, nested by group.

    Returns:
        For one seed its scores on the validation set; for several, for each score its mean,
        standard deviation, median and values.

    Raises:
        UserError: settings or tables that cannot be run.
        RunError: the machine, or numbers that are not finite, ended the run.
        SystemExit: 143; a signal ended the run early, and its state is saved.
    """
    if not 1 <= settings["seeds"] <= _MOST_SEEDS:
        raise UserError(f"--seeds {settings['seeds']}: give 1 or more, and {_MOST_SEEDS} at most")
    keep_freed_memory()
    return guarded(_finetune, settings)


def _finetune(settings: dict[str, Any]) -> dict[str, Any]:
    run_dir, number = Path(settings["run_dir"]), settings["seeds"]
    several = number > 1 or settings["search"] != "none"
    if settings["resume"] == "never":
        choose_checkpoint(run_dir, "never")  # refuses the folder before the long work
    elif settings["resume"] != "auto" and several:
        raise UserError("--resume: with several --seeds or a --search only auto can go on")
    elif several:
        check_replaceable(run_dir / "model")  # where the best one's goes
    count_workers(settings, number)  # mistakes before the long work
    prepared = prepare(settings)
    if not several:
        (result,) = _train(prepared, settings, lambda settings: [dict(settings)])
        _warn_of_collapse([result])
        return result
    results: list[dict[str, Any]] = []
    table: list[dict[str, Any]] = []
    if settings["search"] != "none":
        results = _train(prepared, settings, grid_jobs)
        place, table = _choose(prepared, results)
        results = [results[place]]
        settings, chosen = (_taken(s, grid_jobs(s)[place]) for s in (settings, prepared.settings))
        prepared = replace(prepared, settings=chosen)
    first = len(results)
    results += _train(prepared, settings, lambda settings: jobs_of(settings, number)[first:])
    return _keep_best(results, prepared, run_dir, table)


def _train(
    prepared: Prepared,
    settings: dict[str, Any],
    jobs_of: Callable[[Mapping[str, Any]], list[dict[str, Any]]],
) -> list[dict[str, Any]]:
    """The results of several jobs, in turn in this process or at once in others.

    Args:
        prepared: what they share.
        settings: as the command got them, of which other processes make their own.
        jobs_of: settings → those of each job.
    """
    jobs = jobs_of(settings)
    if jobs and (workers := count_workers(settings, len(jobs))) > 1:
        results = train_in_processes(jobs, workers)
    else:
        results = [run_seed(prepared, job) for job in jobs_of(prepared.settings)]
    # One that was finished says where its model was then, and may have been moved since.
    return [
        result and result | {"model": str(Path(job["run_dir"]) / "model")}
        for result, job in zip(results, jobs, strict=True)
    ]


def _choose(
    prepared: Prepared, results: Sequence[Mapping[str, Any]]
) -> tuple[int, list[dict[str, Any]]]:
    """Which of a search's jobs is best by validation, and a line of each; said, too."""
    monitor = prepared.settings["checkpoint"]["monitor"]
    place = best_of(results, monitor, prepared.task.higher_is_better(monitor))
    table = [
        {**described(job), monitor: result[monitor], "best": number == place}
        for number, (job, result) in enumerate(
            zip(grid_jobs(prepared.settings), results, strict=True)
        )
    ]
    cells = [[f"{v:.4f}" if k == monitor else str(v) for k, v in row.items()] for row in table]
    _show("search", [list(table[0]), *cells])
    _warn(
        f"the best of {len(table)} on these rows is flattered by the choice; score it on others "
        "(mlm evaluate)"
    )
    return place, table


def _taken(settings: dict[str, Any], job: Mapping[str, Any]) -> dict[str, Any]:
    """``settings`` with what the grid decided in ``job``."""
    return settings | {group: job[group] for group in ("optimizer", "data")}


def prepare(settings: dict[str, Any]) -> Prepared:
    """Read and check everything that a run needs, before anything is written."""
    check_trainer(settings["trainer"])
    check_seed(settings["seed"])
    check_precision(settings["report_precision"])
    OptimizerOptions(**settings["optimizer"])
    data, model = DataOptions(**settings["data"]), ModelOptions(**settings["model"])
    loss = LossOptions(**settings["loss"])
    task = find_task(settings["task"])(task_settings(data, model))
    task.train_with(loss)
    folder = read_folder(model.path)
    task.open_folder(folder)
    changes = {
        name: value
        for name in ("hidden_dropout", "attention_dropout")
        if (value := getattr(model, name)) is not None
    }
    config = folder.config.replace(**changes)
    lora_options = LoraOptions(**settings["lora"])
    drops = [model.dropout, lora_options.dropout]
    if model.freeze != "encoder":  # a frozen part drops nothing
        drops += [config.hidden_dropout, config.attention_dropout]
    if loss.r_drop and not any(drops):
        raise UserError(
            "loss.r_drop: without dropout both passes are the same; set model.dropout above 0"
        )
    lora = plan_lora(lora_options, model, folder, config)
    checkpoint = CheckpointOptions(**settings["checkpoint"])
    train, validation = Rows.read(settings["train"]), Rows.read(settings["validation"])
    parts = settings["trainer"]["accumulate_grad_batches"]
    remarks = task.fit(train, config) + task.remarks(validation)
    remarks += task.check_batches(data.batch_size, parts)
    monitor = (checkpoint.monitor or task.monitor).removeprefix("val/")
    task.higher_is_better(monitor)  # refuses what is no metric
    examples = task.examples(train, folder.tokenizer)
    held_out = task.examples(validation, folder.tokenizer)
    for line in remarks:
        _warn(line)
    _say_what_is_read(task, {"train": examples, "validation": held_out})
    trainer = dict(settings["trainer"])
    trainer["accelerator"] = choose_accelerator(trainer["accelerator"])
    device = resolve_device(trainer["accelerator"])
    trainer["precision"] = resolve_precision(trainer["precision"], device)
    if choose_budget(settings["budget"], trainer, len(examples) / data.batch_size) is None:
        trainer["max_epochs"] = _DEFAULT_EPOCHS
    _say_what_runs(config, device, trainer["precision"], task)
    resolved = settings | {
        "task": task.name,
        "data": asdict(data) | _resolved(task),
        "model": asdict(model)
        | {
            "pooling": task.settings.pooling,
            "normalize": task.settings.normalize,
            "hidden_dropout": config.hidden_dropout,
            "attention_dropout": config.attention_dropout,
        },
        "checkpoint": asdict(checkpoint) | {"monitor": monitor},
        "trainer": trainer,
    }
    inputs, targets = task.inputs(validation), task.targets(validation)
    baselines = functools.cache(lambda: task.reporter().baselines(train, inputs))
    data_sets = examples, held_out, inputs, targets, baselines
    return Prepared(resolved, task, folder, config, *data_sets, lora)


def _keep_best(
    results: list[dict[str, Any]],
    prepared: Prepared,
    run_dir: Path,
    table: list[dict[str, Any]],
) -> dict[str, Any]:
    """The spread of each score over the seeds; the best one's folder becomes the run's.

    Args:
        results: of each seed; one alone is given as it is.
        prepared: what they share.
        run_dir: the run's folder.
        table: of a search, what `results.json` shall keep of it.
    """
    monitor = prepared.settings["checkpoint"]["monitor"]
    if not all(results):  # another rank than the first
        return {}
    best = results[best_of(results, monitor, prepared.task.higher_is_better(monitor))]
    parts = {"model": True, "adapter": prepared.lora, "report": prepared.settings["report"]}
    _take_over([n for n, wanted in parts.items() if wanted], Path(best["model"]).parent, run_dir)
    model = {"model": str(run_dir / "model")}
    if len(results) == 1:
        summary = {**best, **model}
    else:
        summary = {**model, "monitor": monitor, "best_seed": best["seed"], **summarise(results)}
    _warn_of_collapse(results)
    write_config(run_dir, prepared.settings)
    write_json(run_dir / "results.json", summary | ({"search": table} if table else {}))
    return summary


def _take_over(names: Sequence[str], best: Path, run_dir: Path) -> None:
    """Copy the folders of ``names`` from the best run's folder to ``run_dir``."""
    there = [name for name in names if (best / name).is_dir()]
    for name in (name for name in names if name not in there):
        if name != "report":
            raise UserError(
                f"{best / name}: is not there any more; take {best} away too, and --resume auto "
                "trains that run again"
            )
        _warn(f"{best / name}: is not there")  # it was not wanted yet when that run ended
    for name in there:
        with atomic_folder(run_dir / name) as draft:
            shutil.copytree(best / name, draft, dirs_exist_ok=True)


def _warn_of_collapse(results: Sequence[Mapping[str, Any]]) -> None:
    """Name the runs that give one answer for all rows; another rank than the first has none."""
    collapsed = [str(result["seed"]) for result in results if result.get("collapsed")]
    what = "collapsed, with one answer for all rows"
    if collapsed and len(results) == 1:
        _warn(f"{what}: try another --seed, a lower --optimizer.lr or more steps")
    elif collapsed:
        _warn(
            f"{what}: {len(collapsed)} of {len(results)} runs, seeds {', '.join(collapsed)}; they "
            "count in the means"
        )


def _resolved(task: Task) -> dict[str, Any]:
    """The data settings that the task has settled."""
    found = task.settings
    return {
        "text_column": list(found.text_column),
        "label_column": found.label_column,
        "labels": list(found.labels) or None,
        "max_length": found.max_length,
        **{n: getattr(found, n) for n, group in SPECIFIC.items() if group == "data"},
    }


@rank_zero_only
def _show(name: str, table: Sequence[Sequence[str]]) -> None:
    print(f"{name}:\n{as_text(table)}", file=sys.stderr)


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
    windows = config.attention_windows()
    common = device, dtype, config.attention_dropout, length
    paths = backend_names(*common, windows, config.position == "alibi", config.head_dim)
    native = native_class(config, task.layout, task.settings.pooling, task.settings.layers)
    fits = f"loads in transformers as {native.name}" if native.name else f"own: {native.reason}"
    say(f"{device}, {precision}, attention by {paths}; the model {fits}")
