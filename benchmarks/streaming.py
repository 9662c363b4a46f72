"""Time delta students frame by frame against their teacher: `python benchmarks/streaming.py [--compile] [--threads 1]`.

The teacher is the strong one: BatchNorm folded, channels-last, and compiled where the student is. Students run through
`StreamingStudent.step` in both forms, and the faster form is reported.

Families: six 3×3 convolutions of 64 channels at 56×56 between a first and a last layer that stay; every one of the six
has the same candidate; frames after the key frame alone are compared. Whole students: of FrameNet and of a ResNet, at
96×160, over whole key-frame intervals of 3, 5 and 10 frames; all layers alike (where they can have the candidate), or
mixed. Compiling takes up to a minute a student: `--compile` runs fewer of both.

    flop_ratio       FLOPs of the teacher / FLOPs of the student, amortised a frame, as a search reports them: those of
                     the delta form, also where the residual form runs, which executes more on key frames
    speedup          time of the teacher / time of the student, medians of interleaved repeats in one run
    realised_share   speedup / flop_ratio

The convolutions really executed are asserted, and so are the outputs. Prints tables and, as the last line, one JSON
object; its `student` is the whole student with the largest realised share among those with a flop_ratio of at least 2,
`fastest` the one with the largest speedup.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nas_kd.deploy.streaming import StreamingStudent, StreamState
from nas_kd.search_spaces import DeltaBlocksSettings, DeltaBlocksSpace, DeltaNet, count_flops
from nas_kd.search_spaces.delta_blocks.residual import residual_form
from nas_kd.teachers import FrameNet

CHANNELS, SIDE = 64, 56
FRAME = (96, 160)
INTERVALS = (3, 5, 10)
FAMILIES = (
    "full", "split4", "bottleneck4", "bottleneck8", "pointwise2", "pointwise8", "grouped4", "separable", "lowres2",
    "lowres4", "shuffle4", "pair8",
)  # fmt: skip
COMPILED_FAMILIES = ("full", "bottleneck4", "pointwise8")
UNIFORM = ("bottleneck4", "pointwise8", "split8", "lowres2", "lowres4")
COMPILED_STUDENTS = ("pointwise8", "cheapest")
LEAST_RATIO = 2.0  # of the student that is reported: with less there is little to realise
SLOWER = 0.85  # what contains a part may undercut it by the noise of a shared machine, not by more


class Six(nn.Module):
    """The block of convolutions between a first and a last layer."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, CHANNELS, 3, padding=1), nn.ReLU()]
        for _ in range(6):
            layers += [nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False), nn.BatchNorm2d(CHANNELS), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.Conv2d(CHANNELS, 3, 1))

    def forward(self, frames: Tensor) -> Tensor:
        return cast(Tensor, self.net(frames))


class Block(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU(),
            nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False), nn.BatchNorm2d(c_out),
        )  # fmt: skip
        same = c_in == c_out and stride == 1
        self.shortcut: nn.Module = nn.Identity() if same else nn.Conv2d(c_in, c_out, 1, stride)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.relu(self.shortcut(x) + self.body(x)))


class ResNet(nn.Module):
    """A residual net for maps at a quarter of the frame: 64, 128 and 256 channels, two blocks each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2))
        widths = (64, 64, 128, 256)
        self.stages = nn.Sequential(
            *(
                nn.Sequential(Block(c_in, c, 1 if i == 0 else 2), Block(c, c, 1))
                for i, (c_in, c) in enumerate(pairwise(widths))
            )
        )
        self.head = nn.Sequential(nn.Conv2d(256, 19, 1), nn.UpsamplingBilinear2d(scale_factor=4))

    def forward(self, frames: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.stages(self.stem(frames))))


@dataclass(frozen=True)
class Machine:
    """Where and how things run."""

    device: torch.device
    compile: bool
    threads: int
    repeats: int

    def clock(self) -> float:
        """On one thread processor seconds: the time of a free machine, also while others use it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.process_time() if self.threads == 1 and self.device.type == "cpu" else time.perf_counter()

    def seconds(self, run: Callable[[], object]) -> float:
        start = self.clock()
        run()
        return self.clock() - start


@dataclass
class Subject:
    """A runtime with what it is fed."""

    runtime: StreamingStudent
    frames: list[Tensor]
    state: StreamState

    def key(self) -> Tensor:
        self.state.reset()
        return self.step(0)

    def step(self, t: int) -> Tensor:
        output, self.state = self.runtime.step(self.frames[t % len(self.frames)], self.state)
        return output

    def interval(self, length: int) -> None:
        self.key()
        for t in range(1, length):
            self.step(t)


def subjects(student: DeltaNet, frames: list[Tensor], machine: Machine) -> dict[str, Subject]:
    """Both forms; key frames are asked for by reset."""
    found = {}
    for form, net in (("delta", student), ("residual", residual_form(student))):
        runtime = StreamingStudent(net.to(machine.device), keyframe_interval=10**6, compile=machine.compile)
        found[form] = Subject(runtime, frames, runtime.start(1))
    return found


