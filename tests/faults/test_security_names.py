"""Nothing that a file names is imported, called or fetched, and no tag of YAML makes an object.

What tests/test_checkpoint.py, tests/test_import.py and tests/test_hub.py prove is not repeated.
"""

import json
import socket
from pathlib import Path

import pytest
import torch
from planted import SMALL, io_of, newest, refusal, seal, seal_store
from small_models import save_classifier

from mlm.checkpoint import read_folder
from mlm.cli import main
from mlm.data.store import TokenStore
from mlm.data.tokenizer import load_tokenizer
from mlm.exporting.model_card import model_card
from mlm.inference import Embedder, FillMask
from tasks.inference import Predictor


def test_nothing_that_a_checkpoint_names_is_called(made, run_dir, marker, loads):
    """What Lightning's own `load_from_checkpoint` would call."""
    checkpoint = newest(run_dir)
    state = torch.load(checkpoint / "state.pt", weights_only=True)
    named = {"_instantiator": "evil.run", "_class_path": "evil.Payload", "class_path": "evil.run"}
    state |= {
        "hyper_parameters": named,
        "hparams_name": "kwargs",
        "datamodule_hyper_parameters": named,
    }
    state |= {"hparams_type": "evil.Payload", "datamodule_hparams_type": "evil.Payload"}
    torch.save(state, checkpoint / "state.pt")
    seal(checkpoint)
    assert io_of().load_checkpoint(checkpoint)["hyper_parameters"] == named
    words = f"pretrain --store {made}/store --run_dir {run_dir} {SMALL} --resume auto"
    assert main(words.replace("2steps", "3steps").split()) == 0


@pytest.fixture
def network(monkeypatch, tmp_path):
    """What was asked of it; nothing is answered. The Hub is not known to be offline."""
    asked = []

    def refuse(*arguments, **_):
        asked.append(arguments)
        raise OSError("no network in this test")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return asked


def plant_names(folder: Path) -> None:
    """Everything by which other loaders import code or fetch files."""
    evil = {
        "auto_map": {"AutoConfig": "nobody/x--evil.Payload", "AutoModel": "evil.Payload"},
        "_class_path": "evil.Payload",
        "class_path": "evil.Payload",
        "_instantiator": "evil.run",
        "_target_": "evil.run",
        "_name_or_path": "nobody/knows-it",
        "name_or_path": "nobody/knows-it",
        "custom_pipelines": {"x": {"impl": "evil.Payload"}},
        "vocab_file": "../../../etc/passwd",
        "tokenizer_file": "/etc/passwd",
        "tokenizer_class": "evil.Payload",
        "adapter": "nobody/knows-it",
    }
    for name in ("config.json", "tokenizer_config.json"):
        path = folder / name
        if path.is_file():
            path.write_text(json.dumps(evil | json.loads(path.read_text()) | evil))
    path = folder / "config.json"
    if path.is_file():
        values = json.loads(path.read_text())
        values["mlm"] |= {k: v for k, v in evil.items() if k != "class"} | {"source": "nobody/x"}
        path.write_text(json.dumps(values))
    for name in ("special_tokens_map.json", "added_tokens.json", "adapter_config.json"):
        (folder / name).write_text(json.dumps({**evil, "base_model_name_or_path": "nobody/x"}))
    for name in ("evil.py", "modeling.py", "handler.py", "setup.py", "sitecustomize.py"):
        (folder / name).write_text("raise SystemExit('imported')")


def test_local_folders_import_and_fetch_nothing(
    model, run_dir, store, tmp_path, marker, network, monkeypatch, capsys
):
    monkeypatch.chdir(model)  # where `modeling.py` could be found
    save_classifier(tmp_path / "classifier")
    plant_names(model)
    plant_names(tmp_path / "classifier")
    plant_names(store / "tokenizer")
    seal_store(store)
    assert FillMask(model)("a [MASK] sat")[0]["masks"]
    assert Embedder(model)(["a text"]).shape == (1, 32)
    assert Predictor.from_pretrained(tmp_path / "classifier")(["a text"])[0]["label"] in (
        "no",
        "yes",
    )
    assert load_tokenizer(TokenStore.open(store).tokenizer_dir)
    assert io_of().load_checkpoint(newest(run_dir))
    words = ["import", "--source", str(model), "--output", str(tmp_path / "imported")]
    assert main(words) == 0
    assert main(["fill-mask", "--model", str(tmp_path / "imported"), "a [MASK]"]) == 0
    assert network == []
    # Its task is looked up by name, never imported: nor is that fetched from anywhere.
    path = tmp_path / "classifier" / "config.json"
    values = json.loads(path.read_text())
    values["mlm"]["task"] = "evil.Payload"
    path.write_text(json.dumps(values))
    assert "if it is your own and you trust it" in refusal(
        Predictor.from_pretrained, tmp_path / "classifier"
    )
    assert network == []


def test_a_hub_id_does_ask_the_network(network):
    """Or the test above would prove nothing."""
    assert "could not be reached" in refusal(read_folder, "nobody/knows-it")
    assert network


OBJECTS = ["trainer.strategy", "trainer.accelerator", "trainer.profiler"]


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch {marker}']",
        "!!python/object/apply:evil.run []",
        "!!python/object/new:evil.Payload {{}}",
        "!!python/name:evil.run ''",
        "!!python/module:evil ''",
        "{{class_path: evil.Payload, init_args: {{}}}}",
    ],
)
def test_a_yaml_tag_is_one_line(text, marker, tmp_path, made, model, capsys):
    text = text.format(marker=marker)
    place = f"--store {made}/store --run_dir {tmp_path}/r"
    for key in ("seed", "budget", "optimizer", "optimizer.lr", "model", "corpus", *OBJECTS):
        group, _, name = key.rpartition(".")
        (tmp_path / "c.yaml").write_text(
            f"{group}:\n  {name}: {text}\n" if group else f"{key}: {text}\n"
        )
        command = "prepare" if key == "corpus" else "pretrain"
        assert main([command, "--config", f"{tmp_path}/c.yaml", *place.split()]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"mlm: {tmp_path}/c.yaml, line" in line
    if text.startswith("!!"):
        card = model_card, read_folder(model), None, "x", model
        (model / "README.md").write_text(f"---\nlicense: {text}\n---\n\nText")
        assert "README.md: not plain YAML" in refusal(*card)
        (model / "README.md").unlink()
        (tmp_path / "config.yaml").write_text(f"seed: {text}\n")
        (tmp_path / "metrics.csv").write_text("step\n")
        assert "config.yaml: not plain YAML" in refusal(*card)
