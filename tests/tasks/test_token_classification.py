"""Words with tags: columns, windows, entities as CoNLL counts them, and the whole path."""

import itertools
import json
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score
from torch.nn import functional as F
from toy import tagged_rows, toy_config, write_folder, write_jsonl

from mlm.checkpoint import read_folder
from mlm.cli import main
from mlm.data.tokenizer import train_tokenizer
from mlm.errors import UserError
from mlm.training.metrics_csv import read_metrics
from tasks import Tagger
from tasks.inference import Predictor
from tasks.rows import Rows
from tasks.settings import TaskSettings
from tasks.tags import entities, split_words
from tasks.token_classification import IGNORED, TokenClassification
from tasks.windows import cut, encode_words, most_context, windows


@pytest.fixture(scope="session")
def tagged(tmp_path_factory):
    """{split: a table of words with tags}."""
    root = tmp_path_factory.mktemp("tagged")
    return {
        name: write_jsonl(root / f"{name}.jsonl", tagged_rows(count, seed))
        for name, count, seed in (("train", 300, 1), ("validation", 60, 2))
    }


@pytest.fixture(scope="session")
def tagger(tmp_path_factory, tagged, tokenizer):
    folder = tmp_path_factory.mktemp("tagger") / "model"
    return write_folder(folder, TokenClassification, tagged["train"], tokenizer)


def fitted(rows, tokenizer, **settings):
    task = TokenClassification(TaskSettings(**settings))
    task.fit(rows, toy_config("modern", tokenizer))
    return task


# --- entities ---


def conlleval(sentences):
    """(right, predicted, true) of (true, predicted) tags: conlleval.pl, line by line."""

    def part(tag):
        return (tag, "") if tag == "O" else tuple(tag.split("-", 1))

    def ends(before, kind_before, tag, kind):
        pairs = {*(("B", x) for x in "BSO"), *(("I", x) for x in "BSO")}
        chunk_end = (before, tag) in pairs or before in ("E", "S")
        return chunk_end or (before != "O" and kind_before != kind)

    def starts(before, kind_before, tag, kind):
        pairs = {(x, y) for x in "ESO" for y in "EI"}
        chunk_start = tag in ("B", "S") or (before, tag) in pairs
        return chunk_start or (tag != "O" and kind_before != kind)

    right = predicted = true = 0
    inside = False
    last_true, last_guess = ("O", ""), ("O", "")
    for sentence in sentences:
        for gold, guess in [*sentence, ("O", "O")]:  # a sentence's end is a line without an entity
            now_true, now_guess = part(gold), part(guess)
            if inside:
                end_true = ends(*last_true, *now_true)
                end_guess = ends(*last_guess, *now_guess)
                if end_true and end_guess and last_guess[1] == last_true[1]:
                    inside, right = False, right + 1
                elif end_true != end_guess or now_guess[1] != now_true[1]:
                    inside = False
            start_true = starts(*last_true, *now_true)
            start_guess = starts(*last_guess, *now_guess)
            if start_true and start_guess and now_guess[1] == now_true[1]:
                inside = True
            true, predicted = true + start_true, predicted + start_guess
            last_true, last_guess = now_true, now_guess
    return right, predicted, true


def random_sentences(labels, count, seed):
    draw = random.Random(seed)
    for _ in range(count):
        gold = [draw.choice(labels) for _ in range(draw.randint(0, 9))]
        yield [(tag, tag if draw.random() < 0.6 else draw.choice(labels)) for tag in gold]


def seen_by(task, sentences, parts=1, seed=0):
    """Metrics of the task that saw the words of all sentences, shuffled, in so many parts."""
    places = {label: place for place, label in enumerate(task.settings.labels)}
    words = torch.tensor(
        [
            (places[guess], places[gold], row, word)
            for row, sentence in enumerate(sentences)
            for word, (gold, guess) in enumerate(sentence)
        ]
    )
    words = words[torch.randperm(len(words), generator=torch.Generator().manual_seed(seed))]
    metrics = task.metrics()
    for part in words.tensor_split(parts):
        metrics.update(part[:, 0], part[:, 1:])
    return metrics.compute()


