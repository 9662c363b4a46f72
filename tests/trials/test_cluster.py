"""A campaign on three nodes, one of which dies: `ray.cluster_utils.Cluster` has them on one machine."""

from __future__ import annotations

import collections
import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import toy_trials
from toy_trials import SPACE, executions, open_ledger

from nas_kd.trials import Event, Ledger, Resources, run_trials
from nas_kd.trials.runner import set_ray_environment

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def test_a_node_that_comes_gets_a_trial_and_one_that_dies_costs_a_restart_from_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_ray_environment(Resources())
    from ray.cluster_utils import Cluster

    from nas_kd.trials import places

    monkeypatch.setattr(places, "_SECONDS_BETWEEN_LOOKS", 0.5)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes: list[Any] = [cluster.add_node(num_cpus=1)]
    lost: list[int] = []
    at_once: list[int] = []

    def add_one(event: Event) -> None:
        if event.kind == "started" and event.number == 1:
            nodes.append(cluster.add_node(num_cpus=1))

    def kill_one() -> None:
        until = time.monotonic() + 120
        while time.monotonic() < until:
            waiting = [path.name.split("-")[1:] for path in tmp_path.glob("waiting-*")]
            if len(waiting) == 3:
                break
            time.sleep(0.05)
        at_once.append(len(waiting))
        cluster.remove_node(nodes[0], allow_graceful=False)
        for number, node, pid in waiting:
            if node == nodes[0].node_id:
                os.kill(int(pid), signal.SIGKILL)  # it would end by itself, but could finish its trial before
                lost.append(int(number))
        (tmp_path / "go").touch()

    killer = threading.Thread(target=kill_one)
    try:
        with open_ledger(tmp_path) as ledger:
            killer.start()
            summary = run_trials(
                toy_trials.train_on_a_node,
                ledger,
                SPACE,
                num_trials=5,
                run_dir=tmp_path,
                resources=Resources(address=cluster.address),
                sampler="random",
                on_event=add_one,
            )
    finally:
        (tmp_path / "go").touch()
        if killer.ident is not None:
            killer.join()
        cluster.shutdown()
    assert (summary.num_complete, summary.num_failed, summary.num_stopped, summary.num_trials) == (5, 0, 0, 5)
    assert at_once == [3]  # one trial on each node, that of the last one included
    assert len(lost) == 1
    records = Ledger.load(tmp_path).records()
    assert [record.number for record in records] == [0, 1, 2, 3, 4]
    # It went on after the second epoch, whose checkpoint it had written; no other trial ran twice.
    assert {record.number: record.diagnostics["continued_after"] for record in records} == {
        number: 2 if number in lost else 0 for number in range(5)
    }
    counts = collections.Counter(number for number, _ in executions(tmp_path))
    assert counts == {number: 2 if number in lost else 1 for number in range(5)}
    assert not list(tmp_path.glob("trials/*/checkpoint*"))
    assert all(re.fullmatch(r"\d{4}", path.name) for path in (tmp_path / "trials").iterdir())
