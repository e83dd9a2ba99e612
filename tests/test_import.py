"""`mlm import`: what others saved becomes a model folder, tensors untouched, and goes back."""

import json

import numpy as np
import pytest
import torch
from small_models import TEXTS, tokenizer

from mlm.checkpoint import read_folder
from mlm.cli import main
from mlm.data.tokenizer import save_tokenizer, special_ids
from mlm.inference import Embedder

transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 66,
    "pad_token_id": special_ids(tokenizer()).pad,
}
DISTIL = {
    "vocab_size": 300,
    "dim": 32,
    "n_layers": 2,
    "n_heads": 2,
    "hidden_dim": 48,
    "max_position_embeddings": 66,
}
FAMILIES = {
    "Bert": SIZES,
    "Roberta": SIZES,
    "XLMRoberta": SIZES,
    "DistilBert": DISTIL,
    "ModernBert": SIZES | {"local_attention": 6, "global_attn_every_n_layers": 2},
    "EuroBert": SIZES | {"classifier_pooling": "mean"},
}
HEADS = [
    *("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification"),
    "ForQuestionAnswering",
]


def theirs(family, head, directory):
    """A random model of transformers, saved."""
    torch.manual_seed(3)
    config = getattr(transformers, f"{family}Config")(**FAMILIES[family])
    model = getattr(transformers, family + head)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(directory)
    save_tokenizer(tokenizer(), directory, 64)
    return model


def run(*words):
    assert main([str(word) for word in words]) == 0


@pytest.mark.parametrize(
    ("family", "head"),
    [(f, h) for f in FAMILIES for h in HEADS if hasattr(transformers, f + h)],
)
def test_there_and_back_to_the_last_bit(family, head, tmp_path, capsys):
    model = theirs(family, head, tmp_path / "theirs")
    run("import", "--source", tmp_path / "theirs", "--output", tmp_path / "ours")
    said = json.loads(capsys.readouterr().out)
    assert said["class"] == (family + head).replace("XLM", "").replace("ROBERTA", "Roberta")
    back = type(model).from_pretrained(tmp_path / "ours").eval()
    first, second = model.state_dict(), back.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    back.save_pretrained(tmp_path / "again")
    save_tokenizer(tokenizer(), tmp_path / "again", 64)
    once, twice = read_folder(tmp_path / "ours"), read_folder(tmp_path / "again")
    assert once.config == twice.config
    assert all(torch.equal(tensor, twice.state[name]) for name, tensor in once.state.items())


def test_the_first_berts_names_of_norms_are_known(tmp_path):
    from safetensors.torch import load_file, save_file

    model = theirs("Bert", "ForMaskedLM", tmp_path / "m")
    expected = read_folder(tmp_path / "m").state
    path = tmp_path / "m" / "model.safetensors"
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in load_file(path).items()
    }
    renamed["bert.pooler.dense.weight"] = torch.zeros(32, 32)
    save_file(renamed, path, {"format": "pt"})
    found = read_folder(tmp_path / "m").state
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    assert model.config.model_type == "bert"


def test_a_bare_encoder_without_its_pooler(tmp_path):
    model = transformers.BertModel(transformers.BertConfig(**SIZES), add_pooling_layer=False)
    model.save_pretrained(tmp_path / "m")
    save_tokenizer(tokenizer(), tmp_path / "m", 64)
    folder = read_folder(tmp_path / "m")
    assert folder.head == "encoder"
    assert all(name.startswith("encoder.") for name in folder.state)


def test_pretraining_goes_on_from_a_bare_encoder(tmp_path, capsys):
    theirs("Bert", "Model", tmp_path / "m")
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n\n".join(f"{text} number {i}" for i in range(60) for text in TEXTS))
    words = f"--corpus {corpus} --output {tmp_path}/store --tokenizer {tmp_path}/m"
    run("prepare", *words.split())
    words = (
        f"--store {tmp_path}/store --run_dir {tmp_path}/run --model {tmp_path}/m --budget 2steps"
    )
    words += " --data.sequence_length 32 --data.batch_size 4 --trainer.accelerator cpu"
    run("pretrain", *words.split())
    assert "has no masked-LM head" in capsys.readouterr().err
    before, after = read_folder(tmp_path / "m"), read_folder(tmp_path / "run" / "model")
    assert after.head == "masked_lm"
    name = "encoder.layers.0.mixer.out.weight"
    assert torch.allclose(before.state[name], after.state[name], atol=0.05)


