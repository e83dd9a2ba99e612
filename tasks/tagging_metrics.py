"""Metrics of tagged words, over all windows and ranks; imported where they are made.

Shapes: ``n`` words in all, ``C`` tags, ``K`` types of entities.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import multiclass_f1_score
from torchmetrics.utilities import dim_zero_cat

from tasks.tags import entities


def entity_types(labels: Sequence[str]) -> list[str]:
    """The types that tags name, sorted."""
    return sorted({label.partition("-")[2] for label in labels} - {""})


def count_entities(words: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """How many entities are right, predicted and true, by their types.

    An entity is right where one of the same type has the same words.

    Args:
        words: (n, 4) row, word, predicted and true tag; sorted by row and word.
        labels: the tags by their numbers.

    Returns:
        (K, 3) counts.
    """
    types = {kind: place for place, kind in enumerate(entity_types(labels))}
    counts = np.zeros((len(types), 3), np.int64)
    starts = np.flatnonzero(np.diff(words[:, 0])) + 1
    for sentence in np.split(words, starts):
        predicted, true = (set(entities([labels[t] for t in sentence[:, c]])) for c in (2, 3))
        for column, found in enumerate((predicted & true, predicted, true)):
            for entity in found:
                counts[types[entity.type], column] += 1
    return counts


def precision_recall_f1(counts: np.ndarray) -> np.ndarray:
    """(…, 3) right, predicted, true → (…, 3) precision, recall, F1; 0 where nothing is there."""
    right, predicted, true = np.moveaxis(counts.astype(np.float64), -1, 0)
    parts = ((right, predicted), (right, true), (2 * right, predicted + true))
    return np.stack([a / np.maximum(b, 1) for a, b in parts], axis=-1)


class TaggedWords(Metric):
    """Keeps each word's place and tags: what entities there are is only known of whole sentences.

    Args:
        labels: the tags by their numbers.
    """

    full_state_update = False
    higher_is_better: bool | None = True

    def __init__(self, labels: Sequence[str]) -> None:
        super().__init__()
        self.labels = list(labels)
        self.seen: list[Tensor]
        self.add_state("seen", [], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forget all words."""
        super().reset()
        # A rank that sees no batch must gather what the others do.
        self.seen.append(torch.empty((0, 4), dtype=torch.int64, device=self.device))

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """See some words.

        Args:
            predicted: (m,) tags.
            target: (m, 3) true tag, row and word.
        """
        self.seen.append(torch.stack([target[:, 1], target[:, 2], predicted, target[:, 0]], -1))

    def words(self) -> np.ndarray:
        """(n, 4) row, word, predicted and true tag; each word once, in their order."""
        seen = dim_zero_cat(self.seen).cpu().numpy()
        seen = seen[np.lexsort((seen[:, 1], seen[:, 0]))]
        again = (np.diff(seen[:, :2], axis=0, prepend=-1) == 0).all(axis=1)
        return seen[~again]


class TagAccuracy(TaggedWords):
    """The share of words whose tag is right."""

    def compute(self) -> Tensor:
        """() in [0, 1]."""
        words = self.words()
        return torch.tensor((words[:, 2] == words[:, 3]).sum() / max(len(words), 1))


class TagMacroF1(TaggedWords):
    """F1 of each tag, in the mean over those that are there."""

    def compute(self) -> Tensor:
        """() in [0, 1]."""
        predicted, true = torch.from_numpy(self.words()[:, 2:]).unbind(-1)
        return multiclass_f1_score(predicted, true, len(self.labels), average="macro")


class EntityCounts(TaggedWords):
    """Of each type of entities, in the order of `entity_types`, how many there were."""

    higher_is_better = None

    def compute(self) -> Tensor:
        """(K, 3) right, predicted, true."""
        return torch.from_numpy(count_entities(self.words(), self.labels))


class EntityScore(TaggedWords):
    """Precision, recall or F1 of entities of all types together.

    Args:
        labels: the tags by their numbers.
        which: 0, 1 or 2.
    """

    def __init__(self, labels: Sequence[str], which: int) -> None:
        super().__init__(labels)
        self.which = which

    def compute(self) -> Tensor:
        """() in [0, 1]."""
        counts = count_entities(self.words(), self.labels).sum(0)
        return torch.tensor(precision_recall_f1(counts)[self.which])


def tag_metrics(labels: Sequence[str], marks_entities: bool) -> dict[str, Any]:
    """The metrics of a tag set, by their names."""
    if not marks_entities:
        return {"accuracy": TagAccuracy(labels), "macro_f1": TagMacroF1(labels)}
    return {
        "f1": EntityScore(labels, 2),
        "precision": EntityScore(labels, 0),
        "recall": EntityScore(labels, 1),
        "accuracy": TagAccuracy(labels),
        "entities": EntityCounts(labels),
    }
