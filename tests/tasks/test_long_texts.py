"""Long texts: which tokens stay, which windows there are, and what their votes come to."""

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score
from test_finetuning import run, validations, words
from toy import BAD, FILLER, GOOD, table, toy_config, toy_rows, write_csv, write_folder

from mlm.checkpoint import read_folder
from mlm.cli import main
from mlm.errors import UserError
from tasks.inference import Predictor
from tasks.long_texts import TRUNCATIONS, kept, log_mean_exp_by, mean_by, windows
from tasks.metrics import PerText
from tasks.regression import Regression
from tasks.settings import TaskSettings
from tasks.text_classification import TextClassification

WORDS = 30
LONG = " ".join((GOOD + BAD + FILLER)[i % 19] for i in range(WORDS))


def fitted(tmp_path, tokenizer, kind=TextClassification, rows=None, **settings):
    rows = rows or toy_rows(8, 0)
    task = kind(TaskSettings(**settings))
    task.fit(table(tmp_path, ["text", "label"], rows), toy_config("bert", tokenizer))
    return task


# --- which tokens ---


@pytest.mark.parametrize("truncation", TRUNCATIONS)
@pytest.mark.parametrize(("length", "room"), [(9, 8), (100, 7), (5, 1)])
def test_what_is_kept_is_a_head_and_a_tail(truncation, length, room):
    found = kept(length, room, truncation)
    head = {"head": room, "tail": 0, "both": room // 4}[truncation]
    assert found.tolist() == [*range(head), *range(length - room + head, length)]
    assert len(found) == room


@pytest.mark.parametrize("room", [1, 4, 7])
@pytest.mark.parametrize("length", [8, 9, 23, 40])
def test_windows_cover_a_text_and_overlap(length, room):
    for stride in range(room):
        found = windows(length, room, stride)
        assert {len(w) for w in found} == {room}
        assert sorted(set(np.concatenate(found).tolist())) == list(range(length))
        shared = [len(set(a) & set(b)) for a, b in itertools.pairwise(found)]
        assert all(s == stride for s in shared[:-1])
        assert shared[-1] >= stride


@pytest.mark.parametrize("truncation", ["tail", "both"])
def test_a_cut_text_keeps_its_special_tokens(truncation, tmp_path, tokenizer):
    whole = tokenizer.encode(LONG).ids
    exact = tokenizer.decode(whole[1:11])
    task = fitted(tmp_path, tokenizer, truncation=truncation, max_length=12)
    long, short, just, empty = task.encode([(LONG,), ("a film",), (exact,), ("",)], tokenizer)
    body = whole[1:-1]
    expected = body[-10:] if truncation == "tail" else body[:2] + body[-8:]
    assert long.input_ids.tolist() == [whole[0], *expected, whole[-1]]
    assert short.input_ids.tolist() == tokenizer.encode("a film").ids
    assert len(just.input_ids) == 12
    assert [e.truncated for e in (long, short, just, empty)] == [True, False, False, False]
    assert [e.row for e in (long, short, just, empty)] == [0, 1, 2, 3]
    assert tokenizer.truncation is None


def test_head_is_what_it_always_was(tmp_path, tokenizer):
    usual = fitted(tmp_path, tokenizer, max_length=12)
    (example,) = usual.encode([(LONG,)], tokenizer)
    whole = tokenizer.encode(LONG).ids
    assert example.input_ids.tolist() == [*whole[:11], whole[-1]]
    assert usual.settings.truncation == "head"


def test_windows_are_framed_and_know_their_text(tmp_path, tokenizer):
    task = fitted(tmp_path, tokenizer, long_texts="windows", stride=3, max_length=12)
    examples = task.encode([("a film",), (LONG,), ("dull",)], tokenizer)
    body = tokenizer.encode(LONG).ids[1:-1]
    starts = [*range(0, len(body) - 10, 7), len(body) - 10]
    assert [e.row for e in examples] == [0] + [1] * len(starts) + [2]
    for start, example in zip(starts, examples[1:], strict=False):
        assert example.input_ids.tolist() == [2, *body[start : start + 10], 3]
    assert not any(e.truncated for e in examples)
    labelled = task.label(examples, [0, 1, 0])
    assert task.collate(labelled).rows.tolist() == [e.row for e in examples]
    assert task.collate(labelled).labels.tolist() == [0] + [1] * len(starts) + [0]


# --- votes ---


def test_votes_are_means_of_probabilities():
    outputs = 5 * torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    owner = torch.tensor([1, 0, 1, 2, 1, 0, 2])
    task = TextClassification(TaskSettings(labels=("a", "b", "c")))
    found = task.pool_windows(outputs, owner, 3).softmax(-1)
    expected = torch.stack([outputs[owner == i].softmax(-1).mean(0) for i in range(3)])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        mean_by(outputs, owner, 3), torch.stack([outputs[owner == i].mean(0) for i in range(3)])
    )


