"""`mlm export`: what onnxruntime and sentence-transformers compute is what we compute."""

import json

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


def test_what_cannot_be_exported_is_one_line(tmp_path, capsys):
    save_masked_lm(tmp_path / "m", small_config("bert", position="sinusoidal"))
    words = ["export", "--model", str(tmp_path / "m"), "--format", "sentence-transformers"]
    assert main([*words, "--output", str(tmp_path / "st")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "position is 'sinusoidal'" in line
    assert main([*words, "--output", str(tmp_path / "m")]) == 2
    assert "is there already" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
