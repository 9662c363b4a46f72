"""How a campaign stands, read from its folder by another process: once, or again and again."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rich.console import Group
from rich.table import Table
from rich.text import Text

from nas_kd.runs.results import run_progress
from nas_kd.runs.run import is_run, open_run, shown_records
from nas_kd.trial.shared import FOLDER as SEARCH_FOLDER
from nas_kd.trials import KnobValue, Ledger, Ranking, TrialRecord, Underway, ended_pace, is_driven, time_left
from nas_kd.trials.execution import LOCK_NAME
from nas_kd.trials.files import trial_directory
from nas_kd.trials.ledger import DRIVER_LOCK
from nas_kd.trials.progress import box_text, format_duration, format_value

State = Literal["preparing", "search", "trials", "complete", "interrupted"]
_END_OF_LOG = 4096  # bytes, which hold its last line


@dataclass(frozen=True)
class RunningTrial:
    """A trial that runs now, or ran when its driver was interrupted.

    Attributes:
        number: of the trial.
        knobs: what the study proposed.
        message: the last line of its log in words, such as `retrain-0, epoch 3`; empty before the first epoch.
        elapsed_s: seconds since it was started; None where it has not begun.
    """

    number: int
    knobs: Mapping[str, KnobValue]
    message: str
    elapsed_s: float | None


@dataclass(frozen=True)
class FrontTrial:
    """A trial on the front.

    Attributes:
        number: of the trial.
        values: of the objectives, in their order; metrics are those on the validation split.
    """

    number: int
    values: tuple[float, ...]


@dataclass(frozen=True)
class RunStatus:
    """How a campaign stands; its fields are the keys of `nas-kd status --json`.

    Attributes:
        run: the run's folder.
        name: of the campaign.
        state: `preparing` (data, teacher), `search` (the one before the trials), `trials`, `complete`, `interrupted`.
        message: what happens before the trials, in words.
        trials: how many the campaign is to have.
        complete: how many ended with a student.
        failed: how many ended with an error.
        stopped: how many were stopped early.
        running: those that run.
        objectives: names of what students are ranked by, first the metric that they are judged by.
        front: the front so far, by increasing second objective.
        hypervolume: share of the box that the front dominates, as in the report; None without a front.
        box: which one, in words: one for all of the campaign, by its budget and limits; see `Ranking.range_of`.
        elapsed_s: seconds from the start of the first trial until now, or until the last one ended.
        eta_s: seconds until the last trial ends, by the time that those that ended took for the FLOPs and epochs they
            had, and by how many run at once; None where it is not known, or nothing runs.
    """

    run: str
    name: str
    state: State
    message: str
    trials: int
    complete: int
    failed: int
    stopped: int
    running: tuple[RunningTrial, ...]
    objectives: tuple[str, ...]
    front: tuple[FrontTrial, ...]
    hypervolume: float | None
    box: str
    elapsed_s: float | None
    eta_s: float | None

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))


def status(run_dir: Path | str) -> RunStatus:
    """How the campaign of a run stands.

    Args:
        run_dir: the run's folder.

    Raises:
        ValueError: the folder holds no run, or a file of it is damaged.
    """
    run_dir = Path(run_dir)
    if not is_run(run_dir) and (run_dir / DRIVER_LOCK).is_file():  # it is kept once all is checked and prepared
        return _before_trials(run_dir)
    config, ledger = open_run(run_dir)
    records = ledger.records()
    progress = run_progress(run_dir, config, ledger)
    now = time.time()
    running = tuple(_running(run_dir, trial.number, trial.knobs, now) for trial in ledger.running())
    state: State = "trials"
    if not progress.is_driven:
        state = "complete" if len(records) >= progress.planned and not running else "interrupted"
    elif progress.stage:
        state = _stage(run_dir)
    counts = {kind: sum(record.state == kind for record in records) for kind in ("complete", "failed", "stopped")}
    ranking = config.ranking
    front, dominated = _front(shown_records(run_dir, config, records), ranking)
    return RunStatus(
        run=str(run_dir),
        name=config.name,
        state=state,
        message=progress.stage if progress.is_driven else "",
        trials=progress.planned,
        **counts,
        running=running,
        objectives=tuple(objective.name for objective in ranking.objectives),
        front=front,
        hypervolume=dominated,
        box=box_text(ranking),
        elapsed_s=_elapsed(records, now if progress.is_driven else None),
        eta_s=_eta(ledger, records, running, progress.planned) if state == "trials" else None,
    )


def _before_trials(run_dir: Path) -> RunStatus:
    """The status of a run whose campaign file is not kept yet."""
    state: State = _stage(run_dir) if is_driven(run_dir) else "interrupted"
    message = _last_message(run_dir / SEARCH_FOLDER / "log.jsonl") if state == "search" else ""
    return RunStatus(
        run=str(run_dir),
        name=run_dir.resolve().name,
        state=state,
        message=message,
        trials=0,
        complete=0,
        failed=0,
        stopped=0,
        running=(),
        objectives=(),
        front=(),
        hypervolume=None,
        box="",
        elapsed_s=None,
        eta_s=None,
    )


def _stage(run_dir: Path) -> State:
    return "search" if (run_dir / SEARCH_FOLDER).is_dir() else "preparing"


def _running(run_dir: Path, number: int, knobs: Mapping[str, KnobValue], now: float) -> RunningTrial:
    folder = trial_directory(run_dir, number)
    lock = folder / LOCK_NAME  # written when the trial starts
    elapsed = max(now - lock.stat().st_mtime, 0.0) if lock.is_file() else None
    return RunningTrial(number, knobs, _last_message(folder / "log.jsonl"), elapsed)


def _last_message(log: Path) -> str:
    """The last whole line of a log of epochs, in words; empty where there is none."""
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(max(log.stat().st_size - _END_OF_LOG, 0))
        lines = file.read().split(b"\n")[:-1]
    for line in reversed(lines):
        try:
            content = json.loads(line.decode("utf-8"))
            return f"{content['stage']}, epoch {content['epoch']}"
        except (ValueError, KeyError, TypeError):  # it was cut
            continue
    return ""


def _front(records: Sequence[TrialRecord], ranking: Ranking) -> tuple[tuple[FrontTrial, ...], float | None]:
    from nas_kd.analysis import ParetoFront

    if not any(record.state == "complete" for record in records):
        return (), None
    front = ParetoFront.from_records(records, ranking=ranking)
    placed = tuple(FrontTrial(record.number, ranking.values(record)) for record in front.records)
    return placed, front.hypervolume if placed else None


def hypervolume(records: Sequence[TrialRecord], *, ranking: Ranking) -> float | None:
    """Share of the box of the report that the front of some trials dominates; None without a front."""
    return _front(records, ranking)[1]


def _elapsed(records: Sequence[TrialRecord], now: float | None) -> float | None:
    """Seconds from the start of the first trial until now, or without it until the last one ended."""
    starts = [datetime.datetime.fromisoformat(r.started_at).timestamp() for r in records if r.started_at]
    if not starts:
        return None
    ends = [
        datetime.datetime.fromisoformat(r.started_at).timestamp() + r.durations_s.get("total", 0.0)
        for r in records
        if r.started_at
    ]
    return (max(ends) if now is None else now) - min(starts)


def _eta(ledger: Ledger, records: Sequence[TrialRecord], running: Sequence[RunningTrial], planned: int) -> float | None:
    waiting = max(planned - len(records) - len(running), 0)
    if not waiting and not running:
        return None
    works = ledger.works()
    begun = {record.number for record in records} | {trial.number for trial in running}
    queued = [work for number, work in works.items() if number not in begun][:waiting]
    return time_left(
        ended_pace(records, works),
        [Underway(works.get(trial.number), trial.elapsed_s or 0.0) for trial in running],
        queued,
        waiting - len(queued),
        mean_work=sum(works.values()) / len(works) if works else None,
        at_once=max(len(running), 1),
    )


def render(status: RunStatus) -> Group:
    """The status as a table for a terminal.

    Args:
        status: of a run.
    """
    ended = status.complete + status.failed + status.stopped
    words = f"{status.name}: {status.state}"
    if status.message:
        words += f" ({status.message})"
    lines = [Text(words, style="bold")]
    if status.trials:
        text = f"{ended} of {status.trials} trials ended: {status.complete} complete, {status.failed} failed"
        text += f", {status.stopped} stopped early; {len(status.running)} running"
        lines.append(Text(text))
    times = []
    if status.elapsed_s is not None:
        times.append(f"{format_duration(status.elapsed_s)} since the first trial began")
    if status.eta_s is not None:
        times.append(f"about {format_duration(status.eta_s)} left")
    if status.hypervolume is not None:
        times.append(f"hypervolume {status.hypervolume:.4f} (of {status.box})")
    if times:
        lines.append(Text(", ".join(times)))
    table = Table(box=None, pad_edge=False)
    for title in ("trial", "state", *status.objectives, "message"):
        table.add_column(Text(title, style="bold"), no_wrap=True, overflow="ellipsis")
    for each in status.front:
        texts = [format_value(name, value) for name, value in zip(status.objectives, each.values, strict=True)]
        table.add_row(str(each.number), "front", *texts, "")
    for trial in status.running:
        since = "" if trial.elapsed_s is None else f"{format_duration(trial.elapsed_s)}; "
        state = "running" if status.state == "trials" else "waits"
        table.add_row(
            str(trial.number), state, *("" for _ in status.objectives), Text(since + (trial.message or "starting"))
        )
    return Group(*lines, *([table] if table.row_count else []))
