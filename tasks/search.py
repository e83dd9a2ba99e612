"""A small grid of settings, each trained by itself; validation chooses, and no test set is seen."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlm.errors import look_up

# grid: {setting: factors of the value that is given}. A rate too small or too large costs more than
# any other choice, and which rate suits depends on the batch
# (https://arxiv.org/abs/1810.04805, appendix A.3, has a grid like this).
GRIDS: dict[str, dict[str, tuple[float, ...]]] = {
    "none": {},
    "small": {"optimizer.lr": (1 / 3, 1.0, 3.0), "data.batch_size": (0.5, 1.0)},
}


def grid_jobs(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The settings of each run of the grid, in a folder of `run_dir/search`.

    Args:
        settings: of ``mlm finetune``; ``search`` names the grid.

    Raises:
        UserError: there is no such grid.
    """
    grid = look_up(GRIDS, settings["search"], "search")
    jobs: dict[str, dict[str, Any]] = {}
    for factors in itertools.product(*grid.values()):
        job, names = {**settings, "seeds": 1}, []
        for setting, factor in zip(grid, factors, strict=True):
            group, name = setting.split(".")
            value = _scaled(settings[group][name], factor)
            job[group] = {**job[group], name: value}
            names.append(f"{name}_{value}")
        folder = Path(settings["run_dir"]) / "search" / "_".join(names)
        jobs.setdefault(str(folder), {**job, "run_dir": str(folder)})
    return list(jobs.values())


def _scaled(value: float, factor: float) -> float:
    """``value`` times ``factor``: of an integer an integer, of a rate three digits.

    >>> _scaled(32, 0.5), _scaled(1, 0.5), _scaled(1e-4, 1 / 3), _scaled(1.23456e-4, 1.0)
    (16, 1, 3.33e-05, 0.000123456)
    """
    if factor == 1.0:
        return value
    return max(1, int(value * factor)) if isinstance(value, int) else float(f"{value * factor:.3g}")


def described(job: Mapping[str, Any]) -> dict[str, Any]:
    """What of a job the grid decides."""
    grid = GRIDS[job["search"]]
    return {setting: job[group][name] for setting in grid for group, name in [setting.split(".")]}
