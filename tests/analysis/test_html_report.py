"""The report is one offline file that says the right things and runs nothing but its own scripts."""

from __future__ import annotations

import base64
import csv
import gzip
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import pytest
from jinja2 import UndefinedError
from synthetic import HOSTILE, TEACHER, hostile_run, record, run

from nas_kd.analysis import ParetoFront, ReportPaths, TeacherPoint, write_report
from nas_kd.analysis.cells import Cell, Table
from nas_kd.analysis.page import environment, json_for_html, tied
from nas_kd.analysis.sections import export_command, front_table, reproduce_command
from nas_kd.trials.record import Cost, Metric, TrialRecord

VOID = {"meta", "img", "input", "br"}


@dataclass
class Page(HTMLParser):
    """What a browser would find: elements with attributes, executable scripts, data blocks and visible text."""

    elements: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    scripts: list[str] = field(default_factory=list)
    data: list[str] = field(default_factory=list)
    packed: list[str] = field(default_factory=list)
    text: str = ""
    open_tags: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open_tags.append(tag)
        if tag == "script":
            self.blocks().append("")

    def blocks(self) -> list[str]:
        """The kind of the script that was opened last."""
        kinds = {"application/json": self.data, "text/plain": self.packed}
        return kinds.get(str(self.elements[-1][1].get("type")), self.scripts)

    def trials(self) -> list[dict[str, str]]:
        """The table of all trials as its script reads it: header -> text."""
        (table,) = [block for block in map(json.loads, self.data) if "rows" in block]
        names = [column["name"] for column in table["columns"]]
        texts = [[cell if isinstance(cell, str) else cell[0] for cell in row["cells"]] for row in table["rows"]]
        return [dict(zip(names, cells, strict=True)) for cells in texts]

    def handle_endtag(self, tag: str) -> None:
        assert self.open_tags.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if "script" in self.open_tags:
            self.blocks()[-1] += data
        elif "style" not in self.open_tags:
            self.text += data.replace("\u00a0", " ")

    def policy(self) -> str:
        found = [a["content"] for tag, a in self.elements if a.get("http-equiv") == "Content-Security-Policy"]
        assert len(found) == 1
        assert found[0] is not None
        return found[0]


def report(
    records: Sequence[TrialRecord],
    out_dir: Path,
    title: str = "Title",
    teacher: TeacherPoint | None = None,
    tolerance: float | None = None,
    **metadata: str,
) -> tuple[ReportPaths, Page]:
    paths = write_report(records, out_dir, title=title, teacher=teacher, metadata=metadata, tolerance=tolerance)
    page = Page()
    page.feed(paths.report.read_text(encoding="utf-8"))
    page.close()
    assert page.open_tags == []
    return paths, page


def check_harmless(page: Page) -> None:
    """Nothing loads, nothing handles events inline, and the policy lets exactly our two scripts run."""
    (script,), (packed,) = page.scripts, page.packed
    plotly = gzip.decompress(base64.b64decode(packed)).decode()
    assert plotly.lstrip().startswith("/**\n* plotly.js")
    assert '"use strict"' in script
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in (plotly, script)]
    assert f"script-src 'sha256-{hashes[0]}' 'sha256-{hashes[1]}';" in page.policy()
    assert page.policy().startswith("default-src 'none';")
    assert "http" not in page.policy()
    for tag, attributes in page.elements:
        assert tag not in {"iframe", "object", "embed", "link", "base", "form", "svg"}
        for name, value in attributes.items():
            assert not name.startswith("on"), f"<{tag}> has {name}"
            assert name != "style"
            if name in {"src", "href", "action", "srcset", "poster", "background"}:
                assert value is not None
                assert value.startswith(("#trial-", "data:image/png;base64,"))
    for block in page.data:
        json.loads(block)
        assert not re.search("[<>&\u2028\u2029]", block)


