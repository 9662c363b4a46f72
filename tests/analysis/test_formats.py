from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from synthetic import TEACHER, record, run

from nas_kd.analysis import ParetoFront, front_figure, trial_table, write_report
from nas_kd.analysis.cells import Cell, Table, number_cell
from nas_kd.analysis.figures import write_picture
from nas_kd.analysis.formats import table_latex, table_markdown, write_parquet

TABLE = Table(
    ["trial", "val_acc, %"], [[Cell(trial=3, badge="pick"), Cell("93.1 %", note="92.1 – 94.0 %", is_number=True)]]
)


def test_a_table_of_the_page_as_latex_and_markdown() -> None:
    assert table_markdown(TABLE).splitlines() == [
        "| trial | val\\_acc, % |",
        "|---|---:|",
        "| 3 pick | 93.1 % (92.1 – 94.0 %) |",
    ]
    assert table_latex(TABLE).splitlines()[1:] == [
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"trial & val\_acc, \% \\",
        r"\midrule",
        r"3 pick & 93.1 \% (92.1 -- 94.0 \%) \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
    hostile = Table(["a"], [[number_cell("\\input{x} $1 & 2$ ~^")]])
    assert table_latex(hostile).splitlines()[5] == (
        r"\textbackslash{}input\{x\} \$1 \& 2\$ \textasciitilde{}\textasciicircum{} \\"
    )


def test_the_report_in_all_formats_holds_the_numbers_of_the_page(tmp_path: Path) -> None:
    records = run(12)
    formats = ["svg", "pdf", "parquet", "markdown", "latex"]
    paths = write_report(
        records, tmp_path, title="all", teacher=TEACHER, metadata={"run": "my runs/a"}, formats=formats
    )
    assert [path.name for path in paths.others] == ["front.svg", "front.pdf", "trials.parquet", "front.md", "front.tex"]
    front = ParetoFront.from_records(records)
    read = pd.read_parquet(tmp_path / "trials.parquet")
    expected = trial_table(records, front)
    assert list(read.columns) == list(expected.columns)
    assert read["flops"].tolist() == expected["flops"].tolist()
    assert set(read.loc[read["on_front"], "trial"]) == set(front.numbers)
    lines = (tmp_path / "front.md").read_text().splitlines()
    assert len(lines[: lines.index("")]) == 2 + len(front.records)
    assert lines[-len(front.records) :] == [
        f"    nas-kd reproduce 'my runs/a' --trial {each.number}" for each in front.records
    ]
    assert (tmp_path / "front.pdf").read_bytes()[:5] == b"%PDF-"
    assert "validation accuracy" in (tmp_path / "front.svg").read_text()  # text, not outlines
    with pytest.raises(ValueError, match="but got 'docx'; HTML, CSV and PNG are always written"):
        write_report(records, tmp_path, title="x", teacher=None, metadata={}, formats=["docx"])


def test_the_same_picture_gives_the_same_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_picture(front_figure(run(5)), tmp_path / f"{name}.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_a_knob_that_changed_its_type_is_text_in_parquet(tmp_path: Path) -> None:
    records = [record(0, 5, 0.5, knobs={"k": 1}), record(1, 6, 0.6, knobs={"k": "one"}), record(2, 7, 0.7)]
    write_parquet(trial_table(records), tmp_path / "t.parquet")
    assert pd.read_parquet(tmp_path / "t.parquet")["knobs.k"].fillna("").tolist() == ["1", "one", ""]
