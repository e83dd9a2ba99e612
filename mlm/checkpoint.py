"""Model folders: save, read, verify.

    config.json  model.safetensors  tokenizer.json  tokenizer_config.json  README.md

A folder is in the layout of the class of transformers that `mlm.huggingface.native_class` names;
where there is none it holds our own names, with `"model_type": "mlm"`. Either way, reading one
imports nothing that it names and unpickles nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from mlm.data.tokenizer import load_tokenizer, save_tokenizer, special_ids, tokenizer_hash
from mlm.errors import UserError, look_up
from mlm.files import atomic_folder
from mlm.huggingface import (
    FAMILIES,
    State,
    drop_repeated,
    from_native,
    native_class,
    nearest_family,
    to_native,
)
from mlm.huggingface_config import checked, read_config, read_labels, write_config
from mlm.model.config import EncoderConfig
from mlm.model.encoder import Encoder
from mlm.model.heads import MaskedLanguageModel

_SHA256 = "mlm_sha256"
_TOKENIZER = "mlm_tokenizer_sha256"

# head: what the Hub calls the task
_PIPELINES = {
    "masked_lm": "fill-mask",
    "sequence_classification": "text-classification",
    "token_classification": "token-classification",
}


@dataclass(frozen=True)
class ModelFolder:
    """What a model folder holds, checked and in our names."""

    directory: Path
    """Where it was read from."""
    config: EncoderConfig
    """The encoder's; its special ids are the tokenizer's."""
    head: str
    """`masked_lm`, `sequence_classification`, `token_classification` or a task's own."""
    state: State
    """{name: tensor} of encoder and head, on the CPU, in the precision of the file."""
    tokenizer: Tokenizer
    """Without truncation and padding."""
    info: dict[str, Any]
    """What stands under "mlm": all that transformers has no key for; `pooling` is always there
    where the head reads one vector a text."""
    labels: list[str] | None
    """The names of a classifier's outputs, in their order."""


def save_folder(
    directory: str | Path,
    *,
    config: EncoderConfig,
    head: str,
    state: Mapping[str, Tensor],
    tokenizer: Tokenizer,
    info: Mapping[str, Any],
    labels: Sequence[str] | None = None,
    card: str = "",
) -> None:
    """Write a model folder, whole or not at all; a model folder that stands there is replaced.

    Args:
        directory: the folder.
        config: the encoder's.
        head: `masked_lm`, `sequence_classification`, `token_classification`, or a task's own.
        state: {our name: tensor} of encoder and head; saved in the precision they have.
        tokenizer: saved beside the weights.
        info: plain values for "mlm" in config.json; `pooling` and `problem_type` are read here.
        labels: the names of a classifier's outputs, in their order.
        card: Markdown for README.md, under the YAML front matter that is written here.

    Raises:
        UserError: ``directory`` holds something other than a model folder, or the tensors or the
            tokenizer do not fit ``config``.
    """
    directory = Path(directory)
    if directory.exists() and not _is_replaceable(directory):
        raise UserError(f"{directory}: holds something other than a model; choose another place")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    pooling = info.get("pooling")
    native = native_class(config, head, pooling)
    if labels is None and "head.classifier.bias" in tensors:
        labels = [f"LABEL_{index}" for index in range(len(tensors["head.classifier.bias"]))]
    _check_tensors(tensors, _expected(config, head, labels, native.name is not None), directory)
    _check_vocabulary(tokenizer, config, directory)
    values: dict[str, Any]
    if native.name is not None:
        values = write_config(config, head, labels, pooling)
        tensors = to_native(tensors, nearest_family(config), head)
    else:
        values = {"model_type": "mlm", "head": head, **config.to_dict()}
        if labels is not None:
            values["id2label"] = {str(index): label for index, label in enumerate(labels)}
    if head == "sequence_classification":
        values["problem_type"] = info.get("problem_type", "single_label_classification")
    values["dtype"] = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    values["mlm"] = dict(info)
    metadata = {
        "format": "pt",
        _SHA256: _digest(tensors),
        _TOKENIZER: tokenizer_hash(tokenizer),
    }
    with atomic_folder(directory) as draft:
        save_file(tensors, draft / "model.safetensors", metadata)
        save_tokenizer(tokenizer, draft, config.max_position_embeddings, config.type_vocab_size > 0)
        text = json.dumps(values, indent=2, ensure_ascii=False)
        (draft / "config.json").write_text(text + "\n", encoding="utf-8")
        (draft / "README.md").write_text(_card(card, head, native.name), encoding="utf-8")


def read_folder(directory: str | Path) -> ModelFolder:
    """Read and check a model folder: ours, or one that transformers saved.

    Raises:
        UserError: anything missing, damaged or not supported, naming file and key or tensor.
    """
    directory = Path(directory)
    _refuse_what_is_no_model(directory)
    path = directory / "config.json"
    values = _read_json(path)
    info = values.get("mlm", {})
    if not isinstance(info, dict):
        raise UserError(f"{path}: mlm: is not an object with named values")
    tokenizer = load_tokenizer(directory)
    family = None
    try:
        if values.get("model_type") == "mlm":
            config, head, labels = _read_own(values)
        else:
            family = look_up(FAMILIES, str(values.get("model_type")), "model_type")
            config, head, labels, pooling = read_config(values, family)
            info = info | ({"pooling": pooling} if pooling else {})
        expected = _expected(config, head, labels, family is not None)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    special = special_ids(tokenizer)
    config = config.replace(
        pad_token_id=special.pad,
        cls_token_id=special.cls,
        sep_token_id=special.sep,
        mask_token_id=special.mask,
    )
    _check_vocabulary(tokenizer, config, directory)
    weights = directory / "model.safetensors"
    tensors, metadata = _read_tensors(weights)
    if metadata.get(_TOKENIZER, tokenizer_hash(tokenizer)) != tokenizer_hash(tokenizer):
        raise UserError(f"{directory}/tokenizer.json: is not the tokenizer of this model")
    if family is None:
        _check_tensors(tensors, expected, weights)
    else:
        try:
            tensors = drop_repeated(tensors, family, head)
        except UserError as error:
            raise UserError(f"{weights}: {error}") from None
        _check_tensors(tensors, to_native(expected, family, head), weights)
        tensors = from_native(tensors, family, head)
    return ModelFolder(directory, config, head, tensors, tokenizer, info, labels)


