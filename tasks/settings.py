"""What a run decides about its task, and its model folder keeps; plain values, cheap to import."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from mlm.errors import UserError
from tasks.options import DataOptions, ModelOptions

# What only some tasks read, and its group; `Task.reads` says which. None is not given.
SPECIFIC = {
    "threshold": "data",
    "stride": "data",
    "truncation": "data",
    "long_texts": "data",
    "negative_column": "data",
    "choice_column": "data",
    "normalize": "model",
    "pattern": "data",
    "verbaliser": "data",
}


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
    negative_column: str | None = None
    """The column of texts that do not belong to the pair, for sentence vectors."""
    choice_column: list[str] | None = None
    """The column with a list of choices, or the columns with one each."""
    normalize: bool | None = None
    """Whether sentence vectors have length 1."""
    pattern: str | None = None
    """A text around `{text}`, or `{sentence1}` and `{sentence2}`, and one `[MASK]`."""
    verbaliser: dict[str, list[str]] | None = None
    """The words that stand for each label, in the order of the model's outputs."""


# How a field of `TaskSettings` is declared: what it is in JSON, and whether a value is that.
_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "str": ("a text", lambda v: isinstance(v, str)),
    "str | None": ("a text or null", lambda v: isinstance(v, str | None)),
    "int": ("a whole number", lambda v: type(v) is int),
    "int | None": ("a whole number or null", lambda v: v is None or type(v) is int),
    "bool | None": ("true, false or null", lambda v: isinstance(v, bool | None)),
    "float | None": ("a number or null", lambda v: v is None or type(v) in (int, float)),
    "tuple[str, ...]": (
        "a list of texts",
        lambda v: isinstance(v, list | tuple) and all(isinstance(x, str) for x in v),
    ),
    "list[str] | None": (
        "a list of texts, or null",
        lambda v: v is None or (isinstance(v, list) and all(isinstance(x, str) for x in v)),
    ),
    "dict[str, list[str]] | None": (
        "an object of lists of texts, or null",
        lambda v: (
            v is None
            or (
                isinstance(v, dict)
                and all(
                    isinstance(x, list) and all(isinstance(w, str) for w in x) for x in v.values()
                )
            )
        ),
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
        negative_column=data.negative_column,
        choice_column=[choice] if isinstance(choice := data.choice_column, str) else choice,
        normalize=model.normalize,
        pattern=data.pattern,
        verbaliser=_word_lists(data.verbaliser),
    )


def _word_lists(
    verbaliser: Mapping[Any, str | list[str]] | None,
) -> dict[str, list[str]] | None:
    """Labels as texts, and of each a list of its words.

    Raises:
        UserError: what the command line's YAML has read as something other than words.
    """
    if verbaliser is None:
        return None
    found = {
        str(label): [words] if isinstance(words, str) else list(words)
        for label, words in verbaliser.items()
    }
    misread = any(word.startswith("{") for words in found.values() for word in words)
    if misread or any(isinstance(label, bool) for label in verbaliser):
        raise UserError(
            "data.verbaliser: put words and labels such as yes, no, true and numbers in quotes, "
            "as in {'1': 'yes', '0': 'no'}"
        )
    return found


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
