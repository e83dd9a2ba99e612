"""Choices: how tables have them, what the model makes of them, and what is refused."""

import json
import random

import numpy as np
import pytest
import torch
import transformers
from torch.nn import functional as F
from toy import BAD, FILLER, GOOD, toy_config, write_csv, write_folder, write_jsonl

from mlm.checkpoint import read_folder
from mlm.cli import main
from mlm.errors import UserError
from mlm.huggingface import native_class
from tasks.folders import load_task_folder
from tasks.inference import Predictor
from tasks.multiple_choice import MultipleChoice
from tasks.rows import Rows
from tasks.settings import TaskSettings


def choice_rows(count, seed, choices=3):
    """One choice has a good word, the others have bad ones; some are longer."""
    draw, rows = random.Random(seed), []
    for _ in range(count):
        right, words = draw.randrange(choices), draw.sample(BAD, choices)
        words[right] = draw.choice(GOOD)
        text = " ".join(draw.choices(FILLER, k=draw.randint(1, 6)))
        options = [" ".join([word, *draw.choices(FILLER, k=draw.randint(0, 3))]) for word in words]
        rows.append({"question": text, "choices": options, "label": right})
    return rows


@pytest.fixture(scope="module")
def chosen(tmp_path_factory):
    """{split: a table}."""
    root = tmp_path_factory.mktemp("choices")
    return {
        name: write_jsonl(root / f"{name}.jsonl", choice_rows(count, seed))
        for name, count, seed in (("train", 300, 1), ("validation", 60, 2), ("test", 60, 3))
    }


@pytest.fixture(scope="module")
def chooser(tmp_path_factory, chosen, tokenizer):
    folder = tmp_path_factory.mktemp("chooser") / "model"
    return write_folder(folder, MultipleChoice, chosen["train"], tokenizer)


def fitted(path, tokenizer, **settings):
    task = MultipleChoice(TaskSettings(**settings))
    task.fit(Rows.read(path), toy_config("modern", tokenizer))
    return task


# -- columns ---------------------------------------------------------------------------------------

ENDINGS = {f"ending{i}": f"end {i}" for i in range(4)}
LAYOUTS = [  # a row as its set has it, texts, choices, place of the right one
    (
        {"sent1": "She left.", "sent2": "He", **ENDINGS, "label": 2},
        ("She left.", "He"),
        tuple(ENDINGS.values()),
        2,
    ),
    (
        {"article": "A.", "question": "Q?", "options": ["a", "b", "c", "d"], "answer": "D"},
        ("A.", "Q?"),
        ("a", "b", "c", "d"),
        3,
    ),
    (
        {
            "question": "Q?",
            "choices": {"label": ["1", "2", "3"], "text": ["x", "y", "z"]},
            "answerKey": "2",
        },
        ("Q?",),
        ("x", "y", "z"),
        1,
    ),
    ({"ctx": "C", "endings": ["a", "b"], "label": "1"}, ("C",), ("a", "b"), 1),
    ({"premise": "P", "choice1": "a", "choice2": "b", "label": 0}, ("P",), ("a", "b"), 0),
    ({"goal": "G", "sol1": "a", "sol2": "b", "label": 1}, ("G",), ("a", "b"), 1),
]


@pytest.mark.parametrize(("row", "texts", "choices", "right"), LAYOUTS)
def test_usual_sets_are_read_as_they_are(row, texts, choices, right, tmp_path, tokenizer):
    task = fitted(write_jsonl(tmp_path / "t.jsonl", [row, row]), tokenizer)
    rows = Rows.read(tmp_path / "t.jsonl")
    assert task.inputs(rows)[0] == (texts, choices)
    assert task.targets(rows) == [right, right]


def test_columns_may_be_named(tmp_path, tokenizer):
    path = write_csv(tmp_path / "t.csv", ["t", "a", "b", "n"], [("x", "1", "2", "B")] * 2)
    settings = {"text_column": ("t",), "choice_column": ["a", "b"], "label_column": "n"}
    task = fitted(path, tokenizer, **settings)
    assert task.inputs(Rows.read(path))[0] == (("x",), ("1", "2"))
    assert task.targets(Rows.read(path)) == [1, 1]


