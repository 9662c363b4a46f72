"""Frames per second of the published saliency students: `python benchmarks/saliency.py [--device cuda] [--sides 32]`.

The nets are the widest points of the space `saliency`, fused and spatial alone. BatchNorm is folded and everything is
channels-last. FPS counts the frames t for which a map is made. The fused net reads frames t and t + 1 for each map:

    pairs   every pair is a sample of its own, so that each frame passes the siamese part twice
    video   the frames of a batch follow each other, as in a video; each frame passes the siamese part once

    memory  inputs lie on the device, normalised
    host    inputs are bytes in the host's memory: copied to the device (pinned, on a second stream, while the batch
            before is computed) and normalised there. Maps stay on the device.

On a CPU: one thread, and as many workers of one thread as there are processors, each with batches of its own; eager,
and compiled at the smallest side. One thread is timed in processor seconds (the time of a free machine, also while
others use it), everything else by the wall clock, which means little on a busy machine: a share of the roof above one
is a sign of it. On a GPU: bfloat16 and float16, each batch size a CUDA graph, eager or, with --compile, compiled.

What limits it: products (two operations a multiply-accumulate) against the rate of a large matrix product or a wide
convolution, and the least traffic (each convolution and pooling reads its input and writes its output once) against
that of a large copy, all measured here. `roof` is the share of that bound which a row attains. The products really
executed are asserted, and so are the outputs. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import get_ident
from typing import Any, cast

import torch
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nas_kd.search_spaces import count_flops
from nas_kd.search_spaces.delta_blocks.fold import fold_batchnorm
from nas_kd.search_spaces.saliency import SaliencyNet, SaliencySettings, SaliencySpace

NETS = ("fused", "spatial")
CPU_BATCHES = (16, 64)
GPU_BATCHES = (1024, 2048, 4096, 8192, 16384)
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.02}  # of the maps' standard deviation
SLOWER = 0.85  # the part may be slower than the whole by the noise of a shared machine, not by more
PUBLISHED = (
    ("Li et al. 2020, fused", "32", "GPU", 28738),
    ("Li et al. 2020, fused", "32", "CPU", 1490),
    ("UVA-Net 2020", "32", "GPU", 10106),
    ("UVA-Net 2020", "64", "GPU", 2588),
    ("UVA-Net 2020", "64", "CPU", 404),
)
MEAN, STD = 127.5, 64.0


@dataclass(frozen=True)
class Roof:
    """What the device can do."""

    flops: float  # operations a second of a large matrix product or a wide convolution
    bytes: float  # bytes a second that a large copy reads and writes
    upload: float  # bytes a second from the host; 0 where there is nothing to upload


@dataclass(frozen=True)
class Row:
    net: str
    side: int
    device: str
    precision: str
    workers: int
    form: str
    reads: str
    fed: str
    batch: int
    fps: float
    clock: str  # seconds of the processor, or of the wall
    gflops: float  # operations a second, two a multiply-accumulate
    gbytes: float  # least traffic a second
    roof: float
    limit: str
    error: float


class Maps(nn.Module):
    """A student as it is fed: pairs or a video, floats or bytes."""

    def __init__(self, net: SaliencyNet, reads: str, fed: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.net, self.reads, self.fed, self.dtype = net, reads, fed, dtype

    def forward(self, x: Tensor) -> Tensor:
        if self.fed == "host":
            x = (x.to(self.dtype) - MEAN) / STD
        return cast(Tensor, self.net.sequence(x) if self.reads == "video" else self.net(x))

    def inputs(self, batch: int, side: int, device: torch.device) -> Tensor:
        """Random ones: pairs (N, 3, 2, S, S), frames of a video (N + 1, 3, S, S)."""
        generator = torch.Generator().manual_seed(0)
        count = batch + 1 if self.reads == "video" else 2 * batch
        x = torch.randint(0, 256, (count, side, side, 3), generator=generator, dtype=torch.uint8)
        x = x.permute(0, 3, 1, 2)  # channels-last
        if self.fed == "memory":
            x = ((x.to(device, torch.float32) - MEAN) / STD).to(self.dtype)
        if self.reads == "video":
            return x
        return x.view(batch, 2, 3, side, side).transpose(1, 2)


def channels_last(module: nn.Module) -> nn.Module:
    return cast(nn.Module, cast(Any, module).to(memory_format=torch.channels_last))


def published(net: str, side: int) -> SaliencyNet:
    """The widest student with the statistics of noise, so that maps are of ordinary size; in evaluation mode."""
    torch.manual_seed(0)
    space = SaliencySpace(SaliencySettings.model_validate({"net": (net,), "side": (side,)}))
    arch = space.widest({})
    student = cast(SaliencyNet, space.student(arch))
    with torch.no_grad():
        for _ in range(20):
            student.train()(torch.randn(16, 3, 2, side, side))
    example = torch.randn(2, 3, 2, side, side)
    folded = cast(SaliencyNet, channels_last(fold_batchnorm(student.eval(), example)))
    assert not [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)], "every BatchNorm folds"
    counted = count_flops(student, example).by_operator["conv"]
    assert executed(folded, example) == counted, "what runs is what was counted"
    return folded


@torch.no_grad()
def executed(run: Callable[[Tensor], object], x: Tensor) -> int:
    """Multiply-accumulates of convolutions that really ran."""
    with FlopCounterMode(display=False) as counter:
        run(x)
    return int(counter.get_total_flops()) // 2


@torch.no_grad()
def traffic(maps: Maps, x: Tensor) -> int:
    """Elements that convolutions and poolings read and write, each input and output once."""
    seen = 0

    def note(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal seen
        seen += inputs[0].numel() + output.numel()

    kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.MaxPool2d)
    hooks = [m.register_forward_hook(note) for m in maps.modules() if isinstance(m, kinds)]
    maps(x)
    for hook in hooks:
        hook.remove()
    return seen


class Clock:
    """Seconds of a device; on one thread of a CPU, processor seconds."""

    def __init__(self, device: torch.device, workers: int) -> None:
        self.device, self.workers = device, workers
        self.kind = "processor" if device.type == "cpu" and workers == 1 else "wall"

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.process_time() if self.kind == "processor" else time.perf_counter()

    def each(self, run: Callable[[], object], seconds: float) -> float:
        """Mean seconds of a call over about so many seconds; workers share the calls."""
        run()
        start = self.now()
        run()
        calls = max(int(seconds / max(self.now() - start, 1e-6)), 2)
        if self.workers == 1:
            start = self.now()
            repeat(run, calls)
            return (self.now() - start) / calls
        with ThreadPoolExecutor(self.workers) as pool:
            list(pool.map(repeat, [run] * self.workers, [1] * self.workers))  # they are there, with all that they need
            start = self.now()
            list(pool.map(repeat, [run] * self.workers, [calls] * self.workers))
            return (self.now() - start) / (calls * self.workers)


@torch.inference_mode()
def repeat(run: Callable[[], object], times: int) -> None:
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)
    for _ in range(times):
        run()


def measured_roof(clock: Clock, dtype: torch.dtype) -> Roof:
    """Large matrix product or wide convolution, whichever is faster; large copy; on a GPU, large upload.

    Each is the best of three: a roof that something else held down would say nothing.
    """
    device, gpu = clock.device, clock.device.type == "cuda"

    def best(run: Callable[[], object]) -> float:
        return min(clock.each(run, 0.1) for _ in range(3))

    side, batch = (8192, 256) if gpu else (1024, 2)
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    flops = 2 * side**3 / best(lambda: torch.mm(left, right))
    wide = channels_last(nn.Conv2d(256, 256, 3, padding=1).to(device, dtype))
    maps = torch.randn(batch, 256, 28, 28, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    flops = max(flops, 2 * batch * 28**2 * 9 * 256**2 / best(lambda: wide(maps)))
    source = torch.zeros(2**28 if gpu else 2**24, device=device)
    targets = defaultdict[int, Tensor](lambda: torch.zeros_like(source))  # one a worker
    moved = 8 * source.numel() / best(lambda: targets[get_ident()].copy_(source))
    upload = 0.0
    if gpu:
        host = torch.zeros(2**27, dtype=torch.uint8).pin_memory()
        there = torch.empty_like(host, device=device)
        upload = host.numel() / best(lambda: there.copy_(host, non_blocking=True))
    return Roof(flops, moved, upload)


class Captured:
    """A module and its input as a CUDA graph; `input` is what a replay reads, `output` what it writes."""

    def __init__(self, maps: Callable[[Tensor], Tensor], x: Tensor) -> None:
        self.input = x
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):  # cuDNN chooses its algorithms, compiled code is built
                maps(x)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.output = maps(x)

    def __call__(self) -> Tensor:
        self.graph.replay()
        return self.output


class Uploading:
    """Two buffers: while one is computed on, the other is filled from pinned memory by a second stream."""

    def __init__(self, maps: Callable[[Tensor], Tensor], host: Tensor, device: torch.device) -> None:
        self.host = [host.clone(memory_format=torch.preserve_format).pin_memory() for _ in range(2)]
        self.graphs = [Captured(maps, h.to(device)) for h in self.host]
        self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.filled = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]
        self.used = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]
        self.turn = 0
        for event in self.used:
            event.record()
        self._fill(0)

    def _fill(self, slot: int) -> None:
        self.stream.wait_event(self.used[slot])
        with torch.cuda.stream(self.stream):
            self.graphs[slot].input.copy_(self.host[slot], non_blocking=True)
            self.filled[slot].record(self.stream)

    def __call__(self) -> Tensor:
        slot, self.turn = self.turn, 1 - self.turn
        self._fill(self.turn)
        torch.cuda.current_stream().wait_event(self.filled[slot])
        output = self.graphs[slot]()
        self.used[slot].record()
        return output


class Bench:
    """All rows of one device."""

    def __init__(self, device: torch.device, seconds: float, progress: Progress, task: TaskID) -> None:
        self.device, self.seconds, self.progress, self.task = device, seconds, progress, task
        self.name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
        self.rows: list[Row] = []
        self.roofs: dict[tuple[str, int], Roof] = {}

    def roof(self, precision: str, workers: int) -> Roof:
        key = precision, workers
        if key not in self.roofs:
            self.roofs[key] = measured_roof(Clock(self.device, workers), PRECISIONS[precision])
        return self.roofs[key]

    @torch.inference_mode()
    def row(
        self, net: SaliencyNet, name: str, side: int, *, precision: str, workers: int, form: str, reads: str, fed: str,
        batches: Sequence[int],
    ) -> Row:  # fmt: skip
        """The best of these batch sizes."""
        dtype = PRECISIONS[precision]
        label = f"{name} {side} {precision} {form} {reads} {fed}"
        clock, roof = Clock(self.device, workers), self.roof(precision, workers)
        twin = Maps(net, reads, fed, torch.float32)
        maps = Maps(copy.deepcopy(net).to(self.device, dtype), reads, fed, dtype)
        error = self.error(twin, maps, side)
        runs: dict[int, float] = {}
        for batch in batches:
            self.progress.update(self.task, description=f"{label}, batch {batch}, {workers} workers")
            run = self.ready(maps, form, batch, side)
            runs[batch] = clock.each(run, self.seconds / len(batches)) / batch
            del run  # and with it the memory of a graph
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        batch = min(runs, key=lambda b: runs[b])
        seconds = runs[batch]
        few, many = (twin.inputs(n, side, torch.device("cpu")) for n in (4, 8))
        work = 2 * (executed(twin, many) - executed(twin, few)) / 4  # of one more map
        moved = (traffic(twin, many) - traffic(twin, few)) * dtype.itemsize / 4
        needs = {"products": work / roof.flops, "traffic": moved / roof.bytes}
        if fed == "host" and roof.upload:
            needs["upload"] = (many.numel() - few.numel()) / 4 / roof.upload
        limit = max(needs, key=lambda n: needs[n])
        share = needs[limit] / seconds
        row = Row(
            name, side, self.name, precision, workers, form, reads, fed, batch, round(1 / seconds, 1), clock.kind,
            round(work / seconds / 1e9, 1), round(moved / seconds / 1e9, 1), round(share, 3), limit, error,
        )  # fmt: skip
        self.rows.append(row)
        self.progress.advance(self.task)
        return row

    def ready(self, maps: Maps, form: str, batch: int, side: int) -> Callable[[], object]:
        """What makes the maps of one batch."""
        run: Callable[[Tensor], Tensor] = maps
        if "compiled" in form:
            torch._dynamo.reset()
            how: dict[str, Any] = {"options": {"freezing": True}} if self.device.type == "cpu" else {}
            run = cast(Callable[[Tensor], Tensor], torch.compile(maps, dynamic=False, **how))
        x = maps.inputs(batch, side, self.device)
        if self.device.type == "cpu":
            return lambda: run(x)
        return Uploading(run, x, self.device) if maps.fed == "host" else Captured(run, x)

    def error(self, twin: Maps, maps: Maps, side: int) -> float:
        """Largest difference to float32 on the CPU, in standard deviations of the maps."""
        x = twin.inputs(8, side, torch.device("cpu"))
        expected = twin(x)
        got = maps(x.to(self.device) if maps.fed == "host" else x.to(self.device, maps.dtype)).float().cpu()
        error = float((got - expected).abs().max() / expected.std())
        precision = str(maps.dtype).removeprefix("torch.")
        assert error <= TOLERANCE[precision], f"maps differ by {error:.2g} standard deviations in {precision}"
        return round(error, 6)

    def check(self) -> None:
        """The spatial net is a part of the fused one, so it is not slower."""
        by = {(r.net, r.side, r.precision, r.workers, r.form, r.reads, r.fed): r for r in self.rows}
        for key, row in by.items():
            part = by.get(("spatial", *key[1:]))
            noisy = row.clock == "wall" and self.device.type == "cpu"  # where others may have used the machine
            if row.net == "fused" and part is not None and not noisy:
                assert part.fps >= SLOWER * row.fps, f"spatial alone makes {part.fps} maps a second, fused {row.fps}"


def processor() -> str:
    """The CPU's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


