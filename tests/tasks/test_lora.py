"""Fine-tuning by adapters: what learns, what is saved, and that it goes on where it was."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_finetuning import losses, run, same_weights, validations, words
from toy import toy_rows, write_pretrained

from mlm.adapter_folder import CONFIG, WEIGHTS
from mlm.adapters import adapter_state
from mlm.checkpoint import read_folder
from mlm.cli import main
from mlm.errors import UserError
from mlm.weights import SHA256, digest
from tasks import Classifier
from tasks.lora import load_task_adapter

LORA = "--lora.rank 4 --lora.alpha 8"
SHORT = "--trainer.max_steps 4 --trainer.val_check_interval 2"
TEXTS = [text for text, _ in toy_rows(12, 9)]


def scores(classifier):
    return torch.tensor([list(answer["scores"].values()) for answer in classifier(TEXTS)])


@pytest.fixture(scope="module")
def trained(toy, pretrained, tmp_path_factory):
    """{family: a finished run}."""
    root = tmp_path_factory.mktemp("lora")
    for family, model in pretrained.items():
        run(toy, model, root / family, f"{LORA} {SHORT}")
    return {family: root / family for family in pretrained}


@pytest.mark.parametrize("family", ["bert", "modern"])
def test_it_learns_and_says_how_much_it_trains(family, toy, pretrained, tmp_path, capsys):
    more = "--lora.rank 8 --lora.dropout 0.1 --optimizer.lr 0.01 --trainer.max_epochs 8"
    assert run(toy, pretrained[family], tmp_path / "run", more)["accuracy"] > 0.9
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "trains" in x]
    state = read_folder(tmp_path / "run" / "model").state
    adapter = load_file(tmp_path / "run" / "adapter" / WEIGHTS)
    # Each of bert's queries, keys and values has the A that all share.
    copies = [
        t for n, t in adapter.items() if n.endswith(("key.lora_A.weight", "value.lora_A.weight"))
    ]
    learns = sum(t.numel() for t in adapter.values()) - sum(t.numel() for t in copies)
    whole = sum(t.numel() for n, t in state.items())
    adapters = learns - sum(t.numel() for n, t in state.items() if not n.startswith("encoder."))
    share = 100 * learns / (whole + adapters)
    assert f"trains {share:.2g} % of" in line


@pytest.mark.parametrize("family", ["bert", "modern"])
def test_only_targets_and_head_change_and_only_they_have_an_optimizer(
    family, toy, pretrained, tmp_path
):
    more = (
        f"{LORA} --lora.targets [qkv,down] --model.freeze 1 --loss.r_drop 1 --optimizer.name muon "
        f"--activation_checkpointing true --optimizer.layer_decay 0.9 {SHORT}"
    )
    run(toy, pretrained[family], tmp_path / "run", more)
    before, after = (read_folder(f).state for f in (pretrained[family], tmp_path / "run" / "model"))
    changed = {
        n for n in after if n.startswith("encoder.") and not torch.equal(before[n], after[n])
    }
    targets = ("mixer.qkv", "feed_forward.down")
    assert changed == {f"encoder.layers.1.{target}.weight" for target in targets}
    path = tmp_path / "run" / "checkpoints" / "step_00000004" / "state.pt"
    kept = torch.load(path, weights_only=True)["optimizer_states"][0]["state"]
    assert len(kept) == 4 + sum(not name.startswith("encoder.") for name in after)


@pytest.mark.parametrize("task", ["text_classification", "regression"])
def test_resume_is_bit_identical(toy, numbers, pretrained, tmp_path, task):
    data = toy if task == "text_classification" else numbers
    more = (
        f"--task {task} {LORA} --lora.dropout 0.1 --trainer.max_steps 8 "
        "--trainer.val_check_interval 4 --checkpoint.every_n_steps 3 --checkpoint.keep 5"
    )
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    run(data, pretrained["modern"], whole, more)
    shutil.copytree(whole, halves)
    for late in ("step_00000006", "step_00000008"):
        shutil.rmtree(halves / "checkpoints" / late)
    (halves / "results.json").unlink()
    shutil.rmtree(halves / "adapter")
    run(data, pretrained["modern"], halves, f"{more} --resume auto")
    assert losses(halves) == losses(whole)
    assert validations(halves, "loss") == validations(whole, "loss")
    for folder in ("model", "checkpoints/step_00000008/model"):
        assert same_weights(halves / folder, whole / folder)
    one, other = (load_file(r / "adapter" / WEIGHTS) for r in (whole, halves))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (
            "--lora.alpha 9 --lora.rank 4",
            r"--resume: this checkpoint was trained on another --model",
        ),
        ("--lora.alpha 8 --lora.rank 2", r"lora_A is \[4, 64\], where this model wants \[2, 64\]"),
        ("", r"--resume: this checkpoint has adapters"),
        ("another base", r"--resume: this checkpoint was trained on another --model"),
    ],
)
def test_resuming_with_other_adapters_is_refused(
    toy, pretrained, trained, tmp_path, tokenizer, changed, named
):
    shutil.copytree(trained["modern"], tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    model = pretrained["modern"]
    if changed == "another base":
        model = write_pretrained(tmp_path / "m", "modern", tokenizer, initializer_range=0.1)
        changed = LORA
    with pytest.raises(UserError, match=named) as caught:
        run(toy, model, tmp_path / "run", f"{changed} --trainer.max_steps 8 --resume auto")
    assert "\n" not in str(caught.value)


def test_a_rollback_after_a_spike_takes_weights_as_they_are_trained(
    numbers, pretrained, tmp_path, monkeypatch, capsys
):
    """In a regression the folder has the classifier in another unit, too."""
    from mlm.training.spikes import SpikeDetector

    seen, more = [], "--task regression --on_spike rollback --checkpoint.every_n_steps 2"

    def third(self, loss):
        seen.append(loss)
        return len(seen) == 4

    monkeypatch.setattr(SpikeDetector, "sees_spike", third)
    more = f"{more} --trainer.max_steps 5 --data.batch_size 100 --optimizer.schedule constant"
    run(numbers, pretrained["bert"], tmp_path / "run", f"{more} {LORA} --optimizer.lr 1e-4")
    assert "went back to" in capsys.readouterr().err
    assert losses(tmp_path / "run")[5] == pytest.approx(losses(tmp_path / "run")[3], rel=0.5)


@pytest.mark.parametrize("family", ["bert", "modern"])
def test_the_model_folder_answers_the_same_in_transformers_and_so_does_the_adapter(
    family, trained, pretrained
):
    transformers = pytest.importorskip("transformers")
    run_dir = trained[family]
    expected = scores(Classifier.from_pretrained(run_dir / "model", precision="fp32"))
    again = Classifier(
        *load_task_adapter(pretrained[family], run_dir / "adapter"), precision="fp32"
    )
    torch.testing.assert_close(scores(again), expected, atol=1e-6, rtol=0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(run_dir / "model")
    inputs = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
    kind = transformers.AutoModelForSequenceClassification
    theirs = kind.from_pretrained(run_dir / "model").eval()
    with torch.inference_mode():
        torch.testing.assert_close(theirs(**inputs).logits.softmax(-1), expected, atol=1e-4, rtol=0)
    # As PEFT does it: a base, and to each target's weight its own product by name.
    base = kind.from_pretrained(pretrained[family], num_labels=2).eval()
    config = json.loads((run_dir / "adapter" / CONFIG).read_text())
    tensors = load_file(run_dir / "adapter" / WEIGHTS)
    tensors = {name.removeprefix("base_model.model."): t for name, t in tensors.items()}
    state = base.state_dict()
    for target in config["target_modules"]:
        a, b = (tensors.pop(f"{target}.lora_{x}.weight") for x in "AB")
        state[f"{target}.weight"] += config["lora_alpha"] / config["r"] * b @ a
    assert {name.rpartition(".")[0] for name in tensors} == set(config["modules_to_save"])
    base.load_state_dict(state | tensors)
    with torch.inference_mode():
        torch.testing.assert_close(base(**inputs).logits.softmax(-1), expected, atol=1e-4, rtol=0)


def test_peft_loads_the_adapter(trained, pretrained):
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    for family, run_dir in trained.items():
        expected = scores(Classifier.from_pretrained(run_dir / "model", precision="fp32"))
        tokenizer = transformers.AutoTokenizer.from_pretrained(run_dir / "model")
        inputs = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
        kind = transformers.AutoModelForSequenceClassification
        base = kind.from_pretrained(pretrained[family], num_labels=2)
        model = peft.PeftModel.from_pretrained(base, run_dir / "adapter").eval()
        with torch.inference_mode():
            found = model(**inputs).logits.softmax(-1)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_a_head_of_our_own_round_trips_too(toy, pretrained, tmp_path):
    more = f"{LORA} --model.pooling attention --model.layers 2 {SHORT}"
    run(toy, pretrained["bert"], tmp_path / "run", more)
    expected = scores(Classifier.from_pretrained(tmp_path / "run" / "model", precision="fp32"))
    loaded = load_task_adapter(pretrained["bert"], tmp_path / "run" / "adapter")
    torch.testing.assert_close(scores(Classifier(*loaded, precision="fp32")), expected)


def test_a_run_starts_from_an_adapter_and_its_head(toy, pretrained, trained, tmp_path):
    folder = trained["modern"] / "adapter"
    more = "--trainer.max_steps 1 --optimizer.lr 1e-9"
    run(toy, pretrained["modern"], tmp_path / "run", f"--lora.adapter {folder} {more}")
    old, new = load_file(folder / WEIGHTS), load_file(tmp_path / "run" / "adapter" / WEIGHTS)
    assert old.keys() == new.keys()
    for name in old:
        torch.testing.assert_close(old[name], new[name], atol=1e-6, rtol=0)
    # Another task has another head, and the same adapters.
    more = f"{more} --data.labels [pos,neg]"
    run(toy, pretrained["modern"], tmp_path / "other", f"--lora.adapter {folder} {more}")
    other = load_file(tmp_path / "other" / "adapter" / WEIGHTS)
    for name in old:
        assert torch.allclose(old[name], other[name], atol=1e-6) == ("lora_" in name)


def test_seeds_have_an_adapter_each_and_the_best_is_kept(toy, pretrained, tmp_path):
    found = run(toy, pretrained["modern"], tmp_path / "run", f"--seeds 2 {LORA} {SHORT}")
    best = tmp_path / "run" / f"seed_{found['best_seed']}" / "adapter" / WEIGHTS
    assert (tmp_path / "run" / "adapter" / WEIGHTS).read_bytes() == best.read_bytes()


# --- what cannot be run ---


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ("--lora.rank -1", r"lora\.rank: -1 must be at least 0"),
        ("--lora.rank 33", r"lora\.rank: 33 must lie between 1 and 32"),
        ("--lora.rank 4 --lora.alpha 0", r"lora\.alpha: 0\.0 must be above 0"),
        ("--lora.rank 4 --lora.dropout 1", r"lora\.dropout: 1\.0 must lie in"),
        ("--lora.rank 4 --lora.targets []", r"lora\.targets: the list is empty"),
        ("--lora.rank 4 --lora.targets [qvk]", r"'qvk' matches no linear layer.*did you mean qkv"),
        ("--lora.alpha 4", r"lora\.alpha: there are no adapters; set lora\.rank"),
        ("--lora.rank 4 --model.random true", "random weights are not worth adapting"),
        ("--lora.rank 4 --model.freeze encoder", "every linear layer is frozen"),
        ("--lora.adapter no/such", r"no/such: no adapter's folder, it has no adapter_config\.json"),
        ("--lora.adapter {} --lora.rank 2", r"lora\.rank: .*has its own; leave this out"),
        ("--lora.adapter {} --model.freeze 1", r"model\.freeze freezes layers that it is on"),
    ],
)
def test_mistakes_exit_with_2_in_one_line_and_leave_nothing(
    toy, pretrained, trained, tmp_path, capsys, more, named
):
    more = more.format(trained["modern"] / "adapter")
    command = words(toy, pretrained["modern"], tmp_path / "run", f"{more} {SHORT}")
    assert main(["finetune", *command]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert __import__("re").search(named, line), line
    assert not (tmp_path / "run").exists()


def lie(folder: Path, change, about=lambda values: values):
    """Rewrite an adapter's tensors and metadata, checksum included."""
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        metadata = file.metadata()
    tensors = change(load_file(folder / WEIGHTS))
    metadata[SHA256] = digest(tensors)
    metadata["mlm"] = json.dumps(about(json.loads(metadata["mlm"])))
    save_file(tensors, folder / WEIGHTS, metadata)


