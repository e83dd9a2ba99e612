"""What a fine-tuning run can be told, in groups; plain values, cheap to import."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

from mlm.data.processes import check_processes
from mlm.errors import UserError, check_count

if TYPE_CHECKING:
    import jsonargparse

# An order of so many is made in half a minute; no GPU takes a batch that needs more.
_MOST_IN_A_POOL = 1 << 22


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
    model's positions, at most 512, of questions and contexts 384."""
    truncation: Literal["head", "tail", "both"] | None = None
    """What is kept of a text that is cut: its `head` (the default), its `tail`, or `both`, a
    quarter of the room for the head and the rest for the tail."""
    long_texts: Literal["cut", "windows"] | None = None
    """`cut` longer texts, or read them in `windows`: in training each is an example, and elsewhere
    the mean of their votes is a text's answer. The model folder keeps this and `truncation` for
    mlm's own commands; transformers knows neither."""
    stride: int | None = None
    """Tokens that neighbouring windows of a long input share, in tasks that read it in windows; by
    default a quarter of a window, of a context a third."""
    negative_column: str | None = None
    """For sentence vectors from pairs without scores: a column with a text that resembles the first
    of the pair and does not belong to it."""
    choice_column: str | list[str] | None = None
    """Of multiple choice: the column with a list of choices, or a column for each; by default the
    first of `choices`, `options`, `endings`, `ending0` …, `choice1` … that the table has."""
    pattern: str | None = None
    """What stands around the mask whose filling is the answer, as in `{text} It was [MASK].`; pairs
    are `{sentence1}` and `{sentence2}`. For the task prompt_classification."""
    verbaliser: dict[str, str | list[str]] | None = None
    """The word of each label, or several, as in `{negative: terrible, positive: [great, fine]}`;
    each is one token of the model's. For the task prompt_classification."""
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
        check_processes("data.num_workers", self.num_workers)


@dataclass(frozen=True)
class ModelOptions:
    """The encoder to start from, and what is put on it."""

    path: str
    """The model folder to start from."""
    random: bool = False
    """Take the folder's architecture and tokenizer but fresh weights: what pretraining is worth."""
    pooling: str | None = None
    """`cls`, `mean`, `max` or `attention` (a learnt query); by default what the encoder's family is
    native with (bert cls, modern mean); sentence vectors are the `mean`."""
    normalize: bool | None = None
    """Whether `mlm embed` and exports give sentence vectors the length 1; by default they do not.
    Training goes by the cosine either way."""
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
    """What is added to the task's own loss in training, of which validation reports the plain one;
    for sentence vectors, which loss."""

    name: str | None = None
    """Of sentence vectors: `cosent` (the order of the scores; the default where there are any) or
    `cosine` (squared error of the cosine), or without scores `in_batch_negatives`."""
    temperature: float = 0.05
    """Of sentence vectors: what cosines are divided by."""
    symmetric: bool = False
    """Of sentence vectors without scores: each second text shall find its first one too."""
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
        if not 0.0 < self.temperature < math.inf:
            raise UserError(f"loss.temperature: {self.temperature} must be above 0, and finite")
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
class LoraOptions:
    """Low-rank adapters: the encoder stays, and only they and the head learn."""

    rank: int = 0
    """Of the adapters; 0 is none, and all of the encoder learns."""
    alpha: float | None = None
    """An adapter's product counts alpha / rank times; by default 16."""
    targets: list[str] | None = None
    """The linear layers that get one, by parts of their names (`qkv`, `layers.[01].*down`; `*`, `?`
    and `[…]` as in file names); by default those of attention and feed-forward."""
    dropout: float = 0.0
    """Of the adapters' input."""
    adapter: str | None = None
    """A folder `adapter` of another run on the same `--model`: start from it, with its rank, alpha
    and targets."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run, by name."""
        if self.rank < 0:
            raise UserError(f"lora.rank: {self.rank} must be at least 0, which is none")
        if self.alpha is not None and not 0 < self.alpha < math.inf:
            raise UserError(f"lora.alpha: {self.alpha} must be above 0, and finite")
        if self.targets is not None and not self.targets:
            raise UserError("lora.targets: the list is empty; leave it out to take the usual ones")
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"lora.dropout: {self.dropout} must lie in [0, 1)")
        if not self.wanted:
            for name in ("alpha", "targets", "dropout"):
                if getattr(self, name):
                    raise UserError(f"lora.{name}: there are no adapters; set lora.rank, such as 8")

    @property
    def wanted(self) -> bool:
        """Whether there are adapters."""
        return self.rank > 0 or self.adapter is not None

    @property
    def chosen_alpha(self) -> float:
        """The one given, or the default."""
        return 16.0 if self.alpha is None else self.alpha

    @property
    def chosen_targets(self) -> list[str]:
        """Those given, or the default."""
        return ["mixer", "feed_forward"] if self.targets is None else self.targets


@dataclass(frozen=True)
class CheckpointOptions:
    """What is kept of a run, and when it ends early."""

    every_n_steps: int | None = 500
    """Save a checkpoint every so many steps, for a run that is killed to go on from; null saves at
    the end only. Before a cooldown is saved anyway."""
    keep: int = 1
    """How many checkpoints stay; older ones are removed."""
    monitor: str | None = None
    """The validation metric whose best state becomes `model`: `loss`, `accuracy`, …; by default
    the task's own."""
    patience: int | None = None
    """Stop after so many validations in a row without a better one; null trains to the end."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run, by name."""
        for name in ("every_n_steps", "keep", "patience"):
            check_count(f"checkpoint.{name}", getattr(self, name))


def add_report_precision(parser: jsonargparse.ArgumentParser) -> None:
    """What every command that makes a report can be told of it."""
    parser.add_argument(
        "--report_precision",
        type=float,
        default=0.9,
        metavar="P",
        help="the report has for each label the threshold from which on it is so often right",
    )


def check_precision(precision: float) -> None:
    """Refuse what is no share, by a `UserError`."""
    if not 0 < precision <= 1:
        raise UserError(f"--report_precision: {precision} must lie above 0, and 1 at most")


def add_inference_arguments(parser: jsonargparse.ArgumentParser, precision: str) -> None:
    """What every command that uses a fine-tuned model can be told."""
    add = parser.add_argument
    add("--task", type=str | None, default=None, help="the dotted path of your own task's class")
    add("--device", type=str, default="auto", help="auto, cpu, cuda or mps")
    add("--precision", type=str, default=precision, help="auto, fp32, bf16 or fp16")
