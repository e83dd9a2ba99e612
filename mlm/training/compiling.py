"""`torch.compile` for training: the whole loss of a batch, its vocabulary included, is one graph.

The shapes of its batches must stand still (see `mlm.objectives.masked_lm`). Validation is not
compiled, as its batches are of all shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, ParamSpec, TypeVar

import torch
from torch import Tensor

from mlm.errors import UserError

P = ParamSpec("P")
T = TypeVar("T")

Mode = Literal["reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]

# These record CUDA graphs, into whose memory gradients are written anew at each backward pass.
_CUDA_GRAPHS = ("reduce-overhead", "max-autotune")


def compiled(function: Callable[P, T], how: bool | Mode) -> Callable[P, T]:
    """``function`` compiled, or as it is where ``how`` is False.

    Args:
        function: of tensors, or of batches of still shapes.
        how: whether at all, or a mode of `torch.compile`.
    """
    if how is False:
        return function
    of_mode = {} if how is True else torch._inductor.list_mode_options(how)
    return torch.compile(function, options={**of_mode, **_right_on_cpus()})


def _right_on_cpus() -> dict[str, Any]:
    """Options without which compiled gradients would be wrong on some CPUs.

    With vectors of 512 bits torch 2.13 gives gradients of bfloat16 keys that are not finite, in
    what it fuses with their transposition; with 256 bits it does not (benchmarks/LOG.md).
    """
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return {"cpp.simdlen": 256} if wide else {}


def may_vary(sizes: Tensor) -> None:
    """Tell `torch.compile` that the length of ``sizes`` changes, before it has to find out.

    The number of sequences in a batch is the one shape that moves, in coarse steps; otherwise
    everything would be compiled for the first one and then once more.
    """
    torch._dynamo.maybe_mark_dynamic(sizes, 0)


def check_compile(how: bool | Mode, accumulation: int) -> None:
    """Refuse what cannot be right.

    Raises:
        UserError: gradients would be added up where a CUDA graph writes them.
    """
    if how in _CUDA_GRAPHS and accumulation > 1:
        raise UserError(
            f"compile: {how} records CUDA graphs, which cannot accumulate gradients; choose "
            "--compile true or --trainer.accumulate_grad_batches 1"
        )
