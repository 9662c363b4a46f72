from __future__ import annotations

from typing import Any

import pytest
from synthetic import record

from nas_kd.analysis.agreement import ROUNDING, Agreement, WeightsCompared, compare_records
from nas_kd.trials import Cost, Evaluated, TrialRecord

METRICS = {"derived": {"val": {"accuracy": 0.5}}, "retrained": {"val": {"accuracy": 0.75}, "test": {"loss": 20.0}}}


def trial(accuracy: float = 0.75, loss: float = 20.0, flops: int = 1_000_000, **fields: Any) -> TrialRecord:
    metrics = {**METRICS, "retrained": {"val": {"accuracy": accuracy}, "test": {"loss": loss}}}
    own = {"metrics": metrics, "environment": {"torch": "2"}, "cost": Cost(flops=flops, params=50), "arch_id": "ab"}
    return record(4, **{**own, **fields})


def texts(found: Agreement) -> dict[str, tuple[str, ...]]:
    return {name: tuple(others) for name, *others in (row.texts() for row in found.rows)}


def test_what_is_equal_to_the_last_bit() -> None:
    found = compare_records(trial(), trial(durations_s={"total": 9.0}), WeightsCompared(3, 1234, 0.5, 0.0))
    assert (found.verdict, found.is_reproduced) == ("bit by bit", True)
    shown = texts(found)
    assert shown["FLOPs per clip"] == ("1,000,000", "1,000,000", "0")
    assert shown["validation accuracy"] == ("75.00 %", "75.00 %", "0")
    assert shown["test loss"] == ("20", "20", "0")
    assert shown["validation accuracy, weights of the supernet"][2] == "0"
    assert shown["weights, largest difference"] == ("1,234 in 3 tensors", "1,234 in 3 tensors", "0")
    assert found.sentences() == [f"equal bit by bit: trial 4 gives what its record says in all {len(shown)} values"]
    assert found.table().row_count == len(shown) - 2  # without the derived student's and the secondary metric
    assert found.table().caption == "not shown, since equal to the last bit: 2 further values"
    elsewhere = compare_records(trial(), trial(environment={"torch": "3"}), None)
    assert elsewhere.sentences()[1] == "although the environment is another one (torch: 2 then, 3 now)"


@pytest.mark.parametrize(
    ("fields", "weights", "verdict"),
    [
        ({"accuracy": 0.75 + 0.9 * ROUNDING}, None, "within rounding"),
        ({"accuracy": 0.75 - 1.1 * ROUNDING}, None, "different"),
        ({"loss": 20 + 19 * ROUNDING}, None, "within rounding"),  # of its size
        ({"loss": 20 + 21 * ROUNDING}, None, "different"),
        ({}, 1.9 * ROUNDING, "within rounding"),
        ({}, 2.1 * ROUNDING, "different"),
        ({"flops": 999_999}, 0.0, "different"),  # a count is exact
        ({"arch_id": "another"}, 0.0, "different"),
    ],
)
def test_what_counts_as_rounding(fields: dict[str, Any], weights: float | None, verdict: str) -> None:
    compared = None if weights is None else WeightsCompared(1, 9, 2.0, weights)  # of which the largest one is 2
    assert compare_records(trial(), trial(**fields), compared).verdict == verdict


def test_differences_and_what_may_explain_them() -> None:
    found = compare_records(trial(), trial(0.7, 21.5, 900_000), WeightsCompared(1, 9, 2.0, None))
    shown = texts(found)
    assert shown["validation accuracy"] == ("75.00 %", "70.00 %", "−5 points")
    assert shown["test loss"] == ("20", "21.5", "+1.5")
    assert shown["FLOPs per clip"][2] == "−100,000"
    assert shown["weights, largest difference"][1:] == ("other shapes", "differs")
    first, second = found.sentences()  # its costs are others, so nothing is said of the training
    assert first == (
        "different: trial 4 does not give what its record says (FLOPs per clip; validation accuracy; test loss; "
        "weights, largest difference)"
    )
    assert second.startswith("nothing that the record holds of its environment has changed; other libraries, code")
    known = trial(evaluated={"val": Evaluated(num_items=40, low=0.6, high=0.9), "test": Evaluated(num_items=40)})
    moved = compare_records(known, trial(0.7, environment={"torch": "3", "nas-kd": "1"}), None, ("aa", "bb"))
    assert moved.sentences()[1:] == [
        "architecture, costs and what was measured before the student's training are equal within rounding, so the "
        "difference arose in that training",
        "the validation accuracy now, 70.0 %, lies within the record's 95 % interval over the items of the split, "
        "60.0 – 90.0 %",
        "the environment is another one, which may explain it (torch: 2 then, 3 now; nas-kd: not recorded then, 1 now; "
        "hash of the settings: aa then, bb now)",
    ]
    assert "now, 95.0 %, lies outside the record's" in compare_records(known, trial(0.95), None).sentences()[2]


def test_each_training_of_several_counts_and_a_metric_that_is_gone() -> None:
    one = trial(repeats={"retrained/val/accuracy": (0.7, 0.8)})
    swapped = trial(repeats={"retrained/val/accuracy": (0.8, 0.7)})
    assert compare_records(one, swapped, None).verdict == "different"  # though their mean is the same
    gone = trial(metrics={"retrained": {"val": {"accuracy": 0.75}}})
    assert texts(compare_records(trial(), gone, None))["test loss"] == ("20", "–", "differs")
    fields = {"keyframe_flops": 20, "delta_flops": 5, "keyframe_interval": 3, "predicted_latency_ms": 4.2}
    streams = Cost.model_validate({"flops": 10, "params": 2, "state_bytes": 64, **fields})
    again = streams.model_copy(update={"state_bytes": 65, "latency_ms": 3.0})
    assert texts(compare_records(trial(cost=streams), trial(cost=again), None))["predicted latency, ms"][2] == "0"
    (other,) = [row for row in compare_records(trial(cost=streams), trial(cost=again), None).rows if not row.is_equal]
    assert other.texts() == ("state between frames, bytes", "64", "65", "+1")
