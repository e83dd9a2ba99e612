"""The token store: tokenised documents on disk, written once, mapped into memory.

    STORE/manifest.json        sha256 and size of every file, tokenizer hash, counts, options
    STORE/tokenizer/           the tokenizer that made the ids
    STORE/train/               an Arrow data set: column `input_ids`, one row a document
    STORE/validation/          the same

`datasets.load_from_disk(STORE)` opens it too. Here the list column's buffers are mapped and
sliced with NumPy: opening costs nothing, and memory does not grow with the store.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa

from mlm.errors import UserError
from mlm.files import stays_inside

FORMAT = 1
SPLITS = ("train", "validation")
MANIFEST = "manifest.json"

# Up to this size all files are verified when a store is opened (about a second).
_VERIFIED_AT_OPENING = 1 << 30


class TokenStore:
    """A token store on disk. Open one with `TokenStore.open`."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self.is_verified = False
        """Whether every file's checksum was compared since the store was opened."""

    @classmethod
    def open(cls, path: str | Path) -> TokenStore:
        """Open a store: every file has to be there in its size, and intact where that is quick.

        A store of up to 1 GiB is verified in full, a second at most; a larger one by whoever
        trains on it, before the first step.

        Raises:
            UserError: no store there, or a file of it is missing or damaged.
        """
        path = Path(path)
        manifest = read_manifest(path)
        if manifest is None:
            raise UserError(
                f"{path}: no token store there ({MANIFEST} is missing); make one with "
                f"`mlm prepare --corpus FILES --output {path}`"
            )
        store = cls(path, manifest)
        for file in (f for split in SPLITS for f in split_files(path / split)):
            if file.relative_to(path).as_posix() not in manifest["files"]:
                raise UserError(f"{file}: is not in {MANIFEST}; take it out of the token store")
        for name, entry in manifest["files"].items():
            if not stays_inside(name):
                raise UserError(f"{path / MANIFEST}: names {name}, which is not in the folder")
            file = path / name
            if not file.is_file():
                raise UserError(f"{file}: missing from the token store; prepare it anew")
            if file.stat().st_size != entry["bytes"]:
                raise UserError(
                    f"{file}: damaged ({file.stat().st_size} bytes where the manifest has "
                    f"{entry['bytes']}); prepare the token store anew"
                )
        if sum(entry["bytes"] for entry in manifest["files"].values()) <= _VERIFIED_AT_OPENING:
            store.verify()
        return store

    @property
    def tokenizer_dir(self) -> Path:
        """The folder of the tokenizer that made the ids."""
        return self.path / "tokenizer"

    @property
    def vocab_size(self) -> int:
        """Ids are below it."""
        return int(self.manifest["vocab_size"])

    def split(self, name: str) -> TokenSplit:
        """`train` or `validation`."""
        return TokenSplit(self.path / name)

    def characters_per_token(self, name: str) -> float:
        """How many characters of a split's text a token stands for, in the mean."""
        counts = self.manifest["splits"][name]
        return float(counts["characters"] / counts["tokens"])

    def verify(self) -> None:
        """Read every file and compare its sha256 with the manifest's.

        Raises:
            UserError: a file is missing or damaged.
        """
        for name, entry in self.manifest["files"].items():
            try:
                intact = sha256(self.path / name) == entry["sha256"]
            except OSError:
                intact = False
            if not intact:
                raise UserError(
                    f"{self.path / name}: damaged (its sha256 is not the manifest's); prepare "
                    "the token store anew"
                )
        self.is_verified = True

    def check_tokenizer(self, tokenizer: Any, owner: str) -> None:
        """Make sure that ``tokenizer`` (of ``owner``, say a model folder) made this store's ids.

        Raises:
            UserError: it is another one.
        """
        from mlm.data.tokenizer import load_tokenizer, tokenizer_hash

        if tokenizer_hash(tokenizer) != tokenizer_hash(load_tokenizer(self.tokenizer_dir)):
            raise UserError(
                f"{self.path}: this token store belongs to another tokenizer than {owner}; "
                f"prepare one with `mlm prepare --tokenizer {owner}`"
            )


