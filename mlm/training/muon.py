"""Muon: steps along the nearest orthogonal matrix, with AdamW for what is no matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from mlm.training.precision import has_bf16


class Muon(torch.optim.Optimizer):
    """Muon for groups of kind `muon`, AdamW for groups of kind `adamw`: one object for both.

    Muon replaces a matrix's momentum by the nearest orthogonal matrix
    (https://kellerjordan.github.io/posts/muon), scaled so that one learning rate serves both kinds
    (https://arxiv.org/abs/2502.16982, section 2.2). Gradients must be complete on every rank, as
    DDP leaves them; shards of a matrix cannot be made orthogonal.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float = 2e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update; the closure, if given, is run first with gradients on."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                (self._muon if group["kind"] == "muon" else self._adamw)(parameters, group)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch has it; but the counts of steps go where the fused AdamW wants them."""
        super().load_state_dict(state_dict)
        for parameter, state in self.state.items():
            if "step" in state:
                state["step"] = state["step"].to(parameter.device)

    def _muon(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        buffers = [self._buffer(p, "momentum_buffer") for p in parameters]
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        # Nesterov: look one step ahead of the momentum.
        looks = torch._foreach_lerp(gradients, buffers, group["momentum"])
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
        for parameter, look in zip(parameters, looks, strict=True):
            pieces = zip(parameter.chunk(group["split"]), look.chunk(group["split"]), strict=True)
            for target, piece in pieces:
                by_shape.setdefault(piece.shape, []).append((target, piece))
        for shape, pairs in by_shape.items():
            updates = orthogonalize(torch.stack([piece for _, piece in pairs]))
            # The root mean square of AdamW's updates is about 0.2; an orthogonal m × n matrix has
            # 1 / √max(m, n).
            scale = group["lr"] * 0.2 * max(shape) ** 0.5
            torch._foreach_add_([target for target, _ in pairs], list(updates), alpha=-scale)

    def _adamw(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if "step" not in self.state[parameter]:
                self.state[parameter]["step"] = torch.zeros((), device=parameter.device)
        beta1, beta2 = group["betas"]
        adamw(
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            [self._buffer(p, "exp_avg") for p in parameters],
            [self._buffer(p, "exp_avg_sq") for p in parameters],
            [],
            [self.state[p]["step"] for p in parameters],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _buffer(self, parameter: Tensor, name: str) -> Tensor:
        state = self.state[parameter]
        if name not in state:
            state[name] = torch.zeros_like(parameter)
        buffer: Tensor = state[name]
        return buffer


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Bring all singular values near 1 by a quintic Newton–Schulz iteration.

    Args:
        matrices: (B, m, n).
        steps: five bring values in [0.01, 1] to about [0.7, 1.2], which serves as well as 1.

    Returns:
        (B, m, n) in the dtype of ``matrices``, computed in bfloat16 where the device multiplies it.
    """
    low = torch.bfloat16 if has_bf16(matrices.device.type) else torch.float32
    x = matrices / (torch.linalg.matrix_norm(matrices, keepdim=True) + 1e-7)
    x = x.to(low)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    # Two to one is where the second way begins to need less arithmetic.
    wide = x.shape[-1] >= 2 * x.shape[-2]
    pieces = [min(3, steps - done) for done in range(0, steps, 3)] if wide else [1] * steps
    for piece in pieces:
        x = _iterate_by_gram(x, piece) if wide else _iterate(x)
    return (x.mT if tall else x).to(matrices.dtype)


# x ← (a + b xxᵀ + c (xxᵀ)²) x
_A, _B, _C = 3.4445, -4.7750, 2.0315


def _iterate(x: Tensor) -> Tensor:
    """One step, (B, m, n) → (B, m, n)."""
    gram = x @ x.mT
    factor = torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C)
    return torch.baddbmm(x, factor, x, beta=_A)


def _iterate_by_gram(x: Tensor, steps: int) -> Tensor:
    """Some steps on xxᵀ alone, (m, m), whose factors commute; x is multiplied once, by them all.

    Rounding errors of the small singular values grow with each step away from x: three steps are
    more exact than three of `_iterate`, five are wrong (benchmarks/LOG.md).
    """
    gram = x @ x.mT
    whole = None
    for step in range(steps):
        factor = torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C)
        factor.diagonal(dim1=-2, dim2=-1).add_(_A)
        whole = factor if whole is None else factor @ whole
        if step + 1 < steps:
            gram = factor @ gram @ factor
    return x if whole is None else whole @ x
