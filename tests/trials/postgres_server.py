"""A PostgreSQL server of a test's own, where one is installed."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg

PASSWORD = "geh:eim/1"
URL_PASSWORD = "geh%3Aeim%2F1"


def programs() -> dict[str, str]:
    """`initdb` and `postgres`, as far as they are found."""
    folders = [os.environ.get("PATH", ""), *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True))]
    found = {name: shutil.which(name, path=os.pathsep.join(folders)) for name in ("initdb", "postgres")}
    return {name: path for name, path in found.items() if path is not None}


class PostgresServer:
    """A server with one role, `anna`, which can be stopped and started again."""

    def __init__(self) -> None:
        self._programs = programs()
        self._folder = Path(tempfile.mkdtemp(prefix="nas_kd_pg_"))
        # The server refuses to run as root.
        self._user: dict[str, int] = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self._user = {"user": nobody.pw_uid, "group": nobody.pw_gid}
            os.chown(self._folder, nobody.pw_uid, nobody.pw_gid)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        password = self._folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        self._run(
            self._programs["initdb"], "--pgdata", str(self._data), "--username", "anna", "--pwfile", str(password),
            "--auth", "scram-sha-256", "--no-sync", "--encoding", "UTF8", "--locale", "C",
        )  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def url(self, database: str = "postgres", password: str = URL_PASSWORD) -> str:
        return f"postgresql://anna:{password}@127.0.0.1:{self.port}/{database}"

    def _run(self, *command: str) -> None:
        subprocess.run(command, check=True, cwd=self._folder, capture_output=True, **self._user)  # type: ignore[call-overload]

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self._process = subprocess.Popen(  # type: ignore[call-overload]
            [
                self._programs["postgres"], "-D", str(self._data), "-p", str(self.port), "-h", "127.0.0.1",
                "-k", str(self._folder), "-F",
            ],
            cwd=self._folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **self._user,
        )  # fmt: skip
        deadline = time.monotonic() + 30
        while True:
            try:
                psycopg.connect(self.url(), connect_timeout=5).close()
                return
            except psycopg.OperationalError:  # it is not there, or replays its log
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def stop(self) -> None:
        """End it and all connections, as a crash of its machine does."""
        if self._process is not None:
            self._process.send_signal(3)  # SIGQUIT: no shutdown, the log is replayed at the next start
            self._process.wait(30)
            self._process = None

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)
