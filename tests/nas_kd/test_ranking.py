"""Objectives and constraints of a campaign file, from the study to the export."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence

import pytest
import yaml
from commands import cli

from nas_kd import report, search
from nas_kd.config import CampaignConfig, ConfigError
from nas_kd.preflight.file_checks import check_file
from nas_kd.preparation.ranking import check_costs, check_metrics, describe_ranking, known_objectives
from nas_kd.runs import status
from nas_kd.tasks import Classification, Segmentation
from nas_kd.trial import build_context
from nas_kd.trials import Ledger

Tiny = Callable[..., CampaignConfig]


def non_dominated(rows: Sequence[tuple[int, tuple[float, ...]]]) -> set[int]:
    """Numbers of those rows, of which less is better, that no other one beats: by comparing each pair."""
    return {
        number
        for number, own in rows
        if not any(all(a <= b for a, b in zip(other, own, strict=True)) and other != own for _, other in rows)
    }


@pytest.fixture(autouse=True)
def _short_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas_kd.deploy.timing.ROUNDS", 1)


def test_three_objectives_of_which_one_is_measured_rank_study_front_status_and_report(tiny: Tiny) -> None:
    changes = {
        "objectives": ["parameters", "accuracy", "latency_ms"],
        "constraints": {"f1": {"min": 0.0}, "latency_ms": {"max": 1e4}},
        "space": {"depths": [[1], [1]]},
        "budget": {"max_flops": ["150k"]},
        "search": {"shared": True, "epochs": 1, "candidates": 1, "finish": 0},
        "retrain": {"epochs": 1},
        "early_stopping": {"rungs": [1]},
    }
    config = tiny(trials=3, **changes)
    search(config)
    with Ledger.load(config.run_dir) as ledger:
        records, reports = ledger.records(), ledger.reports()
        assert [str(each) for each in ledger.ranking.objectives] == [
            "accuracy (maximize)", "parameters (minimize)", "latency_ms (minimize)",
        ]  # fmt: skip
    assert {tuple(steps[1]) for steps in reports.values()} == {("accuracy", "parameters", "latency_ms", "f1")}
    rows = []
    for record in records:
        assert record.cost is not None or record.state == "stopped"
        if record.state == "complete" and record.cost is not None and record.cost.latency_ms is not None:
            assert reports[record.number][1]["parameters"] == record.cost.params
            assert 0 < record.cost.latency_ms < 1e4
            rows.append((record.number, (-(record.score() or 0.0), float(record.cost.params), record.cost.latency_ms)))
    expected = non_dominated(rows)
    found = status(config.run_dir)
    assert found.objectives == ("accuracy", "parameters", "latency_ms")
    assert {each.number: each.values for each in found.front} == {
        number: (-loss, *costs) for number, (loss, *costs) in rows if number in expected
    }
    paths = report(config.run_dir)
    with paths.front.open() as file:
        assert {int(row["trial"]) for row in csv.DictReader(file)} == expected
    context = build_context(config, "cpu")
    known = known_objectives(context)
    assert known is not None
    for record in records:
        params, latency = known(record.knobs)
        assert record.cost is None or params == record.cost.params
        assert math.isnan(latency)  # it is measured in the trial
    file = config.run_dir.parent / "strict.yaml"
    file.write_text(
        yaml.safe_dump(tiny(trials=3, **{**changes, "constraints": {"f1": {"min": 2}}}).model_dump(mode="json"))
    )
    code, output = cli("search", file)
    assert code == 0
    assert "no complete trial keeps the constraints (f1 at least 2), so the front is empty; loosen them" in output
    with pytest.raises(ValueError, match=r"ranks by accuracy \(maximize\), parameters .* cannot change its objectives"):
        search(tiny(trials=4, **{**changes, "objectives": ["accuracy", "flops"], "constraints": {}}))


def test_a_student_that_is_too_slow_is_not_trained(tiny: Tiny) -> None:
    config = tiny(trials=1, constraints={"latency_ms": {"max": 1e-6}}, search={"epochs": 1}, retrain={"epochs": 50})
    (record,) = search(config).records
    assert record.state == "stopped"
    assert record.warnings[-1].startswith("not trained, since latency_ms is ")
    assert record.cost is not None
    assert not (config.run_dir / "trials" / "0000" / "student.safetensors").exists()
    assert "retrain" not in record.durations_s


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objectives": ["accuracy"]}, "objectives: there are two or three"),
        ({"objectives": ["parameters", "flops"]}, "one must be a metric of the task"),
        ({"objectives": ["accuracy", "params"]}, "there is no cost 'params'; .* so name parameters"),
        ({"objectives": ["accuracy", "predicted_latency_ms"]}, "budget has no max_latency_ms"),
        ({"constraints": {"flops": {"max": 3}}}, "is limited by the budget"),
        ({"constraints": {"latency_ms": {"min": 3}}}, "give max and not min"),
        ({"constraints": {"f1": {"min": 0.1, "max": 0.2}}}, "either min or max"),
    ],
)
def test_what_cannot_rank_is_one_sentence(tiny: Tiny, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        tiny(**changes)
    assert "\n" not in str(raised.value)


class Halved(Classification):
    """A task that measures something else than the one it is made of."""

    def compute(self) -> dict[str, float]:
        return {"accuracy": super().compute()["accuracy"], "half": 0.5}


def test_names_of_metrics_are_known_before_anything_is_read(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=r"^objectives, constraints: task classification measures no 'acuracy'; did"):
        check_file(tiny(objectives=["acuracy", "flops"]))
    with pytest.raises(ConfigError, match="measures no 'half'"):
        check_file(tiny(constraints={"half": {"min": 0.1}}))
    check_file(tiny(objectives=["f1", "accuracy", "flops"], constraints={"auc": {"min": 0.1}}))
    check_metrics(tiny(objectives=["iou_car", "flops"]), Segmentation.known_metrics())
    assert Halved.known_metrics() == ()  # found by the rehearsal


def test_metrics_and_costs_that_there_are_not_are_refused_before_training(tiny: Tiny) -> None:
    config = tiny(objectives=["acuracy", "flops"])
    with pytest.raises(ConfigError, match="measures no 'acuracy'; did you mean 'accuracy'"):
        check_metrics(config, ["accuracy", "f1"])
    config = tiny(objectives=["f1", "accuracy", "worst_frame_flops"])
    assert describe_ranking(config) == "ranked by f1 (maximize), accuracy (maximize), worst_frame_flops (minimize)"
    with pytest.raises(ConfigError, match="have no worst_frame_flops, which only those with key frames have"):
        check_costs(build_context(config, "cpu"))
