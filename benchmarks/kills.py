"""Random faults during one campaign: `python benchmarks/kills.py [--kills N] [--kinds NAME ...] [--executor NAME]`.

A campaign of trials that do nothing for a tenth of a second is driven by a process of its own. Again and again, at a
random moment, something happens to it:

    driver    the driver is killed (SIGKILL)
    write     the driver is killed within a random write: after its bytes are written, before they are synced
    disk      a random write of the driver ends with "no space left on device"
    worker    a process in which a trial runs is killed (Ray)
    raylet    Ray's raylet is killed
    gcs       Ray's global control service is killed
    database  the database is locked by somebody else for `--locked` seconds (SQLite)

A driver that ended is started again with the same command, as a user would. Trials are proposed at random, from the
campaign's seed and their numbers alone, so the front must equal that of a campaign without faults. Counted are:

    lost       trials that were announced as ended, or are due, and have no record
    doubled    trials that were announced as ended more than once, or have two records in the ledger
    changed    records that are others than when they were first seen
    failed     trials that the faults left unfinished, with a record that says so
    left_over  processes of Ray, its session folders and checkpoints that remain

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from no_op_trials import METRIC, SPACE, no_op

from nas_kd.trials import Event, Ledger, Resources, TrialContext, TrialRecord, run_trials
from nas_kd.trials.dominance import front as front_of

KINDS = ("driver", "write", "disk", "worker", "raylet", "gcs", "database")
OF_RAY = ("worker", "raylet", "gcs")
MARK = "NAS_KD_KILLS"  # an environment variable, by which processes of a campaign are told from others
LONGEST_S = 180.0  # that a driver may take to notice a fault
SECONDS_OF_WORK = 0.1
ANNOUNCED, SESSION = "announced.log", ".ray_session"


def work(context: TrialContext) -> TrialRecord:
    """A trial with a checkpoint and two reports."""
    (context.directory / "checkpoint").write_text("half")
    for step in (1, 2):
        time.sleep(SECONDS_OF_WORK / 2)
        context.report(step / 2, "working")
    return no_op(context)


@dataclass(frozen=True)
class Campaign:
    """What every driver of the campaign runs.

    Attributes:
        run_dir: the run's folder.
        trials: how many there are to be.
        executor: `inline` or `ray`.
        storage: URL of a database; None for the journal file.
        seed: of the proposals.
    """

    run_dir: Path
    trials: int
    executor: str
    storage: str | None
    seed: int

    def ledger(self) -> Ledger:
        return Ledger.open(self.run_dir, metric=METRIC, config_hash="benchmark", storage=self.storage, name="kills")

    def drive(self) -> None:
        """Run it to its end."""

        def note(event: Event) -> None:
            if event.kind == "ended":
                with (self.run_dir / ANNOUNCED).open("a") as file:
                    file.write(f"{event.number}\n")

        workers = 1 if self.executor == "inline" else 2
        resources = Resources(executor=self.executor, max_concurrent=workers, max_failures=1000)  # type: ignore[arg-type]
        with self.ledger() as ledger:
            run_trials(
                work,
                ledger,
                SPACE,
                num_trials=self.trials,
                run_dir=self.run_dir,
                resources=resources,
                seed=self.seed,
                sampler="random",
                on_event=note,
            )

    def start(self, at_write: Callable[[], None] | None = None, after: int = 0) -> int:
        """Fork a driver; returns its process id.

        Args:
            at_write: what happens in its write of that number, before it is synced.
            after: number of that write, from 1.
        """
        child = os.fork()
        if child:
            return child
        status = 1
        try:
            os.setsid()
            log = os.open(self.run_dir.parent / "drivers.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            if at_write is not None:
                _fail_at_write(at_write, after)
            self.drive()
            status = 0
        except BaseException as error:
            print(f"driver ended: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(status)


def _fail_at_write(what: Callable[[], None], after: int) -> None:
    """Have something happen in a write: all that must last is synced."""
    left = after

    def replaced(sync: Callable[[int], None]) -> Callable[[int], None]:
        def call(descriptor: int) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                what()
            sync(descriptor)

        return call

    os.fsync = replaced(os.fsync)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _no_space() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


IN_WRITES: dict[str, Callable[[], None]] = {"write": _die, "disk": _no_space}


@dataclass
class Watch:
    """What is seen of the campaign from outside.

    Attributes:
        campaign: that is watched.
        first: number of a trial -> hash of its record when it was first seen.
        changed: trials whose record became another one.
        faults: kind -> how many there were.
        drivers: how many were started.
        hung: how many of them neither went on nor ended.
        sessions: folders of Ray that were seen.
        slowest_s: kind -> longest time from a fault until the driver ended, or three more trials had.
    """

    campaign: Campaign
    first: dict[int, str] = field(default_factory=dict)
    changed: set[int] = field(default_factory=set)
    faults: Counter[str] = field(default_factory=Counter)
    drivers: int = 0
    hung: int = 0
    sessions: set[Path] = field(default_factory=set)
    slowest_s: dict[str, float] = field(default_factory=dict)

    def look(self) -> None:
        """Compare records on disk with what they were."""
        for path in self.campaign.run_dir.glob("trials/[0-9]*/record.json"):
            found = hashlib.sha256(path.read_bytes()).hexdigest()
            if self.first.setdefault(int(path.parent.name), found) != found:
                self.changed.add(int(path.parent.name))
        note = self.campaign.run_dir / SESSION
        if note.is_file():
            self.sessions.update(map(Path, note.read_text().split()))

    def num_ended(self) -> int:
        return len(list(self.campaign.run_dir.glob("trials/[0-9]*/record.json")))


def marked(mark: str, name: str = "") -> dict[int, str]:
    """Process -> command line of those that have the mark in their environment, and a name in their command line."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes()
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if f"{MARK}={mark}".encode() in environment and name in command and int(folder.name) != os.getpid():
            found[int(folder.name)] = command[:200]
    return found


