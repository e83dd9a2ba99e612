"""Folders of adapters: what a run has learnt, without the model that it learnt on.

    adapter_config.json  adapter_model.safetensors

Both are in the form of PEFT (https://github.com/huggingface/peft), which puts them on the base that
transformers loads, where the model has a class there: stacked weights are taken apart, and the head
is among `modules_to_save`. Else the names are our own. What PEFT has no place for, such as the
base's checksum and the task, is a JSON object under "mlm" in the metadata of the weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mlm.errors import UserError
from mlm.files import atomic_folder
from mlm.huggingface import (
    State,
    from_native,
    native_class,
    native_modules,
    nearest_family,
    to_native,
)
from mlm.model.config import EncoderConfig
from mlm.model.encoder import Encoder
from mlm.weights import (
    SHA256,
    check_finite,
    check_tensors,
    digest,
    expected_tensors,
    read_json,
    read_tensors,
)

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_MLM = "mlm"
# What PEFT calls the kinds of models.
_TASK_TYPES = {
    "sequence_classification": "SEQ_CLS",
    "token_classification": "TOKEN_CLS",
    "question_answering": "QUESTION_ANS",
}


@dataclass(frozen=True)
class About:
    """What an adapter is, beside its tensors."""

    base: str
    """The checksum of the encoder that it belongs to, see `base_digest`."""
    rank: int
    alpha: float
    targets: list[str]
    """Our names of the layers in the encoder: `layers.0.mixer.qkv`."""
    head: str
    """One of `mlm.huggingface.HEADS`, or a task's own."""
    info: dict[str, Any]
    """As `ModelFolder.info`."""
    labels: list[str] | None
    """As `ModelFolder.labels`."""


@dataclass(frozen=True)
class Adapter:
    """What an adapter's folder holds, checked and in our names."""

    about: About
    state: State
    """{name: tensor} of all A and B, and of all that stands on the encoder."""


def base_digest(state: Mapping[str, Tensor]) -> str:
    """A checksum of the encoder among a model folder's tensors, whatever head is on it."""
    return digest({name: t for name, t in state.items() if name.startswith("encoder.")})


def save_adapter(
    directory: Path, adapter: Adapter, config: EncoderConfig, base: str, dropout: float = 0.0
) -> None:
    """Write an adapter's folder, whole or not at all, in place of one that stands there.

    Args:
        directory: the folder.
        adapter: what it holds.
        config: of the base's encoder.
        base: where the base was read from, for people and for PEFT.
        dropout: of the adapter's input, for PEFT.
    """
    about = adapter.about
    names = _Names(config, about)
    tensors = {name: t.detach().cpu().clone() for name, t in names.written(adapter.state).items()}
    learnt = {name.removeprefix(_PREFIX).rpartition(".")[0] for name in tensors}
    theirs = [their for target in about.targets for their in names.modules(target)]
    saved = sorted(m for m in learnt if not m.endswith((".lora_A", ".lora_B")))
    values = {
        "peft_type": "LORA",
        "task_type": _TASK_TYPES.get(about.head),
        "base_model_name_or_path": base,
        **_decisive(about),
        "lora_dropout": dropout,
        "bias": "none",
        "target_modules": theirs,
        "modules_to_save": saved,
        "inference_mode": True,
    }
    metadata = {"format": "pt", SHA256: digest(tensors), _MLM: json.dumps(asdict(about))}
    with atomic_folder(directory) as draft:
        save_file(tensors, draft / WEIGHTS, metadata)
        (draft / CONFIG).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def read_adapter(directory: str | Path, config: EncoderConfig, base: str) -> Adapter:
    """Read and check an adapter's folder.

    Args:
        directory: the folder.
        config: of the encoder that the adapter is put on.
        base: that encoder's `base_digest`.

    Raises:
        UserError: nothing there, anything damaged or that does not fit, or another base.
    """
    directory = Path(directory)
    for name in (CONFIG, WEIGHTS):
        if not (directory / name).is_file():
            raise UserError(f"{directory}: no adapter's folder, it has no {name}")
    path = directory / WEIGHTS
    values, (tensors, metadata) = read_json(directory / CONFIG), read_tensors(path)
    try:
        about = _read_about(metadata)
    except (ValueError, RecursionError, TypeError) as error:
        raise UserError(f"{path}: no adapter that mlm has saved ({error})") from None
    if metadata.get(SHA256) != digest(tensors):
        raise UserError(f"{path}: damaged, it does not match its checksum; copy it again")
    for key, value in _decisive(about).items():
        if values.get(key) != value:
            raise UserError(
                f"{directory / CONFIG}: {key} is {values.get(key)!r}, but these weights were saved "
                f"with {value!r}; restore it"
            )
    if about.base != base:
        raise UserError(
            f"{directory}: was trained on another base (its checksum differs), on "
            f"{values.get('base_model_name_or_path')!r}"
        )
    names = _Names(config, about)
    expected = names.written(_expected(config, about, path) | _own_head(about, tensors, names))
    check_tensors(tensors, expected, path)
    check_finite(tensors, path)
    return Adapter(about, names.read(tensors, path))


