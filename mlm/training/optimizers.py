"""Optimizers, by name, and which parameters they treat how."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mlm.errors import UserError, look_up
from mlm.training.muon import Muon
from mlm.training.scaled_adam import ScaledAdam, Steps, as_long_as_the_matrix, shorter_in_leaps
from mlm.training.schedules import COOLING, SCHEDULES

_LAYER = re.compile(r"encoder\.layers\.(\d+)\.")

# Output maps of heads: a row is a class or a token.
_OUTPUTS = ("classifier.weight", "decoder.weight")

_HIGHEST_RATE = 1e6  # far beyond what learns, far below what fp32 holds
_MOMENTUM = 0.95
_WARMUP = 0.05
_COOLDOWN = 0.3


@dataclass(frozen=True)
class OptimizerOptions:
    """The optimizer and how its learning rate moves."""

    name: str = "muon"
    """`muon` (Muon for the layers' matrices, AdamW for the rest), `adamw`, `stable_adamw` (shorter
    steps where gradients leap) or `lamb` (steps as long as a matrix is large)."""
    lr: float = 2e-3
    """Peak learning rate."""
    weight_decay: float = 0.1
    """Decoupled decay of matrices and embeddings; norms and biases have none."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Decay of AdamW's two running means."""
    eps: float = 1e-8
    """Added to AdamW's denominator."""
    momentum: float | None = None
    """Muon's momentum; null is 0.95, and the other optimizers have `betas`."""
    layer_decay: float = 1.0
    """Each layer learns at this share of the rate of what stands above it, the embeddings slowest;
    1 is one rate for all, 0.9 or less spares what a pretrained encoder knows."""
    schedule: str = "linear"
    """`linear` (a line down from the peak), `one_cycle` (the same after a line up of equal length),
    `wsd` (warmup, stable, decay by 1 - sqrt: it can go on from its stable phase), `wsd_linear`
    (decay in a line), `cosine` or `constant`."""
    warmup: float | None = None
    """Share of the run over which the learning rate rises; null is half of it for `one_cycle`, and
    0.05 for the others."""
    cooldown: float | None = None
    """Share of the run over which `wsd` and `wsd_linear` fall to 0; null is 0.3 for them."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run, by name."""
        look_up(OPTIMIZERS, self.name, "optimizer.name")
        look_up(SCHEDULES, self.schedule, "optimizer.schedule")
        if not 0 < self.lr <= _HIGHEST_RATE:
            raise UserError(
                f"optimizer.lr: {self.lr} must lie above 0 and be at most {_HIGHEST_RATE:g}"
            )
        if self.momentum is not None and self.name != "muon":
            raise UserError(
                f"optimizer.momentum: {self.name} has none; leave it out, or set optimizer.betas"
            )
        for name, value in (("momentum", self.inertia), *(("betas", b) for b in self.betas)):
            if not 0 <= value < 1:
                raise UserError(f"optimizer.{name}: {value} must lie in [0, 1)")
        for name in ("eps", "weight_decay"):
            if getattr(self, name) < 0:
                raise UserError(f"optimizer.{name}: {getattr(self, name)} is negative")
        if not 0 < self.layer_decay <= 1:
            raise UserError(f"optimizer.layer_decay: {self.layer_decay} must lie in (0, 1]")
        if self.cooldown and self.schedule not in COOLING:
            raise UserError(
                f"optimizer.cooldown: {self.schedule} has none; leave it out, or choose "
                f"--optimizer.schedule {' or '.join(COOLING)}"
            )
        if self.rising < 0 or self.cooling < 0 or self.rising + self.cooling > 1:
            raise UserError(
                f"optimizer: warmup {self.rising} and cooldown {self.cooling} are shares of the "
                "run; neither may be negative and together they may not exceed 1"
            )
        if self.rising == 1:
            raise UserError("optimizer.warmup: 1 leaves nothing after the warmup; choose less")

    @property
    def inertia(self) -> float:
        """Muon's momentum."""
        return _MOMENTUM if self.momentum is None else self.momentum

    @property
    def rising(self) -> float:
        """The share of the run over which the rate rises."""
        if self.warmup is None:
            return 0.5 if self.schedule == "one_cycle" else _WARMUP
        return self.warmup

    @property
    def cooling(self) -> float:
        """The share of the run that cools down: 0 where the schedule has no such phase."""
        if self.cooldown is None:
            return _COOLDOWN if self.schedule in COOLING else 0.0
        return self.cooldown


