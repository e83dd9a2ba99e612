"""Answers in contexts: columns, windows, scores as SQuAD's script has them, and the whole path."""

import collections
import itertools
import json
import math
import random
import re
import shutil
import string
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from toy import question_rows, toy_config, write_folder, write_jsonl

from mlm.batch import ragged
from mlm.checkpoint import read_folder
from mlm.cli import main
from mlm.errors import UserError
from mlm.training.metrics_csv import read_metrics
from tasks import QuestionAnswerer
from tasks.heads import SpanHead
from tasks.inference import Predictor
from tasks.question_answering import QuestionAnswering, find_span
from tasks.rows import Rows
from tasks.settings import TaskSettings
from tasks.spans import Found, best_spans, choose, context_of
from tasks.squad import best_over, exact_match, f1, normalize_answer
from tasks.windows import encode_contexts


@pytest.fixture(scope="session")
def asked(tmp_path_factory):
    """{split: a table of questions}."""
    root = tmp_path_factory.mktemp("asked")
    return {
        name: write_jsonl(root / f"{name}.jsonl", question_rows(count, seed))
        for name, count, seed in (("train", 400, 1), ("validation", 60, 2))
    }


@pytest.fixture(scope="session")
def answerer(tmp_path_factory, asked, tokenizer):
    folder = tmp_path_factory.mktemp("answerer") / "model"
    return write_folder(folder, QuestionAnswering, asked["train"], tokenizer)


def fitted(rows, tokenizer, **settings):
    task = QuestionAnswering(TaskSettings(**settings))
    task.fit(rows, toy_config("modern", tokenizer))
    return task


# --- scores ---


def squad_v2(prediction, golds):
    """(exact match, F1) of the evaluation script of SQuAD 2.0."""

    def normalize(s):
        s = "".join(ch for ch in s.lower() if ch not in set(string.punctuation))
        return " ".join(re.sub(re.compile(r"\b(a|an|the)\b", re.UNICODE), " ", s).split())

    def compute_f1(gold, pred):
        gold_toks = normalize(gold).split() if gold else []
        pred_toks = normalize(pred).split() if pred else []
        num_same = sum((collections.Counter(gold_toks) & collections.Counter(pred_toks)).values())
        if len(gold_toks) == 0 or len(pred_toks) == 0:
            return int(gold_toks == pred_toks)
        if num_same == 0:
            return 0
        precision, recall = num_same / len(pred_toks), num_same / len(gold_toks)
        return 2 * precision * recall / (precision + recall)

    golds = [gold for gold in golds if normalize(gold)] or [""]
    exact = max(int(normalize(gold) == normalize(prediction)) for gold in golds)
    return exact, max(compute_f1(gold, prediction) for gold in golds)


def random_answers(count, seed):
    draw = random.Random(seed)
    words = ["the", "Great", "wall", "of", "China,", "a", "1984", "--", "(an)", "Ümlaut"]
    for _ in range(count):
        texts = [" ".join(draw.choices(words, k=draw.randint(0, 4))) for _ in range(4)]
        yield texts[0], texts[1 : draw.randint(1, 4)]


def test_scores_are_those_of_squads_script():
    found = set()
    for answer, golds in random_answers(3000, 0):
        exact, overlap = squad_v2(answer, golds)
        assert best_over(exact_match, answer, golds) == exact
        assert best_over(f1, answer, golds) == pytest.approx(overlap)
        found.add((exact, 0 < overlap < 1))
    assert len(found) == 3


def test_scores_are_those_of_torchmetrics():
    from torchmetrics.text import SQuAD

    pairs = [
        (answer, golds)
        for answer, golds in random_answers(600, 1)
        if golds and all(map(normalize_answer, golds))
    ]
    theirs = SQuAD()
    for number, (answer, golds) in enumerate(pairs):
        theirs.update(
            [{"prediction_text": answer, "id": str(number)}],
            [{"answers": {"answer_start": [0] * len(golds), "text": golds}, "id": str(number)}],
        )
    values = theirs.compute()
    for name, score in (("exact_match", exact_match), ("f1", f1)):
        ours = np.mean([best_over(score, answer, golds) for answer, golds in pairs])
        assert 0 < ours < 1
        assert ours * 100 == pytest.approx(values[name].item())


