"""Find convolutions of this torch that compute wrong gradients or write outside their memory on this CPU.

Every case runs in a process of its own, forward and backward, several times, under glibc's checking allocator where
there is one, and is compared with the same case with oneDNN off. Needs torch alone; nothing of this project is imported
unless `--mended` asks for its replacement of the faulty gradient. Results: docs/cpu-convolutions.md.

    python benchmarks/convolution_check.py                    # all groups of cases, minutes
    python benchmarks/convolution_check.py --groups channels  # one of them
    python benchmarks/convolution_check.py --mended           # with the replacement that nas_kd installs: none may fail
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

MALLOC_DEBUG = "libc_malloc_debug.so.0"
REPEATS = 6
# Relative; sums of thousands of numbers in another order.
TOLERANCE = {"float32": 2e-4, "float64": 1e-9, "bfloat16": 6e-2, "float16": 2e-2}
CPU_SECONDS, CLOCK_SECONDS = 20, 300  # hangs are among what is found


@dataclass(frozen=True)
class Case:
    """One layer and its input.

    Attributes:
        sizes: of the input along its spatial dimensions: one for Conv1d, two for Conv2d, three for Conv3d.
        last: whether the input is channels-last.
        weight_last: whether the weight is.
        transposed: a transposed convolution; a pointwise one has `stride` times as many pixels as its input.
    """

    c_in: int = 4
    c_out: int = 8
    sizes: tuple[int, ...] = (16, 16)
    kernel: tuple[int, ...] = (1, 1)
    stride: tuple[int, ...] = (2, 2)
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    batch: int = 8
    last: bool = True
    weight_last: bool = False
    dtype: str = "float32"
    transposed: bool = False
    threads: int = 1

    @property
    def is_valid(self) -> bool:
        fits = all(
            n + 2 * self.padding >= self.dilation * (k - 1) + 1 for n, k in zip(self.sizes, self.kernel, strict=True)
        )
        return fits and self.c_in % self.groups == 0 and self.c_out % self.groups == 0


def channels() -> Iterator[Case]:
    """The known form, over channels and sizes."""
    c_in = (*range(1, 18), 20, 24, 31, 32, 33, 40, 64)
    for i, o, side in itertools.product(c_in, (1, 3, 8, 12, 16, 64, 200, 512), (2, 4, 8, 14, 15, 16, 32)):
        yield Case(i, o, (side, side))
    for i, o, side in itertools.product((1, 3, 4, 7, 8, 12, 16, 24), (8, 64, 512), (56, 112)):
        yield Case(i, o, (side, side), batch=2)


def forms() -> Iterator[Case]:
    """Kernels, strides, padding, dilation, formats, dimensions, with few channels and with more."""
    for i, o in ((3, 8), (4, 8), (12, 64)):
        for k, s, p, last in itertools.product(
            ((1, 1), (1, 3), (3, 1), (2, 2), (3, 3), (5, 5), (7, 7)),
            ((1, 1), (2, 2), (3, 3), (4, 4), (1, 2), (2, 1)),
            (0, 1, 3),
            (False, True),
        ):
            if p < max(k) + 1:
                yield Case(i, o, (24, 24), k, s, p, last=last)
                yield Case(i, o, (25, 23), k, s, p, last=last)
        for d, k, s in itertools.product((2, 3), ((1, 1), (3, 3)), ((1, 1), (2, 2))):
            yield Case(i, o, (24, 24), k, s, 0, d)
        for s, k, last in itertools.product((1, 2, 3, 4), (1, 3), (False, True)):
            yield Case(i, o, (96,), (k,), (s,), k // 2, last=last)
            yield Case(i, o, (12, 12, 12), (k,) * 3, (s,) * 3, k // 2, last=last, batch=2)
            yield Case(i, o, (1, 12, 12), (1, k, k), (1, s, s), 0, last=last)
    for g, per_in, per_out, k, s in itertools.product((2, 3, 8), (1, 2, 4), (1, 4, 8), (1, 3), (1, 2)):
        yield Case(g * per_in, g * per_out, (16, 16), (k, k), (s, s), k // 2, groups=g)


def kinds() -> Iterator[Case]:
    """Number formats, threads, batches, formats of the weight, transposed convolutions, on the known form."""
    for i, o, side in itertools.product((1, 3, 4, 8, 12, 16), (3, 8, 64), (8, 16, 56)):
        base = Case(i, o, (side, side))
        for dtype in ("float64", "bfloat16", "float16"):
            yield replace(base, dtype=dtype)
        yield replace(base, threads=2)
        yield replace(base, batch=1)
        yield replace(base, weight_last=True)
        yield replace(base, weight_last=True, last=False)
        yield replace(base, last=False)
        yield replace(base, transposed=True)
        yield replace(base, transposed=True, c_in=o, c_out=i)
        yield replace(base, transposed=True, c_in=o, c_out=i, last=False)


def fuzz(number: int = 800, seed: int = 0) -> Iterator[Case]:
    """Random layers of all kinds."""
    draw = random.Random(seed)
    while number:
        dims = draw.choices((1, 2, 3), (2, 6, 1))[0]
        groups = draw.choice((1, 1, 1, 1, 2, 3))
        same = draw.randint(1, 4)
        stride = tuple(draw.choice((1, 2, 2, 3)) for _ in range(dims)) if draw.random() < 0.3 else (same,) * dims
        k = draw.choice((1, 1, 1, 2, 3, 5))
        case = Case(
            groups * draw.randint(1, 36 // groups),
            groups * draw.choice((1, 2, 3, 5, 8, 12, 16, 31, 64, 130)),
            tuple(
                draw.choice((stride[d] * draw.randint(1, 12), draw.randint(3, 40 if dims < 3 else 12)))
                for d in range(dims)
            ),
            (k,) * dims,
            stride,
            draw.choice((0, 0, k // 2, 1)),
            draw.choice((1, 1, 1, 2)),
            groups,
            draw.choice((1, 2, 5, 16)),
            draw.random() < 0.75,
            draw.random() < 0.25,
            draw.choices(("float32", "float64", "bfloat16"), (8, 1, 1))[0],
            draw.random() < 0.15,
            draw.choice((1, 1, 2)),
        )
        if case.is_valid:
            number -= 1
            yield case


GROUPS = {"channels": channels, "forms": forms, "kinds": kinds, "fuzz": fuzz}


def run(case: Case) -> dict[str, float]:
    """The largest deviation of output and gradients from those without oneDNN, relative to their largest value.

    All numbers are positive, so that no sum is small by cancellation.

    Raises:
        RefusedError: torch does not take such a layer, with oneDNN or without.
    """
    import torch

    torch.set_num_threads(case.threads)
    torch.manual_seed(0)
    dims, dtype = len(case.sizes), getattr(torch, case.dtype)
    formats = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d}
    inputs = (torch.rand(case.batch, case.c_in, *case.sizes) + 0.1).to(dtype)
    shape = (case.c_in, case.c_out // case.groups) if case.transposed else (case.c_out, case.c_in // case.groups)
    weight = (torch.rand(*shape, *case.kernel) + 0.1).to(dtype)
    if dims == 1 and case.last:  # rows of features, seen as channels
        inputs = inputs.transpose(1, 2).contiguous().transpose(1, 2)
    elif case.last:
        inputs = inputs.contiguous(memory_format=formats[dims])
    if case.weight_last:
        weight = weight.contiguous(memory_format=formats[dims])
    bias = torch.rand(case.c_out).to(dtype)
    pad, dilation = (case.padding,) * dims, (case.dilation,) * dims
    pointwise = case.transposed and max(case.kernel) == 1
    output_padding = tuple(step - 1 for step in case.stride) if pointwise else (0,) * dims
    args = (case.stride, pad, dilation, case.transposed, output_padding, case.groups)

    def results() -> tuple[torch.Tensor, ...]:
        output = torch.ops.aten.convolution(inputs, weight, bias, *args)
        grads = (torch.rand(output.shape, generator=torch.Generator().manual_seed(1)) + 0.1).to(dtype)
        if case.last and dims > 1:
            grads = grads.contiguous(memory_format=formats[dims])
        mask = (True, True, True)
        return (output, *torch.ops.aten.convolution_backward(grads, inputs, weight, [case.c_out], *args, mask))

    with torch.backends.mkldnn.flags(enabled=False):
        try:
            expected = results()
        except RuntimeError as error:
            raise RefusedError(str(error)) from error
    found = [results() for _ in range(REPEATS)]
    worst = {}
    for i, name in enumerate(("output", "input gradient", "weight gradient", "bias gradient")):
        scale = float(expected[i].double().abs().max())
        errors = [float((one[i].double() - expected[i].double()).abs().max()) / scale for one in found]
        worst[name] = float("inf") if any(error != error for error in errors) else max(errors)
    return worst


class RefusedError(Exception):
    """Torch does not take a layer, whatever computes it."""


def in_child(case: Case, folder: Path) -> int:
    """Start `run` in a forked process that leaves its result and oneDNN's own log in the folder; its number."""
    if pid := os.fork():
        return pid
    try:
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        signal.alarm(CLOCK_SECONDS)
        log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        (folder / "result").write_text(json.dumps(run(case)))
        gc.collect()
        os._exit(0)
    except BaseException as error:
        (folder / "error").write_text(f"{'refused' if isinstance(error, RefusedError) else 'raised'}: {error}"[:100])
        os._exit(3)


