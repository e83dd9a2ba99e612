"""What tests of faults share: stores and a run to damage, and a payload that leaves a mark."""

import pickle
import random
import shutil
import sys

import pytest
import torch
from planted import SMALL
from small_models import TEXTS, save_masked_lm, small_config

from mlm.cli import main

WORDS = "the a one cat dog bird fish tree sat ran flew swam on under over near red blue green old"


@pytest.fixture(scope="session")
def rows(tmp_path_factory):
    """A token store of 160 documents, about a hundred rows of 32 tokens."""
    from mlm.data.prepare import PrepareOptions, prepare

    folder, rng, words = tmp_path_factory.mktemp("faults"), random.Random(0), WORDS.split()
    documents = [" ".join(rng.choices(words, k=rng.randint(4, 40))) for _ in range(160)]
    (folder / "corpus.txt").write_text("\n\n".join(documents) + "\n")
    output = folder / "store"
    prepare(PrepareOptions(corpus=[str(folder / "corpus.txt")], output=str(output), vocab_size=60))
    return output


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """What every payload would make; `evil` is a module that can be imported, and makes it too."""
    path = tmp_path / "marker"
    folder = tmp_path / "on_the_path"
    folder.mkdir()
    touch = f"open({str(path)!r}, 'w').close()"
    (folder / "evil.py").write_text(f"{touch}\ndef run(*_, **__):\n    {touch}\nPayload = run\n")
    monkeypatch.syspath_prepend(folder)
    yield path
    assert not path.exists(), "a payload was run"
    assert "evil" not in sys.modules


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A store and a run on it, made once by the commands themselves."""
    place = tmp_path_factory.mktemp("made")
    (place / "corpus.txt").write_text(
        "\n\n".join(f"{t} number {i}" for i in range(40) for t in TEXTS)
    )
    words = f"prepare --corpus {place}/corpus.txt --output {place}/store --vocab_size 120"
    assert main(words.split()) == 0
    assert main(f"pretrain --store {place}/store --run_dir {place}/run {SMALL}".split()) == 0
    return place


@pytest.fixture
def run_dir(made, tmp_path):
    return shutil.copytree(made / "run", tmp_path / "run")


@pytest.fixture
def store(made, tmp_path):
    return shutil.copytree(made / "store", tmp_path / "store")


@pytest.fixture
def model(tmp_path):
    save_masked_lm(tmp_path / "model", small_config("bert"))
    return tmp_path / "model"


@pytest.fixture
def loads(monkeypatch):
    """The arguments of every `torch.load`; any other unpickling in this process fails the test."""
    calls = []
    load = torch.load

    def watched(*arguments, **options):
        calls.append(options)
        return load(*arguments, **options)

    monkeypatch.setattr(torch, "load", watched)
    # An operator's switch for old files: it must not reach what says that it wants to be safe.
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, lambda *_, **__: pytest.fail("unpickled"))
    yield calls
    assert all(options.get("weights_only") is True for options in calls)
