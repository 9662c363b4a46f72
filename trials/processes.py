"""Processes of this machine as /proc shows them; none are seen where there is no /proc."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

_PROC = Path("/proc")


def command_lines() -> Iterator[tuple[int, list[str]]]:
    """Process and the words of its command, for all that run."""
    for pid in _pids():
        with contextlib.suppress(OSError):  # it has ended
            yield pid, os.fsdecode((_PROC / str(pid) / "cmdline").read_bytes()).split("\0")


def processes_of(program: str) -> Iterator[tuple[int, list[str]]]:
    """Process and the words of its command, for all of a program."""
    return ((pid, words) for pid, words in command_lines() if Path(words[0]).name == program)


def runs(program: str) -> bool:
    """Whether a process of a program runs on this machine; True where there is no /proc."""
    return not _PROC.is_dir() or any(processes_of(program))


def has_ended(pid: int) -> bool:
    """Whether a process runs no more; False where there is no /proc."""
    try:
        state, _ = _state_and_parent(pid)
    except OSError:
        return _PROC.is_dir()
    return state == "Z"


def with_descendants(pids: Iterable[int]) -> set[int]:
    """Processes, and all that they and their children have started, but this process."""
    parents: dict[int, int] = {}
    for pid in _pids():
        with contextlib.suppress(OSError):
            _, parents[pid] = _state_and_parent(pid)
    found = set(pids) - {os.getpid()}
    while children := {pid for pid, parent in parents.items() if parent in found} - found - {os.getpid()}:
        found |= children
    return found


def has_open(folder: str, pid: int) -> bool:
    """Whether a process has a file below a folder open."""
    with contextlib.suppress(OSError):  # it has ended, or is another user's
        for link in (_PROC / str(pid) / "fd").iterdir():
            with contextlib.suppress(OSError):
                if str(link.readlink()).startswith(f"{folder}/"):
                    return True
    return False


def _pids() -> Iterator[int]:
    return (int(entry.name) for entry in _PROC.glob("[0-9]*"))


def _state_and_parent(pid: int) -> tuple[str, int]:
    """The state, `Z` of one that has ended, and the id of the parent; the name before them may hold any character."""
    state, parent, *_ = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return state, int(parent)