def verdict(case: Case, status: int, folder: Path) -> tuple[str, str]:
    """What became of a case, and which oneDNN implementation computed its gradient of the weight."""
    implementation = "not oneDNN"
    for line in (folder / "log").read_text(errors="replace").splitlines():
        parts = line.split(",")
        if line.startswith("onednn_verbose") and "backward_weights" in parts:
            implementation = parts[parts.index("backward_weights") - 1]
    if os.WIFSIGNALED(status):
        return f"killed by {signal.Signals(os.WTERMSIG(status)).name}", implementation
    if (error := folder / "error").exists():
        return error.read_text(), implementation
    worst = json.loads((folder / "result").read_text())
    wrong = [name for name, value in worst.items() if not value <= TOLERANCE[case.dtype]]
    return ("wrong " + ", ".join(wrong)) if wrong else "right", implementation


def run_all(cases: Sequence[Case], name: str) -> list[tuple[Case, str, str]]:
    """Every case in a process of its own, as many at once as there are cores."""
    began, rows = time.monotonic(), []
    running: dict[int, tuple[Case, Path]] = {}
    with tempfile.TemporaryDirectory() as root:
        pending = iter(enumerate(cases))
        while True:
            while len(running) < (os.cpu_count() or 1) and (item := next(pending, None)) is not None:
                number, case = item
                folder = Path(root, str(number))
                folder.mkdir()
                running[in_child(case, folder)] = (case, folder)
            if not running:
                return rows
            pid, status = os.wait()
            case, folder = running.pop(pid)
            rows.append((case, *verdict(case, status, folder)))
            if len(rows) % 200 == 0:
                left = (time.monotonic() - began) * (len(cases) / len(rows) - 1)
                print(f"  {name}: {len(rows)} of {len(cases)}, {left:.0f} s left", flush=True)