def test_a_vote_that_is_nearly_impossible_is_no_infinite_loss():
    logits = torch.tensor([[0.0, -500.0], [0.0, -400.0]]).log_softmax(-1)
    (found,) = log_mean_exp_by(logits, torch.tensor([0, 0]), 1)
    assert found.tolist() == pytest.approx([0.0, -400 - np.log(2)])


@pytest.mark.parametrize("kind", [TextClassification, Regression])
def test_scores_are_of_texts_not_of_windows(kind, tmp_path, tokenizer):
    labels = ["pos", "neg", "pos", "neg"] if kind is TextClassification else [1.0, 5.0, 2.0, 4.0]
    texts = [LONG, "a film", LONG + " dull", LONG[40:]]
    data = table(tmp_path, ["text", "label"], list(zip(texts, labels, strict=True)))
    folder = write_folder(
        tmp_path / "model", kind, data.path, tokenizer,
        long_texts="windows", stride=2, max_length=10,
    )  # fmt: skip
    predictor = Predictor.from_pretrained(folder, precision="fp32")
    task = predictor.task
    examples = task.examples(data, tokenizer)
    assert len(examples) > 10
    with torch.inference_mode():
        outputs = torch.cat([predictor.model(task.collate([e])) for e in examples])
    of_text = [outputs[[e.row == row for e in examples]] for row in range(4)]
    found = predictor.evaluate(examples)
    answers = predictor(texts)
    if kind is TextClassification:
        votes = torch.stack([x.softmax(-1).mean(0) for x in of_text])
        truth = torch.tensor(task.targets(data))
        assert found["accuracy"] == accuracy_score(truth, votes.argmax(-1))
        assert found["macro_f1"] == pytest.approx(
            f1_score(truth, votes.argmax(-1), average="macro")
        )
        assert found["loss"] == pytest.approx(
            -votes[torch.arange(4), truth].log().mean().item(), rel=1e-4
        )
        scores = torch.tensor([list(a["scores"].values()) for a in answers])
        torch.testing.assert_close(scores, votes, rtol=1e-4, atol=1e-5)
    else:
        votes = torch.stack([x.mean() for x in of_text])
        errors = (votes - torch.tensor(labels)).square().mean().item()
        assert found["mse"] == pytest.approx(errors, rel=1e-4)
        assert found["loss"] == pytest.approx(errors / np.var(labels), rel=1e-4)
        assert [a["score"] for a in answers] == pytest.approx(votes.tolist(), rel=1e-4)
    assert [a["text"] for a in answers] == texts


@pytest.mark.parametrize("several", [False, True])  # labels a text
def test_the_order_of_windows_and_batches_does_not_matter(several):
    from torchmetrics import MeanMetric

    def see(metric, outputs, labels):
        metric.update(outputs[:, 0] * (labels[:, 1] if several else labels))

    none = torch.empty(0, 2) if several else torch.empty(0, dtype=torch.long)
    metric = PerText(MeanMetric(), see, mean_by, none)
    outputs = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    labels, rows = torch.tensor([5, 7, 5, 5, 7, 9]), torch.tensor([3, 8, 3, 3, 8, 9])
    labels = torch.stack([torch.zeros(6), labels], dim=1) if several else labels
    values = []
    for order in (torch.arange(6), torch.tensor([4, 0, 5, 2, 1, 3])):
        metric.reset()
        for part in order.split(2):
            metric.update(outputs[part], labels[part], rows[part])
        values.append(metric.compute().item())
    expected = np.mean([5 * outputs[[0, 2, 3], 0].mean(), 7 * outputs[[1, 4], 0].mean(),
                        9 * outputs[5, 0]])  # fmt: skip
    assert values == pytest.approx([expected, expected])


# --- in a run ---


@pytest.fixture(scope="module")
def late(tmp_path_factory):
    """{split: texts of 30 words, of which one of the last decides}."""
    root = tmp_path_factory.mktemp("late")

    def rows(count, seed):
        return [("the film is a story " * 5 + text, label) for text, label in toy_rows(count, seed)]

    return {
        name: write_csv(root / f"{name}.csv", ["text", "label"], rows(count, seed))
        for name, count, seed in (("train", 300, 1), ("validation", 60, 2), ("test", 60, 3))
    }


