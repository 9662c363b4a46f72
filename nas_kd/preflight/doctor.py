"""`nas-kd doctor`: what of this machine, and of the database and cluster of a campaign, would get in the way."""

from __future__ import annotations

import errno
import fcntl
import importlib.metadata
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import av.codec
import torch
from packaging.requirements import Requirement

from nas_kd.config import CampaignConfig
from nas_kd.files import existing_parent
from nas_kd.trials import NodeView, check_cluster, check_database, masked, view_nodes

State = Literal["ok", "warn", "fail"]

DECODERS = ("h264", "hevc", "vp9", "av1", "mpeg4", "mjpeg")
LOW_DISK, LEAST_DISK = 10 * 10**9, 10**9  # bytes
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)  # of `flock`, on disks that have none
LOW_SHARED_MEMORY = 10**9
LOW_MEMORY = 4 * 10**9  # a driver and a worker
CLOCK_S = 2.0  # of two machines
_OPTIONAL = {
    "onnx": "students cannot be exported to ONNX",
    "transformers": "teachers of Hugging Face cannot be used",
    "postgresql": "PostgreSQL cannot hold the ledger",
}


@dataclass(frozen=True)
class Finding:
    """One line of the doctor.

    Attributes:
        name: what was looked at.
        state: `ok`; `warn`, a campaign runs but may be slow or lack something; `fail`, it cannot run.
        text: what was found, and the way out where there is a fault.
    """

    name: str
    state: State
    text: str


def diagnose(config: CampaignConfig) -> Iterator[Finding]:
    """Look at everything, one thing after the other; a check that fails does not end the others.

    Args:
        config: of the campaign that is to run; of no campaign in particular, the defaults.
    """
    checks: list[tuple[str, Callable[[], list[Finding]]]] = [
        ("versions", _versions),
        ("cpu", lambda: _cpu(config)),
        ("gpu", lambda: _gpu(config)),
        ("memory", _memory),
        ("shared memory", _shared_memory),
        ("decoders", _decoders),
        ("disk", lambda: _disk(config)),
        ("database", lambda: _database(config)),
        ("cluster", lambda: _cluster(config)),
    ]
    for name, look in checks:
        try:
            yield from look()
        except Exception as error:  # whatever a driver of the machine raises
            yield Finding(name, "fail", masked(" ".join(str(error).split())) or type(error).__name__)


def _versions() -> list[Finding]:
    """Of what nas-kd needs, and of what it can use."""
    try:
        wanted = [Requirement(text) for text in importlib.metadata.requires("nas-kd") or ()]
    except importlib.metadata.PackageNotFoundError:
        return [
            Finding("versions", "warn", "nas-kd is not installed, so its requirements are unknown; pip install -e .")
        ]
    found, wrong = [], []
    lacking: dict[str, list[str]] = {}
    for each in wanted:
        extra = next(
            (name for name in _OPTIONAL if each.marker is not None and each.marker.evaluate({"extra": name})), ""
        )
        if each.marker is not None and not each.marker.evaluate() and not extra:
            continue
        try:
            version = importlib.metadata.version(each.name)
        except importlib.metadata.PackageNotFoundError:
            version = ""
        if version and each.specifier.contains(version, prereleases=True):
            found.append(f"{each.name} {version}")
        elif extra and not version:
            lacking.setdefault(extra, []).append(each.name)
        else:
            wrong.append(f"{each.name} {version or 'is missing'}, but {each.specifier} is needed")
    named = [text for text in found if text.split()[0] in ("torch", "ray", "optuna")]
    findings = [Finding("versions", "ok", f"{', '.join(named)}; {len(found)} packages fit")]
    if wrong:
        findings = [Finding("versions", "fail", f"{'; '.join(wrong)}; pip install -U nas-kd")]
    for extra, names in lacking.items():
        text = f"{', '.join(names)} not installed, so {_OPTIONAL[extra]}; pip install 'nas-kd[{extra}]'"
        findings.append(Finding(extra, "ok" if extra == "postgresql" else "warn", text))
    return findings


def _cpu(config: CampaignConfig) -> list[Finding]:
    cores, usable = os.cpu_count() or 1, len(os.sched_getaffinity(0))
    quota = _cpu_quota()
    if quota is not None and quota < usable:
        text = (
            f"{usable} cores are seen, but this container may use {quota:g}: trials would share them; set "
            f"resources.max_concurrent to {max(int(quota / config.resources.cpus_per_trial), 1)}"
        )
        return [Finding("cpu", "warn", text)]
    busy = os.getloadavg()[0]
    if busy > usable:
        return [Finding("cpu", "warn", f"{usable} of {cores} cores, but {busy:.0f} processes want to run already")]
    return [Finding("cpu", "ok", f"{usable} of {cores} cores")]


def _cpu_quota() -> float | None:
    """Cores that the container may use; None without a limit."""
    path = Path("/sys/fs/cgroup/cpu.max")
    if not path.is_file():
        return None
    most, period = path.read_text().split()
    return None if most == "max" else int(most) / int(period)