# --- the best span ---


def test_the_best_span_is_that_of_a_search_through_all():
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(12, 50, 2, generator=generator)
    outputs[3, 45:] = -math.inf  # padding
    first = torch.randint(1, 20, (12,), generator=generator)
    stop = first + torch.randint(0, 30, (12,), generator=generator)
    stop[3], first[4], stop[4] = 45, 1, 49
    spans = best_spans(outputs, first, stop)
    for n in range(12):
        best, where = -math.inf, None
        for s in range(first[n], stop[n]):
            for e in range(s, min(s + 30, stop[n])):
                score = (outputs[n, s, 0] + outputs[n, e, 1]).item()
                if score > best:
                    best, where = score, (s, e)
        assert spans.score[n].item() == pytest.approx(best)
        assert where is None or (spans.start[n].item(), spans.end[n].item()) == where
        assert spans.null[n].item() == pytest.approx(outputs[n, 0].sum().item())


def test_the_best_of_all_windows_is_chosen():
    context = "  Paris is big"
    places = [np.array([[-1, -1], [1, 7], [-1, -1]]), np.array([[-1, -1], [8, 10], [11, 14]])]
    found = [Found(1, 1, 2.0, 1.5), Found(1, 2, 1.0, 3.0)]
    assert choose(context, places, found, False) == ("Paris", 2, 7, 0)
    assert choose(context, places, found, True) == ("Paris", 2, 7, 0)  # the least null is 1.5
    found = [Found(1, 1, 2.0, 2.5), Found(1, 2, 1.0, 3.0)]
    assert choose(context, places, found, True) == ("", None, None, 0)
    assert choose(context, places, found, False).text == "Paris"
    assert choose("", places[:1], [Found(0, 0, -math.inf, 0.0)], False) == ("", None, None, 0)


def test_padding_of_the_head_is_no_place(tokenizer):
    head = SpanHead(toy_config("modern", tokenizer))
    batch = ragged([[2, 9, 8, 3], [2, 3]])
    hidden = torch.randn(6, 32, requires_grad=True)
    outputs = head(hidden, batch)
    assert outputs.shape == (2, 4, 2)
    assert (outputs[1, 2:] == -math.inf).all()
    plain = super(SpanHead, head).forward(hidden, batch)
    torch.testing.assert_close(torch.cat([outputs[0], outputs[1, :2]]), plain)
    task = QuestionAnswering(TaskSettings())
    loss, count = task.loss(outputs, torch.tensor([[1, 2, 0, 1, 3], [0, 1, 1, 0, 0]]))
    expected = sum(
        F.cross_entropy(part[None, :, end], torch.tensor([place])) / 2
        for part, places in ((plain[:4], (1, 2)), (plain[4:], (0, 1)))
        for end, place in enumerate(places)
    )
    torch.testing.assert_close(loss, expected)
    assert count == 2
    (found,) = torch.autograd.grad(loss, hidden, retain_graph=True)
    (gradient,) = torch.autograd.grad(expected, hidden)
    torch.testing.assert_close(found, gradient)


# --- windows ---


def test_short_pairs_are_encoded_as_the_tokenizer_does(tokenizer):
    pairs = [("is it a film", "the film is dull"), ("", "a"), ("a", "")]
    for pair, example in zip(pairs, encode_contexts(pairs, tokenizer, 64, 8), strict=True):
        expected = tokenizer.encode(*pair)
        assert example.input_ids.tolist() == expected.ids
        assert example.token_type_ids.tolist() == expected.type_ids
        assert not example.truncated
        for offset, text, place in zip(
            expected.offsets, expected.sequence_ids, example.places.tolist(), strict=True
        ):
            assert place == (list(offset) if text == 1 else [-1, -1])


