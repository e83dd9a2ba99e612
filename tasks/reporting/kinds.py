"""What there is to report of each kind of task: one small class each, named by `Task.reporter`.

Shapes: ``N`` inputs, ``C`` classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from tasks.encoding import Example
from tasks.reporting import scores
from tasks.reporting.baselines import bag_of_words, bags_of_words, choose_by_words, majority
from tasks.rows import Rows

if TYPE_CHECKING:
    from tasks.multi_label_classification import MultiLabelClassification
    from tasks.multiple_choice import MultipleChoice
    from tasks.question_answering import QuestionAnswering
    from tasks.sentence_embedding import SentenceEmbedding
    from tasks.text_classification import TextClassification
    from tasks.token_classification import TokenClassification


@dataclass(frozen=True)
class Judged:
    """Probabilities, and what they should have been."""

    logits: Tensor
    """(M, C) fp32, of choices of one out of C."""
    targets: Tensor
    """(M,) the right ones; C or more is none of them."""
    labels: tuple[str, ...]
    """The names of the K; empty where they have none, and thresholds no meaning."""
    probabilities: np.ndarray
    """(N, K) of each label of each input."""
    members: np.ndarray
    """(N, K) whether it is right."""


class Reporter:
    """What a report can say of a task; this one says nothing but the task's metrics."""

    wrongness_is: ClassVar[str] = "confidence"
    """What `wrongness` is called."""

    def evidence(self, decisions: Sequence[Any], targets: Sequence[Any]) -> np.ndarray | None:
        """(N, S) numbers an input, out of which `scores_of` makes the scores; None has no such.

        Args:
            decisions: as `Task.decisions` gives them, or a baseline.
            targets: as `Task.targets` gives them.
        """
        return None

    def scores_of(self, evidence: np.ndarray) -> Mapping[str, float]:
        """Scores by the names of the task's metrics."""
        raise NotImplementedError

    def baselines(self, train: Rows, inputs: Sequence[Any]) -> dict[str, Sequence[Any]]:
        """What simpler ways decide of ``inputs``, after learning from ``train``."""
        return {}

    def judged(
        self, examples: Sequence[Example], outputs: Sequence[Tensor], targets: Sequence[Any]
    ) -> Judged | None:
        """What calibration and thresholds are about; arguments as `Task.decisions`."""
        return None

    def wrongness(
        self, decisions: Sequence[Any], targets: Sequence[Any], judged: Judged | None
    ) -> np.ndarray | None:
        """(N,) by which mistakes are sorted, the worst highest; 0 is none."""
        return None


class SingleLabelReporter(Reporter):
    """One class an input."""

    def __init__(self, task: TextClassification) -> None:
        self.task = task

    def evidence(self, decisions: Sequence[Any], targets: Sequence[Any]) -> np.ndarray:
        """(N, 2) decided and true class."""
        return np.column_stack([decisions, targets])

    def scores_of(self, evidence: np.ndarray) -> Mapping[str, float]:
        """Accuracy, macro F1, MCC, and F1 of the second of two."""
        outputs = len(self.task.settings.labels)
        return scores.classification_scores(evidence, outputs, outputs + len(self.task.unseen))

    def baselines(self, train: Rows, inputs: Sequence[Any]) -> dict[str, Sequence[Any]]:
        """The commonest class, and a linear model over words."""
        targets = self.task.targets(train)
        return {
            "majority class": [majority(targets)] * len(inputs),
            "bag of words": bag_of_words(joined(self.task.inputs(train)), targets, joined(inputs)),
        }

    def judged(
        self, examples: Sequence[Example], outputs: Sequence[Tensor], targets: Sequence[Any]
    ) -> Judged:
        """The classes' probabilities."""
        logits = self.task.of_texts(examples, outputs)
        return _one_of_several(logits, targets, self.task.settings.labels)

    def wrongness(
        self, decisions: Sequence[Any], targets: Sequence[Any], judged: Judged | None
    ) -> np.ndarray:
        """How sure it was of a wrong class."""
        return _sure_and_wrong(decisions, targets, judged)


