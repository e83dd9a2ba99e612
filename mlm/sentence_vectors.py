"""How an encoder's vectors become a text's: read from, and written as, sentence-transformers files.

    modules.json  1_Pooling/config.json  sentence_bert_config.json

Imported model folders keep it under "mlm" in config.json, as ``sentence_vectors``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlm.errors import UserError
from mlm.model.pooling import POOLINGS
from mlm.weights import read_json

# pooling: the older files' switch for it
_SWITCHES = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}

# file: the key of the longest text; the first four by the encoder's kind, in older versions
_LENGTHS = {
    "sentence_bert_config.json": "max_seq_length",
    "sentence_roberta_config.json": "max_seq_length",
    "sentence_distilbert_config.json": "max_seq_length",
    "sentence_xlm-roberta_config.json": "max_seq_length",
    "tokenizer_config.json": "model_max_length",
}
_NO_LENGTH = int(1e30)  # what transformers writes where there is none


@dataclass(frozen=True)
class SentenceVectors:
    """From a vector a token to one a text."""

    pooling: str = "mean"
    """A name in `mlm.model.pooling.POOLINGS`."""
    normalize: bool = False
    """Scale every vector to length 1."""
    max_length: int | None = None
    """Longer texts are cut to so many tokens; None is as many as the model has positions."""


def sentence_vectors(directory: Path, info: Mapping[str, Any]) -> SentenceVectors:
    """What a model folder says, in our file or in those of sentence-transformers; else a mean.

    Args:
        directory: the model folder.
        info: what stands under "mlm" in its config.json.

    Raises:
        UserError: damaged files, or a step that is not supported, by its name.
    """
    if info.get("sentence_vectors") is not None:
        try:
            return kept_vectors(info)
        except UserError as error:
            raise UserError(f"{directory}/config.json: {error}") from None
    if (directory / "modules.json").is_file():
        return _read(directory)
    return SentenceVectors()


def kept_vectors(info: Mapping[str, Any]) -> SentenceVectors:
    """What a model folder of ours keeps under "mlm"; the defaults where that is nothing.

    Raises:
        UserError: a key that there is not, or a value of another kind.
    """
    kept = info.get("sentence_vectors")
    try:
        found = SentenceVectors(**(kept or {}))
    except TypeError:
        raise UserError("mlm.sentence_vectors: damaged") from None
    pooling, length = found.pooling, found.max_length
    if not isinstance(pooling, str) or pooling not in POOLINGS:
        raise UserError(
            f"mlm.sentence_vectors.pooling: {pooling!r} is none of {', '.join(POOLINGS)}"
        )
    if type(found.normalize) is not bool:
        raise UserError(f"mlm.sentence_vectors.normalize: {found.normalize!r} is not true or false")
    if length is not None and (type(length) is not int or length < 2):
        raise UserError(f"mlm.sentence_vectors.max_length: {length!r} is not a number of tokens")
    return found


def _read(directory: Path) -> SentenceVectors:
    found: dict[str, Any] = {"normalize": False}
    for path, kind in _modules(directory / "modules.json"):
        if kind == "Pooling":
            found["pooling"] = _read_pooling(directory / path / "config.json")
        elif kind == "Normalize":
            found["normalize"] = True
        elif kind != "Transformer":
            raise UserError(f"{directory}/modules.json: a {kind} step is not supported")
    more = directory / "config_sentence_transformers.json"
    if more.is_file() and (prompt := read_json(more).get("default_prompt_name")) is not None:
        raise UserError(
            f"{more}: default_prompt_name {prompt!r}: no text is put before others here"
        )
    return SentenceVectors(max_length=_read_length(directory), **found)


def _read_length(directory: Path) -> int | None:
    """Of sentence-transformers' own file, or of the tokenizer's, where newer versions have it."""
    for file, key in _LENGTHS.items():
        settings = directory / file
        length = read_json(settings).get(key) if settings.is_file() else None
        if length is None or length == _NO_LENGTH:
            continue
        if type(length) is not int or length < 2:
            raise UserError(f"{settings}: {key} {length!r} is not a number of tokens")
        return length
    return None


def _modules(path: Path) -> list[tuple[str, str]]:
    """(folder, kind) of each step; the kind is the last part of a class's name."""
    try:
        steps = json.loads(path.read_text(encoding="utf-8"))
        found = [(str(step["path"]), str(step["type"]).rpartition(".")[2]) for step in steps]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: damaged ({error!r})") from None
    for folder, _ in found:
        if folder and Path(folder).name != folder:
            raise UserError(f"{path}: names {folder}, which is not in the folder")
    return found


def _read_pooling(path: Path) -> str:
    if not path.is_file():
        raise UserError(f"{path}: no such file, but modules.json names it")
    values = read_json(path)
    newer = values.get("pooling_mode")
    if newer:
        modes = newer if isinstance(newer, list) else [newer]
    else:
        modes = [mode for mode, key in _SWITCHES.items() if values.get(key)]
    if len(modes) != 1 or not isinstance(modes[0], str) or modes[0] not in POOLINGS:
        raise UserError(f"{path}: pooling {modes} is not supported, only {', '.join(POOLINGS)}")
    return str(modes[0])


def write_sentence_vectors(directory: Path, vectors: SentenceVectors, width: int) -> None:
    """Write the files of sentence-transformers, with the older keys that servers still read.

    Args:
        directory: of the model, where its other files are.
        vectors: what to write.
        width: numbers in a vector.
    """
    kinds = {"": "Transformer", "1_Pooling": "Pooling"}
    if vectors.normalize:
        kinds["2_Normalize"] = "Normalize"
    steps = [
        {
            "idx": index,
            "name": str(index),
            "path": path,
            "type": f"sentence_transformers.models.{kind}",
        }
        for index, (path, kind) in enumerate(kinds.items())
    ]
    pooling: dict[str, Any] = {
        "word_embedding_dimension": width,
        "embedding_dimension": width,
        "pooling_mode": vectors.pooling,
    } | {key: mode == vectors.pooling for mode, key in _SWITCHES.items()}
    files: dict[str, Any] = {
        "modules.json": steps,
        "1_Pooling/config.json": pooling,
        "sentence_bert_config.json": {
            "max_seq_length": vectors.max_length,
            "do_lower_case": False,
        },
        "config_sentence_transformers.json": {
            "prompts": {},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    }
    for name, values in files.items():
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    if vectors.normalize:
        (directory / "2_Normalize").mkdir(exist_ok=True)
