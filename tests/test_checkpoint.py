import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import random_state, save_masked_lm, small_config, tokenizer

import mlm.checkpoint
from mlm.checkpoint import build_encoder, build_masked_lm, load_masked_lm, read_folder, save_folder
from mlm.data.tokenizer import train_tokenizer
from mlm.errors import UserError
from mlm.model.encoder import Encoder
from mlm.model.heads import MaskedLanguageModel

FILES = ["README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


def assert_same(first, second) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A native folder and one in our own layout."""
    place = tmp_path_factory.mktemp("saved")
    save_masked_lm(place / "native", small_config("bert"), info={"step": 7})
    save_masked_lm(place / "own", small_config("bert", position="sinusoidal"), info={"step": 7})
    return place


@pytest.fixture(params=["native", "own"])
def model(saved, tmp_path, request):
    """A copy of a saved folder, to damage."""
    return shutil.copytree(saved / request.param, tmp_path / "model")


def refusal(directory) -> str:
    with pytest.raises(UserError) as error:
        read_folder(directory)
    line = str(error.value)
    assert line.startswith(str(directory))
    assert "\n" not in line
    return line


def edit_config(directory, **changes) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(directory, change) -> None:
    """Change the tensors as somebody else's tool would: without our checksum."""
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


def test_a_folder_holds_five_files_and_reads_back_to_the_last_bit(tmp_path, model):
    assert sorted(p.name for p in model.iterdir()) == FILES
    folder = read_folder(model)
    assert folder.info == {"step": 7}
    assert folder.head == "masked_lm"
    save_folder(
        tmp_path / "again",
        config=folder.config,
        head=folder.head,
        state=folder.state,
        tokenizer=folder.tokenizer,
        info=folder.info,
    )
    assert_same(read_folder(tmp_path / "again").state, folder.state)
    for name in set(FILES) - {"model.safetensors"}:
        assert (tmp_path / "again" / name).read_bytes() == (model / name).read_bytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tensors_keep_their_precision_and_models_compute_in_fp32(tmp_path, dtype):
    config = small_config("modern")
    state = {k: v.to(dtype) for k, v in random_state(MaskedLanguageModel(config)).items()}
    state["head.dense.weight"] = state["head.dense.weight"].T  # not contiguous
    save_folder(
        tmp_path / "m", config=config, head="masked_lm", state=state, tokenizer=tokenizer(), info={}
    )
    folder = read_folder(tmp_path / "m")
    for name, tensor in folder.state.items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, state[name])
    assert json.loads((tmp_path / "m" / "config.json").read_text())["dtype"] == str(dtype)[6:]
    built = build_masked_lm(folder)
    assert {p.dtype for p in built.parameters()} == {torch.float32}
    assert not built.training


def test_the_card_has_front_matter(tmp_path):
    save_masked_lm(tmp_path / "m", small_config("modern"), card="# Mine\n\nTrained on letters.")
    text = (tmp_path / "m" / "README.md").read_text()
    assert text.startswith("---\n")
    assert "pipeline_tag: fill-mask\n---\n\n# Mine" in text
    save_masked_lm(tmp_path / "m", small_config("modern"), card="---\nlicense: mit\n---\n")
    assert (tmp_path / "m" / "README.md").read_text() == "---\nlicense: mit\n---\n"


def test_a_task_of_its_own_keeps_its_head_and_labels(tmp_path):
    config = small_config("modern")
    state = {f"encoder.{k}": v for k, v in random_state(Encoder(config)).items()}
    state["head.spans.weight"] = torch.ones(2, 32)
    save_folder(
        tmp_path / "m",
        config=config,
        head="spans",
        state=state,
        tokenizer=tokenizer(),
        info={"task": "spans"},
        labels=["start", "end"],
    )
    folder = read_folder(tmp_path / "m")
    assert (folder.head, folder.labels, folder.info) == (
        "spans",
        ["start", "end"],
        {"task": "spans"},
    )
    assert folder.state.keys() == state.keys()
    assert isinstance(build_encoder(folder), Encoder)
    with pytest.raises(UserError, match="is a spans model"):
        load_masked_lm(tmp_path / "m")


def test_replacing_keeps_the_old_folder_until_the_new_one_is_whole(tmp_path, monkeypatch):
    place = tmp_path / "runs" / "model"
    first = save_masked_lm(place, small_config("modern"))
    write = mlm.checkpoint.save_tokenizer

    def full(*arguments):
        write(*arguments)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mlm.checkpoint, "save_tokenizer", full)
    with pytest.raises(OSError, match="No space left"):
        save_masked_lm(place, small_config("bert"))
    assert [p.name for p in place.parent.iterdir()] == ["model"]
    assert torch.equal(read_folder(place).state["head.bias"], first["head.bias"])
    monkeypatch.undo()
    save_masked_lm(place, small_config("bert"))
    assert read_folder(place).config == small_config("bert")
    assert [p.name for p in place.parent.iterdir()] == ["model"]


