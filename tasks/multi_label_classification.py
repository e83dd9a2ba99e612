"""Which of several classes a text, or a pair of texts, has: any number of them, or none.

The label column holds a list of names, or a text with `|` between them, as a CSV has it; an empty
list or cell is none of the classes. Where the classes are given (`data.labels`) or learnt already,
and none is called by a number, a list of as many 0s and 1s says of each whether it is there.

Shapes: ``N`` examples, ``C`` classes, ``K`` of them with those that only evaluation has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlm.batch import Batch
from mlm.errors import UserError
from mlm.model.config import EncoderConfig
from tasks.encoding import Example
from tasks.heads import PooledHead
from tasks.long_texts import LongTextTask, log_mean_exp_by
from tasks.losses import binary_cross_entropy, binary_symmetric_kl, positive_weights
from tasks.rows import Rows
from tasks.settings import TaskSettings
from tasks.text_classification import check_given, label_text, listed, sort_labels

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

    from tasks.reporting.kinds import MultiLabelReporter

_BETWEEN = "|"
_DEFAULT_THRESHOLD = 0.5


def read_labels(value: Any, labels: Sequence[str] = ()) -> list[str]:
    """The classes in a cell.

    Args:
        value: of any type.
        labels: the classes, where they are known: what 0s and 1s are about.

    Raises:
        ValueError: anything else than a list of names, or a name twice.

    >>> read_labels("sport | politics"), read_labels(["sport"]), read_labels("")
    (['sport', 'politics'], ['sport'], [])
    >>> read_labels([1, 0, 1], ("sport", "politics", "weather"))
    ['sport', 'weather']
    """
    if isinstance(value, list):
        if value and labels and _are_numbers(value) and not any(map(_is_number, labels)):
            return _indicated(value, labels)
        parts = value
    elif isinstance(value, str):
        parts = [part.strip() for part in value.split(_BETWEEN)] if value.strip() else []
    else:
        parts = [] if value is None or value != value else [value]
    try:
        found = [label_text(part) for part in parts]
    except TypeError as error:
        raise ValueError(str(error)) from None
    names = [name for name in found if name is not None]
    if len(names) < len(found):
        raise ValueError("a label is empty")
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        hint = "; to read 0s and 1s, name the classes with --data.labels"
        raise ValueError(
            f"label {repeated[0]!r} stands there twice{hint if _are_numbers(parts) else ''}"
        )
    return names


def _are_numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) for value in values)


def _is_number(label: str) -> bool:
    try:
        int(label)
    except ValueError:
        return False
    return True


def _indicated(values: Sequence[Any], labels: Sequence[str]) -> list[str]:
    if wrong := [value for value in values if value not in (0, 1)]:
        raise ValueError(f"{wrong[0]!r} is neither 0 nor 1, nor the name of a class")
    if len(values) != len(labels):
        raise ValueError(f"{len(values)} numbers for {len(labels)} classes")
    return [label for label, there in zip(labels, values, strict=True) if there]


def multi_hot(classes: Sequence[Sequence[int]], width: int) -> Tensor:
    """(N, K) of 0 and 1 with 1 where a class is there; K is ``width``, or more where one is beyond.

    >>> multi_hot([(0, 2), ()], 3).tolist()
    [[1, 0, 1], [0, 0, 0]]
    """
    found = torch.zeros(
        len(classes),
        max([width, *(1 + place for row in classes for place in row)]),
        dtype=torch.long,
    )
    for row, places in zip(found, classes, strict=True):
        row[list(places)] = 1
    return found


class MultiLabelClassification(LongTextTask):
    """Any number of labels a text or pair, out of a set that training data or the caller decides.

    Each class is asked about by itself; transformers calls it `multi_label_classification` too.
    """

    name = "multi_label_classification"
    monitor = "micro_f1"
    label_column = "labels"
    reads = LongTextTask.reads | {"threshold"}
    losses = frozenset({"label_smoothing", "class_weights", "focal_gamma", "r_drop"})

    def __init__(self, settings: TaskSettings) -> None:
        super().__init__(settings)
        self.given = bool(settings.labels)
        if self.given:
            check_given(settings.labels, least=1)
        threshold = _DEFAULT_THRESHOLD if settings.threshold is None else settings.threshold
        if not 0 < threshold < 1:
            raise UserError(f"data.threshold: {threshold} must lie between 0 and 1")
        self.settings = replace(self.settings, threshold=threshold)
        # Labels that no output stands for: never predicted, and missed in every metric.
        self.unseen: list[str] = []
        self.class_weights: list[float] | None = None

    def fit(self, rows: Rows, config: EncoderConfig) -> list[str]:
        """Also settle the label set and its weights, and warn of classes that are hardly there."""
        remarks = super().fit(rows, config)
        counts = Counter(label for row in self._label_sets(rows) for label in row)
        if not counts:
            raise UserError(
                f"{rows.path}: column {self.settings.label_column!r} holds no label in any row; "
                "there is nothing to learn"
            )
        if not self.given:
            self.settings = replace(self.settings, labels=sort_labels(counts))
        labels = self.settings.labels
        self.class_weights = self._weights([counts[x] for x in labels], rows.table.num_rows)
        if single := [label for label in labels if counts[label] == 1]:
            remarks.append(f"{rows.path}: one example only of {listed(single)}")
        if missing := [label for label in labels if counts[label] == 0]:
            remarks.append(f"{rows.path}: no example of {listed(missing)}")
        return remarks

    def remarks(self, rows: Rows) -> list[str]:
        """One line where ``rows`` have labels that the model cannot predict."""
        beyond = [set(row).difference(self.settings.labels) for row in self._label_sets(rows)]
        if not (unknown := set().union(*beyond)):
            return []
        return [
            f"{rows.path}: {listed(sort_labels(unknown))} not among the labels trained on; they "
            f"count as missed in {sum(map(bool, beyond))} of {len(beyond)} rows"
        ]

    # -- columns → features -----------------------------------------------------------------------

    def targets(self, rows: Rows) -> list[tuple[int, ...]]:
        """The places of each row's labels in `labels`, and beyond them if they are not there."""
        found = self._label_sets(rows)
        there = sort_labels(label for row in found for label in row)
        self.unseen += [label for label in there if label not in self._known()]
        places = {label: place for place, label in enumerate(self._known())}
        return [tuple(sorted(places[label] for label in row)) for row in found]

    def collate(self, examples: Sequence[Example]) -> Batch:
        """A ragged batch of N examples; `labels` is (N, K) of 0 and 1 where they have any."""
        batch = super().collate([replace(e, label=None) for e in examples])
        labels = [e.label for e in examples if e.label is not None]
        return replace(batch, labels=multi_hot(labels, len(self._known())) if labels else None)

    # -- head, loss, metrics ----------------------------------------------------------------------

    def build_head(self, config: EncoderConfig, dropout: float = 0.0) -> nn.Module:
        """(T, D) → (N, C) logits."""
        assert self.settings.pooling is not None
        return PooledHead(config, len(self.settings.labels), self.settings.pooling, dropout)

    def loss(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Binary cross-entropy, summed over the classes that have an output and the examples."""
        loss = binary_cross_entropy(outputs, labels[:, : outputs.shape[-1]])
        return loss, torch.tensor(len(labels), device=outputs.device)

    def training_loss(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """As `loss`, weighted and smoothed as asked for."""
        options, weights = self.loss_options, self.class_weights
        loss = binary_cross_entropy(
            outputs,
            labels[:, : outputs.shape[-1]],
            None if weights is None else outputs.new_tensor(weights),
            options.label_smoothing,
            options.focal_gamma,
        )
        return loss, torch.tensor(len(labels), device=outputs.device)

    def divergence(self, first: Tensor, second: Tensor) -> Tensor:
        """How far two passes' answers are apart, both ways, summed over classes and examples."""
        return binary_symmetric_kl(first, second)

    def metrics(self) -> MetricCollection:
        """F1 over all answers and as a mean of the classes, whole rows that are right, counts."""
        from torchmetrics import classification as c

        classes = len(self._known())
        return self.collected(
            {
                "micro_f1": c.MultilabelF1Score(classes, average="micro"),
                "macro_f1": c.MultilabelF1Score(classes, average="macro"),
                "exact_match": c.MultilabelExactMatch(classes),
                "per_class": c.MultilabelStatScores(classes, average=None),
            },
            torch.empty(0, classes, dtype=torch.long),
        )

    def update(self, metrics: MetricCollection, outputs: Tensor, batch: Batch) -> None:
        """Let ``metrics`` see a labelled batch, with a column for every class."""
        assert batch.labels is not None
        labels = F.pad(batch.labels, (0, len(self._known()) - batch.labels.shape[-1]))
        super().update(metrics, outputs, replace(batch, labels=labels))

    def pool_windows(self, outputs: Tensor, owner: Tensor, count: int) -> Tensor:
        """The logits of windows → those of texts, whose probabilities are the windows' mean."""
        yes, no = (
            log_mean_exp_by(F.logsigmoid(x), owner, count)
            for x in (outputs.float(), -outputs.float())
        )
        return yes - no

    def decide(self, outputs: Tensor) -> Tensor:
        """(N, C) logits → (N, K) 1 where a class's probability is above the threshold."""
        assert self.settings.threshold is not None
        chosen = outputs.float().sigmoid() > self.settings.threshold
        return F.pad(chosen.long(), (0, len(self.unseen)))

    def tables(self, values: dict[str, Tensor]) -> dict[str, list[list[str]]]:
        """Of each class how many rows have it, precision, recall and F1."""
        lines = [["label", "rows", "precision", "recall", "f1"]]
        counts = values["per_class"].view(-1, 5).long().tolist()
        known = self._known()[: len(counts)]  # more may have been met since
        for label, (hits, false, _, missed, rows) in zip(known, counts, strict=True):
            found = (hits, hits + false), (hits, rows), (2 * hits, 2 * hits + false + missed)
            shares = [f"{part / whole if whole else 0:.4f}" for part, whole in found]
            lines.append([label, str(rows), *shares])
        return {"per_class": lines}

    # -- predictions and saving -------------------------------------------------------------------

    def predictions(self, outputs: Tensor) -> list[dict[str, Any]]:
        """The labels above the threshold, and the probability of each."""
        names = self.settings.labels
        chosen = self.decide(outputs)[:, : len(names)].bool().tolist()
        probabilities = outputs.float().sigmoid().tolist()
        return [
            {
                "labels": [name for name, there in zip(names, row, strict=True) if there],
                "scores": dict(zip(names, scores, strict=True)),
            }
            for row, scores in zip(chosen, probabilities, strict=True)
        ]

    def reporter(self) -> MultiLabelReporter:
        """Intervals, baselines, calibration, thresholds and the surest mistakes."""
        from tasks.reporting.kinds import MultiLabelReporter

        return MultiLabelReporter(self)

    def decisions(
        self, inputs: Sequence[Any], examples: Sequence[Example], outputs: Sequence[Tensor]
    ) -> list[Any]:
        """The numbers of each text's classes."""
        chosen = self.decide(self.of_texts(examples, outputs))
        return [tuple(row.nonzero()[:, 0].tolist()) for row in chosen]

    def label_name(self, label: Any) -> Any:
        """The labels with those numbers."""
        return [self._known()[place] for place in label]

    def info(self) -> dict[str, Any]:
        """Also what transformers calls this."""
        return {**super().info(), "problem_type": self.name}

    @classmethod
    def restore(cls, info: Mapping[str, Any], labels: Sequence[str]) -> Self:
        """A folder's label set is what was trained on: other labels are missed, but no mistake."""
        task = super().restore(info, labels)
        task.given = False
        return task

    def _weights(self, counts: Sequence[int], rows: int) -> list[float] | None:
        """How much having each class counts in training; None where it is as much as not."""
        wanted, labels = self.loss_options.class_weights, self.settings.labels
        if wanted == "balanced":
            return positive_weights(counts, rows)
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

    def _label_sets(self, rows: Rows) -> list[list[str]]:
        """The labels of each row; what is none, or outside a given list, is refused."""
        column, labels = self.settings.label_column, self.settings.labels
        found = []
        for row, value in enumerate(rows.values(column), start=1):
            where = f"{rows.path}: row {row}: column {column!r}"
            try:
                names = read_labels(value, labels)
            except ValueError as error:
                raise UserError(f"{where}: {error}") from None
            if self.given and (unknown := [name for name in names if name not in labels]):
                raise UserError(
                    f"{where}: label {unknown[0]!r} is not in data.labels ({listed(labels)})"
                )
            found.append(names)
        return found
