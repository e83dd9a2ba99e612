"""Token store → packed rows → keyed order → masked batches, for any number of workers and ranks.

One endless stream of rows runs through the whole training. Step s takes rows s·B … s·B + B − 1 of
it; ranks and micro-batches only divide those B among them. Which row stands at a place of the
stream, and how it is masked, follows from the seed and that place alone.
"""

from __future__ import annotations

import ctypes
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from pytorch_lightning import LightningDataModule
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Sampler

from mlm.batch import Batch
from mlm.data.keys import mix
from mlm.data.masking_units import UNITS, find_joints
from mlm.data.order import stream_row
from mlm.data.packing import Ends, num_rows, row_spans
from mlm.data.pairs import Pair, PairReader, pair_key, sentence_endings
from mlm.data.processes import check_processes
from mlm.data.store import TokenSplit, TokenStore
from mlm.data.tokenizer import load_tokenizer, num_ids, special_ids
from mlm.errors import UserError, look_up
from mlm.objectives.masked_lm import Vocabulary, collate
from mlm.training.ramps import fewest_rows

# Validation rows are masked by this key in every run, so that losses can be compared for ever.
_VALIDATION_KEY = 0x6D6C6D

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
    ramp: float = 0.3
    """Share of the budget over which the two sizes above rise in a line."""
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
        if not 0 < self.ramp <= 1:
            raise UserError(f"data.ramp: {self.ramp} must lie above 0, and be at most 1")
        check_processes("data.num_workers", self.num_workers)

    @property
    def is_ramped(self) -> bool:
        """Whether a size rises."""
        return self.batch_size_start is not None or self.sequence_length_start is not None


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


class Split(Protocol):
    """Documents as token ids: a split of a token store, or anything that acts like one."""

    @property
    def ends(self) -> Ends:
        """Tokens up to the end of each document."""

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """The ids from ``start`` up to ``stop``, counted over the whole split."""


def vocabulary_of(store: TokenStore, masking: str = "token", rarity: float = 0.0) -> Vocabulary:
    """What ``masking``, one of `UNITS`, must know of ``store``'s tokenizer and of its tokens."""
    tokenizer = load_tokenizer(store.tokenizer_dir)
    special, joints = special_ids(tokenizer), None
    if masking != "token":
        joints = find_joints(tokenizer, num_ids(tokenizer))
    size, weights = store.vocab_size, None
    if rarity > 0:
        weights = rarity_weights(store.split("train"), size, rarity)
    names = special.cls, special.sep, special.mask, special.ids
    return Vocabulary(size, *names, joints, weights)