Job = dict[str, Any]


def cpu_jobs(sides: Sequence[int], compiled: str, cores: int) -> Iterator[tuple[str, int, Job]]:
    """Net, side and the rest of every row on a CPU."""
    for workers in dict.fromkeys((1, cores)):
        for side in sides:
            batches = [b for b in CPU_BATCHES if b * side * side <= 2**16] or [CPU_BATCHES[0]]
            for net in NETS:
                job: Job = {"precision": "float32", "workers": workers, "form": "eager", "fed": "memory"}
                for reads in ("pairs", "video") if net == "fused" else ("video",):
                    yield net, side, {**job, "reads": reads, "batches": batches}
                if compiled == "all" or (compiled == "first" and side == sides[0]):
                    for fed in ("memory", "host") if net == "fused" else ("memory",):
                        how = {"form": "compiled", "reads": "video", "fed": fed, "batches": batches[-1:]}
                        yield net, side, {**job, **how}


def gpu_jobs(sides: Sequence[int], compiled: str) -> Iterator[tuple[str, int, Job]]:
    """Net, side and the rest of every row on a GPU."""
    for precision in ("bfloat16", "float16"):
        for side in sides:
            batches = [b for b in GPU_BATCHES if b * side * side <= 2**24] or [GPU_BATCHES[0]]
            for net in NETS:
                job: Job = {"precision": precision, "workers": 1, "batches": batches}
                forms = ["graph"]
                if compiled == "all" or (compiled == "first" and side == sides[0]):
                    forms.append("compiled graph")
                for form in forms:
                    if net == "fused":
                        yield net, side, {**job, "form": form, "reads": "pairs", "fed": "memory"}
                    for fed in ("memory", "host"):
                        yield net, side, {**job, "form": form, "reads": "video", "fed": fed}


