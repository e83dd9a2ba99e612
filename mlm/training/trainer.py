"""The Lightning Trainer of a run, and the budget that its limits mean."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import ProgressBar
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.io import CheckpointIO

from mlm.console import say
from mlm.data.processes import check_processes
from mlm.errors import UserError
from mlm.training.budget import Budget, parse_budget
from mlm.training.guards import REFUSALS
from mlm.training.precision import resolve_device

# Where runs want something else than Lightning's defaults.
TRAINER_DEFAULTS: dict[str, Any] = {
    "gradient_clip_val": 1.0,
    "log_every_n_steps": 20,
    "enable_model_summary": False,
}

_MOST = 1 << 31
_CONSTRUCTION = (ValueError, TypeError, RuntimeError, OverflowError, ImportError, AssertionError)

# The settings that end a run; each has a value that means "no limit".
LIMITS = ("budget", "trainer.max_steps", "trainer.max_epochs", "trainer.max_time")


def choose_budget(
    budget: str | None, trainer: dict[str, Any], steps_per_epoch: float
) -> Budget | None:
    """The one limit that was given, None where there is none.

    Args:
        budget: as `parse_budget` reads it.
        trainer: the trainer's settings, with `max_steps`, `max_epochs` and `max_time`.
        steps_per_epoch: how many optimizer steps go once through the data.

    Raises:
        UserError: two limits, or one that is not above 0.
    """
    given: dict[str, Budget] = {}
    if budget is not None:
        given["budget"] = parse_budget(budget)
    if (steps := trainer.get("max_steps", -1)) not in (-1, None):
        given["trainer.max_steps"] = Budget("steps", steps)
    if (epochs := trainer.get("max_epochs")) not in (-1, None):
        given["trainer.max_epochs"] = Budget("steps", -(-epochs * steps_per_epoch // 1))
    if (limit := trainer.get("max_time")) is not None:
        given["trainer.max_time"] = _clock_budget(str(limit))
    if len(given) > 1:
        raise UserError(
            f"{' and '.join(given)} are both given; keep the one that is to end the run"
        )
    for name, value in given.items():
        if value.amount <= 0:
            raise UserError(f"{name}: {value} leaves nothing to do; give more than 0")
    return next(iter(given.values()), None)


def _clock_budget(text: str) -> Budget:
    """Lightning's DD:HH:MM:SS."""
    parts = text.split(":")
    if len(parts) != 4 or not all(part.isdigit() for part in parts):
        raise UserError(f"trainer.max_time: {text!r} is not of the form DD:HH:MM:SS")
    days, hours, minutes, seconds = map(int, parts)
    return Budget("seconds", ((days * 24 + hours) * 60 + minutes) * 60.0 + seconds)


def build_trainer(
    settings: dict[str, Any],
    callbacks: Sequence[Callback],
    loggers: Sequence[Logger],
    checkpoint_io: CheckpointIO,
) -> Trainer:
    """Lightning's Trainer with the parts that a run owns filled in.

    Args:
        settings: everything under `trainer`, with `precision` resolved. An integer
            `val_check_interval` counts optimizer steps.
        callbacks: of the run.
        loggers: of the run.
        checkpoint_io: writes and reads checkpoints.

    Raises:
        UserError: settings that contradict each other, or that Lightning refuses.
    """
    settings = dict(settings)
    accumulation = settings["accumulate_grad_batches"]
    if isinstance(settings["val_check_interval"], int):
        settings["val_check_interval"] *= accumulation
    # The budget ends the run (see EndOfBudget), so that the last step is validated too.
    settings |= {"max_steps": -1, "max_epochs": -1, "max_time": None, "num_sanity_val_steps": 0}
    if settings["enable_progress_bar"] is False:  # Lightning then refuses one that is there
        callbacks = [callback for callback in callbacks if not isinstance(callback, ProgressBar)]
    # Lightning announces devices and advises on loaders at every start; a run says what matters.
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings(
        "ignore", module=r"pytorch_lightning\..*|lightning.*|torch\.utils\.data"
    )
    try:
        trainer = Trainer(
            **settings,
            callbacks=list(callbacks),
            logger=list(loggers),
            plugins=[checkpoint_io],
            enable_checkpointing=False,
            use_distributed_sampler=False,
        )
    except (*REFUSALS, *_CONSTRUCTION) as error:
        raise UserError(f"trainer: {str(error).splitlines()[0]}") from error
    if trainer.is_global_zero:
        _say_how_many(trainer.world_size, trainer.num_devices * trainer.num_nodes)
    return trainer


def _say_how_many(processes: int, devices: int) -> None:
    """A line where a run is not of one process; whoever started it decides how many there are."""
    if processes != devices:
        say(
            f"warning: {devices} devices are asked for, but {processes} processes were started; "
            "have srun or torchrun start one for each, or set --trainer.devices"
        )
    elif processes > 1:
        say(f"{processes} processes, with a device each")


def check_trainer(settings: Mapping[str, Any]) -> None:
    """Refuse what Lightning would take and then fall over.

    Raises:
        UserError: a number below 1 where things are counted, or where there is none to wait for.
    """
    most = {"accumulate_grad_batches": _MOST, "log_every_n_steps": _MOST, "num_nodes": 1 << 16}
    for name, limit in most.items():
        value = settings[name]
        if value is None or not 1 <= value <= limit:
            raise UserError(f"trainer.{name}: {value} must lie between 1 and {limit}")
    devices = settings["devices"]
    if isinstance(devices, str) and devices.lstrip("-").isdigit():
        devices = int(devices)
    # Of GPUs Lightning knows how many there are; of a CPU it would start any number.
    if type(devices) is int and devices != -1 and resolve_device(settings["accelerator"]) == "cpu":
        check_processes("trainer.devices", devices, least=1)
    interval = settings["val_check_interval"]
    if isinstance(interval, int | float) and not 0 < interval <= _MOST:
        raise UserError(f"trainer.val_check_interval: {interval} must lie above 0")
    batches = settings["limit_val_batches"]
    if batches is not None and not 0 <= batches <= (_MOST if isinstance(batches, int) else 1):
        raise UserError(
            f"trainer.limit_val_batches: {batches} is neither a number of batches nor a share"
        )
    clip = settings["gradient_clip_val"]
    if clip is not None and clip < 0:
        raise UserError(f"trainer.gradient_clip_val: {clip} is negative; null clips nothing")
    if "fsdp" in str(settings["strategy"]):
        raise UserError(
            "trainer.strategy: fsdp cuts the weights into shards, from which no model can be saved "
            "here; choose --trainer.strategy ddp"
        )


def choose_accelerator(accelerator: str) -> str:
    """What is told to Lightning, whose own `auto` takes Apple's GPUs, see `resolve_device`.

    Raises:
        UserError: one of those is asked for.
    """
    device = resolve_device(accelerator)
    if device == "mps":
        raise UserError(
            f"trainer.accelerator: {accelerator} is a GPU without 64-bit numbers here, which the "
            "sums over a step need; choose cpu"
        )
    if accelerator == "auto" and torch.backends.mps.is_available():
        return device
    return accelerator
