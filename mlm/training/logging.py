"""Where the metrics of a run go: always to ``metrics.csv``, and to Weights & Biases where it is on.

Whether Weights & Biases is on is decided before any of it is started: a failed online start cannot
be turned into an offline run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from mlm.console import say
from mlm.training.metrics_csv import MetricsCSV
from mlm.training.wandb_run import WandbRun, has_wandb_key

__all__ = [
    "LoggingOptions",
    "build_loggers",
    "close_loggers",
    "log_table",
    "resolve_mode",
    "say",
]

_ENVIRONMENT_MODES: dict[str, Literal["online", "offline", "off"]] = {
    "online": "online",
    "run": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "off",
}


@dataclass(frozen=True)
class LoggingOptions:
    """Where metrics go beside ``metrics.csv``."""

    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """Weights & Biases: `auto` follows WANDB_MODE, and without it is online where an API key is
    configured, else off. `offline` records into the run directory, for `wandb sync` later."""

    project: str = "mlm"
    """The project at Weights & Biases that the run belongs to."""

    name: str | None = None
    """The run's name; the run directory's name where not given."""

    group: str | None = None
    """Shows runs that belong together, such as the seeds of one experiment, as one."""

    tags: list[str] | None = None
    """Words to find the run by."""


def resolve_mode(
    asked: str, environment: Mapping[str, str], has_key: Callable[[], bool]
) -> tuple[Literal["online", "offline", "off"], str | None]:
    """Whether and how Weights & Biases is used, and a line for the user where that needs one.

    Args:
        asked: `auto`, `online`, `offline` or `off`.
        environment: the process's; WANDB_MODE is looked at where `asked` is `auto`.
        has_key: whether an API key is configured; called only where it matters.

    >>> resolve_mode("auto", {"WANDB_MODE": "dryrun"}, lambda: False)
    ('offline', None)
    """
    variable = environment.get("WANDB_MODE", "")
    mode = _ENVIRONMENT_MODES.get(variable if asked == "auto" else asked, "online")
    if asked == "off" or mode == "off":
        return "off", None
    if mode == "online" and not has_key():
        return "off", (
            "Weights & Biases is off, as no API key is configured; turn it on with `wandb login`, "
            "or record without an account by --logging.wandb offline"
        )
    return mode, None


def build_loggers(
    options: LoggingOptions,
    run_dir: Path,
    config: dict[str, Any],
    resumed_step: int | None = None,
) -> list[Logger]:
    """The loggers for a Trainer: ``metrics.csv``, and Weights & Biases where it is on.

    Args:
        options: see there.
        run_dir: the run directory.
        config: the full resolved configuration, shown beside the run at Weights & Biases.
        resumed_step: the step of the checkpoint the run goes on from; None for a new run.

    Raises:
        UserError: a new run, and there is a ``metrics.csv``; or it is damaged.
    """
    loggers: list[Logger] = [MetricsCSV(run_dir / "metrics.csv", resumed_step)]
    if getattr(rank_zero_only, "rank", 0) != 0:
        return loggers
    mode, line = resolve_mode(options.wandb, os.environ, has_wandb_key)
    if line:
        say(line)
    if mode != "off":
        loggers.append(
            WandbRun(
                run_dir,
                mode,
                project=options.project,
                name=options.name or run_dir.resolve().name,
                group=options.group,
                tags=options.tags,
                config=config,
            )
        )
    return loggers


def log_table(
    loggers: Iterable[Logger],
    name: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    step: int,
) -> None:
    """Log a table, such as validation predictions, where there is a place for one."""
    for logger in loggers:
        if isinstance(logger, WandbRun):
            logger.log_table(name, columns, rows, step)


def log_image(loggers: Iterable[Logger], name: str, path: Path, step: int) -> None:
    """Log a picture, where there is a place for one."""
    for logger in loggers:
        if isinstance(logger, WandbRun):
            logger.log_image(name, path, step)


def close_loggers(loggers: Iterable[Logger]) -> None:
    """End the runs of the loggers; to be called when nothing more will be logged."""
    for logger in loggers:
        if isinstance(logger, WandbRun):
            logger.close()
