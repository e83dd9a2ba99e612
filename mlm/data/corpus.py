r"""Files and hub sets to documents, in memory that follows neither's size.

Plain text: a line is a paragraph, a blank line ends a document, and so does the end of the file.
Lines end at ``\n`` only; white space at a line's end goes (so a ``\r`` does), and a line of
nothing but white space is no paragraph, but it is not blank either. Tables: a row is a document.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mlm.data.progress import say
from mlm.data.readers import OPENERS, READERS, CorpusCounts, Paragraphs, Rules, read_hub
from mlm.errors import UserError

PIECE = 1 << 16
"""Characters in a piece of a document, roughly; at most twice as many."""

_KINDS = f"{', '.join(READERS)} (all but the last also .xz or .gz)"
_KNOWN_KINDS = f"a corpus is made of {_KINDS}"

_MOST_ENDINGS = 5
"""Endings that are named of the files that a folder has in vain."""


class Piece(NamedTuple):
    """A document or, of a long one, a stretch of paragraphs: pieces joined are the document."""

    text: str
    last: bool
    """Whether the document ends here."""


def read_documents(
    paths: Sequence[str | Path],
    text_column: str = "text",
    invalid_utf8: str = "error",
    counts: CorpusCounts | None = None,
) -> Iterator[str]:
    """Every document of a corpus that is not empty, each a text with a paragraph a line.

    Args:
        paths: files and folders of `.txt`, `.jsonl`, `.csv`, `.tsv` (all also `.xz` or `.gz`) and
            `.parquet`, or ``hub:NAME[:CONFIG[:SPLIT]]``.
        text_column: the column of a table that holds the text.
        invalid_utf8: `error`, or `replace`, which puts U+FFFD and counts.
        counts: kept up to date while documents come.

    Raises:
        UserError: whatever is wrong with a path or a file, naming it and the line or row.
    """
    rules = Rules(text_column, invalid_utf8, CorpusCounts() if counts is None else counts)
    parts: list[str] = []
    for piece in read_pieces(find_sources(paths), rules):
        parts.append(piece.text)
        if piece.last:
            yield "".join(parts)
            parts.clear()


def read_pieces(sources: Sequence[str], rules: Rules) -> Iterator[Piece]:
    """Every document of ``sources`` (see `find_sources`) that is not empty, in pieces.

    Raises:
        UserError: damage or a mistake in a file, naming it and the line or row.
    """
    counts = rules.counts
    for source in sources:
        if source.startswith("hub:"):
            yield from _in_pieces(read_hub(source, rules), counts)
            continue
        path, before = Path(source), counts.source_bytes
        yield from _in_pieces(READERS[kind_of(path)](path, rules), counts)
        counts.source_bytes = before + path.stat().st_size


def find_sources(paths: Sequence[str | Path]) -> tuple[str, ...]:
    """The files that ``paths`` stand for: folders are walked in sorted order, all the way down.

    What a folder holds of other kinds is passed over, and a line says so; what it hides behind a
    dot is passed over in silence.

    Raises:
        UserError: a path that is missing, no file or of an unknown kind, or a folder without any.
    """
    sources: list[str] = []
    remarks: list[str] = []
    for name in map(str, paths):
        path = Path(name)
        if name.startswith("hub:"):
            sources.append(name)
        elif path.is_dir():
            files = _walk(path, set())
            found = [file for file in files if kind_of(file) in READERS]
            if not found:
                raise UserError(f"{name}: no corpus file in this folder; {_KNOWN_KINDS}")
            sources += map(str, found)
            if others := Counter(_ending(file) for file in files if kind_of(file) not in READERS):
                remarks.append(f"{name}: {_passed_over(others)}; read are {_KINDS}")
        elif not path.exists():
            raise UserError(f"{name}: no such file or folder")
        elif kind_of(path) not in READERS:
            raise UserError(f"{name}: unknown kind of corpus file; {_KNOWN_KINDS}")
        else:
            sources.append(name)
    if not sources:
        raise UserError(f"corpus: names no file; {_KNOWN_KINDS}")
    for source in sources:
        if not source.startswith("hub:") and not Path(source).is_file():
            raise UserError(f"{source}: is no file; a broken link, or a pipe?")
    for line in remarks:
        say(line)
    return tuple(sources)


def _walk(folder: Path, above: set[Path]) -> list[Path]:
    """The files under ``folder``; a link to a folder ``above`` it leads nowhere new."""
    above = {*above, folder.resolve()}
    found: list[Path] = []
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            found += [] if entry.resolve() in above else _walk(entry, above)
        else:
            found.append(entry)
    return found


def _passed_over(endings: Counter[str]) -> str:
    """How many files there are of each ending, of many endings the commonest.

    >>> _passed_over(Counter({".md": 1, ".json": 2}))
    '3 files passed over: .json 2, .md 1'
    """
    total = endings.total()
    commonest = sorted(endings.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{ending} {count:,}" for ending, count in commonest[:_MOST_ENDINGS])
    more = f" and {len(endings) - _MOST_ENDINGS} more" if len(endings) > _MOST_ENDINGS else ""
    return f"{total:,} {'file' if total == 1 else 'files'} passed over: {shown}{more}"


def _ending(path: Path) -> str:
    """What a file that no reader takes is counted by: with what is packed, as in `.jsonl.zst`."""
    endings = Path(path.name.lower()).suffixes
    packed = len(endings) > 1 and (endings[-2] in READERS or endings[-1] in OPENERS)
    return "".join(endings[-2:] if packed else endings[-1:]) or "no ending"


def has_columns(source: str) -> bool:
    """Whether a source is a table, or a set from the Hub."""
    return source.startswith("hub:") or kind_of(Path(source)) not in ("", ".txt")


def kind_of(path: Path) -> str:
    """The ending that tells a reader, without that of the compression."""
    endings = Path(path.name.lower()).suffixes or [""]
    if endings[-1] not in OPENERS:
        return endings[-1]
    return endings[-2] if len(endings) > 1 and endings[-2] != ".parquet" else ""


def _in_pieces(paragraphs: Paragraphs, counts: CorpusCounts) -> Iterator[Piece]:
    """Join paragraphs to pieces; documents of nothing but white space are counted and dropped."""
    buffer: list[str] = []
    size, begun = 0, False
    for paragraph in paragraphs:
        if paragraph is not None:
            if size >= PIECE:  # a line break goes with the piece before it
                yield from (Piece(part, last=False) for part in _cut("\n".join([*buffer, ""])))
                buffer, size, begun = [], 0, True
            buffer.append(paragraph)
            size += len(paragraph) + 1
            continue
        text = "\n".join(buffer)
        if begun or text.strip():
            counts.documents += 1
            *most, end = _cut(text)
            yield from (Piece(part, last=False) for part in most)
            yield Piece(end, last=True)
        else:
            counts.empty_documents += 1
        buffer, size, begun = [], 0, False


def _cut(text: str) -> list[str]:
    """Parts of at most twice `PIECE` characters, cut after a line break or else before a space."""
    parts = []
    start = 0
    while len(text) - start > 2 * PIECE:
        middle, end = start + PIECE, start + 2 * PIECE
        cut = text.rfind("\n", middle, end) + 1 or max(text.rfind(" ", middle, end), 0) or end
        parts.append(text[start:cut])
        start = cut
    return [*parts, text[start:]]
