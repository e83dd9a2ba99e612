"""Which documents are held out for validation: a function of the seed and their own text.

A document is held out if a hash of its first piece is low enough, so equal documents fall on the
same side, and a document stays on its side when others come or go. There is always at least one
held out and one left to train on; a corpus of one document is cut in two at a paragraph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from mlm.data.corpus import Piece
from mlm.data.encoding import text_hash
from mlm.errors import UserError


@dataclass(frozen=True)
class HeldOut:
    """The rule for one corpus; `plan` makes it."""

    seed: int
    """Of the hashes."""
    limit: int = -1
    """Documents with a hash up to this are held out."""
    cut: int | None = None
    """Of a corpus of one document: the characters before the part that is held out."""

    def mask(self, hashes: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """(n,) bool: which documents are held out.

        Args:
            hashes: (n,) uint64, of their first pieces.
            numbers: (n,) their running numbers, from 0.
        """
        if self.cut is not None:
            return numbers > 0
        return hashes <= np.uint64(self.limit)

    def for_training(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        """The documents of the corpus that are not held out."""
        number, begins, held = 0, True, False
        for text, last in self.divide(pieces):
            if begins:
                hashes = np.array([text_hash(text, self.seed)], dtype=np.uint64)
                held = bool(self.mask(hashes, np.array([number]))[0])
            if not held:
                yield Piece(text, last)
            number, begins = number + last, last

    def divide(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        """The corpus as it is, or its one document as two."""
        before = 0
        for text, last in pieces:
            here = len(text) if self.cut is None else self.cut - before
            before += len(text)
            if self.cut is not None and 0 < here <= len(text):
                yield Piece(text[:here], last=True)
                if here < len(text):
                    yield Piece(text[here:], last)
            else:
                yield Piece(text, last)


def plan(
    read: Callable[[], Iterable[Piece]], share: float, seed: int, corpus: str = "corpus"
) -> HeldOut:
    """Read as far as it takes to know that both splits get a document, and set the rule.

    Args:
        read: begins to read the corpus, each time anew.
        share: of the documents, to be held out.
        seed: decides which.
        corpus: its name, for messages.

    Raises:
        UserError: a corpus without text, or too little for two splits.
    """
    limit = int(share * 2.0**64) - 1
    hashes: set[int] = set()
    documents, characters, begins = 0, 0, True
    for text, last in read():
        if begins:
            hashes.add(text_hash(text, seed))
            if min(hashes) <= limit < max(hashes):
                return HeldOut(seed, limit)
            hashes = {min(hashes), max(hashes)}
            documents += 1
        characters += len(text)
        begins = last
    if not documents:
        raise UserError(f"{corpus}: holds no text")
    if documents == 1:
        return HeldOut(seed, cut=_where_to_cut(read(), int((1 - share) * characters), corpus))
    if len(hashes) == 1:
        raise UserError(f"{corpus}: all {documents} documents are the same; none can be held out")
    return HeldOut(seed, min(hashes))


def _where_to_cut(pieces: Iterable[Piece], wanted: int, corpus: str) -> int:
    """Characters before the paragraph (of a single one: the word) nearest to ``wanted``."""
    before = 0
    for text, last in pieces:
        if wanted < before + len(text) or last:
            for separator in ("\n", " "):
                place = text.rfind(separator, 0, max(wanted - before, 0))
                if place <= 0:
                    place = text.find(separator, 1)
                if 0 < place < len(text) - last:
                    return before + place + 1
            if before:
                return before
            break
        before += len(text)
    raise UserError(f"{corpus}: a single word is too little to train on and to validate with")
