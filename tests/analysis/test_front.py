"""The front built from records: who counts, the hypervolume's box, contributions, knee and advice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from synthetic import TEACHER, record, run

from nas_kd.analysis import ParetoFront, TeacherPoint, advise, comparable, summarise, uncertainty
from nas_kd.analysis.failures import failure_groups
from nas_kd.analysis.summary import RunProgress, progress_sentence, trials_sentence
from nas_kd.analysis.text import (
    difference_text,
    error_headline,
    fewer_or_more,
    flops_label,
    metric_text,
    share_text,
    si,
)
from nas_kd.trials.objectives import Constraint, Objective, Ranking
from nas_kd.trials.record import Cost, Evaluated, Metric, TrialRecord

LOSS = Metric(name="loss", maximize=False)


def test_only_complete_measured_trials_compete() -> None:
    records = [
        record(0, 10, 0.5),
        record(1, 1, 0.99, state="stopped"),
        record(2, 1, 0.99, state="failed"),
        record(3, 1, None),
        record(4, 20, 0.4),
    ]
    front = ParetoFront.from_records(records)
    assert [r.number for r in front.records] == [0]
    assert [r.number for r, _, _ in comparable(records)] == [0, 4]


def test_front_is_sorted_by_cost_and_keeps_copies_by_number() -> None:
    records = [record(5, 20, 0.9), record(3, 20, 0.9), record(1, 30, 0.95), record(2, 10, 0.5), record(4, 25, 0.9)]
    front = ParetoFront.from_records(records)
    assert [r.number for r in front.records] == [2, 3, 5, 1]
    np.testing.assert_array_equal(front.points, [[10, 0.5], [20, 0.9], [20, 0.9], [30, 0.95]])
    assert front.contributions[3] == front.contributions[5] == 0.0


def test_default_box_and_hypervolume_by_hand() -> None:
    front = ParetoFront.from_records([record(0, 10, 0.5), record(1, 100, 0.8)])
    assert front.reference == pytest.approx((110.0, 0.0))
    assert front.ideal == (0.0, 1.0)
    assert front.hypervolume == pytest.approx((90 * 0.5 + 10 * 0.8) / 110)
    assert front.contributions == pytest.approx({0: 90 * 0.5 / 110, 1: 10 * 0.3 / 110})


def test_a_metric_below_zero_has_a_hypervolume() -> None:
    ranking = Ranking.of([Objective(name="flops"), Objective(name="accuracy", maximize=True)], limits={"flops": 100.0})
    front = ParetoFront.from_records([record(0, 10, -3.0), record(1, 55, -1.0)], ranking=ranking)
    assert front.reference == (pytest.approx(110.0), -3.0)
    assert front.hypervolume == pytest.approx(55 * 2 / (110 * 4))


def test_a_trial_that_others_beat_changes_no_hypervolume() -> None:
    ranking = Ranking.of([Objective(name="flops"), Objective(name="accuracy", maximize=True)], limits={"flops": 100.0})
    records = [record(0, 10, 0.5), record(1, 40, 0.8), record(2, 50, 0.7), record(3, 100, -0.1), record(4, 900, 0.75)]
    values = [ParetoFront.from_records(records[: 1 + n], ranking=ranking).hypervolume for n in range(5)]
    # Of the box to 1.1 times the limit and accuracy 1, whatever the trials cost.
    assert values == pytest.approx([100 * 0.5 / 110, *[(100 * 0.5 + 70 * 0.3) / 110] * 4])
    front = ParetoFront.from_records(records, ranking=ranking)
    assert [value for _, value in front.hypervolume_history] == values  # the report's curve is the same measure
    assert (front.reference, front.ideal) == ((pytest.approx(110.0), 0.0), (0.0, 1.0))
    tighter = Ranking(ranking.objectives, (Constraint(name="flops", max=40),), ranking.limits)
    assert ParetoFront.from_records(records, ranking=tighter).reference == (pytest.approx(44.0), 0.0)


def test_given_reference_replaces_the_default() -> None:
    front = ParetoFront.from_records([record(0, 10, 0.5), record(1, 100, 0.8)], reference=(20.0, 0.4))
    assert front.hypervolume == pytest.approx(10 * 0.1 / (20 * 0.6))


def test_minimised_metric_turns_the_box_round() -> None:
    records = [record(0, 10, 2.0, metric=LOSS), record(1, 20, 0.5, metric=LOSS), record(2, 20, 0.6, metric=LOSS)]
    front = ParetoFront.from_records(records)
    assert [r.number for r in front.records] == [0, 1]
    assert front.reference == pytest.approx((22.0, 2.0))
    assert front.ideal == (0.0, 0.0)
    assert front.hypervolume == pytest.approx(2 * 1.5 / (22 * 2))


@pytest.mark.parametrize("records", [[], [record(0, 0, 0.5)], [record(0, 5, 0.0, metric=LOSS)]])
def test_a_box_without_area_has_no_hypervolume(records: list[TrialRecord]) -> None:
    front = ParetoFront.from_records(records)
    assert front.hypervolume == 0.0
    assert set(front.contributions.values()) <= {0.0}


def test_other_split_and_stage() -> None:
    metrics = {"retrained": {"val": {"accuracy": 0.5}, "test": {"accuracy": 0.7}}, "gated": {"val": {"accuracy": 0.4}}}
    records = [record(0, 10, metrics=metrics), record(1, 5, 0.6)]
    assert [r.number for r in ParetoFront.from_records(records).records] == [1]
    assert [r.number for r in ParetoFront.from_records(records, split="test").records] == [0]
    assert ParetoFront.from_records(records, stage="gated").points.tolist() == [[10, 0.4]]


def test_two_primary_metrics_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"accuracy \(max\), loss \(min\)"):
        ParetoFront.from_records([record(0, 1, 0.5), record(1, 1, 0.5, metric=LOSS)])


def test_hypervolume_history_never_falls_and_ends_at_the_front() -> None:
    records = run(40)
    front = ParetoFront.from_records(records)
    history = ParetoFront.from_records(list(reversed(records))).hypervolume_history
    numbers, values = zip(*history, strict=True)
    assert list(numbers) == sorted(r.number for r, _, _ in comparable(records))
    assert (np.diff(values) >= 0).all()
    assert values[-1] == pytest.approx(front.hypervolume)
    first = ParetoFront.from_records(records[: numbers[0] + 1], reference=front.reference)
    assert values[0] == pytest.approx(first.hypervolume)


def test_knee_uses_orders_of_magnitude_and_survives_zero_flops() -> None:
    records = [record(0, 10**6, 0.1), record(1, 3 * 10**6, 0.55), record(2, 3 * 10**8, 0.9), record(3, 10**9, 0.95)]
    assert ParetoFront.from_records(records).knee is records[1]  # linear FLOPs would choose trial 2
    assert ParetoFront.from_records([record(0, 0, 0.1), record(1, 10, 0.9), record(2, 99, 1.0)]).knee is not None
    assert ParetoFront.from_records([]).knee is None


def measured(
    number: int, flops: int, value: float, *, clips: int = 400, majority: float = 0.25, **fields: Any
) -> TrialRecord:
    """A trial with the normal interval of its share over so many clips."""
    half = 1.96 * float(np.sqrt(value * (1 - value) / clips))
    evaluated = {"val": {"num_items": clips, "low": value - half, "high": value + half, "majority": majority}}
    return record(number, flops, value, evaluated=evaluated, **fields)


def test_the_pick_is_the_cheapest_within_a_tolerance_of_the_best() -> None:
    records = [record(0, 4_000_000, 0.60), record(7, 12_000_000, 0.944), record(9, 96_000_000, 0.95)]
    advice = advise(ParetoFront.from_records(records), TeacherPoint("big", 1_200_000_000, 0.95), [5e6, 1e7, 1e8, 1e6])
    assert advice is not None
    assert advice.pick.number == 7
    assert advice.sentence == (
        "Pick trial 7: 94.4 % at 12 M FLOPs, the cheapest student within 1.0 points (tolerance) of the best, trial 9, "
        "95.0 % at 96 M FLOPs."
    )
    assert advice.beside == (
        "Compared with the teacher it needs 100× fewer FLOPs, and it is 0.6 points worse on validation."
    )
    assert dict(advice.alternatives) == {
        "Best accuracy": "trial 9, 95.0 % at 96 M FLOPs",
        "Cheapest": "trial 0, 60.0 % at 4 M FLOPs",
        "Cheapest within 1.0 points of the teacher": "trial 7, 94.4 % at 12 M FLOPs",
        "Best within each budget (FLOPs)": (
            "1 M: none; 5 M: trial 0 (60.0 %); 10 M: trial 0 (60.0 %); 100 M: trial 9 (95.0 %)"
        ),
    }
    assert "rests on 1 training run and has no interval" in advice.caveats[0]
    picks = {tolerance: ParetoFront.from_records(records, tolerance=tolerance).pick for tolerance in (0, 0.01, 0.5)}
    assert {tolerance: pick.number for tolerance, pick in picks.items() if pick} == {0: 9, 0.01: 7, 0.5: 0}
    with pytest.raises(ValueError, match="finite number of at least 0, but got inf"):
        ParetoFront.from_records([record(0, 10, 0.5)], tolerance=float("inf"))
    with pytest.raises(ValueError, match="at least 0, but got -1"):
        ParetoFront.from_records(records, tolerance=-1)


def test_one_standard_error_of_the_best_counts_where_it_is_more_than_the_tolerance() -> None:
    records = [measured(0, 10, 0.60), measured(1, 20, 0.73), measured(2, 40, 0.75)]
    front = ParetoFront.from_records(records)
    assert front.allowed_loss == pytest.approx(np.sqrt(0.75 * 0.25 / 400), rel=1e-3)  # 2.2 points
    advice = advise(front)
    assert advice is not None
    assert advice.pick.number == 1
    assert "within 2.2 points (one standard error of the best, over 400 clips) of the best" in advice.sentence
    assert advice.caveats[0] == (
        "The data (400 clips) cannot tell trial 1 and trial 2 apart: the 95 % interval of the difference includes zero."
    )
    # The largest of three normal values is expected 0.85 standard deviations above their mean (Blom: 0.87).
    assert "the best of 3 equally good ones would look 1.9 points better than it is" in advice.caveats[-1]
    many = ParetoFront.from_records([measured(0, 10, 0.73, clips=10**6), measured(2, 40, 0.75, clips=10**6)])
    assert many.pick is not None
    assert many.pick.number == 2


def test_seeds_and_clips_widen_the_interval_together() -> None:
    values = (0.70, 0.72, 0.74)
    one = measured(0, 10, 0.72, repeats={"retrained/val/accuracy": values})
    found = uncertainty(one)
    assert found is not None
    clips, seeds = 1.96 * np.sqrt(0.72 * 0.28 / 400), 4.302653 * 0.02 / np.sqrt(3)
    assert (found.low, found.high) == pytest.approx((0.72 - np.hypot(clips, seeds), 0.72 + np.hypot(clips, seeds)))
    assert found.basis == "400 clips and 3 seeds"
    assert replace(found, num_groups=20, views=2).basis == "400 clips of 20 groups in 2 views each and 3 seeds"
    assert uncertainty(record(0, 10, 0.5)) is None


def test_students_and_teachers_at_chance_are_not_called_good() -> None:
    teacher = TeacherPoint("t", 100, 0.27, evaluated={"val": Evaluated(num_items=100, low=0.19, high=0.36)})
    front = ParetoFront.from_records([measured(0, 10, 0.26, clips=100), measured(1, 50, 0.28, clips=100)])
    advice = advise(front, teacher)
    assert advice is not None
    assert "No student is shown to be better than always giving the most frequent answer (25.0 %)" in advice.caveats[0]
    assert "The teacher itself, 27.0 %, is not shown to be better" in advice.caveats[1]
    good = advise(ParetoFront.from_records([measured(0, 10, 0.9, clips=100)]), None)
    assert good is not None
    assert not any("most frequent" in caveat for caveat in good.caveats)


def test_the_test_value_stands_beside_what_validation_selected() -> None:
    metrics = {"retrained": {"val": {"accuracy": 0.8}, "test": {"accuracy": 0.75}}}
    advice = advise(ParetoFront.from_records([record(0, 10, metrics=metrics)]), TeacherPoint("t", 100, 0.8, 0.79))
    assert advice is not None
    assert advice.beside.endswith(
        "it is equal on validation. On the test split, which selected nothing, it reaches 75.0 %, the teacher 79.0 %."
    )


def test_a_student_that_costs_more_is_not_called_cheaper() -> None:
    advice = advise(ParetoFront.from_records([record(0, 200, 0.5)]), TeacherPoint("t", 100, 0.5))
    assert advice is not None
    assert "Compared with the teacher it needs 2× more FLOPs" in advice.beside
    assert [fewer_or_more(saving) for saving in (9.25, 0.406, 1.001)] == ["9.25× fewer", "2.46× more", "equal"]
    assert [share_text(share) for share in (0.0, 1e-6, 0.03125)] == ["0.0000", "< 0.0001", "0.0312"]


def test_advice_for_short_fronts() -> None:
    assert advise(ParetoFront.from_records([])) is None
    single = advise(ParetoFront.from_records([record(3, 10, 0.5)]))
    assert single is not None
    assert "the only student on the front: no other complete trial is cheaper or better" in single.sentence
    assert single.alternatives == ()
    pair = advise(ParetoFront.from_records([record(3, 10, 0.5), record(4, 20, 0.6)]))
    assert pair is not None
    assert pair.pick.number == 4
    assert "the best one; no cheaper student is within 1.0 points of it (tolerance)" in pair.sentence


def test_a_copy_of_the_pick_is_no_alternative() -> None:
    advice = advise(ParetoFront.from_records([record(0, 10, 0.5), record(1, 10, 0.5)]))
    assert advice is not None
    assert "the first of 2 equal students on the front" in advice.sentence
    assert (advice.pick.number, advice.alternatives) == (0, ())


def test_a_better_cheaper_student_is_said_to_be_so_whatever_the_direction() -> None:
    good = record(0, 10, 0.2, metric=LOSS)
    advice = advise(ParetoFront.from_records([good]), TeacherPoint("t", 100, 0.3))
    assert advice is not None
    assert "10× fewer FLOPs, and it is 0.1 better on" in advice.beside
    minimised = [record(0, 10, 0.201, metric=LOSS), record(1, 20, 0.2, metric=LOSS)]
    assert ParetoFront.from_records(minimised).pick is minimised[0]  # within 1 % of the best


def test_summary_counts_states_reasons_and_architectures() -> None:
    records = run(30)
    assert trials_sentence(records).startswith("30 trials: 22 complete, 3 failed, 5 stopped early. They began on 2026-")
    text = " ".join(summarise(records, ParetoFront.from_records(records), TEACHER))
    assert "2 × FloatingPointError: the loss became NaN in epoch 3" in text
    assert "27 trials chose an architecture: 27 unique architectures." in text
    assert "The teacher, R3D, width 64, reaches 95.7 % at 1.91 G FLOPs." in text


@pytest.mark.parametrize(
    ("begun", "expected"),
    [
        (
            ["2026-11-27T05:10:05+00:00"],
            "1 trial: 1 complete, 0 failed, 0 stopped early. It began on 2026-11-27, 05:10 UTC.",
        ),
        (
            ["2026-11-27T23:10:05+00:00", "2026-11-27T05:09:59+00:00"],
            "2 trials: 2 complete, 0 failed, 0 stopped early. They began on 2026-11-27, from 05:09 to 23:10 UTC.",
        ),
        (
            ["2026-11-27T23:10:05+00:00", "2026-11-28T00:01:00+00:00"],
            "2 trials: 2 complete, 0 failed, 0 stopped early. They began on 2026-11-27, from 23:10 to 2026-11-28, "
            "00:01 UTC.",
        ),
        ([""], "1 trial: 1 complete, 0 failed, 0 stopped early."),
    ],
)
def test_when_trials_began_is_said(begun: list[str], expected: str) -> None:
    records = [record(number, 1, 0.5, started_at=text) for number, text in enumerate(begun)]
    assert trials_sentence(records) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(12_345_678, "12.3 M"), (999_950, "1 M"), (999_499, "999 k"), (950, "950"), (0, "0"), (1.5e9, "1.5 G"),
     (0.25, "0.25"), (-2_000, "-2 k"), (None, "–")],
)  # fmt: skip
def test_si_prefixes(value: float | None, expected: str) -> None:
    assert si(value) == expected


def test_text_of_metrics_and_errors() -> None:
    accuracy = Metric(name="accuracy", percent=("accuracy", "iou_*"))
    assert metric_text(0.9314, accuracy) == "93.1 %"
    assert metric_text(0.9314, accuracy.model_copy(update={"name": "accuracy@3"})) == "93.1 %"
    assert metric_text(0.5, accuracy.model_copy(update={"name": "iou_car"})) == "50.0 %"
    assert metric_text(0.5, accuracy.model_copy(update={"name": "loss"})) == "0.5"
    assert metric_text(0.9314, Metric(name="nss")) == "0.9314"
    assert difference_text(-0.0123, accuracy) == "1.2 points"
    assert si(39_000_000, trim=False) == "39.0 M"
    chained = (
        "Traceback (most recent call last):\n  File 'a'\nKeyError: 'x'\n\nDuring handling, another:\n\n"
        "Traceback (most recent call last):\n  File 'b'\n    raise\nmodule.RealError: the cause\nwith a second line\n"
    )
    assert error_headline(chained) == "module.RealError: the cause"
    assert error_headline("out of disk\nsecond line") == "out of disk"
    assert error_headline(None) == error_headline(" \n") == ""


def test_streams_count_flops_per_frame() -> None:
    stream = record(
        0, cost=Cost(flops=9, params=1, keyframe_flops=16, delta_flops=8, keyframe_interval=8, state_bytes=1)
    )
    assert flops_label([stream]) == "amortised FLOPs per frame"
    assert flops_label([record(1, 5, 0.5)]) == "FLOPs per clip"
    assert "for streaming students" in flops_label([stream, record(1, 5, 0.5)])


def test_a_lower_bound_of_the_teachers_flops_gives_no_ratio() -> None:
    teacher = TeacherPoint("big", 1_200_000_000, 0.96, uncounted=("prim::PythonOp.F", "aten::fft_rfft"))
    assert teacher.saving(1000) is None
    front = ParetoFront.from_records([record(0, 1_000_000, 0.9)])
    assert teacher.cost(front.axis) is None
    advice = advise(front, teacher)
    assert advice is not None
    sentence = advice.beside
    assert "needs at least 1,200,000,000 FLOPs (uncounted: prim::PythonOp.F, aten::fft_rfft)" in sentence
    assert "fewer" not in sentence


def test_equal_failures_are_one_group_whatever_they_name() -> None:
    texts = [
        "ValueError: width 12 of 'abc' in /tmp/a/b.py is wrong",
        "ValueError: width 480 of 'x y' in /home/c.py is wrong",
        "ValueError: arch 3fa9c01b77d2 has no layer",
        "ValueError: arch 00ab34cd99ef has no layer",
        "OSError: disk",
    ]
    records = [record(number, state="failed", error=text) for number, text in enumerate(texts)]
    groups = {reason: [r.number for r in group] for reason, group in failure_groups(records)}
    assert groups == {texts[0]: [0, 1], texts[2]: [2, 3], texts[4]: [4]}


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        (RunProgress(3), ""),
        (None, ""),
        (RunProgress(5, 1, True), "This campaign is running: 3 of 5 trials ended, 1 running, 1 left. Report again"),
        (
            RunProgress(5, 1, False),
            "This campaign was interrupted: 3 of 5 trials ended, 2 left. The same `nas-kd",
        ),
    ],
)
def test_a_campaign_that_has_not_ended_says_what_is_left(progress: RunProgress | None, expected: str) -> None:
    sentence = progress_sentence([record(n, state="stopped") for n in range(3)], progress)
    assert sentence.startswith(expected)
    assert bool(sentence) == bool(expected)
