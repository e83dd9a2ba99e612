"""LoRA (https://arxiv.org/abs/2106.09685): a linear layer learns a product of two thin matrices.

    y = W x + b + α / r · B A x        W, b stay;  A (r, in) and B (out, r) learn;  B starts at 0

A layer keeps its names, `weight` and `bias`, beside `lora_A` and `lora_B`: so a model's state
without these two is that of the plain model, and `merge_state` needs nothing else. Queries, keys
and values stand stacked in one weight here, and share one A.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlm.errors import UserError
from mlm.model.dropout import Dropout

A, B = "lora_A", "lora_B"


class LoRALinear(nn.Linear):
    """A linear layer that is left as it is, and what is learnt beside it.

    The thin products are computed beside the wide one: B A is never as large as W, and no gradient
    of W is taken.
    """

    lora_A: nn.Parameter  # noqa: N815 - the name that everybody gives it
    """(r, in), as `nn.Linear` starts its weights."""
    lora_B: nn.Parameter  # noqa: N815
    """(out, r), zeros at first, so that nothing has changed yet."""
    scale: float
    """Alpha / r."""
    dropout: Dropout

    @classmethod
    def around(cls, linear: nn.Linear, rank: int, alpha: float, dropout: float = 0.0) -> Self:
        """``linear`` with an adapter, sharing its weights, which are frozen.

        Args:
            linear: the layer.
            rank: r.
            alpha: α; the product counts α / r times.
            dropout: of the adapter's input, in training.
        """
        wide = linear.weight
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer.in_features, layer.out_features = linear.in_features, linear.out_features
        layer.weight, layer.bias = wide, linear.bias
        layer.requires_grad_(False)
        layer.lora_A = nn.Parameter(wide.new_empty(rank, linear.in_features))
        layer.lora_B = nn.Parameter(wide.new_zeros(linear.out_features, rank))
        nn.init.kaiming_uniform_(layer.lora_A, a=5**0.5)
        layer.scale = alpha / rank
        layer.dropout = Dropout(dropout)
        return layer.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        thin = F.linear(self.dropout(x), self.lora_A) * self.scale
        return F.linear(x, self.weight, self.bias) + F.linear(thin, self.lora_B)


def find_targets(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """The names of the linear layers of ``model`` that a pattern matches and that may learn.

    Args:
        model: frozen layers are left out.
        patterns: parts of names, with the wildcards of `fnmatch`: `qkv`, `layers.[01].*down`.

    Raises:
        UserError: a pattern matches nothing, or nothing may learn; names the nearest.
    """
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.weight.requires_grad
    ]
    if not names:
        raise UserError("lora: nothing is left to adapt, every linear layer is frozen")
    for pattern in patterns:
        if not any(fnmatchcase(name, f"*{pattern}*") for name in names):
            raise UserError(
                f"lora.targets: {pattern!r} matches no linear layer; {_near(pattern, names)}"
            )
    return [name for name in names if any(fnmatchcase(name, f"*{p}*") for p in patterns)]


def _near(pattern: str, names: Sequence[str]) -> str:
    """What a pattern may have meant, and what kinds of layers there are."""
    kinds = list(dict.fromkeys(".".join(name.split(".")[-2:]) for name in names))
    words = list(dict.fromkeys(part for kind in kinds for part in (kind, *kind.split("."))))
    near = get_close_matches(pattern, [*words, *names], n=1)
    return f"there are {', '.join(kinds)}" + (f"; did you mean {near[0]}?" if near else "")


def add_lora(
    model: nn.Module, targets: Sequence[str], rank: int, alpha: float, dropout: float = 0.0
) -> list[str]:
    """Freeze ``model`` and put adapters on its linear layers that ``targets`` match.

    Args:
        model: changed in place; its own weights are shared, not copied.
        targets: see `find_targets`.
        rank: r, at least 1.
        alpha: α.
        dropout: of the adapters' input.

    Returns:
        The names of the layers.

    Raises:
        UserError: as `find_targets`, or a rank that a target has not.
    """
    names = find_targets(model, targets)
    check_rank(model, names, rank)
    model.requires_grad_(False)
    for name in names:
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        model.set_submodule(name, LoRALinear.around(linear, rank, alpha, dropout))
    return names


def check_rank(model: nn.Module, names: Sequence[str], rank: int) -> None:
    """Refuse, by a `UserError`, a rank below 1 or above that of a layer of ``model``."""
    for name in names:
        limit = min(model.get_parameter(f"{name}.weight").shape)
        if not 1 <= rank <= limit:
            raise UserError(f"lora.rank: {rank} must lie between 1 and {limit}, the rank of {name}")


def adapter_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of a model's state what its adapters are."""
    return {name: tensor for name, tensor in state.items() if name.rpartition(".")[2] in (A, B)}


def load_adapter(model: nn.Module, adapter: Mapping[str, Tensor]) -> None:
    """Put what `adapter_state` gave into a model with the same adapters.

    Raises:
        UserError: they are not on the same layers, or of another rank; names the first.
    """
    own = adapter_state(model.state_dict())
    for name in sorted(own.keys() | adapter.keys()):
        shapes = [list(x[name].shape) if name in x else "not there" for x in (adapter, own)]
        if shapes[0] != shapes[1]:
            raise UserError(f"lora: {name} is {shapes[0]}, where this model wants {shapes[1]}")
    model.load_state_dict(dict(adapter), strict=False)


def merge_state(state: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """A model's state with its adapters added to the weights they stand beside: W + α / r · B A.

    Computed in fp32, and rounded once to the kind of W; ``state`` is left as it is.
    """
    merged = {name: tensor for name, tensor in state.items() if name not in adapter_state(state)}
    for name in merged:
        module, _, parameter = name.rpartition(".")
        if parameter == "weight" and f"{module}.{A}" in state:
            thin, wide = (state[f"{module}.{x}"].float() for x in (A, B))
            added = torch.addmm(merged[name].float(), wide, thin, alpha=alpha / len(thin))
            merged[name] = added.to(merged[name].dtype)
    return merged
