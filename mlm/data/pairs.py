"""Two texts in a sequence: does the second follow the first?

A sequence of a document is cut where a sentence ends. For *sentence order* the two parts may be
exchanged (ALBERT, https://arxiv.org/abs/1909.11942); for *next sentence* the second may be of
another document (BERT, https://arxiv.org/abs/1810.04805). Either happens to half of them.

A store holds tokens, not sentences: a sentence ends at a token that is nothing but one of `.!?…`.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mlm.data.keys import mix, uniforms
from mlm.data.packing import Split, row_spans

if TYPE_CHECKING:  # pairs are read where there is no such library, too
    from tokenizers import Tokenizer

_ENDINGS = frozenset(".!?…。\uff01\uff1f")  # the last two are the wide ! and ? of Chinese
# As vocabularies of bytes spell those that are not ASCII: a printable character for each byte.
_SPELLED = {"âĢ¦": "…", "ãĢĤ": "。", "ï¼ģ": "\uff01", "ï¼Ł": "\uff1f"}
_MARKS = ("##", "Ġ", "▁", "</w>")  # what tokenizers write where words begin or go on
# So far beyond the place drawn in another document its next sentence is looked for.
_SEARCHED = 64


class Pair(NamedTuple):
    """Two texts of one sequence, as ordinary ids."""

    first: np.ndarray
    """(a,) what stands in front."""
    second: np.ndarray
    """(b,) what stands behind."""
    follows: bool
    """Whether the second follows the first in a document."""


def sentence_endings(tokenizer: Tokenizer, size: int) -> np.ndarray:
    """(size,) bool: whether a sentence ends with the token, as a vocabulary of any kind has it."""
    found = np.zeros(size, bool)
    for token, place in tokenizer.get_vocab().items():
        for mark in _MARKS:
            token = token.replace(mark, "")
        for spelled, ending in _SPELLED.items():
            token = token.replace(spelled, ending)
        found[place] = bool(token) and _ENDINGS.issuperset(token)
    return found


def cuts(ids: np.ndarray, endings: np.ndarray) -> np.ndarray:
    """The places in ``ids`` at which a sentence begins that is not the first; ascending."""
    ends = endings[ids]
    return np.flatnonzero(ends[:-1] & ~ends[1:]) + 1


class PairReader:
    """Rows of a split, the longest sequence of each as a pair where it can be cut.

    Args:
        split: of a token store.
        endings: see `sentence_endings`.
        negatives: `swapped` parts, or a second part of `another` document.
    """

    def __init__(self, split: Split, endings: np.ndarray, negatives: str) -> None:
        self.split, self.endings, self.negatives = split, endings, negatives

    def __call__(self, row: int, length: int, key: int) -> list[np.ndarray | Pair]:
        """Row ``row`` of at most ``length`` tokens, the pair's further [SEP] included."""
        spans = row_spans(self.split.ends, row, length - 1)
        sequences: list[np.ndarray | Pair] = [self.split.tokens(*span) for span in spans]
        if spans:
            longest = max(range(len(spans)), key=lambda i: spans[i][1] - spans[i][0])
            pair = self._pair(*spans[longest], key)
            if pair is not None:
                sequences[longest] = pair
        return sequences

    def _pair(self, start: int, stop: int, key: int) -> Pair | None:
        ids = self.split.tokens(start, stop)
        places = cuts(ids, self.endings)
        if not len(places):
            return None
        cut, choice, document, place = uniforms(key, np.arange(4))
        at = places[int(cut * len(places))]
        first, second = ids[:at], ids[at:]
        if choice < 0.5:
            return Pair(first, second, True)
        if self.negatives == "swapped":
            return Pair(second, first, False)
        return Pair(first, self._elsewhere(start, len(second), document, place), False)

    def _elsewhere(self, start: int, most: int, document: float, place: float) -> np.ndarray:
        """At most ``most`` tokens of a document that does not hold token ``start``."""
        ends = self.split.ends
        here = bisect_right(range(len(ends)), start, key=lambda d: int(ends[d]))
        other = (here + 1 + int(document * (len(ends) - 1))) % len(ends)
        begin, end = int(ends[other - 1]) if other else 0, int(ends[other])
        begin += int(place * max(1, end - begin - most))
        sentences = cuts(self.split.tokens(begin, min(end, begin + _SEARCHED)), self.endings)
        if len(sentences) and begin + sentences[0] + most <= end:
            begin += int(sentences[0])
        return self.split.tokens(begin, min(end, begin + most))


def pair_key(key: int) -> int:
    """The key of a row's pair, beside that of its mask."""
    return mix(key, 0x70616972)
