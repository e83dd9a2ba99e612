"""Token store → packed rows → keyed order → masked batches: pure functions of a number.

One endless stream of rows runs through the whole training. Step s takes rows s·B … s·B + B − 1 of
it; ranks and micro-batches only divide those B among them. Which row stands at a place of the
stream, and how it is masked, follows from the seed and that place alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch.utils.data import Dataset

from mlm.batch import Batch
from mlm.data.keys import mix
from mlm.data.masking_units import find_joints
from mlm.data.order import stream_row
from mlm.data.packing import Split, num_rows, row_spans
from mlm.data.pairs import Pair, PairReader, pair_key, sentence_endings
from mlm.data.store import TokenSplit, TokenStore
from mlm.data.tokenizer import load_tokenizer, num_ids, special_ids
from mlm.errors import UserError
from mlm.objectives.masked_lm import Vocabulary, collate
from mlm.training.data_options import DataOptions, Share

# The rate of the original BERT, whatever rate a run trains at.
VALIDATION_RATE = 0.15
# Validation rows are masked by this key in every run, so that losses can be compared for ever.
_VALIDATION_KEY = 0x6D6C6D
# The share of rows with a pair below which the second loss would be of nearly nothing.
_FEWEST_PAIRS = 0.1


def vocabulary_of(store: TokenStore, masking: str = "token", rarity: float = 0.0) -> Vocabulary:
    """What ``masking``, one of `UNITS`, must know of ``store``'s tokenizer and of its tokens."""
    tokenizer = load_tokenizer(store.tokenizer_dir)
    special, joints = special_ids(tokenizer), None
    if masking != "token":
        joints = find_joints(tokenizer, num_ids(tokenizer))
    size, weights = store.vocab_size, None
    if rarity > 0:
        weights = token_counts(store.split("train"), size) ** -rarity
    names = special.cls, special.sep, special.mask, special.ids
    return Vocabulary(size, *names, joints, weights)


def token_counts(split: TokenSplit, size: int) -> np.ndarray:
    """(size,) float64: one more than how often each token occurs in a sample of the split.

    The sample is 64 stretches, evenly spread: 16 M tokens at most.
    """
    counts = np.ones(size)  # none is infinitely rare
    for start, stop in split.stretches(64, 1 << 18):
        counts += np.bincount(split.tokens(start, stop), minlength=size)
    return counts


def pair_reader(store: TokenStore, name: str, negatives: str | None) -> PairReader | None:
    """What reads pairs of the split ``name``; None where no pairs are wanted."""
    if negatives is None:
        return None
    tokenizer = load_tokenizer(store.tokenizer_dir)
    return PairReader(store.split(name), sentence_endings(tokenizer, store.vocab_size), negatives)


def check_pairs(store: TokenStore, length: int, negatives: str | None) -> None:
    """Refuse a store that has hardly any pairs; looks at a thousand rows from all over it.

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
        rows = num_rows(reader.split.ends, length - 1)
        looked = range(0, rows, max(1, rows // 1000))
        found = sum(any(isinstance(part, Pair) for part in reader(r, length, r)) for r in looked)
        if found < _FEWEST_PAIRS * len(looked):
            raise UserError(
                f"objective.name: pairs need documents of two sentences, and of {len(looked):,} "
                f"rows of {name} in {store.path} {found or 'none'} have one; choose masked_lm"
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
