"""Model folders: save, read, verify.

    config.json  model.safetensors  tokenizer.json  tokenizer_config.json  README.md

A folder is in the layout of the class of transformers that `mlm.huggingface.native_class` names;
where there is none it holds our own names, with `"model_type": "mlm"`. Either way, reading one
imports nothing that it names. What others saved is read too, see weights.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from mlm.console import say
from mlm.data.tokenizer import (
    frame_hash,
    load_tokenizer,
    save_tokenizer,
    special_ids,
    tokenizer_hash,
)
from mlm.errors import UserError, look_up
from mlm.files import atomic_folder
from mlm.hub import model_directory
from mlm.huggingface import (
    FAMILIES,
    Family,
    State,
    checked,
    drop_repeated,
    from_native,
    native_class,
    nearest_family,
    read_config,
    read_labels,
    to_native,
    write_config,
)
from mlm.model.config import EncoderConfig
from mlm.model.encoder import Encoder
from mlm.model.heads import MaskedLanguageModel
from mlm.weights import (
    SHA256,
    check_finite,
    check_tensors,
    digest,
    expected_tensors,
    read_json,
    read_weights,
)

# What the weights say of the files beside them, among their metadata.
_TOKENIZER = "mlm_tokenizer_sha256"
_FRAME = "mlm_frame_sha256"
_CONFIG = "mlm_config_sha256"
_ONE_OF_SEVERAL = "single_label_classification"

# head: what the Hub calls the task
_PIPELINES = {
    "masked_lm": "fill-mask",
    "sequence_classification": "text-classification",
    "token_classification": "token-classification",
    "question_answering": "question-answering",
    "multiple_choice": "multiple-choice",
    "encoder": "feature-extraction",
}


@dataclass(frozen=True)
class ModelFolder:
    """What a model folder holds, checked and in our names."""

    directory: Path
    """Where it was read from."""
    config: EncoderConfig
    """The encoder's; its special ids are the tokenizer's."""
    head: str
    """One of `mlm.huggingface.HEADS`, of which `encoder` is none, or a task's own."""
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
        head: one of `mlm.huggingface.HEADS`, or a task's own.
        state: {our name: tensor} of encoder and head; saved in the precision they have.
        tokenizer: saved beside the weights.
        info: plain values for "mlm" in config.json; `pooling`, `layers` and `problem_type` are read
            here.
        labels: the names of a classifier's outputs, in their order.
        card: Markdown for README.md, under the YAML front matter that is written here.

    Raises:
        UserError: ``directory`` holds something other than a model folder, or the tensors or the
            tokenizer do not fit ``config``.
    """
    directory = Path(directory)
    check_replaceable(directory)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    pooling = info.get("pooling")
    native = native_class(config, head, pooling, info.get("layers", 1))
    if labels is None and "head.classifier.bias" in tensors:
        labels = [f"LABEL_{index}" for index in range(len(tensors["head.classifier.bias"]))]
    expected = expected_tensors(config, head, labels, native.name is not None)
    if head == "encoder" and not _without_encoder(tensors):  # a pooler may be there, or not
        expected = {name: t for name, t in expected.items() if name.startswith("encoder.")}
    check_tensors(tensors, expected, directory)
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
        several = _ONE_OF_SEVERAL if labels is None or len(labels) > 1 else None
        if (problem := info.get("problem_type", several)) is not None:
            values["problem_type"] = problem
    values["dtype"] = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    values["mlm"] = dict(info)
    text = json.dumps(values, indent=2, ensure_ascii=False)
    said = _read_config(json.loads(text))  # which leaves out what the class has no key for
    metadata = {
        "format": "pt",
        SHA256: digest(tensors),
        _TOKENIZER: tokenizer_hash(tokenizer),
        _FRAME: frame_hash(tokenizer),
        _CONFIG: _config_hash(said),
    }
    with atomic_folder(directory) as draft:
        save_file(tensors, draft / "model.safetensors", metadata)
        save_tokenizer(tokenizer, draft, config.max_position_embeddings, config.type_vocab_size > 1)
        (draft / "config.json").write_text(text + "\n", encoding="utf-8")
        (draft / "README.md").write_text(_card(card, head, native.name), encoding="utf-8")


def read_folder(directory: str | Path) -> ModelFolder:
    """Read and check a model folder: ours, or one that transformers saved.

    Args:
        directory: the folder, or a model's name on the Hugging Face Hub (see hub.py).

    Raises:
        UserError: anything missing, damaged or not supported, naming file and key or tensor.
    """
    directory = model_directory(directory)
    _refuse_what_is_no_model(directory)
    values = read_json(directory / "config.json")
    tokenizer = load_tokenizer(directory)
    path, tensors, metadata = read_weights(directory)
    try:
        said = _read_config(values)
        if said.config.num_hidden_layers > len(tensors):  # or building them might never end
            raise UserError(f"num_hidden_layers: more than {path.name} has tensors")
        expected = expected_tensors(said.config, said.head, said.labels, said.family is not None)
        if metadata.get(_CONFIG, _config_hash(said)) != _config_hash(said):
            raise UserError("does not belong to these weights (its checksum differs); restore it")
    except UserError as error:
        raise UserError(f"{directory}/config.json: {error}") from None
    special = special_ids(tokenizer)
    config = said.config.replace(
        pad_token_id=special.pad,
        cls_token_id=special.cls,
        sep_token_id=special.sep,
        mask_token_id=special.mask,
    )
    _check_vocabulary(tokenizer, config, directory)
    for key, hashed in ((_TOKENIZER, tokenizer_hash), (_FRAME, frame_hash)):
        if metadata.get(key, found := hashed(tokenizer)) != found:
            raise UserError(f"{directory}/tokenizer.json: is not the tokenizer of this model")
    if said.family is None:
        check_tensors(tensors, expected, path)
        check_finite(tensors, path)
    else:
        tensors = _read_native(path, tensors, expected, said.family, said.head)
    return ModelFolder(directory, config, said.head, tensors, tokenizer, said.info, said.labels)


class _Said(NamedTuple):
    """What a config.json says."""

    config: EncoderConfig
    head: str
    labels: list[str] | None
    info: dict[str, Any]
    family: Family | None
    """None where the folder is in our own layout."""


def _read_config(values: Mapping[str, Any]) -> _Said:
    info = values.get("mlm", {})
    if not isinstance(info, dict):
        raise UserError("mlm: is not an object with named values")
    if values.get("model_type") == "mlm":
        config, head, labels = _read_own(values)
        return _Said(config, head, labels, info, None)
    family = look_up(FAMILIES, str(values.get("model_type")), "model_type")
    config, head, labels, pooling = read_config(values, family)
    info = info | ({"pooling": pooling} if pooling else {})
    if values.get("problem_type") not in (None, _ONE_OF_SEVERAL):
        info |= {"problem_type": values["problem_type"]}
    return _Said(config, head, labels, info, family)


def _config_hash(said: _Said) -> str:
    """A sha256 of what decides the numbers; the special ids are the tokenizer's to say."""
    decisive = {k: v for k, v in said.config.to_dict().items() if not k.endswith("_token_id")}
    decisive |= {"head": said.head, "pooling": said.info.get("pooling")}
    if (layers := said.info.get("layers", 1)) != 1:  # older folders name none
        decisive |= {"layers": layers}
    if "task" in said.info and (vectors := said.info.get("sentence_vectors")):  # what was trained
        decisive |= {"sentence_vectors": vectors}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def _read_native(path: Path, tensors: State, expected: State, family: Family, head: str) -> State:
    """``tensors`` of ``path`` under our names, all that are expected and no other."""
    try:
        tensors = drop_repeated(tensors, family, head)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    pooler = to_native(_without_encoder(expected), family, head)
    if head == "encoder" and not pooler.keys() & tensors.keys():
        expected = {name: t for name, t in expected.items() if name.startswith("encoder.")}
    check_tensors(tensors, to_native(expected, family, head), path)
    check_finite(tensors, path)
    return from_native(tensors, family, head)


