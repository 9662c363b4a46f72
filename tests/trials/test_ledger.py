from __future__ import annotations

import json
import shutil
import traceback
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import optuna
import pytest
from optuna.distributions import IntDistribution
from optuna.exceptions import StorageInternalError
from optuna.storages import InMemoryStorage, JournalStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import IntegrityError, OperationalError
from toy_trials import METRIC, SPACE, make_record, open_ledger

from nas_kd.trials import (
    SAMPLERS,
    ChoiceKnob,
    Constraint,
    IntKnob,
    KnobSpace,
    KnobValue,
    Ledger,
    Metric,
    Objective,
    Ranking,
    translation,
)
from nas_kd.trials.passwords import masked
from nas_kd.trials.samplers import quiet_optuna
from nas_kd.trials.storage import (
    JOURNAL_NAME,
    STUDY_FILE,
    DamagedJournalError,
    StorageError,
    check_database,
    check_url,
    open_storage,
    repair_journal,
    study_name,
)
from nas_kd.trials.stored_trials import StoredTrials
from nas_kd.trials.view import ProposalView

# SQLite stands in for PostgreSQL and MySQL: the same code of Optuna's, reached by URL.
STORAGES = ["journal", "sqlite"]


@pytest.fixture(params=STORAGES)
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    return f"sqlite:///{tmp_path}/study.db" if request.param == "sqlite" else None


def ask_and_tell(ledger: Ledger, count: int, space: KnobSpace = SPACE, **options: Any) -> list[dict[str, Any]]:
    proposals = []
    for _ in range(count):
        proposal = ledger.ask(space, **options)
        proposals.append(dict(proposal.knobs))
        ledger.tell(make_record(proposal.number, proposal.knobs))
    return proposals


def stored_study(run_dir: Path, storage: str | None = None) -> optuna.Study:
    with quiet_optuna():
        name = study_name(run_dir, storage, run_dir.name)
        return optuna.load_study(storage=open_storage(run_dir, storage), study_name=name)


def test_records_come_back_after_reopening(tmp_path: Path, storage: str | None) -> None:
    with open_ledger(tmp_path, storage=storage) as ledger:
        ask_and_tell(ledger, 3)
        running = ledger.ask(SPACE)
        told = ledger.records()
    with open_ledger(tmp_path, storage=storage) as ledger:
        assert ledger.records() == told
        assert [record.number for record in told] == [0, 1, 2]
        assert ledger.running() == [running]
        assert len(ledger) == 4
        assert (ledger.count("complete"), ledger.count("running"), ledger.count("failed")) == (3, 1, 0)


def test_states_in_the_study(tmp_path: Path, storage: str | None) -> None:
    with open_ledger(tmp_path, storage=storage) as ledger:
        for state in ("complete", "failed", "stopped", "running"):
            proposal = ledger.ask(SPACE)
            if state != "running":
                ledger.tell(make_record(proposal.number, proposal.knobs, state))
        record = ledger.records()[0]
    trials = stored_study(tmp_path, storage).get_trials()
    states = [TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED, TrialState.RUNNING]
    assert [trial.state for trial in trials] == states
    assert record.cost is not None
    assert trials[0].values == [record.score(), float(record.cost.flops)]
    # A stopped trial has an accuracy in its record, which the samplers never see.
    assert [trial.values for trial in trials[1:]] == [None, None, None]


def test_telling_twice_changes_nothing_and_telling_otherwise_is_refused(tmp_path: Path, storage: str | None) -> None:
    with open_ledger(tmp_path, storage=storage) as ledger:
        proposal = ledger.ask(SPACE)
        record = make_record(proposal.number, proposal.knobs)
        assert ledger.tell(record)
        assert not ledger.tell(record)
        with pytest.raises(ValueError, match=r"trial 0 of .* is already recorded, with another record"):
            ledger.tell(make_record(0, proposal.knobs, "failed"))
        assert ledger.records() == [record]


