"""What a step of distillation costs where the teacher's outputs are cached: `python benchmarks/cache.py [--rounds N]`.

Three steps of one student on the same batches take turns: without distillation (plain), with the outputs of the teacher
from the cache (cached), and with the teacher itself (online), for clips, for single frames and for pairs of frames. A
step is all that a training does for a batch: reading it, both losses, backward, clipping, the optimizer. Each round
gives a ratio to its plain step; the table has their medians and quartiles. `reading` is the part of a cached step that
takes the outputs from the memory map. The last line is one JSON object, which `--keep` writes to
`benchmarks/results/cache.json`.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kept_result import print_result
from torch import nn

from nas_kd.config import validate
from nas_kd.data import Batch
from nas_kd.objectives import ObjectiveConfig
from nas_kd.preparation.teacher import prepare_teacher
from nas_kd.search_spaces import Choices, ModuleSpace, Supernet
from nas_kd.training.gate_search import cycle
from nas_kd.training.steps import WeightSteps, trained_parameters
from nas_kd.trial import CampaignContext, Learner, build_context

GOAL = 1.05  # a cached step, in plain steps
RESULT = Path(__file__).parent / "results" / "cache.json"
FRAMES = {
    "task": "segmentation",
    "data": {"source": "generated", "frames": 12, "size": 32, "num_train": 256, "num_val": 32, "num_test": 32},
    "teacher": {"model": "framenet", "settings": {"widths": [24, 48, 64]}, "fit": {"epochs": 1}},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "clips": {
        "data": {"source": "generated", "num_train": 512, "num_val": 32, "num_test": 32},
        "teacher": {"settings": {"widths": [12, 24, 48]}, "fit": {"epochs": 1}},
        "space": {
            "name": "clip_cell",
            "widths": [[8, 12], [16, 24], [24, 32]],
            "depths": [[1], [1, 2], [1, 2]],
            "ops": ["conv2d_k3", "conv2plus1d_k3", "separable3d_k3_e1", "shift_k3", "identity", "zero"],
            "resolution": [32],
        },
        "budget": {"max_flops": "5M"},
    },
    "frames": {
        **FRAMES,
        "space": {"name": "cache:frame_space", "width": 24},
        "budget": {"max_flops": "100M"},
        "objective": {"response": {"weight": 1}, "delta": {"weight": 0}},
    },
    "pairs of frames": {
        **FRAMES,
        "space": {"name": "delta_blocks", "keyframe_interval": [6]},
        "budget": {"max_flops": "3M"},
        "objective": {"response": {"weight": 1}, "delta": {"weight": 1}},
    },
}


class FrameStudent(nn.Module):
    """Frames (N, 3, H, W) -> maps (N, num_classes, H / 4, W / 4); one kernel is searched."""

    def __init__(self, choose: Choices, num_classes: int, width: int) -> None:
        super().__init__()
        kernel = choose.kernel("kernel", (3, 5))
        layers: list[nn.Module] = []
        c_in = 3
        for c_out, stride in ((width // 2, 2), (width, 2), (width, 1)):
            layers += [
                choose.layer(block, c_in, c_out, stride, kernel=3),
                choose.layer(block, c_out, c_out, 1, kernel=kernel),
            ]
            c_in = c_out
        self.layers = nn.Sequential(*layers)
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Maps of normalised frames."""
        return self.head(self.layers(frames))  # type: ignore[no-any-return]


def block(c_in: int, c_out: int, stride: int, *, kernel: int) -> nn.Module:
    """A convolution, BatchNorm, ReLU."""
    conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.ReLU())


def frame_space(num_classes: int, width: int) -> ModuleSpace:
    """The space, for `space.name`."""
    return ModuleSpace(lambda choose: FrameStudent(choose, num_classes, width), torch.zeros(1, 3, 32, 32), "frames")


def prepared(settings: dict[str, Any], augment: str, folder: str) -> CampaignContext:
    """Data, a teacher of one epoch, and the cache of its outputs."""
    training = {"augment": augment, "batch_size": 16}
    search: dict[str, Any] = {"augment": augment}
    if "objective" in settings:
        search["objective"] = settings["objective"]
    config = {**settings, "name": "cache", "runs": folder, "retrain": training, "search": search}
    context = build_context(validate(config, source="benchmarks/cache.py"), "cpu")
    notes: list[str] = []
    prepare_teacher(context, Path(folder), note=notes.append)
    assert augment in context.caches, f"nothing is cached: {notes}"
    return context


def without_distillation(config: ObjectiveConfig) -> ObjectiveConfig:
    """The same objective with the task's loss alone."""
    names = {"response", "feature", *config.active_terms}
    return ObjectiveConfig.model_validate({name: {"weight": 0.0} for name in names})