def first(tensors, change):
    name = next(name for name in sorted(tensors) if "lora_B" in name)
    return tensors | {name: change(tensors[name])}


LIES = {
    "nan": (lambda t: first(t, lambda x: x * torch.nan), None, "holds NaN or infinity"),
    "shape": (lambda t: first(t, lambda x: x[:-1].clone()), None, r"is \[\d+, 4\], where"),
    "kind": (lambda t: first(t, lambda x: x.long()), None, "holds int64"),
    "missing": (lambda t: dict(sorted(t.items())[1:]), None, "is missing"),
    "more": (lambda t: t | {"x.y": torch.zeros(1)}, None, "x.y has no place"),
    "rank": (lambda t: t, {"rank": 10**9}, "r is 4, but these weights were saved with 1000000000"),
    "target": (lambda t: t, {"targets": ["layers.9.x"]}, "names a layer 'layers.9.x'"),
    "kinds": (lambda t: t, {"alpha": "8"}, "no adapter that mlm has saved"),
    "base": (lambda t: t, {"base": "0"}, "was trained on another base"),
}


@pytest.mark.parametrize("kind", LIES)
def test_a_lying_adapter_is_refused_in_one_line(kind, pretrained, trained, tmp_path):
    change, about, named = LIES[kind]
    shutil.copytree(trained["bert"] / "adapter", tmp_path / "adapter")
    lie(tmp_path / "adapter", change, lambda values: values | (about or {}))
    with pytest.raises(UserError, match=named) as caught:
        load_task_adapter(pretrained["bert"], tmp_path / "adapter")
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_damage_and_another_base_are_refused(pretrained, trained, tmp_path):
    with pytest.raises(UserError, match="was trained on another base"):
        load_task_adapter(pretrained["modern"], trained["bert"] / "adapter")
    folder = shutil.copytree(trained["bert"] / "adapter", tmp_path / "adapter")
    values = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(values | {"lora_alpha": 80}))
    with pytest.raises(
        UserError, match=r"lora_alpha is 80, but these weights were saved with 8\.0"
    ):
        load_task_adapter(pretrained["bert"], folder)
    (folder / CONFIG).write_text("{")
    with pytest.raises(UserError, match="damaged, not JSON"):
        load_task_adapter(pretrained["bert"], folder)
    shutil.copy(trained["bert"] / "adapter" / CONFIG, folder)
    raw = bytearray((folder / WEIGHTS).read_bytes())
    raw[-3] ^= 1
    (folder / WEIGHTS).write_bytes(raw)
    with pytest.raises(UserError, match="does not match its checksum"):
        load_task_adapter(pretrained["bert"], folder)
    assert adapter_state(load_file(trained["bert"] / "adapter" / WEIGHTS)) == {}
