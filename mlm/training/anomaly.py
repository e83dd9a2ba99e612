"""Finding the module where a number first stops being finite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mlm.errors import RunError


@contextmanager
def naming_anomalies(
    model: nn.Module, step: Callable[[], int], wanted: bool = True
) -> Iterator[None]:
    """Watch every module of ``model``, forward and backward; costs a look at all that it makes.

    Args:
        model: what is watched.
        step: the number of the present step.
        wanted: else nothing is.

    Raises:
        RunError: an output, or the gradient of one, is not finite; names the module.
    """

    def check(name: str, what: str, value: Any) -> None:
        if isinstance(value, Tensor) and not bool(torch.isfinite(value).all()):
            raise RunError(f"step {step()}: {what} of {name} is not finite")

    def watch(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        check(name, "the output", output)
        if isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(partial(check, name, "the gradient of the output"))

    handles = [
        module.register_forward_hook(partial(watch, name))
        for name, module in model.named_modules()
        if name and wanted
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
