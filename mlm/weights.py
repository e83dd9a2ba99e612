"""Files of tensors: found, read and checked. Nothing in them is ever run."""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mlm.errors import UserError
from mlm.huggingface import State, nearest_family
from mlm.model.config import EncoderConfig
from mlm.model.encoder import Encoder
from mlm.model.heads import MaskedLanguageModel

SHA256 = "mlm_sha256"
"""The key of the digest among a safetensors file's metadata."""

_KINDS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""What the weights of a model folder are called, what is looked for first at the beginning."""


class Weights(NamedTuple):
    """What `read_weights` found."""

    path: Path
    """The file, or the index of several."""
    tensors: State
    metadata: dict[str, str]


def read_weights(directory: Path) -> Weights:
    """All tensors of a model folder: in one file or several, safetensors or PyTorch's own.

    PyTorch's files are pickles; they are read by torch's unpickler for tensors and plain values
    alone, which runs nothing that a file names.

    Raises:
        UserError: no weights, or damaged ones.
    """
    path = next((directory / n for n in NAMES if (directory / n).is_file()), None)
    if path is None:
        raise UserError(f"{directory}: has no weights ({' or '.join(NAMES[::2])})")
    if path.suffix != ".json":
        tensors, metadata = read_tensors(path)
    else:
        tensors, metadata = {}, {}
        for shard in _shards(path):
            tensors |= read_tensors(directory / shard)[0]
        if missing := read_json(path)["weight_map"].keys() - tensors.keys():
            raise UserError(f"{path}: the tensor {min(missing)} is in none of the files it names")
    if SHA256 in metadata and metadata[SHA256] != digest(tensors):
        raise UserError(f"{path}: damaged, it does not match its checksum; copy it again")
    return Weights(path, tensors, metadata)


def _shards(index: Path) -> list[str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index}: damaged, it has no weight_map")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name or not (index.parent / name).is_file():
            raise UserError(f"{index}: names {name}, which is not in the folder")
    return names


def read_json(path: Path) -> dict[str, Any]:
    """An object of named values; a `UserError` where the file holds anything else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged, not JSON ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: damaged, not an object with named values")
    return values


def read_tensors(path: Path) -> tuple[State, dict[str, str]]:
    """The tensors and the metadata of one file.

    Raises:
        UserError: it is damaged.
    """
    _check_download(path)
    if path.suffix == ".bin":
        return _read_pickle(path), {}
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: damaged ({error})") from None


def _check_download(path: Path) -> None:
    """Refuse what the Hub's cache holds under the digest of other bytes.

    Large files are links there to blobs named by their sha256.
    """
    blob = path.resolve()
    if re.fullmatch("[0-9a-f]{64}", blob.name) is None:
        return
    with blob.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != blob.name:
        raise UserError(
            f"{path}: damaged, it does not match the Hub's checksum; delete {blob} and try again"
        )


def _read_pickle(path: Path) -> State:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        why = next((line for line in str(error).splitlines() if "Unsupported" in line), "")
        raise UserError(
            f"{path}: damaged, or a pickle that holds more than tensors, which is never loaded "
            f"{f'({why.strip()})' if why else ''}".rstrip()
        ) from None
    except Exception as error:  # a stream of nonsense makes the unpickler raise almost anything
        why = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{path}: damaged ({why})") from None
    if not isinstance(found, dict) or not all(map(_is_plain, found.values())):
        raise UserError(f"{path}: does not hold named tensors")
    return {str(name): tensor for name, tensor in found.items()}


def _is_plain(value: object) -> bool:
    """Whether it is a tensor with its numbers in memory: not sparse, not nested, not a promise."""
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not value.is_nested
    )


def digest(tensors: Mapping[str, Tensor]) -> str:
    """A sha256 over names, kinds, shapes and bytes."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def expected_tensors(
    config: EncoderConfig, head: str, labels: Sequence[str] | None, native: bool
) -> State:
    """Tensors of the right names and shapes, without memory (on the `meta` device).

    A head that is not native is a task's own business: only the encoder is expected then.
    """
    with torch.device("meta"):
        if head == "masked_lm":
            return dict(MaskedLanguageModel(config).state_dict())
        tensors = {f"encoder.{name}": t for name, t in Encoder(config).state_dict().items()}
        if native:
            width, count = config.hidden_size, len(labels or ())
            shapes = {
                "head.dense.weight": (width, width),
                "head.dense.bias": (width,),
                "head.norm.weight": (width,),
                "head.norm.bias": (width,),
                "head.classifier.weight": (count, width),
                "head.classifier.bias": (count,),
            }
            modules = nearest_family(config).heads[head].modules
            biased = config.bias or config.pooler != "transform"
            for name, shape in shapes.items():
                module, _, parameter = name.rpartition(".")
                there = parameter == "weight" or module == "head.classifier" or biased
                if module in modules and there:
                    tensors[name] = torch.empty(shape)
    return tensors


def check_tensors(found: State, expected: State, path: Path) -> None:
    """Refuse tensors that are missing, misshapen, of another kind or left over, by name.

    Raises:
        UserError: so.
    """
    for name, tensor in expected.items():
        if name not in found:
            raise UserError(f"{path}: the tensor {name} is missing")
        if found[name].shape != tensor.shape:
            raise UserError(
                f"{path}: the tensor {name} is {list(found[name].shape)}, "
                f"where config.json wants {list(tensor.shape)}"
            )
        if found[name].dtype not in _KINDS:
            kind = str(found[name].dtype).removeprefix("torch.")
            raise UserError(
                f"{path}: the tensor {name} holds {kind}, where weights are float32, bfloat16, "
                "float16 or float64"
            )
    whole = any(not name.startswith("encoder.") for name in expected)
    for name in found:
        if name not in expected and (whole or name.startswith("encoder.")):
            raise UserError(f"{path}: the tensor {name} has no place in the model of config.json")


def check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse weights that are no numbers, by name: every answer would be none either.

    Raises:
        UserError: so.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in _KINDS or not tensor.numel():  # a task's own head may hold those
            continue
        if not all(math.isfinite(end) for end in tensor.aminmax()):  # NaN comes through; no copy
            raise UserError(
                f"{path}: the tensor {name} holds NaN or infinity; train again, or take an "
                "earlier checkpoint"
            )
