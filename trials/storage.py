"""Where a study is stored: a journal file in the run folder, or a database by its URL.

The journal was chosen over SQLite. Measured on 2 CPU cores, 60 trials of 5 knobs with records of 8 kB, as the ledger
writes them (one proposal, one record, one state), Optuna 5.0:

    ================  ==================  =================  ==================
    storage           ask, ms a trial     tell, ms a trial   open again, ms
    ================  ==================  =================  ==================
    journal           0.8                 1.5                9
    SQLite            7.5                 11.5               49
    SQLite with WAL   6.7                 9.2                49
    ================  ==================  =================  ==================

Both survive `kill -9`: a campaign whose driver was killed at random moments, 25 times within 260 trials on the journal
and 56 times within 90 on SQLite, lost and repeated nothing that had been recorded. The journal does so only with the
two repairs below, since Optuna's own

- keeps its lock as a link in the folder, which a killed process leaves behind and the next one waits on for 30 s. Here
  it is an `flock`, which the kernel drops;
- cannot be read any more once a line was cut off by a crash and another one appended to it. `repair_journal` cuts
  such a tail away when a driver opens the run; what is cut was never acknowledged to anybody.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import secrets
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

from optuna.distributions import json_to_distribution
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.storages.journal._storage import JournalStorageReplayResult
from sqlalchemy import create_engine, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, SQLAlchemyError

from nas_kd.trials.files import write_atomically
from nas_kd.trials.passwords import masked

JOURNAL_NAME = "ledger.jsonl"
STUDY_FILE = "study"  # in the folder of a run that has its ledger in a database: the name of its study there

_CONNECT_TIMEOUT_S = 10
_PAUSES_S = (0.1, 0.5, 1.0, 2.0)  # while another campaign makes the tables of a database
_DRIVERS_WITH_CONNECT_TIMEOUT = ("psycopg", "psycopg2", "pymysql", "mysqldb")


class StorageError(ValueError):
    """A database cannot be used. The message holds no password."""


class DamagedJournalError(ValueError):
    """The journal of a run cannot be read; the message names the file, and the line where it is known."""


class _FlockLock(JournalFileOpenLock):
    """Optuna's lock interface over `flock`; one file descriptor, kept open."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        if self._descriptor is None:
            self._descriptor = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        return True

    def release(self) -> None:
        assert self._descriptor is not None
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def __del__(self, _close: Callable[[int], None] = os.close) -> None:
        # `os` may be gone already when the interpreter shuts down.
        if self._descriptor is not None:
            _close(self._descriptor)


class _JournalFile(JournalFileBackend):
    """Optuna's reader of a journal, with an error that names the file and the line."""

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        number = log_number_from
        try:
            for content in super().read_logs(log_number_from):
                number += 1
                if not isinstance(content, dict):
                    raise ValueError("a line holds an object of JSON")
                yield content
        except ValueError as error:  # of the decoder, in its words
            raise DamagedJournalError(f"{self._file_path} is damaged in line {number + 1}") from error


class _Replay(JournalStorageReplayResult):
    """Optuna's replay of a journal, which makes the definition of a knob once and not for each trial anew."""

    def _apply_create_trial(self, log: dict[str, Any]) -> None:
        definitions, values = log.pop("distributions", {}), log.pop("params", {})
        number = len(self._trials)
        super()._apply_create_trial(log)
        if number in self._trials:
            trial = self._trials[number]
            trial.distributions = {name: _distribution(definition) for name, definition in definitions.items()}
            trial.params = {name: trial.distributions[name].to_external_repr(value) for name, value in values.items()}


_distribution = lru_cache(maxsize=4096)(json_to_distribution)


class _Journal(JournalStorage):
    """Optuna's storage in a journal, replayed faster: 10,000 trials of 10 knobs take 1.2 s instead of 2.6 s."""

    def _sync_with_backend(self) -> None:
        if not isinstance(self._replay_result, _Replay):
            self._replay_result = _Replay(self._worker_id_prefix)
        super()._sync_with_backend()