@pytest.mark.parametrize(
    "labels",
    [
        ("O", "B-A", "B-B", "I-A", "I-B"),
        ("O", "B-A", "B-B", "E-A", "E-B", "I-A", "I-B", "S-A", "S-B"),
    ],
)
def test_entities_are_counted_as_conlleval_does(labels):
    task = TokenClassification(TaskSettings(labels=labels))
    sentences = list(random_sentences(labels, 400, len(labels)))
    right, predicted, true = conlleval(sentences)
    assert 0 < right < min(predicted, true)
    values = seen_by(task, sentences, parts=7)
    assert values["entities"].sum(0).tolist() == [right, predicted, true]
    precision, recall = right / predicted, right / true
    assert values["precision"].item() == pytest.approx(precision)
    assert values["recall"].item() == pytest.approx(recall)
    f1 = 2 * precision * recall / (precision + recall)
    assert values["f1"].item() == pytest.approx(f1)
    flat = [pair for sentence in sentences for pair in sentence]
    right_tags = np.mean([gold == guess for gold, guess in flat])
    assert values["accuracy"].item() == pytest.approx(right_tags)
    for place, kind in enumerate("AB"):
        alone = [[(_only(g, kind), _only(p, kind)) for g, p in s] for s in sentences]
        assert values["entities"][place].tolist() == list(conlleval(alone))
    header, *lines = task.tables(values)["entities"]
    assert header[0] == "entity"
    assert [line[0] for line in lines] == ["A", "B"]


def _only(tag, kind):
    return tag if tag.endswith(f"-{kind}") else "O"


def test_an_i_that_nothing_began_begins_an_entity():
    assert entities(["O", "I-A", "I-A", "I-B", "B-B"]) == [("A", 1, 3), ("B", 3, 4), ("B", 4, 5)]
    assert entities([]) == []


def test_no_entities_are_no_score():
    task = TokenClassification(TaskSettings(labels=("O", "B-A", "I-A")))
    values = seen_by(task, [[("O", "O")] * 4])
    assert [values[name].item() for name in ("f1", "precision", "recall")] == [0, 0, 0]
    assert values["accuracy"].item() == 1


def test_tags_that_mark_nothing_have_accuracy_and_macro_f1():
    labels = ("ADJ", "NOUN", "VERB")
    task = TokenClassification(TaskSettings(labels=labels))
    assert task.monitor == "accuracy"
    sentences = list(random_sentences(labels, 50, 1))
    values = seen_by(task, sentences, parts=3)
    assert set(values) == {"accuracy", "macro_f1"}
    gold, guess = zip(*(pair for sentence in sentences for pair in sentence), strict=True)
    assert values["accuracy"].item() == pytest.approx(accuracy_score(gold, guess))
    assert values["macro_f1"].item() == pytest.approx(f1_score(gold, guess, average="macro"))
    assert task.tables(values) == {}


# --- windows ---


def test_windows_cover_all_and_overlap():
    for length in range(40):
        for room in range(1, 12):
            for stride in range(room):
                parts = windows(length, room, stride)
                assert parts[0].start == 0
                assert parts[-1].stop == length
                assert all(0 <= part.stop - part.start <= room for part in parts)
                for one, other in itertools.pairwise(parts):
                    assert one.stop - other.start == stride
                    assert one.stop - one.start == room
                    assert other.stop > one.stop


def test_each_token_is_decided_where_it_has_most_context():
    for length, room, stride in ((23, 8, 3), (30, 10, 0), (9, 9, 2), (50, 7, 6)):
        parts = windows(length, room, stride)
        for place, owner in enumerate(most_context(parts, length)):
            context = [
                min(place - part.start, part.stop - 1 - place) if part.start <= place < part.stop
                else -1
                for part in parts
            ]  # fmt: skip
            assert owner == np.argmax(context)


def test_a_window_keeps_its_frame():
    values = np.array([101, 1, 2, 3, 4, 102])
    assert cut(values, slice(1, 5), slice(2, 4)).tolist() == [101, 3, 4, 102]


