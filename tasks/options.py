"""What a fine-tuning run can be told, in groups; plain values, cheap to import."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from mlm.errors import UserError

if TYPE_CHECKING:
    import jsonargparse

# An order of so many is made in half a minute; no GPU takes a batch that needs more.
_MOST_IN_A_POOL = 1 << 22

# What only some tasks read, and its group; `Task.reads` says which. None is not given.
SPECIFIC = {"stride": "data", "truncation": "data", "long_texts": "data", "threshold": "data"}


@dataclass(frozen=True)
class DataOptions:
    """Which columns are read, and how much of them at once."""

    text_column: str | list[str] | None = None
    """The column with the text, or two for a pair; by default the task's own, mostly `text`, or
    `sentence1` and `sentence2`."""
    label_column: str | None = None
    """The column with what is to be predicted; by default the task's own, mostly `label`."""
    labels: list[str | int] | None = None
    """The classes, in the order wanted; by default those of the training data, sorted."""
    threshold: float | None = None
    """Where a text may have any number of classes: those are its own whose probability is above
    this; by default 0.5. The model folder keeps it for mlm's own commands."""
    max_length: int | None = None
    """Longer inputs are cut to this many tokens, of a pair the longer text first; by default the
    model's positions, at most 512."""
    truncation: Literal["head", "tail", "both"] | None = None
    """What is kept of a text that is cut: its `head` (the default), its `tail`, or `both`, a
    quarter of the room for the head and the rest for the tail."""
    long_texts: Literal["cut", "windows"] | None = None
    """`cut` longer texts, or read them in `windows`: in training each is an example, and elsewhere
    the mean of their votes is a text's answer. The model folder keeps this and `truncation` for
    mlm's own commands; transformers knows neither."""
    stride: int | None = None
    """Tokens that neighbouring windows of a long input share, in tasks that read it in windows; by
    default a quarter of a window."""
    batch_size: int = 32
    """Examples that one optimizer step sees, over all devices and accumulated micro-batches."""
    length_pool: int = 32
    """Batches that are grouped by length together, for speed; 1 for none."""
    num_workers: int = 0
    """Loader processes a device; 0 prepares batches in the training process."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run, by name."""
        for name in ("batch_size", "length_pool"):
            if getattr(self, name) < 1:
                raise UserError(f"data.{name}: {getattr(self, name)} must be at least 1")
        if self.batch_size * self.length_pool > _MOST_IN_A_POOL:
            raise UserError(
                f"data.batch_size: {self.batch_size} examples times data.length_pool "
                f"{self.length_pool} are ordered at once; choose less than {_MOST_IN_A_POOL}"
            )
        if not 0 <= self.num_workers <= 1024:  # each is a process
            raise UserError(f"data.num_workers: {self.num_workers} must lie between 0 and 1024")


@dataclass(frozen=True)
class ModelOptions:
    """The encoder to start from, and what is put on it."""

    path: str
    """The model folder to start from."""
    random: bool = False
    """Take the folder's architecture and tokenizer but fresh weights: what pretraining is worth."""
    pooling: str | None = None
    """`cls`, `mean`, `max` or `attention` (a learnt query); by default what the encoder's family is
    native with (bert cls, modern mean)."""
    layers: int = 1
    """How many of the encoder's last layers the head reads, mixed with learnt weights; 1 is the
    last alone, and one more than the encoder has takes its embeddings too."""
    freeze: Literal["none", "embeddings", "encoder"] | int = "none"
    """What is left as it is: `none`, `embeddings`, `encoder`, or how many of the lowest layers, the
    embeddings below them included. Dropout in it is off."""
    dropout: float = 0.1
    """Dropout before the classifier."""
    hidden_dropout: float | None = None
    """Dropout inside the encoder; by default as in its folder."""
    attention_dropout: float | None = None
    """Dropout of attention weights; by default as in its folder."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run, by name."""
        for name in ("dropout", "hidden_dropout", "attention_dropout"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value < 1.0:
                raise UserError(f"model.{name}: {value} must lie in [0, 1)")


@dataclass(frozen=True)
class LossOptions:
    """What is added to the task's own loss in training; validation reports the plain one."""

    label_smoothing: float = 0.0
    """Share of each target that is spread over all classes."""
    class_weights: Literal["none", "balanced"] | list[float] = "none"
    """How much an example of each class counts: `none` is 1 each, `balanced` rows / (classes · rows
    of the class), or a list in the order of the labels. Where a text may have any number of
    classes, it is how much having one counts beside not having it, and `balanced` is rows without
    it / rows with it. The step's loss is divided by the number of examples, not by the sum of their
    weights."""
    focal_gamma: float = 0.0
    """Count examples by how unsure of them the model is, to this power; 0 counts all alike."""
    r_drop: float = 0.0
    """Weight of the difference between two passes with other dropout (R-Drop); each step then does
    both, and its loss is their mean and that difference."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run, by name."""
        if not 0.0 <= self.label_smoothing < 1.0:
            raise UserError(f"loss.label_smoothing: {self.label_smoothing} must lie in [0, 1)")
        for name in ("focal_gamma", "r_drop"):
            if getattr(self, name) < 0:
                raise UserError(f"loss.{name}: {getattr(self, name)} must be at least 0")
        if isinstance(self.class_weights, list):
            for weight in self.class_weights:
                if not 0 < weight < math.inf:
                    raise UserError(f"loss.class_weights: {weight} must be above 0, and finite")

    def chosen(self) -> list[str]:
        """The names of what is not at its default."""
        return [field.name for field in fields(self) if getattr(self, field.name) != field.default]


@dataclass(frozen=True)
class TaskSettings:
    """What a run decides about a task; kept in the model folder, under "mlm" in config.json."""

    text_column: tuple[str, ...] = ()
    """One column, or two for a pair; empty until the training table is seen."""
    label_column: str = ""
    """The column with what is to be predicted; empty takes the task's own."""
    labels: tuple[str, ...] = ()
    """The classes in the order of the model's outputs; empty where a task has none."""
    threshold: float | None = None
    """What a class's probability must be above, where a text may have any number of classes."""
    max_length: int | None = None
    """Longer inputs are cut to this many tokens; None takes the model's positions, at most 512."""
    pooling: str | None = None
    """`cls`, `mean`, `max` or `attention`; None takes what the encoder's family is native with."""
    layers: int = 1
    """How many of the encoder's last layers are mixed for the head."""
    truncation: str | None = None
    """`head`, `tail` or `both`: what is kept of a text that is cut."""
    long_texts: str | None = None
    """`cut` or `windows`: how texts are read that are longer."""
    stride: int | None = None
    """Tokens that neighbouring windows of a long input share."""


# How a field of `TaskSettings` is declared: what it is in JSON, and whether a value is that.
_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "str": ("a text", lambda v: isinstance(v, str)),
    "str | None": ("a text or null", lambda v: isinstance(v, str | None)),
    "int": ("a whole number", lambda v: type(v) is int),
    "int | None": ("a whole number or null", lambda v: v is None or type(v) is int),
    "float | None": ("a number or null", lambda v: v is None or type(v) in (int, float)),
    "tuple[str, ...]": (
        "a list of texts",
        lambda v: isinstance(v, list | tuple) and all(isinstance(x, str) for x in v),
    ),
}


