"""Trackers of experiments: what they are told, and that none of them can stop a campaign."""

from __future__ import annotations

import json
import sys
import threading
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event as WrittenEvent
from toy_trials import SPACE, make_record, open_ledger

from nas_kd.data.tfrecord import records as read_records
from nas_kd.trials import Event, Resources, TrialContext, TrialRecord, run_trials
from nas_kd.trials.trackers import Place, Tracker, TrackerError, Tracking, find_trackers, registry

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of protobuf, in tensorboardX


def with_curves(context: TrialContext) -> TrialRecord:
    """A trial of two epochs; the second one fails after the first."""
    with (context.directory / "log.jsonl").open("a") as log:
        for epoch in (1, 2):
            line = {"stage": "retrain-0", "epoch": epoch, "task": 1 / epoch, "note": "none", "val/accuracy": epoch / 4}
            log.write(json.dumps(line) + "\n")
            log.flush()
            context.report(epoch / 2, f"epoch {epoch}")
            if context.number == 1:
                raise ValueError("no luck")
    return make_record(context.number, context.knobs, durations_s={"total": 2.0})


def run(
    run_dir: Path, makers: Mapping[str, Any], num_trials: int = 2, trial: Any = with_curves
) -> tuple[list[Event], list[TrialRecord]]:
    events: list[Event] = []
    with open_ledger(run_dir) as ledger:
        place = Place("toy", run_dir)
        with Tracking(makers, place, ledger.records(), lambda records: len(records) / 10, events.append) as tracking:
            run_trials(
                trial,
                ledger,
                SPACE,
                num_trials=num_trials,
                run_dir=run_dir,
                resources=Resources(executor="inline"),
                sampler="random",
                on_event=tracking,
            )
        return events, ledger.records()


class Heard:
    """A tracker that keeps what it is told."""

    def __init__(self, place: Place) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def begin(self, number: int, knobs: Mapping[str, Any]) -> None:
        self.calls.append(("begin", number, dict(knobs)))

    def curve(self, number: int, values: Mapping[str, float], step: int) -> None:
        self.calls.append(("curve", number, step, dict(values)))

    def end(self, record: TrialRecord, results: Mapping[str, float]) -> None:
        self.calls.append(("end", record.number, record.state, dict(results)))

    def front(self, values: Mapping[str, float], num_ended: int) -> None:
        self.calls.append(("front", num_ended, dict(values)))

    def close(self) -> None:
        self.calls.append(("close",))


def test_a_tracker_hears_curves_results_and_the_front_in_order(tmp_path: Path) -> None:
    heard = Heard(Place("toy", tmp_path))
    _, records = run(tmp_path, {"heard": lambda place: heard})
    (first, second), accuracy = records, records[0].score()
    assert heard.calls == [
        ("begin", 0, first.knobs),
        ("curve", 0, 1, {"retrain-0/task": 1.0, "retrain-0/val/accuracy": 0.25}),
        ("curve", 0, 2, {"retrain-0/task": 0.5, "retrain-0/val/accuracy": 0.5}),
        (
            *("end", 0, "complete"),
            {
                "derived/val/accuracy": accuracy,
                "cost/flops": first.knobs["width"] * 1000.0,
                "cost/params": first.knobs["width"],
                "seconds/total": 2.0,
            },
        ),
        ("front", 1, {"hypervolume": 0.1}),
        ("begin", 1, second.knobs),
        ("curve", 1, 1, {"retrain-0/task": 1.0, "retrain-0/val/accuracy": 0.25}),
        ("end", 1, "failed", {"seconds/total": second.durations_s["total"]}),
        ("close",),
    ]