def test_report_of_a_good_run(tmp_path: Path) -> None:
    records = run()
    paths, page = report(records, tmp_path / "new" / "dir", "Students", TEACHER, run="runs/demo", campaign="demo.yaml")
    check_harmless(page)
    front = ParetoFront.from_records(records)
    assert front.pick is not None
    number = front.pick.number
    for part in (
        "30 trials: 22 complete, 3 failed, 5 stopped early.",
        f"Pick trial {number}: ",
        f"nas-kd export runs/demo --trial {number}",
        *(f"nas-kd reproduce runs/demo --trial {point}" for point in front.numbers),
        f"Hypervolume {front.hypervolume:.4f}",
        "Test values stand beside for information. No trial was selected, ranked or stopped by them.",
        "torch.OutOfMemoryError: CUDA out of memory",
        "one multiply-accumulate is one FLOP. Here they are FLOPs per clip.",
        "of 9 edges chose skip: the cell may have collapsed",
        "Kendall's tau-b",
        "demo.yaml",
        "NVIDIA H100",
    ):
        assert part in page.text, part
    assert page.text.count("one multiply-accumulate is one FLOP") == 1
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert [row["trial"] for row in page.trials()] == [str(r.number) for r in records]
    assert {row["error"] for row in page.trials()} > {"FloatingPointError: the loss became NaN in epoch 3"}
    assert len(page.data) == 9

    assert paths.picture.read_bytes().startswith(b"\x89PNG")
    with paths.front.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["trial"]) for row in rows] == [r.number for r in front.records]
    with paths.trials.open(encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == len(records)


def test_names_and_labels_never_run(tmp_path: Path) -> None:
    teacher = TeacherPoint(HOSTILE, 10**8, 0.9)
    _, page = report(hostile_run(), tmp_path, HOSTILE, teacher, **{HOSTILE: HOSTILE, "run": HOSTILE})
    check_harmless(page)
    assert page.text.count("<img src=x onerror=") > 20  # read as text, in every place
    assert HOSTILE in page.text
    assert not any("document.title='run'" in script for script in page.scripts)
    assert sum(tag == "img" for tag, _ in page.elements) == 1  # the fallback picture


def test_same_records_give_the_same_report(tmp_path: Path) -> None:
    first, _ = report(run(8), tmp_path / "a")
    second, _ = report(run(8), tmp_path / "b")
    assert first.report.read_bytes() == second.report.read_bytes()


def test_numbers_stay_beside_their_units() -> None:
    page = "95.1 %, 90.3 – 95.3 %, 2.3 M FLOPs, 4 MiB, 0.3 points, 4.1 ± 0.2 ms, 3 × zero, 3 trials at 2 Models"
    assert tied(page).replace("\u00a0", "_") == (
        "95.1_%, 90.3 – 95.3_%, 2.3_M_FLOPs, 4_MiB, 0.3_points, 4.1_±_0.2_ms, 3_×_zero, 3 trials at 2 Models"
    )
    made = environment().from_string("<p>{{ text }}</p><pre>{{ text | copied }}</pre>").render(text="<5 ms")
    assert made == "<p>&lt;5\u00a0ms</p><pre>&lt;5 ms</pre>"  # who copies a command gets its spaces


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([], "This run holds no trial yet."),
        ([record(0, state="failed", error="E: x"), record(1, state="stopped")], "no trial is complete"),
        ([record(0, 5)], "no complete trial has a validation value of a trained student"),
        ([record(0, 5, 0.5)], "no other complete trial is cheaper or better"),
        ([record(0, 0, 0.5)], "Pick trial 0: 50.0 % at 0 FLOPs"),
    ],
    ids=["empty", "none complete", "none trained", "one", "free"],
)
def test_short_runs_are_explained(records: list[TrialRecord], expected: str, tmp_path: Path) -> None:
    paths, page = report(records, tmp_path, teacher=TEACHER)
    check_harmless(page)
    assert expected in page.text
    assert all(path.exists() for path in (paths.report, paths.trials, paths.front, paths.picture))


def test_hundreds_of_trials(tmp_path: Path) -> None:
    _, page = report(run(250), tmp_path, teacher=TEACHER)
    check_harmless(page)
    assert len(page.trials()) == 250
    assert not any(tag == "td" and attributes.get("data-value") for tag, attributes in page.elements)


def test_a_report_of_a_thousand_trials_is_below_five_megabytes(tmp_path: Path) -> None:
    paths, page = report(run(1000), tmp_path, teacher=TEACHER)
    assert paths.report.stat().st_size < 5_000_000
    assert len(page.elements) < 5000  # rows of the table of all trials, 26,000 cells, are data


