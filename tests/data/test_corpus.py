"""Every kind of corpus file to documents, and what is wrong with one named."""

import csv
import gzip
import json
import lzma
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlm.data.corpus import PIECE, find_sources, read_documents, read_pieces
from mlm.data.readers import CorpusCounts, Rules
from mlm.errors import UserError

DOCUMENTS = ["One.\nStill one.", "Two: naïve 你好 👨‍👩‍👧.", "Three."]
TEXT = "\n\n".join(DOCUMENTS) + "\n"
# Without the time of day: it becomes a test's name, and two workers must find the same names.
_GZIPPED = gzip.compress(b"text " * 9999, mtime=0)


def read(*paths, **options):
    return list(read_documents([str(path) for path in paths], **options))


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def a_table(path: Path, texts: list[str | None], column: str = "text") -> Path:
    """The same rows in whichever kind the ending asks for."""
    ids = list(range(len(texts)))
    match path.suffix:
        case ".parquet":
            pq.write_table(pa.table({"id": ids, column: texts}), path)
        case ".jsonl":
            rows = ({"id": i, column: text} for i, text in enumerate(texts))
            write(path, "".join(json.dumps(row) + "\n" for row in rows))
        case ".csv" | ".tsv" as kind:
            with path.open("w", newline="", encoding="utf-8") as file:
                dialect = {"delimiter": ","} if kind == ".csv" else {"delimiter": "\t"}
                writer = csv.writer(file, **dialect)
                writer.writerow(["id", column])
                writer.writerows(zip(ids, texts, strict=True))
    return path


@pytest.mark.parametrize("ending", [".txt", ".txt.xz", ".txt.gz", ".TXT"])
def test_plain_text(tmp_path, ending):
    compress = {".xz": lzma.compress, ".gz": gzip.compress}.get(ending[4:], bytes)
    path = write(tmp_path / f"corpus{ending}", compress(TEXT.encode()))
    counts = CorpusCounts()
    assert read(path, counts=counts) == DOCUMENTS
    assert (counts.documents, counts.empty_documents) == (3, 0)
    assert counts.source_bytes == path.stat().st_size


@pytest.mark.parametrize("ending", [".parquet", ".jsonl", ".csv", ".tsv"])
def test_tables(tmp_path, ending):
    texts = [d.replace("\n", " ") if ending == ".tsv" else d for d in DOCUMENTS]
    counts = CorpusCounts()
    rows = [*texts, "", "  "]
    assert read(a_table(tmp_path / f"table{ending}", rows), counts=counts) == texts
    assert (counts.documents, counts.empty_documents) == (3, 2)
    other = a_table(tmp_path / f"other{ending}", texts, column="body")
    assert read(other, text_column="body") == texts


def test_null_is_an_empty_document(tmp_path):
    counts = CorpusCounts()
    paths = [a_table(tmp_path / f"t{ending}", ["a", None]) for ending in (".parquet", ".jsonl")]
    assert read(*paths, counts=counts) == ["a", "a"]
    assert counts.empty_documents == 2


@pytest.mark.parametrize("ending", [".jsonl.xz", ".csv.gz"])
def test_compressed_tables(tmp_path, ending):
    plain = a_table(tmp_path / f"t.{ending.split('.')[1]}", DOCUMENTS)
    compress = lzma.compress if ending.endswith("xz") else gzip.compress
    assert read(write(tmp_path / f"t{ending}", compress(plain.read_bytes()))) == DOCUMENTS


@pytest.mark.parametrize(
    ("text", "documents"),
    [
        ("a\r\nb\r\n\r\nc\r\n", ["a\nb", "c"]),
        ("\n\n\na\n\n\n\nb", ["a", "b"]),
        ("a\n \nb", ["a\nb"]),  # white space is no paragraph, but not a blank line either
        ("a\x0bb\x0cc\x1cd\x85e\u2028f", ["a\x0bb\x0cc\x1cd\x85e\u2028f"]),  # lines end at \n only
        ("  indented \t\n", ["  indented"]),
        ("\ufeffa\n\n\ufeffb", ["a", "\ufeffb"]),  # a mark of byte order stands at the start only
    ],
)
def test_lines_and_documents(tmp_path, text, documents):
    assert read(write(tmp_path / "a.txt", text)) == documents


def test_white_space_alone_is_an_empty_document(tmp_path):
    counts = CorpusCounts()
    assert read(write(tmp_path / "a.txt", "a\n\n \t\n\nb"), counts=counts) == ["a", "b"]
    assert counts.empty_documents == 1


def test_a_document_ends_with_its_file(tmp_path):
    assert read(write(tmp_path / "a.txt", "a"), write(tmp_path / "b.txt", "b")) == ["a", "b"]


