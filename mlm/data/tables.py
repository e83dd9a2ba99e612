"""Tables and lists of texts: what fine-tuning, prediction and embedding read.

A table is a `.parquet`, `.csv`, `.tsv` or `.jsonl` file with named columns, or a set of the Hub,
``hub:NAME[:CONFIG[:SPLIT]]``; a list of texts is one column of a table, or a `.txt` file with one
text a line. Everything is checked while it is read, and a mistake is named with its file and line.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mlm.data.hub import is_hub, read_hub_table
from mlm.data.readers import check_separator, check_text, check_width
from mlm.errors import UserError


def read_table(path: str | Path) -> pa.Table:
    """The table at ``path``, its kind told by the ending; or a set of the Hub.

    A `.csv` follows RFC 4180 (cells may be quoted and may then hold line ends); in a `.tsv` quotes
    are ordinary characters, as in GLUE's files. Neither has types: a column becomes int64 where
    every cell is a plain integer, and stays text otherwise. In a `.jsonl` each line is an object;
    a key that a line lacks is null there.

    Raises:
        UserError: no such file, an unknown ending, or damage, naming the file and the line.
    """
    if is_hub(path):
        return read_hub_table(str(path))
    path = _existing(Path(path))
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(
            f"{path}: a table ends in {', '.join(_READERS)}, not in {path.suffix or 'nothing'!r}"
        )
    return reader(path)


def read_texts(path: str | Path, column: str = "text") -> list[str]:
    r"""One text for each line of a `.txt` file, or for each row of a table's ``column``.

    Lines end at `\n` (a `\r` before it goes too) and an empty line is a text like any other.

    Raises:
        UserError: as `read_table` and `text_column`.
    """
    if is_hub(path):
        return text_column(read_table(path), column, path)
    path = _existing(Path(path))
    if path.suffix.lower() == ".txt":
        lines = _decode(path).split("\n")
        if not lines[-1]:
            lines.pop()  # the end of the last line, not one more line
        return [line.removesuffix("\r") for line in lines]
    if path.suffix.lower() not in _READERS:
        raise UserError(
            f"{path}: texts come from .txt, {', '.join(_READERS)}, "
            f"not from {path.suffix or 'nothing'!r}"
        )
    return text_column(read_table(path), column, path)


def text_column(table: pa.Table, column: str, path: str | Path) -> list[str]:
    """``column`` of the table read from ``path``, as texts: null is the empty text.

    Raises:
        UserError: no such column (naming those there are), or a value that is not text.
    """
    values = column_values(table, column, path)
    for row, value in enumerate(values, start=1):
        # An integer is text that `read_table` took for a number; it reads back as it was written.
        if not isinstance(value, str | int | None) or isinstance(value, bool):
            raise UserError(
                f"{path}: row {row}: column {column!r} holds {type(value).__name__}, not text"
            )
    return ["" if value is None else str(value) for value in values]


def column_values(table: pa.Table, column: str, path: str | Path) -> list[Any]:
    """``column`` of the table read from ``path`` as Python values.

    Raises:
        UserError: no such column, naming the nearest and those there are.
    """
    names = table.column_names
    if column not in names:
        near = get_close_matches(column, names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"{path}: no column {column!r} among {', '.join(map(repr, names))}{hint}")
    return table.column(column).to_pylist()


def _existing(path: Path) -> Path:
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    return path


def _decode(path: Path) -> str:
    """The file's text without a byte order mark; what is not UTF-8 is named with its line."""
    data = path.read_bytes()
    check_text(data, path)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}: line {line}: invalid UTF-8; convert the file to UTF-8") from None


def _read_parquet(path: Path) -> pa.Table:
    try:
        # Not pq.read_table: that one turns folder names such as `split=train` into columns.
        with pq.ParquetFile(path) as file:
            table = file.read()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: damaged, or not a Parquet file ({_first_line(error)})") from None
    try:
        table.validate(full=True)
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: {_invalid_text(table) or _first_line(error)}") from None
    _refuse_repeated(table.column_names, path)
    return table


def _invalid_text(table: pa.Table) -> str | None:
    """Where the first text that is not UTF-8 stands."""
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            for row, value in enumerate(column, start=1):
                try:
                    value.as_py()
                except UnicodeDecodeError:
                    return f"row {row}: column {name!r}: invalid UTF-8"
    return None


def _read_csv(path: Path) -> pa.Table:
    return _read_cells(path, delimiter=",", strict=True)


def _read_tsv(path: Path) -> pa.Table:
    return _read_cells(path, delimiter="\t", quoting=csv.QUOTE_NONE)


def _read_cells(path: Path, **dialect: Any) -> pa.Table:
    csv.field_size_limit(sys.maxsize)  # a document may stand in one cell
    reader = csv.reader(io.StringIO(_decode(path), newline=""), **dialect)
    header: list[str] = []
    rows: list[list[str]] = []
    start = 1
    try:
        for cells in reader:
            if not header:
                header = cells
                check_separator(header, path)
            elif cells:  # a line with nothing on it is not a row
                check_width(cells, header, f"{path}: line {start}", dialect["delimiter"])
                rows.append(cells)
            start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}: line {start}: {error}") from None
    if not header:
        raise UserError(f"{path}: is empty; its first line must name the columns")
    _refuse_repeated(header, path)
    columns = zip(*rows, strict=True) if rows else ([] for _ in header)
    return pa.table(
        {name: _integers_or_text(cells) for name, cells in zip(header, columns, strict=True)}
    )


def _refuse_repeated(names: Iterable[str], path: Path) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UserError(f"{path}: column {name!r} stands twice in the header")
        seen.add(name)


def _integers_or_text(cells: Iterable[str]) -> pa.Array:
    text = pa.array(list(cells), pa.string())
    try:
        numbers = pc.cast(text, pa.int64())
    except pa.ArrowInvalid:
        return text
    # `007` and `+7` are not plain integers: as numbers they would lose what was written.
    plain = len(text) > 0 and pc.all(pc.equal(pc.cast(numbers, pa.string()), text)).as_py()
    return numbers if plain else text


def _read_jsonl(path: Path) -> pa.Table:
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    for number, line in enumerate(_decode(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: line {number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}: line {number}: not an object with named values")
        rows.append(row)
        lines.append(number)
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: _json_column(path, name, rows, lines) for name in names})


def _json_column(path: Path, name: str, rows: list[dict[str, Any]], lines: list[int]) -> pa.Array:
    values = [row.get(name) for row in rows]
    try:
        return pa.array(values)
    except (pa.ArrowException, UnicodeEncodeError, OverflowError):
        # Only now look for the first line that does not go with those before it.
        for end in range(1, len(values) + 1):
            try:
                pa.array(values[max(0, end - 2) : end])
            except UnicodeEncodeError:
                reason = "half of a surrogate pair is not text"
            except (pa.ArrowException, OverflowError):
                reason = "its value does not go with those of the lines before"
            else:
                continue
            raise UserError(f"{path}: line {lines[end - 1]}: key {name!r}: {reason}") from None
        raise UserError(f"{path}: key {name!r}: its values are not all of one kind") from None


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


_READERS: dict[str, Callable[[Path], pa.Table]] = {
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
}
