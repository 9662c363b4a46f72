from __future__ import annotations

import copy
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from toy_trials import make_record

from nas_kd.trials import SCHEMA_VERSION, Cost, Metric, TrialRecord
from nas_kd.trials.files import bytes_on_disk, write_atomically

GOLDEN = Path(__file__).parent / "golden" / "record-v1.json"
KNOBS = {"width": 8, "rate": 0.1, "op": "conv"}
STREAM: dict[str, Any] = {"keyframe_flops": 97, "delta_flops": 1, "keyframe_interval": 2, "state_bytes": 64}


def full_record() -> TrialRecord:
    return TrialRecord(
        number=7,
        state="complete",
        seed=11,
        config_hash="c0ffee",
        knobs={"max_flops": 50000000, "rate": 0.5, "op": "conv", "stream": True},
        metric={"name": "mIoU", "maximize": True},
        arch={"space": "clip_cell", "choices": {"cell0/edge1": "shift"}, "widths": [8, 16]},
        arch_id="a1b2",
        cost=Cost(flops=49, params=10, latency_ms=1.5, **STREAM),
        metrics={"derived": {"val": {"mIoU": 0.5}}, "retrained": {"val": {"mIoU": 0.6}, "test": {"mIoU": 0.55}}},
        repeats={"retrained/val/mIoU": [0.59, 0.61]},
        diagnostics={"skip_share": 0.25},
        warnings=["gates moved, choice did not"],
        environment={"python": "3.11"},
        durations_s={"gate_search": 1.25},
        started_at="2026-01-02T03:04:05+00:00",
    )


def test_stored_format_of_version_1_is_still_read_and_written() -> None:
    assert TrialRecord.read(GOLDEN) == full_record()
    assert json.loads(full_record().to_json()) == json.loads(GOLDEN.read_text())


def test_a_record_from_before_the_latencies_of_streams_is_still_read() -> None:
    stored = json.loads(GOLDEN.read_text())
    del stored["cost"]["keyframe_latency_ms"], stored["cost"]["delta_latency_ms"]
    assert TrialRecord.from_json(json.dumps(stored)) == full_record()


@pytest.mark.parametrize("left_out", STREAM)
def test_the_fields_of_a_stream_come_together(left_out: str) -> None:
    with pytest.raises(ValidationError, match=rf"missing: \['{left_out}'\]"):
        Cost(flops=49, params=10, **{name: value for name, value in STREAM.items() if name != left_out})


def test_latencies_of_key_and_delta_frames_belong_to_a_stream() -> None:
    assert Cost(flops=49, params=10, keyframe_latency_ms=3.0, delta_latency_ms=0.5, **STREAM).delta_latency_ms == 0.5
    with pytest.raises(ValidationError, match="belong to streaming students, whose cost has all of keyframe_flops"):
        Cost(flops=49, params=10, delta_latency_ms=0.5)


@pytest.mark.parametrize("wrong", [{"keyframe_interval": 0}, {"state_bytes": -1}, {"delta_flops": -1}])
def test_fields_of_a_stream_have_a_range(wrong: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match="greater than or equal"):
        Cost(flops=49, params=10, **(STREAM | wrong))


def test_the_worst_frame_is_the_dearer_one() -> None:
    assert Cost(flops=49, params=10, **STREAM).worst_frame_flops == 97
    assert Cost(flops=49, params=10, **(STREAM | {"keyframe_flops": 1, "delta_flops": 97})).worst_frame_flops == 97
    plain = Cost(flops=49, params=10)
    assert (plain.worst_frame_flops, plain.is_streaming) == (None, False)
    assert "worst_frame_flops" not in plain.model_dump()  # derived: never stored


def test_nothing_in_a_record_can_be_changed() -> None:
    record = full_record()
    with pytest.raises(ValidationError):
        record.number = 8  # type: ignore[misc]
    for change in (
        lambda: record.knobs.__setitem__("rate", 1.0),  # type: ignore[attr-defined]
        lambda: record.metrics["derived"]["val"].update(mIoU=0.9),  # type: ignore[attr-defined]
        lambda: record.arch.pop("space"),  # type: ignore[union-attr]
        lambda: record.arch["choices"].clear(),  # type: ignore[index]
    ):
        with pytest.raises(TypeError, match="cannot be changed"):
            change()
    assert record.arch is not None
    assert record.arch["widths"] == (8, 16)


def test_a_record_does_not_follow_the_dict_it_was_made_from() -> None:
    knobs = dict(KNOBS)
    record = make_record(0, knobs)
    knobs["width"] = 9
    assert record.knobs["width"] == 8