def sentence_transformers_files(directory, pooling="mean", normalize=True, length=16):
    """The files of sentence-transformers 2, beside a model's."""
    steps = ["", "1_Pooling"] + (["2_Normalize"] if normalize else [])
    kinds = ["Transformer", "Pooling", "Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(zip(steps, kinds, strict=False))
    ]
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "1_Pooling").mkdir()
    switches = {
        "pooling_mode_cls_token": pooling == "cls",
        "pooling_mode_mean_tokens": pooling == "mean",
        "pooling_mode_max_tokens": pooling == "max",
    }
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(switches))
    (directory / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": length}))


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_sentence_vectors_come_along(pooling, tmp_path, capsys):
    theirs("Bert", "Model", tmp_path / "m")
    sentence_transformers_files(tmp_path / "m", pooling)
    direct = Embedder(tmp_path / "m")
    run("import", "--source", tmp_path / "m", "--output", tmp_path / "ours")
    assert json.loads(capsys.readouterr().out)["sentence_vectors"] == {
        "pooling": pooling,
        "normalize": True,
        "max_length": 16,
    }
    ours = Embedder(tmp_path / "ours")
    texts = [text for text in TEXTS if text]
    assert np.array_equal(direct(texts), ours(texts))
    assert np.allclose(np.linalg.norm(ours(texts), axis=1), 1, atol=1e-6)
    assert ours.max_length == 16
    assert np.allclose(ours(["one " * 15]), ours(["one " * 40]), atol=1e-6)
    plain = Embedder(tmp_path / "ours", pooling="mean", normalize=False)
    assert not np.allclose(plain(texts), ours(texts))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: sentence_transformers_files(d, "none"), "pooling [] is not supported"),
        (lambda d: (d / "modules.json").write_text("{"), "modules.json: damaged"),
        (
            lambda d: (d / "modules.json").write_text(
                '[{"path": "2_Dense", "type": "sentence_transformers.models.Dense"}]'
            ),
            "a Dense step is not supported",
        ),
        (
            lambda d: (d / "modules.json").write_text('[{"path": "../x", "type": "a.Pooling"}]'),
            "names ../x",
        ),
        (
            lambda d: (d / "modules.json").write_text('[{"path": "1_P", "type": "a.Pooling"}]'),
            "no such file, but modules.json names it",
        ),
    ],
)
def test_what_is_wrong_with_the_sentence_files_is_one_line(change, message, tmp_path, capsys):
    theirs("Bert", "Model", tmp_path / "m")
    change(tmp_path / "m")
    capsys.readouterr()
    code = main(["import", "--source", str(tmp_path / "m"), "--output", str(tmp_path / "ours")])
    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_nothing_is_replaced(tmp_path, capsys):
    theirs("Bert", "Model", tmp_path / "m")
    (tmp_path / "ours").mkdir()
    code = main(["import", "--source", str(tmp_path / "m"), "--output", str(tmp_path / "ours")])
    assert code == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bare_encoder_is_fine_tuned(family, tmp_path, capsys):
    theirs(family, "Model", tmp_path / "m")
    rows = "".join(f"{text!r}\t{i % 2}\n" for i, text in enumerate(TEXTS * 3) if text)
    (tmp_path / "t.tsv").write_text("text\tlabel\n" + rows)
    words = f"--model {tmp_path}/m --train {tmp_path}/t.tsv --validation {tmp_path}/t.tsv"
    words += f" --run_dir {tmp_path}/run --trainer.max_steps 2 --data.max_length 32"
    run("finetune", *words.split())
    name = f"{family}ForSequenceClassification".replace("XLM", "")
    values = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert values["architectures"] == [name]
    capsys.readouterr()
