"""Checkpoints that are cut or have a flipped bit: found, passed over, never gone on from."""

import shutil

import pytest
from sweep import damaged

from mlm.errors import UserError
from mlm.training.checkpoint_io import FolderCheckpointIO, latest_checkpoint

FILES = ["state.pt", "manifest.json", "model/model.safetensors", "model/config.json"]


@pytest.mark.parametrize("name", FILES)
def test_damage_is_found_and_the_older_one_taken(name, run_dir, capsys):
    folder = run_dir / "checkpoints"
    (newest,) = folder.iterdir()
    older = shutil.copytree(newest, folder / "step_00000001")
    whole, found = (newest / name).read_bytes(), 0
    files = FolderCheckpointIO(lambda *_: None)
    cases = damaged(whole, FILES.index(name))
    for _ in range(100):
        (newest / name).write_bytes(next(cases))
        if latest_checkpoint(folder) == newest:  # a letter between words, say
            files.load_checkpoint(newest)
            continue
        found += 1
        assert latest_checkpoint(folder) == older
        assert newest.name in capsys.readouterr().err
        with pytest.raises(UserError) as refused:
            files.load_checkpoint(newest)
        assert newest.name in str(refused.value)
    assert found > 95 if name == "manifest.json" else found == 100
    (newest / name).write_bytes(whole)
    assert latest_checkpoint(folder) == newest
