"""What `mlm demo` carries with it, so that it needs no network: a corpus, reviews, a baseline."""

from pathlib import Path

_HERE = Path(__file__).parent

REVIEWS_TRAIN = _HERE / "reviews_train.jsonl"
"""360 short reviews with ``text`` and ``label`` (positive or negative), half and half."""
REVIEWS_TEST = _HERE / "reviews_test.jsonl"
"""120 more of the same kind, half and half; none is close to one of the training reviews."""
