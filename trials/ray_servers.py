"""Ray's servers that a driver cannot go on without, watched while it runs.

Ray itself ends such a driver, after 5 (raylet) or 60 seconds (global control service), with pages of its log. Until
then the main thread may wait in Ray's C++ code, where no exception reaches it, so the process is ended from a thread.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import ray

from nas_kd.trials.leftovers import remove_leftovers
from nas_kd.trials.processes import has_ended, processes_of

_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_TO_CONNECT = 2.0
_SECONDS_AWAY = 30.0  # that the service of a cluster may be away, where it may be started again


@contextlib.contextmanager
def watched(run_dir: Path, cluster: str | None) -> Iterator[None]:
    """End this process with a sentence where the session cannot go on; nothing of the campaign is lost by it.

    Args:
        run_dir: of the campaign, whose leftovers are removed then.
        cluster: address of the cluster that was joined; None for a session of this driver alone.
    """
    node = ray._private.worker.global_worker.node
    assert node is not None, "a driver that is no Ray client knows its node"
    raylet = _raylet(node.raylet_socket_name)
    seconds_away = 0.0 if cluster is None else _SECONDS_AWAY
    over = threading.Event()

    def reason() -> str:
        """Why the session cannot go on; empty where it can."""
        if raylet is not None and has_ended(raylet):
            return "raylet, a process of Ray on this machine, has died: it was killed, or memory ran out"
        if is_away(node.gcs_address, seconds_away, over):
            if cluster is None:
                return "gcs_server, a process of Ray on this machine, has died: it was killed, or memory ran out"
            return f"the head of the cluster at {cluster} has not answered for {seconds_away:.0f} s: it may have died"
        return ""

    def watch() -> None:
        while not over.wait(_SECONDS_BETWEEN_LOOKS):
            found = reason()
            # Where the session is being ended, `over` is set within that time.
            if found and not over.wait(_SECONDS_BETWEEN_LOOKS):
                remove_leftovers(run_dir)
                again = "" if cluster is None else ", once there is a cluster,"
                sys.stderr.write(f"{found}; run the same command again{again} to continue\n")
                sys.stderr.flush()
                os._exit(1)

    thread = threading.Thread(target=watch, name="ray-servers", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _raylet(socket_name: str) -> int | None:
    """The process of this machine that listens at the socket; None where there is no /proc."""
    for pid, words in processes_of("raylet"):
        if f"--raylet_socket_name={socket_name}" in words:
            return pid
    return None


def is_away(address: str, seconds: float, over: threading.Event) -> bool:
    """Whether nothing answers at `host:port` for some seconds; False where `over` is set meanwhile."""
    host, _, port = address.rpartition(":")
    first = time.monotonic()
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS_TO_CONNECT).close()
            return False
        except OSError:
            if time.monotonic() - first >= seconds:
                return True
        if over.wait(_SECONDS_BETWEEN_LOOKS):
            return False
