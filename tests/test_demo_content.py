"""What the demo carries: its corpus and its reviews."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from tasks.demo import REVIEWS_TEST, REVIEWS_TRAIN
from tasks.demo.corpus import clean, python_documentation
from tasks.reporting.statistics import wilson_interval


def read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.lower()))


@pytest.mark.parametrize(("path", "rows"), [(REVIEWS_TRAIN, 360), (REVIEWS_TEST, 120)])
def test_reviews_are_balanced_and_well_formed(path: Path, rows: int) -> None:
    reviews = read(path)
    assert Counter(r["label"] for r in reviews) == {"positive": rows // 2, "negative": rows // 2}
    # Pairs of opposite labels stand together, so that any even number of rows is balanced too.
    pairs = zip(reviews[::2], reviews[1::2], strict=True)
    assert all(a["label"] != b["label"] for a, b in pairs)
    for review in reviews:
        assert set(review) == {"text", "label"}
        assert review["text"] == review["text"].strip()
        assert 3 <= len(review["text"].split()) <= 40


def test_reviews_of_the_test_set_are_not_in_the_training_set() -> None:
    train, test = read(REVIEWS_TRAIN), read(REVIEWS_TEST)
    texts = [r["text"].lower() for r in train + test]
    assert len(set(texts)) == len(texts)
    for a in (words(r["text"]) for r in train):
        for b in (words(r["text"]) for r in test):
            assert len(a & b) / len(a | b) < 0.6, (sorted(a), sorted(b))


def test_no_review_gives_its_label_away_by_its_length() -> None:
    # A set whose positive reviews are the long ones would be learned without reading.
    by_label = {
        label: [len(r["text"]) for r in read(REVIEWS_TRAIN) if r["label"] == label]
        for label in ("positive", "negative")
    }
    mean = {label: sum(lengths) / len(lengths) for label, lengths in by_label.items()}
    assert 0.9 < mean["positive"] / mean["negative"] < 1.1


def test_wilson_interval() -> None:
    # The textbook's figures, and it never leaves [0, 1] where the usual one does.
    assert wilson_interval(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    low, high = wilson_interval(20, 20)
    assert 0.83 < low < 0.85
    assert high == pytest.approx(1)


@pytest.fixture(scope="module")
def documents() -> list[str]:
    return list(python_documentation())


def test_the_corpus_is_documentation_enough(documents: list[str]) -> None:
    assert sum(len(document.encode()) for document in documents) > 1_000_000
    assert len({" ".join(document.lower().split()) for document in documents}) == len(documents)
    assert not any(">>>" in line[:8] for d in documents for line in d.splitlines())
    assert any(d.startswith("Remove any common leading whitespace") for d in documents)
    assert any('The "assert" statement' in d for d in documents)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


def test_the_corpus_passes_over_what_cannot_be_read(tmp_path: Path) -> None:
    write(tmp_path / "b.py", '"""The second module of them all."""\nraise SystemExit("imported")')
    write(
        tmp_path / "a.py",
        '"""The first module of them all."""\n'
        'class A:\n    """A class with a few words."""\n'
        '    async def f(self):\n        """The  first module\n of them ALL."""\n',
    )
    write(tmp_path / "python2.py", '"""A module in an older language."""\nprint "hello"')
    write(tmp_path / "short.py", '"""Too short."""')
    write(tmp_path / "notes.txt", "Not a source file at all, this one.")
    (tmp_path / "latin.py").write_bytes(b'"""Caf\xe9 is not valid in UTF-8."""')
    (tmp_path / "zero.py").write_bytes(b"\x00\x00")
    (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere.py")
    (tmp_path / "folder.py").mkdir()
    write(tmp_path / "test" / "x.py", '"""Tests talk about nothing but tests."""')
    write(tmp_path / "site-packages" / "y.py", '"""Other people wrote this one."""')
    assert list(python_documentation(tmp_path)) == [
        "The first module of them all.",
        "A class with a few words.",
        "The second module of them all.",
    ]


def test_the_corpus_reads_the_language_reference_without_importing_it(tmp_path: Path) -> None:
    write(
        tmp_path / "pydoc_data" / "topics.py",
        "topics = {'assert': 'The assert statement\\n*****\\n\\nIt checks.\\n', 'x': 1, **{}}",
    )
    assert list(python_documentation(tmp_path)) == ["The assert statement\n\nIt checks."]


def test_the_corpus_of_a_missing_folder_is_empty(tmp_path: Path) -> None:
    assert list(python_documentation(tmp_path / "nowhere")) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One line.", "One line."),
        (
            "First.\n\n        >>> x = 1\n        >>> x\n        1\n\n        Last.",
            "First.\n\nLast.",
        ),
        ("Title\n=====\n\n\n\nText.", "Title\n\nText."),
        (">>> only()\ncode", ""),
        ("\n    title\n      indented", "title\n  indented"),
    ],
)
def test_clean(text: str, expected: str) -> None:
    assert clean(text) == expected