def test_windows_have_the_whole_question_and_cover_the_context(tokenizer):
    context = " ".join(random.Random(0).choices(["film", "unbelievable", "moving", "a"], k=80))
    examples = encode_contexts([("a", "b"), ("is it dull", context)], tokenizer, 32, 8)
    one, *parts = examples
    assert one.row == 0
    assert len(parts) > 5
    frame = tokenizer.encode("is it dull", "").ids
    covered = set()
    for part in parts:
        first, stop = context_of(part.places)
        assert len(part.input_ids) <= 32
        assert part.row == 1
        assert [*part.input_ids[:first], *part.input_ids[stop:]] == frame
        assert part.token_type_ids.tolist() == [0] * first + [1] * (len(part.input_ids) - first)
        for token, (start, end) in zip(
            part.input_ids[first:stop], part.places[first:stop], strict=True
        ):
            piece = tokenizer.id_to_token(int(token)).removeprefix("##")
            assert context[start:end] == piece
            covered |= set(range(start, end))
    assert covered == {i for i, c in enumerate(context) if c != " "}
    for before, after in itertools.pairwise(parts):
        tail = before.places[slice(*context_of(before.places))][-8:]
        head = after.places[slice(*context_of(after.places))][:8]
        assert tail.tolist() == head.tolist()


def test_a_question_too_long_is_cut_and_said(tokenizer):
    (*parts,) = encode_contexts([("film " * 60, "story " * 60)], tokenizer, 32, 8)
    film, story = tokenizer.token_to_id("film"), tokenizer.token_to_id("story")
    assert all(part.truncated for part in parts)
    assert {(part.input_ids == film).sum() for part in parts} == {(32 - 3 - 8) // 2}
    assert sum((part.input_ids == story).sum() - 8 for part in parts) + 8 == 60
    with pytest.raises(UserError, match=r"data\.stride: 28 leaves no room for a question"):
        encode_contexts([("a", "b")], tokenizer, 32, 28)


def test_labels_mark_the_answer_or_the_first_token(asked, tokenizer):
    rows = Rows.read(asked["train"])
    task = fitted(rows, tokenizer, max_length=24, stride=6)
    examples = task.examples(rows, tokenizer)
    assert len(examples) > 450
    marked = collections.Counter()
    for example in examples:
        reference = task.references[task.windows[example.label[2]].reference]
        first, last = example.label[:2]
        if (first, last) != (0, 0):
            start, end = example.places[first, 0], example.places[last, 1]
            assert reference.context[start:end] == reference.answers[0]
            marked[example.row] += 1
    assert set(marked) == set(range(400))  # each answer stands whole in some window
    row = question_rows(400, 1)[0]
    assert task.label_name(task.targets(rows)[0]) == row["answer_text"]


def test_an_answer_within_tokens_takes_them_whole():
    places = np.array([[-1, -1], [0, 3], [4, 9], [-1, -1]])
    assert find_span(places, 5, 7) == (2, 2)
    assert find_span(places, 2, 5) == (1, 2)
    assert find_span(places, 3, 4) == (0, 0)
    assert find_span(places[:1], 0, 1) == (0, 0)


# --- columns ---


@pytest.mark.parametrize("kind", ["lists", "single", "struct"])
def test_answers_come_in_three_forms(tmp_path, tokenizer, kind):
    rows = question_rows(6, 3)
    if kind == "single":
        rows = [
            row | {"answer_text": row["answer_text"][0], "answer_start": row["answer_start"][0]}
            for row in rows
        ]
    elif kind == "struct":
        rows = [
            {k: v for k, v in row.items() if not k.startswith("answer")}
            | {"answers": {"text": row["answer_text"], "answer_start": row["answer_start"]}}
            for row in rows
        ]
    table = Rows.read(write_jsonl(tmp_path / "t.jsonl", rows))
    task = fitted(table, tokenizer)
    assert task.settings.label_column == ("answers" if kind == "struct" else "answer_text")
    expected = [
        list(zip(row["answer_start"], row["answer_text"], strict=True))
        for row in question_rows(6, 3)
    ]
    assert task.targets(table) == expected
    assert not task.no_answer


GOOD = {"question": "who", "context": "ann is here", "answer_text": ["ann"], "answer_start": [0]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer_start": [1]}, r"the answer 'ann' does not begin at 1, there is 'nn '"),
        ({"answer_start": [-3]}, r"does not begin at -3"),
        ({"answer_start": [900]}, r"does not begin at 900, there is ''"),
        ({"answer_start": []}, "1 texts, and 0 places"),
        ({"answer_start": [None]}, "answer_start None is not a whole number"),
        ({"answer_text": ["ann", ""], "answer_start": [0, 0]}, "'' is no text of an answer"),
        ({"context": "bob is here"}, "does not begin at 0, there is 'bob'"),
    ],
)
def test_a_bad_row_is_named(tmp_path, tokenizer, change, message):
    task = fitted(Rows.read(write_jsonl(tmp_path / "good.jsonl", [GOOD])), tokenizer)
    bad = Rows.read(write_jsonl(tmp_path / "bad.jsonl", [GOOD, GOOD | change]))
    with pytest.raises(UserError, match=rf"row 2: column 'answer_text': .*{message}") as caught:
        task.examples(bad, tokenizer)
    assert str(bad.path) in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([GOOD | {"answer_text": [], "answer_start": []}], {}, "no row has an answer"),
        ([{"question": "a", "context": "b"}], {}, "no column 'answers', nor 'answer_text' and"),
        ([{"question": "a", "text": "b"}], {}, "no column 'question' and 'context'"),
        ([GOOD], {"labels": ("a", "b")}, r"data\.labels: .* have no label set"),
        ([GOOD], {"text_column": ("context",)}, r"data\.text_column: name two"),
        ([GOOD], {"pooling": "cls"}, r"model\.pooling: .* reads every token"),
    ],
)
def test_what_cannot_be_learnt_is_refused(tmp_path, tokenizer, rows, settings, message):
    table = Rows.read(write_jsonl(tmp_path / "t.jsonl", rows))
    with pytest.raises(UserError, match=message):
        fitted(table, tokenizer, **settings)


