"""Export of a student that runs frame by frame: one graph for key frames, one for the others.

    key:    frame (N, 3, H, W)            -> output, state…
    delta:  frame (N, 3, H, W), state…    -> output          the state stays as the key frame left it

The delta graph holds no weights of the teacher's layers that have a student.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas_kd.deploy.bundle import ARCH_NAME, WEIGHTS_NAME, BundleInfo, load_bundle, save_bundle
from nas_kd.deploy.onnx_graph import Graph, open_graph, random_inputs, write_graph
from nas_kd.deploy.passes import DeltaPass, KeyPass, StateLayout, layout_of
from nas_kd.deploy.record import (
    BATCHES,
    ExportError,
    ExportRecord,
    Format,
    Parity,
    StateTensor,
    StreamRecord,
    batch_dim,
    need_onnx,
    save_program,
    third_party_warnings,
)
from nas_kd.search_spaces import KeyFrameNet, SearchSpace, count_flops
from nas_kd.training.measure import environment


def export_stream(
    student: nn.Module,
    info: BundleInfo,
    out_dir: Path,
    formats: Sequence[Format],
    *,
    space: SearchSpace | None = None,
    seed: int = 0,
) -> ExportRecord:
    """Write a student that runs frame by frame, read every file again, and compare an interval with clip mode.

    Args:
        student: as loaded from its bundle.
        info: of the bundle.
        out_dir: gets `student.safetensors` + `arch.json` (always), `key.pt2` and `delta.pt2`, `key.onnx` and
            `delta.onnx`.
        formats: what to write; the batch dimension of graphs is open.
        space: needed where the student's space is your own.
        seed: of the frames that are compared.

    Raises:
        ExportError: an output or a FLOP count differs, or a package is missing; the files in question are removed.
    """
    assert isinstance(student, KeyFrameNet), "a student that keeps a state runs frame by frame"
    interval = student.keyframe_interval
    clips, expected, largest = random_intervals(student, info, seed)
    shape = tuple(clips[0].shape[1:])
    pair = Exported(student, shape)
    out_dir.mkdir(parents=True, exist_ok=True)

    save_bundle(out_dir, student, info)
    again, _ = load_bundle(out_dir, space)
    with torch.no_grad():
        difference = max(_apart(again(clip), y) for clip, y in zip(clips, expected, strict=True))
    total = count_flops(again, torch.zeros(1, *shape)).total
    _refuse_flops([out_dir / WEIGHTS_NAME], -(-total // interval), info.flops)
    parity = [Parity.of(out_dir / WEIGHTS_NAME, difference, largest, info.flops)]

    for kind in dict.fromkeys(formats):
        if kind == "safetensors":
            continue
        key_path, delta_path = out_dir / f"key.{kind}", out_dir / f"delta.{kind}"
        graphs, flops = (_write_pt2 if kind == "pt2" else _write_onnx)(pair, info, key_path, delta_path)
        apart = [compare_interval(*graphs, clip, y) for clip, y in zip(clips, expected, strict=True)]
        entries = [
            Parity.of(path, max(each), largest, None if flops is None else flops[i])
            for i, (path, each) in enumerate(zip((key_path, delta_path), zip(*apart, strict=True), strict=True))
        ]
        if flops is not None:
            _refuse_flops([key_path, delta_path], flops[0] + (interval - 1) * flops[1], total)
        parity += entries

    frame = torch.zeros(1, 3, *shape[2:])
    delta_flops = student.delta_flops(frame)
    return ExportRecord(
        arch_id=info.arch_id,
        trial=info.trial,
        flops=info.flops,
        seed=seed,
        parity=tuple(parity),
        stream=StreamRecord(
            keyframe_interval=interval,
            form=student.form,
            interval_flops=total,
            keyframe_flops=total - (interval - 1) * delta_flops,
            delta_flops=delta_flops,
            state=pair.state,
            state_bytes=sum(tensor.bytes for tensor in pair.state),
        ),
        environment=environment("cpu"),
    )


def random_intervals(student: KeyFrameNet, info: BundleInfo, seed: int) -> tuple[list[Tensor], list[Tensor], float]:
    """Random clips of an interval at the compared batch sizes, the outputs of the student, and the largest of them."""
    shape = (3, student.keyframe_interval, *info.input_shape[2:])
    clips, expected = random_inputs(student, [(n, *shape) for n in BATCHES], seed)
    return clips, expected, max(float(y.abs().max()) for y in expected)


class Exported:
    """The two passes of a student with examples of their inputs, at batch size 2.

    Args:
        student: in evaluation mode.
        shape: (3, K, H, W) of an interval.
    """

    def __init__(self, student: KeyFrameNet, shape: tuple[int, ...]) -> None:
        self.frame = torch.zeros(2, 3, *shape[2:])
        self.layout: StateLayout = layout_of(student, self.frame)
        self.key: nn.Module = KeyPass(student, self.layout).eval()
        self.delta: nn.Module = DeltaPass(student.for_delta_frames(), self.layout).eval()
        with torch.no_grad():
            self.tensors = tuple(tensor.clone() for tensor in self.key(self.frame)[1:])  # none a view of the frame
        self.state = tuple(
            StateTensor(
                name=name,
                rows=len(tensor) // 2,
                shape=tuple(tensor.shape[1:]),
                bytes=tensor.numel() * tensor.element_size() // 2,
            )
            for name, tensor in zip(self.layout.names, self.tensors, strict=True)
        )

    def key_shapes(self) -> tuple[Any, ...]:
        """Dynamic dimensions of the inputs of the key graph."""
        return ({0: batch_dim()},)

    def delta_shapes(self) -> tuple[Any, ...]:
        """Dynamic dimensions of the inputs of the delta graph; layers on windows have several rows a stream."""
        batch = batch_dim()
        return {0: batch}, tuple({0: batch if t.rows == 1 else t.rows * batch} for t in self.state)


def _write_pt2(pair: Exported, info: BundleInfo, key: Path, delta: Path) -> tuple[tuple[Graph, Graph], tuple[int, int]]:
    extra = {ARCH_NAME: json.dumps(info.model_dump(mode="json")), "state.json": json.dumps(pair.layout.names)}
    with third_party_warnings(), torch.no_grad():
        programs = (
            torch.export.export(pair.key, (pair.frame,), dynamic_shapes=pair.key_shapes()),
            torch.export.export(pair.delta, (pair.frame, *pair.tensors), dynamic_shapes=pair.delta_shapes()),
        )
        for program, path in zip(programs, (key, delta), strict=True):
            save_program(program, path, extra)
        first, second = (torch.export.load(path).module() for path in (key, delta))
        frame = pair.frame[:1]
        state = first(frame)[1:]
        flops = count_flops(first, frame).total, count_flops(second, (frame, *state)).total
    return (_tuple(first), _tuple(second)), flops


def _write_onnx(pair: Exported, info: BundleInfo, key: Path, delta: Path) -> tuple[tuple[Graph, Graph], None]:
    write_onnx_pair(pair, key, delta)
    return (open_graph(key), open_graph(delta)), None


def write_onnx_pair(pair: Exported, key: Path, delta: Path) -> None:
    """Write both passes as ONNX graphs with an open batch dimension."""
    need_onnx()
    state = list(pair.layout.names)
    for module, inputs, shapes, path, names, results in (
        (pair.key, (pair.frame,), pair.key_shapes(), key, ["frame"], ["output", *state]),
        (pair.delta, (pair.frame, *pair.tensors), pair.delta_shapes(), delta, ["frame", *state], ["output"]),
    ):
        write_graph(module, inputs, path, names, results, shapes)


def _tuple(module: torch.nn.Module) -> Graph:
    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            result = module(*tensors)
        return (result,) if isinstance(result, Tensor) else tuple(result)

    return run


def compare_interval(key: Graph, delta: Graph, clip: Tensor, expected: Tensor) -> tuple[float, float]:
    """Largest differences of key frames and of the others; the state is the one that the key graph gave."""
    output, *state = key(clip[:, :, 0])
    others = [delta(clip[:, :, t], *state)[0] for t in range(1, clip.shape[2])]
    return (
        _apart(output, expected[:, 0]),
        max((_apart(output, expected[:, t]) for t, output in enumerate(others, 1)), default=0.0),
    )


def _apart(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape, "graphs have the student's outputs"
    return float((found - expected).abs().max())


def _refuse_flops(paths: Sequence[Path], found: int, expected: int) -> None:
    if found != expected:
        for path in paths:
            path.unlink()
        names = " and ".join(path.name for path in paths)
        raise ExportError(f"{names} cost {found:,} FLOPs, but the trained student {expected:,}; not kept")