@contextmanager
def _collection_paused() -> Iterator[None]:
    """Keep Python from looking for garbage while many objects are made that all stay: a fifth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def repair_journal(path: Path) -> int:
    """Cut off what a crash left at the end: an unfinished line, a line that holds no JSON. Call it as the only writer.

    Returns:
        How many bytes were cut.

    Raises:
        DamagedJournalError: More than that is damaged at the end.
    """
    if not path.exists():
        return 0
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        end = _last_newline(file, size) + 1
        for lines_cut in range(2):  # a disk that lost power may have zeros there
            begin = _last_newline(file, end - 1) + 1
            file.seek(begin)
            if end == 0 or _is_json(file.read(end - begin)):
                break
            if lines_cut == 1:
                raise DamagedJournalError(f"{path} is damaged in its last lines")
            end = begin
        if end < size:
            file.truncate(end)
            file.flush()
            os.fsync(file.fileno())
    return size - end


def _last_newline(file: BinaryIO, end: int) -> int:
    """The place of the last newline before `end`; -1 where there is none."""
    while end > 0:  # backwards in blocks: a journal may be long, its last line is not
        start = max(0, end - 65536)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline
        end = start
    return -1


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line.decode("utf-8"))
    except ValueError:
        return False
    return True


def set_aside(path: Path) -> Path:
    """Give a damaged file a name that is free, beside its place, and return it."""
    number = 1
    while (kept := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    return path.rename(kept)


def check_url(url: str | None) -> None:
    """Raise where a storage is no URL of a database that can be reached from here; nothing is connected.

    Raises:
        StorageError: What is wrong.
    """
    if url is not None:
        with storage_errors(url):
            parsed = _parsed(url)
            parsed.get_dialect()
            if _is_in_memory(parsed):
                raise StorageError(
                    f"storage: {masked(url)} is in memory and ends with its process; give a file such as "
                    "sqlite:////shared/x.db"
                )


def check_database(url: str) -> None:
    """Raise where a database does not answer; nothing is written.

    Raises:
        StorageError: What is wrong.
    """
    with storage_errors(url):
        parsed = _parsed(url)
        if _can_be_made(parsed):
            return  # to connect would make the file
        engine = create_engine(parsed, **_engine_options(parsed))
        try:
            with engine.connect() as connection:
                connection.execute(text("SELECT 1"))
        finally:
            engine.dispose()


def _is_in_memory(url: URL) -> bool:
    return url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:")


def _can_be_made(url: URL) -> bool:
    """Whether this is a file of SQLite that is not there yet, in a folder that may have it."""
    name = url.database or ""
    if url.get_backend_name() != "sqlite" or _is_in_memory(url) or name.startswith("file:"):
        return False
    folder = Path(name).absolute().parent
    return not Path(name).exists() and folder.is_dir() and os.access(folder, os.W_OK)


@contextmanager
def storage_errors(url: str | None) -> Iterator[None]:
    """Errors of a database as one sentence without a password."""
    try:
        yield
    except (SQLAlchemyError, StorageInternalError, ImportError, ValueError) as error:
        if isinstance(error, StorageError | DamagedJournalError) or url is None:
            raise
        # Not `from error`: a traceback of that one may show the URL.
        raise StorageError(_sentence(error, url)) from None


def _sentence(error: Exception, url: str) -> str:
    if isinstance(error, ImportError):
        return (
            f"storage: the driver of {masked(url)} is not installed; for PostgreSQL: pip install 'nas-kd[postgresql]'"
        )
    if isinstance(error, ArgumentError) or not isinstance(error, SQLAlchemyError | StorageInternalError):
        return (
            f"storage: the database cannot be used: {masked(url)} is no URL of a database; give one such as "
            "postgresql://USER@HOST/NAME, with the password in ~/.pgpass"
        )
    cause = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ is not None else error
    reason = str(cause).strip().splitlines()[0]
    return f"storage: the database cannot be used: {masked(reason, url)}"


def study_name(run_dir: Path, url: str | None, name: str, *, make: bool = False) -> str | None:
    """Under which name the study of a run is stored.

    A database serves many runs, so a run's study has a name of its own there, `NAME-` and eight random digits, which is
    kept in the run's folder: two folders never share trials, and a folder that was moved goes on. A journal file holds
    one study alone.

    Args:
        run_dir: The run's folder.
        url: Of the database, if there is one.
        name: Of the campaign.
        make: Whether a name is made where the folder has none.

    Returns:
        The name; None where there is none yet.
    """
    if url is None:
        return name
    path = run_dir / STUDY_FILE
    known = path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else ""
    if known or not make:
        return known or None
    made = f"{name}-{secrets.token_hex(4)}"
    write_atomically(path, made + "\n")
    return made


def open_storage(run_dir: Path, url: str | None) -> BaseStorage:
    """The storage of a run.

    Args:
        run_dir: The run's folder; has the journal where there is no `url`.
        url: An SQLAlchemy URL: `postgresql://...`, `mysql://...` or `sqlite:///...`.

    Raises:
        StorageError: The database cannot be used.
        DamagedJournalError: The journal cannot be read.
    """
    if url is None:
        path = run_dir / JOURNAL_NAME
        try:
            with _collection_paused():
                return _Journal(_JournalFile(str(path), lock_obj=_FlockLock(path)))
        except (KeyError, TypeError, IndexError, AttributeError, AssertionError) as error:  # while it is replayed
            raise DamagedJournalError(f"{path} is damaged: lines of it are missing or were changed") from error
    with storage_errors(url):
        parsed = _parsed(url)
        storage = _database(parsed)
        weakref.finalize(storage, storage.engine.dispose)  # else its connections stay open until they are collected
        return storage


def _database(parsed: URL) -> RDBStorage:
    """Optuna's storage in a database, whose tables are made where they are missing.

    Campaigns that begin at the same time may all make them. Those that come second look again.
    """
    url, options = parsed.render_as_string(hide_password=False), _engine_options(parsed)
    for pause in _PAUSES_S:
        storage = RDBStorage.__new__(RDBStorage)
        try:
            RDBStorage.__init__(storage, url, engine_kwargs=options)
            return storage
        except SQLAlchemyError as error:
            if "engine" in vars(storage):
                storage.engine.dispose()  # else its connection stays open
            if not isinstance(error, IntegrityError) and "already exists" not in str(error):
                raise
            time.sleep(pause)
    return RDBStorage(url, engine_kwargs=options)


def _parsed(url: str) -> URL:
    """A URL, with the driver that is installed where it is one of PostgreSQL and names none.

    SQLAlchemy's own choice is psycopg2 before version 2.1 and psycopg from then on.

    Raises:
        ArgumentError: It is no URL.
    """
    parsed = make_url(url)
    if "@" in (parsed.host or ""):
        raise ArgumentError("a password with an @ is cut at it")
    if parsed.drivername == "postgresql":
        driver = next((name for name in ("psycopg", "psycopg2") if find_spec(name)), None)
        return parsed if driver is None else parsed.set(drivername=f"postgresql+{driver}")
    return parsed


def _engine_options(parsed: URL) -> dict[str, Any]:
    options: dict[str, Any] = {"pool_pre_ping": True}  # a server may have been started again
    if parsed.get_driver_name() in _DRIVERS_WITH_CONNECT_TIMEOUT and "connect_timeout" not in parsed.query:
        options["connect_args"] = {"connect_timeout": _CONNECT_TIMEOUT_S}
    return options
