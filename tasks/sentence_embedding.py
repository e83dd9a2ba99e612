"""A vector for a text, near to those of texts that belong to it.

Learnt from pairs of texts that belong together (nothing else is named), or from pairs with a score
of how much they do (`data.label_column`). The model folder is that of a plain encoder: `mlm embed`
and `mlm export --format sentence-transformers` give the vectors that were trained.

Shapes: ``T`` tokens in all, ``N`` pairs, ``K`` texts of each (two, three with hard negatives),
``D`` model width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Self

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from mlm.batch import Batch, ragged
from mlm.errors import UserError, look_up
from mlm.model.config import EncoderConfig
from mlm.model.pooling import POOLINGS
from mlm.sentence_vectors import SentenceVectors, kept_vectors
from tasks.base import Task
from tasks.encoding import Example, Texts, encode_texts
from tasks.options import LossOptions
from tasks.pair_losses import SCORED, UNSCORED, cosines
from tasks.rows import Rows
from tasks.settings import TaskSettings

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

    from tasks.reporting.kinds import VectorReporter

# How a column of scores is likely called; where none was asked for, its owner is told.
_LIKELY_SCORES = ("label", "score")


class VectorHead(nn.Module):
    """A pooling alone; without weights, so that the encoder is all there is to save."""

    def __init__(self, pooling: str) -> None:
        super().__init__()
        self.pool = look_up(POOLINGS, pooling, "model.pooling")

    def forward(self, hidden: Tensor, batch: Batch) -> Tensor:
        """(T, D) → (K · N, D) in fp32, the texts of a pair one after another."""
        return self.pool(hidden.float(), batch.cu_seqlens)


class SentenceEmbedding(Task):
    """Vectors whose cosine says how near two texts are.

    Without scores each `sentence1` learns to find its `sentence2` among those of the batch. The
    others there are taken as wrong, except those that the table itself shows to be right: the same
    text again, or another partner of the same text. Negatives come from the micro-batch alone, so
    that larger ones learn more; neither accumulation nor more devices add any to them.

    With scores the default is CoSENT: it learns the order of the scores, which is what Spearman's
    correlation measures, and so needs no map from scores to cosines, for which `cosine` takes their
    range in the training data as 0 to 1. CoSENT too compares within the micro-batch.

    There is no classifier, and `model.dropout` has no place.
    """

    name = "sentence_embedding"
    layout = "encoder"
    columns = (("sentence1", "sentence2"),)
    label_column = ""  # without one the pairs have no scores
    usage = "mlm embed --model this/folder --input texts.txt --output vectors.npy"
    reads = frozenset({"negative_column", "normalize"})
    losses = frozenset({"name", "temperature", "symmetric"})

    def __init__(self, settings: TaskSettings) -> None:
        super().__init__(settings)
        if settings.labels:
            raise UserError("data.labels: sentence vectors have no label set; leave it out")
        if len(settings.text_column) not in (0, 2):
            raise UserError("data.text_column: name two, of texts that belong together")
        if settings.negative_column and self.scored:
            raise UserError(
                "data.negative_column: pairs with scores have no negatives; leave out this, or "
                "data.label_column"
            )
        self.low, self.high = 0.0, 1.0  # of the scores in training

    @property
    def scored(self) -> bool:
        """Whether pairs have scores."""
        return bool(self.settings.label_column)

    @property
    def monitor(self) -> str:  # type: ignore[override]
        """`spearman` where there are scores, else `recall@1`."""
        return "spearman" if self.scored else "recall@1"

    # -- what training data decides ---------------------------------------------------------------

    def fit(self, rows: Rows, config: EncoderConfig) -> list[str]:
        """Also take the range of the scores, and say where a column looks like scores unread."""
        remarks = super().fit(rows, config)
        targets = self.targets(rows)
        if self.scored:
            self.low, self.high = min(targets), max(targets)
            return remarks
        if self.settings.negative_column:
            rows.texts(self.settings.negative_column)  # elsewhere it may be missing
        for name in _LIKELY_SCORES:
            if name in rows.table.column_names:
                remarks.append(
                    f"{rows.path}: column {name!r} is not read, all pairs are taken to belong "
                    f"together; to learn from scores add --data.label_column {name}"
                )
        return remarks

    def settle(self, config: EncoderConfig) -> None:
        """Settle pooling, by default the mean in every family, and the longest text."""
        pooling = self.settings.pooling or "mean"
        look_up(POOLINGS, pooling, "model.pooling")  # one with weights has no place in the folder
        if self.settings.layers != 1:
            raise UserError("model.layers: sentence vectors are read from the last layer alone")
        normalize = bool(self.settings.normalize)
        self.settings = replace(self.settings, pooling=pooling, normalize=normalize)
        super().settle(config)

    def train_with(self, options: LossOptions) -> None:
        """Take the loss and its temperature.

        Raises:
            UserError: also a loss of the other kind of pairs, or what it has no use for.
        """
        super().train_with(options)
        if options.name is not None:
            look_up({**SCORED, **UNSCORED}, options.name, "loss.name")
            if options.name not in (SCORED if self.scored else UNSCORED):
                need = "has no use for scores; leave out" if self.scored else "needs scores; give"
                raise UserError(f"loss.name: {options.name} {need} --data.label_column")
        if options.symmetric and self.scored:
            raise UserError("loss.symmetric: a score has no direction; leave it out")
        if options.name == "cosine" and "temperature" in options.chosen():
            raise UserError("loss.temperature: the loss `cosine` has none; leave it out")

    def check_batches(self, size: int, parts: int) -> list[str]:
        """One line where a step's pairs do not all meet; less than two at once are refused."""
        if self._loss_name() == "cosine":
            return []
        if size // parts < 2:
            raise UserError(
                f"data.batch_size: {size} in {parts} parts leaves no two pairs at once to compare; "
                "choose more"
            )
        if parts == 1:
            return []
        return [
            f"pairs are compared within their micro-batch: with {size // parts} at once, not with "
            f"all {size} of a step"
        ]

    # -- columns → features -----------------------------------------------------------------------

    def targets(self, rows: Rows) -> list[Any]:
        """A score a row, or a number for each of its texts, the same for the same text."""
        if self.scored:
            column = self.settings.label_column
            scores = rows.numbers(column)
            if len(set(scores)) == 1:
                raise UserError(
                    f"{rows.path}: column {column!r} holds one number only ({scores[0]}); there is "
                    "nothing to rank"
                )
            return scores
        second = self._columns(rows)[1]
        if len(set(rows.texts(second))) == 1:
            raise UserError(
                f"{rows.path}: column {second!r} holds one text only; there is nothing to tell it "
                "from"
            )
        known: dict[str, int] = {}
        return [tuple(known.setdefault(t, len(known)) for t in row) for row in self._texts(rows)]

    def encode(self, inputs: Sequence[Any], tokenizer: Tokenizer) -> list[Example]:
        """Pairs → token ids, each text by itself and cut to `max_length`."""
        assert self.settings.max_length is not None
        texts = [(text,) for row in inputs for text in row]
        found = iter(encode_texts(texts, tokenizer, self.settings.max_length))
        examples: list[Example] = []
        for row, texts_of_row in enumerate(inputs):
            parts = [next(found) for _ in texts_of_row]
            examples.append(Texts.of(parts, row))
        return examples

    def examples(self, rows: Rows, tokenizer: Tokenizer) -> list[Example]:
        """Labelled pairs, with their hard negatives where the table has them."""
        texts, targets = self._texts(rows), self.targets(rows)
        return self.label(self.encode(texts, tokenizer), targets)

    def collate(self, examples: Sequence[Example]) -> Batch:
        """A batch of K · N sequences; `labels` are (N,) scores or (N, K) numbers of texts."""
        labels = [e.label for e in examples if e.label is not None]
        return ragged(
            [part for e in examples if isinstance(e, Texts) for part in e.parts()],
            labels=torch.tensor(labels) if labels else None,
        )

    def _texts(self, rows: Rows) -> list[tuple[str, ...]]:
        """The pair of each row, and its hard negative where there is one."""
        names, negative = self._columns(rows), self.settings.negative_column
        if negative is not None and negative in rows.table.column_names:
            names = (*names, negative)
        return list(zip(*(rows.texts(name) for name in names), strict=True))

    # -- head, loss, metrics ----------------------------------------------------------------------

    def build_head(self, config: EncoderConfig, dropout: float = 0.0) -> nn.Module:
        """(T, D) → (K · N, D)."""
        assert self.settings.pooling is not None
        return VectorHead(self.settings.pooling)

    def loss(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Summed over the N pairs, of which each is compared with the others in the batch."""
        vectors = outputs.view(len(labels), -1, outputs.shape[-1])
        options, name = self.loss_options, self._loss_name()
        if self.scored:
            loss = SCORED[name](cosines(vectors), self._in_range(labels), options.temperature)
        else:
            loss = UNSCORED[name](vectors, labels, options.temperature, options.symmetric)
        return loss, torch.tensor(len(labels), device=outputs.device)

    def metrics(self) -> MetricCollection:
        """Correlations of cosines with scores, or how well partners are found; and the loss."""
        from torchmetrics import MetricCollection

        from tasks.pair_metrics import WholeSet

        score, width = (self._correlations, ()) if self.scored else (self._retrieval, (2,))
        labels = torch.empty(0, *width, dtype=torch.float if self.scored else torch.long)
        return MetricCollection({"pairs": WholeSet(score, labels)})

    def update(self, metrics: MetricCollection, outputs: Tensor, batch: Batch) -> None:
        """Let ``metrics`` see cosines and scores, or the vectors of pairs and their numbers."""
        labels = batch.labels
        assert labels is not None
        vectors = outputs.view(len(labels), -1, outputs.shape[-1])[:, :2]
        if self.scored:
            metrics.update(cosines(vectors), labels)
        else:
            metrics.update(vectors, labels[:, :2])

    def _correlations(self, outputs: Tensor, scores: Tensor) -> dict[str, Tensor]:
        from tasks.pair_metrics import correlations

        found, name = outputs.squeeze(-1), self._loss_name()
        loss = SCORED[name](found, self._in_range(scores), self.loss_options.temperature)
        return correlations(found, scores) | {"loss": loss / len(scores)}

    def _retrieval(self, outputs: Tensor, texts: Tensor) -> dict[str, Tensor]:
        from tasks.pair_metrics import retrieval

        return retrieval(outputs.unflatten(-1, (2, -1)), texts, self.loss_options.temperature)

    def directions(self) -> dict[str, bool]:
        """More is better of all but the loss."""
        from tasks.pair_metrics import CUTOFFS

        unscored = (*(f"recall@{k}" for k in CUTOFFS), "mrr")
        names = ("spearman", "pearson") if self.scored else unscored
        return {**dict.fromkeys(names, True), "loss": False}

    def decide(self, outputs: Tensor) -> Tensor:
        """(2 N, D), or (N, 2, D) → cosines (N,)."""
        return cosines(outputs.reshape(-1, 2, outputs.shape[-1]))

    def _loss_name(self) -> str:
        """The one asked for, where it fits the pairs; a trained model may be scored on others."""
        table = SCORED if self.scored else UNSCORED
        name = self.loss_options.name
        return name if name is not None and name in table else next(iter(table))

    def _in_range(self, scores: Tensor) -> Tensor:
        return (scores - self.low) / (self.high - self.low)

    # -- predictions and saving -------------------------------------------------------------------

    def split(self, outputs: Tensor, batch: Batch) -> Sequence[Tensor]:
        """(K · N, D) → (2, D) a pair; hard negatives are no part of it."""
        texts = 2 if batch.labels is None else len(outputs) // len(batch.labels)
        return outputs.view(-1, texts, outputs.shape[-1])[:, :2].unbind()

    def predictions(self, outputs: Tensor) -> list[dict[str, Any]]:
        """The cosine, as `score`."""
        return [{"score": score} for score in self.decide(outputs).tolist()]

    def reporter(self) -> VectorReporter:
        """Intervals, where pairs have scores."""
        from tasks.reporting.kinds import VectorReporter

        return VectorReporter(self)

    def decisions(
        self, inputs: Sequence[Any], examples: Sequence[Example], outputs: Sequence[Tensor]
    ) -> list[Any]:
        """The cosine of each pair with a score."""
        return self.decide(torch.stack(list(outputs))).tolist() if self.scored else []

    def label_name(self, label: Any) -> Any:
        """The score; of pairs without, that they belong together."""
        return label if self.scored else "together"

    def purpose(self) -> str:
        """Which vectors they are, and what they were trained on."""
        first, second = self.settings.text_column
        scored = f", by `{self.settings.label_column}`" if self.scored else ""
        return (
            f"Sentence vectors (the {self.settings.pooling} of the tokens' vectors), trained on "
            f"pairs of `{first}` and `{second}`{scored}"
        )

    def info(self) -> dict[str, Any]:
        """How a text's vector is made, where `mlm embed` and `mlm export` look; and the loss."""
        settings, options = self.settings, self.loss_options
        vectors = SentenceVectors(
            str(settings.pooling), bool(settings.normalize), settings.max_length
        )
        own = {"pooling", "normalize", "max_length"}  # these stand there, and nowhere else
        info = {name: value for name, value in super().info().items() if name not in own}
        loss = {name: getattr(options, name) for name in sorted(self.losses)}
        return info | {
            "sentence_vectors": asdict(vectors),
            "loss": loss | {"name": self._loss_name()},
            "score_range": [self.low, self.high],
        }

    @classmethod
    def restore(cls, info: Mapping[str, Any], labels: Sequence[str]) -> Self:
        """Also take back vectors, loss and range of scores."""
        columns = info.get("text_column") or cls.columns[0]
        task = super().restore({**info, **asdict(kept_vectors(info)), "text_column": columns}, ())
        try:
            task.train_with(LossOptions(**info.get("loss", {})))
            low, high = map(float, info.get("score_range", (0.0, 1.0)))
        except (TypeError, ValueError):
            raise UserError("mlm.loss or mlm.score_range: damaged") from None
        if not (math.isfinite(high - low) and low < high):
            raise UserError(f"mlm.score_range: {[low, high]} is no range")
        task.low, task.high = low, high
        return task
