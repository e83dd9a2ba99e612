"""Where a model is: a folder here, or one on the Hugging Face Hub, fetched once and kept."""

from __future__ import annotations

import re
from pathlib import Path

from mlm.errors import UserError

# Of a repository, only what a model folder needs.
_FILES = ("*.json",)
# The first of these that there is.
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(@[\w./-]+)?")


def model_directory(source: str | Path, weights: bool = True) -> Path:
    """The folder that ``source`` names.

    Args:
        source: a folder, or a model's name on the Hub: ``NAME``, ``OWNER/NAME``, and a branch, tag
            or commit after an ``@``.
        weights: whether its weights are wanted too, or the tokenizer alone.

    Raises:
        UserError: neither; or the Hub cannot be reached and the model was never fetched before.
    """
    path, name = Path(source), str(source)
    if path.exists():
        return path
    # `runs/modle` is a slip of the pen where there is a folder `runs`.
    if not _ID.fullmatch(name) or (len(path.parts) > 1 and Path(path.parts[0]).exists()):
        raise UserError(f"{source}: no such model folder")
    name, _, revision = name.partition("@")
    return _fetch(name, revision, _WEIGHTS if weights else ())


def _fetch(name: str, revision: str, weights: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = revision or None
    try:
        folder = Path(snapshot_download(name, revision=at, allow_patterns=list(_FILES)))
        for pattern in weights:
            snapshot_download(name, revision=at, allow_patterns=[pattern])
            if any(folder.glob(pattern)):
                break
    except GatedRepoError:
        why = "the Hub asks for its terms to be accepted first, and for `hf auth login`"
    except RevisionNotFoundError:
        why = f"has no revision {revision!r} on the Hub"
    except RepositoryNotFoundError:
        why = "no such folder, and no such model on the Hub that you may read"
    except Exception:  # not there, or what a connection raises, of httpx and of many kinds
        why = "no such folder, and the Hub could not be reached or has no such model; not cached"
    else:
        return folder
    raise UserError(f"{name}: {why}")
