"""The time left of a campaign: trials of unequal cost, and what is told of it after a quarter."""

from __future__ import annotations

import io
import random
import sys
from collections.abc import Sequence

import pytest
from rich.console import Console
from toy_trials import METRIC, SPACE, make_record, open_ledger

from nas_kd.trials import Event, Progress, Ranking, Underway, time_left
from nas_kd.trials.pace import Pace


def paced(*trials: tuple[float, float], times: int = 1000) -> Pace:
    """The pace of trials of which there are so many that nothing is in doubt."""
    pace = Pace()
    for seconds, work in trials * times:
        pace.add(seconds, work)
    return pace


def near(seconds: float) -> object:
    return pytest.approx(seconds, rel=0.005)


def test_a_trial_takes_a_base_and_a_rate_times_its_work() -> None:
    pace = paced((30.0, 1.0), (50.0, 2.0), (90.0, 4.0))  # 10 + 20 * work
    assert pace.seconds(8.0) == near(170)
    assert pace.seconds(None) == near(170 / 3)
    assert paced((30.0, 2.0), (20.0, 4.0)).seconds(8.0) == near(25)  # more work never takes less time
    assert paced((10.0, 2.0), (40.0, 4.0)).seconds(8.0) == near(8 * 50 / 6)  # the time is all work
    assert paced((30.0, 2.0), (40.0, 2.0)).seconds(8.0) == near(35)  # nothing is known of other work
    assert Pace().seconds(1.0) is None


def test_two_trials_of_nearly_the_same_work_say_little_of_others() -> None:
    pace = paced((25.0, 1.99), (35.0, 2.85), times=1)  # as a line, 91 s; on average 30 s
    assert pace.seconds(7.7) == pytest.approx(44.7, abs=0.1)


def test_trials_that_are_stopped_early_shorten_what_is_expected_of_others() -> None:
    pace = paced((20.0, 1.0), (40.0, 2.0))
    for _ in range(1000):
        pace.add(10.0, 2.0, complete=False)
    assert pace.seconds(4.0) == near(80 * 70 / 100)  # 70 s in place of the 100 s of three complete ones


def test_the_time_left_counts_running_queued_and_other_trials() -> None:
    pace = paced((10.0, 1.0), (20.0, 2.0))
    running = [Underway(3.0, 10.0), Underway(None, 5.0)]
    assert time_left(pace, running, [4.0], 2, mean_work=2.0, at_once=2) == near((20 + 15 + 40 + 2 * 20) / 2)
    assert time_left(pace, [Underway(9.0, 0.0)], [], 0, mean_work=2.0, at_once=2) == near(90)  # it runs alone
    assert time_left(Pace(), [Underway(1.0, 5.0, 0.05)], [], 3, mean_work=1.0, at_once=1) is None
    assert time_left(Pace(), [Underway(1.0, 5.0, 0.25)], [], 3, mean_work=1.0, at_once=1) == near(15 + 60)


WORKS = [8.0 ** (step / 3) for step in range(4)]  # of four budgets, as a campaign queues them: the cheapest first


def simulated(seed: int, num_trials: int, base: float) -> list[tuple[float, float]]:
    """Work and seconds of trials: those of the budgets, then any in their range; a seventh of the time is chance."""
    draw = random.Random(seed)
    works = [*WORKS, *(8 ** draw.random() for _ in range(num_trials - len(WORKS)))]
    return [(work, (base + 20 * work) * draw.lognormvariate(0, 0.15)) for work in works]


