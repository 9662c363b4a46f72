"""One contract for both executors, and the kills that a campaign must survive."""

from __future__ import annotations

import collections
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import toy_trials
from toy_trials import SPACE, executions, make_record, open_ledger

from nas_kd.trials import (
    ChoiceKnob,
    Event,
    Executor,
    Ledger,
    Resources,
    RungScheduler,
    Summary,
    TrialContext,
    TrialFn,
    check_cluster,
    check_run_folder,
    processes,
    run_trials,
    runner,
)
from nas_kd.trials.cluster import NodeView
from nas_kd.trials.files import FileLock
from nas_kd.trials.leftovers import new_session_folder, scratch_folder
from nas_kd.trials.packing import GpuPacking
from nas_kd.trials.storage import DamagedJournalError

# Ray warns of its own deprecated names when it is imported and started, which is not ours to mend.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
EXECUTORS = ["inline", pytest.param("ray", marks=pytest.mark.ray)]


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    """One Ray session for the module; the runner uses the one that is there."""
    from nas_kd.trials.runner import set_ray_environment

    set_ray_environment(Resources())
    import ray

    ray.init("local", num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(params=EXECUTORS)
def executor(request: pytest.FixtureRequest) -> Executor:
    if request.param == "ray":
        request.getfixturevalue("ray_session")
        return "ray"
    return "inline"


def campaign(run_dir: Path, trial_fn: TrialFn, num_trials: int, executor: Executor, **options: Any) -> Summary:
    options = {"resources": Resources(executor=executor, max_concurrent=1), "sampler": "random", **options}
    with open_ledger(run_dir) as ledger:
        return run_trials(trial_fn, ledger, SPACE, num_trials=num_trials, run_dir=run_dir, **options)


def test_trials_that_fail_and_records_that_lie(tmp_path: Path, executor: Executor) -> None:
    events: list[Event] = []
    told_when_announced: list[bool] = []

    def observe(event: Event) -> None:
        events.append(event)
        if event.kind == "ended":
            numbers = [record.number for record in Ledger.load(tmp_path).records()]
            told_when_announced.append(event.number in numbers)

    summary = campaign(tmp_path, toy_trials.fail_or_lie, 8, executor, on_event=observe)
    assert (summary.num_complete, summary.num_failed, summary.num_trials) == (2, 6, 8)
    assert summary.failures.pop(1) == "ValueError: the second trial is unlucky"
    assert not summary.interrupted
    records = Ledger.load(tmp_path).records()
    assert [record.state for record in records] == ["complete", "failed", "complete", *["failed"] * 5]
    assert [summary.failures[number].split(": ", 1)[1].split(",")[0] for number in range(3, 8)] == [
        "a trial function must return a `TrialRecord`",
        "the record must be of trial 4",
        f"the record's knobs must be {dict(records[5].knobs)}".split(",")[0],
        "trial 6: a complete trial must carry the objective 'accuracy'",
        "the record's metric must be name='accuracy' maximize=True percent=()",
    ]
    assert "Traceback" in (records[1].error or "")
    assert "in fail_second" in (records[1].error or "")
    assert told_when_announced == [True] * 8

    # Checkpoints go, what is worth keeping stays, and the summary counts it.
    kept = sorted(path.name for path in (tmp_path / "trials" / "0000").iterdir())
    assert kept == [".lock", "record.json", "student.pt"]
    assert 0 < summary.bytes_on_disk < 100_000

    kinds = [event.kind for event in events if event.number == 0]
    assert kinds == ["started", "progress", "ended"]
    assert next(event.message for event in events if event.kind == "progress") == "half way [bold]there"
    assert (events[0].kind, events[-1].kind) == ("begun", "finished")
    assert [event.num_ended for event in events if event.kind == "ended"] == list(range(1, 9))

    # The same command again does nothing; more trials go on where it ended, with another executor too.
    again = campaign(tmp_path, toy_trials.fail_or_lie, 8, executor)
    assert (again.num_complete, again.num_failed) == (2, 6)
    more = campaign(tmp_path, toy_trials.fail_second, 9, "inline")
    assert more.num_trials == 9
    assert executions(tmp_path) == [(0, "run"), (2, "run"), (8, "run")]


def test_stopped_is_not_complete(tmp_path: Path, executor: Executor) -> None:
    scheduler = RungScheduler(rungs=(2,), reduction_factor=3)
    summary = campaign(tmp_path, toy_trials.climb, 4, executor, scheduler=scheduler)
    steps = collections.Counter(number for number, _ in executions(tmp_path))
    # Trial 1 is dominated by one of two, more than a third; so are the others. None trains past its rung.
    assert steps == {0: 4, 1: 2, 2: 2, 3: 2}
    assert (summary.num_complete, summary.num_stopped) == (1, 3)
    record = Ledger.load(tmp_path).records()[1]
    assert record.state == "stopped"
    assert record.diagnostics == {"stopped/step": 2.0, "stopped/accuracy": 0.25, "stopped/flops": 2000.0}
    assert record.metrics == {}
    with open_ledger(tmp_path) as ledger:
        view = ledger._proposals.view(SPACE, ledger.ranking)
        assert [trial.values is None for trial in view.get_trials()] == [False, True, True, True]


def test_seeds_are_the_trials_own_and_repeatable(tmp_path: Path) -> None:
    for name in ("a", "b"):
        campaign(tmp_path / name, toy_trials.succeed, 2, "inline", seed=9)
    first, second = (Ledger.load(tmp_path / name).records() for name in ("a", "b"))
    assert [(record.seed, record.knobs) for record in first] == [(record.seed, record.knobs) for record in second]
    assert first[0].seed != first[1].seed


def test_queued_trials_keep_their_seed_and_an_untold_record_is_told_without_running(
    tmp_path: Path, executor: Executor
) -> None:
    with open_ledger(tmp_path) as ledger:
        ledger.enqueue([{"op": "conv"}, {"op": "delta"}, {"op": "shift"}], SPACE, seed=7)
        told, running = ledger.ask(SPACE), ledger.ask(SPACE)  # the third is still in the queue
    directory = tmp_path / "trials" / f"{told.number:04d}"
    make_record(told.number, told.knobs).write(directory / "record.json")
    (directory / "checkpoint.pt").touch()
    kinds: list[tuple[str, int | None]] = []
    campaign(
        tmp_path,
        toy_trials.succeed,
        5,
        executor,
        resources=Resources(executor=executor),  # on Ray as many at a time as fit
        on_event=lambda event: kinds.append((event.kind, event.number)),
    )
    assert sorted(executions(tmp_path)) == [(running.number, "run"), (2, "run"), (3, "run"), (4, "run")]
    assert [kind for kind in kinds if kind[0] in ("continued", "started", "ended") and kind[1] in (0, 1)] == [
        ("ended", 0),
        ("continued", 1),
        ("ended", 1),
    ]
    assert not (directory / "checkpoint.pt").exists()
    records = {record.number: record for record in Ledger.load(tmp_path).records()}
    assert records[1].knobs == running.knobs
    assert records[2].knobs["op"] == "shift"
    assert [records[number].seed for number in (1, 2)] == [7, 7]
    assert len({records[number].seed for number in (2, 3, 4)}) == 3  # those of the sampler have their own


def test_error_of_the_driver_itself_comes_through_as_it_is(tmp_path: Path, executor: Executor) -> None:
    with open_ledger(tmp_path) as ledger:
        ledger.enqueue([{"op": "delta"}], SPACE)
        narrower = {**SPACE, "op": ChoiceKnob(values=("conv",))}
        with pytest.raises(ValueError, match="knob 'op' cannot be 'delta'"):
            run_trials(
                toy_trials.succeed,
                ledger,
                narrower,
                num_trials=1,
                run_dir=tmp_path,
                resources=Resources(executor=executor),
            )


@pytest.mark.ray
def test_dying_worker_is_retried_under_its_number_and_then_given_up(tmp_path: Path, ray_session: None) -> None:
    events: list[Event] = []
    lock = threading.Lock()  # as a terminal display holds one: what observes need not be picklable

    def observe(event: Event) -> None:
        with lock:
            events.append(event)

    summary = campaign(tmp_path, toy_trials.die_once, 4, "ray", on_event=observe)
    assert (summary.num_complete, summary.num_failed) == (3, 1)
    assert summary.failures[2].startswith("trial 2 was started 2 times and could not be finished: its process died")
    assert sorted(executions(tmp_path)) == [
        (0, "run"),
        (1, "resumed"),
        (1, "run"),
        (2, "resumed"),
        (2, "run"),
        (3, "run"),
    ]
    assert [event.number for event in events if event.kind == "retried"] == [1, 2]


@pytest.mark.ray
def test_gpus_are_packed_by_measured_memory_and_shortage_is_no_failure(tmp_path: Path, ray_session: None) -> None:
    events: list[Event] = []
    resources = Resources(cpus_per_trial=0.5, gpus_per_trial="auto", max_failures=0)
    summary = campaign(tmp_path, toy_trials.share_a_gpu, 6, "ray", resources=resources, on_event=events.append)
    assert (summary.num_complete, summary.num_failed) == (6, 0)
    # Each of the first two has one of the two simulated GPUs. They took 35 of 80 GB: two share one from then on.
    assert sorted(executions(tmp_path)[:2]) == [(0, "1"), (1, "1")]
    assert sorted(executions(tmp_path)[2:]) == [(2, "0.5"), (3, "0.5"), (3, "1"), (4, "0.5"), (5, "0.5")]
    records = Ledger.load(tmp_path).records()
    assert [record.diagnostics["at_once"] for record in records] == [1, 1, 2, 1, 2, 2]
    assert [record.diagnostics["gpu/share"] for record in records] == [1, 1, 0.5, 1, 0.5, 0.5]
    # Trial 3 ran again, alone, from its checkpoint, and its record says so.
    retried = records[3]
    assert retried.diagnostics["from_checkpoint"] == 1
    assert retried.diagnostics["gpu/out_of_memory_bytes"] == 30e9
    assert retried.diagnostics["gpu/out_of_memory_share"] == 0.5
    assert retried.diagnostics["gpu/peak_bytes"] == 50e9
    assert retried.warnings == (
        "it ran out of GPU memory after 30.0 GB, given 0.5 of a GPU; it was run again with a GPU of its own",
    )
    kinds = [event.kind for event in events if event.number == 3]
    assert kinds == ["started", "postponed", "continued", "ended"]
    # The next run of the campaign begins with what is known: 50 of 80 GB, one on each.
    with open_ledger(tmp_path) as ledger:
        packing = GpuPacking("auto", ledger.records())
    assert packing.least == 1


class _TuneTrial:
    """Of a trial of Tune what says how often it may be started again."""

    def __init__(self) -> None:
        self.trial_id, self.max_failures = "7", -1
        self.run_metadata = types.SimpleNamespace(num_failures=0)

    def fail(self) -> bool:
        """As Tune counts: whether the trial is started again."""
        self.run_metadata.num_failures += 1
        return self.max_failures < 0 or self.run_metadata.num_failures <= self.max_failures


@pytest.mark.ray
def test_starts_on_a_dead_machine_are_no_failures_of_the_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.exceptions import RayActorError, RayTaskError

    from nas_kd.trials import searcher

    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(searcher, "time", types.SimpleNamespace(monotonic=lambda: now, sleep=sleep))
    restarts, trial = searcher.Restarts(max_failures=1), _TuneTrial()
    died: Any = RayActorError()

    def start() -> None:
        restarts.on_trial_start(0, [], trial)  # type: ignore[arg-type]

    def fail(error: Any) -> bool | None:
        """Whether it died while it ran; None where it is not started again."""
        return restarts.after_death(trial, error) if trial.fail() else None  # type: ignore[arg-type]

    start()
    assert fail(died) is True  # its machine dies
    assert [fail(died) for _ in range(100)] == [False] * 100  # Ray does not know yet
    assert now == 100  # a second between two starts
    start()
    assert not restarts.is_waiting("7")
    assert fail(died) is None  # the second death while it ran: it had one restart

    # A machine never comes: two minutes after the first start that failed, it ends.
    restarts, trial, now = searcher.Restarts(max_failures=1), _TuneTrial(), 0.0
    num_starts = 1
    while fail(died) is not None:
        num_starts += 1
    assert restarts.is_waiting("7")
    assert num_starts == 122

    # A start that raises is tried for 15 seconds, on other machines where there are some.
    restarts, trial, now = searcher.Restarts(max_failures=5), _TuneTrial(), 0.0
    error: Any = RayTaskError.__new__(RayTaskError)
    assert [fail(error) for _ in range(17)] == [False] * 16 + [None]


@pytest.mark.ray
def test_why_no_process_could_be_started_is_told(
    tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nas_kd.trials import searcher

    monkeypatch.setattr(searcher, "_SECONDS_TO_PREPARE", 0.0)
    summary = campaign(tmp_path, toy_trials.OnlyHere(), 1, "ray")
    assert summary.failures == {
        0: "trial 0 could not go on: no process could be started for it (ModuleNotFoundError: No module named "
        "'of_the_driver'); look at the machines with `ray status`"
    }


_HOLD_BOTH_CORES = """
import sys, ray
ray.init(sys.argv[1], log_to_driver=False, logging_level="ERROR")
groups = [ray.util.placement_group([{"CPU": 1}], lifetime=lifetime) for lifetime in (None, "detached")]
ray.get([group.ready() for group in groups])
print(ray.get_runtime_context().get_job_id(), *(group.id.hex() for group in groups), flush=True)
sys.stdin.read()
"""


@pytest.mark.ray
def test_a_campaign_without_room_says_so_and_takes_what_an_ended_driver_held(
    tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray
    from ray.util.placement_group import PlacementGroup

    from nas_kd.trials import places, ray_executor

    # Another driver holds both cores, one of them by a group that may outlive it.
    holder = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _HOLD_BOTH_CORES, ray.get_runtime_context().gcs_address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    job, bound, detached = holder.stdout.readline().split()
    events: list[Event] = []

    def observe(event: Event) -> None:
        events.append(event)
        if event.kind == "noted":
            monkeypatch.setattr(places, "ended_jobs", lambda: {job})

    monkeypatch.setattr(places, "_SECONDS_BETWEEN_LOOKS", 0.3)
    monkeypatch.setattr(places, "_SECONDS_WITHOUT_TRIAL", 0.6)
    monkeypatch.setattr(ray_executor, "_TRIALS_OF_A_ROUND", 1)
    summary = campaign(tmp_path, toy_trials.succeed, 2, "ray", on_event=observe)
    groups = ray.util.placement_group_table()
    ray.util.remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(detached)))
    holder.communicate("end")
    assert (summary.num_complete, summary.num_failed) == (2, 0)
    assert [groups[group]["state"] for group in (bound, detached)] == ["REMOVED", "CREATED"]
    notes = [event.message for event in events if event.kind == "noted"]
    assert re.fullmatch(
        r"no trial has run for \d+ s: one asks for 1 CPU, and 0 of 2 CPU are free on 1 machine that answers; "
        "`ray status` shows what holds them, and the campaign goes on once there is room",
        notes[0],
    )


@pytest.mark.ray
def test_a_campaign_whose_processes_take_long_to_start_says_so(
    tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nas_kd.trials import places

    monkeypatch.setattr(places, "_SECONDS_BETWEEN_LOOKS", 0.2)
    monkeypatch.setattr(places, "_SECONDS_WITHOUT_TRIAL", 0.4)
    notes: list[str] = []

    def observe(event: Event) -> None:
        if event.kind == "noted":
            notes.append(event.message)

    campaign(tmp_path, toy_trials.SlowToLoad(), 1, "ray", on_event=observe)
    sentence = r"no trial has run for \d+ s: the process of 1 is starting, which takes minutes on a busy machine"
    assert re.fullmatch(sentence, notes[0])


@pytest.mark.ray
def test_a_trial_whose_process_dies_before_it_runs_there_is_given_again(tmp_path: Path) -> None:
    from nas_kd.trials.driver import Driver
    from nas_kd.trials.packing import GpuPacking
    from nas_kd.trials.places import Places
    from nas_kd.trials.searcher import LedgerScheduler, LedgerSearcher, Restarts

    events: list[Event] = []
    with open_ledger(tmp_path) as ledger:
        driver = Driver(ledger, SPACE, num_trials=1, run_dir=tmp_path, seed=0, on_event=events.append)
        restarts = Restarts(max_failures=0)
        searcher = LedgerSearcher(driver, places=Places(1, 0, GpuPacking(0.0)), restarts=restarts, num_trials=2)
        scheduler = LedgerScheduler(driver, searcher, restarts)
        given = searcher.suggest("7")["assignment"]
        # What Tune does where it gives a trial the process of an earlier one, and that process is dead.
        trial: Any = types.SimpleNamespace(
            trial_id="7",
            status="PENDING",
            PENDING="PENDING",
            pickled_error_file=None,
            should_recover=lambda: True,
        )
        scheduler.on_trial_error(None, trial)  # type: ignore[arg-type]
        searcher.on_trial_complete("7", error=True)
        assert driver.has_work()
        assert searcher.suggest("8")["assignment"] == given
        searcher.on_trial_complete("8", {"record": make_record(0, given.knobs).to_json()})
        assert searcher.suggest("9") == "FINISHED"
        assert [record.state for record in ledger.records()] == ["complete"]
    assert [(event.kind, event.number) for event in events] == [
        ("started", 0), ("retried", 0), ("continued", 0), ("ended", 0),
    ]  # fmt: skip


@pytest.mark.ray
def test_worker_has_its_threads_before_torch_and_serves_many_trials(tmp_path: Path, ray_session: None) -> None:
    resources = Resources(cpus_per_trial=2)
    campaign(tmp_path / "ray", toy_trials.tell_environment, 4, "ray", resources=resources, seed=9)
    records = Ledger.load(tmp_path / "ray").records()
    environments = [dict(record.environment) for record in records]
    assert len({environment.pop("pid") for environment in environments}) == 1  # one process for all four
    expected = {"threads": "2", "policy": "PASSIVE", "torch": "False", "device": "cpu", "num_cpus": "2"}
    assert environments == [expected] * 4
    # Seeds and knobs are those of the campaign in one process.
    campaign(tmp_path / "inline", toy_trials.succeed, 4, "inline", seed=9)
    same = Ledger.load(tmp_path / "inline").records()
    assert [(record.seed, record.knobs) for record in records] == [(record.seed, record.knobs) for record in same]


@pytest.mark.ray
def test_more_than_the_machine_has_is_refused(tmp_path: Path, ray_session: None) -> None:
    with pytest.raises(ValueError, match="a trial asks for 64 CPU, but the machines have 2; ask for less"):
        campaign(tmp_path, toy_trials.succeed, 1, "ray", resources=Resources(cpus_per_trial=64))
    assert Ledger.load(tmp_path).records() == []


@pytest.mark.ray
def test_a_start_of_ray_that_fails_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    def init(**options: Any) -> None:
        nonlocal folder
        folder = Path(options["_temp_dir"])
        raise Exception("The current node timed out during startup")

    folder = tmp_path
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with pytest.raises(RuntimeError, match=r"^Ray did not start on this machine \(The current node timed out"):
        campaign(tmp_path, toy_trials.succeed, 1, "ray")
    assert folder != tmp_path
    assert not folder.exists()
    assert not (tmp_path / ".ray_session").exists()


@pytest.mark.parametrize("executor", ["inline", "ray"])
def test_what_a_killed_driver_left_goes_even_where_nothing_is_left_to_run(tmp_path: Path, executor: Executor) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    campaign(run_dir, toy_trials.succeed, 2, "inline")
    before = sorted(path.name for path in run_dir.iterdir())
    session = new_session_folder(run_dir)
    (scratch_folder(run_dir) / "trials").mkdir(parents=True)
    # As Ray's processes, of which workers do not name the folder in their command line.
    script = f"sleep 60 & echo $! > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/worker; wait"
    of_ray = ["/bin/sh", "-c", script, "/site-packages/ray/raylet", f"--session-dir={session}/session_1"]
    worker = ["ray::IDLE", "-c", "sleep 60; true"]  # its raylet has died before
    log = Path(session) / "worker.out"
    of_a_user = ["/bin/sh", "-c", "sleep 60; true", f"{session}/session_1/raylet.out"]
    with (
        log.open("w") as file,
        subprocess.Popen(worker, executable="/bin/sh", stdout=file) as orphan,
        subprocess.Popen(of_ray) as process,
        subprocess.Popen(of_a_user, start_new_session=True) as other,
    ):
        wait_for(tmp_path / "worker")
        assert campaign(run_dir, toy_trials.succeed, 2, executor).num_complete == 2
        for ended in (process, orphan):  # by itself where its child is killed first
            assert ended.wait(10) in (-signal.SIGKILL, 0)
        assert other.poll() is None
        os.killpg(other.pid, signal.SIGKILL)
    assert not Path(session).exists()
    assert sorted(path.name for path in run_dir.iterdir()) == before
    worker = Path(f"/proc/{(tmp_path / 'worker').read_text().strip()}/stat")
    assert not worker.exists() or worker.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_full_disk_is_no_failure_of_the_trial(tmp_path: Path, executor: Executor) -> None:
    full = r"a disk is full \(/data/cache/x\); free some space, and run the same command again to continue"
    with pytest.raises(RuntimeError, match=full):
        campaign(tmp_path, toy_trials.second_finds_the_disk_full, 3, executor)
    (tmp_path / "space").touch()
    summary = campaign(tmp_path, toy_trials.second_finds_the_disk_full, 3, executor)
    assert (summary.num_complete, summary.num_failed) == (3, 0)
    assert executions(tmp_path) == [(0, "run"), (1, "run"), (2, "run")]


@pytest.mark.ray
def test_a_driver_whose_ray_died_says_so_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    script = Path(__file__).parent / "toy_campaign.py"
    with subprocess.Popen(
        [sys.executable, str(script), str(tmp_path), "ray", "40"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        wait_for(tmp_path / "trials" / "0000")
        folder = (tmp_path / ".ray_session").read_text()
        server = next(pid for pid, words in processes.processes_of("gcs_server") if folder in " ".join(words))
        os.kill(server, signal.SIGKILL)
        output, _ = process.communicate(timeout=30)  # Ray itself ends it after 60 s
    assert process.returncode == 1
    assert output == (
        "gcs_server, a process of Ray on this machine, has died: it was killed, or memory ran out; run the same "
        "command again to continue\n"
    )
    assert not Path(folder).exists()
    assert not {".ray_session", ".tune"} & {path.name for path in tmp_path.iterdir()}


@pytest.mark.ray
def test_the_head_of_a_cluster_is_dead_when_it_does_not_answer_for_a_while() -> None:
    from nas_kd.trials.ray_servers import is_away

    over = threading.Event()
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert is_away(address, 0.0, over), "nothing listens yet"
        threading.Timer(0.6, server.listen).start()
        began = time.monotonic()
        assert not is_away(address, 30.0, over), "it came back"
        assert 0.5 < time.monotonic() - began < 10.0
    began = time.monotonic()
    assert is_away(address, 1.0, over)
    assert 1.0 <= time.monotonic() - began < 10.0
    over.set()
    assert not is_away(address, 30.0, over), "the session is being ended"


def start(run_dir: Path, executor: str, num_trials: int) -> subprocess.Popen[str]:
    script = Path(__file__).parent / "toy_campaign.py"
    return subprocess.Popen(
        [sys.executable, str(script), str(run_dir), executor, str(num_trials)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Under nohup, or in the background of a shell, children inherit that interrupts are ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(path: Path, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.02)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_killed_and_interrupted_drivers_resume_and_run_nothing_twice(tmp_path: Path, executor: str) -> None:
    run_dir = tmp_path / "run"
    first = start(run_dir, executor, 6)
    wait_for(run_dir / "waiting-2")
    with pytest.raises(RuntimeError, match=f"process {first.pid} drives"):
        open_ledger(run_dir)
    first.kill()
    first.communicate()
    before = Ledger.load(run_dir).records()
    announced = {int(line) for line in (run_dir / "announced.log").read_text().splitlines()}
    assert announced <= {record.number for record in before}
    assert announced == {0, 1}
    # A worker outlives its driver for a moment, and could end its trial; here it shall not.
    orphan = FileLock(run_dir / "trials" / "0002" / ".lock")
    assert orphan.acquire(timeout_s=30)
    orphan.release()
    (run_dir / "go-2").touch()

    second = start(run_dir, executor, 6)
    wait_for(run_dir / "waiting-4")
    os.kill(second.pid, signal.SIGINT)
    output, _ = second.communicate(timeout=60)
    assert second.returncode == 0
    assert "interrupted; run the same command again to continue" in output
    assert 4 in [proposal.number for proposal in Ledger.load(run_dir).running()]
    (run_dir / "go-4").touch()

    summary = campaign(run_dir, toy_trials.wait_twice, 6, "inline")  # another executor may end it
    assert (summary.num_complete, summary.interrupted) == (6, False)
    records = Ledger.load(run_dir).records()
    assert [record.number for record in records] == list(range(6))
    assert [record for record in records if record in before] == before
    counts = collections.Counter(executions(run_dir))
    again = {(2, "resumed"), (4, "resumed")}
    assert counts == dict.fromkeys([(number, "run") for number in range(6)] + sorted(again), 1)
    assert not (run_dir / "trials" / "0002" / "checkpoint.txt").exists()


@pytest.mark.parametrize("point", ["write", "tell", "unlink"])
def test_kill_around_the_end_of_a_trial_loses_nothing(
    tmp_path: Path, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Die in place of each durable step of a trial's end, and resume; checkpoints go in any case."""

    class Killed(BaseException):
        pass

    def die(*_: object, **__: object) -> None:
        raise Killed

    targets: dict[str, tuple[Any, str]] = {
        "write": (sys.modules["nas_kd.trials.record"], "write_atomically"),
        "tell": (Ledger, "tell"),
        "unlink": (sys.modules["nas_kd.trials.driver"], "remove_checkpoints"),
    }
    with monkeypatch.context() as patch:
        patch.setattr(*targets[point], die)
        with pytest.raises(Killed):
            campaign(tmp_path, toy_trials.succeed, 2, "inline")
    summary = campaign(tmp_path, toy_trials.succeed, 2, "inline")
    assert summary.num_complete == 2
    counts = collections.Counter(number for number, _ in executions(tmp_path))
    assert counts == {0: 2 if point == "write" else 1, 1: 1}
    assert list(tmp_path.glob("trials/*/checkpoint*")) == []


def test_what_was_running_and_is_outside_of_a_narrower_space_is_not_run(tmp_path: Path) -> None:
    with open_ledger(tmp_path) as ledger:
        ledger.enqueue([{"op": "delta"}, {"op": "conv"}], SPACE)
        for _ in range(2):
            ledger.ask(SPACE)
        narrower = {**SPACE, "op": ChoiceKnob(values=("conv", "shift"))}
        notes: list[str] = []
        run_trials(
            toy_trials.succeed,
            ledger,
            narrower,
            num_trials=3,
            run_dir=tmp_path,
            resources=Resources(executor="inline"),
            on_event=lambda event: notes.append(event.message) if event.kind == "noted" else None,
        )
        records = ledger.records()
    assert [record.state for record in records] == ["stopped", "complete", "complete"]
    assert executions(tmp_path) == [(1, "run"), (2, "run")]
    sentence = "it is not run any more: knob 'op' cannot be 'delta'; its definition is one of conv, shift"
    assert records[0].warnings == (sentence,)
    assert notes == [f"trial 0 was running, but {sentence}"]


def test_second_driver_waits_for_the_worker_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas_kd.trials.execution._WAIT_FOR_PREDECESSOR_S", 0.1)
    lock = FileLock(tmp_path / "trials" / "0000" / ".lock")
    with open_ledger(tmp_path) as ledger:
        ledger.ask(SPACE)
    assert lock.acquire()
    with pytest.raises(RuntimeError, match=f"trial 0 is still being run by process {os.getpid()}"):
        campaign(tmp_path, toy_trials.succeed, 1, "inline")
    lock.release()
    assert campaign(tmp_path, toy_trials.succeed, 1, "inline").num_complete == 1


def test_trials_of_a_lost_ledger_come_back_and_those_of_others_are_refused(tmp_path: Path) -> None:
    campaign(tmp_path, toy_trials.succeed, 1, "inline")
    (tmp_path / "ledger.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match="`nas-kd search` command makes it anew from the records in"):
        Ledger.load(tmp_path)
    assert campaign(tmp_path, toy_trials.succeed, 2, "inline").num_complete == 2
    assert [number for number, _ in executions(tmp_path)] == [0, 1]
    shutil.copytree(tmp_path / "trials" / "0000", tmp_path / "trials" / "0007")
    with pytest.raises(DamagedJournalError, match=r"ledger.jsonl lacks trial 7, whose record is there; the same"):
        Ledger.load(tmp_path)
    with pytest.raises(ValueError, match=r"0007/record.json must be of trial 7, but is of trial 0: its folder is a c"):
        campaign(tmp_path, toy_trials.succeed, 3, "inline")
    shutil.rmtree(tmp_path / "trials" / "0007")
    (tmp_path / "trials" / "0002").write_text("x")  # is set aside
    assert campaign(tmp_path, toy_trials.succeed, 3, "inline").num_complete == 3
    (tmp_path / "ledger.jsonl").unlink()
    path = tmp_path / "trials" / "0000" / "record.json"
    path.write_text(path.read_text().replace('"accuracy"', '"miou"'))
    with pytest.raises(ValueError, match=r"trials/0000/record.json is of another campaign \('miou' of trial 0\)"):
        campaign(tmp_path, toy_trials.succeed, 2, "inline")


def test_a_cluster_is_joined_with_the_token_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nas_kd.trials.runner import set_ray_environment

    def mode(resources: Resources, **environment: str) -> str:
        monkeypatch.setattr("os.environ", {"HOME": str(tmp_path), **environment})
        set_ray_environment(resources)
        return os.environ["RAY_AUTH_MODE"]

    joined = Resources(address="10.0.0.1:6379")
    assert mode(joined) == "disabled"
    assert mode(joined, RAY_AUTH_TOKEN="x") == "token"
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("x")
    assert mode(joined) == "token"
    assert mode(Resources()) == "disabled"  # of a session that no other machine reaches
    assert mode(joined, RAY_AUTH_MODE="disabled") == "disabled"  # as the user said


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("127.0.0.1:1", "no cluster answers at 127.0.0.1:1 (connection refused); start it with `ray start --head`"),
        ("[::1]:1", "no cluster answers at [::1]:1 ("),
        ("ray://head:10001", "on a machine of the cluster, and not over a Ray client"),
        ("10.0.0.1:6379", "no cluster answers at 10.0.0.1:6379 (no answer in time)"),
        ("no such host:6379", "must be `auto` or host:port"),
        ("head", "must be `auto` or host:port"),
        ("head:99999", "must be `auto` or host:port"),
    ],
)
def test_an_address_where_no_cluster_answers(monkeypatch: pytest.MonkeyPatch, address: str, sentence: str) -> None:
    connect = socket.create_connection

    def connected(place: tuple[str, int], timeout: float) -> socket.socket:
        assert timeout <= 5
        if place[0].startswith("10."):
            raise TimeoutError
        return connect(place, timeout)

    monkeypatch.setattr(socket, "create_connection", connected)
    with pytest.raises(ValueError, match=r"^resources\.address") as raised:
        check_cluster(Resources(address=address))
    assert sentence in str(raised.value)
    check_cluster(Resources(address=address, executor="inline"))  # which does not use it


def test_a_machine_that_is_no_part_of_the_cluster_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "command_lines", lambda: iter([(1, ["/sbin/init"]), (2, [""])]))
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        with pytest.raises(ValueError, match=f"this machine is no part of the cluster at {address}; run `ray start"):
            check_cluster(Resources(address=address))
    assert not processes.runs("raylet")
    monkeypatch.setattr(processes, "command_lines", lambda: iter([(1, ["/x/ray/raylet", "--head"])]))
    assert processes.runs("raylet")


def test_a_machine_that_does_not_see_the_folder_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def machines(resources: Resources, *paths: str) -> list[NodeView]:
        missing = tuple(path for path in paths if not Path(path).exists())
        return [
            NodeView("head", 0, 0, missing=("/run",)),
            NodeView("one", 4, 0),
            NodeView("two", 4, 0, missing=missing),
        ]

    monkeypatch.setattr(runner, "view_nodes", machines)
    joined = Resources(address="head:6379")
    with pytest.raises(
        ValueError, match=r"^resources\.address: machine two does not have .*, where trials write; share"
    ):
        check_run_folder(joined, tmp_path)
    with open_ledger(tmp_path):
        check_run_folder(joined, tmp_path)  # its driver holds it
    check_run_folder(Resources(), tmp_path / "elsewhere")
    check_run_folder(joined.model_copy(update={"files_url": "s3://bucket"}), tmp_path / "elsewhere")


@pytest.mark.parametrize("content", [b"", b'{"number": 0, "st', b"\xff\x00", b"[]"])
def test_a_damaged_record_of_a_running_trial_starts_it_again(tmp_path: Path, content: bytes) -> None:
    with open_ledger(tmp_path) as ledger:
        ledger.ask(toy_trials.SPACE)
    (tmp_path / "trials" / "0000").mkdir(parents=True)
    (tmp_path / "trials" / "0000" / "record.json").write_bytes(content)
    events: list[Event] = []
    assert campaign(tmp_path, toy_trials.succeed, 1, "inline", on_event=events.append).num_complete == 1
    assert [event.message for event in events if event.kind == "continued"] == [
        "its record.json is damaged, so it starts again"
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_trials": 0}, "`num_trials` must be 1 or more, but got 0"),
        ({"sampler": "cma"}, "unknown sampler 'cma'"),
    ],
)
def test_wrong_arguments(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    arguments = {"num_trials": 1, "executor": "inline", **options}
    with pytest.raises(ValueError, match=message):
        campaign(tmp_path, toy_trials.succeed, **arguments)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"executor": "slurm"}, "'ray' or 'inline'"),
        ({"cpus_per_trial": 0}, "greater than 0"),
        ({"cpus_per_trial": True}, "must be a number, but got true"),
        ({"gpus_per_trial": -1}, "must be `auto`, or a number from 0 to 1, but got -1"),
        ({"gpus_per_trial": True}, "must be `auto`, or a number from 0 to 1, but got true"),
        ({"gpus_per_trial": "all"}, "must be `auto`, or a number from 0 to 1, but got 'all'"),
        ({"max_concurrent": 0}, "greater than or equal to 1"),
        ({"max_failures": -1}, "greater than or equal to 0"),
        ({"executor": "inline", "max_concurrent": 2}, "max_concurrent must be 1 or null with executor inline"),
        ({"cpus": 1}, "Extra inputs are not permitted"),
    ],
)
def test_wrong_resources(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Resources.model_validate(wrong)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((1.5,), {}, "`fraction` must be from 0 to 1, but got 1.5"),
        ((), {"values": {"accuracy": 0.5, "flops": 1.0}}, "`values` and `step` go together"),
        ((), {"values": {"accuracy": 0.5}, "step": 1}, "`values` must hold accuracy, flops, but lacks flops"),
        ((), {"values": {"accuracy": 0.5, "flops": 1.0}, "step": 0}, "`step` must be 1 or more, but got 0"),
    ],
)
def test_wrong_reports(tmp_path: Path, arguments: tuple[float, ...], options: dict[str, Any], message: str) -> None:
    context = TrialContext(0, {}, 0, tmp_path, ranked_by=("accuracy", "flops"))
    with pytest.raises(ValueError, match=message):
        context.report(*arguments, **options)


def test_importing_trials_imports_nothing_slow() -> None:
    code = "import sys, trials; sys.exit(bool({'ray', 'torch', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
