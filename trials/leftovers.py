"""What Ray writes for a driver, and its removal: at the driver's end, or by the next driver where it was killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from pathlib import Path

_PREFIX = "/tmp/nas_kd_ray_"
_NOTE_NAME = ".ray_session"
_SCRATCH_NAME = ".tune"
_PACKAGE = b"/ray/"  # that programs of Ray lie in


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
        for pid in _processes_of(folder):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)
    note.unlink(missing_ok=True)
    shutil.rmtree(scratch_folder(run_dir), ignore_errors=True)


def has_ended(pid: int) -> bool:
    """Whether a process runs no more; False where there is no /proc."""
    try:
        state, _ = _state_and_parent(Path(f"/proc/{pid}"))
    except OSError:
        return Path("/proc").is_dir()
    return state == "Z"


def servers_of(folder: str) -> dict[int, str]:
    """Process -> name of Ray's servers of a session, without which it cannot go on; empty where there is no /proc."""
    found = {}
    for pid in _processes_of(folder):
        with contextlib.suppress(OSError):
            program = Path(os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0])).name
            if program in ("raylet", "gcs_server"):
                found[pid] = program
    return found


def _processes_of(folder: str) -> set[int]:
    """Ray's processes that name the folder or print into it, and their descendants; none where there is no /proc.

    A command of a user that names it, such as one that shows a log, is none of them.
    """
    parents: dict[int, int] = {}
    found: set[int] = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes()
            _, parents[int(entry.name)] = _state_and_parent(entry)
        except OSError:  # it has ended
            continue
        if (os.fsencode(folder) in words and _PACKAGE in words) or _prints_into(folder, entry):
            found.add(int(entry.name))
    found.discard(os.getpid())
    while True:
        children = {pid for pid, parent in parents.items() if parent in found} - found - {os.getpid()}
        if not children:
            return found
        found |= children


def _state_and_parent(process: Path) -> tuple[str, int]:
    """The state, `Z` of one that has ended, and the id of the parent; the name before them may hold any character."""
    state, parent, *_ = (process / "stat").read_text().rpartition(")")[2].split()
    return state, int(parent)


def _prints_into(folder: str, process: Path) -> bool:
    """Whether the output of a process goes to a file below the folder, as that of workers does, whose command line says
    nothing of it."""
    for stream in ("1", "2"):
        with contextlib.suppress(OSError):
            if str((process / "fd" / stream).readlink()).startswith(f"{folder}/"):
                return True
    return False