def layer_scale(name: str, layers: int, decay: float) -> float:
    """The share of the learning rate that the parameter ``name`` of an encoder's model has.

    Layer-wise decay as in ULMFiT (https://arxiv.org/abs/1801.06146) and ELECTRA
    (https://arxiv.org/abs/2003.10555).

    >>> names = ["embeddings.word.weight", "layers.0.mixer.out.weight", "layers.1.mixer.out.weight"]
    >>> [layer_scale(f"encoder.{name}", 2, 0.5) for name in names]
    [0.125, 0.25, 0.5]
    >>> layer_scale("head.dense.weight", 2, 0.5)
    1.0
    """
    if name.startswith("encoder.embeddings."):
        return decay ** (layers + 1)
    match = _LAYER.match(name)
    return decay ** (layers - int(match[1])) if match else 1.0


def parameter_groups(
    module: nn.Module, weight_decay: float, matrices: str = "adamw", layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Split parameters by how they are treated.

    Args:
        module: the model.
        weight_decay: for everything of two dimensions; norms and biases get none.
        matrices: `muon` sends linear maps to Muon (embeddings, and a head's output map whose rows
            are classes or tokens, stay with AdamW); `adamw` sends nothing there.
        layer_decay: see `OptimizerOptions`.

    Returns:
        Groups with `params`, `weight_decay`, `kind`, `lr_scale` (see `layer_scale`) and, for Muon,
        `split`: how many separate matrices stand stacked in one weight (queries, keys and values;
        gate and value).
    """
    groups: dict[tuple[str, float, int, float], list[nn.Parameter]] = {}
    matches = (_LAYER.match(name) for name, _ in module.named_parameters())
    layers = 1 + max((int(match[1]) for match in matches if match), default=-1)
    linear = {f"{n}.weight" for n, m in module.named_modules() if isinstance(m, nn.Linear)}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = weight_decay if parameter.ndim >= 2 else 0.0
        kind, split = "adamw", 1
        if matrices == "muon" and name in linear and not name.endswith(_OUTPUTS):
            kind = "muon"
            # A wide weight is a stack of square or gate matrices, each orthogonal in its own right.
            split = {"qkv.weight": 3}.get(".".join(name.split(".")[-2:]), 1)
        scale = layer_scale(name, layers, layer_decay)
        groups.setdefault((kind, decay, split, scale), []).append(parameter)
    return [
        {
            "params": params,
            "weight_decay": decay,
            "kind": kind,
            "split": split,
            "lr_scale": scale,
        }
        for (kind, decay, split, scale), params in groups.items()
    ]


def _build_muon(module: nn.Module, options: OptimizerOptions) -> torch.optim.Optimizer:
    groups = parameter_groups(module, options.weight_decay, "muon", options.layer_decay)
    return Muon(groups, options.lr, options.inertia, options.betas, options.eps)


def _build_adamw(module: nn.Module, options: OptimizerOptions) -> torch.optim.Optimizer:
    groups = parameter_groups(module, options.weight_decay, "adamw", options.layer_decay)
    optimizer = torch.optim.AdamW(
        groups, lr=options.lr, betas=options.betas, eps=options.eps, fused=True
    )
    # Fused AdamW offers to undo fp16's loss scaling itself, which Lightning takes for a reason to
    # refuse clipping. Without the offer the scaler undoes it first, as for every other optimizer.
    vars(optimizer)["_step_supports_amp_scaling"] = False
    return optimizer


def _build_scaled(
    scale: Callable[[Steps], Tensor], module: nn.Module, options: OptimizerOptions
) -> torch.optim.Optimizer:
    groups = parameter_groups(module, options.weight_decay, "adamw", options.layer_decay)
    return ScaledAdam(groups, scale, options.lr, options.betas, options.eps)


# https://kellerjordan.github.io/posts/muon, https://arxiv.org/abs/1711.05101
OPTIMIZERS: dict[str, Callable[[nn.Module, OptimizerOptions], torch.optim.Optimizer]] = {
    "muon": _build_muon,
    "adamw": _build_adamw,
    "stable_adamw": functools.partial(_build_scaled, shorter_in_leaps),
    "lamb": functools.partial(_build_scaled, as_long_as_the_matrix),
}


def build_optimizer(module: nn.Module, options: OptimizerOptions) -> torch.optim.Optimizer:
    """The optimizer that ``options.name`` names, over the parameters of ``module``.

    Each group keeps `peak_lr`, which `set_learning_rate` multiplies by the schedule's factor.
    """
    optimizer = OPTIMIZERS[options.name](module, options)
    for group in optimizer.param_groups:
        group["peak_lr"] = group["lr"] = group["lr"] * group["lr_scale"]
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Put every group at ``factor`` of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