def ratio_after_a_quarter(
    trials: Sequence[tuple[float, float]], at_once: int, monkeypatch: pytest.MonkeyPatch, *, known: bool = True
) -> float:
    """What the live table tells after a quarter of a campaign's time, over what is left in truth."""
    now = [0.0]
    monkeypatch.setattr("nas_kd.trials.progress.time.monotonic", lambda: now[0])
    begins, ends, free = [], [], [0.0] * at_once
    for _, seconds in trials:
        place = free.index(min(free))
        begins.append(free[place])
        free[place] += seconds
        ends.append(free[place])
    quarter = max(ends) / 4
    console = Console(file=io.StringIO(), force_terminal=False)
    progress = Progress(Ranking.default(METRIC), works=dict(enumerate(WORKS)) if known else {}, console=console)
    happened = [(begin, 1, number) for number, begin in enumerate(begins)]
    happened += [(end, 0, number) for number, end in enumerate(ends)]
    happened += [(quarter, 2, n) for n in range(len(trials)) if begins[n] < quarter < ends[n]]
    num_ended = 0
    knobs = {"width": 1, "rate": 0.1, "op": "conv"}
    for when, what, number in sorted(each for each in happened if each[0] <= quarter):
        now[0] = when
        work, seconds = trials[number]
        fields = {"number": number, "knobs": knobs}
        if what == 1:
            progress(Event("started", num_ended, len(trials), **fields, work=work if known else None))
            progress(Event("progress", num_ended, len(trials), **fields, fraction=0.0))
        elif what == 0:
            num_ended += 1
            record = make_record(number, knobs, durations_s={"total": seconds})
            progress(Event("ended", num_ended, len(trials), **fields, record=record))
        else:
            progress(Event("progress", num_ended, len(trials), **fields, fraction=(when - begins[number]) / seconds))
    now[0] = quarter
    told = progress.eta_s()
    assert told is not None
    return told / (max(ends) - quarter)


@pytest.mark.parametrize(
    ("num_trials", "at_once", "base", "least"),
    [(12, 1, 0.0, 18), (12, 2, 30.0, 17), (40, 1, 30.0, 19), (40, 4, 0.0, 20)],
)
def test_after_a_quarter_the_time_left_holds_within_30_percent(
    num_trials: int, at_once: int, base: float, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 20 campaigns. What the sampler will propose is not known: the sum of eight such trials varies by a quarter."""

    def num_held(*, known: bool) -> int:
        campaigns = [simulated(seed, num_trials, base) for seed in range(20)]
        told = [ratio_after_a_quarter(trials, at_once, monkeypatch, known=known) for trials in campaigns]
        return sum(0.7 <= ratio <= 1.3 for ratio in told)

    held = num_held(known=True)
    assert held >= least
    assert held > num_held(known=False)  # by the mean time of the trials that ended


@pytest.mark.parametrize("num_queued", [4, 0])
def test_the_time_left_holds_in_a_campaign_as_it_was(num_queued: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """MFLOPs and seconds of trials of a small campaign of moving digits, the first four those of its budgets."""
    trials = [(1.99, 25), (2.85, 35), (4.91, 35), (7.7, 41), (6.53, 39), (6.83, 43), (6.75, 45), (6.57, 33)]
    monkeypatch.setattr(sys.modules[__name__], "WORKS", [work for work, _ in trials[:num_queued]])
    assert ratio_after_a_quarter(trials, 1, monkeypatch) == pytest.approx(1, abs=0.3)


def test_a_ledger_keeps_the_work_of_its_trials(tmp_path: object) -> None:
    run_dir = tmp_path
    with open_ledger(run_dir) as ledger:  # type: ignore[arg-type]
        cells = [{"width": 4, "rate": 0.1, "op": "conv"}, {"width": 8}]
        numbers = ledger.enqueue(cells, SPACE, work=lambda knobs: knobs["width"] if "op" in knobs else None)
        assert ledger.works() == {0: 4}
        first = ledger.ask(SPACE, sampler="random", work=lambda knobs: float(knobs["width"]))
        second = ledger.ask(SPACE, sampler="random", work=lambda knobs: float(knobs["width"]))
        third = ledger.ask(SPACE, sampler="random", work=lambda knobs: 7.0)
        assert [first.work, second.work, third.work] == [4, 8, 7]
        assert [each.work for each in ledger.running()] == [4, 8, 7]
        assert ledger.works() == {0: 4, 1: 8, 2: 7}
        assert numbers == [0, 1]