GOOD_ROW = {"question": "Q", "choices": ["a", "b"], "label": 0}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"choices": ["a", "b", "c"]}, "row 2: column 'choices': 3 choices where row 1 has 2"),
        ({"choices": ["a"]}, "row 2: column 'choices': 1 choice where there must be two or more"),
        ({"choices": None}, "row 2: column 'choices': 'None' is not a list of texts"),
        (
            {"choices": ["a", None]},
            "row 2: column 'choices': \"['a', None]\" is not a list of texts",
        ),
        (
            {"label": 2},
            "row 2: column 'label': '2' is none of the 2 choices; they are",
        ),
        ({"label": -1}, "row 2: column 'label': '-1' is none of the 2 choices"),
        ({"label": None}, "row 2: column 'label': 'None' is none of the 2 choices"),
    ],
)
def test_a_bad_row_is_named(change, said, tmp_path, pretrained, capsys):
    path = write_jsonl(tmp_path / "t.jsonl", [GOOD_ROW, GOOD_ROW | change, GOOD_ROW])
    words = f"finetune --task multiple_choice --model {pretrained['bert']} --train {path}"
    words += f" --validation {path} --run_dir {tmp_path}/run --logging.wandb off"
    assert main(words.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert str(path) in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "row", "said"),
    [
        ({"labels": ("a", "b")}, GOOD_ROW, "data.labels: choices have no label set"),
        ({}, {"question": "Q", "label": 0}, "name yours with --data.choice_column"),
        ({}, {"question": "Q", "choices": ["a", "b"]}, "name yours with --data.label_column"),
        ({}, {"choices": ["a", "b"], "label": 0}, "name yours with --data.text_column"),
        ({"choice_column": ["nope"]}, GOOD_ROW, "nope"),
        (
            {"threshold": 0.5},
            GOOD_ROW,
            "data.threshold: the task multiple_choice has no use",
        ),
    ],
)
def test_what_cannot_be_learnt_is_refused(settings, row, said, tmp_path, tokenizer):
    with pytest.raises(UserError, match=said):
        fitted(write_jsonl(tmp_path / "t.jsonl", [row]), tokenizer, **settings)


def test_tables_have_as_many_choices(chosen, tmp_path, tokenizer):
    task = fitted(chosen["train"], tokenizer)
    four = write_jsonl(tmp_path / "four.jsonl", choice_rows(5, 1, choices=4))
    with pytest.raises(UserError, match="4 choices a row, and 3 in what was read before"):
        task.inputs(Rows.read(four))


def test_a_right_one_that_never_moves_is_remarked(tmp_path, tokenizer):
    task = MultipleChoice(TaskSettings())
    rows = Rows.read(write_jsonl(tmp_path / "t.jsonl", [GOOD_ROW] * 3))
    (line,) = task.fit(rows, toy_config("bert", tokenizer))
    assert "same place in every row" in line


# -- numbers ---------------------------------------------------------------------------------------


def test_the_loss_is_torchs_over_the_choices(chosen, tokenizer):
    task = fitted(chosen["train"], tokenizer)
    logits = torch.randn(12, 1, requires_grad=True)
    labels = torch.tensor([0, 2, 1, 2])
    loss, count = task.loss(logits, labels)
    expected = F.cross_entropy(logits.reshape(4, 3), labels, reduction="sum")
    assert loss == expected
    assert count == 4
    assert float(task.divergence(logits, logits).detach()) == pytest.approx(0, abs=1e-6)
    task.train_with(type(task.loss_options)(label_smoothing=0.1))
    smoothed, _ = task.training_loss(logits, labels)
    other = F.cross_entropy(logits.reshape(4, 3), labels, reduction="sum", label_smoothing=0.1)
    assert float(smoothed.detach()) == pytest.approx(float(other), rel=1e-5)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("bert", {}),
        ("bert", {"position_offset": 1, "type_vocab_size": 1}),  # RoBERTa
        ("bert", {"pooler": "relu", "type_vocab_size": 0}),  # DistilBERT
        ("modern", {}),
    ],
)
def test_scores_are_those_of_transformers(family, changes, chosen, tokenizer, tmp_path):
    folder = write_folder(
        tmp_path / "m", MultipleChoice, chosen["train"], tokenizer, family, changes
    )
    config = read_folder(folder).config
    theirs = transformers.AutoModelForMultipleChoice.from_pretrained(folder).eval()
    assert type(theirs).__name__ == native_class(config, "multiple_choice").name
    reader = transformers.AutoTokenizer.from_pretrained(folder)
    rows = choice_rows(8, 7)
    predictor = Predictor.from_pretrained(folder, "cpu", "fp32")
    found = predictor([(row["question"], row["choices"]) for row in rows])
    for row, answer in zip(rows, found, strict=True):
        encoded = reader([row["question"]] * 3, row["choices"], return_tensors="pt", padding=True)
        with torch.inference_mode():
            logits = theirs(**{name: x[None] for name, x in encoded.items()}).logits[0]
        assert answer["scores"] == pytest.approx(logits.softmax(-1).tolist(), abs=1e-5)
        assert answer["choice"] == int(logits.argmax())
        assert answer["answer"] == row["choices"][answer["choice"]]
        assert answer["score"] == answer["scores"][answer["choice"]]

    # What transformers saves comes back, without anything of ours in it.
    theirs.config.id2label = {0: "LABEL_0", 1: "LABEL_1"}
    theirs.save_pretrained(tmp_path / "theirs")
    reader.save_pretrained(tmp_path / "theirs")
    values = json.loads((tmp_path / "theirs" / "config.json").read_text())
    values.pop("mlm")
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(values))
    model, task, _ = load_task_folder(tmp_path / "theirs")
    assert type(task) is MultipleChoice
    again = Predictor(model, task, predictor.tokenizer, "cpu", "fp32")
    assert again([(rows[0]["question"], rows[0]["choices"])])[0]["scores"] == pytest.approx(
        found[0]["scores"], abs=1e-6
    )


