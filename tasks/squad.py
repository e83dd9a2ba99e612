"""Answers to questions, scored as SQuAD's own script does (https://rajpurkar.github.io/SQuAD-explorer/).

This is the script of version 2, which knows questions without an answer; where all have one it
gives what version 1's does, save for answers of articles and punctuation alone.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from mlm.errors import UserError
from tasks.rows import Rows, find_columns

_STRUCT = "answers"
_TEXT, _START = "answer_text", "answer_start"


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation and articles, one space between words.

    >>> normalize_answer("The  Great Wall, of China!")
    'great wall of china'
    """
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(answer: str, gold: str) -> float:
    """1 where both are the same, normalised, else 0."""
    return float(normalize_answer(answer) == normalize_answer(gold))


def f1(answer: str, gold: str) -> float:
    """F1 of the words that both have in common, normalised; without words as `exact_match`.

    >>> f1("the Great Wall", "wall of China")
    0.4
    """
    found, true = normalize_answer(answer).split(), normalize_answer(gold).split()
    if not found or not true:
        return float(found == true)
    common = (Counter(found) & Counter(true)).total()
    return 2 * common / (len(found) + len(true))


def best_over(score: Callable[[str, str], float], answer: str, golds: Sequence[str]) -> float:
    """``score`` with the gold answer that suits best; the empty answer is right where none is."""
    return max(score(answer, gold) for gold in [g for g in golds if normalize_answer(g)] or [""])


def find_answer_column(rows: Rows) -> str:
    """SQuAD's own `answers`, or `answer_text`; a `UserError` where the table has neither."""
    return find_columns(rows, ((_STRUCT,), (_TEXT, _START)), "data.label_column")[0]


def read_answers(rows: Rows, contexts: Sequence[str], column: str) -> list[list[tuple[int, str]]]:
    """Where each right answer begins in its context, and its text; none where there is none.

    Args:
        rows: the table.
        contexts: of its rows.
        column: objects with `text` and `answer_start`, or texts, which begin as the column
            `answer_start` says; of both a list a row, or one.

    Raises:
        UserError: an answer that is not where it is said to be, or anything else, with its row.
    """
    values = rows.values(column)
    if not any(isinstance(value, dict) for value in values):
        starts = rows.values(_START)
        values = [{"text": t, _START: s} for t, s in zip(values, starts, strict=True)]
    found = []
    for row, (value, context) in enumerate(zip(values, contexts, strict=True), start=1):
        try:
            found.append(_answers(value, context))
        except ValueError as error:
            raise UserError(f"{rows.path}: row {row}: column {column!r}: {error}") from None
    return found


def _answers(value: Any, context: str) -> list[tuple[int, str]]:
    if not isinstance(value, dict | None):
        raise ValueError("holds no object with text and answer_start")
    texts, starts = (_as_list((value or {}).get(key)) for key in ("text", _START))
    if texts in ([], [""]):
        return []
    if len(texts) != len(starts):
        raise ValueError(f"{len(texts)} texts, and {len(starts)} places where they begin")
    for text, start in zip(texts, starts, strict=True):
        if isinstance(text, bool) or not isinstance(text, str | int) or text == "":
            raise ValueError(f"{text!r} is no text of an answer")
        if type(start) is not int:
            raise ValueError(f"answer_start {start!r} is not a whole number")
        there = context[start : start + len(str(text))] if start >= 0 else ""
        if there != str(text):
            raise ValueError(f"the answer {text!r} does not begin at {start}, there is {there!r}")
    return [(start, str(text)) for text, start in zip(texts, starts, strict=True)]


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
