"""Sentences of a table: words with a tag each, or a text with labelled spans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlm.errors import UserError
from tasks.rows import Rows, find_columns
from tasks.tags import Span, Word, cuts_words, join_words, split_words, tags_of_spans

Sentence = str | tuple[str, ...]
"""A text that is still to be parted into words, or words."""

# The label columns that are looked for, in this order, where none is named.
_LABELS = (("ner_tags",), ("spans",), ("entities",))


def words_of(sentence: Sentence) -> list[Word]:
    """The words, and where they stand in `text_of` it."""
    return split_words(sentence) if isinstance(sentence, str) else join_words(sentence)[1]


def text_of(sentence: Sentence) -> str:
    """The text, or the words with a space between any two."""
    return sentence if isinstance(sentence, str) else " ".join(sentence)


def find_label_column(rows: Rows) -> str:
    """The column with tags or spans; a `UserError` where the table has none."""
    return find_columns(rows, _LABELS, "data.label_column")[0]


def read_sentences(rows: Rows, column: str) -> list[Sentence]:
    """One a row; a `UserError` names the row that has none. Nothing is the empty text."""
    found: list[Sentence] = []
    for row, value in enumerate(rows.values(column), start=1):
        if isinstance(value, str | None):
            found.append(value or "")
        elif isinstance(value, list) and all(isinstance(word, str) for word in value):
            found.append(tuple(value))
        else:
            raise UserError(
                f"{rows.path}: row {row}: column {column!r} holds neither a text nor a list of "
                "words"
            )
    return found


def read_tags(
    rows: Rows, sentences: Sequence[Sentence], column: str, labels: Sequence[str]
) -> list[list[str]]:
    """The tags of each sentence's words.

    Args:
        rows: the table.
        sentences: of its rows, as `read_sentences` gives them.
        column: holds lists of tags for words, and lists of spans for texts.
        labels: where a tag is a number and none of these, it is a place among them.

    Raises:
        UserError: anything else, or not a tag for every word, naming the row.
    """
    found = []
    for row, (sentence, value) in enumerate(zip(sentences, rows.values(column), strict=True), 1):
        try:
            if isinstance(sentence, str):
                tags = tags_of_spans(_spans(value, sentence), split_words(sentence))
            else:
                tags = _tags(value, len(sentence), labels)
        except ValueError as error:
            raise UserError(f"{rows.path}: row {row}: column {column!r}: {error}") from None
        found.append(tags)
    return found


def count_cuts(rows: Rows, sentences: Sequence[Sentence], column: str) -> int:
    """How many spans begin or end inside a word; all of them were read by `read_tags`."""
    return sum(
        cuts_words(span, split_words(sentence))
        for sentence, value in zip(sentences, rows.values(column), strict=True)
        if isinstance(sentence, str)
        for span in _spans(value, sentence)
    )


def _tags(value: Any, words: int, labels: Sequence[str]) -> list[str]:
    if not isinstance(value, list):
        raise ValueError("holds no list of tags, one a word")
    if len(value) != words:
        raise ValueError(f"{len(value)} tags for {words} words")
    return [_tag(tag, labels) for tag in value]


def _tag(value: Any, labels: Sequence[str]) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise ValueError(f"{value!r} is not a tag")
    if isinstance(value, int) and str(value) not in labels and 0 <= value < len(labels):
        return labels[value]
    return str(value)


def _spans(value: Any, text: str) -> list[Span]:
    """Checked spans; none where the cell is empty."""
    if not isinstance(value, list | None):
        raise ValueError("holds no list of spans")
    return [_span(span, text) for span in value or []]


def _span(value: Any, text: str) -> Span:
    if not isinstance(value, dict):
        raise ValueError(f"{value!r} is no span, which has start, end and label")
    start, end = value.get("start"), value.get("end")
    label = value.get("label", value.get("type"))
    if type(start) is not int or type(end) is not int:
        raise ValueError(f"a span from {start!r} to {end!r}; both must be whole numbers")
    if not 0 <= start < end <= len(text):
        raise ValueError(f"a span from {start} to {end} in a text of {len(text)} characters")
    if not isinstance(label, str) or not label.strip():
        raise ValueError(f"the span from {start} to {end} has no label")
    return Span(label, start, end)
