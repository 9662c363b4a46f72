"""Machines that share no disk: two folders stand for the run's folder on each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from toy_trials import SPACE, make_record, open_ledger

from nas_kd.trials import Resources, TrialContext, TrialRecord
from nas_kd.trials import remote_files as module
from nas_kd.trials.driver import Driver
from nas_kd.trials.execution import Assignment, run_assignment
from nas_kd.trials.files import trial_directory
from nas_kd.trials.remote_files import RemoteFiles

NAMES = ["teacher", "search", "x"]  # that trials read; not all are there


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[RemoteFiles, RemoteFiles, Path]:
    """The copy as two machines see it, and the folder that it is in."""
    monkeypatch.setattr(module, "_ATTEMPTS", 1)
    url = f"file://{tmp_path}/remote"
    for name in "ab":
        (tmp_path / name).mkdir()
    return RemoteFiles(url, tmp_path / "a"), RemoteFiles(url, tmp_path / "b"), tmp_path / "remote"


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def is_content(path: Path) -> bool:
    return path.is_file() and path.name != ".shared.lock"


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if is_content(path)}


def test_what_trials_share_is_copied_and_only_changes_are_copied_again(
    tmp_path: Path, machines: tuple[RemoteFiles, RemoteFiles, Path]
) -> None:
    a, b, remote = machines
    shared = {"teacher/teacher.json": "{}", "teacher/outputs/0": "maps", "search/search.json": "{}, too"}
    others = {
        "campaign.yaml": "storage: of anna",
        "ledger.jsonl": "1",
        "ledger.jsonl.lock": "",
        ".ray_session": "y",
        "trials/0000/record.json": "2",
    }
    write(tmp_path / "a", shared | others | {"teacher/.half.tmp": "h"})
    b.pull_shared()
    assert content(tmp_path / "b") == {}, "nothing was copied yet"
    a.push_shared(NAMES)
    b.pull_shared()
    assert content(tmp_path / "b") == shared

    kept = {path.name: path.stat().st_mtime_ns for path in (remote / "shared").iterdir() if path.suffix == ""}
    assert len(kept) == 3
    write(tmp_path / "a", {"teacher/teacher.json": '{"x": 1}'})
    a.push_shared(NAMES)
    b.pull_shared()
    assert content(tmp_path / "b") == {**shared, "teacher/teacher.json": '{"x": 1}'}
    now = {path.name: path.stat().st_mtime_ns for path in (remote / "shared").iterdir() if path.suffix == ""}
    assert len(now) == 3, "the file of before is gone"
    assert len(now.items() & kept.items()) == 2, "others were not written again"


def test_a_copy_that_was_cut_off_leaves_the_one_of_before(
    tmp_path: Path, machines: tuple[RemoteFiles, RemoteFiles, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, _ = machines
    before = {"teacher/x": "old x", "teacher/y": "old y"}
    write(tmp_path / "a", before)
    a.push_shared(NAMES)
    write(tmp_path / "a", {"teacher/x": "new x", "teacher/y": "new y"})
    put = a._fs.put_file

    def second_fails(source: str, place: str) -> None:
        if Path(source).name == "y":
            Path(place).write_text("ne")
            raise OSError("the connection was lost")
        put(source, place)

    monkeypatch.setattr(a._fs, "put_file", second_fails)
    with pytest.raises(OSError, match="the connection was lost"):
        a.push_shared(NAMES)
    b.pull_shared()
    assert content(tmp_path / "b") == before
    monkeypatch.undo()
    a.push_shared(NAMES)
    b.pull_shared()
    assert content(tmp_path / "b") == {"teacher/x": "new x", "teacher/y": "new y"}


def test_damaged_and_malicious_copies_are_refused(
    tmp_path: Path, machines: tuple[RemoteFiles, RemoteFiles, Path]
) -> None:
    a, b, remote = machines
    write(tmp_path / "a", {"x": "content"})
    a.push_shared(NAMES)
    manifest = remote / "shared" / "manifest.json"
    digest = json.loads(manifest.read_text())["x"]
    (remote / "shared" / digest).write_text("c")
    with pytest.raises(OSError, match=f"{digest} is damaged"):
        b.pull_shared()
    manifest.write_text(json.dumps({"../outside": digest}))
    with pytest.raises(ValueError, match=r"the manifest of shared names \.\./outside, outside the run's folder"):
        b.pull_shared()
    assert content(tmp_path / "b") == {}
    assert not (tmp_path / "outside").exists()


def counts_to_three(context: TrialContext) -> TrialRecord:
    """A trial of three epochs; its first machine is switched off in the second."""
    checkpoint = context.directory / "checkpoint"
    begun = int(checkpoint.read_text()) if checkpoint.exists() else 0
    for epoch in range(begun, 3):
        checkpoint.write_text(str(epoch + 1))
        context.report((epoch + 1) / 3)
        if context.directory.parents[1].name == "a":
            raise KeyboardInterrupt
    (context.directory / "student").write_text(f"trained from epoch {begun} on")
    shared = (context.directory.parents[1] / "teacher").read_text()
    return make_record(context.number, context.knobs, diagnostics={"begun": float(begun), "teacher": float(shared)})


def test_a_trial_goes_on_from_its_checkpoint_on_another_machine(
    tmp_path: Path, machines: tuple[RemoteFiles, RemoteFiles, Path]
) -> None:
    a, _, remote = machines
    with open_ledger(tmp_path / "driver") as ledger:
        write(tmp_path / "driver", {"teacher": "7"})
        driver = Driver(
            ledger, SPACE, num_trials=1, run_dir=tmp_path / "driver", seed=0, files_url=a.url, shared_files=["teacher"]
        )
        driver.recover()
        assignment = driver.next()
        assert assignment is not None
        assert assignment.files_url == a.url

        def run_on(machine: str) -> TrialRecord:
            there = Assignment(**{**vars(assignment), "directory": trial_directory(tmp_path / machine, 0)})
            return run_assignment(there, counts_to_three, lambda report: None, num_cpus=1, num_gpus=0)

        with pytest.raises(KeyboardInterrupt):
            run_on("a")
        record = run_on("b")
        assert record.diagnostics == {"begun": 1.0, "teacher": 7.0}
        assert run_on("a").diagnostics == record.diagnostics, "it has ended: its record is got"
        driver.finish(record)
        kept = trial_directory(tmp_path / "driver", 0)
        assert {path.name for path in kept.iterdir()} == {"record.json", "student"}
        assert TrialRecord.read(kept / "record.json") == record
        assert (kept / "student").read_text() == "trained from epoch 1 on"
        assert [found.diagnostics for found in ledger.records()] == [record.diagnostics]
    assert not list(remote.glob("trial-*")), "nothing of it is left there"


def test_what_an_earlier_run_left_on_a_machine_is_not_taken(
    tmp_path: Path, machines: tuple[RemoteFiles, RemoteFiles, Path]
) -> None:
    _, b, _ = machines
    write(tmp_path / "b", {"trials/0000/record.json": "old", "trials/0000/checkpoint": "old", "trials/0000/.lock": "1"})
    b.pull_trial(0, exact=True)
    assert content(tmp_path / "b") == {"trials/0000/.lock": "1"}


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("nowhere://x", "resources.files_url: nowhere://x cannot be used: Protocol not known: nowhere"),
        ("file:///proc/x", "resources.files_url: file:///proc/x cannot be written and read ("),
        ("ftp://me:secret@/x", "ftp://me:***@/x"),
    ],
)
def test_urls_that_cannot_be_used_are_told_before_anything_runs(tmp_path: Path, url: str, sentence: str) -> None:
    with pytest.raises(ValueError, match="files_url") as error:
        RemoteFiles(url, tmp_path).check()
    assert sentence in str(error.value)
    assert "secret" not in str(error.value)


def test_a_url_without_a_cluster_is_refused() -> None:
    with pytest.raises(ValueError, match=r"there is no address; drop files_url \(s3://key:\*\*\*@bucket\)"):
        Resources(files_url="s3://key:secret@bucket")


def test_checkpoints_are_copied_every_half_a_minute(
    tmp_path: Path, machines: tuple[RemoteFiles, RemoteFiles, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, _ = machines
    now = 1000.0
    clock: Any = type("clock", (), {"monotonic": staticmethod(lambda: now)})
    monkeypatch.setattr(module, "time", clock)
    seen = []
    for epoch in range(8):
        write(tmp_path / "a", {"trials/0003/checkpoint": str(epoch), "trials/0003/.lock": "1"})
        a.push_checkpoint(3)
        b.pull_trial(3)
        seen.append(content(tmp_path / "b" / "trials" / "0003"))
        now += 10.0
    assert [int(found["checkpoint"]) for found in seen] == [0, 0, 0, 3, 3, 3, 6, 6]
    assert all(found.keys() == {"checkpoint"} for found in seen)
