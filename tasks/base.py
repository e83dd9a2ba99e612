"""`Task`: the one plug-in point of fine-tuning.

A task says how columns become features, which head stands on the encoder, what the loss and the
metrics are and how a prediction is printed. A new one is one class in one file and one line in
`TASKS`; everything else (training, evaluation, prediction, saving) is written against this class.

Shapes: ``N`` examples in a batch, ``C`` outputs of the head.
"""

from __future__ import annotations

import abc
import functools
import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from mlm.batch import Batch, ragged
from mlm.data.tables import column_values, read_table, text_column
from mlm.errors import UserError, look_up
from mlm.model.config import EncoderConfig
from mlm.model.pooling import POOLINGS
from tasks.heads import default_pooling
from tasks.options import TaskSettings

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

# name: where its class stands. A class of your own is named by its dotted path instead.
TASKS: dict[str, str] = {
    "text_classification": "tasks.text_classification.TextClassification",
    "regression": "tasks.regression.Regression",
}

# Without --data.max_length, longer texts are cut here even where the model could read on.
_DEFAULT_MAX_LENGTH = 512


@dataclass(frozen=True)
class Rows:
    """A table and where it was read, so that a mistake in it can be named."""

    table: pa.Table
    path: Path

    @classmethod
    def read(cls, path: str | Path) -> Rows:
        """The table at ``path``; a `UserError` where it has no rows."""
        table = read_table(path)
        if table.num_rows == 0:
            raise UserError(f"{path}: has no rows")
        return cls(table, Path(path))

    def values(self, column: str) -> list[Any]:
        """One column's values; a `UserError` names those there are."""
        return column_values(self.table, column, self.path)

    def texts(self, column: str) -> list[str]:
        """One column's texts, null as the empty text."""
        return text_column(self.table, column, self.path)


@dataclass(frozen=True)
class Example:
    """One input as the model reads it."""

    input_ids: np.ndarray
    """(s,) int32, special tokens included."""
    token_type_ids: np.ndarray | None = None
    """(s,) int8: 0 for the first text of a pair, 1 for the second."""
    label: Any = None
    """What is to be predicted, as the task's loss takes it."""
    truncated: bool = False
    """Whether something of the input was cut off."""


