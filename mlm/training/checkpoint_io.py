"""Training checkpoints as folders: a model folder, the training state beside it, a manifest.

step_00000080/model/         works with every command
              state.pt       optimizer, budget, loops: tensors and plain values only
              manifest.json  sha256 of every file
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import CheckpointIO
from tokenizers import Tokenizer
from torch import Tensor

from mlm.checkpoint import ModelFolder, read_folder
from mlm.data.tokenizer import tokenizer_hash
from mlm.errors import UserError
from mlm.files import atomic_folder, remove_folder, stays_inside
from mlm.model.config import EncoderConfig

_PREFIX = "model."
STEP = re.compile(r"step_\d+")
"""The name of a checkpoint's folder."""

# What a checkpoint is made of: none of it is read but as the manifest has it.
_PARTS = {"state.pt", "model/config.json", "model/model.safetensors", "model/tokenizer.json"}


class FolderCheckpointIO(CheckpointIO):
    """What Lightning saves and loads, in the layout above; nothing unsafe is ever unpickled."""

    def __init__(
        self,
        save_model: Callable[[Path, dict[str, Tensor]], None],
        check: Callable[[ModelFolder], None] = lambda folder: None,
    ) -> None:
        """
        Args:
            save_model: writes the model's weights, given by their own names, to a folder.
            check: refuses the model folder of a checkpoint that the run cannot go on from.
        """
        self.save_model, self.check = save_model, check

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write all of it or nothing; a link that stands there goes, what it points to stays."""
        if Path(path).is_symlink():
            Path(path).unlink()
        state = dict(checkpoint)
        weights = state.pop("state_dict")
        with atomic_folder(path) as draft:
            self.save_model(draft / "model", without_prefix(weights))
            torch.save(state, draft / "state.pt")
            (draft / "manifest.json").write_text(json.dumps(_digests(draft), indent=1))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read it back.

        Raises:
            UserError: a file is missing or damaged, or holds more than tensors and plain values, or
                it is of another model than the run's.
        """
        path = Path(path)
        verify_checkpoint(path)
        try:
            state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
            if not isinstance(state, dict):
                raise TypeError(f"{type(state).__name__} where named values are expected")
        except Exception as error:  # a stream of nonsense makes the unpickler raise almost anything
            raise UserError(
                f"{path / 'state.pt'}: cannot be read safely; resume from another checkpoint"
            ) from error
        folder = read_folder(path / "model")
        self.check(folder)
        state["state_dict"] = {_PREFIX + name: tensor for name, tensor in folder.state.items()}
        return state

    def remove_checkpoint(self, path: str | Path) -> None:
        """Take it away, so that half of it is never seen."""
        remove_folder(path)


def without_prefix(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The model's own entries of a Lightning module's state, by the model's own names."""
    return {
        name.removeprefix(_PREFIX): tensor
        for name, tensor in weights.items()
        if name.startswith(_PREFIX)
    }


def check_same_kind(
    folder: ModelFolder,
    config: EncoderConfig,
    tokenizer: Tokenizer,
    labels: Sequence[str] | None = None,
) -> None:
    """Refuse to go on from what tensors of equal shapes do not tell apart.

    Args:
        folder: of the checkpoint.
        config: the run's.
        tokenizer: the run's.
        labels: the run's; None does not compare them.

    Raises:
        UserError: the checkpoint is of another model, tokenizer or other labels.
    """
    kept, asked = folder.config.decisive(), config.decisive()
    for name in {**asked, **kept}:
        if name not in _MAY_CHANGE and kept.get(name) != asked.get(name):
            raise UserError(
                f"--resume: this checkpoint is of another model: {name} is {kept.get(name)}, where "
                f"this one wants {asked.get(name)}; go on with the same --model options, as the "
                "run's config.yaml has them"
            )
    if tokenizer_hash(folder.tokenizer) != tokenizer_hash(tokenizer):
        raise UserError(
            "--resume: this checkpoint is of another tokenizer; go on with the same store or model"
        )
    if labels is not None and folder.labels is not None and list(labels) != folder.labels:
        raise UserError(
            f"--resume: this checkpoint is of the labels {', '.join(folder.labels)}, not of "
            f"{', '.join(labels)}; go on with the same data"
        )


# What a run may be resumed with another of: the longest text, and what a family puts on an encoder.
_MAY_CHANGE = {"max_position_embeddings", "pooler"}


def check_same_model(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Refuse to go on from the weights of another model.

    Raises:
        UserError: a tensor is missing, misshapen or left over; the first is named.
    """
    for name in sorted(found.keys() | wanted.keys()):
        if name not in found:
            difference = "is missing"
        elif name not in wanted:
            difference = "has no place in this one"
        elif found[name].shape != wanted[name].shape:
            shapes = list(found[name].shape), list(wanted[name].shape)
            difference = "is {}, where this one wants {}".format(*shapes)
        else:
            continue
        raise UserError(
            f"--resume: this checkpoint is of another model: {name.removeprefix('model.')} "
            f"{difference}; go on with the same --model options"
        )


def verify_checkpoint(path: Path) -> None:
    """Compare every file with the manifest.

    Raises:
        UserError: something is missing or damaged; names it.
    """
    manifest = path / "manifest.json"
    try:
        digests = json.loads(manifest.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: no readable manifest.json; this is no checkpoint") from error
    if not isinstance(digests, dict) or not digests.keys() >= _PARTS:
        raise UserError(f"{manifest}: does not name every file; resume from another checkpoint")
    for name, digest in digests.items():
        if not stays_inside(name):
            raise UserError(f"{manifest}: names {name}, which is not in the folder")
        file = path / name
        if not file.is_file():
            raise UserError(f"{file}: missing; resume from another checkpoint")
        if _sha256(file) != digest:
            raise UserError(f"{file}: damaged (its checksum differs); resume from another one")


def latest_checkpoint(directory: Path) -> Path | None:
    """The newest checkpoint in ``directory`` that is whole; says which damaged ones it passed."""
    places = (path for path in directory.glob("step_*") if STEP.fullmatch(path.name))
    for path in sorted(places, reverse=True):
        try:
            verify_checkpoint(path)
        except UserError as error:
            print(f"mlm: skipping a damaged checkpoint: {error}", file=sys.stderr)
        else:
            return path
    return None


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): _sha256(p) for p in files}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