class ChoiceReporter(Reporter):
    """One of as many choices in each row."""

    def __init__(self, task: MultipleChoice) -> None:
        self.task = task

    def evidence(self, decisions: Sequence[Any], targets: Sequence[Any]) -> np.ndarray:
        """(N, 1) whether it is right."""
        return (np.asarray(decisions) == np.asarray(targets)).astype(np.float64)[:, None]

    def scores_of(self, evidence: np.ndarray) -> Mapping[str, float]:
        """Accuracy."""
        return {"accuracy": float(evidence.mean())}

    def baselines(self, train: Rows, inputs: Sequence[Any]) -> dict[str, Sequence[Any]]:
        """The commonest place, and a linear model over the words of the choices alone.

        What the second one reaches above chance needs no text to choose for
        (https://arxiv.org/abs/1803.02324).
        """
        targets = self.task.targets(train)
        known = [choices for _, choices in self.task.inputs(train)]
        asked = [choices for _, choices in inputs]
        return {
            "commonest place": [majority(targets)] * len(inputs),
            "bag of words of the choices": choose_by_words(known, targets, asked),
        }

    def judged(
        self, examples: Sequence[Example], outputs: Sequence[Tensor], targets: Sequence[Any]
    ) -> Judged:
        """The choices' probabilities; a place is no label that a threshold could be for."""
        return _one_of_several(torch.stack(list(outputs)), targets, ())

    def wrongness(
        self, decisions: Sequence[Any], targets: Sequence[Any], judged: Judged | None
    ) -> np.ndarray:
        """How sure it was of a wrong choice."""
        return _sure_and_wrong(decisions, targets, judged)


class MultiLabelReporter(Reporter):
    """Any number of classes an input, each asked about by itself."""

    def __init__(self, task: MultiLabelClassification) -> None:
        self.task = task

    def evidence(self, decisions: Sequence[Any], targets: Sequence[Any]) -> np.ndarray:
        """(N, 2 C) decided and true 0s and 1s."""
        return np.hstack([self._hot(decisions), self._hot(targets)])

    def scores_of(self, evidence: np.ndarray) -> Mapping[str, float]:
        """Micro and macro F1, and whole rows that are right."""
        return scores.multi_label_scores(evidence)

    def baselines(self, train: Rows, inputs: Sequence[Any]) -> dict[str, Sequence[Any]]:
        """The commonest set of classes, and a linear model over words for each class."""
        targets = self.task.targets(train)
        texts, members = joined(self.task.inputs(train)), self._hot(targets)
        found = bags_of_words(texts, members, joined(inputs))
        return {
            "majority class": [majority(targets)] * len(inputs),
            "bag of words": [tuple(row.nonzero()[0].tolist()) for row in found],
        }

    def judged(
        self, examples: Sequence[Example], outputs: Sequence[Tensor], targets: Sequence[Any]
    ) -> Judged:
        """The classes' probabilities; each is a choice between yes and no."""
        logits = self.task.of_texts(examples, outputs)
        members = self._hot(targets)[:, : logits.shape[-1]]
        yes_or_no = torch.stack([torch.zeros_like(logits), logits], -1)
        return Judged(
            yes_or_no.flatten(0, 1),
            torch.from_numpy(members.astype(np.int64)).flatten(),
            self.task.settings.labels,
            logits.double().sigmoid().numpy(),
            members,
        )

    def wrongness(
        self, decisions: Sequence[Any], targets: Sequence[Any], judged: Judged | None
    ) -> np.ndarray:
        """How sure it was in the worst of a row's classes."""
        assert judged is not None
        width = judged.members.shape[1]
        chosen = self._hot(decisions)[:, :width]
        sure = np.where(chosen, judged.probabilities, 1 - judged.probabilities)
        return np.where(chosen == judged.members, 0.0, sure).max(-1)

    def _hot(self, classes: Sequence[Sequence[int]]) -> np.ndarray:
        found = np.zeros((len(classes), len(self.task.settings.labels) + len(self.task.unseen)))
        for row, places in zip(found, classes, strict=True):
            row[list(places)] = 1
        return found.astype(bool)


