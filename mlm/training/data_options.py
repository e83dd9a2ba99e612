"""What a pretraining run reads, how much of it at once, and which part of that is a process's."""

from __future__ import annotations

from dataclasses import dataclass

from mlm.data.masking_units import UNITS
from mlm.data.processes import check_processes
from mlm.errors import UserError, look_up
from mlm.training.ramps import fewest_rows

# Rows are gathered one by one: more of them at once would take minutes to fail for memory.
_MOST_ROWS = 1 << 20


@dataclass(frozen=True)
class DataOptions:
    """What the model reads, and how much of it at once."""

    sequence_length: int = 128
    """Tokens in a row, [CLS] and [SEP] included; no sequence is longer."""
    batch_size: int = 64
    """Rows that one optimizer step sees, over all devices and accumulated micro-batches."""
    validation_batch_size: int = 64
    """Rows at once in validation."""
    num_workers: int = 0
    """Loader processes a device; 0 prepares batches in the training process."""
    batch_size_start: int | None = None
    """Rows a step when training starts; they rise to batch_size over `ramp`. null: all of them."""
    sequence_length_start: int | None = None
    """Tokens in a sequence when training starts, as many of them in all; they rise to
    sequence_length over `ramp`. null: all of them."""
    ramp: float | None = None
    """Share of the budget over which the two sizes above rise in a line; null is 0.3 for them."""
    mlm_probability: float = 0.3
    """Share of the ordinary tokens that are masked when training starts."""
    masking: str = "token"
    """What is masked together: each `token` by itself, whole a `word`, or a `span` of words, 3.8 in
    the mean. Validation masks tokens, so that losses can be compared."""
    mask_rarity: float = 0.0
    """How much rare tokens are preferred: masked in proportion to their frequency to the power of
    minus this; 0 masks all alike, 0.5 a token four times as rare twice as often."""
    mlm_probability_end: float = 0.15
    """Share masked at the end; between the two it falls linearly with the budget spent."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run, by name."""
        look_up(UNITS, self.masking, "data.masking")
        for name in ("mlm_probability", "mlm_probability_end"):
            if not 0 < getattr(self, name) < 1:
                raise UserError(f"data.{name}: {getattr(self, name)} must lie between 0 and 1")
        if self.sequence_length < 8:
            raise UserError(f"data.sequence_length: {self.sequence_length} is below 8")
        for name in ("batch_size", "validation_batch_size"):
            if not 1 <= getattr(self, name) <= _MOST_ROWS:
                raise UserError(
                    f"data.{name}: {getattr(self, name)} must lie between 1 and {_MOST_ROWS}"
                )
        for name, least in (("batch_size", 1), ("sequence_length", 8)):
            start, end = getattr(self, f"{name}_start"), getattr(self, name)
            if start is not None and not least <= start <= end:
                raise UserError(
                    f"data.{name}_start: {start} must lie between {least} and {name}, {end}"
                )
        if not 0 <= self.mask_rarity <= 1:
            raise UserError(f"data.mask_rarity: {self.mask_rarity} must lie in [0, 1]")
        if self.ramp is not None and not self.is_ramped:
            raise UserError(
                "data.ramp: no size rises; leave it out, or give --data.batch_size_start or "
                "--data.sequence_length_start"
            )
        if not 0 < self.rising <= 1:
            raise UserError(f"data.ramp: {self.ramp} must lie above 0, and be at most 1")
        check_processes("data.num_workers", self.num_workers)

    @property
    def is_ramped(self) -> bool:
        """Whether a size rises."""
        return self.batch_size_start is not None or self.sequence_length_start is not None

    @property
    def rising(self) -> float:
        """The share of the budget over which they rise."""
        return 0.3 if self.ramp is None else self.ramp


@dataclass(frozen=True)
class Share:
    """Which micro-batches of each step are this rank's."""

    rank: int = 0
    """This process's number."""
    world_size: int = 1
    """How many processes train together."""
    accumulation: int = 1
    """Micro-batches a step on each of them."""

    def micro_batch_size(self, batch_size: int) -> int:
        """Rows a micro-batch.

        Raises:
            UserError: the global batch cannot be divided evenly.
        """
        parts = self.world_size * self.accumulation
        if batch_size % parts:
            raise UserError(
                f"data.batch_size: {batch_size} rows cannot be divided over {self.world_size} "
                f"devices and {self.accumulation} accumulated batches; choose a multiple of {parts}"
            )
        return batch_size // parts

    def check(self, data: DataOptions) -> None:
        """Refuse steps of which some device would have nothing.

        Raises:
            UserError: so.
        """
        self.micro_batch_size(data.batch_size)
        parts, start = self.world_size * self.accumulation, data.batch_size_start
        if start is not None and start < (least := fewest_rows(data.batch_size, parts)):
            raise UserError(
                f"data.batch_size_start: {start} rows cannot be divided over {self.world_size} "
                f"devices and {self.accumulation} accumulated batches; give {least} or more"
            )

    def places(self, micro_batch: int, batch_size: int) -> range:
        """The places in the global stream that this rank's ``micro_batch``-th batch takes."""
        size = self.micro_batch_size(batch_size)
        step, part = divmod(micro_batch, self.accumulation)
        first = step * batch_size + (part * self.world_size + self.rank) * size
        return range(first, first + size)