def _decisive(about: About) -> dict[str, Any]:
    """What of PEFT's configuration decides the numbers."""
    return {"r": about.rank, "lora_alpha": about.alpha}


class _Names:
    """Our names of an adapter's tensors and those in its file."""

    def __init__(self, config: EncoderConfig, about: About) -> None:
        info, self.targets, self.head = about.info, about.targets, about.head
        native = native_class(config, about.head, info.get("pooling"), info.get("layers", 1))
        self.native = native.name is not None
        self.family = nearest_family(config)

    def modules(self, target: str) -> tuple[str, ...]:
        """A target's name in the file: several where our weight stacks theirs."""
        name = f"encoder.{target}"
        return native_modules(name, self.family, self.head) if self.native else (name,)

    def written(self, state: Mapping[str, Tensor]) -> State:
        """Under the names of the file; stacked weights that share one A each get it."""
        head = _without_encoder(state)
        found = to_native(head, self.family, self.head) if self.native else head
        for target in self.targets:
            thin, wide = (state[f"encoder.{target}.lora_{x}"] for x in "AB")
            theirs = self.modules(target)
            for name, part in zip(theirs, wide.chunk(len(theirs)), strict=True):
                found |= {f"{name}.lora_A.weight": thin, f"{name}.lora_B.weight": part}
        return {f"{_PREFIX}{name}": tensor for name, tensor in found.items()}

    def read(self, tensors: Mapping[str, Tensor], path: Path) -> State:
        """What `written` gave, undone."""
        found = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}
        state: State = {}
        for target in self.targets:
            theirs = self.modules(target)
            thin = [found.pop(f"{name}.lora_A.weight") for name in theirs]
            wide = [found.pop(f"{name}.lora_B.weight") for name in theirs]
            if not all(torch.equal(thin[0], other) for other in thin):
                raise UserError(f"{path}: {', '.join(theirs)} have A of their own; here they share")
            state |= {
                f"encoder.{target}.lora_A": thin[0],
                f"encoder.{target}.lora_B": torch.cat(wide),
            }
        return state | (from_native(found, self.family, self.head) if self.native else found)


def _expected(config: EncoderConfig, about: About, path: Path) -> State:
    """Tensors of the right shapes, on the `meta` device; of a task's own head none are known."""
    info = about.info
    native = native_class(config, about.head, info.get("pooling"), info.get("layers", 1))
    whole = expected_tensors(config, about.head, about.labels, native.name is not None)
    state = _without_encoder(whole)
    with torch.device("meta"):
        encoder = Encoder(config)
        linear = {n: m for n, m in encoder.named_modules() if isinstance(m, nn.Linear)}
        for target in about.targets:
            if target not in linear:
                raise UserError(f"{path}: names a layer {target!r}, which this model has not")
            state[f"encoder.{target}.lora_A"] = torch.empty(about.rank, linear[target].in_features)
            state[f"encoder.{target}.lora_B"] = torch.empty(linear[target].out_features, about.rank)
    return state


def _own_head(about: About, tensors: Mapping[str, Tensor], names: _Names) -> State:
    """The tensors of a head that only its task knows, which checks them."""
    if names.native:
        return {}
    found = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}
    return _without_encoder(found)


def _without_encoder(state: Mapping[str, Tensor]) -> State:
    return {name: t for name, t in state.items() if not name.startswith("encoder.")}


def _read_about(metadata: Mapping[str, str]) -> About:
    """What `save_adapter` has written; anything else is a ValueError or a TypeError."""
    values = json.loads(metadata.get(_MLM, "null"))
    if not isinstance(values, dict) or values.keys() != {f.name for f in fields(About)}:
        raise ValueError("its metadata say nothing of a base")
    about = About(**values)
    fits = {
        "base": isinstance(about.base, str),
        "rank": type(about.rank) is int and about.rank >= 1,
        "alpha": isinstance(about.alpha, float) and math.isfinite(about.alpha),
        "targets": _are_texts(about.targets) and len(about.targets) > 0,
        "head": isinstance(about.head, str),
        "info": isinstance(about.info, dict),
        "labels": about.labels is None or _are_texts(about.labels),
    }
    for name, is_so in fits.items():
        if not is_so:
            raise ValueError(f"{name} is {values[name]!r}")
    return about


def _are_texts(value: object) -> bool:
    return isinstance(value, Sequence) and all(isinstance(x, str) for x in value)