class RegressionReporter(Reporter):
    """A number an input."""

    wrongness_is = "error"

    def evidence(self, decisions: Sequence[Any], targets: Sequence[Any]) -> np.ndarray:
        """(N, 2) predicted and true number."""
        return np.column_stack([decisions, targets])

    def scores_of(self, evidence: np.ndarray) -> Mapping[str, float]:
        """The two correlations and the mean squared error."""
        return scores.regression_scores(evidence)

    def wrongness(
        self, decisions: Sequence[Any], targets: Sequence[Any], judged: Judged | None
    ) -> np.ndarray:
        """How far it is off."""
        return np.abs(np.subtract(decisions, targets))


class VectorReporter(Reporter):
    """A cosine a pair, where pairs have scores."""

    def __init__(self, task: SentenceEmbedding) -> None:
        self.task = task

    def evidence(self, decisions: Sequence[Any], targets: Sequence[Any]) -> np.ndarray | None:
        """(N, 2) cosine and score."""
        return np.column_stack([decisions, targets]) if self.task.scored else None

    def scores_of(self, evidence: np.ndarray) -> Mapping[str, float]:
        """The two correlations."""
        return scores.correlation_scores(evidence)


class TaggingReporter(Reporter):
    """A tag a word."""

    def __init__(self, task: TokenClassification) -> None:
        self.task = task

    def evidence(self, decisions: Sequence[Any], targets: Sequence[Any]) -> np.ndarray | None:
        """(N, 5) entities right, predicted and true, words right, words; None without entities."""
        from tasks.tags import entities

        if not self.task.marks_entities:
            return None
        labels, found = self.task.settings.labels, []
        for decided, true in zip(decisions, targets, strict=True):
            # Of a word that no window decides nothing is counted, as in the metrics.
            seen = np.asarray(decided) >= 0
            a, b = np.asarray(decided)[seen], np.asarray(true)[seen]
            predicted, right = (set(entities([labels[t] for t in tags])) for tags in (a, b))
            counts = len(predicted & right), len(predicted), len(right)
            found.append([*counts, int((a == b).sum()), len(a)])
        return np.array(found, np.float64)

    def scores_of(self, evidence: np.ndarray) -> Mapping[str, float]:
        """F1, precision and recall of entities, and the share of words that are right."""
        return scores.tagging_scores(evidence)


class AnswerReporter(Reporter):
    """An answer a question."""

    def __init__(self, task: QuestionAnswering) -> None:
        self.task = task

    def evidence(self, decisions: Sequence[Any], targets: Sequence[Any]) -> np.ndarray:
        """(N, 2) F1 and exact match."""
        from tasks.squad import best_over, exact_match, f1

        rows = []
        for answer, target in zip(decisions, targets, strict=True):
            golds = self.task.label_name(target)
            rows.append([best_over(score, answer, golds) for score in (f1, exact_match)])
        return np.array(rows, np.float64)

    def scores_of(self, evidence: np.ndarray) -> Mapping[str, float]:
        """The means."""
        return dict(zip(("f1", "exact_match"), evidence.mean(0).tolist(), strict=True))


def joined(inputs: Sequence[Sequence[str]]) -> list[str]:
    """The texts of each input as one."""
    return ["\n".join(texts) for texts in inputs]


def _one_of_several(logits: Tensor, targets: Sequence[int], labels: tuple[str, ...]) -> Judged:
    """(N, C) logits of one out of C, of which ``labels`` are the names."""
    true = torch.tensor(targets)
    members = true[:, None] == torch.arange(logits.shape[-1])
    probabilities = logits.double().softmax(-1)
    return Judged(logits, true, labels, probabilities.numpy(), members.numpy())


def _sure_and_wrong(
    decisions: Sequence[int], targets: Sequence[int], judged: Judged | None
) -> np.ndarray:
    """(N,) the probability of what was decided where that is wrong, and else 0."""
    assert judged is not None
    sure = judged.probabilities.max(-1)
    return np.where(np.asarray(decisions) == np.asarray(targets), 0.0, sure)
