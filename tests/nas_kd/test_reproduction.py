"""`nas-kd reproduce`: a trial of a finished campaign again, bit by bit; what is not the same any more is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commands import cli
from safetensors.torch import load_file, save_file

from nas_kd.campaign import Campaign, CampaignResult, reproduce, reproduction
from nas_kd.config import CampaignConfig
from nas_kd.trial import Trial
from nas_kd.trials import TrialRecord


@pytest.fixture
def run_dir(shared_run: CampaignResult, tmp_path: Path) -> Path:
    """A copy of the finished run, which tests may damage."""
    return Path(shutil.copytree(shared_run.run_dir, tmp_path / "runs" / "copy"))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def kept(record: TrialRecord) -> dict[str, Any]:
    return record.model_dump(exclude={"durations_s", "started_at"})


def give(monkeypatch: pytest.MonkeyPatch, config: CampaignConfig, *records: TrialRecord) -> None:
    """Let the ledger hold other records."""
    ledger = SimpleNamespace(records=lambda: list(records))
    monkeypatch.setattr(reproduction, "open_run", lambda run: (config, ledger))


def test_a_trial_is_the_same_bit_by_bit_under_its_own_settings_and_with_its_own_search(
    shared_run: CampaignResult, run_dir: Path
) -> None:
    changed = {"name": "copy", "runs": run_dir.parent}
    longer = shared_run.config.retrain.model_copy(update={"epochs": 9})
    Campaign(shared_run.config.model_copy(update={**changed, "retrain": longer}))._write_config()
    (run_dir / "search").rename(run_dir / "search-1")  # as where another one was done afterwards
    before = files(run_dir)
    code, output = cli("reproduce", run_dir, "--trial", 2)
    assert code == 0, output
    assert files(run_dir) == before
    record = shared_run.records[2]
    folder = run_dir.parent / "reproduced" / "copy-trial-0002"
    assert f"record, weights and comparison: {folder}\n" in output
    found = json.loads((folder / "comparison.json").read_text())
    assert (found["verdict"], found["environment"]) == ("bit by bit", {})
    # Architecture, FLOPs, parameters; four metrics of the inherited weights, on validation and on test; weights.
    assert "equal bit by bit: trial 2 gives what its record says in all 16 values\n" in output
    assert len(found["values"]) == 3 + 3 * 4 + 1
    assert "not shown, since equal to the last bit: 10 further values" in output
    assert (record.arch_id or "") in output
    assert kept(TrialRecord.read(folder / "record.json")) == kept(record)
    assert TrialRecord.read(folder / "original.json") == TrialRecord.read(run_dir / "trials" / "0002" / "record.json")
    weights = "student.safetensors"
    assert (folder / weights).read_bytes() == (run_dir / "trials" / "0002" / weights).read_bytes()
    assert not list(folder.glob("checkpoint*"))


def test_another_metric_is_different_and_an_interrupted_reproduction_goes_on(
    shared_run: CampaignResult, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = shared_run.records[0]
    metrics = record.model_dump()["metrics"]
    metrics["retrained"]["val"]["accuracy"] -= 0.125
    environment = {**record.environment, "torch": "1.0"}
    give(monkeypatch, shared_run.config, record.model_copy(update={"metrics": metrics, "environment": environment}))
    shutil.rmtree(run_dir / "teacher" / "outputs")  # they are the teacher's, who is there
    before = files(run_dir)
    stage = Trial._stage

    def killed(self: Trial, start: float, share: float) -> Callable[[float, str], None]:
        def progress(done: float, words: str) -> None:
            if words.startswith("epoch 2/2"):
                raise KeyboardInterrupt
            stage(self, start, share)(done, words)

        return progress

    with monkeypatch.context() as patched:
        patched.setattr(Trial, "_stage", killed)
        code, output = cli("reproduce", run_dir, "--trial", 0, "--out", tmp_path / "again")
    assert code == 130, output
    assert output.splitlines()[-1] == "interrupted; run the same command again to continue"
    assert (tmp_path / "again" / "checkpoint-retrain-0.pt").is_file()
    code, output = cli("reproduce", run_dir, "--trial", 0, "--out", tmp_path / "again")
    assert code == 1, output
    assert files(run_dir) == before
    lines = [json.loads(line) for line in (tmp_path / "again" / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]  # the first one was not trained again
    assert f"{run_dir}/teacher/outputs has other outputs of the teacher than this trial learned from" in output
    assert not (tmp_path / "again" / reproduction.OUTPUTS).exists()
    assert "different: trial 0 does not give what its record says (validation accuracy)\n" in output
    assert "the environment is another one, which may explain it (torch: 1.0 then, " in output
    values = json.loads((tmp_path / "again" / "comparison.json").read_text())["values"]
    (other,) = [value for value in values if not value["is_equal"]]
    assert (other["name"], other["difference"], other["is_close"]) == ("validation accuracy", 0.125, False)
    code, output = cli("reproduce", run_dir, "--trial", 0, "--out", tmp_path / "again")
    assert code == 2
    assert f"{tmp_path / 'again'} is not empty; delete it, or name a new folder with --out" in output


def of_state(record: TrialRecord, number: int, state: str, **fields: Any) -> TrialRecord:
    return record.model_copy(update={"number": number, "state": state, **fields})


def test_trials_without_a_student_are_refused(
    shared_run: CampaignResult, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = shared_run.records[0]
    too_slow = of_state(record, 2, "stopped", warnings=("not trained, since latency_ms is 3",))
    failed = of_state(record, 3, "failed", error="Traceback\nValueError: the loss is NaN")
    give(monkeypatch, shared_run.config, record, of_state(record, 1, "stopped"), too_slow, failed)
    for number, words in (
        (1, r"trial 1 of .* was stopped \(early stopping\), so it has no trained student to reproduce; complete"),
        (2, r"trial 2 of .* was stopped \(not trained, since latency_ms is 3\), so"),
        (3, r"trial 3 of .* failed \(ValueError: the loss is NaN\), so"),
        (4, r"no trial 4 of .* has ended; complete trials: 0$"),
    ):
        with pytest.raises(ValueError, match=words):
            reproduce(run_dir, trial=number)
    with pytest.raises(ValueError, match=r"lies in the run's folder, to which nothing is added; name another one"):
        reproduce(run_dir, trial=0, out_dir=run_dir / "again")
    assert not (run_dir.parent / "reproduced").exists()


def other_teacher(run_dir: Path) -> None:
    path = run_dir / "teacher" / "teacher.safetensors"
    save_file({name: 2 * value for name, value in load_file(path).items()}, path)


def other_data(run_dir: Path) -> None:
    path = run_dir / "teacher" / "teacher.json"
    known = json.loads(path.read_text())
    known["identity"]["val"]["labels"] = "others"
    path.write_text(json.dumps(known))


def other_search(run_dir: Path) -> None:
    path = run_dir / "search" / "supernet.safetensors"
    save_file({name: -3 * value if "gate" in name else value for name, value in load_file(path).items()}, path)


def test_what_the_run_does_not_have_any_more_is_one_sentence(run_dir: Path) -> None:
    for change, words in (  # what is asked first is damaged last
        (
            other_search,
            r"no search that trial 1 can have begun with \(it has search\): each was done with other settings",
        ),
        (lambda run: shutil.rmtree(run / "search"), r"no search that trial 1 can have begun with \(it has none\)"),
        (other_teacher, r"does not answer a fixed input as teacher.json has it: its weights or its code changed"),
        (other_data, r"was begun with other validation data \(other labels\), so none of its trials can be reproduced"),
        (lambda run: shutil.rmtree(run / "teacher"), r"teacher.json is missing; restore it: trial 1 learned from"),
    ):
        change(run_dir)
        with pytest.raises(ValueError, match=words) as raised:
            reproduce(run_dir, trial=1)
        assert "\n" not in str(raised.value)


def test_settings_that_are_lost_are_not_taken_from_the_present_campaign(
    shared_run: CampaignResult, run_dir: Path
) -> None:
    (run_dir / "settings" / f"{shared_run.config.digest()}.yaml").unlink()
    text = (run_dir / "campaign.yaml").read_text()
    (run_dir / "campaign.yaml").write_text(text.replace("seed: 0", "seed: 1", 1))
    with pytest.raises(ValueError, match=r"\.yaml is missing, with the settings under which trial 1 ran; restore it"):
        reproduce(run_dir, trial=1)
