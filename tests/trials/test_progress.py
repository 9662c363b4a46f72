from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console
from toy_trials import METRIC, make_record

from nas_kd.trials import Event, Progress, Ranking, TrialRecord
from nas_kd.trials.progress import box_text, format_count, format_duration
from nas_kd.trials.record import KnobValue

RANKING = Ranking.default(METRIC)
KNOBS: dict[str, KnobValue] = {"width": 8, "rate": 0.1, "op": "conv", "max_flops": 50_000_000}


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
    with Progress(RANKING, console=console) as progress:
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
    with Progress(RANKING, console=console) as progress:
        progress(event("started", number=0, knobs={**choices, "resolution": 24}))
    shown = [f"arch.stages.{i}.op=conv" for i in range(5)]
    assert file.getvalue().splitlines() == [f"[0/4] trial 0 started resolution=24, {', '.join(shown)}, and 15 more"]


def test_plain_log_gets_a_line_a_quarter_of_each_trial_and_every_rung() -> None:
    file, console = plain()
    with Progress(RANKING, console=console) as progress:
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
    with Progress(RANKING, console=console) as progress:
        record = make_record(1, KNOBS, "failed", error="Traceback:\n  File\nValueError: [bad] value\n")
        progress(event("ended", 1, number=1, knobs=KNOBS, record=record))
    assert "[1/4] trial 1 failed" in file.getvalue()
    assert "ValueError: [bad] value" in file.getvalue()


def test_live_table_marks_the_front_and_survives_markup() -> None:
    file = io.StringIO()
    console = Console(file=file, width=120, force_terminal=True)
    earlier = [make_record(0, {**KNOBS, "width": 64}), make_record(1, KNOBS, "stopped")]
    with Progress(RANKING, earlier, console=console) as progress:
        progress(event("begun", 2))
        progress(event("started", 2, number=2, knobs=KNOBS))
        progress(event("progress", 2, number=2, fraction=0.5, message="epoch [3] of [/bold]"))
        progress(ended(3, 3, width=64, metrics={"derived": {"val": {"accuracy": 0.1}}}))
        assert progress.front() == {0}
        console_plain = Console(file=io.StringIO(), width=120, force_terminal=False, record=True)
        console_plain.print(progress.render())
    text = console_plain.export_text()
    rows = {line.split()[0]: line for line in text.splitlines() if line and line[0].isdigit()}
    assert "width=8" in rows["2"]
    assert "running" in rows["2"]
    assert "epoch [3] of [/bold]" in rows["2"]
    assert "*" in rows["0"]
    assert "*" not in rows["3"]
    assert "stopped" in rows["1"]
    assert "3 of 4 trials ended, 1 on the front" in text


def test_running_trials_and_the_front_are_shown_first() -> None:
    _, console = plain()
    records = [make_record(i, {**KNOBS, "width": 64 if i else 1}, metrics={}, state="failed") for i in range(0)]
    progress = Progress(RANKING, records, console=console, max_rows=2)
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


def test_time_left_goes_by_the_time_of_a_trial_and_how_many_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("nas_kd.trials.progress.time.monotonic", lambda: now[0])
    _, console = plain()
    progress = Progress(RANKING, console=console)
    progress(Event("preparing", 0, 8, message="starting Ray"))
    assert progress.eta_s() is None
    now[0] = 130.0  # Ray took 30 s, which the time left has nothing to do with
    for number in (0, 1):
        progress(Event("started", 0, 8, number=number, knobs=KNOBS))
    now[0] = 140.0  # a process started for 10 s
    for number in (0, 1):
        progress(Event("progress", 0, 8, number=number, fraction=0.0))
    now[0] = 150.0
    progress(Event("progress", 0, 8, number=0, fraction=0.25))
    assert progress.eta_s() == pytest.approx((0.75 * 40 + 40 + 6 * 40) / 2)  # a quarter took 10 s
    now[0] = 180.0
    record = make_record(0, KNOBS)
    progress(Event("ended", 1, 8, number=0, knobs=KNOBS, record=record))
    assert progress.eta_s() == pytest.approx((40 + 6 * 40) / 2)  # measured from its first report on
    progress(Event("started", 1, 8, number=2, knobs=KNOBS))
    progress(Event("progress", 1, 8, number=1, fraction=0.5))  # 40 s by now: half of it as the other, half by itself
    progress(Event("progress", 1, 8, number=2, fraction=0.25))
    assert progress.eta_s() == pytest.approx((0.5 * (0.5 * 80 + 0.5 * 40) + 30 + 5 * 40) / 2)
    for number in range(1, 7):
        progress(Event("ended", number + 1, 8, number=number, knobs=KNOBS, record=timed(number, 60.0)))
    progress(Event("started", 7, 8, number=7, knobs=KNOBS))
    assert progress.eta_s() == pytest.approx((40 + 6 * 60) / 7)  # the last one runs alone
    progress(Event("ended", 8, 8, number=7, knobs=KNOBS, record=timed(7, 60.0)))
    assert progress.eta_s() is None


def timed(number: int, seconds: float) -> TrialRecord:
    return make_record(number, KNOBS, durations_s={"total": seconds})


def test_time_left_of_a_resumed_run_goes_by_the_trials_before() -> None:
    _, console = plain()
    progress = Progress(RANKING, [timed(0, 20.0), timed(1, 40.0)], console=console)
    progress(event("begun", 2))
    assert progress.eta_s() == pytest.approx(60.0)


def test_the_table_and_the_log_tell_the_hypervolume_of_the_front(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas_kd.trials.progress._PAUSE", 0.0)
    file, console = plain()
    seen: list[list[int]] = []

    def measure(records: Sequence[TrialRecord]) -> float:
        seen.append([record.number for record in records])
        return 0.25 * len(records)

    with Progress(RANKING, [timed(0, 1.0)], hypervolume=measure, console=console) as progress:
        progress(ended(1, 2))
        progress(ended(2, 3, state="failed"))  # changes nothing
    assert seen == [[0], [0, 1]]
    assert "- hypervolume 0.5000 - " in file.getvalue().splitlines()[0]
    assert "hypervolume" not in file.getvalue().splitlines()[1]
    recorder = Console(file=io.StringIO(), width=120, record=True)
    recorder.print(progress.render())
    box = "of accuracy from 0 to 1, flops from the largest so far to 0"
    assert f"on the front, hypervolume 0.5000 ({box}), " in " ".join(recorder.export_text().split())
    limited = replace(RANKING, limits={"flops": 8_000_000.0})
    assert box_text(limited) == "accuracy from 0 to 1, flops from 8.8M to 0"


def test_the_live_table_tells_trials_apart_by_their_knobs() -> None:
    _, console = plain()
    progress = Progress(RANKING, console=console)
    arch = {f"arch.stages.{i}.op": "conv" for i in range(20)}
    for number, weight in enumerate((0.5, 1.0)):
        knobs = {**arch, "a.delta.weight": weight, "a.logits.weight": number, "max_flops": 5_000_000, "same": 1}
        progress(event("started", number=number, knobs={**knobs, "arch.stages.0.op": str(number)}))
    recorder = Console(file=io.StringIO(), width=120, record=True)
    recorder.print(progress.render())
    text = recorder.export_text()
    assert "delta.weight=0.5, logits.weight=0 " in text
    assert "delta.weight=1, logits.weight=1 " in text
    assert "max_flops" not in text


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
