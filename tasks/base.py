"""`Task`: the one plug-in point of fine-tuning.

A task says how columns become features, which head stands on the encoder, what the loss and the
metrics are and how a prediction is printed. A new one is one class in one file and one line in
`TASKS`; everything else (training, evaluation, prediction, saving) is written against this class.

Shapes: ``N`` examples in a batch, ``C`` outputs of the head.
"""

from __future__ import annotations

import abc
import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from mlm.batch import Batch, ragged
from mlm.errors import UserError, look_up
from mlm.model.config import EncoderConfig
from tasks.encoding import Example, encode_texts
from tasks.heads import TaskModel, check_layers, default_pooling
from tasks.options import LossOptions
from tasks.pooling import check_pooling
from tasks.rows import Rows, find_columns
from tasks.settings import SPECIFIC, TaskSettings, read_settings

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

    from mlm.checkpoint import ModelFolder
    from tasks.reporting.kinds import Reporter

# name: where its class stands. A class of your own is named by its dotted path instead.
TASKS: dict[str, str] = {
    "text_classification": "tasks.text_classification.TextClassification",
    "regression": "tasks.regression.Regression",
    "token_classification": "tasks.token_classification.TokenClassification",
    "question_answering": "tasks.question_answering.QuestionAnswering",
    "sentence_embedding": "tasks.sentence_embedding.SentenceEmbedding",
    "prompt_classification": "tasks.prompt_classification.PromptClassification",
    "multi_label_classification": "tasks.multi_label_classification.MultiLabelClassification",
    "multiple_choice": "tasks.multiple_choice.MultipleChoice",
}

# Without --data.max_length, longer texts are cut here even where the model could read on.
_DEFAULT_MAX_LENGTH = 512


