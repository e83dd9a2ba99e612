"""The rows of a table, and where they were read, so that a mistake in one can be named."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from mlm.data.tables import column_values, read_table, text_column
from mlm.errors import UserError


@dataclass(frozen=True)
class Rows:
    """A table and where it was read, so that a mistake in it can be named."""

    table: pa.Table
    path: Path

    @classmethod
    def read(cls, path: str | Path) -> Rows:
        """The table at ``path``; a `UserError` where it has no rows."""
        table = read_table(path)
        if table.num_rows == 0:
            raise UserError(f"{path}: has no rows")
        return cls(table, Path(path))

    def values(self, column: str) -> list[Any]:
        """One column's values; a `UserError` names those there are."""
        return column_values(self.table, column, self.path)

    def texts(self, column: str) -> list[str]:
        """One column's texts, null as the empty text."""
        return text_column(self.table, column, self.path)

    def numbers(self, column: str) -> list[float]:
        """One column's numbers, which may stand as text; a `UserError` names the first other."""
        found = []
        for row, value in enumerate(self.values(column), start=1):
            try:
                number = math.nan if isinstance(value, bool) else float(value)
            except (TypeError, ValueError, OverflowError):
                number = math.nan
            if not math.isfinite(number):
                raise UserError(
                    f"{self.path}: row {row}: column {column!r}: {value!r} is not a number"
                )
            found.append(number)
        return found


def find_columns(
    rows: Rows, known: Sequence[tuple[str, ...]], option: str = "data.text_column"
) -> tuple[str, ...]:
    """The first of ``known`` whose columns the table has; a `UserError` where it has none."""
    names = rows.table.column_names
    for columns in known:
        if set(columns) <= set(names):
            return columns
    wanted = ", nor ".join(" and ".join(map(repr, columns)) for columns in known)
    raise UserError(
        f"{rows.path}: no column {wanted} among {', '.join(map(repr, names))}; "
        f"name yours with --{option}"
    )