def step_of(learner: Learner, batches: Iterator[Batch]) -> Callable[[], None]:
    """One training step, as `nas_kd.training.fit.fit` makes it."""
    config = learner.context.config.retrain
    fast, slow, scale = trained_parameters(learner.net, learner.net.parameters(), learner.objective)
    steps = WeightSteps(config, fast, slow, scale, what="the benchmark")

    def step() -> None:
        terms = learner.loss(next(batches))
        steps.add(learner.objective.total(terms), terms)
        steps.take(0.5)

    return step


def measure(context: CampaignContext, rounds: int) -> dict[str, Any]:
    """Medians of the three steps in milliseconds, and the ratios to the plain step with their quartiles."""
    config = context.config
    supernet = Supernet(context.space, seed=0)
    arch = supernet.arch(config.budget.cost(config.budget.highest))
    knobs = context.space.knobs_of(arch)
    plain = without_distillation(config.objective)
    steps: dict[str, Callable[[], None]] = {}
    with ExitStack() as stack:
        for name, objective in (("plain", plain), ("cached", config.objective), ("online", config.objective)):
            torch.manual_seed(0)
            student = context.space.student(arch).train()
            learner = Learner(
                context, student, objective, knobs, cached=name == "cached", augment=config.retrain.augment
            )
            stack.enter_context(closing(learner))
            assert (learner.views is not None) == (name == "cached"), f"the {name} step must use what its name says"
            views = context.caches[config.retrain.augment].views
            batches = cycle(context.loader(context.splits.retrain, config.retrain, seed=0, train=True, views=views))
            steps[name] = step_of(learner, batches)
        seconds = interleaved(steps, rounds)
    result: dict[str, Any] = {"flops": context.space.cost(arch), "read_ms": reading_ms(context)}
    for name, values in seconds.items():
        result[f"{name}_ms"] = round(float(np.median(values)) * 1e3, 2)
        if name != "plain":
            low, middle, high = np.quantile(values / seconds["plain"], (0.25, 0.5, 0.75))
            result[f"{name}_ratio"] = {"median": round(middle, 3), "quartiles": [round(low, 3), round(high, 3)]}
    return result


def reading_ms(context: CampaignContext) -> float:
    """Processor milliseconds of reading the cached outputs of a batch alone, the median over an epoch."""
    config = context.config.retrain
    cache = context.caches[config.augment]
    loader = context.loader(context.splits.retrain, config, seed=0, train=True, views=cache.views)
    seconds = []
    for batch in loader.epoch(0):
        if context.input_type.positions > 1:
            batch = {**batch, "position": torch.zeros(len(batch["index"]), 1, dtype=torch.int64)}
        start = time.process_time()
        cache(batch)
        seconds.append(time.process_time() - start)
    return round(float(np.median(seconds)) * 1e3, 2)


def interleaved(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, np.ndarray[Any, Any]]:
    """Processor seconds of each step in each round; who is first changes from round to round."""
    names = list(steps)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    gc.disable()
    for number in range(-5, rounds):  # the first five warm up
        for shift in range(len(names)):
            name = names[(number + shift) % len(names)]
            start = time.process_time()
            steps[name]()
            if number >= 0:
                seconds[name].append(time.process_time() - start)
        if number % 20 == 0:
            gc.collect()
    gc.enable()
    return {name: np.array(values) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--keep", action="store_true", help=f"write {RESULT.name}")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'ms':<28}{'plain':>9}{'cached':>9}{'online':>9}{'reading':>9}{'cached / plain':>24}{'online / plain':>16}")
    results: dict[str, Any] = {}
    for name, settings in SETTINGS.items():
        for augment in ("none", "flip+crop"):
            with tempfile.TemporaryDirectory() as folder:
                row = measure(prepared(settings, augment, folder), options.rounds)
            cached, online = row["cached_ratio"], row["online_ratio"]
            spread = "{:.3f} … {:.3f}".format(*cached["quartiles"])
            times = "".join(f"{row[f'{kind}_ms']:>9.2f}" for kind in ("plain", "cached", "online", "read"))
            ratios = f"{cached['median']:>8.3f} ({spread}){online['median']:>12.2f}"
            print(f"{name + ', ' + augment:<28}{times}{ratios}", flush=True)
            results[f"{name}, {augment}"] = row
    found = {
        "rounds": options.rounds,
        "goal": GOAL,
        "met": all(row["cached_ratio"]["median"] <= GOAL for row in results.values()),
        "settings": results,
    }
    print_result("cache", found, threads="one thread", keep=RESULT if options.keep else None)


if __name__ == "__main__":
    main()