def _without_encoder(state: State) -> State:
    return {name: t for name, t in state.items() if not name.startswith("encoder.")}


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
        bare = folder.head == "encoder"
        kind = "bare encoder" if bare else f"{folder.head.replace('_', ' ')} model"
        raise UserError(
            f"{folder.directory}: is a {kind}; "
            f"name a pretrained one, whose head fills in masked tokens"
        )
    model = MaskedLanguageModel(folder.config)
    model.load_state_dict(folder.state)
    return model.eval()


def start_masked_lm(folder: ModelFolder) -> MaskedLanguageModel:
    """A masked language model to train on: the folder's, or its encoder with a fresh head."""
    if folder.head == "masked_lm":
        return build_masked_lm(folder)
    say(f"{folder.directory} has no masked-LM head; a fresh one is put on its encoder")
    model = MaskedLanguageModel(folder.config)
    model.encoder.load_state_dict(build_encoder(folder).state_dict())
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


def check_replaceable(directory: Path) -> None:
    """Refuse a place for a model folder where something else stands, which would be lost.

    Raises:
        UserError: so; names what is in the way.
    """
    if not directory.exists():
        return
    found = sorted(directory.iterdir()) if directory.is_dir() else [directory]
    # A folder inside is somebody's work: checkpoints of a Trainer, a repository's history.
    in_the_way = [path for path in found if not path.is_file()]
    if not {"config.json", "model.safetensors"} <= {path.name for path in found}:
        in_the_way += found
    if in_the_way:
        raise UserError(
            f"{directory}: holds something other than a model ({in_the_way[0].name}); take that "
            "away, or choose another place"
        )


def _refuse_what_is_no_model(directory: Path) -> None:
    if not directory.is_dir():
        raise UserError(f"{directory}: no such model folder")
    if not (directory / "config.json").is_file():
        inner = directory / "model"
        hint = f"; did you mean {inner}?" if (inner / "config.json").is_file() else ""
        raise UserError(f"{directory}: no model folder, it has no config.json{hint}")


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