def test_what_cannot_be_told(tmp_path: Path) -> None:
    with open_ledger(tmp_path) as ledger:
        knobs = {"width": 1, "rate": 0.1, "op": "conv"}
        with pytest.raises(ValueError, match="trial 0 was never proposed"):
            ledger.tell(make_record(0, knobs))
        ledger.enqueue([knobs], SPACE)
        with pytest.raises(ValueError, match="trial 0 was never proposed"):
            ledger.tell(make_record(0, knobs))
        ledger.ask(SPACE)
        with pytest.raises(ValueError, match="must carry the objective 'accuracy'"):
            ledger.tell(make_record(0, knobs, metrics={}))
        with pytest.raises(ValueError, match="metric must be"):
            ledger.tell(make_record(0, knobs, metric=Metric(name="mAP")))
        assert [proposal.number for proposal in ledger.running()] == [0]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_resumed_study_proposes_what_the_uninterrupted_one_does(tmp_path: Path, sampler: str) -> None:
    with open_ledger(tmp_path / "a") as ledger:
        whole = ask_and_tell(ledger, 30, sampler=sampler, seed=5)
    resumed = []
    for count in (1, 11, 13, 5):
        with open_ledger(tmp_path / "b") as ledger:
            resumed += ask_and_tell(ledger, count, sampler=sampler, seed=5)
    assert resumed == whole
    assert len({json.dumps(knobs) for knobs in whole}) > 25  # it is not one proposal thirty times
    with open_ledger(tmp_path / "c") as ledger:
        assert ask_and_tell(ledger, 1, sampler=sampler, seed=6) != whole[:1]


def test_nsga2_generations_survive_a_resume(tmp_path: Path) -> None:
    for count in (15, 15):
        with open_ledger(tmp_path) as ledger:
            ask_and_tell(ledger, count, sampler="nsga2")
    generations = [
        next(value for key, value in trial.system_attrs.items() if key.endswith("generation"))
        for trial in stored_study(tmp_path).get_trials()
    ]
    assert generations == [0] * 20 + [1] * 10


def test_a_trial_that_has_ended_is_read_once_for_all_later_proposals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    translated: list[tuple[int, str]] = []
    real = translation._translate

    def counting(trial: FrozenTrial, *rest: Any) -> FrozenTrial:
        translated.append((trial.number, trial.state.name))
        return real(trial, *rest)

    monkeypatch.setattr(translation, "_translate", counting)
    with open_ledger(tmp_path) as ledger:
        ask_and_tell(ledger, 6)
        assert translated == [(number, "COMPLETE") for number in range(5)]
        narrower: KnobSpace = {**SPACE, "op": ChoiceKnob(values=("conv", "delta"))}
        ledger.ask(narrower, sampler="random")  # other knobs: all are read again
        assert [number for number, _ in translated[5:]] == list(range(6))
        ledger.ask(narrower, sampler="random")
        assert translated[11:] == [(6, "RUNNING")]


