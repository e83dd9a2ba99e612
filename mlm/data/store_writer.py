"""Writing a token store: split by split in constant memory, and in place all at once."""

from __future__ import annotations

import glob
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mlm.data.store import FORMAT, MANIFEST, SPLITS, manifest_hash, sha256
from mlm.files import atomic_folder, take_lock

# A record batch is written whenever so many tokens are there, and a document beyond the second
# number goes on in another row: Arrow's lists count in 32 bits, and memory is to stay small.
_BATCH_TOKENS = 1 << 22
_LONGEST_DOCUMENT = 1 << 24


class SplitWriter:
    """Writes the documents of one split, as they come, in constant memory."""

    def __init__(self, directory: Path, name: str, dtype: np.dtype[Any]) -> None:
        from datasets import DatasetInfo, Features, List, Value
        from datasets.arrow_writer import ArrowWriter

        directory.mkdir(parents=True)
        features = Features({"input_ids": List(Value(dtype.name))})
        file = "data-00000-of-00001.arrow"
        DatasetInfo(features=features).write_to_directory(str(directory))
        state: dict[str, Any] = {
            "_data_files": [{"filename": file}],
            "_fingerprint": name,
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": name,
        }
        (directory / "state.json").write_text(json.dumps(state, indent=2) + "\n")
        self._writer = ArrowWriter(path=str(directory / file), features=features)
        self._ids: list[np.ndarray] = []
        self._ends: list[np.ndarray] = []
        self._buffered = 0
        self.documents = 0
        """Written so far; those without tokens are not."""
        self.tokens = 0
        """Written so far."""

    def add(self, ids: np.ndarray, ends: np.ndarray) -> None:
        """More tokens of the split.

        Args:
            ids: (tokens,) unsigned; they go on with the document that is not ended yet, if any.
            ends: ascending: how many of ``ids`` there are up to each document's end.
        """
        self._ids.append(ids)
        self._ends.append(ends + self._buffered)
        self._buffered += len(ids)
        if self._buffered >= _BATCH_TOKENS:
            self._write()

    def close(self) -> None:
        """Write what is left; the last document has to be ended."""
        self._write()
        self._writer.finalize()

    def _write(self) -> None:
        ends = np.unique(np.concatenate([[0], *self._ends]))  # an empty document leaves no trace
        if self._buffered - ends[-1] > _LONGEST_DOCUMENT:
            ends = np.append(ends, self._buffered)
        if len(ends) == 1:
            return
        ids = np.concatenate(self._ids)
        column = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(ids[: ends[-1]]))
        table = pa.table({"input_ids": column})
        self._writer.write_table(table, writer_batch_size=len(table))
        self.documents += len(table)
        self.tokens += int(ends[-1])
        self._ids, self._ends = [ids[ends[-1] :].copy()], []
        self._buffered -= int(ends[-1])


@contextmanager
def building(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the lock on building a store at ``path``; ``waiting`` is called if another process does.

    A `lockf` lock, unlike a `flock` one, is not inherited by child processes, so it ends with this
    process however it dies, and what a killed one left beside ``path`` is taken away.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                take_lock(descriptor, path.parent)
            except BlockingIOError:
                waiting()
                take_lock(descriptor, path.parent, wait=True)
            # Whoever held it may have taken the name away: then the lock is on nothing.
            if os.fstat(descriptor).st_nlink:
                try:
                    for remains in path.parent.glob(f".{glob.escape(path.name)}.tmp-*"):
                        shutil.rmtree(remains)
                    yield
                finally:
                    lock.unlink()
                return
        finally:
            os.close(descriptor)


@contextmanager
def new_store(path: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A folder to fill with `SplitWriter` and the tokenizer, and a manifest to fill.

    When the block ends well the store is at ``path`` at once and in full; if not, nothing is.
    """
    manifest: dict[str, Any] = {"format": FORMAT}
    with atomic_folder(path) as draft:
        yield draft, manifest
        (draft / "dataset_dict.json").write_text(json.dumps({"splits": list(SPLITS)}) + "\n")
        manifest["files"] = {
            file.relative_to(draft).as_posix(): {
                "bytes": file.stat().st_size,
                "sha256": sha256(file),
            }
            for file in sorted(draft.rglob("*"))
            if file.is_file()
        }
        manifest["sha256"] = manifest_hash(manifest)
        text = json.dumps(manifest, indent=2)  # a file's name need not be UTF-8
        (draft / MANIFEST).write_text(text + "\n", encoding="utf-8")
