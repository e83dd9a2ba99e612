"""Writing so that nothing half-written is ever seen: build beside the place, sync, rename.

What a killed process had begun stays under a name with a dot, and the next one to write in the
same folder takes it away.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
import socket
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mlm.console import say
from mlm.errors import UserError


def stays_inside(name: str) -> bool:
    """Whether ``name``, as a manifest has it, is that of something below the manifest's folder.

    >>> [stays_inside(name) for name in ("train/a.arrow", "../a", "train/../../a", "/a", "")]
    [True, False, False, False, False]
    """
    path = Path(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def check_writable(path: str | Path) -> None:
    """Refuse a file that `atomic_file` could not write, before any work is done for it.

    Raises:
        UserError: it is a folder, or the folder that it is to stand in cannot be written in.
    """
    path = Path(path).absolute()
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file in it")
    folder = next(parent for parent in path.parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"{path}: {folder} is no folder that can be written in; choose another")


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
    sweep(path.parent)
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
    sweep(path.parent)
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


def remove_folder(path: str | Path) -> None:
    """Take a folder away, renamed first, so that half of it is never seen under its name.

    Of a link only the link goes, and what it leads to stays.
    """
    if Path(path).is_symlink():
        Path(path).unlink()
        return
    gone = _beside(Path(path).absolute(), "gone")
    Path(path).rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


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
    name = f".{path.name}.{purpose}-{_host()}-{os.getpid()}-{secrets.token_hex(4)}"
    return path.with_name(name)


_LEFT_BEHIND = re.compile(r"\.(.+)\.(tmp|old|gone)-([0-9a-f]{8})-(\d+)-[0-9a-f]{8}")


def _host() -> str:
    """This machine in eight hexadecimal digits."""
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def sweep(folder: Path) -> None:
    """Take away what processes of this machine that are no more had begun in ``folder``."""
    for path in folder.iterdir():
        match = _LEFT_BEHIND.fullmatch(path.name)
        if match is None or match[3] != _host() or _is_alive(int(match[4])):
            continue
        place = path.with_name(match[1])
        if match[2] == "old" and not place.exists():  # killed between the two renames
            with suppress(FileNotFoundError):  # another process was quicker
                path.rename(place)
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


# What some network file systems say of locks.
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}


def take_lock(descriptor: int, folder: Path, wait: bool = False) -> None:
    """Lock an open file against other processes; where there are no locks, say so and go on.

    Args:
        descriptor: of the file, open for writing.
        folder: what the lock is for, to be named.
        wait: for the process that holds it.

    Raises:
        BlockingIOError: another process holds it, and this one does not wait.
    """
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        say(f"no locks on this file system; see to it that only one run writes in {folder}")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
