"""The mismatch study: the rule of its sentence on made-up accuracies, and the whole of it in small."""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

PATH = Path(__file__).parent.parent / "examples" / "mismatch.py"


@pytest.fixture(scope="module")
def mismatch() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mismatch_example", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def scores(low: float, low_kd: float, resampled: float, high: float, noise: float = 0.002) -> dict[str, list[float]]:
    """Five seeds that share most of their luck; what is left differs by `noise`."""
    luck = [0.0, 0.03, -0.02, 0.01, -0.01]
    own = [[0, 1, -1, 1, -1], [1, -1, 0, -1, 1], [-1, 0, 1, 1, -1], [1, 1, -1, -1, 0]]
    means = {"low": low, "low_kd": low_kd, "resampled": resampled, "high": high}
    return {
        name: [mean + a + noise * b for a, b in zip(luck, row, strict=True)]
        for (name, mean), row in zip(means.items(), own, strict=True)
    }


@pytest.mark.parametrize(
    ("values", "expected", "words"),
    [
        (scores(0.60, 0.78, 0.80, 0.85), ("held", "held"), "The claim held here (5 seeds)"),
        (scores(0.60, 0.62, 0.80, 0.85), ("held", "failed"), "The claim held in part here"),
        (scores(0.60, 0.60, 0.62, 0.85), ("failed", "failed"), "The claim did not hold here"),
        (scores(0.60, 0.55, 0.62, 0.85), ("failed", "failed"), "The claim did not hold here"),
        # Better than what it should come near to is near enough; so is resampled input above high resolution.
        (scores(0.60, 0.84, 0.80, 0.78), ("held", "held"), "The claim held here"),
        # Half of the way is neither more nor less than half of it.
        (scores(0.60, 0.70, 0.80, 1.00), ("open", "open"), "The claim is not settled here"),
        (scores(0.60, 0.78, 0.80, 0.85, noise=0.2), ("open", "open"), "The claim is not settled here"),
        # Distillation cannot make up for a mismatch that is not there.
        (scores(0.60, 0.70, 0.60, 0.85), ("failed", "open"), "The claim did not hold here"),
    ],
)
def test_the_sentence_follows_from_the_intervals(
    mismatch: ModuleType, values: dict[str, list[float]], expected: tuple[str, str], words: str
) -> None:
    assert mismatch.standings(values) == expected
    text = mismatch.sentence(values)
    assert text.startswith(words)
    assert text.count(". ") == 0


def test_one_seed_settles_nothing(mismatch: ModuleType) -> None:
    values = {name: [v[0]] for name, v in scores(0.60, 0.78, 0.80, 0.85).items()}
    assert mismatch.standings(values) == ("open", "open")
    assert "1 seed)" in mismatch.sentence(values)
    assert "no interval" in mismatch.sentence(values)


def test_differences_are_paired_by_seed(mismatch: ModuleType) -> None:
    values = scores(0.60, 0.78, 0.80, 0.85)
    found = mismatch.differences(values)
    assert set(found) == {"mismatch", "gain", "left", "loss"}  # no control was trained
    assert found["mismatch"].mean == pytest.approx(0.2)
    low, high = found["mismatch"].interval
    assert high - low < 0.02  # the luck of a seed, ± 0.03, cancels


def test_resampled_input_is_what_the_low_resolution_sees_at_the_scale_of_the_high_one(mismatch: ModuleType) -> None:
    seen: list[torch.Tensor] = []
    net = nn.Identity()
    net.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0]))
    clip = torch.arange(2.0).repeat_interleave(12).reshape(1, 1, 2, 3, 4)
    mismatch.Resampled(net, 6)(clip)
    assert torch.equal(seen[0], torch.arange(2.0).repeat_interleave(36).reshape(1, 1, 2, 6, 6))  # frames do not mix


def test_the_study_runs_goes_on_where_it_was_and_guards_its_folder(
    mismatch: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = [f"data.{name}={clips}" for name, clips in (("num_train", 24), ("num_val", 12), ("num_test", 12))]
    small = ["--frames", "2", "--epochs", "1", "--out", str(tmp_path)]
    for setting in (*sizes, "teacher.settings={widths: [4, 48], blocks: [1, 1], strides: [2, 2]}"):
        small += ["--set", setting]
    threads = torch.get_num_threads()
    mismatch.main([*small, "--seeds", "1", "--no-control"])
    first = {path.name: path.read_bytes() for path in (tmp_path / "results").iterdir()}
    assert set(first) == {f"{arm}-seed0.json" for arm in ("teacher", "high", "low", "low_kd", "resampled")}
    assert "not settled here (1 seed)" in " ".join(capsys.readouterr().out.split())

    (tmp_path / "results" / "low_kd-seed0.json").unlink()  # as if the study had been stopped there
    mismatch.main([*small, "--seeds", "2"])
    again = {path.name: path.read_bytes() for path in (tmp_path / "results").iterdir()}
    assert all(again[name] == content for name, content in first.items() if name != "low_kd-seed0.json")
    before, after = (json.loads(kept["low_kd-seed0.json"]) for kept in (first, again))
    assert before["accuracy"] == after["accuracy"]
    assert len(again) == 12
    assert not list(tmp_path.rglob("checkpoint.pt"))

    written = json.loads((tmp_path / "results.json").read_text())
    assert written["sentence"] == mismatch.sentence(written["scores"])
    assert written["differences"]["control"]["num_values"] == 2
    with (tmp_path / "results.csv").open() as file:
        kept = [(row["arm"], int(row["seed"]), float(row["test_accuracy"])) for row in csv.DictReader(file)]
    assert kept == [(arm, seed, value) for arm, row in written["scores"].items() for seed, value in enumerate(row)]
    assert written["sentence"] in (tmp_path / "results.md").read_text()

    capsys.readouterr()
    with pytest.raises(SystemExit):
        mismatch.main([*small, "--low", "8"])
    assert "holds the results of other settings" in capsys.readouterr().err
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--low", "32"], "below --high, but they are 32 and 32"),
        (["--seeds", "0"], "at least 1, but is 0"),
        (["--set", "retrain.epochs"], "takes dotted.path=value"),
        (["--set", "retrain.epoch=3"], "epoch"),
    ],
)
def test_mistakes_are_told_in_a_sentence(
    mismatch: ModuleType, arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        mismatch.main([*arguments, "--out", str(tmp_path)])
    assert message in capsys.readouterr().err
