"""`mlm evaluate` and `mlm predict`, and what they cannot be asked."""

import json
import math

import pytest
import torch
from sklearn.metrics import f1_score
from toy import number_rows, table, toy_config, toy_rows, write_csv, write_pretrained

from mlm.cli import main
from mlm.errors import UserError
from tasks import Classifier
from tasks.inference import Predictor
from tasks.settings import TaskSettings
from tasks.text_classification import TextClassification


def answers(capsys, *words):
    assert main(["predict", *map(str, words)]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def failure(capsys, *words):
    assert main([*map(str, words)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


# --- predict ---


def test_texts_on_the_command_line(classifier, capsys):
    found = answers(capsys, "--model", classifier, "--text", "a film", "", "a dull story")
    assert [answer["text"] for answer in found] == ["a film", "", "a dull story"]
    for answer in found:
        assert list(answer) == ["text", "label", "score", "scores"]
        assert answer["score"] == max(answer["scores"].values())
        assert answer["scores"][answer["label"]] == answer["score"]
        assert sum(answer["scores"].values()) == pytest.approx(1.0)


def test_a_text_file_has_one_input_a_line(classifier, tmp_path, capsys):
    (tmp_path / "in.txt").write_text("the film\n\nthe house\n")
    found = answers(capsys, "--model", classifier, "--input", tmp_path / "in.txt")
    assert [answer["text"] for answer in found] == ["the film", "", "the house"]


def test_answers_do_not_depend_on_the_company(classifier):
    texts = [text for text, _ in toy_rows(300, 6)] + ["", "film " * 200, "東京 🎉"]
    model = Classifier.from_pretrained(classifier, precision="fp32")
    together = model(texts)
    assert [answer["text"] for answer in together] == texts
    for place in (0, 150, 300, 301, 302):
        (alone,) = model([texts[place]])
        assert alone["label"] == together[place]["label"]
        assert alone["scores"] == pytest.approx(together[place]["scores"], abs=1e-5)


def test_weights_cast_once_answer_as_weights_cast_at_every_call(classifier):
    texts = [text for text, _ in toy_rows(40, 6)]
    cast = Classifier.from_pretrained(classifier, precision="bf16")
    assert cast.model.encoder.layers[0].mixer.qkv.weight.dtype == torch.bfloat16
    plain = Classifier.from_pretrained(classifier, precision="fp32")
    plain.dtype = cast.dtype
    assert [a["scores"] for a in cast(texts)] == [a["scores"] for a in plain(texts)]


def test_an_output_file_is_whole(classifier, toy, tmp_path, capsys):
    output = tmp_path / "answers.jsonl"
    words = ["--model", classifier, "--input", toy["test"], "--output", output]
    assert answers(capsys, *words) == []
    assert len(output.read_text().splitlines()) == 80
    assert [p.name for p in tmp_path.iterdir()] == ["answers.jsonl"]


def test_an_output_of_another_kind_is_refused_before_any_work(tmp_path, capsys):
    words = ["predict", "--model", tmp_path / "none", "--text", "a", "--output"]
    message = failure(capsys, *words, tmp_path / "answers.csv")
    assert "answers.csv: answers are JSON lines; choose the ending .jsonl" in message
    assert list(tmp_path.iterdir()) == []


def test_texts_that_are_cut_are_one_line(classifier, regressor, tmp_path, capsys):
    texts = ["film " * 200, "a film", "a dull house " * 50]
    line = (
        "mlm: warning: 2 of 3 inputs were cut to 64 tokens; to read them whole, fine-tune with "
        "--data.long_texts windows or a larger --data.max_length\n"
    )
    assert main(["predict", "--model", str(classifier), "--text", *texts]) == 0
    assert capsys.readouterr().err == line
    rows = [(text, "pos") for text in texts]
    path = write_csv(tmp_path / "t.csv", ["text", "label"], rows)
    assert main(["evaluate", "--model", str(classifier), "--data", str(path)]) == 0
    assert capsys.readouterr().err.startswith(line)
    assert main(["predict", "--model", str(regressor), "--text", *texts[:2]]) == 0
    assert capsys.readouterr().err.endswith("fine-tune with a larger --data.max_length\n")
    assert main(["predict", "--model", str(classifier), "--text", "a film"]) == 0
    assert capsys.readouterr().err == ""


def test_columns_may_have_other_names(classifier, tmp_path, capsys):
    path = write_csv(tmp_path / "t.csv", ["review"], [("a film",), ("a house",)])
    assert "no column 'text' among 'review'" in failure(
        capsys, "predict", "--model", classifier, "--input", path
    )
    words = ["--model", classifier, "--input", path, "--data.text_column", "review"]
    assert len(answers(capsys, *words)) == 2


def test_pairs(regressor, numbers, tmp_path, capsys):
    found = answers(capsys, "--model", regressor, "--text", "a", "b", "c", "d")
    assert [answer["text"] for answer in found] == [["a", "b"], ["c", "d"]]
    assert all(isinstance(answer["score"], float) for answer in found)
    found = answers(capsys, "--model", regressor, "--input", numbers["validation"])
    assert found[0]["text"] == list(number_rows(60, 2)[0][:2])
    (tmp_path / "in.txt").write_text("a\n")
    words = ["predict", "--model", regressor]
    assert "3 texts are no pairs" in failure(capsys, *words, "--text", "a", "b", "c")
    assert "'sentence1' and 'sentence2'" in failure(capsys, *words, "--input", tmp_path / "in.txt")
    found = Predictor.from_pretrained(regressor)([("a", "b"), ["c", "d"]])
    assert len(found) == 2
    with pytest.raises(UserError, match="input 2: not a pair of texts"):
        Predictor.from_pretrained(regressor)([("a", "b"), "c"])


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--text", "a", "--input", "b"], "either --text or --input"),
        ([], "either --text or --input"),
        (["--input", "no/such.csv"], "no/such.csv: no such file"),
        (["--text", "a", "--precision", "fp17"], "did you mean fp16"),
    ],
)
def test_mistakes_in_predict_are_one_line(classifier, capsys, words, named):
    assert named in failure(capsys, "predict", "--model", classifier, *words)


def test_a_model_without_a_task_is_told_apart(pretrained, capsys):
    message = failure(capsys, "predict", "--model", pretrained["bert"], "--text", "a")
    assert "fine-tune it first" in message


def test_a_folder_of_another_task_is_refused(regressor, toy):
    with pytest.raises(UserError, match="is a folder of task 'regression'"):
        Classifier.from_pretrained(regressor)


def test_a_folder_names_a_task_and_nothing_is_imported(classifier, tmp_path):
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(classifier, folder)
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')\n")
    config["mlm"]["task"] = f"{tmp_path.name}.evil.Task"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="if it is your own and you trust it"):
        Predictor.from_pretrained(folder)


