"""Texts longer than the model: cut, at either end or in the middle, or in windows that vote.

Shapes: ``n`` tokens of a text without special ones, ``W`` windows, ``C`` outputs.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from mlm.batch import Batch
from mlm.errors import UserError, look_up
from mlm.model.config import EncoderConfig
from tasks.base import Task
from tasks.encoding import Example, check_length, whole
from tasks.rows import Rows
from tasks.settings import TaskSettings

if TYPE_CHECKING:
    from torchmetrics import Metric, MetricCollection

# Of so much room, how much is for the beginning of a text; the rest is for its end. A quarter and
# three did best on IMDB, 128 and 382 tokens (https://arxiv.org/abs/1905.05583, section 5.3.1).
TRUNCATIONS: dict[str, Callable[[int], int]] = {
    "head": lambda room: room,
    "tail": lambda room: 0,
    "both": lambda room: room // 4,
}
LONG_TEXTS = {"cut": None, "windows": None}

# The share of a window that its neighbour has too, where `data.stride` says none.
_SHARED = 0.25


def kept(length: int, room: int, truncation: str) -> np.ndarray:
    """Which of ``length`` tokens stay where there is ``room`` for fewer.

    >>> [kept(9, 4, name).tolist() for name in TRUNCATIONS]
    [[0, 1, 2, 3], [5, 6, 7, 8], [0, 6, 7, 8]]
    """
    head = TRUNCATIONS[truncation](room)
    return np.concatenate([np.arange(head), np.arange(length - room + head, length)])


def windows(length: int, room: int, stride: int) -> list[np.ndarray]:
    """Which of ``length`` tokens each window has: ``room`` of them, ``stride`` with the next.

    The last one ends where the text does, and shares more with the one before.

    >>> [window.tolist() for window in windows(8, 4, 1)]
    [[0, 1, 2, 3], [3, 4, 5, 6], [4, 5, 6, 7]]
    """
    starts = [*range(0, length - room, room - stride), length - room]
    return [np.arange(start, start + room) for start in starts]


def encode_parts(
    texts: Sequence[str],
    tokenizer: Tokenizer,
    max_length: int,
    parts: Callable[[int, int], Sequence[np.ndarray]],
) -> Iterator[Example]:
    """Texts → token ids with the special ones, of a longer text only ``parts`` of its tokens.

    Args:
        texts: single ones.
        tokenizer: left as it is.
        max_length: tokens at most, special ones included.
        parts: (n, room) → the tokens that stand in each of a longer text's examples.

    Raises:
        UserError: a ``max_length`` that leaves no room for the text.
    """
    room = check_length(tokenizer, False, max_length)
    tokenizer = whole(tokenizer)
    for start in range(0, len(texts), 1_000):  # encodings are ten times as large as their ids
        encodings = tokenizer.encode_batch_fast(list(texts[start : start + 1_000]))
        for row, encoding in enumerate(encodings, start):
            ids = np.asarray(encoding.ids, np.int32)
            if len(ids) <= max_length:
                yield Example(ids, row=row)
                continue
            inside = np.flatnonzero([text == 0 for text in encoding.sequence_ids])
            before, body, after = ids[: inside[0]], ids[inside], ids[inside[-1] + 1 :]
            found = parts(len(body), room)
            for part in found:  # one alone is less than the text
                joined = np.concatenate([before, body[part], after])
                yield Example(joined, truncated=len(found) == 1, row=row)


def mean_by(values: Tensor, owner: Tensor, count: int) -> Tensor:
    """Means of rows: (W, C) and to which of ``count`` each belongs (W,) → (count, C)."""
    sums = values.new_zeros(count, values.shape[-1]).index_add(0, owner, values)
    return sums / owner.bincount(minlength=count)[:, None]


def log_mean_exp_by(values: Tensor, owner: Tensor, count: int) -> Tensor:
    """log of `mean_by` of exp, where exp itself might be 0: (W, C) → (count, C)."""
    places = owner[:, None].expand_as(values)
    peak = values.new_full((count, values.shape[-1]), -torch.inf)
    peak = peak.scatter_reduce(0, places, values, "amax")
    return peak + mean_by((values - peak[owner]).exp(), owner, count).log()


class LongTextTask(Task):
    """A task with one answer a text, whose long texts are cut or read in windows.

    In training a window is an example like any other, with the label of its text. Everywhere else
    the windows of a text vote: what is scored and answered is made of all of them.
    """

    reads = frozenset({"truncation", "long_texts", "stride"})

    @abstractmethod
    def pool_windows(self, outputs: Tensor, owner: Tensor, count: int) -> Tensor:
        """Outputs of windows (W, C), of ``count`` texts by ``owner`` (W,) → outputs (count, C)."""

    @property
    def windowed(self) -> bool:
        """Whether long texts are read in windows."""
        return self.settings.long_texts == "windows"

    def settle(self, config: EncoderConfig) -> None:
        """Also settle what is done with long texts."""
        super().settle(config)
        settings = self.settings
        self.settings = replace(settings, **_settled(settings))

    def fit(self, rows: Rows, config: EncoderConfig) -> list[str]:
        """Also refuse for pairs what only single texts have."""
        remarks = super().fit(rows, config)
        if len(self.settings.text_column) == 2:
            for name, usual in (("long_texts", "cut"), ("truncation", "head")):
                if (value := getattr(self.settings, name)) not in (usual, None):
                    raise UserError(
                        f"data.{name}: {value} is for single texts; of pairs the longer text is cut"
                    )
        return remarks

    def encode(self, inputs: Sequence[Any], tokenizer: Tokenizer) -> list[Example]:
        """Inputs → token ids; long texts cut, or in windows."""
        settings = self.settings
        truncation, stride, length = settings.truncation, settings.stride, settings.max_length
        if truncation == "head":
            return super().encode(inputs, tokenizer)
        assert length is not None
        texts = [text for (text,) in inputs]
        if truncation is not None:
            return list(
                encode_parts(texts, tokenizer, length, lambda n, room: [kept(n, room, truncation)])
            )
        assert stride is not None
        if stride >= (room := check_length(tokenizer, False, length)):
            raise UserError(
                f"data.stride: {stride} is as long as a window, which has room for {room} tokens; "
                "choose less"
            )
        found = encode_parts(texts, tokenizer, length, lambda n, room: windows(n, room, stride))
        return list(found)

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Also which text each sequence is of, where windows vote."""
        batch = super().collate(examples)
        if not self.windowed:
            return batch
        return replace(batch, rows=torch.tensor([e.row for e in examples]))

    def collected(self, metrics: dict[str, Metric], labels: Tensor) -> MetricCollection:
        """``metrics`` of what `decide` gives, of whole texts where windows vote.

        Args:
            metrics: by their names.
            labels: (0, …), none of the labels, of their kind and shape.
        """
        from torchmetrics import MeanMetric, MetricCollection

        if not self.windowed:
            return MetricCollection(dict(metrics))
        from tasks.metrics import PerText

        def see(metric: Metric, outputs: Tensor, labels: Tensor) -> None:
            metric.update(self.decide(outputs), labels)

        def see_loss(metric: Metric, outputs: Tensor, labels: Tensor) -> None:
            loss, count = self.loss(outputs, labels)
            metric.update(loss / count.clamp(min=1), weight=count)

        found: dict[str, Metric | MetricCollection] = {
            name: PerText(metric, see, self.pool_windows, labels)
            for name, metric in metrics.items()
        }
        found["loss"] = PerText(MeanMetric(), see_loss, self.pool_windows, labels)
        return MetricCollection(found, compute_groups=False)  # they share the tensors they keep

    def update(self, metrics: MetricCollection, outputs: Tensor, batch: Batch) -> None:
        """Let ``metrics`` see a labelled batch, whose windows may be of texts in other batches."""
        if self.windowed:
            metrics.update(outputs, batch.labels, batch.rows)
        else:
            super().update(metrics, outputs, batch)

    def answers(
        self, inputs: Sequence[Any], examples: Sequence[Example], outputs: Sequence[Tensor]
    ) -> list[dict[str, Any]]:
        """One JSON-ready object an input, by the votes of its windows."""
        return self.predictions(self.of_texts(examples, outputs)) if outputs else []

    def of_texts(self, examples: Sequence[Example], outputs: Sequence[Tensor]) -> Tensor:
        """The outputs of examples, at least one, as `split` gave them → those of texts, (n, C)."""
        stacked = torch.stack(list(outputs))
        if not self.windowed:
            return stacked
        owner = torch.tensor([e.row for e in examples])
        return self.pool_windows(stacked, owner, examples[-1].row + 1)


def _settled(settings: TaskSettings) -> dict[str, Any]:
    """How long texts are read, with what is left open filled in.

    Raises:
        UserError: an unknown name, or settings that exclude each other.
    """
    long_texts, stride = settings.long_texts or "cut", settings.stride
    look_up(LONG_TEXTS, long_texts, "data.long_texts")
    if long_texts == "cut":
        if stride is not None:
            raise UserError("data.stride: only windows share tokens; add --data.long_texts windows")
        truncation = settings.truncation or "head"
        look_up(TRUNCATIONS, truncation, "data.truncation")
        return {"long_texts": long_texts, "truncation": truncation}
    if settings.truncation is not None:
        raise UserError(
            "data.truncation: windows cut nothing off; leave out this, or data.long_texts"
        )
    assert settings.max_length is not None
    stride = int(settings.max_length * _SHARED) if stride is None else stride
    if stride < 0:
        raise UserError(f"data.stride: {stride} must be at least 0")
    return {"long_texts": long_texts, "stride": stride}
