"""Files of a run that were cut, emptied, overwritten or deleted: named with the way out, or made again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from nas_kd.campaign.campaign import Campaign
from nas_kd.config import CampaignConfig, load_config
from nas_kd.files import CONFIG_NAME, DamagedFileError, check_tensors, read_json, save_tensors
from nas_kd.preparation.teacher import prepare_teacher
from nas_kd.runs import Run, exports, load_run, results, status
from nas_kd.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from nas_kd.trial import build_context
from nas_kd.trials import Cost, Ledger, Metric, Resources, TrialRecord
from nas_kd.trials.storage import JOURNAL_NAME, STUDY_FILE

JUNK = {
    "empty": b"",
    "text": b"not what it was",
    "zeros": bytes(3000),
    "pickle": b"\x80\x02}q\x00.",
    "zip": b"PK\x03\x04",
}


def damaged(content: bytes) -> list[bytes]:
    """The junk above, and the content cut short and with a byte changed in its head."""
    return [*JUNK.values(), content[: len(content) // 2], content[:-1], b"\xff" + content[1:]]


def test_a_damaged_checkpoint_is_told_and_left_out(tmp_path: Path) -> None:
    path, layer = tmp_path / "checkpoint.pt", torch.nn.Linear(30, 30)
    keeper = Checkpoint(path, "tag", {"layer": layer})
    keeper.save(3)
    whole = path.read_bytes()
    told: list[str] = []
    assert keeper.restore(lambda share, words: told.append(words)) == 3
    assert told == []
    for content in [*JUNK.values(), whole[: len(whole) // 2], whole[:-30]]:
        path.write_bytes(content)
        told.clear()
        assert load_checkpoint(path, tag="tag") is None
        assert keeper.restore(lambda share, words: told.append(words)) == 0
        assert told == ["starts again, since checkpoint.pt is damaged"]
    save_checkpoint(path, {"tag": "another", "epoch": 1})
    told.clear()
    assert keeper.restore(lambda share, words: told.append(words)) == 0
    assert told == []  # of another training, and whole


def test_a_damaged_file_of_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "known.json"
    with pytest.raises(FileNotFoundError):
        read_json(path, "delete it")
    path.write_text('{"a": 1}')
    assert read_json(path, "delete it") == {"a": 1}
    for content in [*JUNK.values(), b'{"a": 1', b"[1]", b'\xff\xfe{\x00"', b'{"a\x01": 1}']:
        path.write_bytes(content)
        words = "it is empty" if not content else "it was cut or overwritten"
        with pytest.raises(DamagedFileError) as raised:
            read_json(path, "delete it")
        assert str(raised.value) == f"{path} is damaged ({words}); delete it"


def test_a_damaged_file_of_tensors_is_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    with pytest.raises(DamagedFileError, match=r"weights\.safetensors is missing; train again"):
        check_tensors(path, "train again")
    save_tensors({"a": torch.ones(100)}, path)
    check_tensors(path, "train again")
    for content in damaged(path.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(DamagedFileError, match=r"weights\.safetensors is damaged \(it .*\); train again"):
            check_tensors(path, "train again")


def test_a_damaged_teacher_is_measured_again_or_named(tiny: Callable[..., CampaignConfig], tmp_path: Path) -> None:
    config, folder = tiny(), tmp_path / "run" / "teacher"
    notes: list[str] = []
    first = prepare_teacher(build_context(config, "cpu"), tmp_path / "run")
    (folder / "teacher.json").write_text((folder / "teacher.json").read_text()[:100])
    again = prepare_teacher(build_context(config, "cpu"), tmp_path / "run", note=notes.append)
    assert again == first
    assert any("teacher.json is damaged (it was cut or overwritten); the teacher is measured again" in n for n in notes)
    weights = folder / "teacher.safetensors"
    whole = weights.read_bytes()
    for content in (None, b"", whole[:-10]):
        weights.unlink(missing_ok=True)
        if content is not None:
            weights.write_bytes(content)
        with pytest.raises(DamagedFileError, match=r"teacher\.safetensors is .*; restore it, or delete the folder"):
            prepare_teacher(build_context(config, "cpu"), tmp_path / "run")


@pytest.fixture
def run(tiny: Callable[..., CampaignConfig]) -> CampaignConfig:
    """A run without trials."""
    config = tiny()
    campaign = Campaign(config)
    config.run_dir.mkdir(parents=True)
    campaign._write_config()
    Ledger.open(config.run_dir, metric=Metric(name="accuracy"), name=config.name).close()
    return config


def test_a_damaged_config_of_a_run_is_named(run: CampaignConfig) -> None:
    path = run.run_dir / CONFIG_NAME
    assert load_run(run.run_dir) == Run(run.run_dir, run, ())
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for content in (
        b"",
        whole[:100],
        b"".join(lines[:4]),
        b"\xff\xfe" + whole,
        whole.replace(b"trials: ", b"trials: ["),
    ):
        path.write_bytes(content)
        with pytest.raises(DamagedFileError, match="the `nas-kd search` command of the run writes it again") as raised:
            load_run(run.run_dir)
        assert str(path) in str(raised.value)
        assert "\n" not in str(raised.value)


def test_a_config_that_names_another_task_is_one_sentence(run: CampaignConfig) -> None:
    (run.run_dir / JOURNAL_NAME).unlink()
    Ledger.open(run.run_dir, metric=Metric(name="miou"), name=run.name).close()
    for use in (load_run, results.report, results.table, exports.export):
        with pytest.raises(ValueError, match=r"names the task classification, whose metric is accuracy, .* by miou"):
            use(run.run_dir)


def test_a_run_whose_database_is_down_is_read_from_its_records(
    run: CampaignConfig, caplog: pytest.LogCaptureFixture
) -> None:
    records = [
        TrialRecord(
            number=number,
            state=state,
            seed=1,
            config_hash=run.digest(),
            knobs={"max_flops": 2000 * (number + 1)},
            metric=Metric(name="accuracy"),
            cost=Cost(flops=1000 * (number + 1), params=10),
            metrics={"retrained": {"val": {"accuracy": 0.5 + number / 10}}} if state == "complete" else {},
        )
        for number, state in ((0, "complete"), (1, "failed"), (3, "complete"))  # 2 has not ended
    ]
    for record in records:
        record.write(run.run_dir / "trials" / f"{record.number:04d}" / "record.json")
    away = run.model_copy(update={"storage": "sqlite:////no/such/folder/secret.db"})
    Campaign(away)._write_config()
    (run.run_dir / STUDY_FILE).write_text("x-00000000\n")
    found = load_run(run.run_dir)
    assert list(found.records) == records
    assert found.pareto.pick == records[2]
    stands = status(run.run_dir)
    assert (stands.complete, stands.failed, stands.running) == (2, 1, ())
    (text,) = {entry.getMessage() for entry in caplog.records}
    assert text.startswith("storage: the database cannot be used: ")
    assert text.endswith(f"; trials that have ended are read from their records in {run.run_dir / 'trials'} instead: 3")


def test_no_password_in_mistakes_of_a_campaign_file(tmp_path: Path) -> None:
    file, url = tmp_path / "mine.yaml", "postgresql://anna:geheim@db/x"
    for text in (
        f"storage: {url}\n  more: 1\n",
        f"storage: [{url}]\n",
        f"trials: {url}\n",
        f"storage: '{url}\nname: x\n",
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"mine\.yaml: ") as raised:
            load_config(file)
        assert "geheim" not in str(raised.value)
    file.write_text("trials: 1\n")
    for override in (f"storage={url}: [", url, f"trials={url}"):
        with pytest.raises(ValueError, match="anna") as raised:
            load_config(file, [override])
        assert "geheim" not in str(raised.value)


def test_a_config_with_a_password_is_private(tiny: Callable[..., CampaignConfig]) -> None:
    config = tiny()
    config.run_dir.mkdir(parents=True)
    path = config.run_dir / CONFIG_NAME
    Campaign(config)._write_config()
    assert path.stat().st_mode & 0o044
    Campaign(config.model_copy(update={"storage": "postgresql://anna:geheim@db/x"}))._write_config()
    assert path.stat().st_mode & 0o077 == 0
    assert yaml.safe_load(path.read_text())["storage"].endswith("geheim@db/x")
    path.unlink()
    resources = Resources(address="head:6379", files_url="sftp://anna:geheim@host/x")
    Campaign(config.model_copy(update={"resources": resources}))._write_config()
    assert path.stat().st_mode & 0o077 == 0
    assert not any("geheim" in kept.read_text() for kept in (config.run_dir / "settings").iterdir())
