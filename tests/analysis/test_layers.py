"""Layers of students and of the teacher in the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nas_kd.analysis.layers import Layer, blocks, layer_chart, read_layers, teacher_layers


def layer(name: str, flops: int = 1, kind: str = "Conv2d") -> Layer:
    return Layer(name=name, kind=kind, flops=flops, params=2 * flops)


def test_many_layers_are_drawn_as_blocks_in_their_order() -> None:
    layers = [
        layer("stem"),
        *(layer(f"stages.{i}.{j}.conv", 10 * i + j) for i in range(2) for j in range(3)),
        layer(""),
    ]
    assert blocks(layers, most=8) == tuple(layers)
    assert blocks(layers, most=7) == (
        layer("stem"),
        Layer(name="stages.0", kind="3 layers", flops=0 + 1 + 2, params=6),
        Layer(name="stages.1", kind="3 layers", flops=10 + 11 + 12, params=66),
        layer(""),
    )
    assert [block.name for block in blocks(layers, most=1)] == ["stem", "stages", ""]
    bars = json.loads(layer_chart("c", layers, "<b>x</b>").data)["data"][0]
    assert sum(bars["x"]) == pytest.approx(1)
    assert bars["x"][-1] == 1 / 38  # the first layer is on top


def test_files_that_are_missing_or_damaged_draw_nothing(tmp_path: Path) -> None:
    folder, teacher = tmp_path / "trials" / "0003", tmp_path / "teacher"
    folder.mkdir(parents=True)
    teacher.mkdir()
    assert (read_layers(tmp_path, 3), teacher_layers(tmp_path)) == ((), ())
    written = [layer("a").model_dump()]
    (folder / "layers.json").write_text(json.dumps(written))
    (teacher / "teacher.json").write_text(json.dumps({"layers": written}))
    assert read_layers(tmp_path, 3) == teacher_layers(tmp_path) == (layer("a"),)
    for damaged in (
        '[{"name": "a"',
        "{}",
        '[{"name": "a", "kind": "b", "flops": -1, "params": 0}]',
        '{"layers": 3}',
        "[]",
    ):
        (folder / "layers.json").write_text(damaged)
        (teacher / "teacher.json").write_text(damaged)
        assert (read_layers(tmp_path, 3), teacher_layers(tmp_path)) == ((), ())