def test_questions_without_an_answer(tmp_path, tokenizer):
    none = GOOD | {"answer_text": [], "answer_start": []}
    both = Rows.read(write_jsonl(tmp_path / "both.jsonl", [GOOD, none]))
    task = fitted(both, tokenizer)
    assert task.no_answer
    assert task.remarks(both) == []
    assert task.examples(both, tokenizer)[1].label[:2] == (0, 0)
    assert QuestionAnswering.restore(task.info(), ("LABEL_0", "LABEL_1")).no_answer
    always = fitted(Rows.read(write_jsonl(tmp_path / "one.jsonl", [GOOD])), tokenizer)
    assert not always.no_answer
    (line,) = always.remarks(both)
    assert "1 questions have no answer" in line


# --- metrics of windows ---


def test_metrics_are_those_of_the_answers(asked, tokenizer, answerer):
    predictor = Predictor.from_pretrained(answerer, precision="fp32")
    task = predictor.task
    rows = Rows.read(asked["validation"])
    for no_answer, length in ((False, 64), (False, 24), (True, 24)):
        task.no_answer = no_answer
        task.settings = TaskSettings(**{**vars(task.settings), "max_length": length, "stride": 6})
        task.examples(Rows.read(asked["train"]), tokenizer)  # another set before it
        values = predictor.evaluate(task.examples(rows, tokenizer))
        answers = predictor(task.inputs(rows))
        golds = [row["answer_text"] for row in question_rows(60, 2)]
        pairs = [squad_v2(a["answer"], g) for a, g in zip(answers, golds, strict=True)]
        assert values["exact_match"] == pytest.approx(np.mean([exact for exact, _ in pairs]))
        assert values["f1"] == pytest.approx(np.mean([overlap for _, overlap in pairs]))
        for row, answer in zip(question_rows(60, 2), answers, strict=True):
            assert 0 <= answer["score"] <= 1
            if answer["start"] is not None:
                assert row["context"][answer["start"] : answer["end"]] == answer["answer"]