def test_what_is_not_a_model_is_never_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"something other than a model \(thesis\.tex\)"):
        save_masked_lm(tmp_path, small_config("modern"))
    with pytest.raises(UserError, match="something other than a model"):
        save_masked_lm(tmp_path / "thesis.tex", small_config("modern"))
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    trained = tmp_path / "trained"
    save_masked_lm(trained, small_config("modern"))
    save_masked_lm(trained, small_config("modern"))
    save_masked_lm(trained / "checkpoint-500", small_config("modern"))
    with pytest.raises(UserError, match=r"something other than a model \(checkpoint-500\)"):
        save_masked_lm(trained, small_config("modern"))
    assert (trained / "checkpoint-500" / "model.safetensors").is_file()


def test_saving_checks_what_reading_would(tmp_path):
    config = small_config("modern")
    state = random_state(MaskedLanguageModel(config))
    for change, message in (
        ({"head.bias": torch.zeros(3)}, r"head.bias is \[3\], where config.json wants"),
        ({"head.extra": torch.zeros(3)}, "head.extra has no place"),
    ):
        with pytest.raises(UserError, match=message):
            save_folder(
                tmp_path / "m",
                config=config,
                head="masked_lm",
                state=state | change,
                tokenizer=tokenizer(),
                info={},
            )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", FILES[1:4])
def test_a_missing_file_is_named(model, name):
    (model / name).unlink()
    assert name in refusal(model)


def test_a_missing_folder_and_a_run_directory(tmp_path, model):
    assert "no such model folder" in refusal(tmp_path / "none")
    assert f"did you mean {model}?" in refusal(tmp_path)
    file = tmp_path / "file"
    file.write_text("")
    assert "no model folder" in refusal(file) or "no such model folder" in refusal(file)


