"""nft_pipeline.files.atomic: old or new, never half, with and without an exchange of folders."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.disk import can_exchange
from nft_pipeline.files import atomic
from nft_pipeline.files.atomic import atomic_folder, atomic_write_bytes, exchange, settle


@pytest.fixture(params=["exchange", "aside"])
def way(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> str:
    """Both ways to replace a folder; "aside" is what systems without renameat2 do."""
    if request.param == "aside":
        monkeypatch.setattr(atomic, "_renameat2", None)
    elif not can_exchange(tmp_path_factory.mktemp("probe")):
        pytest.skip("this system cannot exchange two folders")
    return request.param


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


def test_a_folder_is_replaced_whole(tmp_path: Path, way: str) -> None:
    fill(tmp_path / "run", a="1", b="2")
    fill(tmp_path / "run", b="3")
    assert tree(tmp_path / "run") == {"b": "3"}
    assert os.listdir(tmp_path) == ["run"]


def test_an_empty_folder_may_stand_there(tmp_path: Path, way: str) -> None:
    (tmp_path / "run").mkdir()
    fill(tmp_path / "run", a="1")
    assert tree(tmp_path / "run") == {"a": "1"}
    assert os.listdir(tmp_path) == ["run"]


def test_an_exception_in_the_block_changes_nothing(tmp_path: Path, way: str) -> None:
    fill(tmp_path / "run", a="1")
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "run") as new:
        (new / "a").write_text("half")
        raise KeyboardInterrupt
    assert tree(tmp_path / "run") == {"a": "1"}
    assert os.listdir(tmp_path) == ["run"]


def test_a_folder_behind_a_link_is_replaced_and_the_link_stays(tmp_path: Path, way: str) -> None:
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


def test_leftovers_of_a_killed_writer_are_tidied_by_the_next_write(tmp_path: Path, way: str) -> None:
    fill(tmp_path / "run", a="1")
    dead = atomic._sibling(tmp_path / "run", "new")
    dead.mkdir()
    (dead / "a").write_text("half")
    atomic._sibling(tmp_path / "run", "old").mkdir()
    (tmp_path / ".run.new-of-somebody-else").mkdir()
    fill(tmp_path / "run", a="2")
    assert sorted(os.listdir(tmp_path)) == [".run.new-of-somebody-else", "run"]


def test_a_copy_still_being_written_is_left_alone(tmp_path: Path, way: str) -> None:
    with atomic_folder(tmp_path / "run") as slow:
        (slow / "a").write_text("slow")
        fill(tmp_path / "run", a="quick")
        assert tree(tmp_path / "run") == {"a": "quick"}
        assert tree(slow) == {"a": "slow"}
    assert tree(tmp_path / "run") == {"a": "slow"}  # the one who finishes last wins
    assert os.listdir(tmp_path) == ["run"]


def test_without_locks_only_old_leftovers_are_tidied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "fcntl", None)
    fresh, stale = atomic._sibling(tmp_path / "run", "new"), atomic._sibling(tmp_path / "run", "new")
    fresh.mkdir()
    stale.mkdir()
    os.utime(stale, (0, 0))
    fill(tmp_path / "run", a="1")
    assert sorted(os.listdir(tmp_path)) == [fresh.name, "run"]


def test_a_folder_that_stepped_aside_gets_its_name_back(tmp_path: Path) -> None:
    fill(tmp_path / "run", a="1")
    os.rename(tmp_path / "run", atomic._sibling(tmp_path / "run", "old"))  # where a kill leaves it without exchange
    assert settle(tmp_path / "run") == tmp_path / "run"
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
    assert settle(tmp_path / "run") == aside


def test_a_rename_that_fails_half_way_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "_renameat2", None)
    fill(tmp_path / "run", a="1")
    real, calls = os.rename, []

    def second_fails(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise OSError(errno.EIO, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, "rename", second_fails)
    with pytest.raises(OSError, match="Input/output error"):
        fill(tmp_path / "run", a="2")
    assert tree(tmp_path / "run") == {"a": "1"}
    assert os.listdir(tmp_path) == ["run"]


def test_settle_leaves_what_is_in_order(tmp_path: Path) -> None:
    assert settle(tmp_path / "nothing") == tmp_path / "nothing"
    assert settle(tmp_path / "no" / "where") == tmp_path / "no" / "where"
    fill(tmp_path / "run", a="1")
    assert settle(tmp_path / "run") == tmp_path / "run"


def test_exchange_says_what_it_cannot_do(tmp_path: Path, way: str) -> None:
    (tmp_path / "a").mkdir()
    if way == "aside":
        assert exchange(tmp_path / "a", tmp_path / "b") is False
    else:
        with pytest.raises(FileNotFoundError):
            exchange(tmp_path / "a", tmp_path / "b")


def test_a_full_disk_keeps_the_old_ones(tmp_path: Path, way: str) -> None:
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
