"""AdamW whose step is scaled tensor by tensor: StableAdamW and LAMB."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Step(NamedTuple):
    """What AdamW would do to a tensor."""

    parameter: Tensor
    """Before its update."""
    gradient: Tensor
    square: Tensor
    """The mean of squared gradients, without the bias of its start."""
    update: Tensor
    """What would be subtracted at a rate of 1, weight decay included."""
    eps: float


def shorter_in_leaps(step: Step) -> Tensor:
    """StableAdamW: a step is shorter where gradients leap above what their mean square has noticed.

    1 / max(1, root mean square of gradient / √square): clips what a spike would do
    (https://arxiv.org/abs/2304.13013, algorithm 2).
    """
    excess = step.gradient.square() / step.square.clamp(min=step.eps**2)
    return excess.mean().sqrt().clamp(min=1).reciprocal()


def as_long_as_the_matrix(step: Step) -> Tensor:
    """LAMB: |parameter| / |update|, 1 where either is 0 (https://arxiv.org/abs/1904.00962).

    Norms and biases, which start at 0 or 1, take AdamW's steps, as in the authors' own code.
    """
    size, length = step.parameter.norm(), step.update.norm()
    if step.parameter.ndim < 2:
        return torch.ones_like(size)
    return torch.where((size > 0) & (length > 0), size / length, 1.0)


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
        scale: Callable[[Step], Tensor],
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
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        step, (beta1, beta2) = float(state["step"]), group["betas"]
        mean = state["exp_avg"].lerp_(gradient, 1 - beta1)
        square = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        square = square / (1 - beta2**step)
        update = mean / (1 - beta1**step) / (square.sqrt() + group["eps"])
        update.add_(parameter, alpha=group["weight_decay"])
        scale = self.scale(Step(parameter, gradient, square, update, group["eps"]))
        parameter.sub_(update * (group["lr"] * scale))
