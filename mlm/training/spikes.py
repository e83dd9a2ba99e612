"""Sudden rises of the loss: noticed, recorded and, where wanted, undone."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from mlm.console import say
from mlm.training.base import SumLossModule
from mlm.training.checkpoint_io import latest_checkpoint


class SpikeDetector:
    """Tells a loss far above its running mean, which such losses do not move.

    Args:
        memory: about so many steps decide the mean and the deviation, and none is judged before.
        deviations: how far above the mean a spike is, and at least ``margin`` nats.
    """

    def __init__(self, memory: int = 50, deviations: float = 6.0, margin: float = 0.2) -> None:
        self.memory, self.deviations, self.margin = memory, deviations, margin
        self.mean = self.variance = 0.0
        self.count = 0

    def sees_spike(self, loss: float) -> bool:
        """Whether ``loss`` is one; else it joins the mean, if it is finite."""
        if not math.isfinite(loss):
            return False
        above = loss - self.mean
        known = self.count >= self.memory
        if known and above > max(self.deviations * self.variance**0.5, self.margin):
            return True
        self.count += 1
        share = max(1 / self.count, 1 / self.memory)
        # T. Finch, Incremental calculation of weighted mean and variance (2009), section 9
        self.variance = (1 - share) * (self.variance + share * above**2)
        self.mean += share * above
        return False


class WatchSpikes(Callback):
    """Says and logs every spike, and goes back to the last checkpoint where that is wanted.

    Steps of each kind are compared with their own: causal ones have another loss. Going back takes
    weights and optimizer from there, but the run's steps and rows go on: so the rows since the
    checkpoint, which the spike is among, are not seen again.

    Args:
        checkpoints: where they are; None only records.
        load: reads one.
    """

    def __init__(self, checkpoints: Path | None, load: Callable[[Path], dict[str, Any]]) -> None:
        self.checkpoints, self.load = checkpoints, load
        self.detectors: defaultdict[str, SpikeDetector] = defaultdict(SpikeDetector)
        self._step = 0

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        """Judge each finished step."""
        assert isinstance(module, SumLossModule)
        step = module.spent.steps
        if step == self._step or "train/loss" not in module.step_metrics:
            return
        self._step = step
        detector = self.detectors[module.kind_of_step]
        loss, mean = module.step_metrics["train/loss"], detector.mean
        if not detector.sees_spike(loss):
            return
        for logger in trainer.loggers:
            logger.log_metrics({"spike": loss - mean}, step=step)
        what = f"step {step}: the loss rose to {loss:.3f} from about {mean:.3f}"
        gone_back = None if self.checkpoints is None else self._go_back(trainer, module)
        if trainer.is_global_zero:
            say(what + (f"; went back to {gone_back}" if gone_back else ""))

    def _go_back(self, trainer: Trainer, module: SumLossModule) -> Path | None:
        assert self.checkpoints is not None
        path = latest_checkpoint(self.checkpoints)
        if path is None:
            return None
        state = self.load(path)
        module.load_state_dict(module.training_weights(state))
        for optimizer, saved in zip(trainer.optimizers, state["optimizer_states"], strict=True):
            optimizer.load_state_dict(saved)
        return path

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know, to judge alike."""
        return {
            kind: {"mean": found.mean, "variance": found.variance, "count": found.count}
            for kind, found in self.detectors.items()
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there; older checkpoints have one kind of steps, without a name."""
        kinds = {"": state_dict} if "mean" in state_dict else state_dict
        for kind, values in kinds.items():
            for name, value in values.items():
                setattr(self.detectors[kind], name, value)
