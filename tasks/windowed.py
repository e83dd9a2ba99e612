"""Tasks that answer about places in their input: they read every token, and long inputs whole."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from mlm.errors import UserError
from mlm.model.config import EncoderConfig
from tasks.base import Task
from tasks.options import TaskSettings


class WindowTask(Task):
    """A task whose long inputs become windows that overlap, so that nothing is cut off."""

    reads = frozenset({"stride"})
    shared: ClassVar[float] = 0.25
    """The share of a window's tokens that the next one has too, where `data.stride` says none."""

    def __init__(self, settings: TaskSettings) -> None:
        super().__init__(settings)
        if settings.pooling is not None:
            raise UserError(
                f"model.pooling: the task {self.name} reads every token and pools none; leave it "
                "out"
            )
        if settings.stride is not None and settings.stride < 0:
            raise UserError(f"data.stride: {settings.stride} must be at least 0")

    def settle(self, config: EncoderConfig) -> None:
        """Settle the longest window, and what neighbouring ones have in common."""
        super().settle(config)
        stride, length = self.settings.stride, self.settings.max_length
        assert length is not None
        stride = int(length * self.shared) if stride is None else stride
        self.settings = replace(self.settings, pooling=None, stride=stride)
