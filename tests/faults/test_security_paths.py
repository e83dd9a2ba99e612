"""Manifests name nothing outside of their folder, and links lead to nothing that is not meant."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from planted import SMALL, Bomb, io_of, newest, refusal, seal_store

from mlm.checkpoint import read_folder
from mlm.cli import main
from mlm.data.store import TokenStore, sha256
from mlm.training.checkpoint_io import latest_checkpoint


@pytest.mark.parametrize("name", ["../../secret", "/etc/hostname", "train/../../secret", "..", ""])
def test_a_manifest_names_nothing_outside(run_dir, store, tmp_path, name, capsys):
    """Not even where size and checksum are right."""

    def secret(folder: Path) -> dict:
        target = Path(os.path.normpath(folder / name))
        if not target.exists():
            target.write_text("mine")
        there = target.is_file()
        return {"bytes": 4, "sha256": sha256(target) if there else "0" * 64}

    checkpoint = newest(run_dir)
    manifest = checkpoint / "manifest.json"
    digests = json.loads(manifest.read_text()) | {name: secret(checkpoint)["sha256"]}
    manifest.write_text(json.dumps(digests))
    assert f"manifest.json: names {name}, which" in refusal(io_of().load_checkpoint, checkpoint)
    assert latest_checkpoint(run_dir / "checkpoints") is None
    files = json.loads((store / "manifest.json").read_text())["files"]
    seal_store(store, files | {name: secret(store)})
    assert f"manifest.json: names {name}, which" in refusal(TokenStore.open, store)
    words = f"pretrain --store {store} --run_dir {tmp_path}/new {SMALL}"
    capsys.readouterr()
    assert main(words.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"names {name}, which is not in the folder" in line


@pytest.mark.parametrize("name", ["../secret.bin", "/etc/hostname", "..", "", "a/../part.bin"])
def test_an_index_of_weights_names_nothing_outside(model, marker, loads, name):
    torch.save({"a": Bomb(marker)}, model.parent / "secret.bin")
    (model / "model.safetensors").unlink()
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        (model / index).write_text(json.dumps({"weight_map": {"head.bias": name}}))
        assert f"{index}: names {name}, which is not in the folder" in refusal(read_folder, model)
        (model / index).unlink()
    assert not loads


def test_what_no_manifest_names_is_not_read(run_dir, store, marker, loads):
    checkpoint = newest(run_dir)
    for digests in ({}, [], {"state.pt": "0" * 64}):
        (checkpoint / "manifest.json").write_text(json.dumps(digests))
        assert "does not name every file" in refusal(io_of().load_checkpoint, checkpoint)
    assert not loads
    tokens = TokenStore.open(store).split("train").num_tokens
    data = store / "train" / "data-00000-of-00001.arrow"
    shutil.copy(data, store / "train" / "cache-0123.arrow")  # `datasets` leaves such files
    assert TokenStore.open(store).split("train").num_tokens == tokens
    shutil.copy(data, store / "train" / "data-00001-of-00002.arrow")
    assert "data-00001-of-00002.arrow: is not in manifest.json" in refusal(TokenStore.open, store)


# A user may keep a large file elsewhere: a link is read where the checksum is right, and what it
# leads to is never changed, never shown and never uploaded.


def test_a_link_to_what_was_there_is_read(model, run_dir, store, tmp_path):
    for file in (
        model / "model.safetensors",
        newest(run_dir) / "state.pt",
        store / "train" / "data-00000-of-00001.arrow",
    ):
        file.rename(tmp_path / file.name)
        file.symlink_to(tmp_path / file.name)
    assert read_folder(model).head == "masked_lm"
    assert io_of().load_checkpoint(newest(run_dir))
    assert TokenStore.open(store).is_verified


@pytest.mark.parametrize("target", ["secret", "/dev/zero", "nowhere", "."])
def test_a_link_to_anything_else_is_refused_and_shows_nothing(
    model, run_dir, store, tmp_path, target
):
    (tmp_path / "secret").write_text('password: "hunter2"')

    def check(load, place, *names):
        for name in names:
            file = place / name
            kept = file.rename(tmp_path / "kept")
            file.symlink_to(tmp_path / target if target != "/dev/zero" else target)
            said = refusal(load, place)
            assert str(place) in said
            assert "hunter2" not in said
            file.unlink()
            kept.rename(file)

    check(read_folder, model, "config.json", "model.safetensors", "tokenizer.json")
    check(io_of().load_checkpoint, newest(run_dir), "state.pt", "model/model.safetensors")
    check(TokenStore.open, store, "train/data-00000-of-00001.arrow", "tokenizer/tokenizer.json")


def test_a_link_in_place_of_a_checkpoint_is_replaced_and_what_it_leads_to_stays(
    made, run_dir, tmp_path
):
    """Links in a run that somebody sent, named as what it would write and remove."""
    place = run_dir / "checkpoints"
    for step in (1, 3):
        folder = tmp_path / f"thesis_{step}"
        folder.mkdir()
        (folder / "chapter.tex").write_text("years of work")
        (place / f"step_{step:08d}").symlink_to(folder)
    words = f"pretrain --store {made}/store --run_dir {run_dir} {SMALL} --checkpoint.keep 1"
    words += f" --resume {place}/step_00000002"
    assert main(words.replace("2steps", "3steps").split()) == 0
    assert [p.name for p in place.iterdir()] == ["step_00000003"]
    assert not (place / "step_00000003").is_symlink()
    for step in (1, 3):
        assert (tmp_path / f"thesis_{step}" / "chapter.tex").read_text() == "years of work"


@pytest.mark.parametrize("name", ["README.md", "notes.txt", "data"])
def test_nothing_behind_a_link_is_uploaded(model, tmp_path, monkeypatch, name, capsys):
    monkeypatch.setattr("huggingface_hub.HfApi", lambda *_: pytest.fail("asked the Hub"))
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "id_rsa").write_text("hunter2")
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to(tmp_path / "secrets" / ("" if name == "data" else "id_rsa"))
    assert main(["export", "--model", str(model), "--push_to_hub", "me/x"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{name}: links to a file outside of the folder" in line
