"""Models by their name on the Hub, without a network."""

import hashlib

import pytest
from safetensors.torch import load_file, save_file
from small_models import save_masked_lm, small_config

from mlm.checkpoint import read_folder
from mlm.cli import main
from mlm.errors import UserError
from mlm.hub import model_directory


@pytest.fixture
def offline(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_folder_is_itself(tmp_path):
    assert model_directory(tmp_path) == tmp_path


@pytest.mark.parametrize("name", ["runs/typo", "/no/where", "./typo", "a/b/c", "", "a b"])
def test_what_is_no_name_is_never_looked_up(name, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mlm.hub._fetch", lambda *_: pytest.fail("asked the Hub"))
    if name:
        with pytest.raises(UserError, match="no such model folder"):
            model_directory(name)


@pytest.mark.parametrize("name", ["nobody-knows-it", "nobody/knows-it", "nobody/knows-it@main"])
def test_no_network_and_not_cached_is_one_line(name, offline, tmp_path, capsys):
    code = main(["import", "--source", name, "--output", str(tmp_path / "out")])
    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "Hub could not be reached" in line
    assert not (tmp_path / "out").exists()


@pytest.fixture
def cached(offline):
    """The snapshot of a model that was fetched before, as the Hub's cache keeps it."""
    snapshot = offline / "models--ours--small" / "snapshots" / ("a" * 40)
    snapshot.parent.mkdir(parents=True)
    save_masked_lm(snapshot, small_config("bert"))
    refs = offline / "models--ours--small" / "refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40)
    return snapshot


def test_a_cached_model_needs_no_network(cached):
    assert read_folder("ours/small").config == small_config("bert")


def test_a_flipped_bit_in_the_cache_is_found(cached):
    """Files of other people's have no checksum inside, but large ones are named by theirs."""
    weights = cached / "model.safetensors"
    tensors = load_file(weights)
    weights.unlink()
    save_file(tensors, weights)  # without our own checksum
    content = weights.read_bytes()
    blob = cached.parents[1] / "blobs" / hashlib.sha256(content).hexdigest()
    blob.parent.mkdir()
    weights.rename(blob)
    weights.symlink_to(blob)
    assert read_folder("ours/small").head == "masked_lm"
    damaged = bytearray(content)
    damaged[-1] ^= 1
    blob.write_bytes(damaged)
    with pytest.raises(UserError, match="does not match the Hub's checksum") as found:
        read_folder("ours/small")
    assert str(blob) in str(found.value)