class Task(abc.ABC):
    """Columns → features, head, loss, metrics, and how a prediction is printed."""

    name: ClassVar[str]
    """Its name in `TASKS`; a class of your own has its dotted path, and need not say so."""
    layout: ClassVar[str] = "sequence_classification"
    """The kind of model folder that holds it; see mlm/checkpoint.py."""
    monitor: ClassVar[str]
    """The metric that decides which state is best."""

    def __init_subclass__(cls) -> None:
        if "name" not in vars(cls):
            cls.name = f"{cls.__module__}.{cls.__qualname__}"

    def __init__(self, settings: TaskSettings) -> None:
        self.settings = settings

    # -- what training data decides ---------------------------------------------------------------

    def fit(self, rows: Rows, config: EncoderConfig) -> list[str]:
        """Settle what the training table and the encoder decide; what to warn of, a line each.

        Raises:
            UserError: columns that are not there, labels that cannot be learnt, or as `settle`.
        """
        self.settle(config)
        if not self.settings.text_column:
            self.settings = replace(self.settings, text_column=default_text_columns(rows))
        return []

    def settle(self, config: EncoderConfig) -> None:
        """Settle what the encoder alone decides: pooling and the longest input.

        Raises:
            UserError: an unknown pooling, or a length beyond the model's positions.
        """
        pooling = self.settings.pooling or default_pooling(config)
        look_up(POOLINGS, pooling, "model.pooling")
        positions = config.max_position_embeddings
        length = self.settings.max_length or min(_DEFAULT_MAX_LENGTH, positions)
        if length > positions:
            raise UserError(
                f"data.max_length: {length} is beyond the model's {positions} positions; "
                "choose less, or a model with more"
            )
        self.settings = replace(self.settings, pooling=pooling, max_length=length)

    def remarks(self, rows: Rows) -> list[str]:
        """What to warn of before evaluating on ``rows``, one line each."""
        return []

    # -- columns → features -----------------------------------------------------------------------

    def inputs(self, rows: Rows) -> list[Any]:
        """What stands in the input columns: here a tuple of one text or two a row."""
        names = self.settings.text_column or default_text_columns(rows)
        columns = [rows.texts(name) for name in names]
        return list(zip(*columns, strict=True))

    @abc.abstractmethod
    def targets(self, rows: Rows) -> list[Any]:
        """What stands in the label column, as the loss takes it; named with its row if wrong."""

    def encode(self, inputs: Sequence[Any], tokenizer: Tokenizer) -> list[Example]:
        """Inputs → token ids, cut to `max_length` (of a pair, the longer text first)."""
        assert self.settings.max_length is not None
        return encode_texts(inputs, tokenizer, self.settings.max_length)

    def examples(self, rows: Rows, tokenizer: Tokenizer) -> list[Example]:
        """Labelled examples for training and evaluation."""
        inputs, targets = self.inputs(rows), self.targets(rows)  # mistakes before the long work
        encoded = self.encode(inputs, tokenizer)
        return [replace(e, label=label) for e, label in zip(encoded, targets, strict=True)]

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

    @abc.abstractmethod
    def loss(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss summed over the batch, and over how many examples the sum goes."""

    @abc.abstractmethod
    def metrics(self) -> MetricCollection:
        """Fresh metrics, to be updated with (`decide(outputs)`, labels)."""

    def higher_is_better(self, metric: str) -> bool:
        """Whether more of ``metric``, one of `metrics` or `loss`, is better.

        Raises:
            UserError: there is no such metric.
        """
        metrics = {"loss": False} | {n: m.higher_is_better for n, m in self.metrics().items()}
        known = {name: higher for name, higher in metrics.items() if higher is not None}
        return look_up(known, metric, "checkpoint.monitor")

    @abc.abstractmethod
    def decide(self, outputs: Tensor) -> Tensor:
        """Outputs → what the metrics compare with the labels."""

    def tables(self, values: dict[str, Tensor]) -> dict[str, list[list[str]]]:
        """What of the computed metrics is a table: name → lines of cells, a header first."""
        return {}

    # -- predictions and saving -------------------------------------------------------------------

    @abc.abstractmethod
    def predictions(self, outputs: Tensor) -> list[dict[str, Any]]:
        """Outputs → one JSON-ready object an example, without its text."""

    def label_name(self, label: Any) -> Any:
        """A label of an `Example` as people write it."""
        return label

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

    @classmethod
    def restore(cls, info: Mapping[str, Any], labels: Sequence[str]) -> Self:
        """The task of a model folder: from what `info` gave, and the folder's labels."""
        known = {f.name: info[f.name] for f in fields(TaskSettings) if f.name in info}
        known["text_column"] = tuple(known.get("text_column", ()))
        return cls(TaskSettings(**known, labels=tuple(labels)))


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


def encode_texts(
    inputs: Sequence[tuple[str, ...]], tokenizer: Tokenizer, max_length: int
) -> list[Example]:
    """Texts or pairs of texts → token ids with the tokenizer's special tokens.

    Args:
        inputs: tuples of one text, or all of two.
        tokenizer: left as it is.
        max_length: tokens at most, special ones included; of a pair the longer text is cut first.

    Raises:
        UserError: a `max_length` that leaves no room for the text.
    """
    pair = bool(inputs) and len(inputs[0]) == 2
    special = tokenizer.num_special_tokens_to_add(pair)
    if max_length <= special + pair:
        raise UserError(
            f"data.max_length: {max_length} leaves no room beside {special} special tokens; "
            f"choose at least {special + pair + 1}"
        )
    tokenizer = _truncating(tokenizer, max_length)
    examples: list[Example] = []
    for start in range(0, len(inputs), 10_000):  # encodings are ten times as large as their ids
        chunk = inputs[start : start + 10_000]
        for encoding in tokenizer.encode_batch_fast([t if pair else t[0] for t in chunk]):
            examples.append(
                Example(
                    np.asarray(encoding.ids, np.int32),
                    np.asarray(encoding.type_ids, np.int8) if pair else None,
                    truncated=bool(encoding.overflowing),
                )
            )
    return examples


@functools.lru_cache(maxsize=4)
def _truncating(tokenizer: Tokenizer, max_length: int) -> Tokenizer:
    """A copy that truncates: truncation is a state of the object, and others use it too."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_padding()
    copy.enable_truncation(max_length, strategy="longest_first")
    return copy


def default_text_columns(rows: Rows) -> tuple[str, ...]:
    """`text`, or `sentence1` and `sentence2`, whichever the table has."""
    names = rows.table.column_names
    for columns in (("text",), ("sentence1", "sentence2")):
        if set(columns) <= set(names):
            return columns
    raise UserError(
        f"{rows.path}: neither a column 'text' nor 'sentence1' and 'sentence2' among "
        f"{', '.join(map(repr, names))}; name yours with --data.text_column"
    )
