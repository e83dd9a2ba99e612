"""Broken tables, in every command that reads one: a result, or one line and nothing."""

import csv
import io
import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_models import save_masked_lm, small_config, tokenizer
from sweep import FULL, examples

import mlm.arguments
import tasks.finetuning
from mlm.arguments import CommandParser
from mlm.cli import main
from tasks.base import find_task
from tasks.commands import finetune
from tasks.folders import save_task_folder
from tasks.heads import TaskModel
from tasks.rows import Rows
from tasks.settings import TaskSettings

PAIRS = [("sentence1", "sentence2", "label"), *((f"a {i}", f"b {i}", i % 3) for i in range(9))]
SINGLES = [("text", "label"), *((f"text {i}", i % 3) for i in range(9))]
TAGGED = [{"tokens": ["a", f"b{i}", "c"], "ner_tags": ["O", "B-X", "I-X"]} for i in range(9)]
ASKED = [
    {"question": "who", "context": f"a {i}", "answer_text": ["a"], "answer_start": [0]}
    for i in range(9)
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{what it is: a model folder}: an encoder, and a fine-tuned model of each task."""
    root = tmp_path_factory.mktemp("models")
    config = small_config()
    save_masked_lm(root / "encoder", config)
    learnt = {
        "text_classification": ("rows.csv", as_csv(SINGLES)),
        "regression": ("rows.csv", as_csv(PAIRS)),
        "token_classification": ("rows.jsonl", as_jsonl(TAGGED)),
        "question_answering": ("rows.jsonl", as_jsonl(ASKED)),
    }
    for name, (file, content) in learnt.items():
        (root / file).write_bytes(content)
        task = find_task(name)(TaskSettings())
        task.fit(Rows.read(root / file), config)
        torch.manual_seed(0)
        model = TaskModel(config, task.build_head(config))
        save_task_folder(root / name, model.state_dict(), config, task, tokenizer())
    return {path.name: path for path in root.iterdir() if path.is_dir()}


def as_csv(rows, **dialect):
    file = io.StringIO(newline="")
    csv.writer(file, **dialect).writerows(rows)
    return file.getvalue().encode()


def as_jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture
def attempt(folders, tmp_path, capsys):
    """A command on tables, held to its promise: (exit code, standard output, its lines)."""

    def attempt(command, task, name, content, other=("other.csv", b""), *options):
        place = tmp_path / "place"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        (place / name).write_bytes(content)
        (place / other[0]).write_bytes(other[1])
        model = folders["encoder" if command in ("finetune", "embed") else task]
        tables = {
            "embed": ["--input", place / name, "--output", place / "result.npy"],
            "predict": ["--input", place / name, "--output", place / "result"],
            "evaluate": ["--data", place / name, "--output", place / "result"],
            "finetune": ["--train", place / name, "--validation", place / other[0]],
        }[command]
        if command == "finetune":
            tables += ["--run_dir", place / "result", "--task", task]
        code = main([command, "--model", str(model), *map(str, tables), *options])
        out, err = capsys.readouterr()
        left = {path.name for path in place.iterdir()} - {name, other[0]}
        if code == 0:
            assert left <= {"result", "result.npy"}
        else:
            assert code == 2
            assert (out, left) == ("", set())
            *told, last = err.splitlines()
            assert last.startswith("mlm: ")
            assert not any(line.startswith("mlm: ") for line in told), err
        return code, out, err.splitlines()

    return attempt


# --- what stands in a table ---

NAMES = st.sampled_from(
    ["text", "label", "sentence1", "sentence2", "", " text", "Text", "\ufefftext", "a\nb", "текст"]
)
GOOD = st.sampled_from(
    ["a gripping film", "dull", "Naïve 你好", "Nothing here is new; all is dull."]
)
ODD = [
    *("", " ", "\r\n", "\n", '"', '""', ",", "\t", "a, b", 'say "no"', "two\nlines", "\ufeff"),
    *("x" * 3000, "\u2028", "[MASK]", "[PAD][CLS]", "\U0010ffff", "null", "NaN", "7", "1e3"),
]
TEXTS = st.one_of(GOOD, GOOD, st.sampled_from(ODD), st.text(max_size=12))
CLASSES = {
    "numbers": st.sampled_from(["0", "1", "2"]),
    "words": st.sampled_from(["good", "bad"]),
    "floats": st.floats(-9, 9).map(str),
}
BAD_CLASSES = st.one_of(
    st.sampled_from(["", " ", "nan", "inf", "-1", "1e400", "true", "x", "1.0", "9" * 30, "1e-320"]),
    st.sampled_from(["\u0661", "²", "1_000", "0x1", "None", "1e300", "-1e300", "2", "\ufeff"]),
    st.integers().map(str),
    st.floats().map(str),
)
VALUES = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS, BAD_CLASSES),
    st.sampled_from([10**400, 2**64, "\ud83d", [], ["a"], {}, {"a": 1}]),
)
HEADERS = [["text", "label"], ["sentence1", "sentence2", "label"], ["label", "id", "text"]]


@st.composite
def rarely(draw):
    """True one time in eight."""
    return draw(st.integers(0, 7)) == 7


@st.composite
def rows(draw):
    """A header and rows below it; now and then other names, or a label of another kind."""
    header = draw(st.sampled_from(HEADERS))
    if draw(rarely()):
        header = draw(st.lists(NAMES, min_size=1, max_size=4))
    classes = CLASSES[draw(st.sampled_from(sorted(CLASSES)))]
    row = st.tuples(*(classes if name == "label" else TEXTS for name in header)).map(list)
    found = draw(st.lists(row, min_size=2, max_size=8))
    if "label" in header and draw(rarely()):
        draw(st.sampled_from(found))[header.index("label")] = draw(BAD_CLASSES)
    return [header, *found]


@st.composite
def table(draw):
    """(name, content) of a table of any kind; now and then damaged, or with values of any type."""
    ending = draw(st.sampled_from([".csv", ".tsv", ".jsonl", ".parquet"]))
    header, *found = draw(rows())
    if ending == ".parquet":
        content = draw(parquet(header, found))
    elif ending == ".jsonl":
        objects = [dict(zip(header, row, strict=True)) for row in found]
        if draw(rarely()):
            draw(st.sampled_from(objects))[draw(NAMES)] = draw(VALUES)
        content = "".join(json.dumps(row) + "\n" for row in objects).encode()
    else:
        if draw(rarely()):
            draw(st.sampled_from(found)).append("one more")
        if ending == ".csv":
            quoting = draw(st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]))
            content = as_csv([header, *found], quoting=quoting)
        else:
            content = "".join("\t".join(row) + "\n" for row in [header, *found]).encode()
    at = draw(st.integers(0, len(content)))
    match draw(st.integers(0, 11)):
        case 11:
            content = content[:at]
        case 10:
            content = content[:at] + draw(st.binary(min_size=1, max_size=4)) + content[at + 4 :]
        case 9:
            content = content[:at] + draw(st.sampled_from(FOREIGN)) + content[at:]
    return f"table{ending}", content


WORDS = st.one_of(st.sampled_from(["a", "b1", "Naïve", "你好"]), TEXTS)
TAGS = st.sampled_from([*(["O", "B-X", "I-X"] * 8), "B-", "I-Y", "X", "", "1"])
SMALL = st.sampled_from([0, 0, 1, 2, 3, 4, 9, -1])
ANYTHING = st.one_of(VALUES, st.lists(VALUES, max_size=3))


@st.composite
def words_with_tags(draw):
    """A tag a word; mostly."""
    words = draw(st.lists(WORDS, max_size=6))
    tags = draw(st.lists(TAGS, min_size=len(words), max_size=len(words)))
    return {"tokens": words, "ner_tags": tags[draw(rarely()) :]}


@st.composite
def text_with_spans(draw):
    """Spans inside a text; mostly."""
    edges = {"start": SMALL, "end": SMALL, "label": st.sampled_from([*("X" * 8), "", "Y"])}
    spans = draw(st.lists(st.fixed_dictionaries(edges), max_size=2))
    if not draw(rarely()):
        spans = [span for span in spans if 0 <= span["start"] < span["end"]][:1]
    return {"text": "a b1 " + draw(WORDS), "spans": spans}


@st.composite
def question(draw, struct):
    """A question with a context and answers in it; mostly."""
    context = f"{draw(TEXTS)} {draw(TEXTS)}"
    found = []
    for _ in range(draw(st.sampled_from([0, 1, 1, 2]))):
        start = draw(st.integers(0, len(context) - 1))
        text = context[start : start + draw(st.integers(1, 5))]
        found.append((text, start + draw(rarely())))
    texts, starts = [text for text, _ in found], [start for _, start in found]
    row = {"question": draw(TEXTS), "context": context}
    if struct:
        return row | {"answers": {"text": texts, "answer_start": starts}}
    return row | {"answer_text": texts, "answer_start": starts}


# kind of row: its task, a row, and how a model that learnt from rows of the first kind is told.
NESTED = {
    "tags": ("token_classification", words_with_tags, []),
    "spans": (
        "token_classification",
        text_with_spans,
        ["--data.text_column", "text", "--data.label_column", "spans"],
    ),
    "answers": ("question_answering", lambda: question(False), []),
    "struct": (
        "question_answering",
        lambda: question(True),
        ["--data.text_column", "[question,context]", "--data.label_column", "answers"],
    ),
}


@st.composite
def nested_table(draw, row):
    """(name, content) of a table with lists in it; now and then with values of any type."""
    found = draw(st.lists(row, min_size=1, max_size=5))
    if draw(rarely()):
        changed = draw(st.sampled_from(found))
        changed[draw(st.sampled_from(sorted(changed)))] = draw(ANYTHING)
    if draw(st.booleans()):
        return "table.jsonl", as_jsonl(found)
    file = io.BytesIO()
    try:
        pq.write_table(pa.Table.from_pylist(found), file)
    except (pa.ArrowException, UnicodeEncodeError, OverflowError):  # values that do not go together
        return "table.jsonl", as_jsonl(found)
    return "table.parquet", file.getvalue()


FOREIGN = [b"\0", b"\xff", b'"', b"\r", b"\n", b"\xef\xbb\xbf", b"\xed\xa0\x80"]


@st.composite
def parquet(draw, header, found):
    """Columns of texts, but labels of a type that is drawn, where the values are of that type."""
    columns = []
    for place, name in enumerate(header):
        values = pa.array([row[place] for row in found])
        kind = draw(st.sampled_from(TYPES)) if name == "label" or draw(rarely()) else pa.string()
        try:
            columns.append(values.cast(kind))
        except pa.ArrowException:
            columns.append(values)
    file = io.BytesIO()
    pq.write_table(pa.table(columns, names=header), file)
    return file.getvalue()


TYPES = [
    *(pa.string(), pa.float32(), pa.float64(), pa.int8(), pa.uint64(), pa.large_string()),
    *(pa.float16(), pa.decimal128(9, 2), pa.timestamp("s"), pa.binary(), pa.string_view()),
]


sweep = settings(
    deadline=None,
    derandomize=not FULL,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@settings(sweep, max_examples=examples(120, 1200))
@given(
    table(),
    st.sampled_from(["embed", "predict", "evaluate"]),
    st.sampled_from(
        ["text_classification", "regression", "token_classification", "question_answering"]
    ),
)
def test_tables_to_answer(attempt, file, command, task):
    attempt(command, task, *file)


@settings(sweep, max_examples=examples(80, 1000))
@given(st.data(), st.sampled_from(sorted(NESTED)), st.sampled_from(["predict", "evaluate"]))
def test_nested_tables_to_answer(attempt, data, kind, command):
    task, row, columns = NESTED[kind]
    options = columns if command == "evaluate" else columns[:2]
    attempt(command, task, *data.draw(nested_table(row())), ("other.csv", b""), *options)


@pytest.fixture
def nothing_is_trained(monkeypatch):
    """`mlm finetune` does all that it does before training, with a parser that is built once."""
    parser = CommandParser("finetune", "")
    finetune.add_arguments(parser)
    monkeypatch.setattr(mlm.arguments, "CommandParser", lambda *_: parser)
    monkeypatch.setattr(finetune, "add_arguments", lambda parser: None)
    monkeypatch.setattr(tasks.finetuning, "run_seed", lambda *_: {})


@settings(sweep, max_examples=examples(80, 1000))
@given(table(), rows(), st.sampled_from(["text_classification", "regression"]))
def test_tables_to_learn_from(attempt, nothing_is_trained, file, other, task):
    attempt("finetune", task, *file, ("other.csv", as_csv(other)))


@settings(sweep, max_examples=examples(80, 1000))
@given(st.data(), st.sampled_from(sorted(NESTED)))
def test_nested_tables_to_learn_from(attempt, nothing_is_trained, data, kind):
    task, row, _ = NESTED[kind]
    name, content = data.draw(nested_table(row()))
    other, held_out = data.draw(nested_table(row()))
    attempt("finetune", task, name, content, (f"other-{other}", held_out))


# --- what was found, and must stay mended ---


def test_a_parquet_column_that_stands_twice(attempt):
    file = io.BytesIO()
    columns = [pa.array(["a", "b"]), pa.array(["c", "d"]), pa.array([0, 1])]
    pq.write_table(pa.table(columns, names=["text", "text", "label"]), file)
    for command in ("embed", "predict", "finetune"):
        code, _, lines = attempt(command, "text_classification", "t.parquet", file.getvalue())
        assert code == 2
        assert "t.parquet: column 'text' stands twice in the header" in lines[-1]