def test_metrics_do_not_depend_on_batches_or_ranks(asked, tokenizer):
    rows = Rows.read(asked["validation"])
    task = fitted(rows, tokenizer, max_length=24, stride=6)
    labels = torch.tensor([example.label for example in task.examples(rows, tokenizer)])
    outputs = torch.randn(len(labels), 24, 2, generator=torch.Generator().manual_seed(0))
    outputs[torch.arange(len(labels)), labels[:, 0], 0] += 3  # mostly right
    outputs[torch.arange(len(labels)), labels[:, 1], 1] += 3
    outputs[: len(labels) // 2, 0] += 20  # and none at all to be found in the first half

    def seen(orders):
        metrics = task.metrics()
        for part in orders:
            first, stop = labels[part, 3], labels[part, 4]
            metrics.update(labels[part, 2], best_spans(outputs[part], first, stop))
        return {name: value.item() for name, value in metrics.compute().items()}

    whole = seen([torch.arange(len(labels))])
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    assert seen(shuffled.tensor_split(9)) == pytest.approx(whole)
    assert 0.2 < whole["exact_match"] < whole["f1"] < 1
    task.no_answer = True
    sceptic = seen([torch.arange(len(labels))])
    assert 0.1 < sceptic["f1"] < 0.7 * whole["f1"]
    metric = task.metrics()["f1"]
    assert [state.shape for (state,) in (metric.ids, metric.logits)] == [(0, 3), (0, 2)]


# --- the whole path ---


def words_of_command(asked, model, run_dir, more=""):
    return (
        f"--model {model} --train {asked['train']} --validation {asked['validation']} "
        f"--run_dir {run_dir} --task question_answering --trainer.accelerator cpu "
        f"--trainer.precision fp32 --logging.wandb off --optimizer.lr 0.003 {more}"
    ).split()


@pytest.mark.parametrize("family", ["bert", "modern"])
def test_finetune_evaluate_predict(family, asked, pretrained, tmp_path, capsys):
    run_dir = tmp_path / "run"
    more = "--trainer.max_epochs 8 --data.max_length 32 --data.stride 8"
    assert main(["finetune", *words_of_command(asked, pretrained[family], run_dir, more)]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["f1"] > 0.8
    name = {"bert": "Bert", "modern": "ModernBert"}[family]
    assert f"loads in transformers as {name}ForQuestionAnswering" in err
    assert "from `question` and `context`" in (run_dir / "model" / "README.md").read_text()

    model, data = str(run_dir / "model"), str(asked["validation"])
    assert main(["evaluate", "--model", model, "--data", data]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert set(scores) == {"loss", "f1", "exact_match"}
    assert scores["f1"] == pytest.approx(found["f1"])

    row = question_rows(60, 2)[0]
    command = ["predict", "--model", model, "--precision", "fp32"]
    assert main([*command, "--text", row["question"], row["context"], "who", ""]) == 0
    answer, empty = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert list(answer) == ["question", "context", "answer", "start", "end", "score"]
    assert (answer["question"], answer["context"]) == (row["question"], row["context"])
    assert (empty["answer"], empty["start"], empty["end"]) == ("", None, None)
    assert main([*command, "--input", data]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    golds = [row["answer_text"] for row in question_rows(60, 2)]
    exact = np.mean([squad_v2(a["answer"], g)[0] for a, g in zip(answers, golds, strict=True)])
    assert exact == pytest.approx(scores["exact_match"])
    assert QuestionAnswerer.from_pretrained(model)([(row["question"], row["context"])])
    assert main([*command, "--text", "who"]) == 2
    assert "1 texts are no pairs" in capsys.readouterr().err
    (tmp_path / "in.txt").write_text("who\n")
    assert main([*command, "--input", str(tmp_path / "in.txt")]) == 2
    assert "'question' and 'context'" in capsys.readouterr().err


def test_logits_are_those_of_transformers(answerer, asked, tmp_path):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForQuestionAnswering.from_pretrained(answerer).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(answerer)
    ours = Predictor.from_pretrained(answerer, precision="fp32")
    rows = question_rows(8, 5)
    pairs = [(row["question"], row["context"]) for row in rows]
    batch = ours.task.collate(ours.task.encode(pairs, ours.tokenizer))
    with torch.inference_mode():
        outputs = ours.model(batch)
        for pair, found in zip(pairs, outputs, strict=True):
            inputs = tokenizer(*pair, return_tensors="pt")
            expected = theirs(**inputs)
            length = inputs["input_ids"].shape[1]
            for end, logits in enumerate((expected.start_logits, expected.end_logits)):
                torch.testing.assert_close(found[:length, end], logits[0], atol=1e-4, rtol=0)

    theirs.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config.pop("mlm", None)
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    foreign = QuestionAnswerer.from_pretrained(tmp_path / "m", precision="fp32")
    assert [a["answer"] for a in foreign(pairs)] == [a["answer"] for a in ours(pairs)]


def test_resume_and_accumulation(asked, pretrained, tmp_path):
    more = (
        "--trainer.max_steps 6 --trainer.val_check_interval 2 --checkpoint.every_n_steps 2 "
        "--checkpoint.keep 5 --trainer.log_every_n_steps 1 --data.max_length 32"
    )
    for name in ("whole", "halves"):
        command = words_of_command(asked, pretrained["modern"], tmp_path / name, more)
        assert main(["finetune", *command]) == 0
    halves = tmp_path / "halves"
    (halves / "checkpoints" / "step_00000006").rename(tmp_path / "late")
    (halves / "results.json").unlink()
    command = words_of_command(asked, pretrained["modern"], halves, f"{more} --resume auto")
    assert main(["finetune", *command]) == 0
    one, other = (read_folder(tmp_path / n / "model").state for n in ("whole", "halves"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    curves = []
    for accumulation in (1, 4):
        run_dir = tmp_path / str(accumulation)
        extra = f"{more} --model.dropout 0 --trainer.accumulate_grad_batches {accumulation}"
        command = words_of_command(asked, pretrained["bert"], run_dir, extra)
        assert main(["finetune", *command]) == 0
        curves.append([x for x in read_metrics(run_dir / "metrics.csv")["train/loss"] if x])
    assert len(curves[0]) == 6
    assert curves[0] == pytest.approx(curves[1], abs=1e-4)


@pytest.mark.slow
def test_two_processes_score_the_same(asked, pretrained, tmp_path):
    values = []
    for name, more in (("one", ""), ("two", "--trainer.devices 2 --trainer.strategy ddp")):
        common = "--model.dropout 0 --trainer.max_steps 10 --data.max_length 24 --data.stride 6"
        run_dir = tmp_path / name
        command = words_of_command(asked, pretrained["bert"], run_dir, f"{common} {more}")
        subprocess.run(
            [sys.executable, "-m", "mlm", "finetune", *command],
            check=True, timeout=300, capture_output=True,
        )  # fmt: skip
        rows = read_metrics(run_dir / "metrics.csv")
        values.append([rows[f"val/{name}"][-1] for name in ("f1", "exact_match", "loss")])
    assert values[0] == pytest.approx(values[1], abs=1e-4)


def test_mistakes_are_one_line_and_leave_nothing(asked, pretrained, tmp_path, capsys):
    bad = write_jsonl(tmp_path / "bad.jsonl", [GOOD, GOOD | {"answer_start": [2]}])
    for more, named in (
        (f"--validation {bad}", "bad.jsonl: row 2: column 'answer_text': the answer 'ann'"),
        (f"--train {bad}", "bad.jsonl: row 2: column 'answer_text': the answer 'ann'"),
        ("--data.stride 60", "data.stride: 60 leaves no room for a question"),
        ("--data.label_column nothing", "no column 'nothing'"),
    ):
        command = words_of_command(asked, pretrained["modern"], tmp_path / "run", more)
        assert main(["finetune", *command]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert named in line
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stride": "x"}, r"mlm\.stride: 'x' is not a whole number"),
        ({"stride": -3}, r"data\.stride: -3 must be at least 0"),
        ({"max_length": "x"}, r"mlm\.max_length: 'x' is not a whole number"),
        ({"max_length": 1000}, "beyond the model's 64 positions"),
        ({"text_column": 5}, r"mlm\.text_column: 5 is not a list of texts"),
        ({"label_column": ["a"]}, r"mlm\.label_column: \['a'\] is not a text"),
        ({"pooling": "cls"}, r"model\.pooling: .* reads every token"),
    ],
)
def test_a_folder_that_lies_about_the_task_is_one_line(answerer, tmp_path, change, message):
    shutil.copytree(answerer, tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config["mlm"] |= change
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=rf"config\.json: .*{message}|checksum"):
        QuestionAnswerer.from_pretrained(tmp_path / "m")
