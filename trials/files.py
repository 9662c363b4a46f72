"""Atomic replacement of files, advisory locks that the kernel frees when their process dies, and disk usage."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

TRIALS = "trials"  # folder of the run with one for each trial


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to `path` so that after a crash the file is either the old one or the new one, complete.

    Args:
        path: The file; its folder is created where missing.
        text: What it shall hold, written as UTF-8.
    """
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    _fsync_folder(path.parent)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` to be written, which takes its place at the end of the `with` block; after an error it goes.

    Args:
        path: The file; its folder is created where missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        mask = os.umask(0o077)  # it can only be read by setting it
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # mkstemp makes it private, whatever the user's umask
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _fsync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable: the name lives in the folder, not in the file."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def disk_full(error: BaseException | None) -> OSError | None:
    """What says that a disk or a quota is full: an error, or one that it came from; None where it is something else."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return error
        error = error.__cause__ or error.__context__
    return None


def trial_directory(run_dir: Path, number: int) -> Path:
    """The folder of a trial: `trials/0003` in the run's folder."""
    return run_dir / TRIALS / f"{number:04d}"


def trial_folders(run_dir: Path, first: int = 0) -> list[tuple[int, Path]]:
    """The folders of trials in a run's folder with their numbers, in order; other files and folders are passed over.

    Args:
        run_dir: The run's folder.
        first: The lowest number that is looked for.
    """
    return sorted((number, path) for number, path in _numbered(run_dir) if number >= first and path.is_dir())


def files_in_the_way(run_dir: Path) -> Iterator[Path]:
    """Files that have the name of a trial's folder, so that the trial could not be written."""
    return (path for _, path in _numbered(run_dir) if not path.is_dir())


def _numbered(run_dir: Path) -> Iterator[tuple[int, Path]]:
    """What has the name of a trial's folder, with its number."""
    for path in (run_dir / TRIALS).glob("[0-9]*"):
        name = path.name
        if name.isascii() and name.isdigit() and path == trial_directory(run_dir, int(name)):
            yield int(name), path


class FileLock:
    """An exclusive `flock` on a file. The kernel drops it when the process dies, however it dies.

    The file holds the owner's process id, which the one who is refused gets to read. The file itself stays: to
    delete it would let two processes lock two different inodes under one name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self, *, timeout_s: float = 0.0) -> bool:
        """Take the lock.

        Args:
            timeout_s: How long to wait for the present owner; 0 tries once.

        Returns:
            Whether the lock is held now.
        """
        assert self._descriptor is None, f"{self.path} is already locked by this object"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    os.close(descriptor)
                    return False
                time.sleep(0.05)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor
        return True

    def owner(self) -> str:
        """The process id written by the last owner, or `unknown`."""
        try:
            return self.path.read_text(encoding="utf-8").strip() or "unknown"
        except OSError:
            return "unknown"

    def release(self) -> None:
        """Give the lock back; without effect when it is not held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def is_locked(path: Path) -> bool:
    """Whether some process holds the lock file now; the file is left as it is."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


@contextlib.contextmanager
def locked(path: Path, *, timeout_s: float, message: str) -> Iterator[None]:
    """Hold the lock file `path` in a `with` block.

    Args:
        path: The lock file.
        timeout_s: How long to wait for another owner.
        message: What to raise when it stays taken; `{owner}` becomes the owner's process id.

    Raises:
        RuntimeError: The lock is still taken after `timeout_s`.
    """
    lock = FileLock(path)
    if not lock.acquire(timeout_s=timeout_s):
        raise RuntimeError(message.format(owner=lock.owner()))
    try:
        yield
    finally:
        lock.release()


def remove_checkpoints(folder: Path) -> None:
    """Delete everything directly under `folder` whose name begins with `checkpoint`; links are not followed."""
    for path in sorted(folder.glob("checkpoint*")):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def bytes_on_disk(folder: Path) -> int:
    """The total size of the files under `folder`, 0 where it does not exist; links are not followed."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a running trial may rotate its checkpoints meanwhile
            if path.is_file() and not path.is_symlink():
                total += path.stat().st_size
    return total