def summary(rows: Sequence[tuple[Case, str, str]]) -> list[str]:
    """A line for each implementation and outcome."""
    table: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for _, outcome, implementation in rows:
        kind = outcome if outcome == "right" else "refused" if outcome.startswith("refused") else "FAULTY"
        table[kind, implementation][outcome.partition(":")[0]] += 1
    return [
        f"  {kind:8} {implementation:24} {sum(counts.values()):5}  {dict(counts) if kind == 'FAULTY' else ''}"
        for (kind, implementation), counts in sorted(table.items())
    ]


def main() -> None:
    """Run the groups that are asked for and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", nargs="*", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--mended", action="store_true", help="with nas_kd's replacement of the faulty gradient")
    parser.add_argument("--out", type=Path, help="a JSON file for all outcomes")
    options = parser.parse_args()
    if os.environ.get("MALLOC_CHECK_") != "3":  # the allocator and oneDNN read these when they are loaded
        preload = " ".join(filter(None, [os.environ.get("LD_PRELOAD"), MALLOC_DEBUG]))
        os.environ |= {"MALLOC_CHECK_": "3", "LD_PRELOAD": preload, "ONEDNN_VERBOSE": "1"}
        os.execv(sys.executable, [sys.executable, *sys.argv])
    import torch

    if options.mended:
        from nas_kd import search_spaces  # noqa: F401  (importing it replaces the gradient)
    checking = MALLOC_DEBUG in Path("/proc/self/maps").read_text()
    build = torch.__config__.show().splitlines()
    onednn = next((line.partition("MKL-DNN ")[2].partition(" (")[0] for line in build if "MKL-DNN" in line), "none")
    print(f"torch {torch.__version__}, oneDNN {onednn}, {torch.backends.cpu.get_cpu_capability()}")
    print(f"checking allocator: {'yes' if checking else 'no'}")
    results: list[tuple[Case, str, str]] = []
    for name in options.groups:
        began = time.monotonic()
        rows = run_all(list(dict.fromkeys(case for case in GROUPS[name]() if case.is_valid)), name)
        print(f"{name}: {len(rows)} cases in {time.monotonic() - began:.0f} s", *summary(rows), sep="\n", flush=True)
        results += rows
        if options.out:
            content = [{**asdict(case), "outcome": outcome, "implementation": by} for case, outcome, by in results]
            options.out.write_text(json.dumps(content))
    faulty = [case for case, outcome, _ in results if outcome != "right" and not outcome.startswith("refused")]
    print(f"{len(faulty)} of {len(results)} cases are faulty")


if __name__ == "__main__":
    main()