def test_folders_are_walked_in_sorted_order(tmp_path):
    for name in (
        "b.txt",
        "a/z.txt",
        "a.txt",
        "c/d.jsonl",
        ".hidden.txt",
        "README.md",
        ".git/x.txt",
    ):
        write(tmp_path / name, '{"text": "c/d.jsonl"}' if name.endswith("jsonl") else name)
    assert read(tmp_path) == ["a/z.txt", "a.txt", "b.txt", "c/d.jsonl"]


def test_what_a_folder_has_in_vain_is_one_line(tmp_path, capsys):
    write(tmp_path / "a.txt", "a")
    assert read(tmp_path) == ["a"]
    assert capsys.readouterr().err == ""
    for name in (
        *("b.json", "c/d.JSON", "README.md", "e.jsonl.zst", "f.csv.bz2", "g.pdf.gz", "LICENSE"),
        *(".hidden.md", ".git/config.json"),
    ):
        write(tmp_path / name, name)
    assert read(tmp_path) == ["a"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"{tmp_path}: 7 files passed over: .json 2, .csv.bz2 1, .jsonl.zst 1, .md 1, .pdf.gz 1 and "
        "1 more; read are .txt, .jsonl, .csv, .tsv, .parquet (all but the last also .xz or .gz)"
    )
    (tmp_path / "c" / "x.txt").write_text("x")
    assert read(tmp_path / "c", tmp_path / "a.txt") == ["x", "a"]
    assert "c: 1 file passed over: .json 1; read are" in capsys.readouterr().err


def test_long_documents_come_in_pieces_that_join_to_the_whole(tmp_path):
    paragraphs = [f"paragraph {i} " * (i % 50 + 1) for i in range(3000)]
    paragraphs[7] = "unbroken" * PIECE
    paragraphs[9] = "many words " * PIECE
    path = write(tmp_path / "a.txt", "\n".join(paragraphs) + "\n\nshort\n")
    pieces = list(read_pieces(find_sources([path]), Rules()))
    assert [p.last for p in pieces].count(True) == 2
    assert max(len(p.text) for p in pieces) <= 2 * PIECE
    whole = "".join(p.text for p in pieces[:-1])
    assert whole.split() == " ".join(paragraphs).split()
    assert whole.split("\n")[10:] == [p.rstrip() for p in paragraphs[10:]]
    row = a_table(tmp_path / "b.jsonl", ["\n".join(paragraphs), "short"])
    pieces = list(read_pieces(find_sources([row]), Rules()))
    assert "".join(p.text for p in pieces[:-1]) == "\n".join(paragraphs)
    assert max(len(p.text) for p in pieces) <= 2 * PIECE


def test_a_line_of_many_megabytes_is_cut_at_spaces_and_between_characters(tmp_path):
    words = " ".join(f"wörd{i}" for i in range(400_000))
    path = write(tmp_path / "a.txt", words)
    assert "".join(read(path)).replace("\n", " ") == words
    path = write(tmp_path / "b.txt", "你" * 800_000)
    assert "".join(read(path)).replace("\n", "") == "你" * 800_000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"fine\nf\xc3ne\n", r"a\.txt: line 2: invalid UTF-8"),
        ("a.txt", b"fine\n" * 999 + b"\xff", r"a\.txt: line 1000: invalid UTF-8"),
        ("a.txt", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", r"a\.txt: is a binary file"),
        ("a.txt", b"text\n" * 300_000 + b"\0", r"a\.txt: line 300001: a zero byte"),
        ("a.txt", "text".encode("utf-16"), r"a\.txt: is UTF-16"),
        ("a.txt.xz", lzma.compress(b"text " * 9999)[:-40], r"a\.txt\.xz: truncated or damaged"),
        ("a.txt.xz", b"no xz at all", r"a\.txt\.xz: truncated or damaged"),
        ("a.txt.gz", _GZIPPED[:-40], r"a\.txt\.gz: truncated or damaged"),
        ("a.txt.gz", b"no gzip at all", r"a\.txt\.gz: truncated or damaged"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', r"a\.jsonl: line 2: not JSON"),
        ("a.jsonl", b'{"text": "a"}\n["b"]\n', r"a\.jsonl: line 2: not an object"),
        ("a.jsonl", b'{"text": "a"}\n{"body": "b"}\n', r"line 2: no column 'text' among 'body'"),
        ("a.jsonl", b'{"text": 3}\n', r"line 1: column 'text' holds int, not text"),
        ("a.jsonl", b'{"text": "\\ud83d"}\n', r"a\.jsonl: line 1: invalid UTF-8"),
        ("a.csv", b"id,body\n1,b\n", r"a\.csv: no column 'text' among 'id', 'body'"),
        ("a.csv", b"id,text\n1,b\n2\n", r"a\.csv: line 3: 1 cells where the header has 2; quote"),
        ("a.csv", b"id;text\n1;b, c\n", r"a\.csv: is separated by ';'; save it with commas"),
        ("a.csv", b"id\ttext\n1\tb\n", r"is separated by tabs; .*, or with tabs as \.tsv$"),
        ("a.csv", b'id,text\n1,b\n2,"c', r"a\.csv: line 3: "),
        ("a.csv", b"", r"a\.csv: is empty"),
        ("a.tsv", b"id\tbody\n1\tb\n", r"a\.tsv: no column 'text' among 'id', 'body'"),
        ("a.parquet", b"PAR1 no parquet PAR1", r"a\.parquet: damaged, or not a Parquet file"),
        ("a.pdf", b"%PDF", r"a\.pdf: unknown kind of corpus file; a corpus is made of \.txt"),
        ("a.xz", b"", r"a\.xz: unknown kind"),
        ("noending", b"text", "noending: unknown kind"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message) as caught:
        read(write(tmp_path / name, content))
    assert "\n" not in str(caught.value)


def test_a_parquet_column_that_is_missing_or_no_text(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"tokens": [["a"]], "label": [1]}), path)
    with pytest.raises(UserError, match=r"a\.parquet: no column 'text' among 'tokens', 'label'"):
        read(path)
    with pytest.raises(UserError, match=r"a\.parquet: row 1: column 'tokens' holds list, not"):
        read(path, text_column="tokens")


