"""The ledger in a real PostgreSQL, which is stopped in the middle of a campaign."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import toy_trials
from toy_trials import SPACE, executions, open_ledger

from nas_kd.trials import Event, Ledger, Resources, StorageError, Summary, run_trials
from nas_kd.trials.storage import open_storage

pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'nas-kd[postgresql]'")
import psycopg
from postgres_server import URL_PASSWORD, PostgresServer, programs

if len(programs()) < 2:
    pytest.skip("no PostgreSQL server is installed", allow_module_level=True)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    server = PostgresServer()
    try:
        yield server
    finally:
        server.close()


def run(run_dir: Path, url: str, num_trials: int, **options: object) -> Summary:
    with open_ledger(run_dir, storage=url, name="clips") as ledger:
        return run_trials(
            toy_trials.succeed, ledger, SPACE, num_trials=num_trials, run_dir=run_dir, sampler="random",
            resources=Resources(executor="inline"), **options,
        )  # type: ignore[arg-type]  # fmt: skip


def test_campaigns_of_several_users_in_one_database_do_not_mix(tmp_path: Path, server: PostgresServer) -> None:
    users = [tmp_path / name / "clips" for name in ("anna", "ben")]
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE teams")
    url = server.url("teams")
    with ThreadPoolExecutor() as threads:  # they begin at once, and none finds tables
        assert len(list(threads.map(open_storage, [*users, tmp_path], [url] * 3))) == 3
    for run_dir, number in zip(users, (2, 3), strict=True):
        assert run(run_dir, url, number).num_complete == number
    assert run(users[0], url, 4).num_complete == 4
    for run_dir, number in zip(users, (4, 3), strict=True):
        records = Ledger.load(run_dir, storage=url).records()
        assert [record.number for record in records] == list(range(number))
        assert executions(run_dir) == [(i, "run") for i in range(number)]
        assert URL_PASSWORD not in "".join(p.read_text() for p in run_dir.rglob("*") if p.suffix in (".json", ".log"))


def test_a_server_that_stops_in_mid_campaign_costs_nothing(
    tmp_path: Path, server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nas_kd.trials.database._PAUSE_S", 0.2)
    back: list[threading.Thread] = []
    announced: list[int | None] = []

    def restart() -> None:
        time.sleep(1.5)
        server.start()

    def observe(event: Event) -> None:
        if event.kind == "ended":
            announced.append(event.number)
        if event.kind == "progress" and event.number == 2 and not back:  # the trial's end is still to be told
            server.stop()
            back.append(threading.Thread(target=restart))
            back[0].start()

    assert run(tmp_path, server.url(), 6, on_event=observe).num_complete == 6
    back[0].join()
    assert announced == list(range(6))
    assert executions(tmp_path) == [(i, "run") for i in range(6)]
    records = Ledger.load(tmp_path, storage=server.url()).records()
    assert [record.number for record in records] == list(range(6))
    assert all((tmp_path / "trials" / f"{i:04d}" / "record.json").is_file() for i in range(6))


def test_what_cannot_be_reached_is_one_sentence_without_the_password(tmp_path: Path, server: PostgresServer) -> None:
    run(tmp_path / "run", server.url(), 1)
    cases = {
        server.url(password="wrong%3A1"): "password authentication failed",
        server.url(database="none"): 'database "none" does not exist',
    }
    for url, reason in cases.items():
        with pytest.raises(StorageError, match=reason) as caught:
            open_ledger(tmp_path / "other", storage=url)
        assert "wrong" not in str(caught.value)
    server.stop()
    try:
        with pytest.raises(StorageError, match=r"[cC]onnection refused") as caught:
            Ledger.load(tmp_path / "run", storage=server.url())
    finally:
        server.start()
    assert "\n" not in str(caught.value)
    assert URL_PASSWORD not in str(caught.value)
    assert "geh" not in str(caught.value)