def teacher_of(space: DeltaBlocksSpace, machine: Machine) -> Callable[[Tensor], Tensor]:
    net: Callable[[Tensor], Tensor] = space.teacher.to(machine.device)
    if machine.compile:
        how: dict[str, Any] = {"options": {"freezing": True}}
        return cast(
            Callable[[Tensor], Tensor],
            torch.compile(net, **(how if machine.device.type == "cpu" else {"mode": "reduce-overhead"})),
        )
    return net


def executed(run: Callable[[], object]) -> int:
    """Multiply-accumulates of convolutions and matrix products that really ran."""
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops()) // 2


def products(module: nn.Module, inputs: Tensor) -> int:
    """The same by `count_flops`."""
    count = count_flops(module, inputs)
    return sum(value for name, value in count.by_operator.items() if name in ("conv", "linear", "matmul", "addmm"))


def check(student: DeltaNet, found: Mapping[str, Subject], teacher: Callable[[Tensor], Tensor]) -> None:
    """What runs is what was counted, and both forms give what clip mode gives."""
    clip = torch.stack([f[0] for f in found["delta"].frames[:3]], 1)[None]
    with torch.no_grad():
        expected = student(clip)[0]
    scale = float(expected.abs().max())
    assert float((teacher(clip[:, :, 0]) - expected[:1]).abs().max()) <= 1e-3 * scale, "key frames are the teacher's"
    for form, subject in found.items():
        outputs = [subject.key(), subject.step(1), subject.step(2)]
        error = float((torch.cat(outputs) - expected).abs().max())
        assert error <= 1e-3 * scale, f"the {form} form differs from clip mode by {error:.2g}"
        twin = StreamingStudent(subject.runtime.student)  # compiled graphs hide their products
        eager = Subject(twin, subject.frames, twin.start(1))
        counted = products(twin.student, clip)
        ran = executed(lambda eager=eager: eager.interval(3))  # type: ignore[misc]
        assert ran == counted, f"the {form} form ran {ran:,} products, not {counted:,}"


