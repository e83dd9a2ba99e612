"""The exceptions that are meant for people."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TypeVar

T = TypeVar("T")


class UserError(Exception):
    """A mistake of the caller's: says in one line what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


class RunError(Exception):
    """A run that cannot go on, through no mistake in what was asked: says why, and what to do.

    The command line prints it without a traceback and exits with code 1.
    """


def look_up(table: Mapping[str, T], name: str, setting: str) -> T:
    """What ``table`` holds under ``name``.

    Raises:
        UserError: no such name; says which ones there are, and the nearest.

    >>> look_up({"cls": 1, "mean": 2}, "mean", "pooling")
    2
    """
    if name in table:
        return table[name]
    near = get_close_matches(name, table, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise UserError(f"{setting}: {name!r} is not known; choose one of {', '.join(table)}{hint}")


def check_count(name: str, value: int | None) -> None:
    """Refuse a number below 1; None, where it may be left out, passes.

    Raises:
        UserError: so, by the setting's ``name``.
    """
    if value is not None and value < 1:
        raise UserError(f"{name}: {value} must be at least 1")