def test_answers_do_not_depend_on_the_company(chooser):
    predictor = Predictor.from_pretrained(chooser, "cpu", "fp32")
    rows = [(row["question"], row["choices"]) for row in choice_rows(200, 9)]
    together = predictor(rows)
    for place in (0, 77, 199):
        (alone,) = predictor([rows[place]])
        assert alone["scores"] == pytest.approx(together[place]["scores"], abs=1e-5)
    turned = [(text, choices[::-1]) for text, choices in rows]
    for answer, other in zip(together, predictor(turned), strict=True):
        assert answer["scores"] == pytest.approx(other["scores"][::-1], abs=1e-5)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("a text", r"input 1: not \(text, \[choices\]\)"),
        (("a text", ["one"]), "input 1: 1 choices; give two or more"),
        (("a text", ["one", 2]), "input 1: not"),
        (("a text", "question", ["one", "two"]), "input 1: not"),
        ((), "input 1: not"),
    ],
)
def test_other_inputs_are_refused(value, said, chooser):
    with pytest.raises(UserError, match=said):
        Predictor.from_pretrained(chooser, "cpu")([value])
    with pytest.raises(UserError, match="input 2: 3 choices"):
        Predictor.from_pretrained(chooser, "cpu")([("a", ["b", "c"]), ("a", ["b", "c", "d"])])


# -- commands --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "modern"])
def test_it_learns_evaluates_and_predicts(family, chosen, pretrained, tmp_path, capsys):
    run = tmp_path / "run"
    words = f"finetune --task multiple_choice --model {pretrained[family]} --run_dir {run}"
    words += f" --train {chosen['train']} --validation {chosen['validation']} --data.batch_size 8"
    words += " --optimizer.lr 0.003 --trainer.max_epochs 8 --trainer.accelerator cpu"
    words += " --trainer.precision fp32 --logging.wandb off --loss.r_drop 0.1"
    assert main(words.split()) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["accuracy"] > 0.9  # a third by chance
    report = json.loads((run / "report" / "report.json").read_text())
    low, high = (report["scores"]["accuracy"][end] for end in ("low", "high"))
    assert low <= result["accuracy"] <= high
    assert set(report["baselines"]) == {"commonest place", "bag of words of the choices"}
    assert "thresholds" not in report
    info = json.loads((run / "model" / "config.json").read_text())
    assert info["architectures"][0].endswith("ForMultipleChoice")

    words = f"evaluate --model {run}/model --data {chosen['validation']} --device cpu"
    assert main(words.split()) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == result["accuracy"]

    words = ["predict", "--model", f"{run}/model", "--device", "cpu"]
    assert main([*words, "--text", "the film is funny", "dull", "funny", "awful house"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert list(answer) == ["text", "choices", "answer", "choice", "score", "scores"]
    assert np.isclose(sum(answer["scores"]), 1)
    assert main([*words, "--input", str(chosen["test"])]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 60
    assert main([*words, "--text", "the film", "dull"]) == 2
    assert "two choices or more" in capsys.readouterr().err