def _gpu(config: CampaignConfig) -> list[Finding]:
    count, wanted, share = torch.cuda.device_count(), config.resources.use_gpus, config.resources.gpus_per_trial
    if count:
        names = []
        for index in range(count):
            free, total = torch.cuda.mem_get_info(index)
            names.append(f"{torch.cuda.get_device_name(index)} ({free / 1e9:.0f} of {total / 1e9:.0f} GB free)")
        torch.zeros(8, device="cuda").sum().item()
        hint = "" if wanted else "; trials use none as long as resources.gpus_per_trial is 0"
        return [Finding("gpu", "ok" if wanted else "warn", f"{', '.join(names)}{hint}")]
    if shutil.which("nvidia-smi") and torch.version.cuda is None:
        text = f"there is a driver of NVIDIA, but torch {torch.__version__} is a CPU build; install one for CUDA"
        return [Finding("gpu", "fail" if wanted else "warn", text)]
    if wanted and config.resources.address is None:
        return [Finding("gpu", "fail", f"none, but resources.gpus_per_trial is {share}; set it to 0")]
    where = "none here" if wanted else "none; trials run on CPU cores"
    return [Finding("gpu", "ok", where)]


def _memory() -> list[Finding]:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and limit.read_text().strip() != "max":
        total = min(total, int(limit.read_text()))
    state: State = "ok" if total >= LOW_MEMORY else "warn"
    hint = "" if state == "ok" else "; take small batches and resources.max_concurrent: 1"
    return [Finding("memory", state, f"{total / 1e9:.1f} GB{hint}")]


def _shared_memory() -> list[Finding]:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return [Finding("shared memory", "warn", "/dev/shm is missing: Ray is slower without it")]
    total = shutil.disk_usage(folder).total
    if total >= LOW_SHARED_MEMORY:
        return [Finding("shared memory", "ok", f"{total / 1e9:.1f} GB at /dev/shm")]
    text = (
        f"{total / 1e6:.0f} MB at /dev/shm: Ray is slower, and data.workers may die of it; start the container with "
        "--shm-size=2g"
    )
    return [Finding("shared memory", "warn", text)]


def _decoders() -> list[Finding]:
    missing = []
    for name in DECODERS:
        try:
            av.codec.Codec(name, "r")
        except ValueError:
            missing.append(name)
    if missing:
        text = f"this PyAV cannot decode {', '.join(missing)}; pip install -U av, or convert such videos"
        return [Finding("decoders", "warn", text)]
    return [Finding("decoders", "ok", f"PyAV {av.__version__} decodes {', '.join(DECODERS)}")]


def _disk(config: CampaignConfig) -> list[Finding]:
    """The folders that a campaign writes to: room, locks, clock."""
    folders = {"runs": config.runs, "temporary files": Path(tempfile.gettempdir())}
    cache = getattr(config.data, "cache_dir", None)
    if cache is not None:
        folders["cache"] = cache
    return [_folder(f"disk, {name}", path.expanduser().absolute()) for name, path in folders.items()]


def _folder(name: str, path: Path) -> Finding:
    there = existing_parent(path)
    free = shutil.disk_usage(there).free
    room = f"{free / 1e9:.1f} GB free at {path}"
    if free < LEAST_DISK:
        return Finding(name, "fail", f"{room}; free some, or give another folder")
    try:
        with tempfile.NamedTemporaryFile(dir=there, prefix=".nas-kd-doctor-") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            before = time.time()
            file.write(b"1")
            file.flush()
            os.fsync(file.fileno())
            off = abs(Path(file.name).stat().st_mtime - before)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        if error.errno not in _NO_LOCKS:
            return Finding(name, "fail", f"{there} cannot be written to ({reason}); give another folder")
        return Finding(name, "fail", f"{there} has no file locks ({reason}); give a folder on a disk that has")
    if free < LOW_DISK:
        return Finding(name, "warn", f"{room}, which may not be enough")
    if off > CLOCK_S:
        return Finding(name, "warn", f"{room}; its clock is {off:.0f} s from this machine's: set both by NTP")
    return Finding(name, "ok", room)


def _database(config: CampaignConfig) -> list[Finding]:
    if config.storage is None:
        return [Finding("database", "ok", "none; the ledger is a file in the run's folder")]
    check_database(config.storage)
    return [Finding("database", "ok", f"{masked(config.storage)} answers")]


def _cluster(config: CampaignConfig) -> list[Finding]:
    resources = config.resources
    if resources.address is None or resources.executor == "inline":
        return [Finding("cluster", "ok", "none; trials run on this machine")]
    check_cluster(resources)
    folders = [str(Path.cwd())]
    if resources.files_url is None:  # the folder of the runs is made by the first campaign; what is above it is shared
        folders.append(str(existing_parent(config.runs.absolute())))
    nodes = view_nodes(resources, *folders)
    return [Finding("cluster", "ok", f"{len(nodes)} machines at {resources.address}"), *map(_node, nodes)]


def _node(node: NodeView) -> Finding:
    name = f"machine {node.host}"
    if node.error:
        return Finding(name, "fail", node.error)
    if node.missing:
        text = f"has no {' and no '.join(node.missing)}; share it under the same path, or start from another folder"
        return Finding(name, "fail", text)
    here = importlib.metadata.version("nas-kd")
    if node.version != here:
        return Finding(name, "warn", f"has nas-kd {node.version}, this machine {here}; install the same version")
    if abs(node.clock_s) > CLOCK_S:
        return Finding(name, "warn", f"its clock is {node.clock_s:+.0f} s from this machine's: set both by NTP")
    return Finding(name, "ok", f"{node.cpus:g} CPUs, {node.gpus:g} GPUs, nas-kd {node.version}")
