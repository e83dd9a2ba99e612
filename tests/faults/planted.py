"""Payloads, and where they are planted."""

import json
import os
from pathlib import Path

import pytest

from mlm.data.store import manifest_hash, sha256
from mlm.errors import UserError
from mlm.training.checkpoint_io import FolderCheckpointIO, _digests, latest_checkpoint

SMALL = (
    "--model.size tiny --model.num_hidden_layers 1 --model.hidden_size 32 "
    "--model.num_attention_heads 2 --data.batch_size 4 --data.sequence_length 32 "
    "--trainer.accelerator cpu --trainer.precision fp32 --logging.wandb off --budget 2steps"
)


class Bomb:
    """A pickle that runs a command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def refusal(load, *arguments) -> str:
    """What the one line says."""
    with pytest.raises(UserError) as error:
        load(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def io_of() -> FolderCheckpointIO:
    return FolderCheckpointIO(lambda *_: None)


def newest(run_dir: Path) -> Path:
    found = latest_checkpoint(run_dir / "checkpoints")
    assert found is not None
    return found


def seal(checkpoint: Path) -> None:
    """Make the manifest right again, as whoever planted something would."""
    (checkpoint / "manifest.json").unlink()
    (checkpoint / "manifest.json").write_text(json.dumps(_digests(checkpoint)))


def seal_store(store: Path, files: dict | None = None) -> None:
    manifest = json.loads((store / "manifest.json").read_text())
    del manifest["sha256"]
    manifest["files"] = files or {
        name: {"bytes": (store / name).stat().st_size, "sha256": sha256(store / name)}
        for name in manifest["files"]
    }
    manifest["sha256"] = manifest_hash(manifest)
    (store / "manifest.json").write_text(json.dumps(manifest))