def test_a_grid_has_the_table_of_its_ablation(tmp_path: Path) -> None:
    metrics = [{"val": {"accuracy": 0.4}, "test": {"accuracy": 0.5 + n / 100}} for n in range(4)]
    records = [
        record(n, 10, metrics={"retrained": metrics[n]}, knobs={"frames": n // 2}, arch_id="aa") for n in range(4)
    ]
    paths = write_report(records, tmp_path, title="t", teacher=None, metadata={}, with_grid=True)
    text = paths.report.read_text(encoding="utf-8")
    assert "<h2>Ablation</h2>" in text
    assert "50.50" in text  # the mean of 50 and 51 % at one value of the knob
    assert "52.50" in text
    assert "found more than once" not in text  # arms of a grid are no repeats
    _, page = report(records, tmp_path)
    assert "Ablation" not in page.text
    assert "found more than once" in page.text


def test_sections_follow_what_was_measured(tmp_path: Path) -> None:
    metrics = {"retrained": {"val": {"accuracy": 0.5}}}
    _, page = report([record(n, 10 + n, metrics=metrics) for n in range(3)], tmp_path / "a")
    assert "Can the numbers be trusted?" not in page.text
    assert "From the" not in page.text
    assert {"gated", "derived", "budget", "error"}.isdisjoint(page.trials()[0])
    both = {"derived": {"val": {"accuracy": 0.4}}, **metrics}
    _, page = report([record(n, 10 + n, metrics=both) for n in range(3)], tmp_path / "b")
    assert "From the derived student to the trained student" in page.text
    assert "gated" not in page.text


def test_streams_state_their_amortised_cost(tmp_path: Path) -> None:
    cost = Cost(flops=10, params=1, keyframe_flops=24, delta_flops=8, keyframe_interval=8, state_bytes=64)
    _, page = report([record(0, cost=cost, metrics={"retrained": {"val": {"accuracy": 0.5}}})], tmp_path)
    assert "Here they are amortised FLOPs per frame." in page.text
    assert "(key-frame cost + (K - 1) · delta cost) / K" in page.text
    assert "additions and subtractions of the deltas themselves are counted, one FLOP each" in page.text


def test_architectures_are_readable_whatever_their_shape(tmp_path: Path) -> None:
    choices = {"c0.e0": "conv", "c0.e1": "skip", "c1.e0": "conv", "depth": 3}
    arch = {"space": "s", "settings": {"width": 8, "unused": None}, "choices": choices}
    records = [record(0, 1, 0.5, arch=arch, arch_id="aa"), record(1, 2, 0.6, arch={"layers": [1, 2]}, arch_id="bb")]
    records += [record(2, 3, 0.7, arch_id="aa")]
    _, page = report(records, tmp_path)
    for part in ("2 × conv, 1 × skip", "e0: conv, e1: skip", "Space s", '"layers": [', "found more than once"):
        assert part in page.text
    assert "unused" not in page.text


def test_minimised_metric_reports_gains_as_positive(tmp_path: Path) -> None:
    loss = Metric(name="loss", maximize=False)
    _, page = report([record(0, 10, 0.9, metric=loss), record(1, 20, 0.6, metric=loss)], tmp_path)
    assert "+0.3" in page.text
    assert "0.9 at 10 FLOPs" in page.text


def test_two_trainings_have_a_difference_and_no_interval(tmp_path: Path) -> None:
    def twice(number: int, flops: int, *values: float, **fields: object) -> TrialRecord:
        repeats = {"retrained/val/accuracy": values}
        return record(number, flops, sum(values) / 2, repeats=repeats, **fields)

    slow = twice(1, 20, 0.7, 0.9, cost=Cost(flops=20, params=2, latency_ms=1234.5))
    records = [twice(0, 10, 0.5, 0.6), slow]
    table = front_table(ParetoFront.from_records(records), None)
    cells = dict(zip(table.headers, table.rows[1], strict=True))
    assert (cells["95 % interval, over"].text, cells["95 % interval, over"].note) == ("none", "2 trainings")
    assert cells["gain over the row above, points"].text == "+25.0"
    assert cells["latency, ms"].text == "1,234"
    assert "rests on 2 training runs" in report(records, tmp_path)[1].text


def test_commands_quote_the_run() -> None:
    assert reproduce_command("runs/it's", 3) == """nas-kd reproduce 'runs/it'"'"'s' --trial 3"""
    assert export_command("runs/a b; rm -rf x", 3) == "nas-kd export 'runs/a b; rm -rf x' --trial 3"


def test_templates_escape_by_default() -> None:
    shown = environment().from_string('<p title="{{ text }}">{{ text }}</p>')
    assert shown.render(text='<b> & "x"') == '<p title="&lt;b&gt; &amp; &#34;x&#34;">&lt;b&gt; &amp; &#34;x&#34;</p>'
    assert environment().from_string("{{ text }}").render(text="a\x00\u202eb\nc") == "ab\nc"
    with pytest.raises(UndefinedError, match="'text' is undefined"):
        shown.render()
    macros = environment().get_template("macros.html").module
    row = [Cell("<i>", note="<u>", badge="&", is_number=True), Cell(trial=3), Cell("<c>", is_code=True)]
    made = "".join(str(macros.table(Table(["<h>", "b", "c"], [row]))).split())  # type: ignore[attr-defined]
    for part in (
        '<thscope="col"class="number">&lt;h&gt;</th><thscope="col">b</th>',
        '<tdclass="number">&lt;i&gt;<spanclass="badge&amp;">&amp;</span><br><spanclass="note">&lt;u&gt;</span></td>',
        '<td><ahref="#trial-3">3</a></td><td><code>&lt;c&gt;</code></td>',
    ):
        assert part in made
    assert json.loads(json_for_html(json.dumps("</script><!--\u2028&", ensure_ascii=False))) == "</script><!--\u2028&"