def test_words_are_encoded_as_the_tokenizer_does(tokenizer):
    words = ["the", "unbelievable", "film", "", "is", "東京", "\u200b"]
    (example,) = encode_words([words], tokenizer, 64, 4)
    assert example.row == 0
    first = [tokenizer.encode(word, add_special_tokens=False).ids[:1] for word in words]
    unknown = [tokenizer.token_to_id("[UNK]")]
    expected = [ids or unknown for ids in first]
    decides = example.places >= 0
    assert example.places[decides].tolist() == list(range(len(words)))
    assert [[int(i)] for i in example.input_ids[decides]] == expected
    assert tokenizer.truncation is None
    (empty,) = encode_words([[]], tokenizer, 64, 4)
    assert empty.input_ids.tolist() == [2, 3]
    assert empty.places.tolist() == [-1, -1]


def test_every_word_of_a_long_sentence_is_decided_once(tokenizer):
    draw = random.Random(0)
    words = [draw.choice(["film", "unbelievable", "a", "moving"]) for _ in range(60)]
    (whole,) = encode_words([words], tokenizer, 1000, 4)
    parts = encode_words([["film"], words], tokenizer, 16, 4)[1:]
    assert len(parts) > 5
    assert {part.row for part in parts} == {1}
    assert all(len(part.input_ids) <= 16 for part in parts)
    assert all(part.input_ids[[0, -1]].tolist() == [2, 3] for part in parts)
    assert all(part.input_ids.shape == part.places.shape for part in parts)
    decided = np.concatenate([part.places[part.places >= 0] for part in parts])
    assert sorted(decided) == list(range(60))
    where = {word: place for place, word in enumerate(whole.places) if word >= 0}
    for part in parts:
        for place in np.flatnonzero(part.places >= 0):
            assert part.input_ids[place] == whole.input_ids[where[part.places[place]]]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_words_of_other_tokenizers_follow_spaces_too(kind):
    texts = ["the film is a story about people and their house"] * 50
    tokenizer = train_tokenizer(texts, vocab_size=300, kind=kind)
    (example,) = encode_words([["the", "film's", "story"]], tokenizer, 64, 4)
    assert example.input_ids.tolist() == tokenizer.encode("the film's story").ids


def test_no_room_for_a_stride_is_refused(tokenizer):
    with pytest.raises(UserError, match=r"data\.stride: 14 .* has room for 14 tokens"):
        encode_words([["film"]], tokenizer, 16, 14)
    with pytest.raises(UserError, match=r"data\.max_length: 2 leaves no room"):
        encode_words([["film"]], tokenizer, 2, 0)
    with pytest.raises(UserError, match=r"data\.stride: -1 must be at least 0"):
        TokenClassification(TaskSettings(stride=-1))


def test_tokens_are_labelled_with_their_words_tags(tagged, tokenizer):
    rows = Rows.read(tagged["train"])
    task = fitted(rows, tokenizer, max_length=8, stride=2)
    assert task.settings.labels == ("O", "B-LOC", "B-PER", "I-PER")
    assert task.settings.label_column == "ner_tags"
    targets = task.targets(rows)
    found = [np.full(len(tags), IGNORED) for tags in targets]
    examples = task.examples(rows, tokenizer)
    assert len(examples) > len(targets)
    for example in examples:
        decides = example.label != IGNORED
        assert (decides == (example.places >= 0)).all()
        found[example.row][example.places[decides]] = example.label[decides]
    for tags, again in zip(targets, found, strict=True):
        assert tags.tolist() == again.tolist()
    names = [task.label_name(tags) for tags in targets]
    assert names == [row["ner_tags"] for row in tagged_rows(300, 1)]