def test_a_driver_reads_all_trials_once(tmp_path: Path, storage: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_ledger(tmp_path, storage=storage) as ledger:
        ledger.enqueue([{"width": 5}, {"width": 6}], SPACE)
        whole = JournalStorage if storage is None else RDBStorage
        monkeypatch.setattr(whole, "get_all_trials", lambda *_, **__: pytest.fail("all trials are read again"))
        ledger.withdraw(keep=[0])
        first, second = (ledger.ask(SPACE, sampler="random") for _ in range(2))
        assert (first.number, first.knobs["width"], second.number) == (0, 5, 2)
        ledger.report(2, 1, {"accuracy": 0.5})
        ledger.tell(make_record(2, second.knobs))  # in another order than they began
        assert [trial.number for trial in ledger.running()] == [0]
        ledger.tell(make_record(0, first.knobs))
        assert (len(ledger), ledger.count("complete"), ledger.count("running", "queued")) == (3, 2, 0)
        assert [record.number for record in ledger.records()] == [0, 2]
        assert ledger.reports() == {2: {1: {"accuracy": 0.5}}}
    monkeypatch.undo()
    read = Ledger.load(tmp_path, storage=storage)
    assert [record.number for record in read.records()] == [0, 2]
    assert read.count("queued") == 0


def test_what_a_sampler_writes_while_it_proposes_is_gone_afterwards(tmp_path: Path) -> None:
    with open_ledger(tmp_path) as ledger:
        ask_and_tell(ledger, 3)
        ended = ledger._stored.all()[:3]
        view = ProposalView([StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE], ended)
        view.set_trial_system_attr(1, "note", 5)
        view.set_study_system_attr(0, "cache", [1])
        number = view.create_new_trial(0)
        view.set_trial_param(number, "width", 7.0, IntDistribution(1, 64))
        assert number == 3
        assert view.get_trial(3).params == {"width": 7}
        assert view.get_n_trials(0) == 4
        assert view.get_trial(1).system_attrs["note"] == 5
        assert "note" not in ended[1].system_attrs
        assert not view.set_trial_state_values(0, TrialState.RUNNING)  # only a queued trial begins to run


@pytest.mark.parametrize(("sampler", "storage_name"), [*((name, "journal") for name in SAMPLERS), ("tpe", "sqlite")])
def test_choices_may_change_between_runs(tmp_path: Path, sampler: str, storage_name: str) -> None:
    storage = f"sqlite:///{tmp_path}/study.db" if storage_name == "sqlite" else None
    wider = {**SPACE, "op": ChoiceKnob(values=("dw", "conv", "shift", "delta", "skip"))}
    narrower = {**SPACE, "op": ChoiceKnob(values=("shift", "conv"))}
    with open_ledger(tmp_path, storage=storage) as ledger:
        ask_and_tell(ledger, 12, sampler=sampler)
    with open_ledger(tmp_path, storage=storage) as ledger:
        wide = ask_and_tell(ledger, 12, wider, sampler=sampler)
        assert {knobs["op"] for knobs in wide} - {"conv", "shift", "delta"}
        narrow = ask_and_tell(ledger, 6, narrower, sampler=sampler)
        assert {knobs["op"] for knobs in narrow} <= {"shift", "conv"}
        back = ask_and_tell(ledger, 2, SPACE, sampler=sampler)
        assert [dict(record.knobs) for record in ledger.records()[12:]] == wide + narrow + back
    names = [set(trial.params) for trial in stored_study(tmp_path, storage).get_trials()]
    assert names[0] == names[31] == {"width", "rate", "op"}
    assert names[12] == {"width", "rate", "op~2"}
    assert names[24] == {"width", "rate", "op~3"}


def test_sampler_learns_across_a_wider_space(tmp_path: Path) -> None:
    """After the choices were widened, mutation still starts from the front of the earlier trials."""
    wider: KnobSpace = {**SPACE, "op": ChoiceKnob(values=("skip", "conv", "shift", "delta"))}
    with open_ledger(tmp_path) as ledger:
        for number in range(12):
            knobs = {"width": 64 if number else 1, "rate": 0.5 + number / 100, "op": "delta" if number else "conv"}
            ledger.enqueue([knobs], SPACE)
            proposal = ledger.ask(SPACE)
            good = {"derived": {"val": {"accuracy": 0.1 if number else 0.9}}}
            ledger.tell(make_record(number, proposal.knobs, metrics=good))
        proposal = ledger.ask(wider, sampler="mutation")
    parent = {"width": 1, "rate": 0.5, "op": "conv"}
    assert sum(proposal.knobs[name] != parent[name] for name in parent) == 1


def test_knobs_may_appear_and_go(tmp_path: Path) -> None:
    without_default: KnobSpace = {**SPACE, "frames": IntKnob(low=1, high=8)}
    with_default: KnobSpace = {**SPACE, "frames": IntKnob(low=1, high=8, default=8)}
    fewer: KnobSpace = {"width": SPACE["width"]}

    def learned_from(run_dir: Path, space: KnobSpace) -> int:
        with open_ledger(run_dir) as ledger:
            ask_and_tell(ledger, 12)
            assert set(ledger.ask(space).knobs) == set(space)
            view = ledger._proposals.view(space, ledger.ranking)
            return len(view.get_trials(states=(TrialState.COMPLETE,)))

    assert learned_from(tmp_path / "a", without_default) == 0
    assert learned_from(tmp_path / "b", with_default) == 12
    assert learned_from(tmp_path / "c", fewer) == 12


@pytest.mark.parametrize("sampler", ["tpe", "mutation"])
def test_queued_trials_come_first_and_may_leave_knobs_to_the_sampler(
    tmp_path: Path, storage: str | None, sampler: str
) -> None:
    with open_ledger(tmp_path, storage=storage) as ledger:
        ask_and_tell(ledger, 2, sampler=sampler)
        full = {"width": 8, "rate": 0.25, "op": "shift"}
        assert ledger.enqueue([full], SPACE) == [2]
        assert ledger.enqueue([{"op": "delta"}], SPACE) == [3]
        assert ledger.enqueue([full], SPACE) == [2]  # once is enough
        assert ledger.count("queued") == 2
    with open_ledger(tmp_path, storage=storage) as ledger:
        assert ledger.enqueue([full], SPACE) == [2]
        first, second, third = (ledger.ask(SPACE, sampler=sampler) for _ in range(3))
        assert (first.number, dict(first.knobs)) == (2, full)
        assert (second.number, second.knobs["op"], set(second.knobs)) == (3, "delta", set(SPACE))
        assert third.number == 4
        assert ledger.enqueue([full], SPACE) == [2]
        assert ledger.running() == [first, second, third]
    assert stored_study(tmp_path, storage).get_trials()[2].params == full


def test_queued_values_are_checked(tmp_path: Path) -> None:
    with open_ledger(tmp_path) as ledger:
        with pytest.raises(ValueError, match="knob 'op' cannot be 'skip'"):
            ledger.enqueue([{"op": "skip"}], SPACE)
        assert len(ledger) == 0
        ledger.enqueue([{"op": "delta"}], SPACE)
        with pytest.raises(ValueError, match="knob 'op' cannot be 'delta'"):
            ledger.ask({**SPACE, "op": ChoiceKnob(values=("conv",))})
        assert ledger.ask(SPACE).knobs["op"] == "delta"


def test_trials_are_queued_together_once_and_may_share_a_seed(tmp_path: Path, storage: str | None) -> None:
    cells: list[dict[str, KnobValue]] = [{"op": op, "width": width} for op in ("conv", "delta") for width in (1, 2, 3)]
    with open_ledger(tmp_path, storage=storage) as ledger:
        ledger.enqueue([cells[0]], SPACE)
        assert ledger.enqueue([*cells, cells[2]], SPACE, seed=7) == [1, 2, 3, 4, 5, 6, 3]  # another seed: another
        with pytest.raises(ValueError, match="knob 'op' cannot be 'skip'"):
            ledger.enqueue([{"op": "shift"}, {"op": "skip"}], SPACE)
        assert ledger.count("queued") == len(ledger) == 7
        assert [ledger.ask(SPACE).seed for _ in range(2)] == [None, 7]
    with open_ledger(tmp_path, storage=storage) as ledger:
        assert [proposal.seed for proposal in ledger.running()] == [None, 7]
        turned = [dict(reversed(cell.items())) for cell in cells]
        assert ledger.enqueue(turned, SPACE, seed=7) == [1, 2, 3, 4, 5, 6]
        assert len(ledger) == 7


def test_withdrawn_trials_are_not_proposed_and_can_come_back(tmp_path: Path, storage: str | None) -> None:
    with open_ledger(tmp_path, storage=storage) as ledger:
        numbers = ledger.enqueue([{"op": op} for op in ("conv", "delta", "shift")], SPACE)
        ledger.ask(SPACE)
        assert ledger.withdraw(keep=numbers[2:]) == 1
        assert (ledger.count("queued"), ledger.count("queued", "running"), len(ledger)) == (1, 2, 3)
        narrower = {**SPACE, "op": ChoiceKnob(values=("conv", "shift"))}  # the withdrawn one does not fit, and need not
        assert (ledger.ask(narrower).number, ledger.ask(narrower).number) == (2, 3)
    with open_ledger(tmp_path, storage=storage) as ledger:
        assert ledger.enqueue([{"op": "delta"}], SPACE) == [1]
        assert ledger.withdraw(keep=[1]) == 0
        again = ledger.ask(SPACE)
        assert (again.number, again.knobs["op"]) == (1, "delta")
        assert ledger.records() == []


def test_reports_of_steps(tmp_path: Path, storage: str | None) -> None:
    with open_ledger(tmp_path, storage=storage) as ledger:
        ledger.ask(SPACE)
        ledger.ask(SPACE)
        ledger.report(1, 2, {"accuracy": 0.1, "flops": 3.0})
        ledger.report(1, 10, {"accuracy": 0.2, "flops": 3.0})
        ledger.report(1, 2, {"accuracy": 0.3, "flops": 3.0})
        assert ledger.reports() == {1: {2: {"accuracy": 0.3, "flops": 3.0}, 10: {"accuracy": 0.2, "flops": 3.0}}}


def test_second_driver_is_refused_and_readers_are_not(tmp_path: Path, storage: str | None) -> None:
    with open_ledger(tmp_path, storage=storage) as ledger:
        ask_and_tell(ledger, 1)
        with pytest.raises(RuntimeError, match=r"one driver at a time, but process \d+ drives"):
            open_ledger(tmp_path, storage=storage)
        reader = Ledger.load(tmp_path, storage=storage)
        assert reader.records() == ledger.records()
        with pytest.raises(RuntimeError, match="open for reading only"):
            reader.ask(SPACE)
        reader.close()
    open_ledger(tmp_path, storage=storage).close()


def test_other_objectives_are_refused_in_one_sentence(tmp_path: Path) -> None:
    open_ledger(tmp_path).close()
    with pytest.raises(ValueError, match=r"ranks by accuracy \(maximize\), flops \(minimize\).*restore that") as raised:
        open_ledger(tmp_path, metric=Metric(name="loss", maximize=False))
    assert "\n" not in str(raised.value)
    ranking = Ranking((Objective(name="accuracy", maximize=True), Objective(name="latency_ms")))
    with pytest.raises(ValueError, match=r"asks for accuracy \(maximize\), latency_ms \(minimize\)"):
        open_ledger(tmp_path, ranking=ranking)
    open_ledger(tmp_path).close()  # the refused ones let go of the lock


def test_three_objectives_by_name(tmp_path: Path) -> None:
    ranking = Ranking.of(
        (Objective(name="parameters"), Objective(name="accuracy", maximize=True), Objective(name="flops"))
    )
    with open_ledger(tmp_path, ranking=ranking) as ledger:
        proposals = ask_and_tell(ledger, 12)
        record = ledger.records()[3]
    trial = stored_study(tmp_path).get_trials()[3]
    width = float(proposals[3]["width"])
    assert trial.values == [record.score(), width, 1000 * width]  # the metric first, the others in their order


def test_constraints_may_change_and_samplers_see_those_of_today(tmp_path: Path) -> None:
    default = Ranking.default(METRIC)
    for most in (None, 32, 16):
        constraints = () if most is None else (Constraint(name="parameters", max=most),)
        with open_ledger(tmp_path, ranking=Ranking(default.objectives, constraints)) as ledger:
            ask_and_tell(ledger, 4, sampler="random")
            seen = ledger._proposals.view(SPACE, ledger.ranking).get_trials(deepcopy=False)
        widths = [trial.params["width"] for trial in seen]
        expected = [{} if most is None else {f"parameters at most {most}": (width - most) / most} for width in widths]
        assert [trial.constraints for trial in seen] == expected


@pytest.mark.parametrize(("sampler", "trials"), [("tpe", 36), ("mutation", 36), ("nsga2", 60)])
def test_samplers_propose_what_keeps_the_constraints(tmp_path: Path, sampler: str, trials: int) -> None:
    ranking = Ranking(Ranking.default(METRIC).objectives, (Constraint(name="parameters", max=16),))
    with open_ledger(tmp_path, ranking=ranking) as ledger:
        widths = [proposal["width"] for proposal in ask_and_tell(ledger, trials, sampler=sampler)]
    assert sum(width <= 16 for width in widths[-12:]) > 6  # at random it would be 3


def test_a_ranking_has_a_metric_and_two_or_three_objectives() -> None:
    accuracy, flops = Ranking.default(METRIC).objectives
    for objectives, message in (
        ((accuracy,), "there are two or three"),
        ((accuracy, flops, Objective(name="parameters"), Objective(name="latency_ms")), "there are two or three"),
        ((accuracy, flops, flops), "each is named once"),
        ((flops, Objective(name="parameters")), "one must be a metric of the task"),
    ):
        with pytest.raises(ValueError, match=message):
            Ranking.of(objectives)
    with pytest.raises(ValueError, match="a constraint on latency_ms must have a `max` above 0, but it is -1"):
        Constraint(name="latency_ms", max=-1)
    with pytest.raises(ValueError, match="has either `min` or `max`, but that of f1 has neither"):
        Constraint(name="f1")


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_database_in_memory_is_refused(url: str) -> None:
    with pytest.raises(StorageError, match="is in memory and ends with its process; give a file"):
        check_url(url)


def test_metadata(tmp_path: Path) -> None:
    with open_ledger(tmp_path, config_hash="one") as ledger:
        ledger.set_metadata("note", {"a": [1]})
    with open_ledger(tmp_path, config_hash="two") as ledger:
        metadata = ledger.metadata
    assert metadata["note"] == {"a": [1]}
    assert metadata["config_hash"] == "two"
    assert metadata["metric"] == METRIC.model_dump()
    with quiet_optuna():  # as Optuna's own tools open it
        study = optuna.load_study(study_name=None, storage=open_storage(tmp_path, None))
        assert study.metric_names == ["accuracy", "flops"]
    assert metadata["convention"] == "one multiply-accumulate is one FLOP"


def test_loading_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no trials in .*search first"):
        Ledger.load(tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / JOURNAL_NAME).touch()  # a driver was killed right after it made the file
    with pytest.raises(FileNotFoundError, match="there is no study 'other'"):
        Ledger.load(tmp_path, name="other")


def test_two_folders_of_one_name_do_not_share_a_study(tmp_path: Path) -> None:
    """Two users, one database, one campaign name."""
    storage = f"sqlite:///{tmp_path}/study.db"
    first, second = tmp_path / "a" / "clips", tmp_path / "b" / "clips"
    for run_dir, count in ((first, 2), (second, 1)):
        with open_ledger(run_dir, storage=storage) as ledger:
            ask_and_tell(ledger, count)
    assert Ledger.load(first, storage=storage).count("complete") == 2
    assert Ledger.load(second, storage=storage).count("complete") == 1
    names = {study_name(run_dir, storage, "clips") for run_dir in (first, second)}
    assert len(names) == 2
    assert all(str(name).startswith("clips-") for name in names)


@pytest.mark.parametrize("in_database", [False, True])
def test_a_moved_folder_goes_on_under_any_name(tmp_path: Path, in_database: bool) -> None:
    storage = f"sqlite:///{tmp_path}/study.db" if in_database else None
    with open_ledger(tmp_path / "old", storage=storage) as ledger:
        ask_and_tell(ledger, 2)
        told = ledger.records()
    (tmp_path / "old").rename(tmp_path / "new")
    for name in (None, "other"):
        with open_ledger(tmp_path / "new", storage=storage, name=name) as ledger:
            assert ledger.records() == told
            assert ledger.repairs == ()


def test_a_copied_folder_gets_a_study_of_its_own(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/study.db"
    with open_ledger(tmp_path / "run", storage=storage) as ledger:
        proposal = ledger.ask(SPACE)
        record = make_record(proposal.number, proposal.knobs)
        record.write(tmp_path / "run" / "trials" / "0000" / "record.json")
        ledger.tell(record)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    with pytest.raises(ValueError, match=rf"is a copy of {tmp_path}/run.*delete {tmp_path}/copy/study"):
        open_ledger(tmp_path / "copy", storage=storage)
    (tmp_path / "copy" / STUDY_FILE).unlink()
    with open_ledger(tmp_path / "copy", storage=storage) as ledger:
        ask_and_tell(ledger, 1)
        assert ledger.records()[0] == record
        assert ledger.count("complete") == 2
    assert Ledger.load(tmp_path / "run", storage=storage).count("complete") == 1


def _damage(lines: list[bytes], how: str) -> None:
    if how == "character":
        lines[5] = b'{"op_code": 4, "\x01": 1}\n'
    elif how == "zeros":
        lines[5] = bytes(len(lines[5]) - 1) + b"\n"
    elif how == "cut":
        lines[5] = lines[5][:20] + b"\n"
    elif how == "missing":
        del lines[1]
    elif how == "record missing":
        lines[:] = [line for line in lines if b'"record"' not in line]
    elif how == "zeros at the end":
        lines += [bytes(512) + b"\n"] * 3
    else:
        lines[5] = b"[]\n"


@pytest.mark.parametrize(
    "how", ["character", "zeros", "cut", "missing", "record missing", "zeros at the end", "no object"]
)
def test_a_damaged_journal_is_named_and_made_anew_from_the_records(tmp_path: Path, how: str) -> None:
    with open_ledger(tmp_path) as ledger:
        grid = ledger.enqueue([{"op": "conv"}, {"op": "delta"}], SPACE)
        for _ in range(4):
            proposal = ledger.ask(SPACE)
            folder = tmp_path / "trials" / f"{proposal.number:04d}"
            folder.mkdir(parents=True)
            if proposal.number != 2:  # killed while it ran
                record = make_record(proposal.number, proposal.knobs)
                record.write(folder / "record.json")
                ledger.tell(record)
        told = ledger.records()
    path = tmp_path / JOURNAL_NAME
    lines = path.read_bytes().splitlines(keepends=True)
    _damage(lines, how)
    path.write_bytes(b"".join(lines))
    with pytest.raises(DamagedJournalError, match=r"ledger\.jsonl is damaged.*the same `nas-kd search` command"):
        Ledger.load(tmp_path)
    with open_ledger(tmp_path) as ledger:
        assert "it is kept as ledger.jsonl.damaged-1" in ledger.repairs[0]
        assert "3 trials that the ledger did not know were taken in" in ledger.repairs[1]
        assert ledger.records() == told
        assert ledger.running() == []
        assert ledger.enqueue([{"op": "conv"}, {"op": "delta"}], SPACE) == grid  # they have run
        assert ledger.ask(SPACE).number == 4
    assert open_ledger(tmp_path).repairs == ()


def test_folders_that_are_no_trials_are_passed_over(tmp_path: Path) -> None:
    for name in ("0003 (copy)", "4.bak", "00007", "12", "\u0663\u0663\u0663\u0663", "abc"):
        (tmp_path / "trials" / name).mkdir(parents=True)
    (tmp_path / "trials" / "0009").touch()
    with open_ledger(tmp_path) as ledger:
        assert len(ledger) == 0
        (sentence,) = ledger.repairs
    assert sentence.endswith("trials/0009 is a file with the name of a trial's folder; it is kept as 0009.damaged-1")
    assert (tmp_path / "trials" / "0009.damaged-1").is_file()


PASSWORD = "Geheim%40rt"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (f"postgresql+nodriver://anna:{PASSWORD}@db/x", "no URL of a database"),
        (f"postgresql://anna:{PASSWORD}@db@elsewhere:5432/x", "no URL of a database"),
        ("sqlite:////no/such/folder/x.db", "unable to open database file"),
        (f"anna:{PASSWORD}", "no URL of a database"),
        ("http://anna:Geheim@rt@db/x", "no URL of a database"),
    ],
)
def test_no_password_in_errors_of_a_database(tmp_path: Path, url: str, words: str) -> None:
    for use in (open_ledger, Ledger.load):
        (tmp_path / STUDY_FILE).write_text("clips-1")
        with pytest.raises(StorageError, match="storage: ") as raised:
            use(tmp_path, storage=url)
        error: BaseException | None = raised.value
        assert words in str(error) or "is not installed" in str(error)
        assert "\n" not in str(error)
        printed = "".join(traceback.format_exception(error))
        assert "Geheim" not in printed.replace(url, "") or url.startswith("anna")
        assert "heim" not in str(error) or url.startswith("anna")


