"""``metrics.csv``: every metric of a run in full precision, one line a logged step.

Lightning's own ``CSVLogger`` deletes the file when it is opened again and flushes every hundred
steps; this one appends, and a line is in the file when ``log_metrics`` returns.
"""

from __future__ import annotations

import csv
import errno
import io
import os
from argparse import Namespace
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from mlm.errors import UserError
from mlm.files import atomic_file

# Lightning adds `epoch` to everything it logs; an endless stream of rows has no use for it.
LEFT_OUT = ("step", "epoch")


def format_number(value: Any) -> str:
    """A number as a cell that reads back as exactly the same number.

    >>> format_number(0.1 + 0.2), format_number(3), format_number(float("nan"))
    ('0.30000000000000004', '3', 'nan')
    """
    if hasattr(value, "item"):  # a scalar of torch or NumPy
        value = value.item()
    if isinstance(value, int):  # a bool too
        return str(int(value))
    if isinstance(value, float):
        return repr(value)
    raise TypeError(f"a metric is a number, not {value!r}")


def format_rows(rows: Iterable[Iterable[str]]) -> str:
    r"""Rows of cells as lines of CSV.

    >>> format_rows([["step", "recall, mean"], ["10", ""]])
    'step,"recall, mean"\n10,\n'
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def parse_number(cell: str) -> int | float | None:
    """The number in a cell, None where the cell is empty."""
    if not cell:
        return None
    try:
        return int(cell)
    except ValueError:
        return float(cell)


def read_rows(path: str | Path) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of a ``metrics.csv``, a torn last line left out.

    Returns:
        The names of the columns, ``step`` first (none where not even the header is whole), and
        the rows, as many cells each.

    Raises:
        UserError: no such file, or a line of it is no row of numbers.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a metrics.csv") from None
    whole = text[: text.rfind("\n") + 1]
    columns, *rows = list(csv.reader(io.StringIO(whole, newline=""))) or [[]]
    if columns and columns[0] != "step":
        raise UserError(f"{path}: the first column is not `step`; move the file out of the way")
    for line, row in enumerate(rows, start=2):
        try:
            int(row[0])
            damaged = len(row) != len(columns)
            for cell in row:
                parse_number(cell)
        except (ValueError, IndexError):
            damaged = True
        if damaged:
            raise UserError(f"{path}: line {line} is damaged; move the file out of the way")
    return columns, rows


def read_metrics(path: str | Path) -> dict[str, list[int | float | None]]:
    """What a ``metrics.csv`` holds, a list a column, None where nothing was logged.

    Raises:
        UserError: no such file, or a line of it is no row of numbers.
    """
    columns, rows = read_rows(path)
    return {name: [parse_number(row[i]) for row in rows] for i, name in enumerate(columns)}


class MetricsCSV(Logger):
    """Writes the metrics of a run to a CSV file, on rank zero alone.

    A row is one write to the file's end, so a killed run leaves at worst one torn line, the last.
    Nothing is kept open between rows. The file is there from the first row on.

    Args:
        path: the file; its folder is the logger's ``save_dir``.
        resumed_step: the step of the checkpoint that the run goes on from: later rows are cut,
            and a torn last line. None: a new run.

    Raises:
        UserError: a new run, and the file exists; or it is damaged.
    """

    def __init__(self, path: str | Path, resumed_step: int | None = None) -> None:
        super().__init__()
        self.path = Path(path)
        self._columns: list[str] = []
        if getattr(rank_zero_only, "rank", 0) == 0 and self.path.exists():
            if resumed_step is None:
                raise UserError(
                    f"{self.path}: holds the metrics of another run; resume that run, or choose "
                    "another run directory"
                )
            self._cut(resumed_step)

    @property
    def name(self) -> str:
        """Empty: the run directory is the name."""
        return ""

    @property
    def version(self) -> str:
        """Empty: a run directory holds one run."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run directory."""
        return str(self.path.parent)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Append one row; a metric seen for the first time becomes the last column."""
        if step is None:
            raise ValueError("metrics are logged with their step")
        row = {k: format_number(v) for k, v in metrics.items() if k not in LEFT_OUT}
        if not row:
            return
        new = [name for name in row if name not in self._columns]
        if new:
            self._widen(new)
        self._append([str(int(step)), *(row.get(name, "") for name in self._columns[1:])])

    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """Nothing: ``config.yaml`` beside the file has them."""

    def _append(self, row: list[str]) -> None:
        line = format_rows([row]).encode()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            written = os.write(descriptor, line)
        finally:
            os.close(descriptor)
        if written != len(line):
            raise OSError(errno.ENOSPC, "the disk is full", str(self.path))

    def _widen(self, new: list[str]) -> None:
        rows = read_rows(self.path)[1] if self._columns else []
        self._columns = [*(self._columns or ["step"]), *new]
        self._replace([[*row, *[""] * len(new)] for row in rows])

    def _cut(self, last_step: int) -> None:
        self._columns, rows = read_rows(self.path)
        if self._columns:
            self._replace([row for row in rows if int(row[0]) <= last_step])
        else:  # killed while the first line was written
            self.path.unlink()

    def _replace(self, rows: list[list[str]]) -> None:
        with atomic_file(self.path) as draft:
            draft.write_text(format_rows([self._columns, *rows]), encoding="utf-8")
