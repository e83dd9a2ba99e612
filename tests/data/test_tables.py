import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlm.data.tables import column_values, read_table, read_texts, text_column
from mlm.errors import UserError

ROWS = [
    {"text": 'She said "no", twice.', "label": 1},
    {"text": "", "label": 0},
    {"text": "naïve — 東京", "label": 10},
]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def written(folder: Path, ending: str) -> Path:
    path = folder / f"rows{ending}"
    if ending == ".parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif ending == ".jsonl":
        write(path, "".join(json.dumps(row) + "\n" for row in ROWS) + "\n")
    elif ending == ".csv":
        write(path, 'text,label\r\n"She said ""no"", twice.",1\r\n"",0\r\nnaïve — 東京,10\r\n')
    else:
        write(path, 'text\tlabel\nShe said "no", twice.\t1\n\t0\nnaïve — 東京\t10\n')
    return path


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".tsv", ".jsonl"])
def test_every_kind_gives_the_same_rows(tmp_path, ending):
    path = written(tmp_path, ending)
    assert read_table(path).to_pylist() == ROWS
    assert read_texts(path, "text") == [row["text"] for row in ROWS]


def test_a_quoted_cell_may_hold_lines_and_a_tsv_has_no_quotes(tmp_path):
    path = write(tmp_path / "a.csv", 'text,n\n"one\ntwo",1\n\nthree,2\n')
    assert read_texts(path) == ["one\ntwo", "three"]
    path = write(tmp_path / "a.tsv", 'text\tn\n"open\t1\nnext\t2\n')
    assert read_texts(path) == ['"open', "next"]


def test_text_that_looks_like_a_number_stays_as_written(tmp_path):
    path = write(tmp_path / "a.csv", "text,n,date\n007,1,2020-01-01\n8,-2,2020-01-02\n")
    assert read_table(path).to_pydict() == {
        "text": ["007", "8"],
        "n": [1, -2],
        "date": ["2020-01-01", "2020-01-02"],
    }
    assert read_texts(path, "n") == ["1", "-2"]


def test_lines_of_text(tmp_path):
    path = write(tmp_path / "a.txt", "\ufeffone\r\n\ntwo\u2028still two\rand still\n")
    assert read_texts(path, "ignored") == ["one", "", "two\u2028still two\rand still"]
    assert read_texts(write(tmp_path / "b.txt", "last line without end")) == [
        "last line without end"
    ]
    assert read_texts(write(tmp_path / "c.txt", "")) == []


