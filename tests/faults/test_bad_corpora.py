"""Broken files of every kind that a corpus is made of: a token store, or one line and nothing."""

import csv
import gzip
import io
import json
import lzma
import os
import random
import shutil
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sweep import FULL, examples

from mlm.cli import main
from mlm.data.corpus import find_sources


@pytest.fixture
def prepare(tmp_path, capsys):
    """`mlm prepare` on one file, held to its promise: (exit code, its one line or report)."""

    def prepare(name, content, *options):
        folder = tmp_path / "place"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / name).write_bytes(content)
        small = ["--num_processes", "1", "--vocab_size", "300"]
        store = folder / "store"
        words = ["--corpus", str(folder / name), "--output", str(store), *small, *options]
        code = main(["prepare", *words])
        out, err = capsys.readouterr()
        left = {path.name for path in folder.iterdir()}
        if code == 0:
            assert left == {name, "store"}
            report = json.loads(out)
            assert report["documents"] > 0
            return code, report
        assert code == 2
        assert (out, left) == ("", {name})
        *told, last = err.splitlines()
        assert last.startswith("mlm: ")
        assert not any(line.startswith("mlm: ") for line in told), err
        return code, last

    return prepare


# --- what stands in a file ---

GOOD = st.sampled_from(
    [
        "One two.",
        "Three four five.",
        "A line\nand another.",
        "Naïve 你好 👨‍👩‍👧.",
        "six seven eight",
    ]
)
BYTES = [
    *(b"\xff", b"\xfe\xff", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xc3", b"\xf4", b"\0"),
    *(b"\xf0\x9f\x98", b"\xc0\xaf", b"\r", b"\r\n", b"\r\n\r\n", b"\n", b"\n\n", b"\n \n", b"\t"),
    *(b" " * 300, b"\n" * 300, b"x" * 9000, b"\x1a", b"\x1f\x8b", b"\x0b\x0c\x1c\x85", b"", b" "),
    *(b'"', b'""', b'","', b",", b"\\", b"'", b"{", b"}", b"[", b"]", b":", b"null", b"text"),
]
ODD = [
    *(
        "\u2028",
        "\ufdd0",
        "\uffff",
        "\U0010ffff",
        "\u0301" * 99,
        "\u200d",
        "\u202e",
        "\xa0",
        "\u0600",
    ),
    *("[MASK] ", "[PAD]", "##ing ", "▁", "Ġ", "İ", "ﷺ", "ß", "x" * 9000, "", " ", "\n", "\r", "\t"),
]
FRAGMENTS = st.sampled_from([*BYTES, *(text.encode() for text in ODD)])
TEXTS = st.one_of(GOOD, GOOD, GOOD, st.sampled_from(ODD), st.text(max_size=30))
JSON = st.recursive(
    st.one_of(
        *(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS),
        st.sampled_from([10**400, "\ud83d"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.just("text"), TEXTS), inner, max_size=3),
    ),
    max_leaves=6,
)


@st.composite
def rarely(draw):
    """True one time in eight."""
    return draw(st.integers(0, 7)) == 7


@st.composite
def plain_text(draw):
    parts = [text.encode() + b"\n\n" for text in draw(st.lists(TEXTS, max_size=8))]
    for fragment in draw(st.lists(FRAGMENTS, max_size=3)):
        parts.insert(draw(st.integers(0, len(parts))), fragment)
    return b"".join(parts)


@st.composite
def json_lines(draw):
    """Rows with a text; now and then one of any shape."""
    good = st.fixed_dictionaries({"text": TEXTS}, optional={"label": JSON})
    rows = draw(st.lists(good, min_size=2, max_size=6))
    if draw(rarely()):
        rows.append({"text": draw(JSON)})
    if draw(rarely()):
        rows.append(draw(JSON))
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@st.composite
def cells(draw, delimiter):
    """A table, quoted or not; now and then with other columns, or a row of another width."""
    header = draw(st.sampled_from([["text"], ["text", "label"], ["", "text", "text"]]))
    if draw(rarely()):
        header = draw(st.lists(TEXTS, max_size=3))
    width = len(header)
    rows = draw(st.lists(st.lists(TEXTS, min_size=width, max_size=width), min_size=2, max_size=6))
    if draw(rarely()):
        rows.append(draw(st.lists(TEXTS, max_size=4)))
    file = io.StringIO(newline="")
    always = delimiter == "," and draw(st.booleans())
    quoting = csv.QUOTE_ALL if always else csv.QUOTE_MINIMAL
    csv.writer(file, delimiter=delimiter, quoting=quoting).writerows([header, *rows])
    return file.getvalue().encode()


@st.composite
def parquet(draw):
    """A column of texts among others of any type; now and then that one is of another type too."""
    rows = draw(st.sampled_from([6, 2, 1, 0]))
    names = draw(st.sampled_from([["text"], ["text", "label"], ["", "text", "text"], ["a\nb"]]))
    columns = []
    for name in names:
        kinds = TEXT_TYPES if name == "text" and not draw(rarely()) else OTHER_TYPES
        kind = draw(st.sampled_from(kinds))
        if kind in OTHER_TYPES:
            columns.append(pa.nulls(rows, kind))
            continue
        cell = st.one_of(st.none(), *[GOOD.map(str.encode)] * 7, plain_text())
        raw = pa.array(draw(st.lists(cell, min_size=rows, max_size=rows)), pa.large_binary())
        columns.append(raw if kind == pa.large_binary() else raw.view(pa.large_string()))
    file = io.BytesIO()
    packing = draw(st.sampled_from(["snappy", "gzip", "zstd", "none"]))
    pq.write_table(pa.table(columns, names=names), file, compression=packing)
    return file.getvalue()


TEXT_TYPES = [pa.large_string(), pa.large_binary()]
OTHER_TYPES = [
    *(pa.int64(), pa.float16(), pa.bool_(), pa.null(), pa.list_(pa.string()), pa.timestamp("ns")),
    *(pa.struct([("text", pa.string())]), pa.decimal128(30, 3), pa.map_(pa.string(), pa.int8())),
    *(pa.date32(), pa.dictionary(pa.int32(), pa.string()), pa.binary(3), pa.time64("us")),
]

KINDS = {
    ".txt": plain_text(),
    ".jsonl": json_lines(),
    ".csv": cells(","),
    ".tsv": cells("\t"),
    ".parquet": parquet(),
}


@st.composite
def broken_file(draw):
    """(name, content) of a file of any kind, packed or not, cut short or overwritten or whole."""
    ending = draw(st.sampled_from(sorted(KINDS)))
    content = draw(KINDS[ending])
    packing = "" if ending == ".parquet" else draw(st.sampled_from(["", "", ".xz", ".gz"]))
    if not packing:
        content = damaged(draw, content)
    else:
        content = damaged(draw, {".xz": lzma.compress, ".gz": gzip.compress}[packing](content))
    if packing and draw(rarely()):
        content *= 2  # a file of two streams
    return f"corpus{ending}{packing}", content


def damaged(draw, content):
    at = draw(st.integers(0, len(content)))
    match draw(st.integers(0, 9)):
        case 9:
            return content[:at]
        case 8:
            return content[:at] + draw(FRAGMENTS) + content[at:]
        case 7:
            return content[:at] + draw(st.binary(min_size=1, max_size=8)) + content[at + 8 :]
        case _:
            return content


@settings(
    deadline=None,
    derandomize=not FULL,
    max_examples=examples(100, 1500),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    broken_file(),
    st.sampled_from(["wordpiece", "bpe", "unigram"]),
    st.sampled_from(["error", "replace"]),
)
def test_a_store_or_one_line(prepare, file, kind, rule):
    prepare(*file, "--invalid_utf8", rule, "--tokenizer_kind", kind)


# --- what was found, and must stay mended ---

TEXT = b"one two\n\nthree four\n\nfive six\n"


def test_a_folder_that_links_to_itself_is_read_once(tmp_path, capsys):
    corpus = tmp_path / "corpus"
    (corpus / "inner").mkdir(parents=True)
    (corpus / "inner" / "a.txt").write_bytes(TEXT)
    for name in ("again", "inner/up", "inner/again"):  # two to the power of forty ways to a.txt
        (corpus / name).symlink_to(corpus)
    assert find_sources([corpus]) == (str(corpus / "inner" / "a.txt"),)


def test_a_broken_link_in_a_folder_is_named(tmp_path, capsys):
    (tmp_path / "a.txt").write_bytes(TEXT)
    (tmp_path / "b.txt").symlink_to(tmp_path / "nowhere")
    assert main(["prepare", "--corpus", str(tmp_path), "--output", str(tmp_path / "store")]) == 2
    assert (
        capsys.readouterr().err == f"mlm: {tmp_path}/b.txt: is no file; a broken link, or a pipe?\n"
    )


def test_a_files_name_need_not_be_utf8(prepare):
    assert prepare(os.fsdecode(b"caf\xe9.txt"), TEXT)[0] == 0


@pytest.mark.parametrize(
    ("option", "value", "problem"),
    [
        (
            "--vocab_size",
            "9" * 20,
            "vocab_size: 99999999999999999999 is too large; 10000000 is the",
        ),
        ("--vocab_size", str(2**63), "is too large"),
        ("--output", "o" * 300, "File name too long"),
        ("--output", f"{__file__}/store", f"{__file__}: File exists"),
        ("--corpus", "c" * 300 + ".txt", "File name too long"),
        ("--output", "a\0b", "--output: a zero byte stands in no text and no path"),
    ],
)
def test_options_that_cannot_be(prepare, option, value, problem):
    for kind in ("wordpiece", "bpe", "unigram"):
        code, line = prepare("a.txt", TEXT, "--tokenizer_kind", kind, option, value)
        assert code == 2
        assert problem in line


# --- large ones ---

MEASURED = """
import json, resource, sys
from mlm.cli import main
code = main(["prepare", *sys.argv[1:]])
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([code, used.ru_utime, used.ru_maxrss / 1024]))
"""
END = b"\n\nand a few\n\nother documents\n"
LARGE = {
    "a line with spaces": (".txt", lambda n: b"word and " * (11 * n) + END),
    "a line without spaces": (".txt", lambda n: b"word" * (25 * n) + END),
    "a line of damaged UTF-8": (".txt", lambda n: b"\xf0\x9f\x98" * (10 * n) + END),
    "one word": (".txt", lambda n: bytes(random.Random(0).choices(b"etaoinshr", k=10 * n)) + END),
    "empty documents": (".txt", lambda n: b" \n\n" * (10 * n) + END),
    "empty rows": (".jsonl", lambda n: b'{"text": ""}\n' * (10 * n) + b'{"text": "a b c"}\n'),
    "a long row": (".jsonl", lambda n: b'{"text": "' + b"word and " * (11 * n) + b'"}\n'),
    "an open quote": (".csv", lambda n: b'text\n"' + b"a cell\n" * (10 * n)),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", LARGE)
def test_time_follows_the_size_and_memory_hardly_does(tmp_path, kind):
    """A hundred megabytes, or a million documents, beside a quarter of it."""
    ending, make = LARGE[kind]
    path = tmp_path / f"large{ending}"
    seconds, megabytes = [], []
    for thousands in (25, 100):
        path.write_bytes(make(1000 * thousands))
        words = [
            "--corpus",
            path,
            "--output",
            tmp_path / f"store{thousands}",
            "--vocab_size",
            "300",
        ]
        words += ["--num_processes", "1", "--invalid_utf8", "replace"]
        child = [sys.executable, "-c", MEASURED, *map(str, words)]
        ran = subprocess.run(child, capture_output=True, text=True, check=True)
        code, used, peak = json.loads(ran.stdout.splitlines()[-1])
        assert code == (2 if kind == "an open quote" else 0), ran.stderr
        seconds.append(used)
        megabytes.append(peak)
    assert seconds[1] < 4 * 3 * max(seconds[0], 1)
    # A row of a table is held whole, as bytes, as text and as a document; a line of text is not.
    held = path.stat().st_size / 2**20 if kind in ("a long row", "an open quote") else 0
    assert megabytes[1] - megabytes[0] < 250 + 10 * held