def test_event_files_hold_the_curves_and_the_hyperparameters_of_each_trial(tmp_path: Path) -> None:
    run(tmp_path, find_trackers(["tensorboard"]))
    assert sorted(path.name for path in (tmp_path / "tensorboard").iterdir()) == ["0000", "0001", "front"]
    points, tags = scalars(tmp_path / "tensorboard" / "0000")
    assert points["retrain-0/val/accuracy"] == [(1, 0.25), (2, 0.5)]
    assert points["seconds/total"] == [(0, 2.0)]
    assert {"_hparams_/experiment", "_hparams_/session_start_info", "_hparams_/session_end_info"} <= tags
    assert scalars(tmp_path / "tensorboard" / "front")[0] == {"hypervolume": [(1, pytest.approx(0.1))]}


def scalars(folder: Path) -> tuple[dict[str, list[tuple[int, float]]], set[str]]:
    points: dict[str, list[tuple[int, float]]] = {}
    tags = set()
    for _, record in read_records(next(iter(folder.iterdir()))):
        event = WrittenEvent.FromString(record)
        for value in event.summary.value:
            tags.add(value.tag)
            if value.WhichOneof("value") == "simple_value":
                points.setdefault(value.tag, []).append((event.step, value.simple_value))
    return points, tags


def test_trackers_that_fail_are_left_out_with_a_sentence_without_passwords(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_API_KEY", "0123456789abcdef")

    class Dead(Heard):
        def curve(self, number: int, values: Mapping[str, float], step: int) -> None:
            raise ConnectionError("no http://me:secret@tracker:80 with 0123456789abcdef\nTraceback")

    def refused(place: Place) -> Tracker:
        raise RuntimeError("not logged in")

    heard = Heard(Place("toy", tmp_path))
    events, records = run(tmp_path, {"dead": Dead, "refused": refused, "heard": lambda place: heard})
    assert [record.state for record in records] == ["complete", "failed"]
    assert sorted(event.message for event in events if event.kind == "noted") == [
        "tracker dead is left out from now on: no http://me:***@tracker:80 with ***",
        "tracker refused is left out from now on: not logged in",
    ]
    assert heard.calls[-1] == ("close",)


def test_a_tracker_that_hangs_holds_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas_kd.trials.trackers.tracking._SECONDS_TO_CLOSE", 0.1)
    answer = threading.Event()

    class Slow(Heard):
        def begin(self, number: int, knobs: Mapping[str, Any]) -> None:
            answer.wait(60)

    events, records = run(tmp_path, {"slow": Slow})
    answer.set()
    assert len(records) == 2
    assert [event.message for event in events if event.kind == "noted"] == [
        "tracker slow is left out from now on: did not answer for 0 s"
    ]


def test_a_trial_that_goes_on_is_the_same_run_in_its_folder_alone(tmp_path: Path) -> None:
    assert Place("a", tmp_path).id_of(3) == Place("b", tmp_path).id_of(3)
    assert Place("a", tmp_path).id_of(3) != Place("a", tmp_path / "other").id_of(3)
    assert Place("a", tmp_path).id_of(None) != Place("a", tmp_path).id_of(0)


def test_unknown_trackers_and_missing_libraries_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        TrackerError, match=r"^trackers: 'tensorbord' is unknown; choose from tensorboard, mlflow, wandb"
    ):
        find_trackers(["tensorbord"])
    monkeypatch.setattr(registry, "_is_installed", lambda library: library == "tensorboardX")
    assert find_trackers(None) == {}  # the viewer is not there
    with pytest.raises(TrackerError, match=r"^trackers: mlflow is not installed; pip install 'nas-kd\[mlflow\]'$"):
        find_trackers(["mlflow"])
    monkeypatch.setattr(registry, "_is_installed", lambda library: True)
    assert list(find_trackers(None)) == ["tensorboard"]


