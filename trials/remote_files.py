"""A copy of a run's files at a URL, by which machines that share no disk get each other's."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from nas_kd.trials.files import disk_full, locked, replacing, trial_directory
from nas_kd.trials.passwords import masked

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")

SHARED = "shared"  # what trials have in common
_MANIFEST = "manifest.json"
_ATTEMPTS = 9  # with 1, 2, 4, ... and 128 seconds between them
_SECONDS_BETWEEN_PUSHES = 30.0  # of the checkpoints of a running trial


class RemoteFiles:
    """A copy of a run's files at a URL of fsspec, such as `s3://bucket/runs/demo`.

    A part of it is `shared` or the folder of a trial. It has a manifest, path -> SHA-256, and one file for each hash,
    written before the manifest, which is replaced at once: who reads gets the part as it was at one moment, and a
    machine that dies while it writes leaves the part as it was.

    Args:
        url: of a folder. Needs the package of its protocol, such as `s3fs`.
        run_dir: the run's folder, under the same path on all machines.

    Raises:
        ValueError: nothing can be written and read there.
    """

    def __init__(self, url: str, run_dir: Path) -> None:
        self.url = url
        self._run_dir = run_dir
        self._hashes: dict[Path, tuple[tuple[int, int], str]] = {}
        self._pulled: dict[str, dict[str, str]] = {}
        self._last_push = -_SECONDS_BETWEEN_PUSHES
        import fsspec  # takes a quarter of a second

        try:
            self._fs, self._root = fsspec.url_to_fs(url)
        except Exception as error:  # some protocols connect here, with errors of their own
            raise ValueError(f"resources.files_url: {masked(url)} cannot be used: {masked(str(error))}") from error

    def check(self) -> None:
        """Write a file there and read it again.

        Raises:
            ValueError: it cannot be done.
        """
        path, content = f"{self._root}/.probe-{secrets.token_hex(4)}", b"probe"
        try:
            self._fs.makedirs(self._root, exist_ok=True)
            self._fs.pipe_file(path, content)
            if self._fs.cat_file(path) != content:
                raise OSError("another content was read than was written")
            self._fs.rm_file(path)
        except Exception as error:  # of the protocol's own kinds
            raise ValueError(
                f"resources.files_url: {masked(self.url)} cannot be written and read ({masked(str(error))}); see to "
                "its permissions, or share the run's folder"
            ) from error

    def push_shared(self, names: Sequence[str]) -> None:
        """Copy what trials have in common there.

        Args:
            names: of files and folders in the run's folder, as far as they are there.
        """
        self._push(SHARED, [self._run_dir / name for name in names])

    def pull_shared(self) -> None:
        """Get it; one process of a machine after the other, so that only the first one copies."""
        with locked(self._run_dir / ".shared.lock", timeout_s=math.inf, message="{owner}"):
            self._pull(SHARED)

    def push_trial(self, number: int) -> None:
        """Copy the folder of a trial that has ended; its checkpoints are dropped there."""
        folder = trial_directory(self._run_dir, number)
        paths = [path for path in folder.iterdir() if not path.name.startswith(("checkpoint", "."))]
        self._push(_part(number), paths)

    def push_checkpoint(self, number: int) -> None:
        """Copy the folder of a running trial, every 30 seconds at most; a failure is logged, and the trial goes on."""
        if time.monotonic() - self._last_push < _SECONDS_BETWEEN_PUSHES:
            return
        folder = trial_directory(self._run_dir, number)
        try:
            self._push_once(_part(number), [path for path in folder.iterdir() if path.name[0] != "."])
        except Exception as error:  # of the protocol's own kinds
            _log.warning(
                "the checkpoint of trial %d was not copied to %s: %s", number, masked(self.url), masked(str(error))
            )
        self._last_push = time.monotonic()

    def pull_trial(self, number: int, *, exact: bool = False) -> None:
        """Get the folder of a trial, as far as another machine has copied it.

        Args:
            number: of the trial.
            exact: whether files that the copy lacks are deleted, such as those of an earlier run under this path.
        """
        self._pull(_part(number))
        if exact:
            for path in list(_files([trial_directory(self._run_dir, number)])):
                if str(path.relative_to(self._run_dir)) not in self._pulled[_part(number)]:
                    path.unlink()

    def drop_trial(self, number: int) -> None:
        """Delete the folder of a trial there."""
        path = f"{self._root}/{_part(number)}"
        _patiently(lambda: self._fs.rm(path, recursive=True) if self._fs.exists(path) else None)

    def _push(self, part: str, paths: list[Path]) -> None:
        _patiently(lambda: self._push_once(part, paths))

    def _push_once(self, part: str, paths: list[Path]) -> None:
        folder, before = f"{self._root}/{part}", self._manifest(part)
        now = {str(path.relative_to(self._run_dir)): self._hash(path) for path in _files(paths)}
        if now == before:
            return
        there = set(before.values())
        self._fs.makedirs(folder, exist_ok=True)
        for name, digest in now.items():
            if digest not in there:
                self._fs.put_file(str(self._run_dir / name), f"{folder}/{digest}")
                there.add(digest)
        beside = f"{folder}/{secrets.token_hex(4)}.tmp"
        self._fs.pipe_file(beside, json.dumps(now).encode())
        self._fs.mv(beside, f"{folder}/{_MANIFEST}")
        for digest in set(before.values()) - set(now.values()):
            self._fs.rm_file(f"{folder}/{digest}")

    def _pull(self, part: str) -> None:
        _patiently(lambda: self._pull_once(part))

    def _pull_once(self, part: str) -> None:
        manifest = self._manifest(part)
        if manifest == self._pulled.get(part):
            return
        for name, digest in manifest.items():
            path = self._run_dir / name
            if not path.is_file() or self._hash(path) != digest:
                self._get(f"{self._root}/{part}/{digest}", path, digest)
        self._pulled[part] = manifest

    def _get(self, there: str, path: Path, digest: str) -> None:
        """Get a file, which takes its place at once."""
        with replacing(path) as temporary:
            self._fs.get_file(there, str(temporary))
            if _sha256(temporary) != digest:
                raise OSError(f"{there} is damaged")

    def _manifest(self, part: str) -> dict[str, str]:
        """Path below the run's folder -> SHA-256; empty where the part is not there."""
        path = f"{self._root}/{part}/{_MANIFEST}"
        try:
            self._fs.invalidate_cache()
            content: Any = json.loads(self._fs.cat_file(path))
        except FileNotFoundError:
            return {}
        # The folder may be others' to write to: nothing is put outside of the run's.
        for name in content:
            if not (self._run_dir / name).resolve().is_relative_to(self._run_dir.resolve()):
                raise ValueError(f"{masked(self.url)}: the manifest of {part} names {name}, outside the run's folder")
        return {str(name): str(digest) for name, digest in content.items()}

    def _hash(self, path: Path) -> str:
        """SHA-256 of a file; computed again where size or time have changed."""
        stat = path.stat()
        state = (stat.st_size, stat.st_mtime_ns)
        if path not in self._hashes or self._hashes[path][0] != state:
            self._hashes[path] = (state, _sha256(path))
        return self._hashes[path][1]


