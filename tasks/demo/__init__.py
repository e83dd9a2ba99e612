"""What `mlm demo` carries with it, so that it needs no network: a corpus and reviews.

The reviews were written for this repository. Each has a neighbour of the opposite label, often on
the same subject: rows 1 and 2, 3 and 4, … A set that cuts such pairs in two would have the
subject's words point the wrong way, so cut at even places.
"""

from pathlib import Path

_HERE = Path(__file__).parent

REVIEWS_TRAIN = _HERE / "reviews_train.jsonl"
"""360 short reviews with ``text`` and ``label`` (positive or negative), half and half."""
REVIEWS_TEST = _HERE / "reviews_test.jsonl"
"""120 more of the same kind; none of them is close to one of the training reviews."""
