"""Long inputs in windows that overlap, for tasks that answer about places in their input.

Shapes: ``n`` tokens of a whole input without its special ones, ``s`` tokens of an example.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from tokenizers import Tokenizer

from mlm.data.tokenizer import special_ids
from mlm.errors import UserError
from mlm.model.config import EncoderConfig
from tasks.base import Task
from tasks.encoding import CHUNK, Example, check_length, whole
from tasks.settings import TaskSettings


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
    tokenizer = whole(tokenizer)
    examples: list[Example] = []
    for start in range(0, len(sentences), CHUNK):
        chunk = [list(words) for words in sentences[start : start + CHUNK]]
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


def encode_contexts(
    pairs: Sequence[tuple[str, str]], tokenizer: Tokenizer, max_length: int, stride: int
) -> list[Example]:
    """Questions with contexts → token ids, long contexts in windows, the question in each.

    `Example.places` has (s, 2) where the tokens of the context begin and end in it, in characters.
    A question that leaves a window too little room is cut, and its examples are `truncated`.

    Args:
        pairs: (question, context).
        tokenizer: left as it is.
        max_length: tokens at most, special ones included.
        stride: tokens of the context that neighbouring windows have in common.

    Raises:
        UserError: a ``max_length`` or ``stride`` that leaves no room.
    """
    room = check_length(tokenizer, True, max_length)
    longest = (room - stride) // 2  # so that a window has as many new tokens at least
    if longest < 1:
        raise UserError(
            f"data.stride: {stride} leaves no room for a question in windows of {room} tokens; "
            "choose less"
        )
    tokenizer = whole(tokenizer)
    examples: list[Example] = []
    for start in range(0, len(pairs), CHUNK // 10):  # contexts are long
        encodings = tokenizer.encode_batch(list(pairs[start : start + CHUNK // 10]))
        for row, encoding in enumerate(encodings, start):
            examples += _context_windows(encoding, row, max_length, longest, stride)
    return examples


def _context_windows(
    encoding: Any, row: int, max_length: int, longest: int, stride: int
) -> list[Example]:
    """A whole pair, its question cut to ``longest`` tokens, as examples."""
    texts = np.array([-1 if text is None else text for text in encoding.sequence_ids])
    beyond = np.flatnonzero(texts == 0)[longest:]
    texts, ids, types, offsets = (
        np.delete(np.asarray(values, np.int32), beyond, axis=0)
        for values in (texts, encoding.ids, encoding.type_ids, encoding.offsets)
    )
    places = np.where(texts[:, None] == 1, offsets, -1)
    inside = np.flatnonzero(texts == 1)
    body = slice(inside[0], inside[-1] + 1) if len(inside) else slice(1, 1)
    room = max_length - (len(ids) - len(inside))
    return [
        Example(
            cut(ids, body, part),
            cut(types, body, part).astype(np.int8),
            truncated=len(beyond) > 0,
            row=row,
            places=cut(places, body, part),
        )
        for part in windows(len(inside), room, stride)
    ]


@functools.lru_cache(maxsize=4)
def _keeps_spaces(tokenizer: Tokenizer) -> bool:
    """Whether a token holds the space before it, as in byte-level tokenizers."""
    return '"ByteLevel"' in json.dumps(json.loads(tokenizer.to_str())["pre_tokenizer"])


class WindowTask(Task):
    """A task whose long inputs become windows that overlap, so that nothing is cut off."""

    reads = frozenset({"stride"})
    shared: ClassVar[float] = 0.25
    """The share of a window's tokens that the next one has too, where `data.stride` says none."""

    def __init__(self, settings: TaskSettings) -> None:
        super().__init__(settings)
        if settings.pooling is not None:
            raise UserError(
                f"model.pooling: the task {self.name} reads every token and pools none; leave it "
                "out"
            )
        if settings.stride is not None and settings.stride < 0:
            raise UserError(f"data.stride: {settings.stride} must be at least 0")

    def settle(self, config: EncoderConfig) -> None:
        """Settle the longest window, and what neighbouring ones have in common."""
        super().settle(config)
        stride, length = self.settings.stride, self.settings.max_length
        assert length is not None
        stride = int(length * self.shared) if stride is None else stride
        self.settings = replace(self.settings, pooling=None, stride=stride)