def load_masked_lm(directory: str | Path) -> MaskedLanguageModel:
    """The masked language model in ``directory``, in fp32, in eval mode.

    Raises:
        UserError: as `read_folder`, or a model with another head.
    """
    return build_masked_lm(read_folder(directory))


def build_masked_lm(folder: ModelFolder) -> MaskedLanguageModel:
    """The masked language model that ``folder`` holds, in fp32, in eval mode.

    Raises:
        UserError: a model with another head.
    """
    if folder.head != "masked_lm":
        raise UserError(
            f"{folder.directory}: is a {folder.head.replace('_', ' ')} model; "
            f"name a pretrained one, whose head fills in masked tokens"
        )
    model = MaskedLanguageModel(folder.config)
    model.load_state_dict(folder.state)
    return model.eval()


def build_encoder(folder: ModelFolder) -> Encoder:
    """The encoder that ``folder`` holds, whatever its head, in fp32, in eval mode."""
    encoder = Encoder(folder.config)
    encoder.load_state_dict(
        {
            name.removeprefix("encoder."): tensor
            for name, tensor in folder.state.items()
            if name.startswith("encoder.")
        }
    )
    return encoder.eval()


def _is_replaceable(directory: Path) -> bool:
    if not directory.is_dir():
        return False
    names = {path.name for path in directory.iterdir()}
    return not names or {"config.json", "model.safetensors"} <= names


def _refuse_what_is_no_model(directory: Path) -> None:
    if not directory.is_dir():
        raise UserError(f"{directory}: no such model folder")
    if not (directory / "config.json").is_file():
        inner = directory / "model"
        hint = f"; did you mean {inner}?" if (inner / "config.json").is_file() else ""
        raise UserError(f"{directory}: no model folder, it has no config.json{hint}")
    if (directory / "model.safetensors").is_file():
        return
    others = [p.name for p in directory.iterdir() if p.suffix in {".bin", ".pt", ".pth", ".ckpt"}]
    if (directory / "model.safetensors.index.json").is_file():
        why = "the weights are in several files; save them as one, with a larger max_shard_size"
    elif others:
        why = f"{min(others)} is a pickle, which is never loaded; convert it to model.safetensors"
    else:
        why = "no model.safetensors in it"
    raise UserError(f"{directory}: {why}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged, not JSON ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: damaged, not an object with named values")
    return values


def _read_own(values: Mapping[str, Any]) -> tuple[EncoderConfig, str, list[str] | None]:
    known = EncoderConfig().to_dict()
    for name in known:
        if name not in values:
            raise UserError(f"{name} is missing")
    config = EncoderConfig(**{name: checked(name, values[name]) for name in known})
    head = values.get("head")
    if not isinstance(head, str):
        raise UserError(f"head: {head!r} is not a name")
    return config, head, read_labels(values) if "id2label" in values else None


def _read_tensors(path: Path) -> tuple[State, dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: damaged ({error})") from None
    if _SHA256 in metadata and metadata[_SHA256] != _digest(tensors):
        raise UserError(f"{path}: damaged, it does not match its checksum; copy it again")
    return tensors, metadata


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """A sha256 over names, kinds, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _expected(
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
            for name, shape in shapes.items():
                module, _, parameter = name.rpartition(".")
                biased = parameter == "weight" or module == "head.classifier" or config.bias
                if module in modules and biased:
                    tensors[name] = torch.empty(shape)
    return tensors


def _check_tensors(found: State, expected: State, path: Path) -> None:
    for name, tensor in expected.items():
        if name not in found:
            raise UserError(f"{path}: the tensor {name} is missing")
        if found[name].shape != tensor.shape:
            raise UserError(
                f"{path}: the tensor {name} is {list(found[name].shape)}, "
                f"where config.json wants {list(tensor.shape)}"
            )
    whole = any(not name.startswith("encoder.") for name in expected)
    for name in found:
        if name not in expected and (whole or name.startswith("encoder.")):
            raise UserError(f"{path}: the tensor {name} has no place in the model of config.json")


def _check_vocabulary(tokenizer: Tokenizer, config: EncoderConfig, directory: Path) -> None:
    ids = 1 + max(tokenizer.get_vocab().values())
    if ids > config.vocab_size:
        raise UserError(
            f"{directory}/tokenizer.json: has {ids} tokens, but the model's embedding only "
            f"{config.vocab_size} rows; this tokenizer belongs to another model"
        )


def _card(card: str, head: str, native: str | None) -> str:
    """README.md: what the Hub reads, then ``card``."""
    if card.startswith("---"):
        return card
    lines = ["---", "tags:", "- mlm"]
    if native is not None:
        lines.append("library_name: transformers")
    if head in _PIPELINES:
        lines.append(f"pipeline_tag: {_PIPELINES[head]}")
    body = card.strip() or f"# {native or 'An encoder'}\n\nTrained with mlm."
    return "\n".join([*lines, "---", "", body, ""])
