"""What a run has to show, as text: tables and model cards."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlm.files import atomic_file
from tasks.base import Task

# Wider tables are for the file alone.
_MAX_COLUMNS = 21


def as_text(table: Sequence[Sequence[str]]) -> str:
    """Lines of cells in columns, the first to the left and numbers to the right.

    >>> print(as_text([["", "no", "yes"], ["no", "7", "12"]]))
          no  yes
      no   7   12
    """
    if len(table[0]) > _MAX_COLUMNS:
        return f"  {len(table) - 1} lines, too wide to show"
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for first, *rest in table:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join(["", first.ljust(widths[0]), *cells]))
    return "\n".join(lines)


def as_csv(table: Sequence[Sequence[str]]) -> str:
    """Lines of cells as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(table)
    return text.getvalue()


def as_json(value: Any) -> str:
    """``value`` as one line of JSON, which has no NaN: null stands for it.

    >>> as_json({"pearson": float("nan"), "mse": [1.5]})
    '{"pearson": null, "mse": [1.5]}'
    """
    return json.dumps(_without_nan(value), ensure_ascii=False)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as `as_json` does, whole or not at all."""
    with atomic_file(path) as draft:
        draft.write_text(as_json(value) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote."""
    values = json.loads(path.read_text(encoding="utf-8"))
    return {name: math.nan if value is None else value for name, value in values.items()}


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def model_card(task: Task, scores: Mapping[str, float], steps: int) -> str:
    """What a fine-tuned model is and what was measured of it, and nothing else."""
    settings = task.settings
    lines = [f"# {task.name.replace('_', ' ').capitalize()}", ""]
    lines.append(f"{task.purpose()}, after {steps:,} steps.")
    if settings.labels:
        lines += ["", f"Labels: {', '.join(settings.labels)}."]
    if scores:
        lines += ["", "On the validation set:", ""]
        lines += [f"- {name.removeprefix('val/')}: {value:.4f}" for name, value in scores.items()]
    lines += ["", "```bash", task.usage, "```"]
    return "\n".join(lines)
