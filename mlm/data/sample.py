"""A sample of a corpus to learn a vocabulary from, in bounded memory."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable, Iterator

from mlm.data.corpus import Piece
from mlm.data.encoding import text_hash


class Sample(Collection[str]):
    """Texts, held as UTF-8: half to a quarter of what Python's strings take."""

    def __init__(self, texts: list[bytes]) -> None:
        self._texts = texts

    def __iter__(self) -> Iterator[str]:
        return (text.decode() for text in self._texts)

    def __len__(self) -> int:
        return len(self._texts)

    def __contains__(self, text: object) -> bool:
        return isinstance(text, str) and text.encode() in self._texts

    @property
    def bytes(self) -> int:
        """Of UTF-8, in all."""
        return sum(map(len, self._texts))


def take_sample(
    pieces: Iterable[Piece],
    limit: int,
    seed: int,
    told: Callable[[int], None] = lambda size: None,
) -> Sample:
    """The pieces with the lowest hashes, as many as go into ``limit`` bytes of UTF-8.

    So every stretch of the corpus has its share, however it is sorted, and the sample follows from
    the corpus and the seed.

    Args:
        pieces: the corpus, in full.
        limit: bytes.
        seed: of the hashes.
        told: called with the size of each piece.
    """
    heap: list[tuple[int, int, bytes]] = []  # the piece with the highest hash first
    size = 0
    for place, (text, _) in enumerate(pieces):
        data = text.encode()
        heapq.heappush(heap, (-text_hash(text, seed), place, data))
        size += len(data)
        while size > limit and len(heap) > 1:
            size -= len(heapq.heappop(heap)[2])
        told(len(data))
    return Sample([data for _, _, data in sorted(heap, key=lambda entry: entry[1])])
