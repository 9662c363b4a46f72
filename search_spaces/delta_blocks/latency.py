"""Latency of the students of `delta_blocks`, as a table with the terms of the FLOPs table: nanoseconds of an interval.

Every candidate is timed alone, at its layer's real shapes and in the form that runs (subtract, student, add). What
runs on every frame is timed as part of whole students: their key and delta frames, less what their candidates took.

Numbers are medians over rounds in which all candidates and students take turns, so a slow moment of the machine meets
all of them alike, and none finds its weights in the cache because it has just run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from nas_kd.search_spaces.arch import ArchSpec, Choice
from nas_kd.search_spaces.cost import CostTable
from nas_kd.search_spaces.delta_blocks.cost import cost_terms, signature
from nas_kd.search_spaces.delta_blocks.net import DeltaLayer, DeltaNet, PassContext
from nas_kd.search_spaces.delta_blocks.ops import PairDelta, ZeroDelta
from nas_kd.search_spaces.delta_blocks.plan import PlannedLayer
from nas_kd.search_spaces.delta_blocks.residual import ResidualLayer, residual_form
from nas_kd.search_spaces.delta_blocks.space import DeltaBlocksSpace

UNIT = "nanoseconds"
WARM_UP = 2  # rounds that do not count
REFERENCES = 4  # random students, beside the cheapest and the most expensive one, that the rest of the net is timed in


def latency_table(
    space: DeltaBlocksSpace,
    knobs: Mapping[str, Choice] | None = None,
    *,
    device: str | torch.device = "cpu",
    batch_size: int = 1,
    repeats: int = 15,
    residual: bool = False,
) -> CostTable:
    """What a student takes for one key-frame interval, to be used as `Supernet(space, knobs, table=…)`.

    A table is a measurement: save it with `to_json`, so that all trials of a campaign decide by the same one.

    Args:
        space: what is searched.
        knobs: as of `Supernet`.
        device: that students will run on; with the number of threads that torch has here.
        batch_size: streams that run together; the costs are those of all of them.
        repeats: rounds, whose median counts.
        residual: time students in residual form (`residual`), which bundles may hold.

    Returns:
        Integers in nanoseconds, with the variables, terms and period of the space's FLOPs table.

    Raises:
        ValueError: `batch_size` or `repeats` is below 1.
    """
    for name, value in (("batch_size", batch_size), ("repeats", repeats)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, but it is {value}")
    place = torch.device(device)
    interval = int(space.knobs_with(knobs)["keyframe_interval"])
    # Weights are drawn on the CPU: measuring must not change what is drawn after it, there or on a GPU.
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.default_generator.manual_seed(0)
        timed: dict[Any, Callable[[], object]] = {}
        for layer in space.plan.layers:
            for choice in space.variables[layer.name]:
                if _key(layer, str(choice)) not in timed:
                    frame, remember = _runs(space, layer, str(choice), place, batch_size, residual)
                    timed[_key(layer, str(choice))] = frame
                    if remember is not None:
                        timed[(*_key(layer, str(choice)), "key")] = remember
        references = _references(space, interval)
        for i, arch in enumerate(references):
            key, delta = whole_net(space, arch, place, batch_size, residual=residual)
            timed["key", i], timed["delta", i] = key, delta
        times: dict[Any, int] = dict(zip(timed, interleaved(list(timed.values()), place, repeats), strict=True))

    def frame_of(layer: PlannedLayer, choice: str) -> int:
        return times[_key(layer, choice)]

    def key_of(layer: PlannedLayer, choice: str) -> int:
        return times.get((*_key(layer, choice), "key"), 0)

    keys, others = [], []
    for i, arch in enumerate(references):
        own = [(layer, str(arch.choices[layer.name])) for layer in space.plan.layers if layer.name in arch.choices]
        keys.append(times["key", i] - sum(key_of(*pair) for pair in own))
        others.append(times["delta", i] - sum(frame_of(*pair) for pair in own))
    constant = max(0, round(median(keys))) + (interval - 1) * max(0, round(median(others)))
    terms = cost_terms(
        space.plan.layers,
        space.variables,
        lambda layer, choice: (interval - 1) * frame_of(layer, choice) + key_of(layer, choice),
    )
    return CostTable(space.variables, terms, constant, (), interval, UNIT)


def _key(layer: PlannedLayer, choice: str) -> tuple[Any, ...]:
    return (choice, layer.copy_input, layer.copy_output, *signature(layer))


def _references(space: DeltaBlocksSpace, interval: int) -> list[ArchSpec]:
    """Students that the rest of the net is timed in."""
    rng = np.random.default_rng(0)
    knobs = {"keyframe_interval": interval}
    ends = [{**knobs, **{name: values[i] for name, values in space.variables.items()}} for i in (0, -1)]
    return [
        *(space.arch(choices) for choices in ends),
        *(space.arch({**knobs, **_drawn(space, rng)}) for _ in range(REFERENCES)),
    ]


def _drawn(space: DeltaBlocksSpace, rng: np.random.Generator) -> dict[str, Choice]:
    return {name: values[int(rng.integers(len(values)))] for name, values in space.variables.items()}


def _input(shape: Sequence[int], device: torch.device, batch_size: int) -> Tensor:
    x = torch.randn(batch_size, *shape[1:], generator=torch.Generator().manual_seed(0)).to(device)
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def _runs(
    space: DeltaBlocksSpace, layer: PlannedLayer, choice: str, device: torch.device, batch_size: int, residual: bool
) -> tuple[Callable[[], object], Callable[[], object] | None]:
    """(a delta frame of a layer, what its candidate adds to a key frame or None)."""
    op = space.candidate(layer, choice).eval().to(device)
    context = PassContext()
    delta = DeltaLayer(
        None, op, layer.name, context, layer.out_shape[1:], copy_input=layer.copy_input,
        copy_output=layer.copy_output,
    )  # fmt: skip
    x, z = _input(layer.in_shape, device, batch_size), _input(layer.out_shape, device, batch_size)
    if residual:
        delta = ResidualLayer(delta)
    delta.teacher = _Given(z)  # the teacher's own time is part of the whole net's

    def key() -> object:
        context.phase = "key"
        return delta(x)

    def frame() -> object:
        context.phase = "delta"
        return delta(x)

    key()
    computes = isinstance(op, PairDelta) or layer.copy_input or layer.copy_output or residual
    return frame, key if computes and not (residual and isinstance(op, ZeroDelta)) else None


class _Given(nn.Module):
    """Gives one tensor, whatever it gets."""

    def __init__(self, z: Tensor) -> None:
        super().__init__()
        self.z = z

    def forward(self, x: Tensor) -> Tensor:
        """The tensor."""
        return self.z


def whole_net(
    space: DeltaBlocksSpace, arch: ArchSpec, device: torch.device, batch_size: int = 1, *, residual: bool = False
) -> tuple[Callable[[], object], Callable[[], object]]:
    """(a key frame, a delta frame) of a student, to be timed.

    Args:
        space: of the student.
        arch: of the student.
        device: that it runs on.
        batch_size: streams that run together.
        residual: in residual form.
    """
    student = cast(DeltaNet, space.student(arch).eval().to(device))
    student = residual_form(student) if residual else student
    frame = _input((1, 3, *space.frame_size), device, batch_size)
    with torch.inference_mode():
        state = student.key(frame)[1]
    return (lambda: student.key(frame)), (lambda: student.delta(frame, state))


def interleaved(calls: Sequence[Callable[[], object]], device: torch.device, repeats: int) -> list[int]:
    """Median nanoseconds of each call, over rounds in which all take turns.

    Args:
        calls: what is timed, in inference mode.
        device: that is waited for, where calls return before they are done.
        repeats: rounds that count.
    """
    taken: list[list[int]] = [[] for _ in calls]
    with torch.inference_mode():
        for r in range(-WARM_UP, repeats):
            for call, times in zip(calls, taken, strict=True):
                _wait(device)
                start = time.perf_counter_ns()
                call()
                _wait(device)
                if r >= 0:
                    times.append(time.perf_counter_ns() - start)
    return [round(median(times)) for times in taken]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
