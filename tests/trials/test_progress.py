from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console
from toy_trials import METRIC, make_record

from nas_kd.trials import Event, Progress, default_objectives
from nas_kd.trials.progress import format_count, format_duration

OBJECTIVES = default_objectives(METRIC)
KNOBS = {"width": 8, "rate": 0.1, "op": "conv", "max_flops": 50_000_000}


def plain() -> tuple[io.StringIO, Console]:
    file = io.StringIO()
    return file, Console(file=file, width=40, force_terminal=False)


def event(kind: Any, num_ended: int = 0, **fields: Any) -> Event:
    return Event(kind=kind, num_ended=num_ended, num_trials=4, **fields)


def ended(number: int, num_ended: int, width: int = 8, **changes: Any) -> Event:
    record = make_record(number, {**KNOBS, "width": width}, **changes)
    return event("ended", num_ended, number=number, knobs=record.knobs, record=record)


def test_one_plain_line_an_event_whatever_is_in_it() -> None:
    file, console = plain()
    with Progress(OBJECTIVES, console=console) as progress:
        progress(event("begun"))
        progress(event("started", number=0, knobs={"op": "[red]conv[/]", "max_flops": 5}))
        progress(event("progress", number=0, fraction=0.25, message="loss [nan]\nand [/oops] more"))
        progress(ended(0, 1))
        progress(event("finished", 1))
    lines = file.getvalue().splitlines()
    assert lines[0] == "[0/4] trial 0 started op=[red]conv[/], max_flops=5"
    assert lines[1] == "[0/4] trial 0 progress 25% loss [nan] and [/oops] more"
    assert lines[2].startswith("[1/4] trial 0 complete accuracy 0.2828 flops 8k (front)")
    assert lines[3] == "[1/4] finished"
    assert len(lines) == 4


def test_an_architecture_of_many_choices_is_one_short_line() -> None:
    file, console = plain()
    choices = {f"arch.stages.{i}.op": "conv" for i in range(20)}
    with Progress(OBJECTIVES, console=console) as progress:
        progress(event("started", number=0, knobs={**choices, "resolution": 24}))
    shown = [f"arch.stages.{i}.op=conv" for i in range(5)]
    assert file.getvalue().splitlines() == [f"[0/4] trial 0 started resolution=24, {', '.join(shown)}, and 15 more"]


def test_plain_log_gets_a_line_a_quarter_of_each_trial_and_every_rung() -> None:
    file, console = plain()
    with Progress(OBJECTIVES, console=console) as progress:
        progress(event("started", number=0, knobs=KNOBS))
        for step in range(100):
            for number in (0, 1):
                progress(event("progress", number=number, fraction=step / 100, message=f"step {step}"))
        progress(event("progress", number=0, fraction=0.99, values={"accuracy": 0.5}))
    lines = file.getvalue().splitlines()[1:]
    assert [line.split()[4] for line in lines] == ["0%", "0%", "25%", "25%", "50%", "50%", "75%", "75%", "99%"]
    assert lines[-1].endswith("accuracy 0.5")


def test_failed_trial_shows_the_last_line_of_its_error() -> None:
    file, console = plain()
    with Progress(OBJECTIVES, console=console) as progress:
        record = make_record(1, KNOBS, "failed", error="Traceback:\n  File\nValueError: [bad] value\n")
        progress(event("ended", 1, number=1, knobs=KNOBS, record=record))
    assert "[1/4] trial 1 failed" in file.getvalue()
    assert "ValueError: [bad] value" in file.getvalue()


def test_live_table_marks_the_front_and_survives_markup() -> None:
    file = io.StringIO()
    console = Console(file=file, width=120, force_terminal=True)
    earlier = [make_record(0, {**KNOBS, "width": 64}), make_record(1, KNOBS, "stopped")]
    with Progress(OBJECTIVES, earlier, console=console) as progress:
        progress(event("begun", 2))
        progress(event("started", 2, number=2, knobs=KNOBS))
        progress(event("progress", 2, number=2, fraction=0.5, message="epoch [3] of [/bold]"))
        progress(ended(3, 3, width=64, metrics={"derived": {"val": {"accuracy": 0.1}}}))
        assert progress.front() == {0}
        console_plain = Console(file=io.StringIO(), width=120, force_terminal=False, record=True)
        console_plain.print(progress.render())
    text = console_plain.export_text()
    rows = {line.split()[0]: line for line in text.splitlines() if line and line[0].isdigit()}
    assert "50M" in rows["2"]
    assert "running" in rows["2"]
    assert "epoch [3] of [/bold]" in rows["2"]
    assert "*" in rows["0"]
    assert "*" not in rows["3"]
    assert "stopped" in rows["1"]
    assert "3 of 4 trials ended, 1 on the front" in text


def test_running_trials_and_the_front_are_shown_first() -> None:
    _, console = plain()
    records = [make_record(i, {**KNOBS, "width": 64 if i else 1}, metrics={}, state="failed") for i in range(0)]
    progress = Progress(OBJECTIVES, records, console=console, max_rows=2)
    for number in range(6):
        progress(
            ended(
                number,
                number + 1,
                width=8 if number == 1 else 9 + number,
                metrics={"derived": {"val": {"accuracy": 0.5}}},
            )
        )
    progress(event("started", 6, number=6, knobs=KNOBS))
    recorder = Console(file=io.StringIO(), width=120, record=True)
    recorder.print(progress.render())
    text = recorder.export_text()
    assert [line.split()[0] for line in text.splitlines() if line and line[0].isdigit()][:2] == ["1", "6"]
    assert "5 not shown" in text


def test_time_left_goes_by_the_pace_of_this_run(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("nas_kd.trials.progress.time.monotonic", lambda: now[0])
    _, console = plain()
    progress = Progress(OBJECTIVES, [make_record(0, KNOBS), make_record(1, KNOBS)], console=console)
    progress(event("begun", 2))
    assert progress.eta_s() is None
    now[0] = 130.0
    progress(ended(2, 3))
    assert progress.eta_s() == pytest.approx(30.0)  # one trial in 30 s, one left; the earlier two do not count
    progress(ended(3, 4))
    assert progress.eta_s() is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (0, "0"),
        (999, "999"),
        (1000, "1k"),
        (1234567, "1.23M"),
        (5e7, "50M"),
        (999.9e6, "1000M"),
        (2e12, "2T"),
    ],
)
def test_counts(value: float | None, text: str) -> None:
    assert format_count(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (65, "1 min 05 s"), (7500, "2 h 05 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