@lru_cache(maxsize=4)
def _kept(url: str, run_dir: Path) -> RemoteFiles:
    """One for all trials of a process, which knows what it has got already."""
    return RemoteFiles(url, run_dir)


def remote_files(url: str | None, run_dir: Path) -> RemoteFiles | None:
    """The copy of a run's files at a URL; None without one.

    Raises:
        ValueError: the URL cannot be used.
    """
    return None if url is None else _kept(url, run_dir)


def _part(number: int) -> str:
    return f"trial-{number:04d}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(paths: list[Path]) -> Iterator[Path]:
    """The files among the paths and below them, but hidden ones, such as those that are being written."""
    for path in paths:
        if path.is_dir():
            yield from (file for file in sorted(path.rglob("*")) if file.is_file() and file.name[0] != ".")
        elif path.is_file():
            yield path


def _patiently(attempt: Callable[[], _Result]) -> _Result:
    """Try for four minutes: networks fail, and another machine may be writing what is read."""
    number = 0
    while True:
        try:
            return attempt()
        except Exception as error:  # of the protocol's own kinds
            number += 1
            last = number == _ATTEMPTS
            if isinstance(error, ValueError) or disk_full(error) is not None or (last and isinstance(error, OSError)):
                raise
            if last:
                raise OSError(
                    f"resources.files_url: it does not answer ({masked(str(error)) or type(error).__name__}); run the "
                    "same command again to continue"
                ) from error
            _log.warning("%s; it is tried again", masked(str(error)))
            time.sleep(2.0 ** (number - 1))
