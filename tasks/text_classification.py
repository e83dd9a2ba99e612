"""Which of two or more classes a text, or a pair of texts, belongs to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlm.errors import UserError
from mlm.model.config import EncoderConfig
from tasks.encoding import Example
from tasks.heads import PooledHead
from tasks.long_texts import LongTextTask, log_mean_exp_by
from tasks.losses import IGNORED, balanced_weights, cross_entropy, symmetric_kl
from tasks.rows import Rows
from tasks.settings import TaskSettings

if TYPE_CHECKING:
    from torchmetrics import Metric, MetricCollection

    from tasks.reporting.kinds import SingleLabelReporter


def label_text(value: Any) -> str | None:
    """A label as text, whatever type its file gave it; None where it is empty.

    >>> [label_text(v) for v in ("positive", 1, 1.0, True, " ", None)]
    ['positive', '1', '1', 'true', None, None]
    """
    if is_empty(value):
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, str | int):
        return str(value)
    raise TypeError(f"{value!r} is not a class")


def is_empty(value: Any) -> bool:
    """Whether a cell holds no label."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def sort_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """Integers by their value where all are integers, else by the alphabet.

    >>> sort_labels(["10", "9", "9"]), sort_labels(["10", "9", "a"])
    (('9', '10'), ('10', '9', 'a'))
    """
    unique = set(labels)
    try:
        return tuple(sorted(unique, key=int))
    except ValueError:
        return tuple(sorted(unique))


class TextClassification(LongTextTask):
    """One label a text or pair, out of a set that training data (or the caller) decides."""

    name = "text_classification"
    monitor = "accuracy"
    losses = frozenset({"label_smoothing", "class_weights", "focal_gamma", "r_drop"})
    labels_option: ClassVar[str] = "data.labels"
    """The option that gives the label set."""

    def __init__(self, settings: TaskSettings) -> None:
        super().__init__(settings)
        self.given = bool(settings.labels)
        if self.given:
            check_given(settings.labels, self.labels_option)
        # Labels that no output stands for get numbers beyond the outputs: never predicted, they
        # are wrong in every metric and stay in its denominator.
        self.unseen: list[str] = []
        self.class_weights: list[float] | None = None

    def fit(self, rows: Rows, config: EncoderConfig) -> list[str]:
        """Also settle the label set and its weights, and warn of classes that are hardly there."""
        remarks = super().fit(rows, config)
        counts = Counter(self._label_texts(rows))
        if len(counts) < 2:
            raise UserError(
                f"{rows.path}: column {self.settings.label_column!r} holds one class only "
                f"({next(iter(counts))!r}); a classifier needs two or more"
            )
        if not self.given:
            self.settings = replace(self.settings, labels=sort_labels(counts))
        self.class_weights = self._weights(counts)
        if single := [label for label in self.settings.labels if counts[label] == 1]:
            remarks.append(f"{rows.path}: one example only of {listed(single)}")
        if missing := [label for label in self.settings.labels if counts[label] == 0]:
            remarks.append(f"{rows.path}: no example of {listed(missing)}")
        if doubtful := alike(self.settings.labels):
            remarks.append(
                f"{rows.path}: {listed(doubtful)} differ by white space alone, and are classes of "
                "their own; strip them"
            )
        return remarks + self._remarks_on_texts(rows)

    def targets(self, rows: Rows) -> list[int]:
        """The place of each row's label in `labels`, and beyond them if it is not there."""
        labels = self._label_texts(rows)
        self.unseen += [x for x in sort_labels(labels) if x not in self._known()]
        places = {label: place for place, label in enumerate(self._known())}
        return [places[label] for label in labels]

    def remarks(self, rows: Rows) -> list[str]:
        """A line where ``rows`` have labels that the model cannot predict, or empty texts."""
        counts = Counter(self._label_texts(rows))
        unknown = sort_labels(label for label in counts if label not in self.settings.labels)
        remarks = self._remarks_on_texts(rows)
        if not unknown:
            return remarks
        wrong = sum(counts[label] for label in unknown)
        return [
            f"{rows.path}: {listed(unknown)} not among the labels trained on; "
            f"{wrong} of {rows.table.num_rows} rows count as wrong",
            *remarks,
        ]

    def build_head(self, config: EncoderConfig, dropout: float = 0.0) -> nn.Module:
        """(T, D) → (N, C) logits."""
        assert self.settings.pooling is not None
        return PooledHead(config, len(self.settings.labels), self.settings.pooling, dropout)

    def loss(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy, summed over the examples whose label has an output."""
        known = labels < outputs.shape[-1]
        targets = labels.masked_fill(~known, IGNORED)
        loss = F.cross_entropy(outputs, targets, ignore_index=IGNORED, reduction="sum")
        return loss, known.sum()

    def training_loss(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy, weighted and smoothed as asked for, summed over the examples."""
        options, weights = self.loss_options, self.class_weights
        if weights is None and not options.label_smoothing and not options.focal_gamma:
            return self.loss(outputs, labels)
        loss = cross_entropy(
            outputs,
            labels,
            None if weights is None else outputs.new_tensor(weights),
            options.label_smoothing,
            options.focal_gamma,
        )
        return loss, torch.tensor(len(labels), device=outputs.device)

    def divergence(self, first: Tensor, second: Tensor) -> Tensor:
        """How far two passes' distributions are apart, both ways, summed over the examples."""
        return symmetric_kl(first, second)

    def metrics(self) -> MetricCollection:
        """Accuracy, macro F1, MCC and the confusion matrix; F1 of the second of two classes."""
        from torchmetrics import classification as c

        from tasks.metrics import PositiveF1

        classes = len(self._known())
        metrics: dict[str, Metric] = {
            "accuracy": c.MulticlassAccuracy(classes, average="micro"),
            "macro_f1": c.MulticlassF1Score(classes, average="macro"),
            "mcc": c.MulticlassMatthewsCorrCoef(classes),
            "confusion_matrix": c.MulticlassConfusionMatrix(classes),
        }
        if len(self.settings.labels) == 2:
            metrics["f1"] = PositiveF1(classes)
        return self.collected(metrics, torch.empty(0, dtype=torch.long))

    def pool_windows(self, outputs: Tensor, owner: Tensor, count: int) -> Tensor:
        """The logits of windows → those of texts, whose probabilities are the windows' mean."""
        return log_mean_exp_by(outputs.float().log_softmax(-1), owner, count)

    def decide(self, outputs: Tensor) -> Tensor:
        """(N, C) logits → (N,) the most likely class."""
        return outputs.argmax(-1)

    def tables(self, values: dict[str, Tensor]) -> dict[str, list[list[str]]]:
        """The confusion matrix: a line a true class, a column a predicted one."""
        counts = values["confusion_matrix"].long().tolist()
        known = self._known()[: len(counts)]  # more may have been met since
        lines = [[label, *map(str, line)] for label, line in zip(known, counts, strict=True)]
        return {"confusion_matrix": [["true \\ predicted", *known], *lines]}

    def predictions(self, outputs: Tensor) -> list[dict[str, Any]]:
        """Label, its probability, and the probability of each label."""
        found = []
        for probabilities in outputs.float().softmax(-1).tolist():
            scores = dict(zip(self.settings.labels, probabilities, strict=True))
            label = max(scores, key=scores.__getitem__)
            found.append({"label": label, "score": scores[label], "scores": scores})
        return found

    def label_name(self, label: Any) -> Any:
        """The label with that number."""
        return self._known()[label]

    def reporter(self) -> SingleLabelReporter:
        """Intervals, baselines, calibration, thresholds and the surest mistakes."""
        from tasks.reporting.kinds import SingleLabelReporter

        return SingleLabelReporter(self)

    def decisions(
        self, inputs: Sequence[Any], examples: Sequence[Example], outputs: Sequence[Tensor]
    ) -> list[Any]:
        """The number of each text's most likely class."""
        return self.decide(self.of_texts(examples, outputs)).tolist()

    @classmethod
    def restore(cls, info: Mapping[str, Any], labels: Sequence[str]) -> Self:
        """A folder's label set is what was trained on: other labels are wrong, but no mistake."""
        task = super().restore(info, labels)
        task.given = False
        return task

    def _weights(self, counts: Counter[str]) -> list[float] | None:
        """How much an example of each class counts in training; None where all count alike."""
        wanted, labels = self.loss_options.class_weights, self.settings.labels
        if wanted == "balanced":
            return balanced_weights([counts[label] for label in labels])
        if not isinstance(wanted, list):
            return None
        if len(wanted) != len(labels):
            raise UserError(
                f"loss.class_weights: {len(wanted)} weights for {len(labels)} classes "
                f"({listed(labels)}); give one each"
            )
        return wanted

    def _known(self) -> tuple[str, ...]:
        return (*self.settings.labels, *self.unseen)

    def _remarks_on_texts(self, rows: Rows) -> list[str]:
        """One line where there is nothing in the texts of some rows, and so nothing to tell."""
        empty = sum(not all(text.strip() for text in texts) for texts in self.inputs(rows))
        total = rows.table.num_rows
        return [f"{rows.path}: {empty:,} of {total:,} rows have an empty text"] if empty else []

    def _label_texts(self, rows: Rows) -> list[str]:
        """The label column as texts; empty ones and those outside a given list are refused."""
        column = self.settings.label_column
        labels: list[str] = []
        values = rows.values(column)
        for row, value in enumerate(values, start=1):
            where = f"{rows.path}: row {row}: column {column!r}"
            try:
                label = label_text(value)
            except TypeError as error:
                raise UserError(f"{where}: {error}; for numbers use --task regression") from None
            if label is None:
                empty = sum(map(is_empty, values))
                raise UserError(
                    f"{where}: the label is empty ({empty:,} of {len(values):,} rows have none); "
                    "drop or fill them"
                )
            if self.given and label not in self.settings.labels:
                known = listed(self.settings.labels)
                raise UserError(
                    f"{where}: label {label!r} is not in {self.labels_option} ({known})"
                )
            labels.append(label)
        return labels


def check_given(labels: Sequence[str], option: str = "data.labels", least: int = 2) -> None:
    """Refuse, by a `UserError`, a label twice, or fewer than ``least``."""
    if repeated := [label for label, n in Counter(labels).items() if n > 1]:
        raise UserError(f"{option}: {listed(repeated)} stands there twice")
    if len(labels) < least:
        raise UserError(f"{option}: a classifier needs {least} classes or more")


def alike(labels: Sequence[str]) -> list[str]:
    """Those that white space alone tells from another one.

    >>> alike(["neg", "pos", "pos "])
    ['pos', 'pos ']
    """
    stripped = Counter(label.strip() for label in labels)
    return [label for label in labels if stripped[label.strip()] > 1]


def listed(labels: Sequence[str]) -> str:
    """Labels as they stand in a message, of many the first."""
    shown = ", ".join(map(repr, labels[:10]))
    return shown if len(labels) <= 10 else f"{shown} and {len(labels) - 10} more"
