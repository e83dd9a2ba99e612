r"""One reader for each kind of corpus file: a file to paragraphs, in constant memory.

Every reader yields a document's paragraphs (a table's row is one), then None. Lines end at ``\n``
only. What is wrong is a `UserError` that names the file and the line or row.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from mlm.data.hub import hub_errors, open_hub
from mlm.errors import UserError

Paragraphs = Iterator[str | None]

_LONGEST_LINE = 1 << 20
"""Bytes; a longer line of plain text is cut at a space."""


@dataclass
class CorpusCounts:
    """What reading has met so far; updated while it goes on."""

    documents: int = 0
    """Those that are not empty."""
    empty_documents: int = 0
    """Skipped: documents of nothing but white space."""
    invalid_characters: int = 0
    """Replaced by U+FFFD: what was not UTF-8, or half of a surrogate pair."""
    source_bytes: int = 0
    """How far in the files, in bytes on disk."""


@dataclass(frozen=True)
class Rules:
    """How text is taken from lines and cells."""

    text_column: str = "text"
    """The column of a table that holds the text."""
    invalid_utf8: str = "error"
    """`error`, or `replace`, which puts U+FFFD and counts."""
    counts: CorpusCounts = field(default_factory=CorpusCounts)
    """Kept up to date."""

    def decode(self, data: bytes, where: str) -> str:
        """``data`` as text, by the rule for what is not UTF-8."""
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            if self.invalid_utf8 == "error":
                raise UserError(
                    f"{where}: invalid UTF-8 ({error.reason} at byte {error.start}); convert the "
                    "file to UTF-8, or use --invalid_utf8 replace"
                ) from None
        text = data.decode(errors="replace")
        self.counts.invalid_characters += text.count("\ufffd") - data.count(b"\xef\xbf\xbd")
        return text

    def cell(self, value: Any, where: str) -> str:
        """The text in a table's cell; null is the empty text."""
        if value is None:
            return ""
        if isinstance(value, bytes):
            return self.decode(value, where)
        if not isinstance(value, str):
            kind = type(value).__name__
            raise UserError(f"{where}: column {self.text_column!r} holds {kind}, not text")
        # JSON can spell out half of a surrogate pair, which no encoding can write down.
        return (
            value if value.isascii() else self.decode(value.encode(errors="surrogatepass"), where)
        )

    def pick(self, row: dict[str, Any], where: str) -> str:
        """The text of a row of named values."""
        if self.text_column not in row:
            self.no_column(list(row), where)
        return self.cell(row[self.text_column], where)

    def no_column(self, names: Sequence[str], where: str) -> NoReturn:
        """Say which columns there are."""
        there = ", ".join(map(repr, names))
        raise UserError(
            f"{where}: no column {self.text_column!r} among {there}; choose with --text_column"
        )


def read_text(path: Path, rules: Rules) -> Paragraphs:
    """Plain text: a line is a paragraph, a blank line ends a document."""
    is_open = False
    for _, line in _lines(path, rules, _LONGEST_LINE):
        paragraph = line.rstrip()
        if paragraph:
            is_open = True
            yield paragraph
        elif line.rstrip("\r\n"):
            is_open = True  # white space: a document may consist of it, and is then empty
        elif is_open:
            is_open = False
            yield None
    if is_open:
        yield None


def read_jsonl(path: Path, rules: Rules) -> Paragraphs:
    """An object a line."""
    for number, line in _lines(path, rules):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise UserError(f"{where}: not an object with named values")
        yield rules.pick(row, where)
        yield None


def read_csv(path: Path, rules: Rules) -> Paragraphs:
    """RFC 4180: cells may be quoted and may then hold line ends."""
    return _read_cells(path, rules, delimiter=",", strict=True)


def read_tsv(path: Path, rules: Rules) -> Paragraphs:
    """Quotes are ordinary characters, as in GLUE's files."""
    return _read_cells(path, rules, delimiter="\t", quoting=csv.QUOTE_NONE)


def _read_cells(path: Path, rules: Rules, **dialect: Any) -> Paragraphs:
    csv.field_size_limit(sys.maxsize)  # a document may stand in one cell
    rows = csv.reader((line for _, line in _lines(path, rules)), **dialect)
    start = 1
    try:
        header = next(rows, [])
        if not header:
            raise UserError(f"{path}: is empty; its first line must name the columns")
        check_separator(header, path)
        if rules.text_column not in header:
            rules.no_column(header, str(path))
        column = header.index(rules.text_column)
        start = rows.line_num + 1
        for cells in rows:
            if cells:  # a line with nothing on it is not a row
                check_width(cells, header, f"{path}: line {start}", dialect["delimiter"])
                yield cells[column]
                yield None
            start = rows.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}: line {start}: {error}") from None