def test_windows_are_merged_before_entities_are_counted(tagged, tokenizer, tagger):
    predictor = Predictor.from_pretrained(tagger, precision="fp32")
    task = predictor.task
    task.settings = TaskSettings(**{**vars(task.settings), "max_length": 10, "stride": 4})
    rows = Rows.read(tagged["validation"])
    values = predictor.compute(task.examples(rows, tokenizer))
    answers = predictor(task.inputs(rows))
    truth = [row["ner_tags"] for row in tagged_rows(60, 2)]
    pairs = [list(zip(t, a["tags"], strict=True)) for t, a in zip(truth, answers, strict=True)]
    assert values["entities"].sum(0).tolist() == list(conlleval(pairs))
    for row, answer in zip(tagged_rows(60, 2), answers, strict=True):
        assert answer["tokens"] == row["tokens"]
        spans = [(e["type"], e["start_word"], e["end_word"]) for e in answer["entities"]]
        assert spans == entities(answer["tags"])


def test_the_loss_is_the_sum_over_words(tagged, tokenizer):
    rows = Rows.read(tagged["validation"])
    task = fitted(rows, tokenizer)
    batch = task.collate(task.examples(rows, tokenizer)[:7])
    outputs = torch.randn(batch.num_tokens, 4, requires_grad=True)
    loss, count = task.loss(outputs, batch.labels)
    words = sum(len(row["tokens"]) for row in tagged_rows(60, 2)[:7])
    assert count == words
    known = batch.labels[:, 0] >= 0
    picked = outputs.log_softmax(-1)[known].gather(-1, batch.labels[known, :1])
    torch.testing.assert_close(loss, -picked.sum())
    loss.backward()
    one_hot = F.one_hot(batch.labels[known, 0], 4)
    torch.testing.assert_close(outputs.grad[known], outputs.softmax(-1)[known] - one_hot)
    assert outputs.grad[~known].abs().sum() == 0


# --- columns ---


def test_tags_may_be_numbers(tmp_path, tokenizer):
    path = write_jsonl(
        tmp_path / "t.jsonl",
        [{"tokens": ["a", "b", "c"], "ner_tags": [0, 1, 2]}, {"tokens": ["d"], "ner_tags": [10]}],
    )
    rows = Rows.read(path)
    assert fitted(rows, tokenizer).settings.labels == ("0", "1", "2", "10")
    path = write_jsonl(
        tmp_path / "t.jsonl", [{"tokens": ["a", "b", "c"], "ner_tags": [0, 1, 2]}] * 2
    )
    task = fitted(Rows.read(path), tokenizer, labels=("O", "B-A", "I-A"))
    assert task.monitor == "f1"
    assert task.label_name(task.targets(Rows.read(path))[0]) == ["O", "B-A", "I-A"]


SPANS = [
    {
        "text": "Ann Lee left New York.",
        "spans": [
            {"start": 0, "end": 7, "label": "PER"},
            {"start": 13, "end": 21, "label": "LOC"},
        ],
    },
    {"text": "Nobody left.", "spans": []},
]


def test_spans_of_a_text_become_tags_of_its_words(tmp_path, tokenizer):
    rows = Rows.read(write_jsonl(tmp_path / "t.jsonl", SPANS))
    task = fitted(rows, tokenizer)
    assert (task.settings.text_column, task.settings.label_column) == (("text",), "spans")
    assert task.settings.labels == ("O", "B-LOC", "B-PER", "I-LOC", "I-PER")
    tags = [task.label_name(target) for target in task.targets(rows)]
    assert tags[0] == ["B-PER", "I-PER", "O", "B-LOC", "I-LOC", "O"]
    assert tags[1] == ["O"] * 3
    assert task.remarks(rows) == []
    SPANS[0]["spans"][1]["end"] = 20  # "New Yor"
    cut_rows = Rows.read(write_jsonl(tmp_path / "t.jsonl", SPANS))
    SPANS[0]["spans"][1]["end"] = 21
    assert task.targets(cut_rows)[0].tolist() == task.targets(rows)[0].tolist()
    (line,) = task.remarks(cut_rows)
    assert "1 spans begin or end inside a word" in line


def test_words_of_a_text_keep_their_places():
    text = "In 👩‍🚀 1984, Orwell's  ロンドン."
    words = split_words(text)
    assert all(text[word.start : word.end] == word.text for word in words)
    assert "".join(word.text for word in words) == "".join(text.split())