def test_tables_may_be_made_by_two_campaigns_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = RDBStorage.__init__
    errors = [
        IntegrityError("", None, Exception("UNIQUE constraint failed: alembic_version.version_num")),
        OperationalError("", None, Exception("table study_directions already exists")),
    ]

    def second(storage: RDBStorage, *arguments: Any, **options: Any) -> None:
        if errors:
            raise errors.pop()
        own(storage, *arguments, **options)

    monkeypatch.setattr(RDBStorage, "__init__", second)
    monkeypatch.setattr("nas_kd.trials.storage._PAUSES_S", (0.0, 0.0))
    with open_ledger(tmp_path, storage=f"sqlite:///{tmp_path}/study.db") as ledger:
        assert len(ledger) == 0


def test_a_check_of_a_database_makes_no_file(tmp_path: Path) -> None:
    check_database(f"sqlite:///{tmp_path}/study.db")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StorageError, match=r"storage: the database cannot be used: .*unable to open"):
        check_database(f"sqlite:///{tmp_path}/no folder/study.db")


@pytest.mark.parametrize("method", ["_get_trials", "get_study_id_from_name", "get_study_user_attrs", "__init__"])
def test_no_password_where_a_database_ends_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Without a server: errors of SQLAlchemy and Optuna that quote the URL, plain and decoded."""
    url, sqlite = f"postgresql://anna:{PASSWORD}@db/x", f"sqlite:///{tmp_path}/study.db"
    open_ledger(tmp_path, storage=sqlite).close()

    def down(*_: object, **__: object) -> None:
        try:
            raise OperationalError(f"SELECT 1 -- {url} Geheim@rt", None, Exception(f"cannot connect with {url}"))
        except OperationalError as error:
            raise StorageInternalError(f"failed at {url}") from error

    monkeypatch.setattr(f"optuna.storages.RDBStorage.{method}", down)
    monkeypatch.setattr("nas_kd.trials.ledger.open_storage", lambda run_dir, _: open_storage(run_dir, sqlite))
    with pytest.raises(StorageError, match=r"the database cannot be used: .*cannot connect") as raised:
        Ledger.load(tmp_path, storage=url).records()
    assert "heim" not in str(raised.value)


def test_a_first_read_that_fails_is_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = InMemoryStorage()
    study_id = storage.create_new_study([StudyDirection.MINIMIZE])
    for _ in range(3):
        storage.create_new_trial(study_id)
    trials = StoredTrials(storage, study_id, alone=True)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "get_all_trials", Mock(side_effect=StorageInternalError("away")))
        with pytest.raises(StorageInternalError):
            trials.all()
    assert [trial.number for trial in trials.all()] == [0, 1, 2]


def test_a_driver_waits_for_its_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database answers again at the third question, and after a write whose answer was lost."""
    storage = f"sqlite:///{tmp_path}/study.db"
    monkeypatch.setattr("nas_kd.trials.database._PAUSE_S", 0.001)
    failures = dict.fromkeys(("create_new_trial", "set_trial_user_attr", "set_trial_state_values"), 2)
    for name in failures:
        own = getattr(RDBStorage, name)

        def flaky(*arguments: Any, name: str = name, own: Any = own, **options: Any) -> Any:
            failures[name] -= 1
            if failures[name] == 1:
                raise OperationalError("", None, Exception("the server is starting up"))
            result = own(*arguments, **options)
            if failures[name] == 0:
                raise OperationalError("", None, Exception("the connection was lost"))
            return result

        monkeypatch.setattr(RDBStorage, name, flaky)
    with open_ledger(tmp_path, storage=storage) as ledger:
        ask_and_tell(ledger, 2)
        assert [record.number for record in ledger.records()] == [0, 1]
        assert len(ledger) == ledger.count("complete") == 2

        def away(*_: object, **__: object) -> None:
            raise OperationalError("", None, Exception("no route to host"))

        monkeypatch.setattr(RDBStorage, "create_new_trial", away)
        monkeypatch.setattr(ledger._storage, "wait_s", 0.01)
        with pytest.raises(StorageError, match=r"no route to host.*when it is back, the same command goes on"):
            ledger.ask(SPACE)


