"""The part of a context that answers a question, or that there is none (SQuAD, versions 1 and 2).

A row has `question` and `context`, and its right answers in `answer_text` and `answer_start`, or
in `answers`, as SQuAD has them; a row without any is a question that the context does not answer.

Shapes: ``N`` windows of ``S`` tokens at most.
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

from mlm.batch import Batch
from mlm.errors import UserError
from mlm.model.config import EncoderConfig
from tasks.encoding import Example
from tasks.heads import SpanHead
from tasks.rows import Rows
from tasks.settings import TaskSettings
from tasks.spans import Found, Reference, Window, best_spans, choose, context_of
from tasks.squad import exact_match, f1, find_answer_column, read_answers
from tasks.windows import WindowTask, encode_contexts

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

    from tasks.reporting.kinds import AnswerReporter

_COLUMNS = ("question", "context")
_DEFAULT_MAX_LENGTH = 384  # as in BERT's script for SQuAD, and so is the stride of a third of it


def find_span(places: np.ndarray, start: int, end: int) -> tuple[int, int]:
    """First and last token of an answer, or (0, 0), [CLS], where the window has not all of it.

    Args:
        places: (s, 2) where the window's tokens stand in the context, in characters; −1 outside.
        start: of the answer, in characters.
        end: one past its last.

    >>> places = np.array([[-1, -1], [0, 3], [4, 6], [7, 9], [-1, -1]])
    >>> find_span(places, 4, 9), find_span(places, 4, 10)
    ((2, 3), (0, 0))
    """
    first, stop = context_of(places)
    if first == stop or start < places[first, 0] or end > places[stop - 1, 1]:
        return 0, 0
    starts, ends = places[first:stop].T
    one, other = int(np.argmax(ends > start)), stop - 1 - int(np.argmax(starts[::-1] < end))
    return (first + one, other) if first + one <= other else (0, 0)  # or no token has a part of it


class QuestionAnswering(WindowTask):
    """The best span over the windows of a context.

    The first of several right answers is learnt; scores take the one that suits best. An answer may
    be none exactly where the training data have questions without one.
    """

    name = "question_answering"
    layout = "question_answering"
    monitor = "f1"
    columns = (_COLUMNS,)
    label_column = ""  # `answers`, or `answer_text`
    shared = 1 / 3

    def __init__(self, settings: TaskSettings) -> None:
        super().__init__(settings)
        if settings.labels:
            raise UserError("data.labels: answers to questions have no label set; leave it out")
        if len(settings.text_column) == 1:
            raise UserError("data.text_column: name two, of the question and of the context")
        self.no_answer = False
        # What metrics look up by number: all that was ever labelled, so that sets do not mix.
        self.windows: list[Window] = []
        self.references: list[Reference] = []

    def fit(self, rows: Rows, config: EncoderConfig) -> list[str]:
        """Also settle the label column, and whether there may be no answer."""
        remarks = super().fit(rows, config)
        self.settings = replace(self.settings, label_column=self._label_column(rows))
        answered = [bool(answers) for answers in self.targets(rows)]
        if not any(answered):
            raise UserError(f"{rows.path}: no row has an answer; there is nothing to learn")
        self.no_answer = not all(answered)
        return remarks

    def settle(self, config: EncoderConfig) -> None:
        """Settle the longest window, by default of 384 tokens, and what neighbours share."""
        length = self.settings.max_length
        if length is None:
            length = min(_DEFAULT_MAX_LENGTH, config.max_position_embeddings)
        self.settings = replace(self.settings, max_length=length)
        super().settle(config)

    def remarks(self, rows: Rows) -> list[str]:
        """One line where questions have no answer and the model always gives one."""
        without = sum(not answers for answers in self.targets(rows))
        if self.no_answer or not without:
            return []
        return [
            f"{rows.path}: {without} questions have no answer, and the model was trained to give "
            "one always; they count as wrong"
        ]

    # -- columns → features -----------------------------------------------------------------------

    def shown(self, row: Any) -> dict[str, Any]:
        """Question and context."""
        return dict(zip(_COLUMNS, row, strict=True))

    def targets(self, rows: Rows) -> list[Any]:
        """Where each right answer of a row begins, and its text."""
        contexts = [context for _, context in self.inputs(rows)]
        return list(read_answers(rows, contexts, self._label_column(rows)))

    def encode(self, inputs: Sequence[Any], tokenizer: Tokenizer) -> list[Example]:
        """Pairs → token ids; of a context longer than `max_length` several windows."""
        assert self.settings.max_length is not None
        assert self.settings.stride is not None
        return encode_contexts(inputs, tokenizer, self.settings.max_length, self.settings.stride)

    def label(self, examples: Sequence[Example], targets: Sequence[Any]) -> list[Example]:
        """Each window with (first, last) token of the row's first answer, [CLS] without one."""
        labelled = []
        for example in examples:
            assert example.places is not None
            span = (0, 0)
            if answers := targets[example.row]:
                start, text = answers[0]
                bare = text.strip() or text
                start += text.index(bare)
                span = find_span(example.places, start, start + len(bare))
            labelled.append(replace(example, label=span))
        return labelled

    def examples(self, rows: Rows, tokenizer: Tokenizer) -> list[Example]:
        """Labelled windows: (first, last) token, number of the window, where its context stands."""
        inputs, targets = self.inputs(rows), self.targets(rows)
        before = len(self.references)
        self.references += [
            Reference(context, tuple(text for _, text in answers))
            for (_, context), answers in zip(inputs, targets, strict=True)
        ]
        found = []
        for example in self.label(self.encode(inputs, tokenizer), targets):
            assert example.places is not None
            label = (*example.label, len(self.windows), *context_of(example.places))
            self.windows.append(Window(before + example.row, example.places))
            found.append(replace(example, label=label))
        return found

    # -- head, loss, metrics ----------------------------------------------------------------------

    def build_head(self, config: EncoderConfig, dropout: float = 0.0) -> nn.Module:
        """(T, D) → (N, S, 2) logits of a span's first and last token."""
        return SpanHead(config, dropout)

    def loss(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The mean cross-entropy of both ends, summed over the windows."""
        ends = zip(outputs.unbind(-1), labels[:, :2].unbind(-1), strict=True)
        losses = [F.cross_entropy(logits, place, reduction="sum") for logits, place in ends]
        return torch.stack(losses).mean(), torch.tensor(len(labels), device=outputs.device)

    def metrics(self) -> MetricCollection:
        """Exact match and F1, as SQuAD's script has them."""
        from torchmetrics import MetricCollection

        from tasks.answer_metrics import AnswerScore

        scores = {"f1": f1, "exact_match": exact_match}
        return MetricCollection(
            {
                name: AnswerScore(score, self.windows, self.references, self.no_answer)
                for name, score in scores.items()
            }
        )

    def update(self, metrics: MetricCollection, outputs: Tensor, batch: Batch) -> None:
        """Let ``metrics`` see the best span of each window."""
        assert batch.labels is not None
        _, _, windows, first, stop = batch.labels.unbind(-1)
        metrics.update(windows, best_spans(outputs, first, stop))

    def decide(self, outputs: Tensor) -> Tensor:
        """(N, S, 2) → (N, 2) the most likely first and last token, each by itself."""
        return outputs.argmax(1)

    # -- predictions and saving -------------------------------------------------------------------

    def predictions(self, outputs: Tensor) -> list[dict[str, Any]]:
        """Of each window, the most likely tokens; `answers` says what they are in the context."""
        return [{"first": first, "last": last} for first, last in self.decide(outputs).tolist()]

    def answers(
        self, inputs: Sequence[Any], examples: Sequence[Example], outputs: Sequence[Tensor]
    ) -> list[dict[str, Any]]:
        """The answer, its place in the context in characters, and its probability in its window.

        No answer is the empty text, without a place.
        """
        windows: list[list[tuple[np.ndarray, Tensor]]] = [[] for _ in inputs]
        for example, found in zip(examples, outputs, strict=True):
            assert example.places is not None
            windows[example.row].append((example.places, found))
        return [self._answer(c, same) for (_, c), same in zip(inputs, windows, strict=True)]

    def _answer(self, context: str, windows: Sequence[tuple[np.ndarray, Tensor]]) -> dict[str, Any]:
        found = []
        for places, outputs in windows:
            first, stop = torch.tensor(context_of(places)).split(1)
            start, end, score, null = (x.item() for x in best_spans(outputs[None], first, stop))
            found.append(Found(int(start), int(end), score, null))
        answer = choose(context, [places for places, _ in windows], found, self.no_answer)
        span, outputs = found[answer.window], windows[answer.window][1]
        ends = (0, 0) if answer.start is None else (span.start, span.end)
        starts, stops = outputs.softmax(0).unbind(-1)
        return {
            "answer": answer.text,
            "start": answer.start,
            "end": answer.end,
            "score": float(starts[ends[0]] * stops[ends[1]]),
        }

    def reporter(self) -> AnswerReporter:
        """Intervals."""
        from tasks.reporting.kinds import AnswerReporter

        return AnswerReporter(self)

    def decisions(
        self, inputs: Sequence[Any], examples: Sequence[Example], outputs: Sequence[Tensor]
    ) -> list[Any]:
        """The text of each answer, empty where there is none."""
        return [answer["answer"] for answer in self.answers(inputs, examples, outputs)]

    def label_name(self, label: Any) -> Any:
        """The texts of the right answers."""
        return [text for _, text in label]

    def info(self) -> dict[str, Any]:
        """Also whether there may be no answer."""
        return {**super().info(), "no_answer": self.no_answer}

    @classmethod
    def restore(cls, info: Mapping[str, Any], labels: Sequence[str]) -> Self:
        """Its two outputs have names in the folder that are no labels."""
        columns = info.get("text_column") or _COLUMNS
        task = super().restore({**info, "text_column": columns}, ())
        task.no_answer = bool(info.get("no_answer", False))
        return task

    def _label_column(self, rows: Rows) -> str:
        return self.settings.label_column or find_answer_column(rows)
