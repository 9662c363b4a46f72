"""Progress of a campaign: a live table on a terminal, one plain line an event elsewhere."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from heapq import nlargest
from types import MappingProxyType, TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from nas_kd.trials.dominance import GrowingFront
from nas_kd.trials.events import Event
from nas_kd.trials.objectives import COSTS, Ranking
from nas_kd.trials.pace import Underway, ended_pace, time_left
from nas_kd.trials.record import KnobValue, TrialRecord

_MAX_KNOBS = 6  # of a trial in a plain line
_KNOBS_WIDTH = 36  # characters of the table's column
_STATE_STYLES = {"running": "cyan", "complete": "green", "failed": "red", "stopped": "yellow"}
_PAUSE = 9.0  # after a measurement of the hypervolume, in the time that it took: a tenth of all time at most


@dataclass
class _Row:
    number: int
    knobs: Mapping[str, KnobValue]
    state: str = "running"
    fraction: float = 0.0
    message: str = ""
    record: TrialRecord | None = None
    started_at: float | None = None
    reported_at: float | None = None  # first: before it, a process starts
    first_fraction: float = 0.0
    work: float | None = None


def format_count(value: float | None) -> str:
    """A count with a metric prefix, such as `12.3M`; empty where there is none."""
    if value is None:
        return ""
    for limit, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{prefix}" if abs(value) < 999.5 * limit else f"{value / limit:.0f}{prefix}"
    return f"{value:g}"


def format_value(name: str, value: float | None) -> str:
    """A value that ranks a trial: of a cost as a count, of a metric with four digits; empty where there is none."""
    if value is None or not math.isfinite(value):
        return ""
    return format_count(value) if name in COSTS else f"{value:.4g}"


def box_text(ranking: Ranking) -> str:
    """In which box a hypervolume is measured: `accuracy from 0 to 1, flops from 8.8M to 0`."""
    words = []
    for each in ranking.objectives:
        bounds = ranking.range_of(each)
        worst = "the largest so far" if bounds is None else format_value(each.name, bounds[0])
        words.append(f"{each.name} from {worst} to {format_value(each.name, 0.0 if bounds is None else bounds[1])}")
    return ", ".join(words)


def format_duration(seconds: float) -> str:
    """A duration in its two largest units, such as `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class FrontVolume:
    """The hypervolume of a front that grows, measured so often that it takes at most a tenth of the time.

    Args:
        measure: complete records -> the hypervolume of their front; None where nobody wants to know.
        records: of trials that ended before, of which the complete ones count.
    """

    def __init__(
        self, measure: Callable[[Sequence[TrialRecord]], float | None] | None, records: Sequence[TrialRecord]
    ) -> None:
        self._measure = measure
        self._complete = [record for record in records if record.state == "complete"]
        self._next = 0.0  # when it may be measured again

    def add(self, record: TrialRecord) -> None:
        """Take in a complete trial."""
        self._complete.append(record)

    def measured(self) -> float | None:
        """The hypervolume now; None without trials, or where it was measured just now."""
        begun = time.monotonic()
        if self._measure is None or not self._complete or begun < self._next:
            return None
        found = self._measure(self._complete)
        now = time.monotonic()
        self._next = now + _PAUSE * (now - begun)
        return found


class Progress:
    """Shows events. Give it to `run_trials` as `on_event`, inside its `with` block.

    Text that comes from trials is shown as it is: square brackets are no markup.

    Args:
        ranking: Of the ledger; its objectives are shown, and the front so far is marked.
        records: Of trials that ended before this run.
        works: Number of a trial -> what its time grows with, where known: of those before this run, and queued ones.
        hypervolume: Records -> the share of a box that their front dominates, to be shown beside it.
        console: Where to write; by default standard output.
        max_rows: Rows of the live table. Running trials come first, then the front, then the latest.
    """

    def __init__(
        self,
        ranking: Ranking,
        records: Sequence[TrialRecord] = (),
        *,
        works: Mapping[int, float] = MappingProxyType({}),
        hypervolume: Callable[[Sequence[TrialRecord]], float | None] | None = None,
        console: Console | None = None,
        max_rows: int = 20,
    ) -> None:
        self._ranking = ranking
        self._console = console or Console()
        self._max_rows = max_rows
        self._rows: dict[int, _Row] = {}
        self._running: dict[int, _Row] = {}
        self._front = GrowingFront(ranking.maximize)
        self._knobs = _KnobColumns()
        for record in records:
            self._place(_row_of(record))
        self._pace = ended_pace(records, works)
        self._works = dict(works)
        self._queued = {number: work for number, work in works.items() if number not in self._rows}
        self._volume = FrontVolume(hypervolume, records)
        self._hypervolume = self._volume.measured()
        self._most_at_once = 1
        self._num_ended = len(self._rows)
        self._num_trials = 0
        self._message = ""
        self._live: Live | None = None
        self._quarters: dict[int, int] = {}

    def __enter__(self) -> Progress:
        """Start the live table, on a terminal."""
        if self._console.is_terminal:
            self._live = Live(get_renderable=self.render, console=self._console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave the last state of the table on the screen."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __call__(self, event: Event) -> None:
        """Take note of an event."""
        self._num_ended, self._num_trials = event.num_ended, event.num_trials
        if event.number is None or event.kind in ("started", "continued"):
            self._message = event.message
        if event.number is not None:
            self._note(event, event.number)
        if self._live is None and event.kind != "begun" and self._is_news(event):
            line = self.describe(event)
            self._console.print(Text(line), soft_wrap=True)

    def _note(self, event: Event, number: int) -> None:
        """Keep what an event of a trial says."""
        now = time.monotonic()
        if event.kind in ("started", "continued", "retried"):
            message = event.message or "starting"
            self._place(_Row(number, event.knobs, message=message, started_at=now, work=event.work))
            self._queued.pop(number, None)
            if event.work is not None:
                self._works[number] = event.work
            self._most_at_once = max(self._most_at_once, len(self._running))
        if event.kind == "postponed":
            del self._rows[number], self._running[number]
            self._message = f"trial {number}: {event.message}"
            if number in self._works:
                self._queued[number] = self._works[number]
            return
        if number not in self._rows:
            self._place(_Row(number, event.knobs))
        row = self._rows[number]
        row.message = event.message or row.message
        if event.fraction is not None:
            row.fraction = event.fraction
            if row.reported_at is None:
                row.reported_at, row.first_fraction = now, event.fraction
        if event.record is not None:
            started_at = row.started_at if row.reported_at is None else row.reported_at
            elapsed = 0.0 if started_at is None else now - started_at
            complete = event.record.state == "complete"
            seconds = event.record.durations_s.get("total", elapsed)
            self._pace.add(seconds, self._works.get(number), complete=complete)
            self._place(_row_of(event.record))
            if complete:
                self._volume.add(event.record)
                measured = self._volume.measured()
                self._hypervolume = self._hypervolume if measured is None else measured

    def _place(self, row: _Row) -> None:
        """Set the row of a trial, and keep what all trials tell, so that one more costs the same at any number."""
        if row.number not in self._rows:
            self._knobs.add(row.knobs)
        self._rows[row.number] = row
        self._running.pop(row.number, None)
        if row.state == "running":
            self._running[row.number] = row
        elif row.record is not None and row.state == "complete" and self._ranking.keeps(row.record):
            self._front.add(row.number, self._ranking.values(row.record))

    def _is_news(self, event: Event) -> bool:
        """Whether a plain log gets a line: of progress, the first report of each quarter and all with values."""
        if event.kind != "progress" or event.number is None or event.fraction is None or event.values is not None:
            return True
        quarter = int(event.fraction * 4)
        news = self._quarters.get(event.number) != quarter
        self._quarters[event.number] = quarter
        return news

    def front(self) -> set[int]:
        """The numbers of the complete trials that keep all constraints and that nobody dominates."""
        return set(self._front.numbers)

    def eta_s(self) -> float | None:
        """Seconds until the last trial ends; None where nothing is known of how long a trial takes.

        As many are taken to run at once as have done so in this run. See `nas_kd.trials.pace`.
        """
        running = list(self._running.values())
        if self._num_ended >= self._num_trials:
            return None
        waiting = max(self._num_trials - self._num_ended - len(running), 0)
        queued = list(self._queued.values())[:waiting]
        return time_left(
            self._pace,
            [_underway(row) for row in running],
            queued,
            waiting - len(queued),
            mean_work=sum(self._works.values()) / len(self._works) if self._works else None,
            at_once=self._most_at_once,
        )

    def describe(self, event: Event) -> str:
        """An event as one line of plain text."""
        head = f"[{event.num_ended}/{event.num_trials}]"
        if event.number is None:
            return f"{head} {event.message or event.kind}"
        words = [head, f"trial {event.number}", event.kind]
        if event.record is not None:
            words[-1] = event.record.state
            known = zip(self._ranking.names, self._values(event.record), strict=True)
            words += [f"{name} {text}" for name, text in known if text]
            if event.number in self.front():
                words.append("(front)")
            if event.record.error:
                words.append(event.record.reason() or "")
            if event.record.state == "complete" and self._hypervolume is not None:
                words.append(f"- hypervolume {self._hypervolume:.4f}")
            eta = self.eta_s()
            if eta is not None:
                words.append(f"- {format_duration(eta)} left")
        elif event.kind in ("started", "continued"):
            words.append(_knobs_text(event.knobs))
        if event.fraction is not None:
            words.append(f"{event.fraction:.0%}")
        if event.values is not None:
            words.append(", ".join(f"{name} {value:.4g}" for name, value in event.values.items()))
        if event.message:
            words.append(" ".join(event.message.split()))
        return " ".join(word for word in words if word)

    def render(self) -> Group:
        """The live table as it stands."""
        on_front = self.front()
        table = Table(box=None, pad_edge=False)
        for title in ("trial", "knobs", "state", "progress", *self._ranking.names, "front", "message"):
            table.add_column(Text(title, style="bold"), no_wrap=True, overflow="ellipsis")
        table.columns[1].max_width = _KNOBS_WIDTH
        knobs = self._knobs.telling()
        for row in self._shown(on_front):
            table.add_row(
                str(row.number),
                Text(_values_text(row.knobs, knobs)),
                Text(row.state, style=_STATE_STYLES[row.state]),
                ProgressBar(total=1.0, completed=row.fraction, width=16),
                *(self._values(row.record) if row.record is not None else [""] * len(self._ranking.names)),
                "*" if row.number in on_front else "",
                Text(" ".join(row.message.split())),
            )
        hidden = len(self._rows) - table.row_count
        foot = f"{self._num_ended} of {self._num_trials} trials ended, {len(on_front)} on the front"
        volume = self._hypervolume
        foot += "" if volume is None else f", hypervolume {volume:.4f} (of {box_text(self._ranking)})"
        foot += f", {hidden} not shown" if hidden else ""
        eta = self.eta_s()
        foot += f", about {format_duration(eta)} left" if eta is not None else ""
        foot += f"; {self._message}" if self._message else ""
        return Group(table, Text(foot))

    def _values(self, record: TrialRecord) -> list[str]:
        """What ranks a trial, in the order of the names; empty texts for what was not measured."""
        return [format_value(each.name, each.of(record)) for each in self._ranking.ranked]

    def _shown(self, on_front: set[int]) -> list[_Row]:
        latest = nlargest(self._max_rows, self._rows)  # numbers

        def importance(number: int) -> tuple[bool, bool, int]:
            return number in self._running, number in on_front, number

        chosen = sorted({*self._running, *on_front, *latest}, key=importance, reverse=True)[: self._max_rows]
        return [self._rows[number] for number in sorted(chosen)]


def _knobs_text(knobs: Mapping[str, KnobValue]) -> str:
    """A few knobs as text: those with short names first, since an architecture has a dotted name for each choice."""
    names = sorted(knobs, key=lambda name: name.count("."))
    words = [f"{name}={knobs[name]}" for name in names[:_MAX_KNOBS]]
    if len(names) > _MAX_KNOBS:
        words.append(f"and {len(names) - _MAX_KNOBS} more")
    return ", ".join(words)


class _KnobColumns:
    """The knobs that tell trials apart.

    An architecture has a knob for each of its choices, with one first name: where that are more than a line holds,
    they are left out.
    """

    def __init__(self) -> None:
        self._num = 0  # trials
        self._first: dict[str, KnobValue] = {}
        self._having: Counter[str] = Counter()  # trials that have it
        self._differing: set[str] = set()

    def add(self, knobs: Mapping[str, KnobValue]) -> None:
        """Take in a trial."""
        self._num += 1
        for name, value in knobs.items():
            self._having[name] += 1
            if self._first.setdefault(name, value) != value:
                self._differing.add(name)

    def telling(self) -> list[tuple[str, str]]:
        """Each with the shortest end of its dotted name that no other has."""
        names = sorted(self._first, key=lambda name: (name.count("."), name))
        families = Counter(name.partition(".")[0] for name in names)
        if self._num > 1:
            names = [name for name in names if name in self._differing or self._having[name] < self._num]
        names = [name for name in names if families[name.partition(".")[0]] <= _MAX_KNOBS]
        return [(name, _short_name(name, names)) for name in names]


def _short_name(name: str, names: Sequence[str]) -> str:
    parts = name.split(".")
    for start in range(len(parts) - 1, 0, -1):
        short = ".".join(parts[start:])
        if not any(other != name and f".{other}".endswith(f".{short}") for other in names):
            return short
    return name


def _values_text(knobs: Mapping[str, KnobValue], shown: Sequence[tuple[str, str]]) -> str:
    words = []
    for name, short in shown:
        value = knobs.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            words.append(f"{short}={format_count(value)}")
        elif value is not None:
            words.append(f"{short}={value}")
    return ", ".join(words)


def _underway(row: _Row) -> Underway:
    """A running trial from its first report on: until then, a process starts."""
    if row.reported_at is None:
        return Underway(row.work, 0.0)
    return Underway(row.work, time.monotonic() - row.reported_at, row.fraction, row.first_fraction)


def _row_of(record: TrialRecord) -> _Row:
    return _Row(
        record.number,
        record.knobs,
        state=record.state,
        fraction=1.0 if record.state == "complete" else 0.0,
        message=record.reason() or "",
        record=record,
    )