def test_no_password_where_the_study_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no study .* in postgresql://anna:\*\*\*@db/x"):
        Ledger.load(tmp_path, storage=f"postgresql://anna:{PASSWORD}@db/x")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at postgresql://anna:pw@db/x, line 1", "at postgresql://anna:***@db/x, line 1"),
        ("postgresql+psycopg2://anna:p@w:1/2@db:5432/x", "postgresql+psycopg2://anna:***@db:5432/x"),
        ("mysql://db/x?user=anna&password=pw&ssl=1", "mysql://db/x?user=anna&password=***&ssl=1"),
        ("'mysql://:pw@db/x'", "'mysql://:***@db/x'"),
        ("anna:pw@db/x is no URL", "anna:***@db/x is no URL"),
        ("postgresql//anna:p@w@db/x", "postgresql//anna:***@db/x"),
        ("postgresql://anna@db:5432/x", "postgresql://anna@db:5432/x"),
        ("sqlite:////tmp/x.db", "sqlite:////tmp/x.db"),
        ("ray://host:10001 and a@b", "ray://host:10001 and a@b"),
    ],
)
def test_passwords_are_masked(text: str, shown: str) -> None:
    assert masked(text) == shown


@pytest.mark.parametrize("tail", [b'{"op_code": 4, "worker', b"x" * 200_000])
def test_torn_journal_is_repaired(tmp_path: Path, tail: bytes) -> None:
    with open_ledger(tmp_path) as ledger:
        ask_and_tell(ledger, 2)
        told = ledger.records()
    path = tmp_path / JOURNAL_NAME
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    assert Ledger.load(tmp_path).records() == told  # a reader just does not see it
    assert path.read_bytes() == whole + tail
    with open_ledger(tmp_path) as ledger:
        ask_and_tell(ledger, 1)
        assert ledger.records()[:2] == told
    assert Ledger.load(tmp_path).count("complete") == 3