def show(rows: Sequence[Row], roofs: dict[tuple[str, int], Roof], console: Console) -> None:
    """Our rows beside the published ones, and what the device can do."""
    table = Table(title="saliency maps a second (FPS)")
    console.width = max(console.width, 140)
    for column in ("net", "side", "on", "workers", "form", "reads", "fed from", "batch"):
        table.add_column(column)
    for column in ("FPS", "GFLOP/s", "GB/s", "roof"):
        table.add_column(column, justify="right")
    table.add_column("bound")
    for name, side, device, fps in PUBLISHED:
        table.add_row(f"published: {name}", side, device, *["–"] * 5, f"{fps:,}", *["–"] * 4)
    for r in sorted(rows, key=lambda r: (r.side, r.net, r.workers, r.fps)):
        table.add_row(
            r.net, str(r.side), r.precision, str(r.workers), r.form, r.reads, r.fed, str(r.batch), f"{r.fps:,.0f}",
            f"{r.gflops:,.0f}", f"{r.gbytes:,.0f}", f"{r.roof:.0%}", r.limit,
        )  # fmt: skip
    console.print(table)
    for (precision, workers), roof in roofs.items():
        upload = f", upload {roof.upload / 1e9:,.1f} GB/s" if roof.upload else ""
        console.print(
            f"roof of {precision}, {workers} workers: products {roof.flops / 1e9:,.0f} GFLOP/s, "
            f"copy {roof.bytes / 1e9:,.1f} GB/s{upload}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--sides", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--seconds", type=float, default=1.0, help="of measurement for each row")
    parser.add_argument("--compile", choices=("none", "first", "all"), help="sides at which nets are compiled too")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device {options.device} needs a GPU, but torch finds none; take --device cpu")
    warnings.simplefilter("ignore")  # of the compiler
    torch.set_num_threads(1)  # several of them wait for each other at every layer; workers do not
    torch.backends.cudnn.benchmark = True
    sides, cores = sorted(set(options.sides)), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    if device.type == "cuda":
        jobs = list(gpu_jobs(sides, options.compile or "none"))
    else:
        jobs = list(cpu_jobs(sides, options.compile or "first", cores))
    console, start = Console(), time.perf_counter()
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bench = Bench(device, options.seconds, progress, progress.add_task("", total=len(jobs)))
        nets = {(name, side): published(name, side) for side in sides for name in NETS}
        for name, side, job in jobs:
            bench.row(nets[name, side], name, side, **job)
    bench.check()
    console.print(f"{bench.name}, torch {torch.__version__}, {time.perf_counter() - start:.0f} s")
    show(bench.rows, bench.roofs, console)
    best = max((r for r in bench.rows if r.net == "fused" and r.side == sides[0]), key=lambda r: r.fps)
    print(
        json.dumps(
            {
                "best": asdict(best), "published": {"gpu_fps": 28738, "cpu_fps": 1490}, "torch": torch.__version__,
                "roofs": [{"precision": p, "workers": w, **asdict(r)} for (p, w), r in bench.roofs.items()],
                "rows": [asdict(r) for r in bench.rows],
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
