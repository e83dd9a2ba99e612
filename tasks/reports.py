"""What a run has to show, as text: tables and model cards."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

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


def model_card(task: Task, scores: Mapping[str, float], steps: int) -> str:
    """What a fine-tuned model is and what was measured of it, and nothing else."""
    settings = task.settings
    columns = " and ".join(f"`{name}`" for name in settings.text_column)
    lines = [f"# {task.name.replace('_', ' ').capitalize()}", ""]
    lines.append(f"Predicts `{settings.label_column}` from {columns}, after {steps:,} steps.")
    if settings.labels:
        lines += ["", f"Labels: {', '.join(settings.labels)}."]
    if scores:
        lines += ["", "On the validation set:", ""]
        lines += [f"- {name.removeprefix('val/')}: {value:.4f}" for name, value in scores.items()]
    lines += [
        "",
        "```python",
        "from tasks.inference import Predictor",
        "",
        'Predictor.from_pretrained("this/folder")([…])',
        "```",
    ]
    return "\n".join(lines)
