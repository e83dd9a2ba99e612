"""Tensors under the names of transformers, in both directions."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from mlm.errors import UserError
from mlm.huggingface.family import Family

State = dict[str, Tensor]

_OLD_PARAMETERS = {"gamma": "weight", "beta": "bias"}


def to_native(state: Mapping[str, Tensor], family: Family, head: str) -> State:
    """Our tensors under the names of transformers, contiguous and otherwise untouched."""
    modules = _modules(family, head)
    native: State = {}
    for name, tensor in state.items():
        module, layer, parameter = _split(name)
        if module not in modules:
            raise ValueError(f"{family.heads[head].name} has no place for the tensor {name}")
        theirs = modules[module]
        for their_module, part in zip(theirs, tensor.chunk(len(theirs)), strict=True):
            native[_join(their_module, layer, parameter)] = part.contiguous()
    return native


def native_modules(module: str, family: Family, head: str) -> tuple[str, ...]:
    """What transformers calls one of our modules: several where ours stacks theirs."""
    kind, layer, _ = _split(f"{module}.weight")
    return tuple(their.replace("*", layer) for their in _modules(family, head)[kind])


def from_native(native: Mapping[str, Tensor], family: Family, head: str) -> State:
    """Tensors of transformers under our names: what `to_native` did, undone.

    All of the model's tensors must be there, and no other (see `drop_repeated`).
    """
    state: State = {}
    for module, theirs in _modules(family, head).items():
        for name in native:
            their_module, layer, parameter = _split(name)
            names = [_join(part, layer, parameter) for part in theirs]
            if their_module == theirs[0] and native.keys() >= set(names):
                parts = [native[part] for part in names]
                whole = torch.cat(parts) if len(parts) > 1 else parts[0].contiguous()
                state[_join(module, layer, parameter)] = whole
    return state


def drop_repeated(native: Mapping[str, Tensor], family: Family, head: str) -> State:
    """``native`` without what files of transformers may hold beside the model itself.

    Raises:
        UserError: a tensor that ought to be tied to another differs from it.
    """
    bare = family.prefix if head == "encoder" else ""
    native = {_present_name(name).removeprefix(bare): tensor for name, tensor in native.items()}
    unused = tuple(name.removeprefix(bare) for name in family.unused)
    read = {module for theirs in _modules(family, head).values() for module in theirs}
    kept: State = {}
    for name, tensor in native.items():
        other = family.tied.get(name, name)
        if other != name and other in native:
            if not torch.equal(tensor, native[other]):
                raise UserError(f"the tensor {name} differs from {other}; only tied ones are known")
        elif _split(name)[0] in read or not name.startswith(unused):
            kept[other] = tensor
    return kept


def _modules(family: Family, head: str) -> dict[str, tuple[str, ...]]:
    bare = family.prefix if head == "encoder" else ""
    modules = family.modules | family.heads[head].modules
    return {
        ours: tuple(t.removeprefix(bare) for t in ([theirs] if isinstance(theirs, str) else theirs))
        for ours, theirs in modules.items()
    }


def _present_name(name: str) -> str:
    """Norms in the first BERT files have TensorFlow's names."""
    module, _, parameter = name.rpartition(".")
    return f"{module}.{_OLD_PARAMETERS.get(parameter, parameter)}" if module else name


def _split(name: str) -> tuple[str, str, str]:
    """`a.layers.3.b.weight` → (`a.layers.*.b`, `3`, `weight`)."""
    module, _, parameter = name.rpartition(".")
    layer = re.search(r"\.(\d+)\.", module)
    if layer is None:
        return module, "", parameter
    return f"{module[: layer.start(1)]}*{module[layer.end(1) :]}", layer[1], parameter


def _join(module: str, layer: str, parameter: str) -> str:
    return f"{module.replace('*', layer)}.{parameter}"
