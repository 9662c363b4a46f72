"""Random faults during one campaign: `python benchmarks/kills.py [--kills N] [--kinds NAME ...] [--executor NAME]`.

A campaign of trials that do nothing for a tenth of a second is driven by a process of its own. Again and again, at a
random moment, something happens to it:

    driver    the driver is killed (SIGKILL)
    write     the driver is killed within a random write: after its bytes are written, before they are synced
    disk      a random write of the driver ends with "no space left on device"
    full      the disk of the run's folder is full for a second (a disk in memory, which only root may mount)
    worker    a process in which a trial runs is killed (Ray)
    raylet    Ray's raylet is killed (a session of the driver's own)
    gcs       Ray's global control service is killed (likewise)
    node      all processes of a machine of the cluster are killed, and another machine comes (a cluster of Ray)
    head      all processes of all machines of the cluster are killed, and a new cluster comes (likewise)
    database  the database does not answer for `--away` seconds: PostgreSQL is stopped, SQLite is locked

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
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from kill_faults import (
    IN_WRITES,
    MARK,
    Database,
    Machines,
    PostgresDatabase,
    SmallDisk,
    SqliteDatabase,
    fail_at_write,
    kill,
    marked,
)
from no_op_trials import METRIC, SPACE, no_op

from nas_kd.trials import Event, Ledger, Resources, TrialContext, TrialRecord, run_trials
from nas_kd.trials.dominance import front as front_of

EXECUTORS = ("inline", "ray", "cluster")
STORAGES = ("journal", "sqlite", "postgresql")
TRIAL = "ray::ResourceTrainable"  # the title of a process in which a trial runs
OF_RAY = {"worker": "ray::", "raylet": "raylet/raylet", "gcs": "gcs_server"}  # kind -> in the command line
LONGEST_S = 180.0  # that a driver may take to notice a fault
SECONDS_OF_WORK = 0.1
SECONDS_TO_LEAVE = 2.0  # of Ray's processes, after their driver
SESSION = ".ray_session"


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
        seed: of the proposals.
        mark: of the drivers' processes.
        logs: folder for what drivers say.
        on_ray: whether trials run on Ray.
        address: of a cluster; None where Ray is the driver's own.
        storage: URL of a database; None for the journal file.
    """

    run_dir: Path
    trials: int
    seed: int
    mark: str
    logs: Path
    on_ray: bool = False
    address: str | None = None
    storage: str | None = None

    @property
    def announced(self) -> Path:
        """Numbers of trials in the order in which they were announced as ended."""
        return self.logs / f"{self.run_dir.name}-announced.log"

    def ledger(self) -> Ledger:
        return Ledger.open(self.run_dir, metric=METRIC, config_hash="benchmark", storage=self.storage, name="kills")

    def drive(self) -> None:
        """Run it to its end."""

        def note(event: Event) -> None:
            if event.kind == "ended":
                with self.announced.open("a") as file:
                    file.write(f"{event.number}\n")

        resources = Resources(
            executor="ray" if self.on_ray else "inline",
            address=self.address,
            max_concurrent=2 if self.on_ray else 1,
            max_failures=1000,
        )
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

    def start(self, kind: str = "", number: int = 0) -> int:
        """Fork a driver; returns its process id.

        Args:
            kind: of a fault in one of its writes; another or none where nothing happens there.
            number: of that write, from 1.
        """
        child = os.fork()
        if child:
            return child
        status = 1
        try:
            os.setsid()
            os.environ[MARK] = self.mark
            log = os.open(self.logs / "drivers.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            if kind in IN_WRITES:
                fail_at_write(IN_WRITES[kind], number)
            self.drive()
            status = 0
        except BaseException as error:
            print(f"driver ended: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(status)


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


def ended(child: int, seconds: float) -> bool:
    """Whether the driver ends within some seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if os.waitpid(child, os.WNOHANG) != (0, 0):
            return True
        time.sleep(0.02)
    return False


@dataclass
class Faults:
    """What happens to the campaign.

    Attributes:
        kinds: that may happen.
        kills: how many there are to be.
        rng: chooses them and their moments.
        mark: of the campaign's processes.
        away_s: how long a database does not answer.
        database: of the ledger, where it is one.
        machines: of the cluster, where there is one.
        disk: of the run's folder, where it may be full.
    """

    kinds: list[str]
    kills: int
    rng: random.Random
    mark: str
    away_s: float
    database: Database | None
    machines: Machines | None
    disk: SmallDisk | None

    def strike(self, kind: str, child: int) -> bool:
        """Let a fault happen to a running driver; returns whether it did."""
        if kind == "driver":
            os.kill(child, signal.SIGKILL)
        elif kind in OF_RAY:
            processes = marked(self.mark, OF_RAY[kind])
            if not processes:
                return False
            kill([self.rng.choice(sorted(processes))])
        elif kind == "database":
            assert self.database is not None
            self.database.stop_for(self.away_s)
        elif kind == "full":
            assert self.disk is not None
            self.disk.fill()
        elif kind == "node":
            assert self.machines is not None
            self.machines.kill_node(self.rng)
        else:
            assert kind == "head"
            assert self.machines is not None
            self.machines.kill_all()
        return True

    def left(self, watch: Watch) -> int:
        """How many there are still to be."""
        return self.kills - watch.faults.total()


def run(campaign: Campaign, faults: Faults) -> Watch:
    """Drive the campaign to its end, with faults as long as there are trials."""
    watch = Watch(campaign)
    while watch.num_ended() < campaign.trials:
        kind = faults.rng.choice(faults.kinds) if faults.left(watch) > 0 else ""
        child = campaign.start(kind, faults.rng.randint(1, 20))
        watch.drivers += 1
        if kind in IN_WRITES:
            watch.faults[kind] += 1
            _await_end(child, watch)
        else:
            _strike_until_end(child, faults, watch)
        watch.look()
        print(f"{watch.faults.total()} faults, {watch.num_ended()} of {campaign.trials} trials ended", flush=True)
    # A driver that was killed at the very end may not have said all; as a user does, the same command is given again.
    os.waitpid(campaign.start(), 0)
    watch.look()
    return watch


def _strike_until_end(child: int, faults: Faults, watch: Watch) -> None:
    """Let one fault after the other happen to a driver until it ends."""
    kinds = [kind for kind in faults.kinds if kind not in IN_WRITES]
    trials, rng = watch.campaign.trials, faults.rng
    while kinds and faults.left(watch) > 0:
        kind, before = rng.choice(kinds), watch.num_ended()
        # The next fault comes once the campaign has got on, so that trials last for all of them.
        left = faults.left(watch)
        room = 2 * (trials - before) // left
        due = min(before + rng.randint(0, max(room - 1, 0)), max(trials - 3 * left, before))
        while watch.num_ended() < due:
            watch.look()
            if ended(child, rng.random() * 2 * SECONDS_OF_WORK):
                return
        if ended(child, rng.random() * 2 * SECONDS_OF_WORK):
            return
        watch.look()
        clock, then = time.monotonic(), watch.num_ended()
        if not faults.strike(kind, child):
            continue
        watch.faults[kind] += 1
        while not (is_over := ended(child, 0.2)) and watch.num_ended() < min(then + 3, trials):
            if time.monotonic() - clock > LONGEST_S:
                break
        watch.slowest_s[kind] = max(watch.slowest_s.get(kind, 0.0), round(time.monotonic() - clock, 1))
        if is_over:
            return
        if time.monotonic() - clock > LONGEST_S:
            break  # it may hang
    _await_end(child, watch)


def _await_end(child: int, watch: Watch) -> None:
    """Wait for a driver; one that neither goes on nor ends is counted and killed."""
    num_ended = -1
    while num_ended != (num_ended := watch.num_ended()):
        if ended(child, LONGEST_S):
            return
    os.kill(child, signal.SIGKILL)
    ended(child, 10.0)
    watch.hung += 1


def front(ledger: Ledger) -> list[tuple[float, ...]]:
    """Values of the trials on the front."""
    values = [ledger.ranking.values(record) for record in ledger.records() if record.state == "complete"]
    return sorted(values[i] for i in front_of(values, ledger.ranking.maximize))


def left_over(watch: Watch, mark: str) -> list[str]:
    """What remains of the campaign's drivers: processes, folders of Ray, checkpoints."""
    run_dir = watch.campaign.run_dir
    return [
        *(f"process {number} {words}" for number, words in marked(f"{MARK}={mark}").items()),
        *(f"process {number} {words}" for number, words in marked(mark, TRIAL).items()),
        *(str(path) for path in watch.sessions if path.exists()),
        *(str(path) for path in run_dir.glob("trials/*/checkpoint*")),
        *(str(path) for path in (run_dir / ".tune", run_dir / SESSION) if path.exists()),
    ]


def found(watch: Watch, quiet: Campaign) -> dict[str, object]:
    """What came of a campaign, beside one without faults."""
    campaign = watch.campaign
    with campaign.ledger() as ledger, quiet.ledger() as without:
        numbers = Counter(record.number for record in ledger.records())
        errors = [str(record.error) for record in ledger.records() if record.state == "failed"]
        same = front(ledger) == front(without)
    announced = Counter(int(line) for line in campaign.announced.read_text().split())
    due = set(range(campaign.trials)) | set(announced)
    return {
        "kills": watch.faults.total(),
        "of_each_kind": dict(watch.faults),
        "trials": campaign.trials,
        "lost": len(due - numbers.keys()),
        "doubled": sum(n > 1 for n in numbers.values()) + sum(n > 1 for n in announced.values()),
        "changed": len(watch.changed),
        "failed": len(errors),
        "errors": errors[:3],
        "front_as_without_faults": same,
        "drivers": watch.drivers,
        "hung": watch.hung,
        "slowest_s": watch.slowest_s,
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--executor", choices=EXECUTORS, default="ray")
    parser.add_argument("--storage", choices=STORAGES, default="journal")
    parser.add_argument("--kinds", nargs="+", help="Default: all that there are with executor, storage and user.")
    parser.add_argument("--away", type=float, default=30.0, help="Seconds that a database does not answer.")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    options = parse()
    on_ray = options.executor != "inline"
    mark = f"{os.getpid()}-{time.time_ns()}"
    folder = Path(tempfile.mkdtemp(prefix="nas-kd-kills-"))
    kinds = ["driver", *(["worker"] if on_ray else [])]
    if not on_ray or options.storage == "journal":  # else the driver itself syncs nothing
        kinds += ["write", "disk"]
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.callback(lambda: kill(sorted(marked(f"{MARK}={mark}"))))
        disk = database = machines = None
        if os.geteuid() == 0:
            disk = SmallDisk(folder / "disk")
            stack.callback(disk.close)
            kinds += ["full"]
        if options.storage != "journal":
            database = SqliteDatabase(folder) if options.storage == "sqlite" else PostgresDatabase()
            stack.callback(database.close)
            kinds += ["database"]
        if options.executor == "cluster":
            machines = Machines(folder / "ray", mark)
            stack.callback(machines.close)
            kinds += ["node", "head"]
        elif on_ray:
            kinds += ["raylet", "gcs"]
        if unknown := set(options.kinds or ()) - set(kinds):
            raise SystemExit(f"there is no {', '.join(sorted(unknown))} here; choose from {', '.join(kinds)}")
        campaign = Campaign(
            (folder if disk is None else disk.folder) / "run",
            options.trials,
            options.seed,
            mark,
            folder,
            on_ray=on_ray,
            address=None if machines is None else machines.address,
            storage=None if database is None else database.url,
        )
        campaign.run_dir.mkdir()
        clock = time.monotonic()
        rng = random.Random(options.seed)
        faults = Faults(options.kinds or kinds, options.kills, rng, mark, options.away, database, machines, disk)
        watch = run(campaign, faults)
        seconds = time.monotonic() - clock
        quiet = Campaign(folder / "quiet", options.trials, options.seed, mark, folder)
        quiet.run_dir.mkdir()
        os.waitpid(quiet.start(), 0)
        result = found(watch, quiet)
        time.sleep(SECONDS_TO_LEAVE)
        left = left_over(watch, mark)
        if left:
            time.sleep(30.0)  # what is still there then stays
        result |= {
            "left_over": len(left),
            "left_over_after_30_s": len(left_over(watch, mark)) if left else 0,
            "left": left[:5],
            "seconds": round(seconds, 1),
            "executor": options.executor,
            "storage": options.storage,
        }
        print(json.dumps(result))


if __name__ == "__main__":
    main()
