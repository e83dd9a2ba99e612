"""Texts → token ids, as the model reads them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from mlm.errors import UserError

CHUNK = 10_000  # encodings are ten times as large as their ids


@dataclass(frozen=True)
class Example:
    """One input as the model reads it."""

    input_ids: np.ndarray
    """(s,) int32, special tokens included."""
    token_type_ids: np.ndarray | None = None
    """(s,) int8: 0 for the first text of a pair, 1 for the second."""
    label: Any = None
    """What is to be predicted, as the task's loss takes it."""
    truncated: bool = False
    """Whether something of the input was cut off."""
    row: int = 0
    """Which of the inputs that were encoded together it is, or is a window of; from 0."""
    places: np.ndarray | None = None
    """(s,) or (s, 2) int32: where in its input a token stands, as its task counts; -1 nowhere."""


@dataclass(frozen=True)
class Texts(Example):
    """Several sequences of one row, special tokens included; `input_ids` has them end to end."""

    lengths: tuple[int, ...] = ()
    """Tokens of each."""

    @classmethod
    def of(cls, parts: Sequence[Example], row: int) -> Texts:
        """Examples of one row as one."""
        types = [part.token_type_ids for part in parts if part.token_type_ids is not None]
        return cls(
            np.concatenate([part.input_ids for part in parts]),
            np.concatenate(types) if types else None,
            truncated=any(part.truncated for part in parts),
            row=row,
            lengths=tuple(len(part.input_ids) for part in parts),
        )

    def parts(self) -> list[np.ndarray]:
        """The ids of each."""
        return self._cut(self.input_ids)

    def type_parts(self) -> list[np.ndarray]:
        """The token types of each, where it is a pair."""
        assert self.token_type_ids is not None
        return self._cut(self.token_type_ids)

    def _cut(self, joined: np.ndarray) -> list[np.ndarray]:
        return np.split(joined, np.cumsum(self.lengths)[:-1])


def encode_texts(
    inputs: Sequence[tuple[str, ...]], tokenizer: Tokenizer, max_length: int
) -> list[Example]:
    """Texts or pairs of texts → token ids with the tokenizer's special tokens.

    Args:
        inputs: tuples of one text, or all of two.
        tokenizer: left as it is.
        max_length: tokens at most, special ones included; of a pair the longer text is cut first.

    Raises:
        UserError: a `max_length` that leaves no room for the text.
    """
    pair = bool(inputs) and len(inputs[0]) == 2
    check_length(tokenizer, pair, max_length)
    tokenizer = _truncating(tokenizer, max_length)
    examples: list[Example] = []
    for start in range(0, len(inputs), CHUNK):
        chunk = inputs[start : start + CHUNK]
        for encoding in tokenizer.encode_batch_fast([t if pair else t[0] for t in chunk]):
            examples.append(
                Example(
                    np.asarray(encoding.ids, np.int32),
                    np.asarray(encoding.type_ids, np.int8) if pair else None,
                    truncated=bool(encoding.overflowing),
                    row=len(examples),
                )
            )
    return examples


def check_length(tokenizer: Tokenizer, pair: bool, max_length: int) -> int:
    """How many tokens of text fit beside the special ones.

    Raises:
        UserError: fewer than one a text.
    """
    special = tokenizer.num_special_tokens_to_add(pair)
    if max_length <= special + pair:
        raise UserError(
            f"data.max_length: {max_length} leaves no room beside {special} special tokens; "
            f"choose at least {special + pair + 1}"
        )
    return max_length - special


@functools.lru_cache(maxsize=4)
def whole(tokenizer: Tokenizer) -> Tokenizer:
    """A copy that cuts nothing off."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_padding()
    copy.no_truncation()
    return copy


@functools.lru_cache(maxsize=4)
def _truncating(tokenizer: Tokenizer, max_length: int) -> Tokenizer:
    """A copy that truncates: truncation is a state of the object, and others use it too."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_padding()
    copy.enable_truncation(max_length, strategy="longest_first")
    return copy
