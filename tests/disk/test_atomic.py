"""nft_pipeline.files.atomic: old or new, never half."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nft_pipeline.files import atomic
from nft_pipeline.files.atomic import atomic_folder, atomic_write_bytes, recover


def fill(folder: Path, **files: str) -> None:
    with atomic_folder(folder) as new:
        for name, text in files.items():
            (new / name).write_text(text)


def tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "state.json"
    assert atomic_write_bytes(target, b"one") == target
    atomic_write_bytes(target, b"two")
    assert target.read_bytes() == b"two"
    assert os.listdir(target.parent) == ["state.json"]


def test_a_file_behind_a_link_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"one")
    (tmp_path / "link").symlink_to("real")
    atomic_write_bytes(tmp_path / "link", b"two")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"two"


def test_new_files_and_folders_get_the_usual_permissions(tmp_path: Path) -> None:
    atomic_write_bytes(tmp_path / "file", b"")
    fill(tmp_path / "folder")
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain_file").touch()
    assert (tmp_path / "folder").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain_file").stat().st_mode


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    fill(tmp_path / "run", a="1", b="2")
    fill(tmp_path / "run", b="3")
    assert tree(tmp_path / "run") == {"b": "3"}
    assert os.listdir(tmp_path) == ["run"]


def test_an_empty_folder_may_stand_there(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    fill(tmp_path / "run", a="1")
    assert tree(tmp_path / "run") == {"a": "1"}
    assert os.listdir(tmp_path) == ["run"]


def test_an_exception_in_the_block_changes_nothing(tmp_path: Path) -> None:
    fill(tmp_path / "run", a="1")
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "run") as new:
        (new / "a").write_text("half")
        raise KeyboardInterrupt
    assert tree(tmp_path / "run") == {"a": "1"}
    assert os.listdir(tmp_path) == ["run"]


def test_a_folder_behind_a_link_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    fill(tmp_path / "real", a="1")
    (tmp_path / "link").symlink_to("real")
    fill(tmp_path / "link", a="2")
    assert (tmp_path / "link").is_symlink()
    assert tree(tmp_path / "real") == {"a": "2"}


def test_kinds_are_not_mixed_up(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("1")
    (tmp_path / "folder").mkdir()
    with pytest.raises(NotADirectoryError, match="a file stands where the folder should go"):
        fill(tmp_path / "file")
    with pytest.raises(IsADirectoryError, match="a folder stands where the file should go"):
        atomic_write_bytes(tmp_path / "folder", b"")


def test_leftovers_of_a_killed_writer_are_tidied_a_day_later(tmp_path: Path) -> None:
    for name in ("run", "file"):
        fresh, dead, replaced = (atomic._sibling(tmp_path / name, kind) for kind in ("new", "new", "old"))
        for folder in (fresh, dead, replaced):
            folder.mkdir()
            (folder / "a").write_text("half")
        os.utime(dead, (0, 0))
        (tmp_path / f".{name}.new-of-somebody-else").mkdir()
        (tmp_path / name).mkdir() if name == "run" else (tmp_path / name).touch()
        fill(tmp_path / name, a="2") if name == "run" else atomic_write_bytes(tmp_path / name, b"2")
        left = sorted(path for path in os.listdir(tmp_path) if name in path)
        assert left == sorted([f".{name}.new-of-somebody-else", fresh.name, name])


KILLED = """
import os, signal, sys
from nft_pipeline.files.atomic import atomic_folder, atomic_write_bytes
os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1].endswith("file"):
    atomic_write_bytes(sys.argv[1], b"half")
with atomic_folder(sys.argv[1]) as new:
    (new / "a").write_text("half")
