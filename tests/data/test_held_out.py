"""The held-out split: right in size, never empty, the same for the same text."""

import numpy as np
import pytest

from mlm.data.corpus import Piece
from mlm.data.encoding import text_hash
from mlm.data.held_out import plan
from mlm.errors import UserError


def split(documents: list[list[str]], share: float = 0.01, seed: int = 0):
    """Documents, each a list of pieces, to (train, validation) as joined texts."""

    def read():
        for document in documents:
            for i, text in enumerate(document):
                yield Piece(text, i == len(document) - 1)

    held_out = plan(read, share, seed)
    found: tuple[list[str], list[str]] = ([], [])
    parts: list[str] = []
    hashes: list[int] = []
    number = 0
    for piece in held_out.divide(read()):
        hashes.append(text_hash(piece.text, seed))
        parts.append(piece.text)
        if piece.last:
            first = np.array(hashes[:1], dtype=np.uint64)
            side = held_out.mask(first, np.array([number]))[0]
            found[int(side)].append("".join(parts))
            number += 1
            parts, hashes = [], []
    assert "".join(p.text for p in held_out.for_training(read())) == "".join(found[0])
    return found


def test_the_share_is_right_and_nothing_is_lost():
    documents = [[f"document {i}"] for i in range(20_000)]
    train, validation = split(documents)
    assert sorted(train + validation) == sorted(d for (d,) in documents)
    assert 150 < len(validation) < 250


def test_a_document_keeps_its_side_when_others_come_and_the_seed_changes_it():
    few, more = ([[f"document {i}"] for i in range(n)] for n in (5000, 10_000))
    assert set(split(few)[1]) == set(split(more)[1]) & {d for (d,) in few}
    assert not set(split(few)[1]) <= set(split(few, seed=1)[1])


def test_equal_documents_are_never_on_both_sides():
    train, validation = split([[f"document {i % 300}"] for i in range(3000)], share=0.1)
    assert not set(train) & set(validation)


@pytest.mark.parametrize("number", [2, 3, 10, 22])
@pytest.mark.parametrize("share", [1e-9, 0.01, 0.5])
def test_few_documents_still_give_both_splits(number, share):
    for seed in range(20):
        train, validation = split([[f"{i}", " more"] for i in range(number)], share, seed)
        assert train
        assert validation
        assert len(train) + len(validation) == number


def test_one_document_is_cut_at_a_paragraph():
    paragraphs = [f"This is paragraph {i}." for i in range(100)]
    (train,), (validation,) = split([["\n".join(paragraphs)]], share=0.1)
    assert train + validation == "\n".join(paragraphs)
    assert train.endswith("\n")
    assert 8 <= validation.count("paragraph") <= 12


def test_one_document_in_many_pieces():
    pieces = [f"This is piece {i}.\nA line.\n" for i in range(50)]
    (train,), (validation,) = split([pieces], share=0.02)
    assert train + validation == "".join(pieces)
    assert validation == "A line.\n"
    (train,), (validation,) = split([["solid"] * 100], share=0.1)
    assert (len(train), len(validation)) == (450, 50)


@pytest.mark.parametrize("text", ["one line of seven words it is", "two words", "short\nlines"])
def test_little_text_is_cut_between_words(text):
    (train,), (validation,) = split([[text]])
    assert train + validation == text
    assert train.strip()
    assert validation.strip()


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([], "corpus: holds no text"),
        ([["word"]], "a single word is too little"),
        ([["same text"]] * 9, "all 9 documents are the same"),
    ],
)
def test_too_little_for_two_splits(documents, message):
    with pytest.raises(UserError, match=message):
        split(documents)
