"""Progress of a campaign: a live table on a terminal, one plain line an event elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from nas_kd.trials.dominance import front
from nas_kd.trials.events import Event
from nas_kd.trials.objectives import Objective, objective_values
from nas_kd.trials.record import Cost, KnobValue, TrialRecord

_MAX_KNOBS = 6  # of a trial in a plain line
_STATE_STYLES = {"running": "cyan", "complete": "green", "failed": "red", "stopped": "yellow"}


@dataclass
class _Row:
    number: int
    budget: str
    state: str = "running"
    fraction: float = 0.0
    message: str = ""
    record: TrialRecord | None = None


def format_count(value: float | None) -> str:
    """A count with a metric prefix, such as `12.3M`; empty where there is none."""
    if value is None:
        return ""
    for limit, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{prefix}" if abs(value) < 999.5 * limit else f"{value / limit:.0f}{prefix}"
    return f"{value:g}"


def format_duration(seconds: float) -> str:
    """A duration in its two largest units, such as `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Progress:
    """Shows events. Give it to `run_trials` as `on_event`, inside its `with` block.

    Text that comes from trials is shown as it is: square brackets are no markup.

    Args:
        objectives: What the ledger ranks by; marks the front so far.
        records: Of trials that ended before this run.
        console: Where to write; by default standard output.
        max_rows: Rows of the live table. Running trials come first, then the front, then the latest.
    """

    def __init__(
        self,
        objectives: Sequence[Objective],
        records: Sequence[TrialRecord] = (),
        *,
        console: Console | None = None,
        max_rows: int = 20,
    ) -> None:
        self._objectives = tuple(objectives)
        costs = [each.name for each in objectives if each.name in Cost.model_fields]
        self._cost_names = tuple(dict.fromkeys([*costs, "flops"]))  # FLOPs beside what is ranked by
        self._console = console or Console()
        self._max_rows = max_rows
        self._rows = {record.number: _row_of(record) for record in records}
        self._begun_at = time.monotonic()
        self._num_ended_before = len(self._rows)
        self._num_ended = len(self._rows)
        self._num_trials = 0
        self._live: Live | None = None
        self._quarters: dict[int, int] = {}

    def __enter__(self) -> Progress:
        """Start the live table, on a terminal."""
        self._begun_at = time.monotonic()
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
        if event.kind == "begun":
            self._num_ended_before = event.num_ended
        if event.number is not None:
            if event.kind in ("started", "continued"):
                self._rows[event.number] = _Row(event.number, format_count(_budget(event.knobs)))
            row = self._rows.setdefault(event.number, _Row(event.number, format_count(_budget(event.knobs))))
            row.message = event.message or row.message
            if event.fraction is not None:
                row.fraction = event.fraction
            if event.record is not None:
                self._rows[event.number] = _row_of(event.record)
        if self._live is None and event.kind != "begun" and self._is_news(event):
            line = self.describe(event)
            self._console.print(Text(line), soft_wrap=True)

    def _is_news(self, event: Event) -> bool:
        """Whether a plain log gets a line: of progress, the first report of each quarter and all with values."""
        if event.kind != "progress" or event.number is None or event.fraction is None or event.values is not None:
            return True
        quarter = int(event.fraction * 4)
        news = self._quarters.get(event.number) != quarter
        self._quarters[event.number] = quarter
        return news

    def front(self) -> set[int]:
        """The numbers of the complete trials that nobody dominates."""
        values: dict[int, list[float]] = {}
        for row in self._rows.values():
            if row.record is not None and row.record.state == "complete":
                values[row.number] = list(objective_values(row.record, self._objectives))
        numbers = list(values)
        return {numbers[i] for i in front(list(values.values()), [each.maximize for each in self._objectives])}

    def eta_s(self) -> float | None:
        """Seconds until the campaign ends, at the pace of this run; None before a trial of it has ended."""
        num_ended_here = self._num_ended - self._num_ended_before
        if num_ended_here < 1 or self._num_ended >= self._num_trials:
            return None
        pace = (time.monotonic() - self._begun_at) / num_ended_here
        return pace * (self._num_trials - self._num_ended)

    def describe(self, event: Event) -> str:
        """An event as one line of plain text."""
        head = f"[{event.num_ended}/{event.num_trials}]"
        if event.number is None:
            return f"{head} {event.message or event.kind}"
        words = [head, f"trial {event.number}", event.kind]
        if event.record is not None:
            words[-1] = event.record.state
            score = event.record.score()
            if score is not None:
                words.append(f"{event.record.metric.name} {score:.4g}")
            if event.record.cost is not None:
                cost = event.record.cost
                words += [f"{name} {format_count(getattr(cost, name))}" for name in self._cost_names]
            if event.number in self.front():
                words.append("(front)")
            if event.record.error:
                words.append(event.record.reason() or "")
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
        metric = self._objectives[0].name if self._objectives else "score"
        table = Table(box=None, pad_edge=False)
        for title in ("trial", "budget", "state", "progress", metric, *self._cost_names, "front", "message"):
            table.add_column(Text(title, style="bold"), no_wrap=True, overflow="ellipsis")
        for row in self._shown(on_front):
            score = row.record.score() if row.record is not None else None
            cost = row.record.cost if row.record is not None else None
            costs = [None if cost is None else getattr(cost, name) for name in self._cost_names]
            table.add_row(
                str(row.number),
                row.budget,
                Text(row.state, style=_STATE_STYLES[row.state]),
                ProgressBar(total=1.0, completed=row.fraction, width=16),
                "" if score is None or not math.isfinite(score) else f"{score:.4g}",
                *(format_count(value) for value in costs),
                "*" if row.number in on_front else "",
                Text(" ".join(row.message.split())),
            )
        hidden = len(self._rows) - table.row_count
        foot = f"{self._num_ended} of {self._num_trials} trials ended, {len(on_front)} on the front"
        foot += f", {hidden} not shown" if hidden else ""
        eta = self.eta_s()
        foot += f", about {format_duration(eta)} left" if eta is not None else ""
        return Group(table, Text(foot))

    def _shown(self, on_front: set[int]) -> list[_Row]:
        def importance(row: _Row) -> tuple[bool, bool, int]:
            return row.state == "running", row.number in on_front, row.number

        chosen = sorted(self._rows.values(), key=importance, reverse=True)[: self._max_rows]
        return sorted(chosen, key=lambda row: row.number)


def _knobs_text(knobs: Mapping[str, KnobValue]) -> str:
    """A few knobs as text: those with short names first, since an architecture has a dotted name for each choice."""
    names = sorted(knobs, key=lambda name: name.count("."))
    words = [f"{name}={knobs[name]}" for name in names[:_MAX_KNOBS]]
    if len(names) > _MAX_KNOBS:
        words.append(f"and {len(names) - _MAX_KNOBS} more")
    return ", ".join(words)


def _budget(knobs: Mapping[str, KnobValue]) -> float | None:
    value = knobs.get("max_flops", knobs.get("max_latency_ms"))
    return float(value) if isinstance(value, int | float) else None


def _row_of(record: TrialRecord) -> _Row:
    return _Row(
        record.number,
        format_count(_budget(record.knobs)),
        state=record.state,
        fraction=1.0 if record.state == "complete" else 0.0,
        message=record.reason() or "",
        record=record,
    )
