"""A tag for every word, such as its part of speech or the entity that it is part of.

A row has words and their tags in two columns (`tokens`, `ner_tags`), or a text and the labelled
spans in it (`text`, `spans` with `start`, `end` and `label` in characters). A text is parted into
words by `tasks.tags.split_words`, in training and afterwards.

Shapes: ``T`` tokens in all, ``s`` tokens of an example, ``C`` tags.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from mlm.batch import Batch, ragged
from mlm.errors import UserError
from mlm.model.config import EncoderConfig
from tasks.encoding import Example
from tasks.heads import TokenHead
from tasks.losses import IGNORED
from tasks.rows import Rows
from tasks.sentences import (
    Sentence,
    count_cuts,
    find_label_column,
    read_sentences,
    read_tags,
    text_of,
    words_of,
)
from tasks.settings import TaskSettings
from tasks.tags import OUTSIDE, Word, entities, mark_entities
from tasks.text_classification import sort_labels
from tasks.windows import WindowTask, encode_words

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

    from tasks.reporting.kinds import TaggingReporter


def sort_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """`O` first, then as `sort_labels`.

    >>> sort_tags(["I-LOC", "O", "B-LOC"])
    ('O', 'B-LOC', 'I-LOC')
    """
    return tuple(sorted(sort_labels(tags), key=lambda tag: tag != OUTSIDE))


class TokenClassification(WindowTask):
    """One tag a word, out of a set that the training data (or the caller) decides.

    A word is read by its first token. In a sentence longer than the model, each word is learnt and
    decided in the window where it has most context, so that it counts once.
    """

    name = "token_classification"
    layout = "token_classification"
    monitor = "f1"
    columns = (("tokens",), ("text",))
    label_column = ""  # by the input: tags of words, or spans of a text

    def __init__(self, settings: TaskSettings) -> None:
        super().__init__(settings)
        if len(settings.text_column) > 1:
            raise UserError("data.text_column: words to tag stand in one column; name one")
        if repeated := [tag for tag, n in Counter(settings.labels).items() if n > 1]:
            raise UserError(f"data.labels: {repeated[0]!r} stands there twice")
        self._choose_monitor()

    def fit(self, rows: Rows, config: EncoderConfig) -> list[str]:
        """Also settle the label column and the tag set."""
        remarks = super().fit(rows, config)
        self.settings = replace(self.settings, label_column=self._label_column(rows))
        tags = {tag for sentence in self._tags(rows) for tag in sentence}
        if len(tags) < 2:
            found = f"one tag only ({next(iter(tags))!r})" if tags else "no tag"
            raise UserError(
                f"{rows.path}: column {self.settings.label_column!r} holds {found}; tagging needs "
                "two or more"
            )
        if not self.settings.labels:
            if any(isinstance(sentence, str) for sentence in self.inputs(rows)):
                # Of spans, each type has both tags: entities of two words may come later.
                types = {tag[2:] for tag in tags - {OUTSIDE}}
                tags = {OUTSIDE} | {f"{prefix}-{kind}" for kind in types for prefix in "BI"}
            self.settings = replace(self.settings, labels=sort_tags(tags))
        self._choose_monitor()
        return remarks + self.remarks(rows)

    def remarks(self, rows: Rows) -> list[str]:
        """One line where spans begin or end inside words."""
        column = self._label_column(rows)
        self._tags(rows)  # refuses what is no span
        cuts = count_cuts(rows, self.inputs(rows), column)
        if not cuts:
            return []
        return [f"{rows.path}: {cuts} spans begin or end inside a word, and count as all of it"]

    # -- columns → features -----------------------------------------------------------------------

    def inputs(self, rows: Rows) -> list[Any]:
        """A tuple of words a row, or a text that is still to be parted into words."""
        (column,) = self._columns(rows)
        return read_sentences(rows, column)

    def as_inputs(self, values: Sequence[Any]) -> list[Any]:
        """Texts, or lists of words.

        Raises:
            UserError: anything else.
        """
        if isinstance(values, str):
            raise UserError("give a list of texts, not one text")
        inputs = [x if isinstance(x, str) else tuple(x) for x in values]
        for number, sentence in enumerate(inputs, start=1):
            if not all(isinstance(word, str) for word in sentence):
                raise UserError(f"input {number}: neither a text nor a list of words")
        return inputs

    def shown(self, row: Any) -> dict[str, Any]:
        """A text under `text`, words under `tokens`."""
        return {"text": row} if isinstance(row, str) else {"tokens": list(row)}

    def targets(self, rows: Rows) -> list[Any]:
        """An array of numbers of tags a row; a tag outside the set is named with its row."""
        places = {tag: place for place, tag in enumerate(self.settings.labels)}
        targets = []
        for row, tags in enumerate(self._tags(rows), start=1):
            for tag in tags:
                if tag not in places:
                    known = ", ".join(map(repr, self.settings.labels[:20]))
                    raise UserError(
                        f"{rows.path}: row {row}: column {self._label_column(rows)!r}: the tag "
                        f"{tag!r} is not among those of the model ({known}); correct it, or train "
                        "with all of them in --data.labels"
                    )
            targets.append(np.array([places[tag] for tag in tags], np.int64))
        return targets

    def encode(self, inputs: Sequence[Any], tokenizer: Tokenizer) -> list[Example]:
        """Sentences → token ids; those longer than `max_length` as several windows."""
        assert self.settings.max_length is not None
        assert self.settings.stride is not None
        sentences = [[word.text for word in words_of(sentence)] for sentence in inputs]
        return encode_words(sentences, tokenizer, self.settings.max_length, self.settings.stride)

    def label(self, examples: Sequence[Example], targets: Sequence[Any]) -> list[Example]:
        """Each example with (s,) numbers of tags, `IGNORED` where a token decides no word."""
        labelled = []
        for example in examples:
            assert example.places is not None
            decides = example.places >= 0
            label = np.full(len(example.places), IGNORED, np.int64)
            label[decides] = targets[example.row][example.places[decides]]
            labelled.append(replace(example, label=label))
        return labelled

    def collate(self, examples: Sequence[Example]) -> Batch:
        """A ragged batch; `labels` is (T, 3) tag, row and word of each token."""
        labels = [
            np.stack([e.label, np.full_like(e.label, e.row), e.places], axis=-1)
            for e in examples
            if e.label is not None and e.places is not None
        ]
        return ragged(
            [e.input_ids for e in examples],
            labels=torch.from_numpy(np.concatenate(labels)) if labels else None,
        )

    # -- head, loss, metrics ----------------------------------------------------------------------

    def build_head(self, config: EncoderConfig, dropout: float = 0.0) -> nn.Module:
        """(T, D) → (T, C) logits."""
        return TokenHead(config, len(self.settings.labels), dropout)

    def loss(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy, summed over the words."""
        tags = labels[:, 0]
        loss = F.cross_entropy(outputs, tags, ignore_index=IGNORED, reduction="sum")
        return loss, (tags != IGNORED).sum()

    def metrics(self) -> MetricCollection:
        """F1, precision and recall of entities, strict as CoNLL's, and accuracy of tags.

        Accuracy and macro F1 of tags where these mark no entities.
        """
        from torchmetrics import MetricCollection

        from tasks.tagging_metrics import tag_metrics

        return MetricCollection(tag_metrics(self.settings.labels, self.marks_entities))

    def update(self, metrics: MetricCollection, outputs: Tensor, batch: Batch) -> None:
        """Let ``metrics`` see the tags and places of a batch's words."""
        assert batch.labels is not None
        decides = batch.labels[:, 0] != IGNORED
        metrics.update(self.decide(outputs[decides]), batch.labels[decides])

    def decide(self, outputs: Tensor) -> Tensor:
        """(T, C) logits → (T,) the most likely tags."""
        return outputs.argmax(-1)

    def tables(self, values: dict[str, Tensor]) -> dict[str, list[list[str]]]:
        """Entities by their type, a line each."""
        if "entities" not in values:
            return {}
        from tasks.tagging_metrics import entity_types, precision_recall_f1

        counts = values["entities"].cpu().numpy()
        lines = [
            [kind, *(f"{score:.4f}" for score in scores), *map(str, numbers)]
            for kind, scores, numbers in zip(
                entity_types(self.settings.labels),
                precision_recall_f1(counts).tolist(),
                counts.tolist(),
                strict=True,
            )
        ]
        header = ["entity", "precision", "recall", "f1", "right", "predicted", "true"]
        return {"entities": [header, *lines]}

    # -- predictions and saving -------------------------------------------------------------------

    @property
    def marks_entities(self) -> bool:
        """Whether the tags mark entities, rather than words one by one."""
        return mark_entities(self.settings.labels)

    def split(self, outputs: Tensor, batch: Batch) -> Sequence[Tensor]:
        """(T, C) → (s, C) an example."""
        return outputs.split(batch.sequence_lengths.tolist())

    def predictions(self, outputs: Tensor) -> list[dict[str, Any]]:
        """Of each word, from (words, C) logits, its tag and that tag's probability."""
        scores, tags = outputs.softmax(-1).max(-1)
        labels = self.settings.labels
        return [
            {"tag": labels[tag], "score": score}
            for tag, score in zip(tags.tolist(), scores.tolist(), strict=True)
        ]

    def answers(
        self, inputs: Sequence[Any], examples: Sequence[Example], outputs: Sequence[Tensor]
    ) -> list[dict[str, Any]]:
        """Tags of the words, and the entities that they mark, with their places.

        `start` and `end` of an entity count characters of the text, or of the words with a space
        between any two; `start_word` and `end_word` count words. Ends are one past the last.
        """
        sentences = [words_of(sentence) for sentence in inputs]
        decided: list[list[dict[str, Any]]] = [[{}] * len(words) for words in sentences]
        for example, found in zip(examples, outputs, strict=True):
            assert example.places is not None
            decides = example.places >= 0
            words = example.places[decides].tolist()
            answers = self.predictions(found[torch.from_numpy(decides)])
            for word, answer in zip(words, answers, strict=True):
                decided[example.row][word] = answer
        return [
            self._answer(sentence, words, found)
            for sentence, words, found in zip(inputs, sentences, decided, strict=True)
        ]

    def _answer(
        self, sentence: Sentence, words: Sequence[Word], decided: Sequence[dict[str, Any]]
    ) -> dict[str, Any]:
        tags = [word["tag"] for word in decided]
        answer: dict[str, Any] = {"tags": tags}
        if isinstance(sentence, str):
            answer = {"tokens": [word.text for word in words], **answer}
        if self.marks_entities:
            text = text_of(sentence)
            answer["entities"] = [
                {
                    "type": kind,
                    "text": text[words[first].start : words[last - 1].end],
                    "start": words[first].start,
                    "end": words[last - 1].end,
                    "start_word": first,
                    "end_word": last,
                    "score": sum(word["score"] for word in decided[first:last]) / (last - first),
                }
                for kind, first, last in entities(tags)
            ]
        return answer

    def reporter(self) -> TaggingReporter:
        """Intervals, where tags mark entities."""
        from tasks.reporting.kinds import TaggingReporter

        return TaggingReporter(self)

    def decisions(
        self, inputs: Sequence[Any], examples: Sequence[Example], outputs: Sequence[Tensor]
    ) -> list[Any]:
        """The numbers of each sentence's tags, (words,); −1 of a word that no window decides."""
        decided = [np.full(len(words_of(sentence)), -1) for sentence in inputs]
        for example, found in zip(examples, outputs, strict=True):
            assert example.places is not None
            decides = example.places >= 0
            tags = self.decide(found[torch.from_numpy(decides)])
            decided[example.row][example.places[decides]] = tags.numpy()
        return decided

    def collapsed(self, decisions: Sequence[Any], targets: Sequence[Any]) -> bool:
        """Whether all words got one and the same tag, where their tags differ."""
        found, true = (np.unique(np.concatenate(tags)) for tags in (decisions, targets))
        return len(found) == 1 < len(true)

    def label_name(self, label: Any) -> Any:
        """The tags with those numbers."""
        return [self.settings.labels[tag] for tag in label]

    def _choose_monitor(self) -> None:
        self.monitor = "f1" if self.marks_entities else "accuracy"

    def _label_column(self, rows: Rows) -> str:
        return self.settings.label_column or find_label_column(rows)

    def _tags(self, rows: Rows) -> list[list[str]]:
        """The tags of each row's words."""
        column = self._label_column(rows)
        return read_tags(rows, self.inputs(rows), column, self.settings.labels)
