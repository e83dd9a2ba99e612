"""Writing so that nothing half-written is ever seen: build beside the place, sync, rename."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """A path to write to; it becomes ``path`` when the block ends well, and is gone when not.

    A file that stands at ``path`` stays until then. Missing parent folders are made.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp(), "notes.txt")
    >>> with atomic_file(target) as draft:
    ...     _ = draft.write_text("done")
    >>> [p.name for p in target.parent.iterdir()]
    ['notes.txt']
    """
    path = Path(path).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = _beside(path, "tmp")
    try:
        yield draft
        _sync(draft)
        draft.replace(path)
        _sync(path.parent)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """An empty folder to fill; it becomes ``path`` when the block ends well, and is gone when not.

    A folder that stands at ``path`` stays until the new one is complete and on disk, and then goes
    with all that is in it: who calls knows that it may.
    """
    path = Path(path).resolve()  # a link stays a link, what it points to is replaced
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = _beside(path, "tmp")
    draft.mkdir()
    try:
        yield draft
        for folder, _, names in os.walk(draft):
            for name in names:
                _sync(Path(folder, name))
            _sync(Path(folder))
        _put_in_place(draft, path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _put_in_place(draft: Path, path: Path) -> None:
    old = _beside(path, "old")
    try:
        if path.exists():  # no rename replaces a folder with something in it: it steps aside
            path.rename(old)
        draft.rename(path)
        _sync(path.parent)
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(old, ignore_errors=True)


def _beside(path: Path, purpose: str) -> Path:
    return path.with_name(f".{path.name}.{purpose}-{os.getpid()}-{secrets.token_hex(4)}")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
