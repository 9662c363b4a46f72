"""What Ray writes for a driver, and its removal: at the driver's end, or by the next driver where it was killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

from nas_kd.trials.processes import command_lines, has_open, with_descendants

_PREFIX = "/tmp/nas_kd_ray_"
_NOTE_NAME = ".ray_session"
_SCRATCH_NAME = ".tune"
_PACKAGE = "/ray/"  # that programs of Ray lie in
_TITLE = "ray::"
_SECONDS_TO_END = 5.0
_SECONDS_BETWEEN_LOOKS = 0.05


def scratch_folder(run_dir: Path) -> Path:
    """Where Tune writes its snapshots, which nobody reads."""
    return run_dir / _SCRATCH_NAME


def new_session_folder(run_dir: Path) -> str:
    """A folder for the files of a Ray session, noted in the run's folder.

    Ray puts sockets below it, whose paths may have 107 bytes at most, so it is neither in the run folder nor in TMPDIR.
    """
    folder = tempfile.mkdtemp(prefix=Path(_PREFIX).name, dir=Path(_PREFIX).parent)
    (run_dir / _NOTE_NAME).write_text(folder, encoding="utf-8")
    return folder


def remove_leftovers(run_dir: Path) -> None:
    """Delete what Ray wrote for a driver of a run, and end its processes where they are still there.

    Processes of a killed driver live on for some seconds, and would make their folder again.

    Args:
        run_dir: of the run, which no other driver drives.
    """
    note = run_dir / _NOTE_NAME
    folder = note.read_text(encoding="utf-8", errors="replace").strip() if note.is_file() else ""
    if folder.startswith(_PREFIX) and Path(folder).parent == Path(_PREFIX).parent:
        _end_processes_of(folder)
        shutil.rmtree(folder, ignore_errors=True)
    note.unlink(missing_ok=True)
    shutil.rmtree(scratch_folder(run_dir), ignore_errors=True)


def _end_processes_of(folder: str) -> None:
    """Kill them until none is left: one that is killed may just have started others."""
    deadline = time.monotonic() + _SECONDS_TO_END
    while (found := _processes_of(folder)) and time.monotonic() < deadline:
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def _processes_of(folder: str) -> set[int]:
    """Ray's processes that name the folder or have a file of it open, and their descendants.

    Workers and agents do the latter: they put `ray::` and their name in place of their command. A command of a user
    that names the folder, such as one that shows a log, is none of them.
    """
    found = set()
    for pid, words in command_lines():
        of_ray = words[0].startswith(_TITLE) or any(_PACKAGE in word for word in words)
        if of_ray and (any(folder in word for word in words) or has_open(folder, pid)):
            found.add(pid)
    return with_descendants(found)
