"""Fronts of other objectives than a metric against FLOPs, computed by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic import ACCURACY, TEACHER, record

from nas_kd.analysis import ParetoFront, TeacherPoint, advise, compare, front_figure, judged, summarise, write_report
from nas_kd.analysis.comparison import Run
from nas_kd.analysis.interactive import front_chart
from nas_kd.trials import Constraint, Objective, Ranking, TrialRecord
from nas_kd.trials.record import Cost

BEST = Objective(name="accuracy", maximize=True)
F1 = Objective(name="f1", maximize=True)
PARAMETERS, FLOPS, LATENCY = (Objective(name=name) for name in ("parameters", "flops", "latency_ms"))
BY_PARAMETERS, BY_LATENCY = Ranking((BEST, PARAMETERS)), Ranking((BEST, LATENCY))
BY_THREE = Ranking((BEST, PARAMETERS, LATENCY))


def trial(number: int, accuracy: float, flops: int, params: int, latency_ms: float, f1: float = 0.5) -> TrialRecord:
    return record(
        number,
        cost=Cost(flops=flops, params=params, latency_ms=latency_ms),
        metrics={"retrained": {"val": {"accuracy": accuracy, "f1": f1}, "test": {"accuracy": accuracy - 0.01}}},
    )


TRIALS = [
    trial(0, 0.70, flops=100, params=900, latency_ms=3.0, f1=0.9),
    trial(1, 0.80, flops=200, params=500, latency_ms=5.0, f1=0.6),
    trial(2, 0.75, flops=400, params=400, latency_ms=2.0, f1=0.7),
    trial(3, 0.90, flops=900, params=800, latency_ms=4.0, f1=0.2),
    trial(4, 0.60, flops=950, params=600, latency_ms=2.5, f1=0.95),
]


@pytest.mark.parametrize(
    ("ranking", "numbers"),
    [
        (None, [0, 1, 3]),  # against FLOPs
        (BY_PARAMETERS, [2, 1, 3]),
        (BY_LATENCY, [2, 3]),
        (BY_THREE, [2, 1, 3]),  # trial 1 is slower than 3, but smaller
        (Ranking((BEST, F1)), [3, 1, 2, 0, 4]),
        (Ranking((BEST, FLOPS), (Constraint(name="f1", min=0.5),)), [0, 1]),  # trial 3 has too little f1
        (Ranking((BEST, FLOPS), (Constraint(name="latency_ms", max=4.5),)), [0, 2, 3]),
        (Ranking((BEST, FLOPS), (Constraint(name="f1", min=0.99),)), []),
    ],
)
def test_the_front_is_that_of_the_objectives(ranking: Ranking | None, numbers: list[int]) -> None:
    front = ParetoFront.from_records(TRIALS, ranking=ranking)
    assert [each.number for each in front.records] == numbers
    for drawn in (front_figure(TRIALS, front=front), front_chart(TRIALS, front=front, teacher=TEACHER)):
        assert drawn is not None


def test_hypervolume_of_three_objectives_is_the_sum_of_its_boxes() -> None:
    front = ParetoFront.from_records(TRIALS, ranking=BY_THREE)
    assert front.reference == pytest.approx((990, 5.5, 0))
    # Slices by parameters: from 400 on trial 2, from 500 on 1 beside it, from 800 on 3, which is better than 1 from
    # latency 4 on.
    area_2 = (5.5 - 2.0) * 0.75
    area_1_2 = area_2 + (5.5 - 5.0) * 0.05
    area_all = area_2 + (5.5 - 4.0) * 0.15
    volume = 100 * area_2 + 300 * area_1_2 + 190 * area_all
    assert front.hypervolume == pytest.approx(volume / (990 * 5.5))
    assert front.hypervolume_history[-1] == (4, pytest.approx(front.hypervolume))


def test_pick_and_advice_follow_the_objectives() -> None:
    teacher = TeacherPoint("big", 9000, 0.95, params=8000)
    picked = {}
    for name, ranking in (("parameters", BY_PARAMETERS), ("latency", BY_LATENCY), ("three", BY_THREE)):
        front = ParetoFront.from_records(TRIALS, ranking=ranking, tolerance=0.16)
        assert front.pick is not None
        picked[name] = front.pick.number
    assert picked == {"parameters": 2, "latency": 2, "three": 2}
    advice = advise(ParetoFront.from_records(TRIALS, ranking=BY_PARAMETERS), teacher)
    assert advice is not None
    assert advice.sentence.startswith("Pick trial 3: 90.0 % at 800 parameters, the best one")
    assert advice.beside.startswith(
        "Compared with the teacher it needs 10× fewer parameters, and it is 5.0 points worse"
    )
    assert "FLOPs" not in " ".join([advice.sentence, advice.beside, *(text for _, text in advice.alternatives)])
    three = advise(ParetoFront.from_records(TRIALS, ranking=BY_THREE), teacher)
    assert three is not None
    assert dict(three.alternatives)["Cheapest in latency"] == "trial 2, 75.0 % at 400 parameters, 2 ms"
    by_latency = advise(ParetoFront.from_records(TRIALS, ranking=BY_LATENCY), teacher)
    assert by_latency is not None
    assert by_latency.beside.startswith(
        "It is 5.0 points worse than the teacher on validation, whose latency is not known."
    )


def test_another_metric_may_be_judged_by() -> None:
    ranking = Ranking((F1, PARAMETERS))
    front = ParetoFront.from_records(judged(TRIALS, ranking), ranking=ranking)
    assert [each.number for each in front.records] == [2, 4]
    assert front.best is not None
    assert front.best.score() == 0.95


@pytest.mark.parametrize("ranking", [BY_THREE, Ranking((BEST, F1))])
def test_the_report_says_nothing_of_flops_as_what_trials_are_ranked_by(ranking: Ranking, tmp_path: Path) -> None:
    paths = write_report(TRIALS, tmp_path, title="t", teacher=TEACHER, metadata={"run": "r"}, ranking=ranking)
    page = paths.report.read_text().replace("\u00a0", " ")
    front = ParetoFront.from_records(TRIALS, ranking=ranking)
    summary = " ".join(summarise(TRIALS, front))
    assert "FLOPs" not in summary
    assert front.place_text(front.records[0]) in page
    assert paths.front.read_text().count("\n") == 1 + len(front.records)


def test_where_no_student_keeps_the_constraints_the_report_says_which(tmp_path: Path) -> None:
    ranking = Ranking((BEST, FLOPS), (Constraint(name="f1", min=0.99),))
    page = write_report(TRIALS, tmp_path, title="t", teacher=None, metadata={}, ranking=ranking).report.read_text()
    words = "Students must keep f1 at least 0.99; 5 of 5 comparable trials do not."
    assert f"There is nothing to pick yet: {words}" in page


def test_campaigns_of_the_same_objectives_are_compared_by_them_others_by_flops() -> None:
    same = compare([Run("a", 0, {}, TRIALS, ranking=BY_PARAMETERS), Run("b", 1, {}, TRIALS, ranking=BY_PARAMETERS)])
    assert same.axis.name == "parameters"
    mixed = compare([Run("a", 0, {}, TRIALS, ranking=BY_PARAMETERS), Run("b", 1, {}, TRIALS, ranking=BY_THREE)])
    assert mixed.axis.name == "flops"
    assert ACCURACY.is_same_as(mixed.metric)