def test_a_parquet_text_that_is_not_utf8(tmp_path):
    path = tmp_path / "a.parquet"
    texts = pa.array([b"fine", b"f\xc3ne"]).view(pa.string())
    pq.write_table(pa.table({"text": texts}), path)
    with pytest.raises(UserError, match=r"a\.parquet: row 2: invalid UTF-8"):
        read(path)
    assert read(path, invalid_utf8="replace") == ["fine", "f\ufffdne"]


@pytest.mark.parametrize("name", ["missing.txt", "missing"])
def test_a_missing_path(tmp_path, name):
    with pytest.raises(UserError, match=r"missing.*no such file or folder"):
        read(tmp_path / name)


def test_a_folder_without_a_corpus_file(tmp_path):
    write(tmp_path / "README.md", "no corpus")
    with pytest.raises(UserError, match="no corpus file in this folder"):
        read(tmp_path)


def test_invalid_utf8_can_be_replaced_and_is_counted(tmp_path):
    path = write(tmp_path / "a.txt", b"fine \xef\xbf\xbd\n\xff\xfe f\xc3ne\n")
    counts = CorpusCounts()
    assert read(path, invalid_utf8="replace", counts=counts) == [
        "fine \ufffd\n\ufffd\ufffd f\ufffdne"
    ]
    assert counts.invalid_characters == 3
    row = write(tmp_path / "b.jsonl", b'{"text": "half \\ud83d"}')
    assert read(row, invalid_utf8="replace", counts=counts)[0].startswith("half \ufffd")


def test_a_csv_cell_may_hold_lines_and_commas(tmp_path):
    path = write(tmp_path / "a.csv", 'text,id\n"a, ""b""\nc",1\n\n')
    assert read(path) == ['a, "b"\nc']


def test_a_tsv_has_no_quotes(tmp_path):
    assert read(write(tmp_path / "a.tsv", 'text\n"a\nb"\n')) == ['"a', 'b"']


def test_hub_sets_are_streamed(monkeypatch):
    asked = []

    def load_dataset(*args, **options):
        asked.append((args, options))
        return iter([{"text": "a", "id": 1}, {"text": "", "id": 2}, {"text": "b", "id": 3}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    counts = CorpusCounts()
    assert read("hub:who/what", counts=counts) == ["a", "b"]
    assert counts.empty_documents == 1
    read("hub:who/what:en")
    read("hub:who/what:en:test")
    assert asked == [
        (("who/what", None), {"split": "train", "streaming": True}),
        (("who/what", "en"), {"split": "train", "streaming": True}),
        (("who/what", "en"), {"split": "test", "streaming": True}),
    ]
    with pytest.raises(UserError, match="row 1: no column 'body' among 'text', 'id'"):
        read("hub:who/what", text_column="body")


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch):
    def load_dataset(*args, **options):
        raise ConnectionError("Couldn't reach 'who/what' on the Hub\n(many more lines)")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match=r"hub:who/what: cannot be read.*Couldn't reach") as caught:
        read("hub:who/what")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["hub:", "hub:a:b:c:d"])
def test_a_hub_name_that_is_none(name):
    with pytest.raises(UserError, match="write hub:NAME"):
        read(name)