def read_settings(info: Mapping[str, Any], labels: Sequence[str]) -> TaskSettings:
    """What a model folder keeps under "mlm" of a task's settings.

    Raises:
        UserError: a value of another kind, by its key.
    """
    values: dict[str, Any] = {}
    for field in fields(TaskSettings):
        if field.name not in info or field.name == "labels":
            continue
        value = values[field.name] = info[field.name]
        name, fits = _KINDS.get(str(field.type), ("", lambda _: True))
        if not fits(value):
            raise UserError(f"mlm.{field.name}: {value!r} is not {name}")
    values["text_column"] = tuple(values.get("text_column", ()))
    return TaskSettings(**values, labels=tuple(labels))


def task_settings(data: DataOptions, model: ModelOptions) -> TaskSettings:
    """What of the options a task needs, and its model folder keeps."""
    columns = data.text_column or []
    columns = [columns] if isinstance(columns, str) else columns
    if data.labels is not None and not data.labels:
        raise UserError("data.labels: the list is empty; leave it out to take the data's labels")
    return TaskSettings(
        text_column=tuple(columns),
        label_column=data.label_column or "",
        labels=tuple(map(str, data.labels or ())),
        threshold=data.threshold,
        max_length=data.max_length,
        pooling=model.pooling,
        layers=model.layers,
        truncation=data.truncation,
        long_texts=data.long_texts,
        stride=data.stride,
    )


@dataclass(frozen=True)
class CheckpointOptions:
    """What is kept of a run, and when it ends early."""

    every_n_steps: int | None = None
    """Save a checkpoint every so many steps; null saves at the end only."""
    keep: int = 1
    """How many checkpoints stay; older ones are removed."""
    monitor: str | None = None
    """The validation metric whose best state becomes `model`: `loss`, `accuracy`, …; by default
    the task's own."""
    patience: int | None = None
    """Stop after so many validations in a row without a better one; null trains to the end."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run, by name."""
        if self.patience is not None and self.patience < 1:
            raise UserError(f"checkpoint.patience: {self.patience} must be at least 1, or null")


def with_text_column(settings: TaskSettings, columns: str | list[str] | None) -> TaskSettings:
    """``settings`` reading other columns; as many as before, None for the same ones.

    Raises:
        UserError: a pair where the model was trained on single texts, or the other way round.
    """
    if columns is None:
        return settings
    names = (columns,) if isinstance(columns, str) else tuple(columns)
    if settings.text_column and len(names) != len(settings.text_column):
        raise UserError(
            f"data.text_column: {len(names)} given, but the model was trained on "
            f"{len(settings.text_column)} ({', '.join(settings.text_column)})"
        )
    return replace(settings, text_column=names)


def add_inference_arguments(parser: jsonargparse.ArgumentParser, precision: str) -> None:
    """What every command that uses a fine-tuned model can be told."""
    add = parser.add_argument
    add("--task", type=str | None, default=None, help="the dotted path of your own task's class")
    add("--device", type=str, default="auto", help="auto, cpu, cuda or mps")
    add("--precision", type=str, default=precision, help="auto, fp32, bf16 or fp16")