def rarity_weights(split: TokenSplit, size: int, rarity: float) -> np.ndarray:
    """(size,) float64: a token's count to the power of -``rarity``, of a sample of the split.

    The sample is 64 stretches, evenly spread: 16 M tokens at most.
    """
    stretch = min(1 << 18, split.num_tokens // 64 + 1)
    counts = np.ones(size)  # none is infinitely rare
    for start in np.linspace(0, split.num_tokens - stretch, 64).astype(np.int64).tolist():
        counts += np.bincount(split.tokens(start, start + stretch), minlength=size)
    weights: np.ndarray = counts**-rarity
    return weights


def pair_reader(store: TokenStore, name: str, negatives: str | None) -> PairReader | None:
    """What reads pairs of the split ``name``; None where no pairs are wanted."""
    if negatives is None:
        return None
    tokenizer = load_tokenizer(store.tokenizer_dir)
    return PairReader(store.split(name), sentence_endings(tokenizer, store.vocab_size), negatives)


def check_pairs(store: TokenStore, length: int, negatives: str | None) -> None:
    """Refuse a store that has no pairs; looks at its first thousand rows.

    Raises:
        UserError: so.
    """
    for name in ("train", "validation"):
        reader = pair_reader(store, name, negatives)
        if reader is None:
            return
        if negatives == "another" and len(reader.split.ends) < 2:
            raise UserError(
                f"objective.name: next_sentence needs two documents, and {store.path} has one in "
                f"{name}; separate documents by empty lines before `mlm prepare`"
            )
        rows = range(min(1000, num_rows(reader.split.ends, length - 1)))
        if not any(isinstance(part, Pair) for row in rows for part in reader(row, length, row)):
            raise UserError(
                f"objective.name: pairs need documents of two sentences, and the first {len(rows)} "
                f"rows of {name} in {store.path} have none; choose masked_lm"
            )


def read_row(split: Split, row: int, length: int) -> list[np.ndarray]:
    """The ordinary ids of each sequence of ``row``."""
    return [split.tokens(start, stop) for start, stop in row_spans(split.ends, row, length)]


def row_lengths(split: Split, length: int, rows: int = 1000) -> np.ndarray:
    """(N,) tokens in each sequence of the first ``rows`` rows, [CLS] and [SEP] included."""
    sample = range(min(rows, num_rows(split.ends, length)))
    spans = [span for row in sample for span in row_spans(split.ends, row, length)]
    return np.array([stop - start + 2 for start, stop in spans])


class TrainingBatches(Dataset[Batch]):
    """Micro-batch number → batch: a pure function, so any worker may compute any of them."""

    def __init__(
        self,
        store: TokenStore,
        options: DataOptions,
        share: Share,
        seed: int,
        still: bool = False,
        negatives: str | None = None,
    ) -> None:
        self.split = store.split("train")
        self.vocabulary = vocabulary_of(store, options.masking, options.mask_rarity)
        self.options, self.share, self.seed, self.still = options, share, seed, still
        self.pairs = pair_reader(store, "train", negatives)
        self.rows = num_rows(self.split.ends, options.sequence_length - (self.pairs is not None))

    def __getitem__(self, micro_batch: int) -> Batch:
        """This rank's ``micro_batch``-th batch since the run began."""
        options = self.options
        places = self.share.places(micro_batch, options.batch_size)
        return collate(
            [self._row(g) for g in places],
            [mix(self.seed, g) for g in places],
            self.vocabulary,
            max(options.mlm_probability, options.mlm_probability_end),
            still_length=options.sequence_length if self.still else None,
            unit=options.masking,
            first_row=places.start % options.batch_size if options.is_ramped else None,
        )

    def _row(self, place: int) -> Sequence[np.ndarray | Pair]:
        """What stands at a place of the stream."""
        row, length = stream_row(place, self.rows, self.seed)[0], self.options.sequence_length
        if self.pairs is None:
            return read_row(self.split, row, length)
        return self.pairs(row, length, pair_key(mix(self.seed, place)))


class ValidationBatches(Dataset[Batch]):
    """The validation split in order, masked the same way for ever.

    With ``pairs`` a row of them each, the same for ever too.
    """

    def __init__(
        self,
        split: Split,
        vocabulary: Vocabulary,
        length: int,
        size: int,
        pairs: PairReader | None = None,
    ) -> None:
        self.split, self.vocabulary = split, vocabulary
        self.length, self.size, self.pairs = length, size, pairs
        self.rows = num_rows(split.ends, length - (pairs is not None))

    def __len__(self) -> int:
        return -(-self.rows // self.size)

    def __getitem__(self, index: int) -> Batch:
        """Rows index·size … of the split."""
        if index >= len(self):
            raise IndexError(index)
        rows = range(index * self.size, min(self.rows, (index + 1) * self.size))
        return collate(
            [self._row(row) for row in rows],
            [mix(_VALIDATION_KEY, row) for row in rows],
            self.vocabulary,
            VALIDATION_RATE,
        )

    def _row(self, row: int) -> Sequence[np.ndarray | Pair]:
        if self.pairs is None:
            return read_row(self.split, row, self.length)
        return self.pairs(row, self.length, pair_key(mix(_VALIDATION_KEY, row)))


# The rate of the original BERT, whatever rate a run trains at.
VALIDATION_RATE = 0.15


class From(Sampler[int]):
    """Numbers from ``start`` without end, or every ``step``-th below ``stop``."""

    def __init__(self, start: int, stop: int | None = None, step: int = 1) -> None:
        self.start, self.stop, self.step = start, stop, step

    def __iter__(self) -> Iterator[int]:
        index = self.start
        while self.stop is None or index < self.stop:
            yield index
            index += self.step


class TimedLoader(DataLoader[Batch]):
    """A loader that keeps count of the seconds it was waited for."""

    waited = 0.0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        batches = super().__iter__()
        while True:
            asked = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError:
                # One that hangs would also make this process hang, which joins them as it ends.
                for worker in getattr(batches, "_workers", []):
                    worker.kill()
                raise
            self.waited += time.perf_counter() - asked
            yield batch


def die_with_parent(worker: int) -> None:
    """Have this process killed when the one that started it is gone, on Linux.

    A worker whose parent was killed may otherwise wait for ever on a queue that nobody reads, and
    keep what it holds of /dev/shm.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


_PR_SET_PDEATHSIG = 1  # prctl(2)


class StreamDataModule(LightningDataModule):
    """What pretraining and fine-tuning share: a rank's part of an endless stream of batches."""

    def __init__(self, num_workers: int, accumulation: int, stall_timeout: float = 300) -> None:
        super().__init__()
        self.num_workers, self.accumulation = num_workers, accumulation
        self.stall_timeout = stall_timeout
        """Seconds that a worker may take for a batch."""

    def _share(self) -> Share:
        assert self.trainer is not None
        return Share(self.trainer.global_rank, self.trainer.world_size, self.accumulation)

    def _loader(self, batches: Dataset[Batch], sampler: Sampler[int]) -> TimedLoader:
        assert self.trainer is not None
        workers = self.num_workers
        extra: dict[str, Any] = (
            {
                "prefetch_factor": 4,
                "persistent_workers": True,
                # Sooner than the whole process gives up, which it does with less grace.
                "timeout": 0.8 * self.stall_timeout,
                "worker_init_fn": die_with_parent,
            }
            if workers
            else {}
        )
        return TimedLoader(
            batches,
            sampler=sampler,
            batch_size=None,
            num_workers=workers,
            pin_memory=self.trainer.strategy.root_device.type == "cuda",
            **extra,
        )


class PretrainingDataModule(StreamDataModule):
    """The loaders of one process of a run."""

    def __init__(
        self,
        store: TokenStore,
        options: DataOptions,
        seed: int,
        accumulation: int,
        still: bool = False,
        stall_timeout: float = 300,
        negatives: str | None = None,
    ) -> None:
        super().__init__(options.num_workers, accumulation, stall_timeout)
        self.store, self.negatives = store, negatives
        self.options, self.seed, self.still = options, seed, still

    def train_dataloader(self) -> TimedLoader:
        """Micro-batches from the trainer's present step on, without end."""
        assert self.trainer is not None
        batches = TrainingBatches(
            self.store, self.options, self._share(), self.seed, self.still, self.negatives
        )
        return self._loader(batches, From(self.trainer.global_step * self.accumulation))

    def val_dataloader(self) -> TimedLoader:
        """This rank's share of the validation split, then of its pairs where there are any."""
        options, share = self.options, self._share()
        pairs = pair_reader(self.store, "validation", self.negatives)
        batches: ConcatDataset[Batch] = ConcatDataset(
            ValidationBatches(
                self.store.split("validation"),
                vocabulary_of(self.store),
                options.sequence_length,
                options.validation_batch_size,
                reader,
            )
            for reader in ([None] if pairs is None else [None, pairs])
        )
        return self._loader(batches, From(share.rank, len(batches), share.world_size))
