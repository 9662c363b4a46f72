"""The address of a Ray cluster, looked at before anything waits for it: Ray itself tries for minutes."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path

from nas_kd.trials.processes import runs

_TIMEOUT_S = 5.0
_FOUND_BY_RAY = ("auto", "local")
_NO_CLIENT = "; a campaign starts on a machine of the cluster, and not over a Ray client"
_AUTH_TOKEN = "~/.ray/auth_token"
_ADDRESS = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:]+)\]|(?P<host>[^\s:/@]+)):(?P<port>\d{1,5})")


def check_address(address: str) -> None:
    """Raise where nothing answers at an address of a cluster, within five seconds, or this machine is no part of it.

    Args:
        address: `host:port`; `auto` is left to Ray, which looks on this machine.

    Raises:
        ValueError: It is no address, nothing answers there, or Ray does not run on this machine.
    """
    if address in _FOUND_BY_RAY:
        return
    match = _ADDRESS.fullmatch(address)
    if match is None or not 0 < int(match["port"]) < 65536:
        raise ValueError(
            f"resources.address must be `auto` or host:port, as `ray start` prints it, but is {address!r}"
            f"{_NO_CLIENT if address.startswith('ray://') else ''}"
        )
    try:
        socket.create_connection((match["v6"] or match["host"], int(match["port"])), timeout=_TIMEOUT_S).close()
    except OSError as error:
        reason = "no answer in time" if isinstance(error, TimeoutError) else (error.strerror or str(error)).lower()
        raise ValueError(
            f"resources.address: no cluster answers at {address} ({reason}); start it with `ray start --head`, see to "
            "the firewall, or drop the address to run on this machine"
        ) from error
    if not runs("raylet"):  # Ray would look for it for a minute, and not say so
        raise ValueError(
            f"resources.address: this machine is no part of the cluster at {address}; run `ray start --address "
            f"{address}` here, with `--num-cpus 0` where it is to run no trial, or start on a machine of the cluster"
        )


@dataclass(frozen=True)
class NodeView:
    """What a machine of a cluster says of itself.

    Attributes:
        host: its name.
        cpus: that Ray counts there.
        gpus: likewise.
        version: of nas-kd there.
        missing: those of the asked files and folders that it has not.
        clock_s: how far its clock is ahead of this machine's, in seconds.
        error: why it cannot run trials; empty where it can.
    """

    host: str
    cpus: float
    gpus: float
    version: str = ""
    missing: tuple[str, ...] = ()
    clock_s: float = 0.0
    error: str = ""


def has_auth_token() -> bool:
    """Whether Ray has a token to show to a cluster, in the environment or in its own file."""
    return (
        "RAY_AUTH_TOKEN" in os.environ
        or Path(os.environ.get("RAY_AUTH_TOKEN_PATH", _AUTH_TOKEN)).expanduser().is_file()
    )
