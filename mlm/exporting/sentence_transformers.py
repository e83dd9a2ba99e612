"""A folder for sentence-transformers, and for the servers that read its files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mlm.checkpoint import ModelFolder, save_folder
from mlm.errors import UserError
from mlm.files import atomic_folder
from mlm.huggingface import native_class
from mlm.sentence_vectors import sentence_vectors, write_sentence_vectors


def export_sentence_transformers(
    folder: ModelFolder,
    output: Path,
    pooling: str | None = None,
    normalize: bool | None = None,
) -> str:
    """Write the encoder of ``folder``, and how its vectors become a text's.

    Args:
        folder: any model whose encoder has a class in transformers.
        output: where to.
        pooling: `mean`, `cls` or `max`; None is what the folder says, else the mean.
        normalize: whether vectors have length 1; None is what the folder says, else no.

    Returns:
        The class of the encoder in transformers.

    Raises:
        UserError: there is no such class.
    """
    native = native_class(folder.config, "encoder")
    if native.name is None:
        raise UserError(
            f"{folder.directory}: no class of transformers is this encoder ({native.reason}), so "
            "sentence-transformers cannot open it; choose --format onnx"
        )
    how = sentence_vectors(folder.directory, folder.info)
    positions = folder.config.max_position_embeddings
    how = replace(
        how,
        pooling=how.pooling if pooling is None else pooling,
        normalize=how.normalize if normalize is None else normalize,
        max_length=min(how.max_length or positions, positions),
    )
    keeps_head = folder.head == "encoder"
    state = {n: t for n, t in folder.state.items() if keeps_head or n.startswith("encoder.")}
    with atomic_folder(output) as draft:
        save_folder(
            draft,
            config=folder.config,
            head="encoder",
            state=state,
            tokenizer=folder.tokenizer,
            info={},
            card=(
                f"Sentence vectors ({how.pooling} of the tokens' vectors) of the encoder in "
                f"{folder.directory.name}."
            ),
        )
        write_sentence_vectors(draft, how, folder.config.hidden_size)
    return native.name
