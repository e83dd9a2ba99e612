"""The loaders of a run: batches by number, for any number of workers and ranks."""

from __future__ import annotations

import ctypes
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

from pytorch_lightning import LightningDataModule
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Sampler

from mlm.batch import Batch
from mlm.data.store import TokenStore
from mlm.training.batches import TrainingBatches, ValidationBatches, pair_reader, vocabulary_of
from mlm.training.data_options import DataOptions, Share


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


def follow_parent(worker: int) -> None:
    """Leave signals to the process that started this one, and end when it does.

    Job systems, launchers and terminals send a signal to all processes of a run, which still needs
    its loaders for the step that it finishes. A worker whose parent was killed may otherwise wait
    for ever on a queue that nobody reads, and keep what it holds of /dev/shm; only Linux tells it.
    """
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


_PR_SET_PDEATHSIG = 1  # prctl(2)
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""Signals that ask a run to stop."""


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
                "worker_init_fn": follow_parent,
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