def test_copies_and_pickles_are_equal() -> None:
    record = full_record()
    assert copy.deepcopy(record) == record
    assert pickle.loads(pickle.dumps(record)) == record


@given(
    value=st.floats(allow_nan=False),
    knobs=st.dictionaries(
        st.text(),
        st.one_of(
            st.booleans(), st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False), st.text()
        ),
    ),
)
def test_round_trip_keeps_values_and_types(value: float, knobs: dict[str, Any]) -> None:
    record = make_record(3, KNOBS, "failed", knobs=knobs, diagnostics={"x": value})
    again = TrialRecord.from_json(record.to_json())
    assert again == record
    assert [type(item) for item in again.knobs.values()] == [type(item) for item in knobs.values()]


def test_round_trip_of_nan_in_a_failed_record() -> None:
    again = TrialRecord.from_json(make_record(3, KNOBS, "failed", diagnostics={"loss": float("nan")}).to_json())
    assert again.diagnostics["loss"] != again.diagnostics["loss"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    ("field", "name"),
    [
        ("metrics", "metrics/derived/val/accuracy"),
        ("repeats", "repeats/x/1"),
        ("diagnostics", "diagnostics/x"),
        ("durations_s", "durations_s/x"),
        ("cost", "cost/latency_ms"),
        ("arch", "arch/list/0"),
    ],
)
def test_complete_record_refuses_what_is_not_finite(field: str, name: str, bad: float) -> None:
    values: dict[str, Any] = {
        "metrics": {"derived": {"val": {"accuracy": bad}}},
        "repeats": {"x": (1.0, bad)},
        "diagnostics": {"x": bad},
        "durations_s": {"x": bad},
        "cost": Cost(flops=1, params=1, latency_ms=bad),
        "arch": {"list": [bad]},
    }
    with pytest.raises(ValueError, match=f"trial 4: {name} is .*must be finite"):
        make_record(4, KNOBS, **{field: values[field]})
    assert make_record(4, KNOBS, "failed", **{field: values[field]}).state == "failed"


def test_knobs_are_finite_in_every_state() -> None:
    with pytest.raises(ValueError, match="trial 4: knobs/rate is inf; a knob must be finite"):
        make_record(4, KNOBS, "failed", knobs={"rate": float("inf")})


def test_complete_record_must_carry_its_cost() -> None:
    with pytest.raises(ValueError, match="must carry its cost"):
        make_record(4, KNOBS, cost=None)


def test_score_is_of_the_last_stage_on_the_validation_split() -> None:
    record = full_record()
    assert record.score() == 0.6
    assert record.score("test") == 0.55
    assert record.score(stage="derived") == 0.5
    assert record.score("test", "derived") is None
    assert make_record(0, KNOBS, metrics={"teacher": {"val": {"accuracy": 1.0}}}).score() is None


def test_reason_is_the_last_line_of_the_error() -> None:
    assert (
        make_record(0, KNOBS, "failed", error="Traceback\n  File\nValueError: boom\n\n").reason() == "ValueError: boom"
    )
    assert make_record(0, KNOBS, "failed", error="\n").reason() is None
    assert make_record(0, KNOBS).reason() is None


def test_unknown_schema_version_says_what_to_do() -> None:
    text = json.dumps({**json.loads(full_record().to_json()), "schema_version": SCHEMA_VERSION + 1, "new_field": 1})
    with pytest.raises(ValueError, match="`schema_version` must be 1, but got 2; read this record with the release"):
        TrialRecord.from_json(text)


def test_unreadable_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text('{"number": 1')
    with pytest.raises(ValueError, match=r"record\.json: not a trial record"):
        TrialRecord.read(path)


def test_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "record.json"
    full_record().write(path)

    def no_space(descriptor: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="no space left"):
        write_atomically(path, "broken")
    assert TrialRecord.read(path) == full_record()
    assert [item.name for item in path.parent.iterdir()] == ["record.json"]


def test_bytes_on_disk_counts_files_and_not_links(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_bytes(bytes(7))
    (tmp_path / "y").write_bytes(bytes(5))
    (tmp_path / "z").symlink_to(tmp_path / "y")
    assert bytes_on_disk(tmp_path) == 12
    assert bytes_on_disk(tmp_path / "missing") == 0


def test_a_metric_of_an_older_record_is_the_same_and_written_plainly() -> None:
    old = Metric.model_validate({"name": "accuracy", "maximize": True})
    new = Metric(name="accuracy", percent=("accuracy",))
    assert old.percent == ()
    assert old.is_same_as(new)
    assert not old.is_same_as(Metric(name="accuracy", maximize=False))
    assert old.model_dump() == {"name": "accuracy", "maximize": True}
    assert Metric.model_validate_json(new.model_dump_json()) == new
