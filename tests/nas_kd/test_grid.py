"""Ablations: the grid of a campaign file, its cells as trials that share a seed, and the table of the results."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import cli, succeed

import nas_kd
from nas_kd.analysis.statistics import paired_difference
from nas_kd.campaign import Campaign
from nas_kd.config import CampaignConfig, ConfigError, load_config
from nas_kd.config.grid import distinct, multiply
from nas_kd.preflight.checks import grid_cells
from nas_kd.trial import TrialFunction
from nas_kd.trials import Ledger, TrialContext, TrialRecord

WEIGHT = "objective.response.weight"
Tiny = Callable[..., CampaignConfig]


def without_trials(tiny: Tiny, **changes: Any) -> CampaignConfig:
    """The tiny campaign as a file would give it that does not say how many trials."""
    data = tiny(**changes | {"grid": (), "knobs": {}}).model_dump(mode="json", exclude={"trials", "grid", "knobs"})
    return nas_kd.config.validate({**data, **{k: changes[k] for k in ("grid", "knobs") if k in changes}}, source="test")


def test_blocks_multiply_out_and_the_last_knob_varies_fastest() -> None:
    cells = multiply([{"a": [1, 2], "b": ["x", "y"]}, {"a": 3}])
    assert cells == [{"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "x"}, {"a": 2, "b": "y"}, {"a": 3}]
    assert distinct([*cells, {"b": "y", "a": 2}, {"a": 3.0}]) == cells


def test_a_path_in_the_grid_is_a_knob_and_what_a_block_leaves_out_is_the_configs(tiny: Tiny) -> None:
    blocks = [
        {"max_flops": ["150k", 250_000], WEIGHT: [0, "5e-1"], "retrain.augment": "none"},
        {"max_flops": 150_000, "search.lr": 0.1},
    ]
    config = without_trials(tiny, grid=blocks, knobs={"search.lr": {"type": "float", "low": 0.001, "high": 0.2}})
    own, lr = config.objective.response.weight, config.search.lr
    assert config.knobs == {
        "search.lr": {"type": "float", "low": 0.001, "high": 0.2},
        WEIGHT: {"type": "choice", "values": [0.0, 0.5] + [own] * (own not in (0.0, 0.5))},
        "retrain.augment": {"type": "choice", "values": ["none"]},
    }
    rest = {"search.lr": lr, "retrain.augment": "none"}
    assert config.cells == [
        *({"max_flops": m, WEIGHT: w, **rest} for m in (150_000, 250_000) for w in (0.0, 0.5)),
        *([{"max_flops": 150_000, WEIGHT: own, **rest, "search.lr": 0.1}]),
    ]
    assert config.trials == 5
    filled = config.with_knobs(config.cells[1])
    assert (filled.objective.response.weight, filled.search.lr, filled.grid) == (0.5, lr, ())


def test_equal_cells_are_one(tiny: Tiny) -> None:
    own = tiny().objective.response.weight
    blocks = [{"max_flops": 250_000, WEIGHT: [own, own, 7]}, {"max_flops": "250k"}, {"max_flops": "250k", WEIGHT: "7"}]
    assert [cell[WEIGHT] for cell in without_trials(tiny, grid=blocks).cells] == [own, 7.0]


def test_all_terms_may_be_off_in_a_grid_unless_it_is_in_one_cell(tiny: Tiny) -> None:
    terms = [f"objective.{term}.weight" for term in ("task", "response", "feature")]
    alone = [{"max_flops": 250_000, **{name: float(name == on) for name in terms}} for on in terms]
    config = without_trials(tiny, grid=alone)
    assert config.trials == 3
    assert [config.with_knobs(cell).objective.feature.weight for cell in config.cells] == [0.0, 0.0, 1.0]
    with pytest.raises(ConfigError, match="at least one term must have a weight above 0"):
        tiny(grid=alone, trials=4)  # the sampler may propose all of them off
    with pytest.raises(ConfigError, match=r"grid may not propose .*at least one term must have a weight above 0"):
        tiny(grid=[*alone, {"max_flops": 250_000, **dict.fromkeys(terms, 0)}])


@pytest.mark.parametrize(
    ("grid", "sentence"),
    [
        (3, "grid: must be a list, but got 3"),
        ([3], "grid.0: must be a section with keys and values, but got 3"),
        ([{}], "grid: block 1 names no knob"),
        ([{"frames": 4}, {"frames": []}], "grid: block 2 lists no value of frames"),
        ([{"retrain.lr": [None]}], "block 1 gives retrain.lr the value None"),
        ([{"retrain.lrr": 1}], "grid: retrain.lrr: there is no 'lrr'; did you mean 'lr'?"),
        ([{"retrain.lr": -1}], "retrain.lr = -1: lr: input should be greater than 0"),
        ([{"data.size": 1}], "grid: data.size: a knob must be a dotted path into objective, search or retrain"),
        ([{"search.gates.split_share": 0.4}], "all trials share the splits"),
        ([{"max_flops": "much"}], "grid: max_flops: FLOPs must be a number such as 12.5M"),
        ([{"objective.feature.pairs": "x"}, {WEIGHT: 1}], "grid may not propose objective.feature.pairs = 'x'"),
        ([{WEIGHT: [1, 2, 3]}], "trials: each of the 3 cells of the grid is a trial, but trials is 2"),
    ],
)
def test_a_mistake_of_the_grid_is_one_sentence(tiny: Tiny, grid: Any, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tiny(grid=grid)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [5, None, "ab"])
def test_a_knob_beside_the_grid_must_list_its_values(tiny: Tiny, values: object) -> None:
    with pytest.raises(ConfigError, match=rf"knob {WEIGHT}\.choice\.values: "):
        tiny(grid=[{WEIGHT: [0, 1]}], knobs={WEIGHT: {"type": "choice", "values": values}})


def test_a_range_must_hold_what_the_grid_asks_for(tiny: Tiny) -> None:
    knobs = {"retrain.lr": {"type": "float", "low": 0.01, "high": 0.2}}
    with pytest.raises(ConfigError, match=r"retrain\.lr is 0\.3 in a cell, but its knob is float from 0\.01 to 0\.2"):
        tiny(grid=[{"retrain.lr": [0.1, 0.3]}], knobs=knobs)
    with pytest.raises(ConfigError, match=r"give every block of the grid a value that it has"):
        tiny(grid=[{"retrain.lr": 0.1}, {WEIGHT: 1}], knobs=knobs)  # the config's 0.005 is below


SPACE = {"resolution": (12, 16), "frames": (4,)}


@pytest.mark.parametrize(
    ("block", "sentence"),
    [
        ({"max_flops": "150k"}, "grid: resolution has several values, but a block of the grid does not say which"),
        ({"resolution": 12}, "grid: max_flops has several values"),
        (
            {"max_flops": "150k", "resolution": 14},
            "resolution must be one of 12, 16, but a cell has 14; add it to",
        ),
        ({"max_flops": "160k", "resolution": 12}, "max_flops must be one of 150000, 250000, but a cell has 160000"),
        ({"max_flops": "150k", "resolution": 12, "frames": 4}, "grid: frames has one value only, 4"),
        ({"max_flops": "150k", "resolutoin": 12}, "no knob 'resolutoin'; did you mean 'resolution'?"),
    ],
)
def test_cells_must_name_the_knobs_of_the_space(tiny: Tiny, block: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        grid_cells(tiny(grid=[block]), SPACE)
    assert sentence in str(caught.value)


def test_one_budget_and_ranges_of_budgets(tiny: Tiny) -> None:
    cells = grid_cells(tiny(grid=[{"resolution": [12, 16]}], budget={"max_flops": "250k"}), SPACE)
    assert cells == [{"max_flops": 250_000, "resolution": 12}, {"max_flops": 250_000, "resolution": 16}]
    between = {"max_flops": {"low": "150k", "high": "250k"}}
    grid = [{"resolution": 12, "max_flops": "200k"}]
    assert grid_cells(tiny(grid=grid, budget=between), SPACE) == [{"max_flops": 200_000, "resolution": 12}]
    with pytest.raises(ConfigError, match="max_flops must be from 150000 to 250000, as at budget"):
        grid_cells(tiny(grid=[{"resolution": 12, "max_flops": "1M"}], budget=between), SPACE)
    with pytest.raises(ConfigError, match="max_flops has several values"):
        grid_cells(tiny(grid=[{"resolution": 12}], budget=between), SPACE)


def test_a_budget_must_suffice_in_its_own_cells(tiny: Tiny) -> None:
    def prepare(grid: list[dict[str, Any]]) -> None:
        with Campaign(without_trials(tiny, grid=grid, budget={"max_flops": ["30k", "250k"]})) as campaign:
            campaign.prepare()

    with pytest.raises(ConfigError, match="a cell of the grid has the budget 30,000 FLOPs, but the cheapest"):
        prepare([{"max_flops": ["30k", "250k"], "resolution": 16}])


def grid_file(tiny: Tiny, tmp_path: Path, **changes: Any) -> tuple[Path, CampaignConfig]:
    sizes = {"num_train": 24, "num_val": 12, "num_test": 12}
    settings = {"data": sizes, "search": {"epochs": 1}, "retrain": {"epochs": 1, "num_seeds": 2}, **changes}
    config = without_trials(tiny, **settings, grid=[{"max_flops": "250k", "resolution": [12, 16], WEIGHT: [0, 1]}])
    file = tmp_path / "ablation.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude={"trials", "knobs"}), sort_keys=False))
    return file, load_config(file)


def test_a_grid_is_run_resumed_and_printed(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, config = grid_file(tiny, tmp_path)
    run, calls = TrialFunction.__call__, [0]

    def interrupted(self: TrialFunction, context: TrialContext) -> TrialRecord:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return run(self, context)

    monkeypatch.setattr(TrialFunction, "__call__", interrupted)
    code, output = cli("search", file)
    assert code == 130, output
    assert "2 of 3 trials complete" in output
    output = succeed("search", file)
    assert "grid: 4 cells, 2 of them have ended" in output
    assert "4 of 4 trials complete" in output
    assert calls[0] == 5

    records = [json.loads(p.read_text()) for p in sorted(config.run_dir.glob("trials/*/record.json"))]
    assert [r["knobs"] for r in records] == [
        {"max_flops": 250_000, "resolution": resolution, WEIGHT: weight} for resolution in (12, 16) for weight in (0, 1)
    ]
    assert len({r["seed"] for r in records}) == 1
    output = succeed("search", file)
    assert (calls[0], len(list(config.run_dir.glob("trials/*")))) == (5, 4)  # nothing is queued or run again

    arguments = ("--rows", "resolution", "--columns", WEIGHT, "--against", f"{WEIGHT}=0", "--out", tmp_path / "out")
    output = succeed("table", config.run_dir, *arguments)
    assert all(line == line.rstrip() for line in output.splitlines())  # not padded to the width of a file
    assert "accuracy on test, retrained student, in %" in output
    assert f"difference of accuracy to {WEIGHT} = 0" in output
    assert "seed by seed" in output
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"table.md", "table.csv"}
    table = nas_kd.table(config.run_dir, ["resolution"], [WEIGHT], against={WEIGHT: 0}, split="val")
    first, second = (r["repeats"]["retrained/val/accuracy"] for r in records[:2])
    cell = table.cells[(12,), (1.0,)]
    expected = paired_difference(second, first)
    assert cell.difference is not None
    assert math.isclose(cell.difference.mean, expected.mean, abs_tol=1e-12)
    assert cell.pairing == "paired"

    for wrong, sentence in (
        (("--rows", "selector"), "there is no knob 'selector'; the trials have max_flops, resolution, " + WEIGHT),
        (("--where", "resolution"), "--where takes knob=value, but got 'resolution'"),
        (("--where", "max_flops=1M"), "no trial has max_flops = 1000000; there are 250000"),
        (("--metric", "gap"), "no trial has the metric test/gap"),
        (("--split", "train"), "split val or test"),
    ):
        code, output = cli("table", config.run_dir, *wrong)
        assert code == 2, output
        assert sentence in output
        assert "Traceback" not in output


def test_an_edited_grid_runs_its_new_cells_and_withdraws_those_it_dropped(tiny: Tiny) -> None:
    def opened(grid: list[dict[str, Any]], budget: str = "250k") -> tuple[Ledger, Campaign]:
        campaign = Campaign(without_trials(tiny, grid=grid, budget={"max_flops": budget}))
        notes: list[str] = []
        ledger = campaign.prepare(note=notes.append)
        said.append(notes[-1])
        return ledger, campaign

    said: list[str] = []
    ledger, campaign = opened([{"resolution": [12, 16]}])
    with campaign:
        assert (ledger.count("queued"), campaign._num_trials) == (2, 2)
        assert ledger.ask(campaign._knobs).knobs["resolution"] == 12  # and is running when all is lost
    ledger, campaign = opened([{"resolution": 12, WEIGHT: [0, 2]}])
    with campaign:
        assert said[-1] == "queued trials that are not in the campaign file any more, and were withdrawn: 1"
        assert (ledger.count("queued"), campaign._num_trials) == (2, 3)
        assert [ledger.ask(campaign._knobs).knobs[WEIGHT] for _ in range(2)] == [0.0, 2.0]
    ledger, campaign = opened([{"resolution": [12, 16]}])
    with campaign:
        assert ledger.count("queued") == 1
        assert (again := ledger.ask(campaign._knobs)).number == 1
        assert again.knobs["resolution"] == 16