def rounds(machine: Machine, runs: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Medians of interleaved repeats."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    gc.disable()
    for _ in range(machine.repeats):
        for name, run in runs.items():
            seconds[name].append(machine.seconds(run))
    gc.enable()
    return {name: median(values) for name, values in seconds.items()}


def frames_of(size: tuple[int, int], machine: Machine) -> list[Tensor]:
    frames = torch.randn(10, 1, 3, *size, generator=torch.Generator().manual_seed(0)).to(machine.device)
    return [frame.contiguous(memory_format=torch.channels_last) for frame in frames]


def entry(name: str, form: str, ratio: float, speedup: float, state: int) -> dict[str, Any]:
    return {
        "flop_ratio": round(ratio, 3),
        "speedup": round(speedup, 3),
        "realised_share": round(speedup / ratio, 3),
        "name": name,
        "form": form,
        "state_bytes": state,
    }


def show(result: Mapping[str, Any], extra: str = "") -> None:
    print(
        f"{result['name']:<34}{result['flop_ratio']:>10.2f}{result['speedup']:>9.2f}"
        f"{result['realised_share']:>9.0%}{result['form']:>10}{result['state_bytes'] / 2**20:>9.2f}{extra}",
        flush=True,
    )


def header(title: str, extra: str = "") -> None:
    print(f"\n{title}\n{'':<34}{'FLOPs':>10}{'time':>9}{'share':>9}{'form':>10}{'MiB':>9}{extra}")


def families(machine: Machine) -> dict[str, dict[str, Any]]:
    """Frames after the key frame, all six convolutions with one candidate."""
    torch.manual_seed(0)
    settings = DeltaBlocksSettings(candidates=FAMILIES)
    space = DeltaBlocksSpace(settings, Six().eval(), (SIDE, SIDE))
    frames, teacher = frames_of((SIDE, SIDE), machine), teacher_of(space, machine)
    frame_flops = space.plan.teacher_flops
    header("six convolutions of 64 channels at 56×56, frames after the key frame: teacher / student")
    results = {}
    for name in COMPILED_FAMILIES if machine.compile else FAMILIES:
        student = uniform(space, name, 3).to(machine.device)
        delta_flops = student.delta_flops(frames[0])
        found = subjects(student, frames, machine)
        check(student, found, teacher)
        runs: dict[str, Callable[[], object]] = {"teacher": lambda: run_teacher(teacher, frames[1])}
        for form, subject in found.items():
            subject.key()
            runs[form] = lambda subject=subject: subject.step(1)  # type: ignore[misc]
        times = rounds(machine, runs)
        form = min(found, key=lambda form: times[form])
        ratio, speedup = frame_flops / delta_flops, times["teacher"] / times[form]
        results[name] = entry(name, form, ratio, speedup, found[form].state.bytes)
        show(results[name])
    return results


@torch.no_grad()
def run_teacher(teacher: Callable[[Tensor], Tensor], frame: Tensor, times: int = 1) -> None:
    for _ in range(times):
        teacher(frame)


def uniform(space: DeltaBlocksSpace, candidate: str, interval: int) -> DeltaNet:
    """The candidate everywhere, or, where a layer cannot have it, its cheapest one but zero."""
    choices: dict[str, int | str] = {"keyframe_interval": interval}
    for name, variable in space.variables.items():
        rest = [choice for choice in variable if choice != "zero"]
        choices[name] = candidate if candidate in variable else rest[0]
    return cast(DeltaNet, space.build_student(choices)).eval()


def mixed(space: DeltaBlocksSpace, interval: int) -> dict[str, DeltaNet]:
    """The cheapest choice everywhere, zeros included; zeros where they can be and bottlenecks elsewhere; at random."""
    arch = space.sample(np.random.default_rng(3))
    cheapest = {name: variable[0] for name, variable in space.variables.items()}
    zeros = {
        name: "zero" if "zero" in variable else "bottleneck4" if "bottleneck4" in variable else variable[-1]
        for name, variable in space.variables.items()
    }
    students = {"cheapest": cheapest, "zero+bottleneck4": zeros, "random": dict(arch.choices)}
    return {
        name: cast(DeltaNet, space.student(space.arch({**choices, "keyframe_interval": interval}))).eval()
        for name, choices in students.items()
    }


def whole_students(machine: Machine) -> list[dict[str, Any]]:
    """Whole key-frame intervals of all students."""
    results = []
    nets: Sequence[tuple[str, Callable[[], nn.Module]]] = (("framenet", lambda: FrameNet(5)), ("resnet", ResNet))
    for net_name, build in nets:
        torch.manual_seed(0)
        space = DeltaBlocksSpace(DeltaBlocksSettings(keyframe_interval=INTERVALS), build().eval(), FRAME)
        teacher = teacher_of(space, machine)
        header(
            f"{net_name} at {FRAME[0]}×{FRAME[1]}, {space.plan.teacher_flops / 1e6:.0f} MFLOPs, intervals of K frames",
            f"{'key/teacher':>14}{'teacher/delta':>15}",
        )
        students = {name: uniform(space, name, INTERVALS[0]) for name in UNIFORM} | mixed(space, INTERVALS[0])
        for name, student in students.items():
            if not machine.compile or name in COMPILED_STUDENTS:
                results += intervals(f"{net_name} {name}", space, student.to(machine.device), teacher, machine)
    return results


def intervals(
    title: str, space: DeltaBlocksSpace, student: DeltaNet, teacher: Callable[[Tensor], Tensor], machine: Machine
) -> list[dict[str, Any]]:
    """One student at all intervals."""
    frames, shortest = frames_of(FRAME, machine), INTERVALS[0]
    delta_flops = student.delta_flops(frames[0])
    clip = torch.zeros(1, 3, shortest, *FRAME, device=machine.device)
    key_flops = count_flops(student, clip).total - (shortest - 1) * delta_flops
    found = subjects(student, frames, machine)
    check(student, found, teacher)
    runs: dict[str, Callable[[], object]] = {"teacher": lambda: run_teacher(teacher, frames[1])}
    for form, subject in found.items():
        for k in INTERVALS:
            runs[f"{form} {k}"] = lambda subject=subject, k=k: subject.interval(k)  # type: ignore[misc]
        runs[f"{form} key"] = subject.key
        runs[f"{form} delta"] = lambda subject=subject: subject.step(1)  # type: ignore[misc]
    times = rounds(machine, runs)
    results = []
    for k in INTERVALS:
        form = min(found, key=lambda form: times[f"{form} {k}"])
        key, delta = times[f"{form} key"] / times["teacher"], times["teacher"] / times[f"{form} delta"]
        assert key >= SLOWER, f"{title}: a key frame contains the teacher, but takes {key:.2f} of its time"
        ratio = k * space.plan.teacher_flops / (key_flops + (k - 1) * delta_flops)
        speedup = k * times["teacher"] / times[f"{form} {k}"]
        results.append(entry(f"{title} K={k}", form, ratio, speedup, found[form].state.bytes))
        show(results[-1], f"{key:>14.2f}{delta:>15.2f}")
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="compile the teacher and both passes of the student")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")  # of the compiler
    torch._dynamo.config.recompile_limit = 1000  # every student is compiled anew
    machine = Machine(torch.device(options.device), options.compile, options.threads, options.repeats)
    print(
        f"torch {torch.__version__}, {platform.machine()}, {machine.device}, {machine.threads} threads, "
        f"{'compiled' if machine.compile else 'eager'}; the teacher has BatchNorm folded and is channels-last"
    )
    by_family = families(machine)
    students = whole_students(machine)
    worth = [s for s in students if s["flop_ratio"] >= LEAST_RATIO]
    best = max(worth, key=lambda s: s["realised_share"])
    fastest = max(worth, key=lambda s: s["speedup"])
    print(
        "\nWhat limits it: thin convolutions do fewer operations for each byte that they read and write, additions and "
        "activations\nstay at full width on every frame, each operator has a fixed cost, the first and the last layer "
        "always run, and a\nkey frame costs more than the teacher's frame, since it also writes the state."
    )
    print(
        json.dumps(
            {
                "student": best, "fastest": fastest, "families": by_family, "device": str(machine.device),
                "threads": machine.threads, "compiled": machine.compile,
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