class Task(abc.ABC):
    """Columns → features, head, loss, metrics, and how a prediction is printed."""

    name: ClassVar[str]
    """Its name in `TASKS`; a class of your own has its dotted path, and need not say so."""
    layout: ClassVar[str] = "sequence_classification"
    """The kind of model folder that holds it; see mlm/checkpoint.py."""
    monitor: str
    """The metric that decides which state is best; what is learnt from may change it."""
    columns: ClassVar[tuple[tuple[str, ...], ...]] = (("text",), ("sentence1", "sentence2"))
    """The input columns that are looked for, in this order, where none are named."""
    label_column: ClassVar[str] = "label"
    """The column with what is to be predicted, where none is named."""
    reads: ClassVar[frozenset[str]] = frozenset()
    """Which of the settings in `tasks.settings.SPECIFIC` it reads; others are refused."""
    usage: ClassVar[str] = 'mlm predict --model this/folder --text "…"'
    """The command on the model card."""
    losses: ClassVar[frozenset[str]] = frozenset()
    """Which fields of `LossOptions` it trains with; others are refused."""

    def __init_subclass__(cls) -> None:
        if "name" not in vars(cls):
            cls.name = f"{cls.__module__}.{cls.__qualname__}"

    def __init__(self, settings: TaskSettings) -> None:
        for name, group in SPECIFIC.items():
            if getattr(settings, name) is not None and name not in self.reads:
                raise UserError(f"{group}.{name}: the task {self.name} has no use for it")
        most = max(2, *map(len, self.columns))
        if (given := len(settings.text_column)) > most:
            raise UserError(
                f"data.text_column: {given} columns given; the task {self.name} reads {most} at "
                "most"
            )
        column = settings.label_column or self.label_column
        self.settings = replace(settings, label_column=column)
        self.loss_options = LossOptions()

    # -- what the model folder and training data decide -------------------------------------------

    def open_folder(self, folder: ModelFolder) -> None:  # noqa: B027 - most take nothing
        """Take what the folder decides that the model is read from; before `fit` and `settle`.

        Raises:
            UserError: the task cannot start from it.
        """

    def fit(self, rows: Rows, config: EncoderConfig) -> list[str]:
        """Settle what the training table and the encoder decide; what to warn of, a line each.

        Raises:
            UserError: columns that are not there, labels that cannot be learnt, or as `settle`.
        """
        self.settle(config)
        self.settings = replace(self.settings, text_column=self._columns(rows))
        return []

    def settle(self, config: EncoderConfig) -> None:
        """Settle what the encoder alone decides: pooling and the longest input.

        Raises:
            UserError: an unknown pooling, more layers than there are, or a length beyond the
                model's positions.
        """
        pooling = self.settings.pooling or default_pooling(config)
        check_pooling(pooling)
        check_layers(self.settings.layers, config)
        positions = config.max_position_embeddings
        length = self.settings.max_length
        if length is None:
            length = min(_DEFAULT_MAX_LENGTH, positions)
        if length > positions:
            raise UserError(
                f"data.max_length: {length} is beyond the model's {positions} positions; "
                "choose less, or a model with more"
            )
        self.settings = replace(self.settings, pooling=pooling, max_length=length)

    def remarks(self, rows: Rows) -> list[str]:
        """What to warn of before evaluating on ``rows``, one line each."""
        return []

    def check_batches(self, size: int, parts: int) -> list[str]:
        """What to warn of where a step's ``size`` examples are seen in ``parts``, one line each.

        Raises:
            UserError: too few at once to learn from.
        """
        return []

    # -- columns → features -----------------------------------------------------------------------

    def inputs(self, rows: Rows) -> list[Any]:
        """What stands in the input columns: here a tuple of one text or two a row."""
        columns = [rows.texts(name) for name in self._columns(rows)]
        return list(zip(*columns, strict=True))

    def as_inputs(self, values: Sequence[Any]) -> list[Any]:
        """What a caller gives, as `inputs` gives it: here texts or tuples of them.

        Raises:
            UserError: a text where the model was trained on pairs, or the other way round.
        """
        if isinstance(values, str):
            raise UserError("give a list of texts, not one text")
        inputs = [(x,) if isinstance(x, str) else tuple(x) for x in values]
        width = len(self.settings.text_column) or (len(inputs[0]) if inputs else 1)
        for number, row in enumerate(inputs, start=1):
            if len(row) != width or not all(isinstance(text, str) for text in row):
                what = "a text" if width == 1 else "a pair of texts"
                raise UserError(f"input {number}: not {what}, which is what this model takes")
        return inputs

    def from_words(self, words: Sequence[str]) -> list[Any]:
        """The words of ``--text``, for `as_inputs`: here texts, or two by two where it takes pairs.

        Raises:
            UserError: an odd number of them for pairs.
        """
        if len(self.settings.text_column) != 2:
            return list(words)
        if len(words) % 2:
            raise UserError(f"--text: this model takes pairs, and {len(words)} texts are no pairs")
        return list(zip(words[::2], words[1::2], strict=True))

    def shown(self, row: Any) -> dict[str, Any]:
        """One of `inputs` as it stands beside its answer: here under `text`."""
        return {"text": row[0] if len(row) == 1 else list(row)}

    @abc.abstractmethod
    def targets(self, rows: Rows) -> list[Any]:
        """What stands in the label column, one a row; named with its row if wrong."""

    def encode(self, inputs: Sequence[Any], tokenizer: Tokenizer) -> list[Example]:
        """Inputs → token ids, cut to `max_length` (of a pair, the longer text first).

        One example an input, or several where long inputs become windows; `Example.row` tells
        which input each is of, in ascending order.
        """
        assert self.settings.max_length is not None
        return encode_texts(inputs, tokenizer, self.settings.max_length)

    def label(self, examples: Sequence[Example], targets: Sequence[Any]) -> list[Example]:
        """``examples`` with what is to be predicted of them, from the targets of their rows."""
        return [replace(e, label=targets[e.row]) for e in examples]

    def examples(self, rows: Rows, tokenizer: Tokenizer) -> list[Example]:
        """Labelled examples for training and evaluation."""
        inputs, targets = self.inputs(rows), self.targets(rows)  # mistakes before the long work
        return self.label(self.encode(inputs, tokenizer), targets)

    def collate(self, examples: Sequence[Example]) -> Batch:
        """A ragged batch of N examples; `labels` is (N,) where they have any."""
        types = [e.token_type_ids for e in examples if e.token_type_ids is not None]
        labels = [e.label for e in examples if e.label is not None]
        return ragged(
            [e.input_ids for e in examples],
            token_type_ids=types or None,
            labels=torch.tensor(labels) if labels else None,
        )

    # -- head, loss, metrics ----------------------------------------------------------------------

    @abc.abstractmethod
    def build_head(self, config: EncoderConfig, dropout: float = 0.0) -> nn.Module:
        """What stands on the encoder: (hidden (T, D), batch) → outputs."""

    def build_model(self, config: EncoderConfig, dropout: float = 0.0) -> TaskModel:
        """Encoder and head, with fresh weights: a batch → outputs."""
        return TaskModel(config, self.build_head(config, dropout), self.settings.layers)

    @abc.abstractmethod
    def loss(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss summed over the batch, and over how many examples the sum goes."""

    def train_with(self, options: LossOptions) -> None:
        """Take ``options`` for `training_loss`; before `fit`, which may settle more of them.

        Raises:
            UserError: one that the task has no use for.
        """
        for name in options.chosen():
            if name not in self.losses:
                raise UserError(f"loss.{name}: the task {self.name} has no use for it")
        self.loss_options = options

    def training_loss(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """As `loss`, and what `loss_options` add to it, `r_drop` aside."""
        return self.loss(outputs, labels)

    def divergence(self, first: Tensor, second: Tensor) -> Tensor:
        """How far the outputs of two passes are apart, summed; for tasks that know `r_drop`."""
        raise NotImplementedError

    @abc.abstractmethod
    def metrics(self) -> MetricCollection:
        """Fresh metrics, for `update`."""

    def update(self, metrics: MetricCollection, outputs: Tensor, batch: Batch) -> None:
        """Let ``metrics`` see a labelled batch: here (`decide(outputs)`, labels)."""
        metrics.update(self.decide(outputs), batch.labels)

    def higher_is_better(self, metric: str) -> bool:
        """Whether more of ``metric``, one of `metrics` or `loss`, is better.

        Raises:
            UserError: there is no such metric.
        """
        return look_up(self.directions(), metric, "checkpoint.monitor")

    def directions(self) -> dict[str, bool]:
        """{what a model may be chosen by: whether more of it is better}."""
        metrics = {n: m.higher_is_better for n, m in self.metrics().items()} | {"loss": False}
        return {name: higher for name, higher in metrics.items() if higher is not None}

    @abc.abstractmethod
    def decide(self, outputs: Tensor) -> Tensor:
        """Outputs → what the metrics compare with the labels."""

    def tables(self, values: dict[str, Tensor]) -> dict[str, list[list[str]]]:
        """What of the computed metrics is a table: name → lines of cells, a header first."""
        return {}

    def purpose(self) -> str:
        """What it does, in a sentence of the model card."""
        columns = " and ".join(f"`{name}`" for name in self.settings.text_column)
        return f"Predicts `{self.settings.label_column}` from {columns}"

    # -- predictions and saving -------------------------------------------------------------------

    @abc.abstractmethod
    def predictions(self, outputs: Tensor) -> list[dict[str, Any]]:
        """Outputs → one JSON-ready object an example, without its text."""

    def split(self, outputs: Tensor, batch: Batch) -> Sequence[Tensor]:
        """A batch's outputs, one tensor an example: here a row of (N, C) each."""
        return outputs.unbind()

    def answers(
        self, inputs: Sequence[Any], examples: Sequence[Example], outputs: Sequence[Tensor]
    ) -> list[dict[str, Any]]:
        """One JSON-ready object an input, without its text.

        Args:
            inputs: as `inputs` gives them.
            examples: as `encode` made them of ``inputs``; here one each.
            outputs: of each example, as `split` gave it, on the CPU in fp32.
        """
        return self.predictions(torch.stack(list(outputs))) if outputs else []

    def label_name(self, label: Any) -> Any:
        """One of `targets` as people write it."""
        return label

    # -- reports ----------------------------------------------------------------------------------

    def reporter(self) -> Reporter:
        """What its report has beside its metrics; see tasks/reporting/kinds.py."""
        from tasks.reporting.kinds import Reporter

        return Reporter()

    def decisions(
        self, inputs: Sequence[Any], examples: Sequence[Example], outputs: Sequence[Tensor]
    ) -> list[Any]:
        """What is decided of each input, to be compared with its target; arguments as `answers`.

        A task that says nothing here has a report of its metrics alone, without intervals.
        """
        return []

    def collapsed(self, decisions: Sequence[Any], targets: Sequence[Any]) -> bool:
        """Whether one and the same was decided of all inputs, where targets differ."""
        return len(set(map(repr, decisions))) == 1 < len(set(map(repr, targets)))

    def saved_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A `TaskModel`'s weights as they go into a model folder."""
        return state

    def training_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """What `saved_state` gave, undone, to go on training."""
        return state

    def info(self) -> dict[str, Any]:
        """What of the task goes into the model folder, beside its labels."""
        settings = asdict(self.settings)
        del settings["labels"]
        return {"task": self.name, **settings, "text_column": list(self.settings.text_column)}

    def _columns(self, rows: Rows) -> tuple[str, ...]:
        return self.settings.text_column or find_columns(rows, self.columns)

    @classmethod
    def restore(cls, info: Mapping[str, Any], labels: Sequence[str]) -> Self:
        """The task of a model folder: from what `info` gave, and the folder's labels."""
        return cls(read_settings(info, labels))


def find_task(name: str) -> type[Task]:
    """A task by its name in `TASKS`, or a class of the caller's own by its dotted path.

    Only ever called with what stands on a command line or in code, never with what a model
    folder says: loading a folder must not import what the folder names.

    Raises:
        UserError: an unknown name, a module that is not there, or a class that is no `Task`.
    """
    path = name if "." in name else look_up(TASKS, name, "task")
    module_name, _, class_name = path.rpartition(".")
    if path == name and "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # a console script does not look where it is started
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ModuleNotFoundError, AttributeError, ValueError) as error:
        raise UserError(f"task: {name!r} cannot be imported ({error})") from None
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise UserError(f"task: {name!r} is not a subclass of tasks.base.Task")
    return found
