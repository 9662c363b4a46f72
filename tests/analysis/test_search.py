"""The report of a shared search: numbers of a hand-written one, damaged files, hostile names."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from synthetic import HOSTILE, record
from test_html_report import Page, check_harmless

from nas_kd.analysis import write_report
from nas_kd.analysis.search_files import Search, SearchFileError, read_search
from nas_kd.analysis.search_numbers import entropy, idle_shares, interpolated
from nas_kd.analysis.search_section import headline

EDGE, DEPTH, INNER, WIDTH = "a.edge", "a.depth", "a.cells.1.edge", "a.width"


def result(edge: str = EDGE) -> dict[str, Any]:
    """Two budgets; the second cell, with an edge of its own, is there at depth 3."""
    variables = {
        edge: {"choices": ["conv", "zero"], "layers": [1, 0]},
        DEPTH: {"choices": [1, 3], "layers": [1, 3]},
        INNER: {"choices": ["conv", "identity", "zero"], "layers": [1, 0, 0]},
        WIDTH: {"choices": [8, 16], "layers": None},
    }

    def entry(budget: int, gates: list[list[float]], arch_id: str, choices: dict[str, Any]) -> dict[str, Any]:
        return {
            "budget": budget,
            "arch": {"space": "s", "settings": {}, "choices": {"side": 16, **choices}},
            "arch_id": arch_id,
            "cost": 0.9 * budget,
            "inherited": budget / 1e4,
            "expected_cost": 1.1 * budget,
            "knobs": [{"side": 12, "frames": 4, "probability": 0.25}, {"side": 16, "frames": 4, "probability": 0.75}],
            "gates": dict(zip(variables, gates, strict=True)),
            "effect": {edge: 1.0, DEPTH: 1.0, INNER: gates[1][1], WIDTH: 1.0},
        }

    low = entry(1000, [[0.2, 0.8], [0.75, 0.25], [0.5, 0.3, 0.2], [1, 0]], "aa", {edge: "zero", DEPTH: 1, WIDTH: 8})
    high = entry(
        4000,
        [[0.8, 0.2], [0.0, 1.0], [0.9, 0.1, 0.0], [0, 1]],
        "bb",
        {edge: "conv", DEPTH: 3, INNER: "identity", WIDTH: 16},
    )
    return {"digest": "0", "cost_unit": "FLOPs", "variables": variables, "budgets": [low, high]}


def folder(path: Path, edge: str = EDGE) -> Path:
    """What a search of two epochs leaves; the second epoch ran twice, after an interruption."""
    path.mkdir()
    written = result(edge)
    (path / "search.json").write_text(json.dumps(written))
    uniform = {name: [1 / len(v["choices"])] * len(v["choices"]) for name, v in written["variables"].items()}
    lines = [{"epoch": 1, "budget": b["budget"], "gates": uniform} for b in written["budgets"]]
    lines += [{"epoch": 2, "budget": b["budget"], "gates": uniform} for b in written["budgets"]]
    lines += [{"epoch": 2, "budget": b["budget"], "gates": b["gates"]} for b in written["budgets"]]
    (path / "gates.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"epoch": 3, "bud')
    losses = [{"stage": "search", "epoch": e, "total": 3.0 / e, "gap": 0.1} for e in (1, 2)]
    (path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in losses))
    return path


def read(path: Path) -> Search:
    search = read_search(path)
    assert search is not None
    return search


def test_numbers_of_a_search(tmp_path: Path) -> None:
    search = read(folder(tmp_path / "search"))
    low, high = (idle_shares(search.result, entry) for entry in search.result.budgets)
    assert low.operators == pytest.approx((0.8 + 0.25 * 0.5) / 1.25)  # the inner edge counts by a quarter
    assert low.chosen_operators == 1.0
    assert low.skipped == pytest.approx(0.75 * 2 / 3)
    assert low.chosen_skipped == pytest.approx(2 / 3)
    assert (high.operators, high.chosen_operators) == (pytest.approx(0.3 / 2), 0.5)
    assert (high.skipped, high.chosen_skipped) == (0, 0)
    assert search.result.budgets[0].knob_probabilities() == {"side": {12: 0.25, 16: 0.75}}
    assert interpolated([0.2, 0.8], [0.8, 0.2], 0.5) == pytest.approx([0.5, 0.5])
    assert interpolated([0.2, 0.8], [0.5, 0.5], 0.5) == pytest.approx([1 / 3, 2 / 3])  # the mean of 0 and log 1/4
    assert entropy({"a": [0.5, 0.5], "b": [1, 0], "one": [1.0]}) == pytest.approx(0.5)
    assert search.history[2][1000].gates[EDGE] == (0.2, 0.8)
    assert search.losses == {1: {"total": 3.0, "gap": 0.1}, 2: {"total": 1.5, "gap": 0.1}}
    assert headline(search, None) == (
        "One search for 2 budgets (1 k to 4 k FLOPs); inherited metric 0.1 to 0.4; of the derived layers, zero or "
        "identity is 100 % and 50 %, layers left out by depths are 67 % and 0 % at the lowest and the highest budget."
    )


def test_the_report_of_a_search_with_a_hostile_gate(tmp_path: Path) -> None:
    repeats = {"retrained/val/accuracy": (0.4, 0.45, 0.5)}
    trial = record(7, 900, 0.45, arch_id="aa", repeats=repeats)
    source = folder(tmp_path / "search", "=" + HOSTILE)
    paths = write_report([trial], tmp_path / "out", title="t", teacher=None, metadata={}, search_dir=source)
    page = Page()
    page.feed(paths.report.read_text(encoding="utf-8"))
    check_harmless(page)
    assert paths.search_headline in page.text
    figures = [figure for figure in map(json.loads, page.data) if "layout" in figure]
    titles = [a["text"] for figure in figures for a in figure["layout"].get("annotations", [])]
    assert any(title.startswith("=&lt;/script&gt;") for title in titles)
    tables = {path.name: list(csv.DictReader(io.StringIO(path.read_text("utf-8")))) for path in paths.search[1:]}
    first, second = tables["search.csv"]
    assert (first["trial"], first["retrained_metric"], first["num_seeds"]) == ("7", "0.45", "3")
    assert float(first["retrained_low"]) < 0.4 < 0.5 < float(first["retrained_high"])
    assert (second["trial"], second["idle_operators_derived"]) == ("", "0.5")
    probabilities = tables["search_probabilities.csv"]
    assert len(probabilities) == 2 * (2 + 9) + 4 * 9  # knobs and gates by budget; gates after two epochs
    assert all(row["name"].startswith("'=") for row in probabilities if "script" in row["name"])
    assert tables["search_epochs.csv"][0]["entropy@1000"] == "1.0"


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("search.json", "{", "search.json cannot be shown"),
        ("search.json", {"cost_unit": "FLOPs"}, r"\(variables: Field required\)"),
        ("search.json", {**result(), "budgets": result()["budgets"][::-1]}, "budgets must ascend"),
        ("search.json", json.dumps(result()).replace("[0.2, 0.8]", "[0.2, 0.3]"), "'a.edge' needs one probability"),
        ("search.json", json.dumps(result()).replace('"inherited": 0.1', '"inherited": NaN'), "inherited"),
    ],
)
def test_a_damaged_search_gives_one_sentence(tmp_path: Path, name: str, change: Any, words: str) -> None:
    path = folder(tmp_path / "search")
    (path / name).write_text(change if isinstance(change, str) else json.dumps(change))
    with pytest.raises(SearchFileError, match=words) as caught:
        read_search(path)
    assert "\n" not in str(caught.value)
    assert read_search(tmp_path / "nothing") is None


def test_damage_beside_the_result_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    path = folder(tmp_path / "search")
    (path / "gates.jsonl").write_text('{"epoch": 1, "budget": 1000, "gates": {}}\n')
    (path / "log.jsonl").write_bytes(b"\xff\n")
    search = read(path)
    assert (search.history, search.losses) == ({}, {})
    assert "gates.jsonl cannot be shown (gates and variables differ in" in search.problems[0]
    assert "log.jsonl cannot be shown" in search.problems[1]
