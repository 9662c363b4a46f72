"""What can happen to a campaign in `kills.py`: in a write, to processes, machines, the database or the disk."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

sys.path.append(str(Path(__file__).parents[1] / "tests" / "trials"))  # a server that tests start, too

MARK = "NAS_KD_KILLS"  # an environment variable, by which processes of a campaign are told from others
NODE = "NAS_KD_KILLS_NODE"  # likewise, those of a machine of the cluster
SECONDS_FULL = 1.0  # that the disk is full


def marked(text: str, name: str = "") -> dict[int, str]:
    """Process -> command line of those that have a text in their environment, and a name in their command line."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes()
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has ended
            continue
        if text.encode() in environment and name in command and int(folder.name) != os.getpid():
            found[int(folder.name)] = command[:200]
    return found


def kill(processes: list[int]) -> None:
    """SIGKILL, as far as they are still there."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def fail_at_write(what: Callable[[], None], number: int) -> None:
    """Have something happen in a write of this process, from 1: all that must last is synced."""
    left = number

    def replaced(sync: Callable[[int], None]) -> Callable[[int], None]:
        def call(descriptor: int) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                what()
            sync(descriptor)

        return call

    os.fsync = replaced(os.fsync)  # type: ignore[assignment, arg-type]


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _no_space() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


IN_WRITES: dict[str, Callable[[], None]] = {"write": _die, "disk": _no_space}


class Database(Protocol):
    """Where the ledger is."""

    url: str

    def stop_for(self, seconds: float) -> None:
        """Answer nobody for some seconds."""

    def close(self) -> None:
        """End it."""


class SqliteDatabase:
    """A file, which somebody else may lock."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "study.db"
        self.url = f"sqlite:///{self._path}"

    def stop_for(self, seconds: float) -> None:
        database = sqlite3.connect(self._path, timeout=60, isolation_level=None)
        database.execute("BEGIN EXCLUSIVE")
        time.sleep(seconds)
        database.execute("ROLLBACK")
        database.close()

    def close(self) -> None:
        pass


class PostgresDatabase:
    """A server of its own, which can be stopped."""

    def __init__(self) -> None:
        try:
            from postgres_server import PostgresServer, programs
        except ImportError:
            raise SystemExit("--storage postgresql needs psycopg: pip install 'nas-kd[postgresql]'") from None
        if len(programs()) < 2:
            raise SystemExit("--storage postgresql needs `initdb` and `postgres` of a server that is installed here")
        self._server = PostgresServer()
        self.url = self._server.url()

    def stop_for(self, seconds: float) -> None:
        self._server.stop()
        time.sleep(seconds)
        self._server.start()

    def close(self) -> None:
        self._server.close()


class Machines:
    """A cluster of Ray, all of it on this machine: a head without trials, where the driver is, and nodes of one CPU.

    Args:
        folder: for Ray's files.
        mark: of the campaign.
        num_nodes: beside the head.
    """

    def __init__(self, folder: Path, mark: str, num_nodes: int = 2) -> None:
        self._folder = folder
        self._mark = mark
        self._num_nodes = num_nodes
        self._next = 0
        self._nodes: list[str] = []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.address = f"127.0.0.1:{self._port}"
        self._start_all()

    def _start_all(self) -> None:
        head = ("--head", f"--port={self._port}", "--num-cpus=0", "--include-dashboard=false")
        self._start(*head, f"--temp-dir={self._folder}")
        self._nodes = [self._start_node() for _ in range(self._num_nodes)]

    def _start_node(self) -> str:
        return self._start(f"--address={self.address}", "--num-cpus=1")

    def _start(self, *options: str) -> str:
        """Start a machine; returns its mark."""
        node, self._next = f"{self._mark}/{self._next}.", self._next + 1
        subprocess.run(
            [sys.executable, "-m", "ray.scripts.scripts", "start", "--disable-usage-stats", *options],
            env=os.environ | {NODE: node, "RAY_AUTH_MODE": "disabled"},
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return node

    def kill_node(self, rng: random.Random) -> None:
        """Kill all processes of a machine; another one comes in its place."""
        node = self._nodes.pop(rng.randrange(len(self._nodes)))
        kill(list(marked(f"{NODE}={node}")))
        self._nodes.append(self._start_node())

    def kill_all(self) -> None:
        """Kill all processes of all machines, the head's first; a new cluster comes up at the same address."""
        self.close()
        self._start_all()

    def close(self) -> None:
        """Kill all processes of all machines."""
        kill(sorted(marked(f"{NODE}={self._mark}/")))
        shutil.rmtree(self._folder, ignore_errors=True)


class SmallDisk:
    """A disk in memory, which can be full.

    Raises:
        OSError: this user may not mount one.
    """

    def __init__(self, folder: Path, megabytes: int = 64) -> None:
        self.folder = folder
        folder.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], capture_output=True
        )
        if mounted.returncode:
            raise OSError(mounted.stderr.decode().strip())

    def fill(self) -> None:
        """Have it full for a moment."""
        ballast = self.folder / "ballast"
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 20))
                # The last write may be short; the next one says that there is no space.
        time.sleep(SECONDS_FULL)
        ballast.unlink()

    def close(self) -> None:
        """Give it back."""
        subprocess.run(["umount", str(self.folder)], check=False, capture_output=True)
