"""Processes wait for each other; one that is gone must not keep the others for ever."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import sys
import time
from threading import Event, Thread
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from mlm.console import say


class EndStalled(Callback):
    """Ends this process when nothing has moved for ``seconds``, with the stack of where it waited.

    Only where there are several, ranks or loaders: a lone process waits for nobody. Watching begins
    with the first finished step, which may have had to compile.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._moved = time.monotonic()
        self._over = Event()
        self._thread: Thread | None = None
        self._trainer: Trainer | None = None

    def _move(self, *_: Any, **__: Any) -> None:
        self._moved = time.monotonic()

    on_train_batch_start = on_validation_batch_start = on_validation_batch_end = _move
    on_validation_start = on_validation_end = on_save_checkpoint = _move

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        """Begin to watch, or go on."""
        self._moved = time.monotonic()
        loader = trainer.train_dataloader
        several = trainer.world_size > 1 or getattr(loader, "num_workers", 0) > 0
        if self._thread is None and several:
            self._trainer = trainer
            self._thread = Thread(target=self._watch, name="end-stalled", daemon=True)
            self._thread.start()

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Nothing more to wait for."""
        self._over.set()

    def on_exception(
        self, trainer: Trainer, module: LightningModule, exception: BaseException
    ) -> None:
        """Ranks end on their own, if their partners let them: that is still watched.

        A process without ranks may go on with something else.
        """
        self._moved = time.monotonic()
        if trainer.world_size == 1:
            self._over.set()

    def _watch(self) -> None:
        while (left := self._moved + self.seconds - time.monotonic()) > 0:
            if self._over.wait(left):
                return
        assert self._trainer is not None
        say(
            f"rank {self._trainer.global_rank}: nothing has moved for {self.seconds:g} s "
            "(--stall_timeout); another rank, or a loader process, is gone or hangs. Go on "
            "with --resume auto. This is where it waited:"
        )
        faulthandler.dump_traceback(sys.stderr)
        launcher = self._trainer.strategy.launcher
        for process in [*getattr(launcher, "procs", []), *multiprocessing.active_children()]:
            process.kill()  # a frozen one hears nothing else
        os._exit(1)