def test_null_is_the_empty_text_and_tokens_stay_lists(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": null, "tokens": ["a", "b"]}\n{"text": "x"}\n')
    table = read_table(path)
    assert text_column(table, "text", path) == ["", "x"]
    assert column_values(table, "tokens", path) == [["a", "b"], None]


def test_folder_names_are_not_columns(tmp_path):
    (tmp_path / "split=train").mkdir()
    assert read_table(written(tmp_path / "split=train", ".parquet")).column_names == [
        "text",
        "label",
    ]


def test_header_without_rows(tmp_path):
    path = write(tmp_path / "a.csv", "text,label\n")
    assert read_table(path).num_rows == 0
    assert read_texts(path) == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,label\nok,1\nbad,1,2\n", "line 3: 3 cells where the header has 2; quote"),
        ("a.csv", "text;label\nok;1\n", "by ';'; save it with commas, or with tabs as .tsv"),
        ("a.csv", "text;label\nno, no;1\n", "is separated by ';'"),
        ("a.csv", "text\tlabel\nok\t1\n", "is separated by tabs"),
        ("a.csv", 'text,label\nok,1\n"open,1\n', "line 3: "),
        ("a.csv", 'text,label\n"a"b,1\n', "line 2: "),
        ("a.csv", "", "is empty"),
        ("a.csv", "text,text\na,b\n", "'text' stands twice"),
        ("a.csv", b"text,label\nok,1\n\xff\xfe,1\n", "line 3: invalid UTF-8"),
        ("a.tsv", "text\tlabel\nonly\n", "line 2: 1 cells where the header has 2"),
        ("a.tsv", b"text\n\x00\n", "binary"),
        ("a.tsv", "text\tlabel\nok\t1\n".encode("utf-16"), "is UTF-16 or UTF-32, not UTF-8"),
        ("a.txt", "one\n".encode("utf-16"), "is UTF-16 or UTF-32, not UTF-8; convert the file"),
        ("a.jsonl", '{"text": "a"}\n\n{"text": "b"\n', "line 3: not JSON"),
        ("a.jsonl", '{"text": "a"}\n["b"]\n', "line 2: not an object"),
        ("a.jsonl", '{"text": "a"}\n{"text": "b"}\n{"text": 1}\n', "line 3: key 'text'"),
        ("a.jsonl", '{"text": "a"}\n{"text": "\\ud800"}\n', "line 2: key 'text'"),
        ("a.jsonl", "[" * 100_000, "line 1: not JSON"),
        ("a.parquet", b"PAR1 but nothing else", "not a Parquet file"),
        ("a.parquet", b"", "not a Parquet file"),
        ("a.txt", b"one\ntwo \xe9\n", "line 2: invalid UTF-8"),
        ("a.txt", b"\x7fELF\x00\x00", "binary"),
        ("a.xlsx", b"", "not from '.xlsx'"),
    ],
)
def test_damage_is_one_line_that_names_the_place(tmp_path, name, content, message):
    path = write(tmp_path / name, content)
    with pytest.raises(UserError) as error:
        read_texts(path, "text")
    line = str(error.value)
    assert line.startswith(f"{path}: ")
    assert message in line
    assert "\n" not in line


def test_missing_things_are_named(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_table(tmp_path / "none.csv")
    with pytest.raises(UserError, match="is a folder"):
        read_texts(tmp_path)
    path = written(tmp_path, ".csv")
    with pytest.raises(UserError, match="no column 'test' among 'text', 'label'; did you mean"):
        read_texts(path, "test")


def test_values_that_are_not_text(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": 1.5}\n')
    with pytest.raises(UserError, match="row 1: column 'text' holds float"):
        read_texts(path)


def test_truncated_and_invalid_parquet(tmp_path):
    path = written(tmp_path, ".parquet")
    whole = path.read_bytes()
    write(path, whole[: len(whole) // 2])
    with pytest.raises(UserError, match="not a Parquet file"):
        read_table(path)
    broken = pa.StringArray.from_buffers(
        2, pa.py_buffer(b"\x00\0\0\0\x02\0\0\0\x04\0\0\0"), pa.py_buffer(b"ok\xff\xff")
    )
    pq.write_table(pa.table({"text": broken}), path)
    with pytest.raises(UserError, match="row 2: column 'text': invalid UTF-8"):
        read_table(path)


def test_a_table_may_be_a_set_of_the_hub(monkeypatch):
    import datasets

    tags = datasets.List(datasets.ClassLabel(names=["O", "B-PER"]))
    features = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    rows = [{"text": "a", "label": 1, "tags": [0, 1]}, {"text": "b", "label": 0, "tags": None}]

    def load_dataset(name, config, *, split, streaming):
        if name == "me/gone":
            raise ConnectionError("no route\nto the host")
        assert (name, config, split, streaming) == ("me/set", "small", "dev", False)
        return datasets.Dataset.from_list(rows, datasets.Features(features | {"tags": tags}))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    table = read_table("hub:me/set:small:dev")
    # A class is its number, as in a file; a tag is its name.
    assert table.to_pylist() == [
        {"text": "a", "label": 1, "tags": ["O", "B-PER"]},
        {"text": "b", "label": 0, "tags": None},
    ]
    assert read_texts("hub:me/set:small:dev") == ["a", "b"]
    with pytest.raises(UserError, match=r"^hub:me/gone: .*is there a network.*\(no route\)$"):
        read_table("hub:me/gone")
    with pytest.raises(UserError, match="write hub:NAME"):
        read_table("hub:a:b:c:d")