def check_separator(header: Sequence[str], path: Path) -> None:
    """Refuse a header whose names stand between something else than its ending promises."""
    for character, name in ((";", "';'"), ("\t", "tabs")):
        if len(header) == 1 and character in header[0]:
            raise UserError(
                f"{path}: is separated by {name}; save it with commas, or with tabs as .tsv"
            )


def check_width(cells: Sequence[str], header: Sequence[str], where: str, delimiter: str) -> None:
    """Refuse a row that has not as many cells as the header."""
    if len(cells) != len(header):
        hint = "; quote cells that hold commas" if delimiter == "," else ""
        raise UserError(f"{where}: {len(cells)} cells where the header has {len(header)}{hint}")


def check_text(data: bytes, path: Path) -> None:
    """Refuse what begins as no UTF-8 does, or holds zero bytes, as no text does."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{path}: is UTF-16 or UTF-32, not UTF-8; convert the file")
    if b"\0" in data:
        raise UserError(f"{path}: is a binary file, not text (it holds zero bytes)")


def read_parquet(path: Path, rules: Rules) -> Paragraphs:
    """A batch of rows at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    before, row, name = rules.counts.source_bytes, 0, rules.text_column
    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            if name not in file.schema_arrow.names:
                rules.no_column(file.schema_arrow.names, str(path))
            for batch in file.iter_batches(batch_size=256, columns=[name]):
                column = batch.column(0)
                if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
                    column = column.cast(pa.large_binary())  # decoded here, by the same rule
                for value in column.to_pylist():
                    row += 1
                    yield rules.cell(value, f"{path}: row {row}")
                    yield None
                share = row / max(file.metadata.num_rows, 1)
                rules.counts.source_bytes = before + int(share * path.stat().st_size)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{path}: damaged, or not a Parquet file ({reason})") from None


def read_hub(source: str, rules: Rules) -> Paragraphs:
    """The rows of ``hub:NAME[:CONFIG[:SPLIT]]``, streamed through `datasets`."""
    with hub_errors(source):
        for number, row in enumerate(open_hub(source, streaming=True), start=1):
            yield rules.pick(row, f"{source}: row {number}")
            yield None


def _lines(path: Path, rules: Rules, limit: int = -1) -> Iterator[tuple[int, str]]:
    r"""(number from 1, text with its ``\n``) of every line; one beyond ``limit`` comes in parts."""
    with ExitStack() as stack:
        raw = stack.enter_context(path.open("rb", buffering=0))
        opened = OPENERS.get(path.suffix.lower(), lambda raw: raw)(raw)
        file = stack.enter_context(io.BufferedReader(opened, 1 << 20))
        before, number, rest = rules.counts.source_bytes, 1, b""
        head = _guarded(path, lambda: file.peek(1))
        check_text(head, path)
        while chunk := _guarded(path, lambda: file.readline(limit)):
            line, rest = rest + chunk, b""
            whole = line.endswith(b"\n")
            if not whole and len(chunk) == limit:
                cut = line.rfind(b" ") + 1 or _last_character(line)
                line, rest = line[:cut], line[cut:]
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")  # a byte order mark
            if b"\0" in line:
                raise UserError(f"{path}: line {number}: a zero byte; is this a binary file?")
            yield number, rules.decode(line, f"{path}: line {number}")
            number += whole
            if number & 0xFF == 0:
                rules.counts.source_bytes = before + raw.tell()
        if rest:
            yield number, rules.decode(rest, f"{path}: line {number}")


def _guarded(path: Path, read: Callable[[], bytes]) -> bytes:
    try:
        return read()
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: truncated or damaged ({error})") from None


def _last_character(line: bytes) -> int:
    """Where the last character of ``line``, perhaps cut short, begins."""
    tail = range(len(line) - 1, len(line) - 5, -1)
    return next((i for i in tail if line[i] & 0xC0 != 0x80), len(line))


OPENERS: dict[str, Callable[[Any], Any]] = {
    ".xz": lzma.LZMAFile,
    ".gz": lambda raw: gzip.GzipFile(fileobj=raw),
}

READERS: dict[str, Callable[[Path, Rules], Paragraphs]] = {
    ".txt": read_text,
    ".jsonl": read_jsonl,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
}
