"""A model of the Hugging Face world, checked and written as a model folder of ours."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlm.checkpoint import read_folder, save_folder
from mlm.errors import UserError
from mlm.huggingface import native_class
from mlm.sentence_vectors import sentence_vectors


def import_model(source: str | Path, output: str | Path) -> dict[str, Any]:
    """Read ``source``, all of it, and write it to ``output``; the tensors stay as they are.

    Args:
        source: a folder, or a name on the Hugging Face Hub.
        output: a place where nothing is yet.

    Returns:
        What was read, JSON-ready.

    Raises:
        UserError: ``output`` is there, or as `mlm.checkpoint.read_folder`.
    """
    output = Path(output)
    if output.exists():
        raise UserError(f"{output}: is there already; choose another --output")
    folder = read_folder(source)
    # A model's name on the Hub, or of a folder the last part: where it lies is nobody's business.
    name = Path(source).resolve().name if Path(source).exists() else str(source)
    info = {**folder.info, "source": name}
    if (folder.directory / "modules.json").is_file():
        info["sentence_vectors"] = asdict(sentence_vectors(folder.directory, folder.info))
    save_folder(
        output,
        config=folder.config,
        head=folder.head,
        state=folder.state,
        tokenizer=folder.tokenizer,
        info=info,
        labels=folder.labels,
        card=f"Imported with mlm from {name}.",
    )
    parameters = sum(tensor.numel() for tensor in folder.state.values())
    return {
        "output": str(output),
        "class": native_class(
            folder.config, folder.head, info.get("pooling"), info.get("layers", 1)
        ).name,
        "layers": folder.config.num_hidden_layers,
        "hidden_size": folder.config.hidden_size,
        "vocab_size": folder.config.vocab_size,
        "positions": folder.config.max_position_embeddings,
        "parameters": parameters,
        "dtype": str(next(iter(folder.state.values())).dtype).removeprefix("torch."),
        **({"labels": folder.labels} if folder.labels else {}),
        **({"sentence_vectors": info["sentence_vectors"]} if "sentence_vectors" in info else {}),
    }
