"""What steps take on a GPU, and how busy it is: `python benchmarks/gpu.py [--settings small large] [--keep]`.

The loops are those of a campaign: `fit` for the teacher and for a student, the shared search for supernets. Of each,
after a warm-up, `--steps` steps are timed by the clock between two synchronisations, and some more under torch's
profiler, which tells how long kernels ran in a step. Steps:

    teacher     of the teacher's own training
    plain       of a student without distillation
    cached      of a student with distillation from the cached outputs of the teacher
    online      of a student with distillation from the teacher itself
    search      of the shared search: the drawn paths of the weights, and a step of the gates

`small` is the demo's setting (8 frames of 32²), `large` has 16 frames of 112² and wider nets. Students are those of the
highest budget. Each is measured in float32 and in bfloat16. `compiled` steps are cached ones whose student went through
`torch.compile` (`retrain.compile`), the first of them in `compile_s` seconds; `cudnn.benchmark` are cached ones, too.

    step_ms     milliseconds a step
    kernels_ms  of it, in which kernels ran; the rest of the time the GPU waits
    memory_mb   largest memory that torch reserved, in 10⁶ bytes

The last line is one JSON object, which `--keep` writes to `benchmarks/results/gpu.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from kept_result import print_result

from nas_kd.config import validate
from nas_kd.preparation.teacher import prepare_teacher, teacher_loss
from nas_kd.search_spaces import ArchSpec, Supernet
from nas_kd.training.fit import fit
from nas_kd.trial import CampaignContext, Learner, build_context
from nas_kd.trial.shared import SharedSearch

RESULT = Path(__file__).parent / "results" / "gpu.json"
PRECISIONS = ("float32", "bfloat16")
OPS = ["conv2d_k3", "conv2plus1d_k3", "separable3d_k3_e1", "shift_k3", "identity", "zero"]
SETTINGS: dict[str, dict[str, Any]] = {
    "small": {
        "data": {"source": "generated"},
        "teacher": {"settings": {"widths": [12, 24, 48]}, "fit": {"epochs": 1}},
        "space": {
            "name": "clip_cell",
            "widths": [[8, 12], [16, 24], [24, 32]],
            "depths": [[1], [1, 2], [1, 2]],
            "ops": OPS,
            "resolution": [32],
        },
        "budget": {"max_flops": ["2M", "8M"]},
        "search": {"batch_size": 32, "gates": {"warmup": 0}, "finish": 0},
    },
    "large": {
        "data": {
            "source": "generated", "frames": 16, "size": 112, "num_train": 256, "num_val": 32, "num_test": 32,
        },
        "teacher": {
            "settings": {"widths": [64, 128, 256]}, "fit": {"epochs": 1, "batch_size": 32}, "cache": {"views": 1},
        },
        "space": {
            "name": "clip_cell",
            "stem_width": 24,
            "widths": [[24, 32], [48, 64], [96, 128]],
            "depths": [[1], [1, 2], [1, 2]],
            "ops": OPS,
            "resolution": [112],
            "frames": [16],
        },
        "budget": {"max_flops": ["1G", "4G"]},
        "search": {"batch_size": 32, "gates": {"warmup": 0}, "finish": 0},
        "retrain": {"batch_size": 32},
    },
}  # fmt: skip


class _EnoughError(Exception):
    """All steps were measured."""


class StepClock:
    """A `progress` of a training that times its steps, and ends it.

    Args:
        steps: that are timed.
        warmup: before them.
        profiled: after them, under the profiler.
        device: of the training.
    """

    def __init__(self, steps: int, device: torch.device, *, warmup: int = 10, profiled: int = 10) -> None:
        self._first, self._last, self._end = warmup, warmup + steps, warmup + steps + profiled
        self._steps, self._profiled, self._device = steps, profiled, device
        self._count, self._began = 0, time.perf_counter()
        activity = "CUDA" if device.type == "cuda" else "CPU"
        self._profiler = torch.profiler.profile(activities=[getattr(torch.profiler.ProfilerActivity, activity)])
        self.first_s = 0.0
        self.found: dict[str, float] = {}
        self.kernels: list[tuple[str, float]] = []

    def __call__(self, done: float, words: str) -> None:
        """A step was made."""
        self._count += 1
        if self._count == 1:
            self._wait()
            self.first_s = time.perf_counter() - self._began
        if self._count == self._first:
            self._wait()
            if self._device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            self._began = time.perf_counter()
        if self._count == self._last:
            self._wait()
            self.found["step_ms"] = round((time.perf_counter() - self._began) * 1e3 / self._steps, 3)
            if self._device.type == "cuda":
                self.found["memory_mb"] = round(torch.cuda.max_memory_reserved() / 1e6)
            self._profiler.start()
        if self._count == self._end:
            self._wait()
            self._profiler.stop()
            self._read()
            raise _EnoughError

    def _read(self) -> None:
        attribute = "self_device_time_total" if self._device.type == "cuda" else "self_cpu_time_total"
        averages = self._profiler.key_averages()
        times = {event.key: getattr(event, attribute) / 1e3 / self._profiled for event in averages}
        self.found["kernels_ms"] = round(sum(times.values()), 3)
        self.found["launches"] = round(sum(e.count for e in averages if times[e.key] > 0) / self._profiled)
        self.kernels = sorted(times.items(), key=lambda item: -item[1])[:12]

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()


def timed(train: Callable[..., Any], steps: int, device: torch.device) -> StepClock:
    """Time a training, called with a `progress`, that makes at least so many steps."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    clock = StepClock(steps, device)
    with contextlib.suppress(_EnoughError):
        train(progress=clock)
    return clock


