"""Files and folders that are replaced as a whole: readers see the old one or the new one, never half of either.

A file is written beside its target, flushed to the disk and renamed over it. A folder cannot be renamed over a folder
that holds something, so it is *exchanged*: Linux's renameat2(RENAME_EXCHANGE) swaps two names in one step, and what was
the old folder is deleted afterwards. Where the system has no exchange (other systems, some network disks) the old
folder steps aside to a hidden sibling first; a process killed between those two renames leaves no folder under the
name, and `settle` puts the old one back. Readers of such folders call `settle` first; so does the next write.

Working copies are hidden siblings `.<name>.new-<random>`, old folders that stepped aside `.<name>.old-<random>`. What a
killed process left of them is removed by the next write to the same name. A copy still being written is locked by its
writer, so two writers at once do not tidy each other away: the one who finishes last wins.

Standard library only; adapters and the trainer's checkpoints both stand on it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: no locks, see _is_abandoned
    fcntl = None  # type: ignore[assignment]

ABANDONED_AFTER_SECONDS = 3600.0
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


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
    target.parent.mkdir(parents=True, exist_ok=True)
    with _working_copy(target, is_folder=False) as copy:
        with open(copy, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(copy, target)
        _sync_folder(target.parent)
    return target


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Fill a new folder, then put it in the place of `path` in one step.

        with atomic_folder("run/checkpoint") as folder:
            (folder / "state.json").write_text("{}")

    The block writes into an empty hidden sibling. When it ends without an exception everything in there is flushed to
    the disk and takes the name `path`; the folder that was there before, with ALL its content, is then deleted. When
    it raises, or the process dies at any moment, `path` is what it was.

    Args:
        path: the folder; parents are made when missing.

    Yields:
        The folder to write into.

    Raises:
        OSError: the disk is full, the parent cannot be written, `path` is a file, ...; the old folder stays.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "a file stands where the folder should go", str(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    with _working_copy(target, is_folder=True) as copy:
        yield copy
        _sync_tree(copy)
        with _lock_parent(target):
            _put_in_place(copy, target)


def settle(path: str | os.PathLike[str]) -> Path:
    """Finish what a killed writer left half-way, and say where the folder is now.

    Only needed where folders cannot be exchanged (see the module's text): if nothing stands under the name but an old
    folder that stepped aside does, it gets its name back. Where that cannot be done (a read-only disk) the folder is
    returned under the name it has.

    Args:
        path: the folder a reader is about to open; it need not exist.

    Returns:
        The folder to read; `path` itself in all ordinary cases.
    """
    target = Path(os.path.realpath(path))
    if os.path.lexists(target) or not target.parent.is_dir():
        return target
    try:
        with _lock_parent(target):
            return _give_name_back(target)
    except OSError:
        aside = _siblings(target, "old")
        return aside[-1] if aside else target


def exchange(first: str | os.PathLike[str], second: str | os.PathLike[str]) -> bool:
    """Swap two names of one file system in one step.

    Returns:
        True if they were swapped, False if this system or file system cannot.

    Raises:
        OSError: it can, but not these two (one is missing, no permission, two file systems).
    """
    if _renameat2 is None:
        return False
    done = _renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE)
    if done == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), os.fspath(first), None, os.fspath(second))


def _find_renameat2() -> Callable[..., int] | None:
    """The C library's renameat2 (glibc 2.28 and later, musl 1.2.6), or None."""
    try:
        function = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    function.restype = ctypes.c_int
    return function


_renameat2 = _find_renameat2()


def _put_in_place(copy: Path, target: Path) -> None:
    """Give the finished `copy` the name `target`; the caller holds the parent's lock and deletes `copy` afterwards."""
    _give_name_back(target)
    if not target.exists():
        os.rename(copy, target)
    elif not exchange(copy, target):
        aside = _sibling(target, "old")
        os.rename(target, aside)
        # Killed here: nothing under the name, the old folder aside. `settle` gives it its name back.
        try:
            os.rename(copy, target)
        except OSError:
            os.rename(aside, target)
            raise
        _sync_folder(target.parent)
        _remove(aside)
    _sync_folder(target.parent)


def _give_name_back(target: Path) -> Path:
    """If only a folder that stepped aside is left of `target`, rename it to `target`."""
    if not os.path.lexists(target):
        aside = _siblings(target, "old")
        if aside:
            os.rename(aside[-1], target)
            _sync_folder(target.parent)
    return target


@contextlib.contextmanager
def _working_copy(target: Path, is_folder: bool) -> Iterator[Path]:
    """A new, empty, locked, hidden sibling of `target`; whatever has its name at the end is deleted."""
    copy = _sibling(target, "new")
    with _lock_parent(target):
        _give_name_back(target)
        for leftover in _siblings(target, "new"):
            if _is_abandoned(leftover):
                _remove(leftover)
        for leftover in _siblings(target, "old"):  # target exists, so these were on their way out
            _remove(leftover)
        if is_folder:
            os.mkdir(copy)
        else:
            copy.touch(exist_ok=False)
        fd = -1 if fcntl is None else os.open(copy, os.O_RDONLY)
        _try_lock(fd)
    try:
        yield copy
    finally:
        _close(fd)
        _remove(copy)


def _is_abandoned(copy: Path) -> bool:
    """Did its writer die? A living writer holds a lock on it; where there are no locks, age decides."""
    try:
        fd = -1 if fcntl is None else os.open(copy, os.O_RDONLY)
        try:
            locked = _try_lock(fd)
        finally:
            _close(fd)
        return time.time() - copy.stat().st_mtime > ABANDONED_AFTER_SECONDS if locked is None else locked
    except OSError:
        return False


def _try_lock(fd: int) -> bool | None:
    """Lock without waiting: True, False when another process holds it, None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network disks
        return None
    return True


@contextlib.contextmanager
def _lock_parent(target: Path) -> Iterator[None]:
    """One process at a time renames or tidies in this folder. The system drops the lock if the process dies."""
    fd = -1
    if fcntl is not None:
        with contextlib.suppress(OSError):  # a file system without locks: go on without
            fd = os.open(target.parent, os.O_RDONLY)
            fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        yield
    finally:
        _close(fd)


def _close(fd: int) -> None:
    if fd >= 0:
        os.close(fd)


def _sibling(target: Path, kind: str) -> Path:
    # Sorted by time, so that the newest folder that stepped aside comes last.
    return target.with_name(f".{target.name}.{kind}-{time.time_ns():020d}-{secrets.token_hex(4)}")


def _siblings(target: Path, kind: str) -> list[Path]:
    made_here = re.compile(re.escape(f".{target.name}.{kind}-") + r"\d{20}-[0-9a-f]{8}")
    return sorted(target.with_name(name) for name in os.listdir(target.parent) if made_here.fullmatch(name))


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
            fd = os.open(os.path.join(root, name), os.O_RDWR | getattr(os, "O_BINARY", 0))
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        _sync_folder(Path(root))


def _sync_folder(folder: Path) -> None:
    """Make renames in a folder last through a power cut. Not every system lets one open a folder."""
    if os.name == "nt":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)
