"""AdamW whose step is scaled tensor by tensor: StableAdamW and LAMB."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Steps(NamedTuple):
    """What AdamW would do to n tensors."""

    parameters: list[Tensor]
    """Before their update."""
    gradients: list[Tensor]
    squares: list[Tensor]
    """The means of squared gradients, without the bias of their start."""
    updates: list[Tensor]
    """What would be subtracted at a rate of 1, weight decay included."""
    eps: float


def shorter_in_leaps(steps: Steps) -> Tensor:
    """StableAdamW: a step is shorter where gradients leap above what their mean square has noticed.

    1 / max(1, root mean square of gradient / √square): clips what a spike would do
    (https://arxiv.org/abs/2304.13013, algorithm 2). (n,), one number a tensor.
    """
    noticed = torch._foreach_sqrt(torch._foreach_clamp_min(steps.squares, steps.eps**2))
    excess = torch.stack(torch._foreach_norm(torch._foreach_div(steps.gradients, noticed)))
    counts = torch.tensor([x.numel() for x in steps.gradients], dtype=excess.dtype)
    return (excess / counts.sqrt().to(excess.device)).clamp(min=1).reciprocal()


def as_long_as_the_matrix(steps: Steps) -> Tensor:
    """LAMB: |parameter| / |update|, 1 where either is 0 (https://arxiv.org/abs/1904.00962).

    Norms and biases, which start at 0 or 1, take AdamW's steps, as in the authors' own code. (n,).
    """
    sizes = torch.stack(torch._foreach_norm(steps.parameters))
    lengths = torch.stack(torch._foreach_norm(steps.updates))
    matrices = torch.tensor([x.ndim >= 2 for x in steps.parameters]).to(sizes.device)
    return torch.where(matrices & (sizes > 0) & (lengths > 0), sizes / lengths, 1.0)


class ScaledAdam(torch.optim.Optimizer):
    """AdamW with another length of step for each tensor.

    Args:
        groups: of parameters, each with `weight_decay`.
        scale: what the rate is multiplied by, of each tensor.
        lr: the rate that is scaled.
        betas: decay of the two running means.
        eps: added to the denominator.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        scale: Callable[[Steps], Tensor],
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps})
        self.scale = scale

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update; the closure, if given, is run first with gradients on."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            # A GPU would wait for Python between small tensors; a CPU has a cache for one of them.
            for some in _together(parameters):
                self._update(some, group)
        return loss

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """The step of some tensors of a group."""
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter] = {
                    "step": torch.zeros(()),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        states, (beta1, beta2) = [self.state[p] for p in parameters], group["betas"]
        for state in states:
            state["step"] += 1
        gradients = [p.grad for p in parameters if p.grad is not None]
        means = [state["exp_avg"] for state in states]
        squares = [state["exp_avg_sq"] for state in states]
        steps = [float(state["step"]) for state in states]
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - beta2)
        unbiased = torch._foreach_div(squares, [1 - beta2**step for step in steps])
        roots = torch._foreach_sqrt(unbiased)
        torch._foreach_add_(roots, group["eps"])
        updates = torch._foreach_div(means, [1 - beta1**step for step in steps])
        torch._foreach_div_(updates, roots)
        torch._foreach_add_(updates, parameters, alpha=group["weight_decay"])
        found = Steps(parameters, gradients, list(unbiased), list(updates), group["eps"])
        scales = self.scale(found)
        torch._foreach_mul_(updates, list((group["lr"] * scales).unbind()))
        torch._foreach_sub_(parameters, updates)


def _together(parameters: list[Tensor]) -> list[list[Tensor]]:
    """Which tensors are updated at once: all of them on a GPU, each by itself on a CPU."""
    if not parameters or parameters[0].device.type == "cpu":
        return [[parameter] for parameter in parameters]
    return [parameters]