class Client:
    """A stand-in for MLflow's client: it keeps runs and refuses what MLflow refuses."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}

    def get_experiment_by_name(self, name: str) -> Any:
        return None

    def create_experiment(self, name: str) -> str:
        return name

    def search_runs(self, experiments: list[str], filter_string: str, max_results: int) -> list[Any]:
        found = [
            run
            for run, kept in self.runs.items()
            if filter_string == f"tags.`nas_kd.id` = '{kept['tags']['nas_kd.id']}'"
        ]
        return [types.SimpleNamespace(info=types.SimpleNamespace(run_id=run)) for run in found]

    def create_run(self, experiment: str, run_name: str, tags: Mapping[str, str]) -> Any:
        self.runs[run_name] = {"tags": tags, "params": {}, "metrics": [], "state": "RUNNING"}
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_name))

    def update_run(self, run: str, status: str) -> None:
        self.runs[run]["state"] = status

    def log_batch(self, run: str, metrics: Any = (), params: Any = ()) -> None:
        assert len(params) <= 100
        for name, value in params:
            assert self.runs[run]["params"].setdefault(name, value) == value, "a parameter cannot change"
        self.runs[run]["metrics"] += [(name, value, step) for name, value, _, step in metrics]

    def set_terminated(self, run: str, status: str = "FINISHED") -> None:
        self.runs[run]["state"] = status


def test_mlflow_has_a_run_a_trial_which_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client()
    entities = types.SimpleNamespace(Metric=lambda *fields: fields, Param=lambda *fields: fields)
    monkeypatch.setitem(sys.modules, "mlflow", types.SimpleNamespace(MlflowClient=lambda: client, entities=entities))
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    monkeypatch.delitem(sys.modules, "nas_kd.trials.trackers.mlflow", raising=False)
    from nas_kd.trials.trackers.mlflow import MLflow

    monkeypatch.delitem(sys.modules, "nas_kd.trials.trackers.mlflow")  # no other test gets the stand-in
    run(tmp_path, {"mlflow": MLflow})
    assert {name: kept["state"] for name, kept in client.runs.items()} == {
        "trial 0000": "FINISHED",
        "campaign": "FINISHED",
        "trial 0001": "FAILED",
    }
    first = client.runs["trial 0000"]
    assert set(first["params"]) == set(SPACE)
    assert [point for point in first["metrics"] if point[0] == "retrain-0/task"] == [
        ("retrain-0/task", 1.0, 1),
        ("retrain-0/task", 0.5, 2),
    ]
    assert client.runs["campaign"]["metrics"] == [("hypervolume", 0.1, 1)]
    run(tmp_path, {"mlflow": MLflow}, num_trials=3)
    assert len(client.runs) == 4
    assert client.runs["campaign"]["metrics"][1:] == [("hypervolume", 0.2, 3)]


def test_weights_and_biases_have_a_run_a_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    class Run:
        def __init__(self, options: dict[str, Any]) -> None:
            self.options, self.config, self.summary, self.logged, self.code = options, Config(), Config(), [], None

        def log(self, values: Mapping[str, float]) -> None:
            self.logged.append(dict(values))

        def finish(self, exit_code: int | None = None) -> None:
            self.code = exit_code

    class Config(dict[str, Any]):
        def update(self, values: Any, allow_val_change: bool = False) -> None:  # type: ignore[override]
            super().update(values)

    def init(**options: Any) -> Run:
        made.append(Run(options))
        return made[-1]

    settings = lambda **options: types.SimpleNamespace(project=None, **options)  # noqa: E731
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init, Settings=settings))
    monkeypatch.delitem(sys.modules, "nas_kd.trials.trackers.wandb", raising=False)
    from nas_kd.trials.trackers.wandb import WeightsAndBiases

    monkeypatch.delitem(sys.modules, "nas_kd.trials.trackers.wandb")
    _, records = run(tmp_path, {"wandb": WeightsAndBiases})
    assert [(each.options["name"], each.options["project"], each.code) for each in made] == [
        ("trial 0000", "nas-kd", 0),
        ("campaign", "nas-kd", None),
        ("trial 0001", "nas-kd", 1),
    ]
    assert made[0].config == records[0].knobs
    assert made[0].logged[1] == {"retrain-0/task": 0.5, "retrain-0/val/accuracy": 0.5, "epoch": 2}
    assert made[0].summary["derived/val/accuracy"] == records[0].score()
    assert made[1].logged == [{"hypervolume": 0.1, "trials": 1}]