"""


@pytest.mark.parametrize("name", ["run", "file"])
def test_what_a_writer_killed_on_this_machine_left_is_tidied_by_the_next_write(tmp_path: Path, name: str) -> None:
    for _ in range(3):
        killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / name)])
        assert killed.returncode == -signal.SIGKILL
        assert len(os.listdir(tmp_path)) == 1  # its own, and none of those before it
    fill(tmp_path / name, a="1") if name == "run" else atomic_write_bytes(tmp_path / name, b"1")
    assert os.listdir(tmp_path) == [name]


def test_a_fresh_working_copy_of_another_machine_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(os, "getpid", lambda: gone.pid)
        here = atomic._sibling(tmp_path / "file", "new")
        elsewhere.setattr(atomic, "_process_space", lambda: "0" * 8)
        there = atomic._sibling(tmp_path / "file", "new")
    here.touch()
    there.touch()
    atomic_write_bytes(tmp_path / "file", b"1")
    assert sorted(os.listdir(tmp_path)) == sorted([there.name, "file"])


def test_a_copy_still_being_written_is_left_alone(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "run") as slow:
        (slow / "a").write_text("slow")
        fill(tmp_path / "run", a="quick")
        assert tree(tmp_path / "run") == {"a": "quick"}
        assert tree(slow) == {"a": "slow"}
    assert tree(tmp_path / "run") == {"a": "slow"}  # the one who finishes last wins
    assert os.listdir(tmp_path) == ["run"]


def test_a_folder_that_stepped_aside_gets_its_name_back(tmp_path: Path) -> None:
    fill(tmp_path / "run", a="1")
    os.rename(tmp_path / "run", atomic._sibling(tmp_path / "run", "old"))  # where a kill leaves it
    assert recover(tmp_path / "run") == tmp_path / "run"
    assert tree(tmp_path / "run") == {"a": "1"}
    assert os.listdir(tmp_path) == ["run"]


def test_a_write_that_fails_after_one_that_was_killed_keeps_the_old_folder(tmp_path: Path) -> None:
    fill(tmp_path / "run", a="1")
    os.rename(tmp_path / "run", atomic._sibling(tmp_path / "run", "old"))
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "run"):
        raise ZeroDivisionError
    assert tree(tmp_path / "run") == {"a": "1"}


def test_on_a_read_only_disk_the_folder_is_read_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "run", a="1")
    aside = atomic._sibling(tmp_path / "run", "old")
    os.rename(tmp_path / "run", aside)

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "rename", refuse)
    assert recover(tmp_path / "run") == aside


def test_a_rename_that_fails_half_way_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "run", a="1")
    real, calls = os.rename, []

    def third_fails(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 3:  # after one that finds the old folder in the way, and one that moves it aside
            raise OSError(errno.EIO, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, "rename", third_fails)
    with pytest.raises(OSError, match="Input/output error"):
        fill(tmp_path / "run", a="2")
    assert tree(tmp_path / "run") == {"a": "1"}
    assert os.listdir(tmp_path) == ["run"]


@pytest.mark.parametrize("quicker", ["reader", "writer"])
def test_others_who_come_between_the_two_renames_do_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quicker: str
) -> None:
    fill(tmp_path / "run", a="1")
    real, done = os.rename, []

    def interrupted(source: Path, target: Path) -> None:
        real(source, target)
        if ".old-" in target.name and not done:
            done.append(quicker)
            if quicker == "reader":
                assert tree(recover(tmp_path / "run")) == {"a": "1"}
            else:
                fill(tmp_path / "run", a="2")

    monkeypatch.setattr(os, "rename", interrupted)
    fill(tmp_path / "run", a="3")
    assert done and tree(tmp_path / "run") == {"a": "3"}
    assert os.listdir(tmp_path) == ["run"]


@pytest.mark.parametrize("by_a_later_write", [False, True])
def test_a_folder_that_was_replaced_never_comes_back_however_its_removal_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_a_later_write: bool
) -> None:
    fill(tmp_path / "run", a="1")
    if by_a_later_write:  # its own write was killed before it came to that
        os.rename(tmp_path / "run", atomic._sibling(tmp_path / "run", "old"))
        (tmp_path / "run").mkdir()

    def kill(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(shutil, "rmtree", kill)
        with pytest.raises(KeyboardInterrupt):
            fill(tmp_path / "run", a="2")
    os.rename(tmp_path / "run", tmp_path / "moved away")
    assert not recover(tmp_path / "run").exists()


@pytest.mark.parametrize(("code", "passes"), [(errno.EIO, False), (errno.EINVAL, True), (errno.ENOTSUP, True)])
def test_a_folder_that_cannot_be_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, passes: bool
) -> None:
    """Some systems flush no folders. But a disk that fails is reported, and the old folder is not deleted."""
    fill(tmp_path / "run", a="1")
    real = os.fsync

    def refuse(fd: int) -> None:
        if os.fstat(fd).st_ino == tmp_path.stat().st_ino:
            raise OSError(code, os.strerror(code))
        real(fd)

    monkeypatch.setattr(os, "fsync", refuse)
    if passes:
        fill(tmp_path / "run", a="2")
        assert os.listdir(tmp_path) == ["run"]
    else:
        with pytest.raises(OSError, match=os.strerror(code)):
            fill(tmp_path / "run", a="2")
        assert {"a": "1"} in [tree(folder) for folder in tmp_path.iterdir()]


def test_a_folder_that_cannot_be_opened_is_not_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: Path, *rest: Any) -> int:
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, *rest)

    monkeypatch.setattr(os, "open", refuse)
    fill(tmp_path / "run", a="1")
    assert tree(tmp_path / "run") == {"a": "1"}


def test_recover_leaves_what_is_in_order(tmp_path: Path) -> None:
    assert recover(tmp_path / "nothing") == tmp_path / "nothing"
    assert recover(tmp_path / "no" / "where") == tmp_path / "no" / "where"
    fill(tmp_path / "run", a="1")
    assert recover(tmp_path / "run") == tmp_path / "run"


def test_a_full_disk_keeps_the_old_ones(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the full disk: the write itself fails in the kernel."""
    fill(tmp_path / "run", a="1")
    atomic_write_bytes(tmp_path / "file", b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            fill(tmp_path / "run", a="2" * 5000)
        with pytest.raises(OSError, match="File too large"):
            atomic_write_bytes(tmp_path / "file", b"2" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert tree(tmp_path / "run") == {"a": "1"}
    assert (tmp_path / "file").read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["file", "run"]


def test_it_needs_the_standard_library_only() -> None:
    code = "import importlib.util, sys; spec = importlib.util.spec_from_file_location('atomic', sys.argv[1]);"
    code += "spec.loader.exec_module(importlib.util.module_from_spec(spec)); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(atomic.__file__)], check=True)