def test_a_pickle_that_wants_to_run_code_runs_nothing(model):
    class Bomb:
        def __reduce__(self):
            return pytest.fail, ("the pickle was loaded",)

    weights = model / "pytorch_model.bin"
    for content in (Bomb(), {"head.bias": Bomb()}):
        weights.write_bytes(pickle.dumps(content))
        torch.save(content, model / "saved.bin")
        assert read_folder(model).head == "masked_lm"  # safetensors first
        (model / "model.safetensors").rename(model / "aside")
        assert "pytorch_model.bin: damaged" in refusal(model)
        (model / "saved.bin").rename(weights)
        assert "pytorch_model.bin: damaged, or a pickle that holds more" in refusal(model)
        (model / "aside").rename(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    torch.save([torch.zeros(2)], weights)
    assert "does not hold named tensors" in refusal(model)


def as_pickle(model) -> None:
    path = model / "model.safetensors"
    torch.save(load_file(path), model / "pytorch_model.bin")
    path.unlink()


def as_shards(model) -> None:
    path = model / "model.safetensors"
    tensors = sorted(load_file(path).items())
    weight_map = {}
    for number, part in enumerate((tensors[:5], tensors[5:]), start=1):
        name = f"model-{number:05}-of-00002.safetensors"
        save_file(dict(part), model / name, {"format": "pt"})
        weight_map |= dict.fromkeys(dict(part), name)
    index = {"metadata": {}, "weight_map": weight_map}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    path.unlink()


@pytest.mark.parametrize("convert", [as_pickle, as_shards])
def test_weights_in_other_files_are_the_same(model, convert):
    before = read_folder(model).state
    convert(model)
    assert_same(read_folder(model).state, before)


def test_damaged_shards_and_pickles_are_named(model, tmp_path):
    sharded = shutil.copytree(model, tmp_path / "sharded")
    as_shards(sharded)
    index = sharded / "model.safetensors.index.json"
    whole = json.loads(index.read_text())
    second = sharded / "model-00002-of-00002.safetensors"
    for change, message in (
        ({"weight_map": {}}, "has no weight_map"),
        ({"weight_map": {"a": "../../etc/passwd"}}, "names ../../etc/passwd, which is not in"),
        ({"weight_map": {"a": "missing.safetensors"}}, "names missing.safetensors"),
        ({"weight_map": whole["weight_map"] | {"zzz": second.name}}, "zzz is in none of"),
    ):
        index.write_text(json.dumps(whole | change))
        assert message in refusal(sharded)
    index.write_text(json.dumps(whole))
    second.write_bytes(second.read_bytes()[:-9])
    assert f"{second.name}: damaged" in refusal(sharded)
    as_pickle(model)
    path = model / "pytorch_model.bin"
    for keep in (0, 100, -100):
        content = path.read_bytes()
        path.write_bytes(content[:keep])
        assert "pytorch_model.bin: damaged" in refusal(model)
        path.write_bytes(content)


def test_nothing_that_a_folder_names_is_imported(model, tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    (model / "modeling.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    edit_config(
        model,
        auto_map={"AutoModelForMaskedLM": "modeling.Evil"},
        _class_path="evil.Evil",
        mlm={"task": "evil.Evil", "_class_path": "evil.Evil"},
    )
    assert read_folder(model).head == "masked_lm"


@pytest.mark.parametrize("keep", [0, 4, 100, -1, -1000])
def test_a_truncated_file_is_damaged(model, keep):
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert "model.safetensors: damaged" in refusal(model)


def test_a_flipped_bit_is_found(model):
    path = model / "model.safetensors"
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for place in [0, 3, 8, start - 9, start, (start + len(whole)) // 2, len(whole) - 1]:
        for bit in (1, 128):
            damaged = bytearray(whole)
            damaged[place] ^= bit
            path.write_bytes(damaged)
            assert "model.safetensors" in refusal(model)


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "\xff", '{"a": ' * 9999])
def test_damaged_json_is_named(model, text):
    for name in ("config.json", "tokenizer.json"):
        before = (model / name).read_bytes()
        (model / name).write_text(text, encoding="latin-1")
        assert f"{name}: " in refusal(model)
        (model / name).write_bytes(before)


def test_damaged_values_are_named(model):
    for change, message in (
        ({"model_type": "gpt2"}, "model_type: 'gpt2'"),
        ({"model_type": None}, "model_type: 'None'"),
        ({"vocab_size": "many"}, "vocab_size: 'many'"),
        ({"num_hidden_layers": 3.5}, "num_hidden_layers: 3.5"),
        ({"mlm": []}, "mlm: "),
    ):
        before = (model / "config.json").read_bytes()
        edit_config(model, **change)
        assert f"config.json: {message}" in refusal(model)
        (model / "config.json").write_bytes(before)


def test_damaged_values_of_our_own_layout(saved, tmp_path):
    own = shutil.copytree(saved / "own", tmp_path / "own")
    for change, message in (
        ({"head": None}, "head: None"),
        ({"attention": "global"}, "attention: 'global' is not a list of names"),
        ({"attention": ["sideways"]}, "attention: 'sideways'"),
        ({"bias": "no"}, "bias: 'no' is not true or false"),
        ({"id2label": {"1": "a"}}, "id2label: "),
        ({"position": "sideways"}, "position: 'sideways'"),
    ):
        before = (own / "config.json").read_bytes()
        edit_config(own, **change)
        assert message in refusal(own)
        (own / "config.json").write_bytes(before)
    values = json.loads((own / "config.json").read_text())
    del values["norm"]
    (own / "config.json").write_text(json.dumps(values))
    assert "norm is missing" in refusal(own)


def test_tensors_that_do_not_fit_are_named(saved, tmp_path):
    name = "bert.encoder.layer.1.attention.self.key.weight"
    changes = {
        f"the tensor {name} is missing": lambda t: t.pop(name),
        f"the tensor {name} is [31, 32]": lambda t: t.update({name: t[name][1:].clone()}),
        "the tensor bert.extra.weight has no place": lambda t: t.update(
            {"bert.extra.weight": torch.zeros(1)}
        ),
        "the tensor cls.predictions.decoder.weight differs from": lambda t: t.update(
            {"cls.predictions.decoder.weight": torch.zeros(1)}
        ),
    }
    for index, (message, change) in enumerate(changes.items()):
        model = shutil.copytree(saved / "native", tmp_path / str(index))
        edit_tensors(model, change)
        assert f"model.safetensors: {message}" in refusal(model).replace(
            "safetensors: tensor ", "safetensors: "
        )
    model = shutil.copytree(saved / "native", tmp_path / "layers")
    edit_tensors(model, lambda tensors: None)  # nor has config.json a checksum then
    edit_config(model, num_hidden_layers=2)
    assert "bert.encoder.layer.2" in refusal(model)
    edit_config(model, num_hidden_layers=4)
    assert "bert.encoder.layer.3" in refusal(model)


def test_what_older_files_hold_beside_the_model_is_left_out(saved, tmp_path):
    model = shutil.copytree(saved / "native", tmp_path / "model")

    def add(tensors):
        tensors["cls.predictions.decoder.weight"] = tensors[
            "bert.embeddings.word_embeddings.weight"
        ].clone()
        tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"].clone()
        tensors["bert.embeddings.position_ids"] = torch.arange(64)[None]
        tensors["bert.pooler.dense.weight"] = torch.zeros(32, 32)
        tensors["cls.seq_relationship.bias"] = torch.zeros(2)

    edit_tensors(model, add)
    assert read_folder(model).state.keys() == read_folder(saved / "native").state.keys()


def test_a_tokenizer_of_another_model_is_refused(model):
    texts = ["a completely different set of words, larger too"] * 3
    other = train_tokenizer(texts + [chr(c) for c in range(0x400, 0x700)], vocab_size=900)
    mlm.checkpoint.save_tokenizer(other, model, 64)
    assert "tokenizer.json: has" in refusal(model)
    other = train_tokenizer(texts, vocab_size=100)
    mlm.checkpoint.save_tokenizer(other, model, 64)
    assert "tokenizer.json: is not the tokenizer of this model" in refusal(model)
    # Where the weights carry no checksum of ours, fewer tokens than rows are fine: some pad rows.
    edit_tensors(model, lambda tensors: None)
    assert read_folder(model).config.vocab_size == small_config("bert").vocab_size


def test_the_special_ids_are_the_tokenizers(saved, tmp_path):
    model = shutil.copytree(saved / "native", tmp_path / "model")
    edit_config(model, mask_token_id=77, cls_token_id=None)
    assert read_folder(model).config == small_config("bert")