BAD_ROWS = [
    ({"ner_tags": ["O"]}, r"row 2: column 'ner_tags': 1 tags for 2 words"),
    ({"ner_tags": ["O", "B-ORG"]}, r"row 2: .*the tag 'B-ORG' is not among those of the model"),
    ({"ner_tags": ["O", ""]}, r"row 2: .*'' is not a tag"),
    ({"ner_tags": ["O", None]}, r"row 2: .*None is not a tag"),
    ({"ner_tags": None}, r"row 2: .*holds no list of tags"),
    ({"tokens": ["ann", None]}, r"row 2: column 'tokens' holds neither a text nor a list"),
    ({"text": "x"}, r"row 2: column 'spans': a span from 0 to 7 in a text of 1 characters"),
    ({"spans": [{"start": 5, "end": 5, "label": "LOC"}]}, r"row 2: .*a span from 5 to 5"),
    ({"spans": [{"start": None, "end": 5, "label": "LOC"}]}, r"row 2: .*whole numbers"),
    ({"spans": [{"start": 0, "end": 5}]}, r"row 2: .*the span from 0 to 5 has no label"),
    ({"spans": [{"start": 3, "end": 4, "label": "LOC"}]}, r"row 2: .*has no word in it"),
    (
        {"spans": [{"start": 0, "end": 5, "label": "LOC"}, {"start": 4, "end": 9, "label": "LOC"}]},
        r"row 2: .*two spans share the word 'Lee'",
    ),
    ({"spans": [{"start": 0, "end": 3, "label": "ORG"}]}, r"row 2: .*the tag 'B-ORG' is not among"),
]


@pytest.mark.parametrize(("change", "message"), BAD_ROWS)
def test_a_bad_row_is_named(tmp_path, tokenizer, change, message):
    spans = "spans" in change or "text" in change
    rows = SPANS[:1] * 2 if spans else [{"tokens": ["ann", "is"], "ner_tags": ["B-PER", "O"]}] * 2
    good = Rows.read(write_jsonl(tmp_path / "good.jsonl", rows))
    bad = Rows.read(write_jsonl(tmp_path / "bad.jsonl", [rows[0], rows[1] | change]))
    task = fitted(good, tokenizer)
    with pytest.raises(UserError, match=message) as caught:
        task.examples(bad, tokenizer)
    assert str(bad.path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "settings", "message"),
    [
        ({"tokens": ["a"], "tags": ["O"]}, {}, r"no column 'ner_tags', nor .*--data\.label_column"),
        ({"words": ["a"], "ner_tags": ["O"]}, {}, r"no column 'tokens', nor 'text'"),
        ({"tokens": ["a"], "ner_tags": ["O"]}, {}, r"column 'ner_tags' holds one tag only \('O'\)"),
        ({"tokens": [], "ner_tags": []}, {}, r"column 'ner_tags' holds no tag"),
        ({"tokens": ["a"], "ner_tags": ["O"]}, {"labels": ("O", "O")}, "'O' stands there twice"),
        ({"tokens": ["a"], "ner_tags": ["O"]}, {"text_column": ("a", "b")}, "in one column"),
        ({"tokens": ["a"], "ner_tags": ["O"]}, {"pooling": "mean"}, "reads every token"),
        ({"tokens": "a b", "ner_tags": "O O"}, {}, "row 1: .*holds no list of spans"),
    ],
)
def test_what_cannot_be_learnt_is_refused(tmp_path, tokenizer, row, settings, message):
    rows = Rows.read(write_jsonl(tmp_path / "t.jsonl", [row, row]))
    with pytest.raises(UserError, match=message):
        fitted(rows, tokenizer, **settings)


# --- the whole path ---


def words_of_command(tagged, model, run_dir, more=""):
    return (
        f"--model {model} --train {tagged['train']} --validation {tagged['validation']} "
        f"--run_dir {run_dir} --task token_classification --trainer.accelerator cpu "
        f"--trainer.precision fp32 --logging.wandb off --optimizer.lr 0.003 {more}"
    ).split()