def test_repair_cuts_the_torn_tail_only(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    assert repair_journal(path) == 0
    for content, cut in ((b"", 0), (b"1\n2\n", 0), (b"1\n2c", 2), (b"abc", 3), (b'1\n"\x01"\n', 4)):
        path.write_bytes(content)
        assert repair_journal(path) == cut
        assert path.read_bytes() == content[: len(content) - cut]


def test_every_prefix_of_the_journal_can_be_resumed(tmp_path: Path) -> None:
    """A kill can leave any prefix of the journal: each must open, and go on to the same records."""
    with open_ledger(tmp_path / "whole") as ledger:
        ask_and_tell(ledger, 2)
        ledger.enqueue([{"op": "delta"}], SPACE)
        ask_and_tell(ledger, 1)
        told = ledger.records()
    content = (tmp_path / "whole" / JOURNAL_NAME).read_bytes()
    ends = [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
    for end in [0, *ends, *(end - 3 for end in ends)]:
        run_dir = tmp_path / f"cut{end}" / "whole"
        run_dir.mkdir(parents=True)
        (run_dir / JOURNAL_NAME).write_bytes(content[:end])
        with open_ledger(run_dir) as ledger:
            for proposal in ledger.running():
                ledger.tell(make_record(proposal.number, proposal.knobs))
            while len(ledger.records()) < 3:
                if len(ledger) == 2:
                    ledger.enqueue([{"op": "delta"}], SPACE)
                ask_and_tell(ledger, 1)
            assert ledger.records() == told, end
