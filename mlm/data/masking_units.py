"""What is masked together: single tokens, whole words, or spans of words.

Which tokens make up a word is told by the tokenizer's vocabulary alone, whatever its kind, so that
token ids are all that need be stored.

Shapes: ``V`` ids, ``n`` ordinary tokens of all rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mlm.data.keys import uniforms

if TYPE_CHECKING:  # masks are made where there is no such library, too
    from tokenizers import Tokenizer

# Tokens in a unit at most; longer ones are cut. So a row's masked tokens are bounded.
LONGEST_UNIT = 16
# Words in a span in the mean, as in SpanBERT (https://arxiv.org/abs/1907.10529, section 3.1).
_WORDS_IN_A_SPAN = 3.8

# Scripts that are written without spaces: there every token is a word by itself.
_UNSPACED = ((0x2E80, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))
# How a byte-level alphabet writes bytes: those that begin such scripts' letters, and symbols, in
# UTF-8; and spaces and control characters, the space being Ġ.
_UNSPACED_BYTES, _SPACE_BYTES, _SPACE = "âãäåæçèéð", (0x100, 0x121), "Ġ"


@dataclass(frozen=True)
class Joints:
    """Which ids may stand in the middle of a word."""

    follows: np.ndarray
    """(V,) bool: it may go on with the word of the token before."""
    goes_on: np.ndarray
    """(V,) bool: the word may go on after it."""


def find_joints(tokenizer: Tokenizer, size: int) -> Joints:
    """Read the joints off a vocabulary.

    WordPiece marks what follows by a prefix (`##`), and old BPE what ends a word by a suffix
    (`</w>`). Byte-level BPE and Unigram mark spaces: there a token follows where it begins with a
    letter or a digit and the one before ends with one.

    Args:
        tokenizer: of any kind.
        size: V, at least its number of ids.
    """
    model = json.loads(tokenizer.to_str())["model"]
    prefix = model.get("continuing_subword_prefix") or ""
    suffix = model.get("end_of_word_suffix") or ""
    follows, goes_on = np.zeros(size, bool), np.zeros(size, bool)
    special, vocabulary = tokenizer.get_added_tokens_decoder(), tokenizer.get_vocab()
    in_bytes = _SPACE in vocabulary
    inside = _is_inside if in_bytes else _is_letter
    for token, place in vocabulary.items():
        if place in special or not token:
            continue
        if prefix:
            follows[place], goes_on[place] = token.startswith(prefix), True
        elif suffix:
            follows[place], goes_on[place] = True, not token.endswith(suffix)
        else:
            follows[place], goes_on[place] = inside(token[0]), inside(token[-1])
            if in_bytes and token[0] in _UNSPACED_BYTES:
                follows[place] = False
    return Joints(follows, goes_on)


def _is_letter(character: str) -> bool:
    """A letter or digit of a script that has spaces."""
    return character.isalnum() and not any(a <= ord(character) <= b for a, b in _UNSPACED)


def _is_inside(byte: str) -> bool:
    """A letter or digit, or a byte of one that has more; not spaces and what is like them."""
    first, last = _SPACE_BYTES
    return byte.isalnum() if byte.isascii() else not first <= ord(byte) <= last


Breaks = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def _each_word(begins: np.ndarray, keys: np.ndarray, places: np.ndarray) -> np.ndarray:
    return begins


def _spans(begins: np.ndarray, keys: np.ndarray, places: np.ndarray) -> np.ndarray:
    """A word begins a span with the same probability each, so that lengths are geometric."""
    return begins & (uniforms(keys, places) < 1 / _WORDS_IN_A_SPAN)


# name: (whether a word begins at each token (n,), keys (n,), places in their rows (n,)) → whether
# a unit does, beside those that begin where something else stood before; None is each token.
UNITS: dict[str, Breaks | None] = {"token": None, "word": _each_word, "span": _spans}


def unit_starts(
    breaks: Breaks,
    joints: Joints,
    ids: np.ndarray,
    ordinary: np.ndarray,
    row: np.ndarray,
    keys: np.ndarray,
    places: np.ndarray,
) -> np.ndarray:
    """Where among the ordinary tokens each unit begins.

    Args:
        breaks: one of `UNITS`.
        joints: of the vocabulary.
        ids: all ids.
        ordinary: (n,) the places of the ordinary ones, ascending.
        row: (n,) the row of each.
        keys: (n,) uint64, for what is random about it.
        places: (n,) the place of each in its row.

    Returns:
        (units,) ascending; the first is 0 where there are tokens at all.
    """
    if not len(ordinary):
        return np.empty(0, np.int64)
    before = np.roll(ordinary, 1)
    apart = (ordinary != before + 1) | (row != np.roll(row, 1))  # something special in between
    apart[0] = True
    found, last = ids[ordinary], ids[before]
    begins = apart | ~(joints.follows[found] & joints.goes_on[last])
    starts = np.flatnonzero(apart | breaks(begins, keys, places))
    return _cut(starts, len(ordinary))


def _cut(starts: np.ndarray, total: int) -> np.ndarray:
    """``starts`` and more of them, so that no unit has more than `LONGEST_UNIT` tokens."""
    lengths = np.diff(starts, append=total)
    pieces = -(-lengths // LONGEST_UNIT)
    first = np.repeat(starts, pieces)
    number = np.arange(len(first)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    return first + number * LONGEST_UNIT