def ended(child: int, seconds: float) -> bool:
    """Whether the driver ends within some seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if os.waitpid(child, os.WNOHANG) != (0, 0):
            return True
        time.sleep(0.02)
    return False


def strike(kind: str, child: int, watch: Watch, mark: str, rng: random.Random, locked_s: float) -> bool:
    """Let the fault happen to a running driver; returns whether it did."""
    if kind == "driver":
        os.kill(child, signal.SIGKILL)
    elif kind in OF_RAY:
        name = {"worker": "ray::", "raylet": "raylet/raylet", "gcs": "gcs_server"}[kind]
        processes = marked(mark, name)
        if not processes:
            return False
        os.kill(rng.choice(sorted(processes)), signal.SIGKILL)
    elif kind == "database":
        assert watch.campaign.storage is not None
        database = sqlite3.connect(watch.campaign.storage.removeprefix("sqlite:///"), timeout=60, isolation_level=None)
        database.execute("BEGIN EXCLUSIVE")
        time.sleep(locked_s)
        database.execute("ROLLBACK")
        database.close()
    return True


def run(campaign: Campaign, kinds: list[str], kills: int, rng: random.Random, locked_s: float, mark: str) -> Watch:
    """Drive the campaign to its end, with faults as long as there are trials."""
    watch = Watch(campaign)
    while watch.num_ended() < campaign.trials:
        kind = rng.choice(kinds) if watch.faults.total() < kills else ""
        child = campaign.start(IN_WRITES.get(kind), rng.randint(1, 20))
        watch.drivers += 1
        if kind in IN_WRITES:
            watch.faults[kind] += 1
            _await_end(child, watch, LONGEST_S)
        else:
            _strike_until_end(child, kinds, kills, watch, mark, rng, locked_s)
        watch.look()
        print(f"{watch.faults.total()} faults, {watch.num_ended()} of {campaign.trials} trials ended", flush=True)
    # A driver that was killed at the very end may not have said all; as a user does, the same command is given again.
    os.waitpid(campaign.start(), 0)
    watch.look()
    return watch


def _strike_until_end(
    child: int, kinds: list[str], kills: int, watch: Watch, mark: str, rng: random.Random, locked_s: float
) -> None:
    """Let one fault after the other happen to a driver until it ends."""
    kinds = [kind for kind in kinds if kind not in IN_WRITES]
    while kinds and watch.faults.total() < kills:
        kind, before = rng.choice(kinds), watch.num_ended()
        # The next fault comes once the campaign has got on, so that trials last for all of them.
        room = 2 * (watch.campaign.trials - before) // (kills - watch.faults.total())
        due = before + rng.randint(0, max(room - 1, 0))
        while watch.num_ended() < due:
            watch.look()
            if ended(child, rng.random() * 2 * SECONDS_OF_WORK):
                return
        if ended(child, rng.random() * 2 * SECONDS_OF_WORK):
            return
        watch.look()
        if not strike(kind, child, watch, mark, rng, locked_s):
            continue
        watch.faults[kind] += 1
        clock, then = time.monotonic(), watch.num_ended()
        while not (is_over := ended(child, 0.2)) and watch.num_ended() < min(then + 3, watch.campaign.trials):
            if time.monotonic() - clock > LONGEST_S:
                break
        watch.slowest_s[kind] = max(watch.slowest_s.get(kind, 0.0), round(time.monotonic() - clock, 1))
        if is_over:
            return
    _await_end(child, watch, 10 * LONGEST_S)


def _await_end(child: int, watch: Watch, seconds: float) -> None:
    if not ended(child, seconds):  # counted, since it neither goes on nor ends
        os.kill(child, signal.SIGKILL)
        ended(child, 10.0)
        watch.hung += 1


def front(ledger: Ledger) -> list[tuple[float, ...]]:
    """Values of the trials on the front."""
    values = [ledger.ranking.values(record) for record in ledger.records() if record.state == "complete"]
    return sorted(values[i] for i in front_of(values, ledger.ranking.maximize))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--executor", choices=("inline", "ray"), default="ray")
    parser.add_argument("--storage", choices=("journal", "sqlite"), default="journal")
    parser.add_argument(
        "--kinds", nargs="+", choices=KINDS, help="Default: all that there are with executor and storage."
    )
    parser.add_argument("--locked", type=float, default=30.0, help="Seconds that a database is locked.")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    kinds = options.kinds or [
        kind
        for kind in KINDS
        if (options.executor == "ray" or kind not in OF_RAY) and (options.storage == "sqlite" or kind != "database")
    ]
    mark = os.environ[MARK] = f"{os.getpid()}-{time.time_ns()}"
    folder = Path(tempfile.mkdtemp(prefix="nas-kd-kills-"))
    try:
        storage = f"sqlite:///{folder}/study.db" if options.storage == "sqlite" else None
        campaign = Campaign(folder / "run", options.trials, options.executor, storage, options.seed)
        campaign.run_dir.mkdir()
        clock = time.monotonic()
        rng = random.Random(options.seed)
        watch = run(campaign, kinds, options.kills, rng, options.locked, mark)
        seconds = time.monotonic() - clock
        quiet = Campaign(folder / "quiet", options.trials, "inline", None, options.seed)
        quiet.run_dir.mkdir()
        os.waitpid(quiet.start(), 0)
        with campaign.ledger() as ledger, quiet.ledger() as without:
            numbers = Counter(record.number for record in ledger.records())
            errors = [str(record.error) for record in ledger.records() if record.state == "failed"]
            same = front(ledger) == front(without)
        announced = Counter(int(line) for line in (campaign.run_dir / ANNOUNCED).read_text().split())
        due = set(range(options.trials)) | set(announced)
        time.sleep(2.0)  # processes of Ray end a moment after their driver
        left = [
            *(f"process {number} {words}" for number, words in marked(mark).items()),
            *(str(path) for path in watch.sessions if path.exists()),
            *(str(path) for path in campaign.run_dir.glob("trials/*/checkpoint*")),
            *(str(path) for path in (campaign.run_dir / ".tune", campaign.run_dir / SESSION) if path.exists()),
        ]
        found = {
            "kills": watch.faults.total(),
            "of_each_kind": dict(watch.faults),
            "trials": options.trials,
            "lost": len(due - numbers.keys()),
            "doubled": sum(n > 1 for n in numbers.values()) + sum(n > 1 for n in announced.values()),
            "changed": len(watch.changed),
            "failed": len(errors),
            "errors": errors[:3],
            "left_over": len(left),
            "left": left[:5],
            "front_as_without_faults": same,
            "drivers": watch.drivers,
            "hung": watch.hung,
            "slowest_s": watch.slowest_s,
            "seconds": round(seconds, 1),
            "executor": options.executor,
            "storage": options.storage,
        }
        print(json.dumps(found))
    finally:
        for number in marked(mark):
            os.kill(number, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
