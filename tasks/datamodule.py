"""Tokenised examples → keyed order → ragged batches, for any number of workers and ranks.

As in pretraining, one endless stream of examples runs through the whole training and step s takes
places s·B … s·B + B − 1 of it; ranks and micro-batches only divide those B among them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch.utils.data import Dataset

from mlm.batch import Batch, evaluation_tokens, length_batches
from mlm.data.keys import mix
from mlm.data.order import permute, stream_row
from mlm.training.data_options import Share
from mlm.training.datamodule import From, StreamDataModule, TimedLoader
from tasks.base import Task
from tasks.encoding import Example
from tasks.options import DataOptions


def pool_rows(pool: int, lengths: np.ndarray, size: int, seed: int) -> np.ndarray:
    """The ``size`` examples at places pool·size … of the stream, shortest first.

    Batches cut from a pool hold examples of like lengths, which is what attention on padded
    sequences needs; which pool an example is in is as random as ever.

    Args:
        pool: number of the pool, from 0.
        lengths: (examples,) tokens of each.
        size: places in a pool.
        seed: names the stream.

    Returns:
        (size,) int64 numbers of examples.
    """
    places = range(pool * size, (pool + 1) * size)
    rows = np.array([stream_row(place, len(lengths), seed)[0] for place in places])
    return rows[np.argsort(lengths[rows], kind="stable")]


class TrainingBatches(Dataset[Batch]):
    """Micro-batch number → batch: a pure function, so any worker may compute any of them.

    Args:
        task: makes batches of examples.
        examples: all of the training set.
        options: how many are in a batch, and how many batches are grouped by length.
        share: which micro-batches are this rank's.
        seed: names the stream.

    Raises:
        UserError: a batch size that ranks and micro-batches cannot divide, or that leaves them too
            little each.
    """

    def __init__(
        self,
        task: Task,
        examples: Sequence[Example],
        options: DataOptions,
        share: Share,
        seed: int,
    ) -> None:
        share.micro_batch_size(options.batch_size)
        task.check_batches(options.batch_size, share.world_size * share.accumulation)
        self.task, self.examples, self.share, self.seed = task, examples, share, seed
        self.batch_size, self.pool = options.batch_size, options.length_pool
        self.lengths = np.array([len(e.input_ids) for e in examples])
        self._latest: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def rows(self, micro_batch: int) -> np.ndarray:
        """Which examples stand in this rank's ``micro_batch``-th batch since the run began."""
        step, part = divmod(micro_batch, self.share.accumulation)
        pool, place = divmod(step, self.pool)
        if self._latest[0] != pool:
            size = self.pool * self.batch_size
            self._latest = pool, pool_rows(pool, self.lengths, size, self.seed)
        batch = permute(place, self.pool, mix(self.seed, pool, self.pool))
        rows = self._latest[1][batch * self.batch_size : (batch + 1) * self.batch_size]
        # Every parts-th example, so that all parts have short and long ones alike.
        parts = self.share.world_size * self.share.accumulation
        return rows[part * self.share.world_size + self.share.rank :: parts]

    def __getitem__(self, micro_batch: int) -> Batch:
        """The batch itself."""
        return self.task.collate([self.examples[row] for row in self.rows(micro_batch)])


class EvaluationBatches(Dataset[Batch]):
    """A whole set in batches of like lengths."""

    def __init__(self, task: Task, examples: Sequence[Example], device: str) -> None:
        self.task, self.examples = task, examples
        tokens = evaluation_tokens(device)
        self.batches = length_batches([len(e.input_ids) for e in examples], tokens)

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        """Batch number ``index``."""
        return self.task.collate([self.examples[row] for row in self.batches[index]])


class FineTuningDataModule(StreamDataModule):
    """The loaders of one process of a run."""

    def __init__(
        self,
        task: Task,
        train: Sequence[Example],
        validation: Sequence[Example],
        options: DataOptions,
        seed: int,
        accumulation: int = 1,
        stall_timeout: float = 300,
    ) -> None:
        super().__init__(options.num_workers, accumulation, stall_timeout)
        Share(accumulation=accumulation).micro_batch_size(options.batch_size)
        self.task, self.train, self.validation = task, train, validation
        self.options, self.seed = options, seed

    def train_dataloader(self) -> TimedLoader:
        """Micro-batches from the trainer's present step on, without end."""
        assert self.trainer is not None
        batches = TrainingBatches(self.task, self.train, self.options, self._share(), self.seed)
        return self._loader(batches, From(self.trainer.global_step * self.accumulation))

    def val_dataloader(self) -> TimedLoader:
        """This rank's share of the validation set."""
        assert self.trainer is not None
        share, device = self._share(), self.trainer.strategy.root_device.type
        batches = EvaluationBatches(self.task, self.validation, device)
        return self._loader(batches, From(share.rank, len(batches), share.world_size))
