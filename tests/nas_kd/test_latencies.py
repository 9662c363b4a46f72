"""Latencies are measured after the trials, in turns, and only those are shown."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nas_kd.analysis.latencies import LATENCY_NAME, TEACHER, Latencies, Latency, read_latencies, with_latencies
from nas_kd.campaign import search
from nas_kd.config import CampaignConfig
from nas_kd.runs import latencies as measuring
from nas_kd.runs import report
from nas_kd.trials import Cost, Ledger, Metric, TrialRecord


def test_the_front_and_the_teacher_are_measured_when_all_trials_have_ended(tiny: Callable[..., CampaignConfig]) -> None:
    assert (measuring.LATENCY_NAME, measuring.TEACHER) == (LATENCY_NAME, TEACHER)
    result = search(tiny(trials=1, search={"epochs": 1}, retrain={"epochs": 1}))
    (kept,) = Ledger.load(result.run_dir).records()
    assert kept.cost is not None
    assert kept.cost.latency_ms is None  # a trial may run beside others
    measured = read_latencies(result.run_dir)
    assert measured is not None
    (record,) = result.records
    assert record.cost == kept.cost.model_copy(update={"latency_ms": measured.nets["0"].ms})
    assert set(measured.nets) == {TEACHER, "0"}
    assert all(0 < net.low <= net.ms <= net.high for net in measured.nets.values())
    page = report(result.run_dir)
    assert "The teacher needs" in page.report.read_text()
    assert f"{measured.nets['0'].ms:.3g}" in page.report.read_text()
    before = (result.run_dir / LATENCY_NAME).read_bytes()
    search(tiny(trials=1, search={"epochs": 1}, retrain={"epochs": 1}))  # nothing new, so nothing is measured again
    assert (result.run_dir / LATENCY_NAME).read_bytes() == before


@pytest.mark.parametrize(
    ("waited", "high", "words"), [(0.3, 1.1, "busy with other work (30%"), (0.0, 2.0, "spread widely"), (0.0, 1.1, "")]
)
def test_a_busy_machine_is_told(waited: float, high: float, words: str) -> None:
    nets = {"3": Latency(ms=1.0, low=0.9, high=high)}
    note = Latencies(environment={"threads": "1"}, waited_share=waited, passes=50, nets=nets).note
    assert words in note
    assert ("machine" in note) == bool(words)


def test_what_a_trial_measured_beside_others_is_not_shown() -> None:
    record = TrialRecord(
        number=3, state="complete", seed=0, config_hash="", knobs={}, metric=Metric(name="a"),
        cost=Cost(flops=1, params=1, latency_ms=9.0),
    )  # fmt: skip
    nets = {"3": Latency(ms=1.0, low=0.9, high=2.0)}
    known = Latencies(environment={}, waited_share=0, passes=50, nets=nets)
    for latencies, expected in ((None, None), (known, 1.0)):
        (shown,) = with_latencies([record], latencies)
        assert shown.cost is not None
        assert shown.cost.latency_ms == expected