class TokenSplit:
    """One split: all its documents' ids end to end, without special tokens.

    Token coordinates run from 0 to ``num_tokens``; document ``d`` is
    ``tokens(ends[d - 1], ends[d])``. Documents are never empty.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        offsets: list[np.ndarray] = []
        self._values: list[np.ndarray] = []
        for file in split_files(directory):
            try:
                for column in _columns(file):
                    offsets.append(column.offsets.to_numpy())
                    self._values.append(column.values.to_numpy())
            except (pa.ArrowException, OSError, KeyError, AttributeError) as error:
                why = str(error).partition("\n")[0]
                raise UserError(f"{file}: no token ids ({why}); prepare the store anew") from None
        self.ends = DocumentEnds(offsets)

    def __reduce__(self) -> tuple[type[TokenSplit], tuple[Path]]:
        return TokenSplit, (self.directory,)  # a worker process maps the files itself

    @property
    def num_documents(self) -> int:
        """How many documents there are."""
        return len(self.ends)

    @property
    def num_tokens(self) -> int:
        """How many tokens there are."""
        return self.ends.batch_tokens[-1]

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """(stop - start,) unsigned ids; a view into the file wherever one record batch holds them.

        Args:
            start: the first token.
            stop: one past the last; both in [0, num_tokens].
        """
        if not 0 <= start <= stop <= self.num_tokens:
            raise IndexError(f"tokens {start} to {stop} of {self.num_tokens} in {self.directory}")
        limits = self.ends.batch_tokens
        first = min(bisect_right(limits, start), len(self._values)) - 1
        parts = []
        for b in range(first, len(self._values)):
            offset = int(self.ends.offsets[b][0]) - limits[b]
            parts.append(self._values[b][start + offset : min(stop, limits[b + 1]) + offset])
            start = limits[b + 1]
            if start >= stop:
                break
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def stretches(self, pieces: int, longest: int) -> list[tuple[int, int]]:
        """An evenly spread sample: the first token of each piece, and one past its last.

        Args:
            pieces: how many; together they are the whole split, if it is short enough.
            longest: how many tokens a piece may have.
        """
        length = min(longest, self.num_tokens // pieces + 1)
        starts = np.linspace(0, self.num_tokens - length, pieces).astype(np.int64)
        return [(start, start + length) for start in starts.tolist()]


def _columns(file: Path) -> Iterator[pa.ListArray]:
    """The lists of ids in ``file``, a record batch each, mapped."""
    with pa.memory_map(str(file)) as source:
        for batch in pa.ipc.open_stream(source):
            column = batch.column("input_ids")
            column.validate()  # or lengths that are not the buffers' would be read beyond them
            yield column


class DocumentEnds:
    """(documents,) int64: the number of tokens up to each document's end, as a view of the files.

    It is indexed by an int or a step-less slice, and has a length; ``np.asarray`` copies it.
    """

    def __init__(self, offsets: list[np.ndarray]) -> None:
        self.offsets = offsets
        """For each record batch: where its documents start, and where the last one ends."""
        self.batch_documents = [0]
        """Documents before each record batch, and in all."""
        self.batch_tokens = [0]
        """Tokens before each record batch, and in all."""
        for batch in offsets:
            self.batch_documents.append(self.batch_documents[-1] + len(batch) - 1)
            self.batch_tokens.append(self.batch_tokens[-1] + int(batch[-1]) - int(batch[0]))
        firsts = (int(batch[0]) for batch in offsets)
        self._shifts = [t - first for t, first in zip(self.batch_tokens, firsts, strict=False)]

    def __len__(self) -> int:
        return self.batch_documents[-1]

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> np.ndarray: ...
    def __getitem__(self, index: int | slice) -> int | np.ndarray:
        if not isinstance(index, slice):
            if not -len(self) <= index < len(self):
                raise IndexError(f"document {index} of {len(self)}")
            index %= len(self)
            b = bisect_right(self.batch_documents, index) - 1
            place = index - self.batch_documents[b] + 1
            return int(self.offsets[b][place]) + self._shifts[b]
        start, stop, _ = index.indices(len(self))
        parts = [np.empty(0, dtype=np.int64)]
        b = bisect_right(self.batch_documents, start) - 1
        while start < stop:
            batch, before = self.offsets[b], self.batch_documents[b]
            b += 1
            last = min(stop, self.batch_documents[b])
            part = batch[start - before + 1 : last - before + 1].astype(np.int64)
            parts.append(part + self._shifts[b - 1])
            start = last
        return np.concatenate(parts)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or np.int64, copy=False)


def split_files(directory: Path) -> list[Path]:
    """The files of a split; what `datasets` caches beside them (``cache-….arrow``) is none."""
    return sorted(directory.glob("data-*.arrow"))


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest of the store at ``path``, or None if there is no store.

    Raises:
        UserError: it is damaged or of another format.
    """
    file = path / MANIFEST
    if not file.is_file():
        return None
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        intact = manifest.pop("sha256") == manifest_hash(manifest)
    except (ValueError, KeyError, AttributeError, RecursionError):
        intact = False
    if not intact:
        raise UserError(f"{file}: damaged; prepare the token store anew")
    if manifest["format"] != FORMAT:
        raise UserError(
            f"{file}: a token store of format {manifest['format']}, where this version reads "
            f"{FORMAT}; prepare it anew"
        )
    return dict(manifest)


def manifest_hash(manifest: dict[str, Any]) -> str:
    """The sha256 that a manifest carries of all else in it."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
