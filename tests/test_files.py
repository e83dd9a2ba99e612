import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mlm.files import atomic_file, atomic_folder


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def stop_in_the_middle(path: Path, error: BaseException) -> None:
    path.write_text("half")
    raise error


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "out.txt"
    with atomic_file(path) as draft:
        draft.write_text("one")
        assert draft.name.startswith(".out.txt.tmp-")
        assert not path.exists()
    assert path.read_text() == "one"
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as draft:
        stop_in_the_middle(draft, KeyboardInterrupt())
    assert path.read_text() == "one"
    assert names(path.parent) == ["out.txt"]


def test_a_folder_stays_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "runs" / "model"
    for version in ("one", "two"):
        with atomic_folder(path) as draft:
            (draft / "sub").mkdir()
            (draft / "sub" / "a.txt").write_text(version)
        assert (path / "sub" / "a.txt").read_text() == version
    with pytest.raises(OSError, match="disk full"), atomic_folder(path) as draft:
        stop_in_the_middle(draft / "half.txt", OSError("disk full"))
    assert names(path) == ["sub"]
    assert names(path.parent) == ["model"]


def test_the_old_folder_comes_back_when_the_rename_fails(tmp_path, monkeypatch):
    path = tmp_path / "model"
    with atomic_folder(path) as draft:
        (draft / "a.txt").write_text("old")
    rename = Path.rename

    def failing(self, target):
        if ".tmp-" in self.name:
            raise OSError("no rename")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="no rename"), atomic_folder(path) as draft:
        (draft / "a.txt").write_text("new")
    assert (path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["model"]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with atomic_folder(tmp_path / "link") as draft:
        (draft / "a.txt").write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "a.txt").read_text() == "new"


KILLED = """
import os, signal, sys
from mlm import files
if sys.argv[2] == "between":
    files._sync = lambda path: None
    rename = files.Path.rename
    def stop(self, target):
        rename(self, target)
        os.kill(os.getpid(), signal.SIGKILL)
    files.Path.rename = stop
with files.atomic_folder(sys.argv[1]) as draft:
    (draft / "a.txt").write_text("new")
    if sys.argv[2] == "inside":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("moment", ["inside", "between"])
def test_what_a_killed_process_had_begun_goes_with_the_next_write(tmp_path, moment):
    path = tmp_path / "model"
    with atomic_folder(path) as draft:
        (draft / "a.txt").write_text("old")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path), moment], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == 2
    with atomic_file(tmp_path / "other.txt") as draft:
        draft.write_text("other")
    assert names(tmp_path) == ["model", "other.txt"]
    assert (path / "a.txt").read_text() == "old"


def test_what_a_living_process_has_begun_stays(tmp_path):
    with atomic_file(tmp_path / "one") as first:
        first.write_text("1")
        with atomic_folder(tmp_path / "two") as second:
            (second / "a.txt").write_text("2")
    assert names(tmp_path) == ["one", "two"]
