"""Model folders that lie about their weights, and damage of any kind: found, or without effect."""

import json
import math
import random
import shutil
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from planted import refusal
from safetensors.torch import load_file, save_file
from small_models import save_classifier, save_masked_lm, small_config
from sweep import damaged

from mlm.checkpoint import build_masked_lm, read_folder
from mlm.errors import UserError
from mlm.inference import Embedder, fill_masks
from tasks.base import TASKS, find_task
from tasks.inference import Predictor
from tasks.settings import TaskSettings

WEIGHT = "bert.encoder.layer.1.output.dense.weight"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A native folder, one in our own layout, and a fine-tuned one."""
    place = tmp_path_factory.mktemp("saved")
    save_masked_lm(place / "native", small_config("bert"))
    save_masked_lm(place / "own", small_config("modern", position="sinusoidal"))
    save_classifier(place / "classifier")
    return place


@pytest.fixture
def model(saved, tmp_path):
    return shutil.copytree(saved / "native", tmp_path / "model")


def edit_json(path: Path, change) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


# Headers of safetensors: a length of 8 bytes, JSON of that length, the numbers.


def entry(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


LIES = {
    "a header longer than the file": (2**20, {}),
    "a header of 2^60 bytes": (2**60, {}),
    "a header of 2^64 - 1 bytes": (2**64 - 1, {}),
    "beyond the file": (None, {"a": entry([32], 0, 128)}),
    "far beyond the file": (None, {"a": entry([2**40], 0, 2**42)}),
    "more than 64 bits of it": (None, {"a": entry([2**62, 4], 0, 64)}),
    "overlapping": (None, {"a": entry([16], 0, 64), "b": entry([8], 0, 32)}),
    "a gap": (None, {"a": entry([4], 0, 16), "b": entry([8], 32, 64)}),
    "a negative offset": (None, {"a": entry([24], -32, 64)}),
    "a negative size": (None, {"a": entry([-16], 0, 64)}),
    "backwards": (None, {"a": entry([16], 64, 0)}),
    "a shape of another size": (None, {"a": entry([15], 0, 64)}),
    "a kind of another size": (None, {"a": entry([16], 0, 64, "F64")}),
    "a kind that there is not": (None, {"a": entry([16], 0, 64, "PICKLE")}),
    "no tensors": (None, {}),
    "metadata that is no text": (
        None,
        {"__metadata__": {"mlm_sha256": 1}, "a": entry([16], 0, 64)},
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_header(model, lie):
    length, header = LIES[lie]
    data = json.dumps(header).encode()
    content = struct.pack("<Q", len(data) if length is None else length) + data + bytes(64)
    (model / "model.safetensors").write_bytes(content)
    assert "model.safetensors: damaged" in refusal(read_folder, model)


# Numbers


@pytest.mark.parametrize("layout", ["native", "own"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers(saved, tmp_path, layout, dtype, value):
    folder = shutil.copytree(saved / layout, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    name = sorted(tensors)[len(tensors) // 2]
    tensors = {key: tensor.to(dtype) for key, tensor in tensors.items()}
    tensors[name].view(-1)[-1] = value
    save_file(tensors, folder / "model.safetensors")
    assert f"the tensor {name} holds NaN or infinity" in refusal(read_folder, folder)
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    assert f"the tensor {name} holds NaN or infinity" in refusal(Embedder, folder)


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.int8, torch.bool, torch.float8_e4m3fn, torch.complex64]
)
def test_weights_of_another_kind(model, dtype):
    tensors = load_file(model / "model.safetensors")
    tensors[WEIGHT] = torch.zeros(tensors[WEIGHT].shape).to(dtype)
    save_file(tensors, model / "model.safetensors")
    kind = str(dtype).removeprefix("torch.")
    assert f"the tensor {WEIGHT} holds {kind}, where" in refusal(read_folder, model)


@pytest.mark.filterwarnings("ignore:.*sparse")
def test_tensors_without_numbers_in_memory(model):
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    weight = tensors[WEIGHT]
    sparse, nested = weight.to_sparse(), torch.nested.nested_tensor([weight[0]])
    for value in (sparse, weight.to_sparse_csr(), weight.to("meta"), nested, [weight], 3, None):
        torch.save(tensors | {WEIGHT: value}, model / "pytorch_model.bin")
        assert "pytorch_model.bin: " in refusal(read_folder, model)
    torch.save(tensors, model / "pytorch_model.bin")
    assert read_folder(model).head == "masked_lm"


@pytest.mark.parametrize("shape", [(31, 48), (48, 32), (32 * 48,), (1, 32, 48), ()])
def test_weights_of_another_shape(model, shape):
    tensors = load_file(model / "model.safetensors")
    tensors[WEIGHT] = torch.zeros(shape)
    save_file(tensors, model / "model.safetensors")
    assert f"the tensor {WEIGHT} is {list(shape)}, where config.json" in refusal(read_folder, model)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", 2**28),
        ("vocab_size", 2**61),
        ("hidden_size", 2**200),
        ("intermediate_size", 2**28),
        ("max_position_embeddings", -1),
        ("layer_norm_eps", 10**400),
        ("layer_norm_eps", float("inf")),
        ("layer_norm_eps", float("nan")),
    ],
)
def test_a_config_that_lies_about_sizes_is_answered_at_once(model, key, value):
    save_file(load_file(model / "model.safetensors"), model / "model.safetensors")
    edit_json(model / "config.json", lambda values: values.update({key: value}))
    start = time.monotonic()
    assert "config.json" in refusal(read_folder, model)
    assert time.monotonic() - start < 5


# Checksums


def test_a_config_belongs_to_its_weights(saved, tmp_path):
    """Every field that decides the numbers, wherever the shapes would fit all the same."""
    changes = {
        "native": {
            "num_attention_heads": 4,
            "hidden_act": "relu",
            "layer_norm_eps": 1e-5,
            "hidden_dropout_prob": 0.5,
        },
        "own": {
            "attention": ["global"],
            "local_attention": 8,
            "max_position_embeddings": 65,
            "activation": "silu",
            "rope_theta": 5.0,
            "head": "spans",
        },
    }
    for layout, settings in changes.items():
        for key, value in settings.items():
            folder = shutil.copytree(saved / layout, tmp_path / f"{layout}_{key}")
            assert json.loads((folder / "config.json").read_text())[key] != value
            edit_json(folder / "config.json", lambda values, k=key, v=value: values.update({k: v}))
            assert refusal(read_folder, folder) == (
                f"{folder}/config.json: does not belong to these weights (its checksum differs); "
                "restore it"
            )
            save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors")
            assert read_folder(folder)  # another tool's weights say nothing of it


def test_what_people_edit_in_a_config_is_theirs(saved, tmp_path):
    folder = shutil.copytree(saved / "classifier", tmp_path / "model")
    before = Predictor.from_pretrained(folder)(["a text"])[0]

    def edit(values):
        values["id2label"] = {"0": "bad", "1": "good"}
        values["label2id"] = {"bad": 0, "good": 1}
        values |= {"_name_or_path": "mine", "transformers_version": "5", "mask_token_id": 77}
        values["mlm"] |= {"note": "of my own", "label_column": "stars"}

    edit_json(folder / "config.json", edit)
    after = Predictor.from_pretrained(folder)(["a text"])[0]
    assert {before["label"], after["label"]} in ({"no", "bad"}, {"yes", "good"})


def test_the_pooling_of_a_head_belongs_to_its_weights(tmp_path):
    save_classifier(tmp_path / "model", position="sinusoidal")  # in our own layout
    assert Predictor.from_pretrained(tmp_path / "model")(["a text"])
    edit_json(tmp_path / "model" / "config.json", lambda v: v["mlm"].update(pooling="mean"))
    assert "does not belong to these weights" in refusal(read_folder, tmp_path / "model")


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t["post_processor"]["special_tokens"]["[CLS]"].update(ids=[9]),
        lambda t: t["post_processor"]["single"][0]["SpecialToken"].update(type_id=1),
        lambda t: t["post_processor"]["pair"][3]["Sequence"].update(type_id=0),
        lambda t: t["post_processor"]["single"].pop(),
        lambda t: t.update(post_processor=None),
        lambda t: t["model"].update(unk_token="[PAD]"),
        lambda t: t.update(normalizer=None),
    ],
)
def test_a_tokenizer_belongs_to_its_weights(model, change):
    edit_json(model / "tokenizer.json", change)
    assert "tokenizer.json: is not the tokenizer of this model" in refusal(read_folder, model)


def test_the_roles_of_special_tokens_belong_to_the_weights(model):
    edit_json(model / "tokenizer_config.json", lambda values: values.update(mask_token="[SEP]"))
    assert "is not the tokenizer of this model" in refusal(read_folder, model)


# Damage


def outputs(folder: Path) -> list:
    """What people get: numbers of every kind of model that the folder may be."""
    texts = ["the cat sat", "naïve [MASK] one two", ""]
    read = read_folder(folder)
    found = [Embedder(folder)(texts)]
    if read.head == "masked_lm":
        masks = fill_masks(build_masked_lm(read), read.tokenizer, texts, 300)
        found += [np.array([g["score"] for answer in masks for m in answer["masks"] for g in m])]
    else:
        predictor = Predictor.from_pretrained(folder)
        examples = predictor.task.encode([(text,) for text in texts], predictor.tokenizer)
        found += [numbers.numpy() for _, _, numbers in predictor.outputs(examples)]
    return found


def check_damage(folder: Path, name: str, contents) -> int:
    """How many of ``contents`` were found; no other makes a difference."""
    before = outputs(folder)
    whole = (folder / name).read_bytes()
    found = 0
    for content in contents:
        (folder / name).write_bytes(content)
        try:
            after = outputs(folder)
        except UserError as error:
            assert name in str(error) or str(folder) in str(error)  # noqa: PT017
            found += 1
            continue
        assert all(map(np.array_equal, before, after)), (name, whole, content)
    (folder / name).write_bytes(whole)
    return found


FILES = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"]
LAYOUTS = ["native", *(pytest.param(n, marks=pytest.mark.slow) for n in ("own", "classifier"))]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", FILES)
def test_damage_is_found_or_makes_no_difference(saved, tmp_path, layout, name):
    folder = shutil.copytree(saved / layout, tmp_path / "model")
    cases = damaged((folder / name).read_bytes(), FILES.index(name))
    found = check_damage(folder, name, (next(cases) for _ in range(100)))
    assert found == 0 if name == "README.md" else found > 10
    if name == "model.safetensors":
        assert found > 95  # the rest: a letter in the name of a checksum, say


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["native", "own", "classifier"])
def test_no_bit_of_a_config_or_a_template_matters_unseen(saved, tmp_path, layout):
    """One bit of every byte, three bytes out of four: where most of what decides is written."""
    folder = shutil.copytree(saved / layout, tmp_path / "model")
    for name, start in (("config.json", "{"), ("tokenizer.json", '"post_processor"')):
        whole = (folder / name).read_bytes()
        first = whole.index(start.encode())
        last = whole.index(b'"decoder"') if name == "tokenizer.json" else len(whole)

        def flips(whole=whole, first=first, last=last):
            for place in range(first, last):
                copy = bytearray(whole)
                copy[place] ^= 1 << random.Random(place).randrange(7)
                yield bytes(copy)

        assert check_damage(folder, name, flips()) > 100


VALUES_OF_A_LIE = [None, "x", "", "1e5", -1, 0, math.nan, math.inf, 10**400]
VALUES_OF_A_LIE += [True, [], ["a", 2], {}, {"a": 1}]


@pytest.mark.parametrize("name", TASKS)
def test_what_a_folder_says_of_its_task_is_taken_back_or_refused(name):
    kind, given = find_task(name), {}
    if name == "prompt_classification":
        given = {"pattern": "{text} [MASK]", "verbaliser": {"a": ["x"], "b": ["y"]}}
    labels = ("a", "b") if name.endswith("classification") else ()
    info, refused = kind(TaskSettings(labels=labels, **given)).info(), []
    for key in info:
        for lie in VALUES_OF_A_LIE:
            try:
                kind.restore({**info, key: lie}, labels)
            except UserError as error:
                refused.append(str(error))
    assert len(refused) > len(info)
    assert not [line for line in refused if "\n" in line or len(line) > 600]