def prepared(settings: dict[str, Any], device: torch.device, folder: str) -> CampaignContext:
    """Data, a teacher of one epoch, the cache of its outputs."""
    config = {**settings, "name": "gpu", "runs": folder}
    context = build_context(validate(config, source="benchmarks/gpu.py"), str(device))
    prepare_teacher(context, Path(folder))
    return context


def in_precision(context: CampaignContext, precision: str) -> CampaignContext:
    """The same, with trainings in a precision, so long that the clock ends them."""
    config, long = context.config, {"epochs": 1000, "precision": precision}
    teacher = config.teacher.model_copy(update={"fit": config.teacher.fit.model_copy(update=long)})
    search, retrain = (section.model_copy(update=long) for section in (config.search, config.retrain))
    return replace(context, config=config.model_copy(update={"teacher": teacher, "search": search, "retrain": retrain}))


def teacher_training(context: CampaignContext) -> Callable[..., Any]:
    """Of a fresh teacher."""
    fresh = replace(context, teacher_model=context.untrained_teacher().train().requires_grad_(True))
    config = context.config.teacher.fit
    loader = context.loader(context.splits.retrain, config, seed=0, train=True)
    loss = partial(teacher_loss, fresh)
    return partial(fit, fresh.teacher_model, loader, loss, lambda terms: terms["task"], config, seed=0)


@contextmanager
def student_training(context: CampaignContext, arch: ArchSpec, kind: str) -> Iterator[Callable[..., Any]]:
    """Of a student from fresh weights."""
    config, knobs = context.config, context.space.knobs_of(arch)
    objective = config.objective
    if kind == "plain":
        objective = type(objective).model_validate(
            {name: {"weight": 0.0} for name in {"response", "feature", *objective.active_terms}}
        )
    torch.manual_seed(0)
    student = context.space.student(arch).to(context.device).train()
    cached = kind not in ("plain", "online")
    with closing(Learner(
        context, student, objective, knobs, cached=cached, augment=config.retrain.augment,
        precision=config.retrain.precision, compiled=kind == "compiled",
    )) as learner:  # fmt: skip
        assert (learner.views is not None) == cached, f"the {kind} step must use what its name says"
        yield partial(learner.fit, context.splits.retrain, config.retrain, seed=0)


def measure(context: CampaignContext, steps: int, *, compiled: bool) -> dict[str, dict[str, Any]]:
    """Kind of step -> what was found."""
    rows: dict[str, dict[str, Any]] = {}

    def row(kind: str, training: Callable[..., Any]) -> None:
        clock = timed(training, steps, context.device)
        found: dict[str, Any] = dict(clock.found)
        if kind == "compiled":
            found["compile_s"] = round(clock.first_s, 1)
        rows[kind] = found
        print(f"  {kind:<24}" + "".join(f"{name} {value:g}  " for name, value in found.items()), flush=True)
        for name, kernel_ms in clock.kernels if kind in ("cached", "search") else []:
            print(f"      {kernel_ms:8.3f} ms  {name[:100]}", flush=True)

    budget = context.config.budget
    arch = Supernet(context.space, seed=0).arch(budget.cost(budget.highest))
    rows["student"] = {"flops": context.space.cost(arch)}
    print(f"  student of {context.space.cost(arch):,} FLOPs", flush=True)
    row("teacher", teacher_training(context))
    for kind in ("plain", "cached", "online", "cudnn.benchmark", *(["compiled"] if compiled else [])):
        torch.backends.cudnn.benchmark = kind == "cudnn.benchmark"
        try:
            with student_training(context, arch, kind) as training:
                row(kind, training)
        except Exception as error:  # what a compiler cannot do is a result, too
            if kind != "compiled":
                raise
            rows[kind] = {"refused": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
            print(f"  {kind:<24}{rows[kind]['refused']}", flush=True)
        torch.backends.cudnn.benchmark = False
    row("search", SharedSearch(context).train)
    rows["search"]["paths"] = context.config.search.paths
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--compile", choices=["no", *PRECISIONS], default="bfloat16", help="where nets are compiled too"
    )
    parser.add_argument("--keep", action="store_true", help=f"write {RESULT.name}")
    options = parser.parse_args()
    device = torch.device(options.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor()
    found: dict[str, Any] = {}
    for setting in options.settings:
        with tempfile.TemporaryDirectory() as folder:
            context = prepared(SETTINGS[setting], device, folder)
            for precision in PRECISIONS:
                print(f"{setting}, {precision}, {name}", flush=True)
                compiled = options.compile == precision
                found[f"{setting}, {precision}"] = measure(
                    in_precision(context, precision), options.steps, compiled=compiled
                )
    kept = {"gpu": name, "steps": options.steps, "settings": found}
    print_result("gpu", kept, threads=f"{torch.get_num_threads()} threads", keep=RESULT if options.keep else None)


if __name__ == "__main__":
    main()
