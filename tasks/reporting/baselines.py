"""What a classifier has to beat: the commonest class, and a linear model over words.

https://aclanthology.org/P12-2018/ shows how strong the second one is on reviews.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

# The inverse of the penalty's weight. Of 1 and 10 the better on SST-2, by its dev set.
_C = 10.0


def majority(targets: Sequence[Any]) -> Any:
    """The commonest target, the smallest where several are equally common.

    >>> majority(["no", "yes", "yes", "no"])
    'no'
    """
    counts = Counter(targets)
    return min(counts, key=lambda target: (-counts[target], target))


def bag_of_words(texts: Sequence[str], targets: Sequence[Any], asked: Sequence[str]) -> list[Any]:
    """Logistic regression over tf-idf of words and pairs of words: the class of each text asked.

    Args:
        texts: to learn from.
        targets: their classes.
        asked: to classify.

    Returns:
        One of ``targets`` for each of ``asked``; the commonest where ``texts`` have no words, or
        there is one class alone.
    """
    from sklearn.linear_model import LogisticRegression

    features = _features(texts, asked)
    known = sorted(set(targets))
    if features is None or len(known) == 1:
        return [majority(targets)] * len(asked)
    places = {target: place for place, target in enumerate(known)}
    numbers = np.array([places[target] for target in targets])
    model = LogisticRegression(C=_C, max_iter=1000).fit(features[0], numbers)
    return [known[place] for place in model.predict(features[1])]


def bags_of_words(texts: Sequence[str], members: np.ndarray, asked: Sequence[str]) -> np.ndarray:
    """The same for each of K labels by itself: (N, K) of 0 and 1 → (asked, K)."""
    from sklearn.linear_model import LogisticRegression

    features, found = _features(texts, asked), np.zeros((len(asked), members.shape[1]), bool)
    for label, column in enumerate(members.T):
        if features is None or column.min() == column.max():
            found[:, label] = column.mean() > 0.5
        else:
            model = LogisticRegression(C=_C, max_iter=1000).fit(features[0], column)
            found[:, label] = model.predict(features[1])
    return found


def choose_by_words(
    known: Sequence[Sequence[str]], targets: Sequence[int], asked: Sequence[Sequence[str]]
) -> list[int]:
    """The same for choices, each by itself: the place of that which looks most like a right one.

    Args:
        known: the choices of each row to learn from.
        targets: the place of each one's right choice.
        asked: the choices of each row to decide.
    """
    from sklearn.linear_model import LogisticRegression

    texts = [choice for choices in known for choice in choices]
    features = _features(texts, [choice for choices in asked for choice in choices])
    if features is None:
        return [majority(targets)] * len(asked)
    right = [p == t for choices, t in zip(known, targets, strict=True) for p in range(len(choices))]
    model = LogisticRegression(C=_C, max_iter=1000).fit(features[0], right)
    scores = np.split(
        model.decision_function(features[1]), np.cumsum([len(choices) for choices in asked])[:-1]
    )
    return [int(part.argmax()) for part in scores]


def _features(texts: Sequence[str], asked: Sequence[str]) -> tuple[Any, Any] | None:
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\w+")
    try:
        known = vectorizer.fit_transform(texts)
    except ValueError:  # no words at all
        return None
    return known, vectorizer.transform(asked)
