"""Files and folders that are replaced as a whole: readers see the old one or the new one, never half of either.

A file is written beside its target, flushed to the disk and renamed over it, which is one step. A folder cannot be
renamed over a folder that holds something, so it takes two: the old folder steps aside to a hidden sibling, and the new
one takes its name; then the old one is deleted. A process killed between the two leaves no folder under the name, but
the whole old one beside it: `recover` gives it its name back. Our readers of adapters and of their samples/ call it,
and so does the next write. That gap is a moment, and nothing is lost in it, so there is no more machinery for it: no
exchange of two names in one step, which Linux alone has, and no locks. Several processes may read and write one folder
at once; each write ends with its folder under the name, and the last one wins.

Working copies are hidden siblings `.<name>.new-<time>-<machine>-<process>-<random>`, and folders that stepped aside are
called `.old-` instead. An old folder whose successor stands is renamed to a working copy before it is deleted, so that
`recover` never brings back what was replaced. A working copy that a killed process left is removed by the next write to
the same name on the same machine, where one can see that the process is gone; elsewhere by the first write a day later.

Standard library only; adapters and the trainer's checkpoints both stand on it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

ABANDONED_AFTER_SECONDS = 24 * 3600.0


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write `data` to the file `path`, replacing what was there in one step.

    Args:
        path: the file; its folder is made when missing.
        data: the whole content.

    Returns:
        The path that was written (symbolic links resolved).

    Raises:
        OSError: the disk is full, the folder cannot be written, ...; the old file is then still there, untouched.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "a folder stands where the file should go", str(target))
    with _working_copy(target) as copy:
        with open(copy, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(copy, target)
        _sync_folder(target.parent)
    return target


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Fill a new folder, then put it in the place of `path`.

        with atomic_folder("run/checkpoint") as folder:
            (folder / "state.json").write_text("{}")

    The block writes into an empty hidden sibling. When it ends without an exception everything in there is flushed to
    the disk and takes the name `path`; the folder that was there before, with ALL its content, is then deleted. When
    it raises, or the process dies at any moment, the old folder is still there, see `recover`.

    Args:
        path: the folder; parents are made when missing.

    Yields:
        The folder to write into.

    Raises:
        OSError: the disk is full, the parent cannot be written, `path` is a file, ...; the old folder stays.
    """
    target = recover(path)
    if target.is_file():
        raise NotADirectoryError(errno.ENOTDIR, "a file stands where the folder should go", str(target))
    with _working_copy(target) as copy:
        copy.mkdir()
        yield copy
        _sync_tree(copy)
        _put_in_place(copy, target)


def recover(path: str | os.PathLike[str]) -> Path:
    """Give an old folder its name back if a killed writer left it aside, and say where the folder is now.

    Args:
        path: the folder that a reader is about to open; it need not exist.

    Returns:
        The folder to read: `path`, symbolic links resolved; or the hidden sibling, where it cannot be renamed (a
        read-only disk).
    """
    target = Path(os.path.realpath(path))
    aside = [] if os.path.lexists(target) else _siblings(target, "old")
    if not aside:
        return target
    with contextlib.suppress(OSError):  # read-only, or another process was quicker
        os.rename(aside[-1], target)
        _sync_folder(target.parent)
    return target if os.path.lexists(target) else aside[-1]


def _put_in_place(copy: Path, target: Path) -> None:
    """Give the finished `copy` the name `target`, and delete what had it."""
    aside: list[Path] = []
    while True:
        try:
            os.rename(copy, target)  # works where nothing stands, and over an empty folder
            break
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                recover(target)
                raise
        aside.append(_sibling(target, "old"))
        with contextlib.suppress(FileNotFoundError):  # another writer was quicker
            os.rename(target, aside[-1])
        # Killed here: nothing under the name, the old folder aside. A reader at work may give it its name back already;
        # then it has to step aside once more.
    _sync_folder(target.parent)
    for folder in aside:
        _discard(folder, target)


@contextlib.contextmanager
def _working_copy(target: Path) -> Iterator[Path]:
    """The path of a new hidden sibling of `target`; leftovers are deleted, and what has this path at the end."""
    target.parent.mkdir(parents=True, exist_ok=True)
    replaced = _siblings(target, "old")
    if os.path.lexists(target):  # looked at after the list was made, so what is in the list has a successor
        for folder in replaced:
            _discard(folder, target)
    for leftover in _siblings(target, "new"):
        if _is_abandoned(leftover):
            _remove(leftover)
    copy = _sibling(target, "new")
    try:
        yield copy
    finally:
        _remove(copy)


def _sibling(target: Path, kind: str) -> Path:
    # Sorted by time, so that the newest folder that stepped aside comes last.
    writer = f"{time.time_ns():020d}-{_process_space()}-{os.getpid()}-{secrets.token_hex(4)}"
    return target.with_name(f".{target.name}.{kind}-{writer}")


def _siblings(target: Path, kind: str) -> list[Path]:
    made_here = re.compile(re.escape(f".{target.name}.{kind}-") + r"\d{20}-[0-9a-f]{8}-\d{1,9}-[0-9a-f]{8}")
    names: list[str] = []
    with contextlib.suppress(OSError):  # no such folder
        names = os.listdir(target.parent)
    return sorted(target.with_name(name) for name in names if made_here.fullmatch(name))


def _process_space() -> str:
    """Eight digits for the machine, or the container on it, in which a process number means one process."""
    facts = [platform.node()]
    with contextlib.suppress(OSError):  # Linux alone has these; two machines or containers may share a name
        facts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        facts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256(" ".join(facts).encode()).hexdigest()[:8]


def _is_abandoned(copy: Path) -> bool:
    """Whether the process that wrote this working copy is gone; where it cannot be asked, whether a day has passed."""
    *_, space, process, _ = copy.name.split("-")
    if os.name != "nt" and space == _process_space():  # on Windows, signal 0 interrupts a process
        with contextlib.suppress(PermissionError):  # there is one, of another user
            try:
                os.kill(int(process), 0)
            except ProcessLookupError:
                return True
    try:
        return time.time() - copy.stat().st_mtime > ABANDONED_AFTER_SECONDS
    except OSError:  # removed meanwhile
        return False


def _discard(folder: Path, target: Path) -> None:
    """Delete an old folder that has a successor; under a name that `recover` does not know, in case of a kill."""
    garbage = _sibling(target, "new")
    with contextlib.suppress(OSError):  # a reader gave it its name back, or another writer was quicker
        os.rename(folder, garbage)
    _remove(garbage)


def _remove(path: Path) -> None:
    """Delete a file or folder if it is there. Leftovers do no harm, so a failure here is the next write's business."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _sync_tree(folder: Path) -> None:
    for root, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(root, name), "r+b") as file:
                os.fsync(file.fileno())
        _sync_folder(Path(root))


def _sync_folder(folder: Path) -> None:
    """Make renames in a folder last through a power cut, where the system lets one flush a folder."""
    try:
        fd = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders, and one that may be written need not be readable
        return
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)
