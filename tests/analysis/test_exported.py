"""What exports measured, in the report: a table of all forms, and those of less precision beside the front."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nas_kd.analysis.axes import FLOPS
from nas_kd.analysis.exported import LESS_PRECISE, read_exported
from nas_kd.analysis.references import ReferencePoint, labels_of
from nas_kd.analysis.report import write_report
from tests.analysis.synthetic import record

TRIALS = [record(0, 1_000_000, 0.5, arch_id="a"), record(3, 4_000_000, 0.8, arch_id="b")]


def write(folder: Path, **changes: Any) -> None:
    """A `verification.json` as an export of trial 3 writes it, in two forms."""
    forms = {
        "onnx": (("student.onnx",), 0.8, {"ms": 2.0, "low": 1.9, "high": 2.1}),
        "onnx-int8": (("student.int8.onnx",), 0.75, {"ms": 1.0, "low": 0.9, "high": 1.1}),
    }
    content = {
        "arch_id": "b",
        "trial": 3,
        "parity": [
            {"file": "student.onnx", "bytes": 8000, "is_exact": True, "sha256": "0"},
            {"file": "student.int8.onnx", "bytes": 2600, "is_exact": False, "sha256": "0"},
        ],
        "validation": [
            {
                "backend": name,
                "files": files,
                "metric": "accuracy",
                "metrics": {"accuracy": value},
                "measured": {"num_items": 100, "low": value - 0.1, "high": value + 0.1},
            }
            for name, (files, value, _) in forms.items()
        ],
        "latency": {"threads": 2, "waited_share": 0.4, "forms": {name: form[2] for name, form in forms.items()}},
    }
    folder.mkdir(parents=True)
    (folder / "verification.json").write_text(json.dumps(content | changes))


def test_a_file_of_less_precision_is_one_more_point_of_its_own_metric(tmp_path: Path) -> None:
    assert read_exported(tmp_path, TRIALS) is None
    write(tmp_path / "export" / "trial-0003")
    exported = read_exported(tmp_path, TRIALS)
    assert exported is not None
    assert exported.points(FLOPS) == (ReferencePoint("3: ONNX, int8", 4_000_000, 0.75, LESS_PRECISE),)
    rows = [[cell.text for cell in row] for row in exported.table().rows]
    assert rows == [
        ["3", "ONNX", "4.00 M", "8 kB", "80.0 %", "70.0 – 90.0 %", "2 (1.9 – 2.1)"],
        ["3", "ONNX, int8", "4.00 M", "3 kB", "75.0 %", "65.0 – 85.0 %", "1 (0.9 – 1.1)"],
    ]
    assert "2 threads. The machine was busy with other work (40% of" in exported.note
    files = write_report(TRIALS, tmp_path / "report", title="x", teacher=None, metadata={"run": "x"}, exported=exported)
    page = files.report.read_text().replace("\u00a0", " ")
    assert "Exported files" in page
    assert LESS_PRECISE in page


def test_points_that_lie_on_each_other_share_a_label() -> None:
    places = [(5.0, 0.751), (5.0, 0.749), (5.0, 0.6), (6.0, 0.75)]
    points = [ReferencePoint(name, *place) for name, place in zip("abcd", places, strict=True)]
    assert labels_of(points) == ["a, b", "", "c", "d"]


def test_exports_of_other_students_and_damaged_records_are_left_out(tmp_path: Path) -> None:
    write(tmp_path / "export" / "front" / "trial-0003", arch_id="another")
    write(tmp_path / "export" / "trial-0009", trial=9)
    (tmp_path / "export" / "broken").mkdir()
    (tmp_path / "export" / "broken" / "verification.json").write_text("{")
    assert read_exported(tmp_path, TRIALS) is None
