"""`nas-kd status`: how a campaign stands, from its folder alone."""

from __future__ import annotations

import datetime
import json
import os
import time
from collections.abc import Callable

import pytest
from commands import cli, succeed

from nas_kd.campaign.campaign import Campaign
from nas_kd.config import CampaignConfig
from nas_kd.runs import status
from nas_kd.trials import ChoiceKnob, Cost, Ledger, Metric, TrialRecord
from nas_kd.trials.files import FileLock
from nas_kd.trials.ledger import DRIVER_LOCK

METRIC = Metric(name="accuracy")
KNOBS = {"max_flops": ChoiceKnob(values=(150_000, 250_000))}


def begun(minutes_ago: float) -> str:
    return (datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=minutes_ago)).isoformat(timespec="seconds")


def ended(ledger: Ledger, flops: int, accuracy: float | None) -> None:
    """A trial that ended after two minutes; without an accuracy, it failed."""
    proposal = ledger.ask(KNOBS, sampler="random")
    fields = {"state": "failed", "error": "RuntimeError: no luck"}
    if accuracy is not None:
        metrics = {"retrained": {"val": {"accuracy": accuracy}}}
        fields = {"state": "complete", "cost": Cost(flops=flops, params=1), "metrics": metrics}
    ledger.tell(
        TrialRecord.model_validate(
            {
                "number": proposal.number,
                "seed": 0,
                "config_hash": "",
                "knobs": proposal.knobs,
                "metric": METRIC,
                "started_at": begun(10 - 2 * proposal.number),
                "durations_s": {"total": 120.0},
                **fields,
            }
        )
    )


def test_a_campaign_from_its_begin_to_its_end(tiny: Callable[..., CampaignConfig]) -> None:
    config = tiny(trials=6, search={"shared": True})
    run_dir = config.run_dir
    code, output = cli("status", run_dir)
    assert code == 2
    assert "is not the folder of a run" in output

    ledger = Ledger.open(run_dir, metric=METRIC, name=config.name)
    assert status(run_dir).state == "preparing"
    (run_dir / "search").mkdir()
    (run_dir / "search" / "log.jsonl").write_text('{"stage": "search", "epoch": 4, "task": 1.0}\n{"stage": "sea')
    assert (status(run_dir).state, status(run_dir).message) == ("search", "search, epoch 4")
    Campaign(config)._write_config()
    assert status(run_dir).message == "the teacher is not ready"
    for folder, name in (("teacher", "teacher.json"), ("search", "search.json")):
        (run_dir / folder).mkdir(exist_ok=True)
        (run_dir / folder / name).write_text("{}")

    for flops, accuracy in ((100, 0.5), (200, 0.4), (300, 0.75), (0, None)):
        ended(ledger, flops, accuracy)
    folder = run_dir / "trials" / "0004"
    folder.mkdir(parents=True)
    (folder / "log.jsonl").write_text('{"stage": "retrain-0", "epoch": 2}\n')
    (folder / ".lock").touch()
    os.utime(folder / ".lock", times=(time.time() - 30,) * 2)
    ledger.ask(KNOBS, sampler="random")

    found = json.loads(succeed("status", run_dir, "--json"))
    assert (found["state"], found["trials"]) == ("trials", 6)
    assert (found["complete"], found["failed"], found["stopped"]) == (3, 1, 0)
    assert found["objectives"] == ["accuracy", "flops"]
    assert found["front"] == [{"number": 0, "values": [0.5, 100]}, {"number": 2, "values": [0.75, 300]}]
    # .5 from 100 FLOPs on, .25 more from 300 on.
    assert found["box"] == "accuracy from 0 to 1, flops from 275k to 0"  # 1.1 times the highest budget
    assert found["hypervolume"] == pytest.approx(((275_000 - 100) * 0.5 + (275_000 - 300) * 0.25) / 275_000)
    (running,) = found["running"]
    assert (running["number"], running["message"]) == (4, "retrain-0, epoch 2")
    assert running["elapsed_s"] == pytest.approx(30, abs=15)
    assert found["eta_s"] == pytest.approx(90 + 120, abs=15)
    assert found["elapsed_s"] == pytest.approx(600, abs=15)
    output = succeed("status", run_dir)
    assert "tiny: trials" in output
    assert "4 of 6 trials ended: 3 complete, 1 failed, 0 stopped early; 1 running" in output
    assert "retrain-0, epoch 2" in output

    ledger.close()
    found = json.loads(succeed("status", run_dir, "--watch", "--json"))  # nothing to wait for
    assert (found["state"], found["eta_s"]) == ("interrupted", None)
    assert found["elapsed_s"] == pytest.approx(8 * 60, abs=2)
    with Ledger.open(run_dir, metric=METRIC, name=config.name) as ledger:
        for proposal in ledger.running():
            knobs, seed = proposal.knobs, 0
            record = TrialRecord(
                number=4, state="stopped", seed=seed, config_hash="", knobs=knobs, metric=METRIC, started_at=begun(1)
            )
            ledger.tell(record)
        ended(ledger, 400, 0.7)
    found = json.loads(succeed("status", run_dir, "--json"))
    assert (found["state"], found["stopped"], found["running"]) == ("complete", 1, [])


def test_a_campaign_that_was_stopped_before_its_trials(tiny: Callable[..., CampaignConfig]) -> None:
    run_dir = tiny().run_dir
    lock = FileLock(run_dir / DRIVER_LOCK)
    assert lock.acquire()
    assert "tiny: preparing" in succeed("status", run_dir)
    lock.release()
    assert "tiny: interrupted" in succeed("status", run_dir)
