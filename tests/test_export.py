"""`mlm export`: what onnxruntime and sentence-transformers compute is what we compute."""

import json
from typing import ClassVar

import numpy as np
import pytest
import torch
from small_models import TEXTS, save_masked_lm, small_config, tokenizer

from mlm.checkpoint import load_masked_lm, read_folder, save_folder
from mlm.cli import main
from mlm.inference import Embedder
from mlm.model.encoder import Encoder

PRESETS = {
    "bert": small_config("bert"),
    "modern": small_config("modern"),
    "local": small_config("modern", attention=("local",), local_rope_theta=50.0),
    "roberta": small_config("bert", position_offset=1, type_vocab_size=1),
    "own": small_config("bert", position="sinusoidal", norm="rms_norm"),
}


def export(model, output, *words, capsys) -> dict:
    assert main(["export", "--model", str(model), "--output", str(output), *words]) == 0
    return json.loads(capsys.readouterr().out)


def padded() -> tuple[np.ndarray, np.ndarray]:
    encoded = [tokenizer().encode(text).ids[:64] for text in TEXTS]
    ids = np.zeros((len(encoded), max(map(len, encoded))), dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, sequence in enumerate(encoded):
        ids[row, : len(sequence)], mask[row, : len(sequence)] = sequence, 1
    return ids, mask


def run_onnx(directory, name="model.onnx") -> np.ndarray:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(directory / name)
    ids, mask = padded()
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    wanted = [node.name for node in session.get_inputs()]
    (found,) = session.run(None, {name: inputs[name] for name in wanted})
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_masked_lm_graphs_agree(name, tmp_path, capsys):
    pytest.importorskip("onnxscript")
    save_masked_lm(tmp_path / "m", PRESETS[name])
    said = export(tmp_path / "m", tmp_path / "onnx", "--format", "onnx", capsys=capsys)
    assert said["max_difference"] < 1e-4
    from mlm.batch import ragged

    with torch.inference_mode():
        ours = load_masked_lm(tmp_path / "m")(
            ragged([tokenizer().encode(text).ids[:64] for text in TEXTS])
        )
    _, mask = padded()
    assert np.abs(run_onnx(tmp_path / "onnx")[mask.astype(bool)] - ours.numpy()).max() < 1e-4
    assert {p.name for p in (tmp_path / "onnx").iterdir()} == {
        "model.onnx",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


@pytest.mark.slow
def test_eight_bits_say_what_they_cost(tmp_path, capsys):
    pytest.importorskip("onnxscript")
    save_masked_lm(tmp_path / "m", small_config("bert"))
    words = ["--format", "onnx", "--int8", "true"]
    said = export(tmp_path / "m", tmp_path / "onnx", *words, capsys=capsys)
    assert said["int8_max_difference"] > 0
    assert 0.5 < said["int8_agreement"] <= 1
    assert np.isfinite(run_onnx(tmp_path / "onnx", "model_int8.onnx")).all()


def save_encoder(directory, config, info) -> None:
    torch.manual_seed(0)
    state = {f"encoder.{name}": t for name, t in Encoder(config).state_dict().items()}
    save_folder(
        directory, config=config, head="encoder", state=state, tokenizer=tokenizer(), info=info
    )


@pytest.mark.parametrize("family", ["bert", "modern"])
@pytest.mark.parametrize("normalize", ["true", "false"])
def test_sentence_transformers_opens_it(family, normalize, tmp_path, capsys):
    save_masked_lm(tmp_path / "m", small_config(family))
    words = ["--format", "sentence-transformers", "--normalize", normalize]
    said = export(tmp_path / "m", tmp_path / "st", *words, capsys=capsys)
    assert said["class"] == {"bert": "BertModel", "modern": "ModernBertModel"}[family]
    texts = [text for text in TEXTS if text]
    ours = Embedder(tmp_path / "m", normalize=normalize == "true")(texts)
    assert np.allclose(Embedder(tmp_path / "st")(texts), ours, atol=1e-6)
    library = pytest.importorskip("sentence_transformers")
    theirs = library.SentenceTransformer(str(tmp_path / "st"), device="cpu")
    assert theirs.max_seq_length == 64
    assert np.allclose(theirs.encode(texts), ours, atol=1e-5)


def test_the_older_keys_are_there(tmp_path, capsys):
    save_encoder(tmp_path / "m", small_config("bert"), {})
    words = ["--format", "sentence-transformers", "--pooling", "cls"]
    export(tmp_path / "m", tmp_path / "st", *words, capsys=capsys)
    pooling = json.loads((tmp_path / "st" / "1_Pooling" / "config.json").read_text())
    assert pooling["pooling_mode_cls_token"] is True
    assert pooling["pooling_mode_mean_tokens"] is False
    assert pooling["word_embedding_dimension"] == 32
    limits = json.loads((tmp_path / "st" / "sentence_bert_config.json").read_text())
    assert limits["max_seq_length"] == 64
    assert read_folder(tmp_path / "st").head == "encoder"


def test_no_text_is_longer_than_the_positions(tmp_path, capsys):
    info = {"sentence_vectors": {"max_length": 500}}
    save_encoder(tmp_path / "m", small_config("bert"), info)
    export(tmp_path / "m", tmp_path / "st", "--format", "sentence-transformers", capsys=capsys)
    limits = json.loads((tmp_path / "st" / "sentence_bert_config.json").read_text())
    assert limits["max_seq_length"] == 64


def test_what_cannot_be_exported_is_one_line(tmp_path, capsys):
    save_masked_lm(tmp_path / "m", small_config("bert", position="sinusoidal"))
    words = ["export", "--model", str(tmp_path / "m"), "--format", "sentence-transformers"]
    assert main([*words, "--output", str(tmp_path / "st")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "position is 'sinusoidal'" in line
    assert main([*words, "--output", str(tmp_path / "m")]) == 2
    assert "is there already" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("mixer", ["fourier", "lstm"])
def test_layers_that_mix_filler_in_have_no_graph(mixer, tmp_path, capsys):
    save_masked_lm(tmp_path / "m", small_config("bert", attention=(mixer, "global")))
    words = ["export", "--model", str(tmp_path / "m"), "--format", "onnx"]
    assert main([*words, "--output", str(tmp_path / "onnx")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{mixer} layers have no graph" in line


@pytest.mark.parametrize("device", ["cuda", "gpu", "gpux"])
def test_a_device_that_is_not_here_is_one_line(device, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    save_masked_lm(tmp_path / "m", small_config("bert"))
    (tmp_path / "text.txt").write_text("the cat sat on the mat")
    words = ["evaluate", "--model", str(tmp_path / "m"), "--data", str(tmp_path / "text.txt")]
    assert main([*words, "--device", device]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--device" in line
    assert device in line


class FakeApi:
    """What of `HfApi` is called, without a network; keeps what was uploaded."""

    uploads: ClassVar[list] = []

    def create_repo(self, repo_id, exist_ok, private):
        assert exist_ok
        self.uploads.append((repo_id, private))

    def upload_folder(self, repo_id, folder_path, commit_message):
        self.uploads.append({p.name: p.read_bytes() for p in folder_path.iterdir()})


@pytest.fixture
def hub(monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    monkeypatch.setattr(FakeApi, "uploads", [])
    return FakeApi.uploads


def test_a_pushed_model_has_a_card_of_its_run(tmp_path, hub, capsys):
    run = tmp_path / "run"
    save_masked_lm(run / "model", small_config("modern"), info={"steps": 40, "tokens": 9000})
    (run / "config.yaml").write_text(
        "store: /secret/place/books\nbudget: 60steps\nseed: 3\n"
        "optimizer:\n  name: muon\n  lr: 0.004\n"
    )
    (run / "metrics.csv").write_text(
        "step,train/loss,val/loss,val/accuracy\n20,7.5,,\n20,,7.25,0.125\n40,,6.5,0.25\n60,,1.0,0.9\n"
    )
    words = ["export", "--model", str(run / "model"), "--push_to_hub", "me/small"]
    assert main([*words, "--license", "mit", "--private", "true"]) == 0
    assert json.loads(capsys.readouterr().out) == {"url": "https://huggingface.co/me/small"}
    (name, private), files = hub
    assert (name, private) == ("me/small", True)
    assert files["model.safetensors"] == (run / "model" / "model.safetensors").read_bytes()
    card = files["README.md"].decode()
    assert card.startswith("---\ntags:\n- mlm\n")
    assert "license: mit\n" in card
    assert "# small\n" in card
    assert "- store: `books`" in card
    assert "secret" not in card
    assert "lr: 0.004" in card
    assert "| 40 | 6.5000 | 0.2500 |" in card
    assert "0.9" not in card  # measured after this model was saved


def test_a_card_without_a_run_claims_nothing(tmp_path, hub):
    save_masked_lm(tmp_path / "m", small_config("bert"))
    assert main(["export", "--model", str(tmp_path / "m"), "--push_to_hub", "me/small"]) == 0
    card = hub[1]["README.md"].decode()
    assert "license" not in card
    assert "##" not in card


def test_no_network_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    save_masked_lm(tmp_path / "m", small_config("bert"))
    words = ["export", "--model", str(tmp_path / "m"), "--push_to_hub", "me/small"]
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--push_to_hub" in line


def test_what_has_no_task_has_no_scores(tmp_path, capsys):
    save_masked_lm(tmp_path / "m", small_config("bert"))
    words = ["export", "--model", tmp_path / "m", "--format", "onnx", "--data", "x.csv"]
    assert main([*map(str, words), "--output", str(tmp_path / "onnx")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--data" in line
    assert "no head" in line
    assert not (tmp_path / "onnx").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "say what to export to"),
        ("--format onnx", "belong together"),
        ("--output x --push_to_hub a/b", "belong together"),
        ("--data x.csv --push_to_hub a/b", "--data: is of --format onnx"),
    ],
)
def test_half_a_wish_is_refused(words, message, tmp_path, capsys):
    assert main(["export", "--model", str(tmp_path), *words.split()]) == 2
    assert message in capsys.readouterr().err
