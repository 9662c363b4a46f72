"""With distillation against without: same student, same budget, same epochs, several seeds, on the generated set.

One gate search (with distillation) finds the student for the budget. It is then trained from fresh weights under each
objective and seed; the difference is paired by seed, with a Student-t interval. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from contextlib import closing
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from nas_kd.analysis import estimate_mean, paired_difference
from nas_kd.config import CampaignConfig, load_config
from nas_kd.objectives import ObjectiveConfig
from nas_kd.preparation.teacher import prepare_teacher
from nas_kd.search_spaces import ArchSpec, Supernet
from nas_kd.training.budget import BudgetController
from nas_kd.trial import CampaignContext, Learner, build_context, load_context

OBJECTIVES = {
    "none": ObjectiveConfig.model_validate({"response": {"weight": 0}, "feature": {"weight": 0}}),
    "response": ObjectiveConfig.model_validate({"feature": {"weight": 0}}),
    "feature": ObjectiveConfig.model_validate({"response": {"weight": 0}}),
    "response + feature": ObjectiveConfig(),
    "cross_resolution": ObjectiveConfig.model_validate(
        {"response": {"weight": 0}, "feature": {"weight": 0}, "cross_resolution": {"weight": 100}}
    ),
}


def find_student(context: CampaignContext, config: CampaignConfig, max_flops: int) -> ArchSpec:
    """The architecture that a gate search finds for the budget."""
    torch.manual_seed(config.seed)
    supernet = Supernet(context.space, seed=config.seed).to(context.device)
    with supernet.pinned(context.space.widest(supernet.knobs)):
        learner = Learner(
            context,
            supernet,
            config.search.objective,
            supernet.knobs,
            cached=True,
            augment=config.search.augment,
            varying=True,
        )
    with closing(learner):
        learner.search(BudgetController(max_flops), config.search, seed=config.seed)
    return supernet.arch(max_flops)


def train(
    context: CampaignContext, config: CampaignConfig, arch: ArchSpec, objective: ObjectiveConfig, seed: int
) -> float:
    """Test accuracy of the student trained from fresh weights."""
    torch.manual_seed(seed)
    student = context.space.student(arch).to(context.device)
    knobs = context.space.knobs_of(arch)
    with closing(Learner(context, student, objective, knobs, cached=True, augment=config.retrain.augment)) as learner:
        learner.fit(context.splits.retrain, config.retrain, seed=seed)
    return context.evaluate_student(student, context.splits.test, knobs)["accuracy"]


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--campaign", type=Path, default=Path("examples/demo.yaml"))
    parser.add_argument("--max-flops", type=int, default=3_000_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="more only help where nothing else runs")
    parser.add_argument("--only", nargs="*", choices=list(OBJECTIVES), default=list(OBJECTIVES))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console = Console()
    config = load_config(
        options.campaign, [f"retrain.epochs={options.epochs}", "objective.cross_resolution.weight=1.0"]
    )
    config = config.model_copy(update={"objective": ObjectiveConfig()})
    with tempfile.TemporaryDirectory() as folder:
        known = prepare_teacher(build_context(config, options.device), Path(folder))
        context = load_context(config.model_dump_json(), Path(folder), options.device)
        arch = find_student(context, config, options.max_flops)
        console.print(f"teacher: test accuracy {known['test/accuracy']:.3f} at {known['flops']:,} FLOPs")
        console.print(f"student {arch.arch_id}: {context.space.cost(arch):,} FLOPs, {options.epochs} epochs")
        results: dict[str, list[float]] = {}
        for name in dict.fromkeys(["none", *options.only]):
            results[name] = [train(context, config, arch, OBJECTIVES[name], seed) for seed in range(options.seeds)]
            console.print(f"{name}: {', '.join(f'{value:.3f}' for value in results[name])}")
    table = Table("objective", "test accuracy", "± 95 %", "gain over none", "95 % interval", "seeds")
    figures = {}
    for name, values in results.items():
        mean, gain = estimate_mean(values), paired_difference(values, results["none"])
        half = None if mean.low is None or mean.high is None else (mean.high - mean.low) / 2
        span = "" if gain.low is None or name == "none" else f"{gain.low:+.3f} … {gain.high:+.3f}"
        table.add_row(
            name, f"{mean.mean:.3f}", "" if half is None else f"{half:.3f}", f"{gain.mean:+.3f}", span, str(len(values))
        )
        figures[name] = {"accuracy": values, "gain": gain.mean, "gain_low": gain.low, "gain_high": gain.high}
    console.print(table)
    print(json.dumps({"device": options.device, "arch_id": arch.arch_id, "flops": context.space.cost(arch), **figures}))


if __name__ == "__main__":
    main()