@pytest.mark.parametrize("family", ["bert", "modern"])
def test_finetune_evaluate_predict(family, tagged, pretrained, tmp_path, capsys):
    run_dir = tmp_path / "run"
    more = "--trainer.max_epochs 12 --data.max_length 12 --data.stride 4"
    assert main(["finetune", *words_of_command(tagged, pretrained[family], run_dir, more)]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["f1"] > 0.9
    name = {"bert": "Bert", "modern": "ModernBert"}[family]
    assert f"loads in transformers as {name}ForTokenClassification" in err
    assert (run_dir / "entities.csv").read_text().startswith("entity,precision,recall,f1,")
    assert "`ner_tags` from `tokens`" in (run_dir / "model" / "README.md").read_text()

    model, data = str(run_dir / "model"), str(tagged["validation"])
    assert main(["evaluate", "--model", model, "--data", data]) == 0
    out, err = capsys.readouterr()
    scores = json.loads(out)
    assert set(scores) == {"loss", "f1", "precision", "recall", "accuracy"}
    assert scores["f1"] == pytest.approx(found["f1"])
    assert "entity" in err

    text = "the film about ann lee is with paris ."
    assert main(["predict", "--model", model, "--text", text, "", "--precision", "fp32"]) == 0
    answer, empty = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert list(answer) == ["text", "tokens", "tags", "entities"]
    assert [(e["type"], e["text"]) for e in answer["entities"]] == [
        ("PER", "ann lee"),
        ("LOC", "paris"),
    ]
    for entity in answer["entities"]:
        assert text[entity["start"] : entity["end"]] == entity["text"]
        assert 0.3 < entity["score"] <= 1.0  # an even guess among the tags has 0.25 at most
    assert empty == {"text": "", "tokens": [], "tags": [], "entities": []}
    assert main(["predict", "--model", model, "--input", data]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [a["tokens"] for a in answers] == [row["tokens"] for row in tagged_rows(60, 2)]
    (tmp_path / "in.txt").write_text(f"{text}\n\n")
    assert main(["predict", "--model", model, "--input", str(tmp_path / "in.txt")]) == 0
    first, second = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (first["tags"], second["tags"]) == (answer["tags"], [])
    tagger = Tagger.from_pretrained(model)
    assert tagger([text.split()])[0]["tags"] == answer["tags"]
    with pytest.raises(UserError, match="input 1: neither a text nor a list of words"):
        tagger([[1, 2]])


def test_tags_are_those_of_transformers(tagger, tagged):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForTokenClassification.from_pretrained(tagger).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tagger)
    ours = Tagger.from_pretrained(tagger, precision="fp32")
    for row in tagged_rows(20, 5):
        inputs = tokenizer(row["tokens"], is_split_into_words=True, return_tensors="pt")
        with torch.inference_mode():
            tags = theirs(**inputs).logits[0].argmax(-1).tolist()
        words = inputs.word_ids()
        first = [tags[words.index(word)] for word in range(len(row["tokens"]))]
        (answer,) = ours([row["tokens"]])
        assert answer["tags"] == [theirs.config.id2label[tag] for tag in first]


def test_a_folder_of_transformers_is_a_tagger(tmp_path, tokenizer, tagger):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForTokenClassification.from_pretrained(tagger)
    theirs.save_pretrained(tmp_path / "m")
    transformers.AutoTokenizer.from_pretrained(tagger).save_pretrained(tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config.pop("mlm", None)
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    text = "ann is in the house"
    ours, foreign = (Tagger.from_pretrained(m, precision="fp32") for m in (tagger, tmp_path / "m"))
    assert foreign([text])[0]["tags"] == ours([text])[0]["tags"]


def test_answers_do_not_depend_on_the_company(tagger):
    model = Tagger.from_pretrained(tagger, precision="fp32")
    inputs = [row["tokens"] for row in tagged_rows(40, 6)]
    together = model(inputs)
    for place in (0, 13, 39):
        assert model([inputs[place]])[0]["tags"] == together[place]["tags"]


def test_resume_and_accumulation(tagged, pretrained, tmp_path, capsys):
    more = (
        "--trainer.max_steps 6 --trainer.val_check_interval 2 --checkpoint.every_n_steps 2 "
        "--checkpoint.keep 5 --trainer.log_every_n_steps 1 --data.max_length 12"
    )
    for name in ("whole", "halves"):
        run_dir = tmp_path / name
        assert main(["finetune", *words_of_command(tagged, pretrained["bert"], run_dir, more)]) == 0
    halves = tmp_path / "halves"
    (halves / "checkpoints" / "step_00000006").rename(tmp_path / "late")
    (halves / "results.json").unlink()
    command = words_of_command(tagged, pretrained["bert"], halves, f"{more} --resume auto")
    assert main(["finetune", *command]) == 0
    one, other = (read_folder(tmp_path / n / "model").state for n in ("whole", "halves"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    parts = tmp_path / "parts"
    plain = tmp_path / "plain"
    for run_dir, accumulation in ((plain, 1), (parts, 4)):
        extra = f"{more} --model.dropout 0 --trainer.accumulate_grad_batches {accumulation}"
        command = words_of_command(tagged, pretrained["modern"], run_dir, extra)
        assert main(["finetune", *command]) == 0
    curves = [read_metrics(run_dir / "metrics.csv")["train/loss"] for run_dir in (plain, parts)]
    for one, other in zip(*curves, strict=True):
        assert (one is None) == (other is None)
        assert one is None or one == pytest.approx(other, abs=1e-4)


def test_mistakes_are_one_line_and_leave_nothing(tagged, pretrained, tmp_path, capsys):
    bad = write_jsonl(tmp_path / "bad.jsonl", [{"tokens": ["a"], "ner_tags": ["B-NEW"]}])
    for more, named in (
        (f"--validation {bad}", "bad.jsonl: row 1: column 'ner_tags': the tag 'B-NEW'"),
        ("--model.pooling cls", "model.pooling: the task token_classification reads every token"),
        ("--data.stride 62", "data.stride: 62 is as long as a window"),
        ("--checkpoint.monitor entities", "checkpoint.monitor"),
    ):
        command = words_of_command(tagged, pretrained["modern"], tmp_path / "run", more)
        assert main(["finetune", *command]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert named in line
        assert not (tmp_path / "run").exists()


def test_onnx_is_refused_in_one_line(tagger, tmp_path, capsys):
    pytest.importorskip("onnxscript")
    words = ["export", "--format", "onnx", "--model", tagger, "--output", tmp_path / "onnx"]
    assert main([*map(str, words)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--format onnx: only heads that read one vector a text" in line
    assert not (tmp_path / "onnx").exists()


@pytest.mark.slow
def test_two_processes_count_the_same_entities(tagged, pretrained, tmp_path):
    values = []
    for name, more in (("one", ""), ("two", "--trainer.devices 2 --trainer.strategy ddp")):
        common = "--model.dropout 0 --trainer.max_steps 10 --data.max_length 12 --data.stride 4"
        model, run_dir = pretrained["modern"], tmp_path / name
        command = words_of_command(tagged, model, run_dir, f"{common} {more}")
        subprocess.run(
            [sys.executable, "-m", "mlm", "finetune", *command],
            check=True, timeout=300, capture_output=True,
        )  # fmt: skip
        rows = read_metrics(run_dir / "metrics.csv")
        values.append([rows[f"val/{name}"][-1] for name in ("f1", "recall", "accuracy", "loss")])
    assert values[0] == pytest.approx(values[1], abs=1e-4)
    assert 0 < values[0][2] < 1


def test_ranks_without_a_batch_gather_what_others_saw(tokenizer):
    task = TokenClassification(TaskSettings(labels=("O", "B-A", "I-A")))
    metric = task.metrics()["f1"]
    (state,) = metric.seen
    assert (state.shape, state.dtype) == ((0, 4), torch.int64)
    metric.update(torch.tensor([1]), torch.tensor([[1, 0, 0]]))
    metric.reset()
    assert metric.words().shape == (0, 4)
