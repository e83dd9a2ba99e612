"""Texts → token ids, as the model reads them; long ones in windows.

Shapes: ``n`` tokens of a whole input without its special ones, ``s`` tokens of an example.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from mlm.data.tokenizer import special_ids
from mlm.errors import UserError

_CHUNK = 10_000  # encodings are ten times as large as their ids


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
    for start in range(0, len(inputs), _CHUNK):
        chunk = inputs[start : start + _CHUNK]
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


def windows(length: int, room: int, stride: int) -> list[slice]:
    """Parts of ``length`` tokens, each of ``room`` at most, neighbours with ``stride`` in common.

    >>> windows(10, 6, 2)
    [slice(0, 6, None), slice(4, 10, None)]
    >>> windows(0, 6, 2)
    [slice(0, 0, None)]
    """
    step = room - stride
    beyond = max(0, length - room)
    starts = range(0, beyond + step, step) if beyond else [0]
    return [slice(start, min(start + room, length)) for start in starts]


def most_context(parts: Sequence[slice], length: int) -> np.ndarray:
    """Which of `windows` reads most on both sides of each token; of equals the first.

    >>> most_context(windows(10, 6, 2), 10).tolist()
    [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]

    Returns:
        (n,) numbers of windows.
    """
    owner, most = np.zeros(length, np.int64), np.full(length, -1)
    for number, part in enumerate(parts):
        places = np.arange(part.start, part.stop)
        context = np.minimum(places - part.start, part.stop - 1 - places)
        better = places[context > most[part]]
        owner[better], most[better] = number, context[better - part.start]
    return owner


def cut(values: np.ndarray, body: slice, part: slice) -> np.ndarray:
    """``values`` of a whole input with only ``part`` of its ``body``, in the same frame."""
    return np.concatenate([values[: body.start], values[body][part], values[body.stop :]])


def encode_words(
    sentences: Sequence[Sequence[str]], tokenizer: Tokenizer, max_length: int, stride: int
) -> list[Example]:
    """Words → token ids; in `Example.places` stands at a token which word it decides.

    A word is decided at its first token, in the one window where that has most context. One that
    the tokenizer finds nothing in, such as a lone control character, is read as an unknown one.

    Args:
        sentences: each a list of words.
        tokenizer: left as it is.
        max_length: tokens at most, special ones included; longer sentences become windows.
        stride: tokens that neighbouring windows have in common.

    Raises:
        UserError: a ``max_length`` or ``stride`` that leaves no room.
    """
    room = check_length(tokenizer, False, max_length)
    if stride >= room:
        raise UserError(
            f"data.stride: {stride} is as long as a window, which has room for {room} tokens; "
            "choose less"
        )
    unknown = str(tokenizer.id_to_token(special_ids(tokenizer).unk))
    tokenizer = _whole(tokenizer)
    examples: list[Example] = []
    for start in range(0, len(sentences), _CHUNK):
        chunk = [list(words) for words in sentences[start : start + _CHUNK]]
        if _keeps_spaces(tokenizer):  # which would run all words of a sentence together
            chunk = [words[:1] + [f" {word}" for word in words[1:]] for words in chunk]
        encodings = tokenizer.encode_batch(chunk, is_pretokenized=True)
        for row, (words, encoding) in enumerate(zip(chunk, encodings, strict=True), start):
            found = set(encoding.word_ids)
            if len(found - {None}) < len(words):
                words = [w if i in found else unknown for i, w in enumerate(words)]
                encoding = tokenizer.encode(words, is_pretokenized=True)
            ids = np.asarray(encoding.ids, np.int32)
            owners = np.array([-1 if w is None else w for w in encoding.word_ids], np.int32)
            examples += _word_windows(ids, owners, row, room, stride)
    return examples


def _word_windows(
    ids: np.ndarray, words: np.ndarray, row: int, room: int, stride: int
) -> list[Example]:
    """A whole sentence's ids, and the word that each token is of, as examples."""
    inside = np.flatnonzero(words >= 0)
    body = slice(inside[0], inside[-1] + 1) if len(inside) else slice(1, 1)
    firsts = np.where(np.diff(words[body], prepend=-1) != 0, words[body], -1)
    parts = windows(len(firsts), room, stride)
    owner = most_context(parts, len(firsts))
    examples = []
    for number, part in enumerate(parts):
        places = np.full_like(words, -1)
        places[body] = np.where(owner == number, firsts, -1)
        examples.append(Example(cut(ids, body, part), row=row, places=cut(places, body, part)))
    return examples


@functools.lru_cache(maxsize=4)
def _whole(tokenizer: Tokenizer) -> Tokenizer:
    """A copy that cuts nothing off."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_padding()
    copy.no_truncation()
    return copy


@functools.lru_cache(maxsize=4)
def _keeps_spaces(tokenizer: Tokenizer) -> bool:
    """Whether a token holds the space before it, as in byte-level tokenizers."""
    return '"ByteLevel"' in json.dumps(json.loads(tokenizer.to_str())["pre_tokenizer"])


@functools.lru_cache(maxsize=4)
def _truncating(tokenizer: Tokenizer, max_length: int) -> Tokenizer:
    """A copy that truncates: truncation is a state of the object, and others use it too."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_padding()
    copy.enable_truncation(max_length, strategy="longest_first")
    return copy
