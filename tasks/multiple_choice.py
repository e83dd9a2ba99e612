"""Which of several choices goes with a text: an ending, an answer, a cause (SWAG, RACE, COPA).

A row has a text, or a text and a question, two choices or more, and which of them is right. The
model reads the text beside each choice, and gives each one number (https://arxiv.org/abs/1810.04805,
section 4.4); the largest wins.

Shapes: ``N`` rows of ``C`` choices, ``D`` model width, ``T`` tokens in all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from mlm.batch import Batch, ragged
from mlm.errors import UserError
from mlm.model.config import EncoderConfig
from tasks.base import Task
from tasks.choices import LABEL_COLUMNS, choice_columns, read_choices, read_right_ones
from tasks.encoding import Example, Texts, encode_texts
from tasks.heads import PooledHead
from tasks.losses import cross_entropy, symmetric_kl
from tasks.rows import Rows, find_columns
from tasks.settings import TaskSettings

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

    from tasks.reporting.kinds import ChoiceReporter


class MultipleChoice(Task):
    """One of as many choices in every row, whose order means nothing."""

    name = "multiple_choice"
    layout = "multiple_choice"
    monitor = "accuracy"
    columns = (
        ("sent1", "sent2"),
        ("article", "question"),
        ("context", "question"),
        ("premise", "question"),
        ("ctx",),
        ("premise",),
        ("goal",),
        ("question",),
        ("context",),
        ("sentence",),
        ("text",),
    )
    label_column = ""  # one of `LABEL_COLUMNS`
    reads = frozenset({"choice_column"})
    losses = frozenset({"label_smoothing", "focal_gamma", "r_drop"})
    usage = 'mlm predict --model this/folder --text "…" "a choice" "another choice"'

    def __init__(self, settings: TaskSettings) -> None:
        super().__init__(settings)
        if settings.labels:
            raise UserError("data.labels: choices have no label set; leave it out")
        self.choices: int | None = None

    def fit(self, rows: Rows, config: EncoderConfig) -> list[str]:
        """Also settle the columns of the choices and of the right one."""
        remarks = super().fit(rows, config)
        columns = choice_columns(rows, self.settings.choice_column)
        self.settings = replace(
            self.settings, choice_column=list(columns), label_column=self._label_column(rows)
        )
        if len(set(self.targets(rows))) == 1 < rows.table.num_rows:
            remarks.append(f"{rows.path}: the right choice is at the same place in every row")
        return remarks

    # -- columns → features -----------------------------------------------------------------------

    def inputs(self, rows: Rows) -> list[Any]:
        """(texts, choices) of each row, both tuples."""
        return list(zip(super().inputs(rows), self._choices(rows), strict=True))

    def as_inputs(self, values: Sequence[Any]) -> list[Any]:
        """From (text, choices) or (text, question, choices) each, choices being a list of texts.

        Raises:
            UserError: anything else, or choices of uneven number.
        """
        width = len(self.settings.text_column) or 1
        inputs: list[Any] = []
        for number, value in enumerate(values, start=1):
            if (found := _texts_and_choices(value, width)) is None:
                what = "(text, [choices])" if width == 1 else "(text, question, [choices])"
                raise UserError(f"input {number}: not {what}, which is what this model takes")
            many = len(found[1])
            if many < 2 or (inputs and many != len(inputs[0][1])):
                raise UserError(
                    f"input {number}: {many} choices; give two or more, and to all inputs as many"
                )
            inputs.append(found)
        return inputs

    def from_words(self, words: Sequence[str]) -> list[Any]:
        """The words of ``--text`` as one input: its texts, then its choices."""
        width = len(self.settings.text_column) or 1
        if len(words) < width + 2:
            need = "a text" if width == 1 else "a text, a question"
            raise UserError(f"--text: this model takes {need} and two choices or more")
        return [(*words[:width], list(words[width:]))]

    def shown(self, row: Any) -> dict[str, Any]:
        """The texts, and the choices."""
        texts, choices = row
        return super().shown(texts) | {"choices": list(choices)}

    def targets(self, rows: Rows) -> list[int]:
        """The place of each row's right choice."""
        columns = choice_columns(rows, self.settings.choice_column)
        number = len(self._choices(rows)[0])
        return read_right_ones(rows, self._label_column(rows), columns, number)

    def encode(self, inputs: Sequence[Any], tokenizer: Tokenizer) -> list[Example]:
        """Each choice beside its text → token ids, cut to `max_length`; a question goes before it.

        As transformers' script for SWAG has it.
        """
        assert self.settings.max_length is not None
        pairs = [
            (texts[0], " ".join([*texts[1:], choice]))
            for texts, choices in inputs
            for choice in choices
        ]
        found = iter(encode_texts(pairs, tokenizer, self.settings.max_length))
        return [
            Texts.of([next(found) for _ in choices], row) for row, (_, choices) in enumerate(inputs)
        ]

    def collate(self, examples: Sequence[Example]) -> Batch:
        """A batch of N · C sequences; `labels` is (N,), and `rows` tells of which row each is."""
        texts = [example for example in examples if isinstance(example, Texts)]
        labels = [e.label for e in texts if e.label is not None]
        batch = ragged(
            [part for e in texts for part in e.parts()],
            token_type_ids=[part for e in texts for part in e.type_parts()],
            labels=torch.tensor(labels) if labels else None,
        )
        rows = np.repeat(np.arange(len(texts)), [len(e.lengths) for e in texts])
        return replace(batch, rows=torch.from_numpy(rows))

    # -- head, loss, metrics ----------------------------------------------------------------------

    def build_head(self, config: EncoderConfig, dropout: float = 0.0) -> nn.Module:
        """(T, D) → (N · C, 1)."""
        assert self.settings.pooling is not None
        return PooledHead(config, 1, self.settings.pooling, dropout)

    def loss(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy over the choices, summed over the rows."""
        loss = F.cross_entropy(outputs.view(len(labels), -1), labels, reduction="sum")
        return loss, torch.tensor(len(labels), device=outputs.device)

    def training_loss(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """As `loss`, smoothed or focal as asked for."""
        options = self.loss_options
        loss = cross_entropy(
            outputs.view(len(labels), -1),
            labels,
            None,
            options.label_smoothing,
            options.focal_gamma,
        )
        return loss, torch.tensor(len(labels), device=outputs.device)

    def divergence(self, first: Tensor, second: Tensor) -> Tensor:
        """How far two passes' distributions are apart, both ways, summed over the rows."""
        assert self.choices is not None
        return symmetric_kl(first.view(-1, self.choices), second.view(-1, self.choices))

    def metrics(self) -> MetricCollection:
        """Accuracy."""
        from torchmetrics import MetricCollection
        from torchmetrics.classification import MulticlassAccuracy

        accuracy = MulticlassAccuracy(self.choices or 2, average="micro")
        return MetricCollection({"accuracy": accuracy})

    def update(self, metrics: MetricCollection, outputs: Tensor, batch: Batch) -> None:
        """Let ``metrics`` see a labelled batch."""
        assert batch.labels is not None
        metrics.update(self.decide(outputs.view(len(batch.labels), -1)), batch.labels)

    def decide(self, outputs: Tensor) -> Tensor:
        """(N, C) → (N,) the likeliest choice."""
        return outputs.argmax(-1)

    # -- predictions and saving -------------------------------------------------------------------

    def split(self, outputs: Tensor, batch: Batch) -> Sequence[Tensor]:
        """(N · C, 1) → (C,) a row."""
        assert batch.rows is not None
        return outputs.squeeze(-1).split(batch.rows.bincount().tolist())

    def predictions(self, outputs: Tensor) -> list[dict[str, Any]]:
        """The place of the likeliest choice from 0, its probability, and that of each."""
        places = self.decide(outputs).tolist()
        return [
            {"choice": place, "score": scores[place], "scores": scores}
            for place, scores in zip(places, outputs.softmax(-1).tolist(), strict=True)
        ]

    def answers(
        self, inputs: Sequence[Any], examples: Sequence[Example], outputs: Sequence[Tensor]
    ) -> list[dict[str, Any]]:
        """Also what the likeliest choice says, under `answer`."""
        found = super().answers(inputs, examples, outputs)
        return [
            {"answer": choices[answer["choice"]], **answer}
            for (_, choices), answer in zip(inputs, found, strict=True)
        ]

    def reporter(self) -> ChoiceReporter:
        """Intervals, baselines, calibration and the surest mistakes."""
        from tasks.reporting.kinds import ChoiceReporter

        return ChoiceReporter(self)

    def decisions(
        self, inputs: Sequence[Any], examples: Sequence[Example], outputs: Sequence[Tensor]
    ) -> list[Any]:
        """The place of each row's likeliest choice."""
        return self.decide(torch.stack(list(outputs))).tolist()

    def purpose(self) -> str:
        """What it does."""
        columns = " and ".join(f"`{name}`" for name in self.settings.text_column)
        return f"Chooses what goes with {columns}"

    @classmethod
    def restore(cls, info: Mapping[str, Any], labels: Sequence[str]) -> Self:
        """As usual; the single output's name is no label."""
        return super().restore(info, ())

    def _choices(self, rows: Rows) -> list[tuple[str, ...]]:
        """Those of each row, as many as in all that was read before."""
        found = read_choices(rows, choice_columns(rows, self.settings.choice_column))
        number = len(found[0])
        if self.choices not in (None, number):
            raise UserError(
                f"{rows.path}: {number} choices a row, and {self.choices} in what was read before; "
                "all tables must have as many"
            )
        self.choices = number
        return found

    def _label_column(self, rows: Rows) -> str:
        given = self.settings.label_column
        return given or find_columns(rows, LABEL_COLUMNS, "data.label_column")[0]


def _texts_and_choices(value: Any, width: int) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """(text, …, choices), or (texts, choices) → (texts, choices); None where it is neither."""
    if not isinstance(value, list | tuple) or len(value) < 2:
        return None
    *texts, choices = value
    if isinstance(texts[0], tuple):
        texts = [*texts[0], *texts[1:]]
    if len(texts) != width or not isinstance(choices, list | tuple):
        return None
    if not all(isinstance(text, str) for text in (*texts, *choices)):
        return None
    return tuple(texts), tuple(choices)
