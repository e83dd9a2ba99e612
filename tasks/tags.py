"""Tags of words and the entities that they mark, as CoNLL's evaluation reads them.

`B-PER` begins an entity of type PER, `I-PER` goes on with it, `O` is in none. As in conlleval
(https://www.clips.uantwerpen.be/conll2000/chunking/conlleval.txt), an `I-` after `O` or after
another type begins an entity too, so that IOB1 and IOB2 are read alike; so are BIOES's `E-` and
`S-`, which end one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tokenizers import Regex, pre_tokenizers

OUTSIDE = "O"

# Whitespace and punctuation part words, as BERT has it; and so does every character of scripts
# that are written without spaces.
_SPLITTER = pre_tokenizers.Sequence(
    [
        pre_tokenizers.BertPreTokenizer(),
        pre_tokenizers.Split(Regex(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}]"), "isolated"),
    ]
)


class Word(NamedTuple):
    """A word of a text, and where it stands there, in characters."""

    text: str
    start: int
    end: int


class Entity(NamedTuple):
    """What an entity is, and its words, from ``start`` up to ``end``."""

    type: str
    start: int
    end: int


class Span(NamedTuple):
    """A labelled part of a text, from character ``start`` up to ``end``."""

    label: str
    start: int
    end: int


def split_words(text: str) -> list[Word]:
    """The words of a plain text: parted by whitespace, every mark of punctuation one of its own.

    >>> [word.text for word in split_words("In 1984, Orwell's ロンドン.")]
    ['In', '1984', ',', 'Orwell', "'", 's', 'ロ', 'ン', 'ド', 'ン', '.']
    """
    return [Word(word, *place) for word, place in _SPLITTER.pre_tokenize_str(text)]


def join_words(words: Sequence[str]) -> tuple[str, list[Word]]:
    """Words as a text with a space between any two, and where each stands there."""
    found, start = [], 0
    for word in words:
        found.append(Word(word, start, start + len(word)))
        start += len(word) + 1
    return " ".join(words), found


def mark_entities(labels: Iterable[str]) -> bool:
    """Whether ``labels`` are tags of entities, rather than of words one by one.

    >>> mark_entities(["O", "B-PER", "I-PER"]), mark_entities(["O", "NOUN"])
    (True, False)
    """
    marks = [label for label in labels if label != OUTSIDE]
    return bool(marks) and all(re.fullmatch("[BIES]-.+", mark) for mark in marks)


def entities(tags: Sequence[str]) -> list[Entity]:
    """The entities that the tags of a sentence mark, in their order.

    >>> entities(["B-PER", "I-PER", "O", "I-LOC", "I-ORG", "B-ORG"])
    [('PER', 0, 2), ('LOC', 3, 4), ('ORG', 4, 5), ('ORG', 5, 6)]
    """
    found: list[Entity] = []
    ended = True
    for place, tag in enumerate(tags):
        prefix, _, kind = tag.partition("-")
        if tag != OUTSIDE:
            if ended or prefix in "BS" or found[-1].type != kind:
                found.append(Entity(kind, place, place))
            found[-1] = found[-1]._replace(end=place + 1)
        ended = tag == OUTSIDE or prefix in "ES"
    return found


def tags_of_spans(spans: Sequence[Span], words: Sequence[Word]) -> list[str]:
    """IOB2 tags: a span's entity is made of all words that it has a part of.

    Raises:
        ValueError: a span without a word, or two that share one, saying so.
    """
    tags = [OUTSIDE] * len(words)
    for span in spans:
        covered = [i for i, w in enumerate(words) if w.end > span.start and w.start < span.end]
        if not covered:
            raise ValueError(f"the span {span.start} to {span.end} has no word in it")
        if taken := [i for i in covered if tags[i] != OUTSIDE]:
            raise ValueError(f"two spans share the word {words[taken[0]].text!r}")
        for place in covered:
            tags[place] = f"{'B' if place == covered[0] else 'I'}-{span.label}"
    return tags


def cuts_words(span: Span, words: Sequence[Word]) -> bool:
    """Whether the span begins or ends inside a word.

    >>> cuts_words(Span("LOC", 0, 4), [Word("London", 0, 6)])
    True
    """
    return any(word.start < edge < word.end for word in words for edge in span[1:])
