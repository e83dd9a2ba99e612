"""Choices of a table: where they stand, and which is the right one."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import Any

from mlm.errors import UserError
from tasks.rows import Rows, find_columns

# Where choices are looked for: one column with a list of them, or one each, as in CommonsenseQA and
# RACE, HellaSwag, SWAG, COPA, PIQA and WinoGrande.
CHOICE_COLUMNS: tuple[tuple[str, ...], ...] = (
    ("choices",),
    ("options",),
    ("endings",),
    ("ending0", "ending1", "ending2", "ending3"),
    ("choice1", "choice2"),
    ("sol1", "sol2"),
    ("option1", "option2"),
)
LABEL_COLUMNS = (("label",), ("answer",), ("answerKey",))


def read_choices(rows: Rows, columns: Sequence[str]) -> list[tuple[str, ...]]:
    """The choices of each row, everywhere as many.

    Args:
        rows: the table.
        columns: one whose cells are lists of texts, or objects with such a list under `text`; or
            one for each choice.

    Raises:
        UserError: by its row, what is no list of texts, fewer than two, or another number of them
            than in the first row.
    """
    if len(columns) > 1:
        return list(zip(*(rows.texts(name) for name in columns), strict=True))
    (column,) = columns
    found: list[tuple[str, ...]] = []
    for row, value in enumerate(rows.values(column), start=1):
        where = f"{rows.path}: row {row}: column {column!r}"
        texts = value.get("text") if isinstance(value, Mapping) else value
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise UserError(f"{where}: {str(value)[:80]!r} is not a list of texts")
        if len(texts) < 2:
            raise UserError(f"{where}: {len(texts)} choice where there must be two or more")
        if found and len(texts) != len(found[0]):
            raise UserError(
                f"{where}: {len(texts)} choices where row 1 has {len(found[0])}; every row must "
                "have as many"
            )
        found.append(tuple(texts))
    return found


def read_right_ones(
    rows: Rows, column: str, choice_columns: Sequence[str], number: int
) -> list[int]:
    """The place of each row's right choice, from 0.

    A cell is that place, a letter (A is the first), or what the choices' own `label` list calls it.

    Args:
        rows: the table.
        column: the one with the right choices.
        choice_columns: as in `read_choices`.
        number: how many choices there are.

    Raises:
        UserError: by its row, what is none of them.
    """
    cells: list[Any] = rows.values(choice_columns[0]) if len(choice_columns) == 1 else []
    found = []
    for row, value in enumerate(rows.values(column), start=1):
        choices = cells[row - 1] if cells else None
        names = choices.get("label") if isinstance(choices, Mapping) else None
        place = find_place(value, names)
        if place is None or not 0 <= place < number:
            last = string.ascii_uppercase[number - 1] if number <= 26 else number
            raise UserError(
                f"{rows.path}: row {row}: column {column!r}: {str(value)[:80]!r} is none of the "
                f"{number} choices; they are counted from 0 to {number - 1}, or from A to {last}"
            )
        found.append(place)
    return found


def find_place(value: Any, names: Any = None) -> int | None:
    """Which choice a cell means, from 0; None where it means none.

    >>> find_place(2), find_place("2"), find_place("C"), find_place("2", ["1", "2"])
    (2, 2, 2, 1)
    >>> find_place("which?"), find_place(0.5), find_place(True)
    (None, None, None)
    """
    if isinstance(names, list) and value in names:
        return names.index(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if type(value) is int:
        return value
    text = value.strip() if isinstance(value, str) else ""
    if len(text) == 1 and text in string.ascii_uppercase:
        return string.ascii_uppercase.index(text)
    return int(text) if text.isascii() and text.isdigit() and len(text) < 4 else None


def choice_columns(rows: Rows, given: Sequence[str] | None) -> tuple[str, ...]:
    """The columns with the choices: those given, or the first known that are there."""
    return tuple(given) if given else find_columns(rows, CHOICE_COLUMNS, "data.choice_column")