# --- evaluate, fine-tuned ---


def test_the_json_is_what_scikit_learn_says(classifier, toy, tmp_path, capsys):
    output = tmp_path / "scores.json"
    words = ["--model", str(classifier), "--data", str(toy["test"]), "--output", str(output)]
    assert main(["evaluate", *words]) == 0
    out = capsys.readouterr().out
    assert out == output.read_text()
    scores = json.loads(out)
    rows = toy_rows(80, 3)
    model = Classifier.from_pretrained(classifier, precision="fp32")
    found = [answer["label"] for answer in model([text for text, _ in rows])]
    truth = [label for _, label in rows]
    right = sum(a == b for a, b in zip(found, truth, strict=True))
    assert scores["accuracy"] == pytest.approx(right / 80)
    assert scores["macro_f1"] == pytest.approx(f1_score(truth, found, average="macro"))


def test_a_table_of_unknown_labels_is_all_wrong(classifier, tmp_path, capsys):
    path = write_csv(tmp_path / "t.csv", ["text", "label"], [("a film", "x"), ("a house", "y")])
    assert main(["evaluate", "--model", str(classifier), "--data", str(path)]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["accuracy"] == 0.0
    assert json.loads(captured.out)["loss"] is None
    assert sum("warning" in line for line in captured.err.splitlines()) == 1


def test_empty_texts_are_one_line(classifier, tmp_path, capsys):
    rows = [("a film", "pos"), ("", "pos"), (" ", "neg")]
    path = write_csv(tmp_path / "t.csv", ["text", "label"], rows)
    assert main(["evaluate", "--model", str(classifier), "--data", str(path)]) == 0
    line = f"mlm: warning: {path}: 2 of 3 rows have an empty text\n"
    assert capsys.readouterr().err.startswith(line)


def test_labels_that_white_space_tells_apart_are_one_line(tokenizer, tmp_path):
    rows = [("a film", label) for label in ["neg", "pos", "pos "] * 2]
    task = TextClassification(TaskSettings())
    (line,) = task.fit(table(tmp_path, ["text", "label"], rows), toy_config("bert", tokenizer))
    assert "'pos', 'pos ' differ by white space alone" in line


def test_regression_is_evaluated_too(regressor, numbers, capsys):
    words = ["--model", str(regressor), "--data", str(numbers["validation"])]
    assert main(["evaluate", *words]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"loss", "pearson", "spearman", "mse"}


def test_mistakes_in_evaluate_are_one_line(classifier, regressor, toy, numbers, tmp_path, capsys):
    def message(model, data, *more):
        return failure(capsys, "evaluate", "--model", model, "--data", data, *more)

    assert "no such file" in message(classifier, tmp_path / "none.csv")
    assert "no column 'text'" in message(classifier, numbers["validation"])
    assert "no column 'sentence1'" in message(regressor, toy["test"])
    assert "did you mean 'label'" in message(classifier, toy["test"], "--data.label_column", "labl")
    assert "is a folder" in message(classifier, tmp_path)
    assert "not 'regression'" in message(classifier, toy["test"], "--task", "regression")
    empty = write_csv(tmp_path / "e.csv", ["text", "label"], [("a", "pos"), *[("b", "")] * 2])
    line = "row 2: column 'label': the label is empty (2 of 3 rows have none); drop or fill them"
    assert line in message(classifier, empty)


# --- evaluate, pretrained ---


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("\n\n".join(text for text, _ in toy_rows(300, 8)) + "\n")
    return path


def test_a_pretrained_model_on_text(pretrained, corpus, capsys):
    assert main(["evaluate", "--model", str(pretrained["modern"]), "--data", str(corpus)]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert set(scores) == {"loss", "perplexity", "accuracy", "bits_per_character"}
    assert scores["perplexity"] == pytest.approx(math.exp(scores["loss"]))
    assert 3.0 < scores["loss"] < 6.0


def test_a_pretrained_model_on_a_store(pretrained, corpus, tmp_path, tokenizer, capsys):
    model, store = str(pretrained["bert"]), str(tmp_path / "store")
    assert main(["prepare", "--corpus", str(corpus), "--output", store, "--tokenizer", model]) == 0
    capsys.readouterr()
    words = ["evaluate", "--model", model, "--data", store, "--data.sequence_length", "32"]
    assert main(words) == 0
    scores = json.loads(capsys.readouterr().out)
    assert 3.0 < scores["loss"] < 6.0
    other = write_pretrained(tmp_path / "other", "bert", other_tokenizer())
    message = failure(capsys, "evaluate", "--model", other, "--data", store)
    assert "belongs to another tokenizer" in message


def other_tokenizer():
    from mlm.data.tokenizer import train_tokenizer

    return train_tokenizer(["quite another text about ships and storms"], vocab_size=120)


def test_mistakes_with_a_pretrained_model_are_one_line(pretrained, corpus, tmp_path, capsys):
    def message(data, *more):
        return failure(capsys, "evaluate", "--model", pretrained["modern"], "--data", data, *more)

    assert "no such file" in message(tmp_path / "none.txt")
    assert "between 8 and the model's 64" in message(corpus, "--data.sequence_length", "128")
    (tmp_path / "empty.txt").write_text("\n\n")
    assert "holds no text" in message(tmp_path / "empty.txt", "--data.sequence_length", "32")