@pytest.mark.parametrize(
    ("more", "learns"),
    [
        ("", False),
        ("--data.truncation tail", True),
        ("--data.truncation both", True),
        ("--data.long_texts windows --data.stride 4", True),
    ],
)
def test_what_is_read_is_what_can_be_learnt(late, pretrained, tmp_path, capsys, more, learns):
    run_dir = tmp_path / "run"
    command = words(
        late, pretrained["modern"], run_dir,
        f"--data.max_length 18 --trainer.max_epochs 6 {more}",
    )  # fmt: skip
    assert main(["finetune", *command]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert (found["accuracy"] > 0.8) == learns
    assert ("windows" in err) == ("windows" in more)
    assert validations(run_dir, "accuracy")[found["step"]] == pytest.approx(found["accuracy"])
    assert validations(run_dir, "loss")[found["step"]] == pytest.approx(found["loss"], rel=1e-3)
    matrix = (run_dir / "confusion_matrix.csv").read_text().splitlines()[1:]
    assert sum(int(cell) for line in matrix for cell in line.split(",")[1:]) == 60
    # The folder keeps how it reads, and both commands read so.
    info = read_folder(run_dir / "model").info
    assert (info["long_texts"], info["truncation"]) == (
        ("windows", None) if "windows" in more else ("cut", (more.split() or ["head"])[-1])
    )
    model, test = str(run_dir / "model"), str(late["test"])
    assert main(["evaluate", "--model", model, "--data", test]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert set(scores) == {"loss", "accuracy", "macro_f1", "mcc", "f1"}
    assert main(["predict", "--model", model, "--input", test]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    truth = [label for _, label in toy_rows(60, 3)]
    right = np.mean([a["label"] == label for a, label in zip(answers, truth, strict=True)])
    assert right == pytest.approx(scores["accuracy"], abs=0.02)  # bf16, where there is any


def test_a_loss_of_texts_may_decide(late, pretrained, tmp_path):
    more = (
        "--data.max_length 18 --data.long_texts windows --trainer.max_steps 12 "
        "--trainer.val_check_interval 4 --checkpoint.monitor loss"
    )
    found = run(late, pretrained["modern"], tmp_path / "run", more)
    curve = validations(tmp_path / "run", "loss")
    assert found["loss"] == pytest.approx(min(curve.values()), rel=1e-3)


@pytest.mark.slow
def test_windows_on_two_processes_are_scored_as_on_one(late, pretrained, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    common = (
        "--data.max_length 18 --data.long_texts windows --model.dropout 0 --trainer.max_steps 6 "
        "--trainer.val_check_interval 3"
    )
    for run_dir, more in ((one, ""), (two, "--trainer.devices 2 --trainer.strategy ddp")):
        command = words(late, pretrained["modern"], run_dir, f"{common} {more}")
        subprocess.run(
            [sys.executable, "-m", "mlm", "finetune", *command],
            check=True, timeout=300, capture_output=True, text=True,
        )  # fmt: skip
    for metric in ("loss", "accuracy", "macro_f1", "mcc"):
        found = validations(two, metric)
        assert found == pytest.approx(validations(one, metric), abs=1e-4), metric


# --- what cannot be ---


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ("--data.truncation tial", "--data.truncation: expected one of head, tail, both"),
        ("--data.long_texts window", "--data.long_texts: expected one of cut, windows"),
        ("--data.stride 4", r"data\.stride: only windows share tokens"),
        ("--data.long_texts windows --data.stride 62", r"data\.stride: 62 is as long as a window"),
        ("--data.long_texts windows --data.stride -1", r"data\.stride: -1 must be at least 0"),
        ("--data.long_texts windows --data.truncation head", r"data\.truncation: windows cut"),
        ("--data.truncation both --data.max_length 2", r"data\.max_length: 2 leaves no room"),
    ],
)
def test_mistakes_are_one_line(toy, pretrained, tmp_path, more, named):
    with pytest.raises(UserError, match=named) as caught:
        run(toy, pretrained["modern"], tmp_path / "run", f"--trainer.max_steps 1 {more}")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "settings", [{"truncation": "tail"}, {"truncation": "both"}, {"long_texts": "windows"}]
)
def test_pairs_are_cut_as_ever(tmp_path, tokenizer, settings):
    rows = table(tmp_path, ["sentence1", "sentence2", "label"], [("a", "b", 0), ("c", "d", 1)])
    (name,) = settings
    task = TextClassification(TaskSettings(**settings))
    with pytest.raises(UserError, match=rf"data\.{name}: {settings[name]} is for single texts"):
        task.fit(rows, toy_config("bert", tokenizer))
