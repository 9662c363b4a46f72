"""Delta distillation on a campaign's data: against plain feature distillation, and searched against one fixed student.

Two comparisons, each paired by seed with a Student-t interval over seeds:

- *objective*: one student, `split4` in every delta layer (the fixed γ = 4 student W_b of the paper), trained under no
  distillation, feature distillation, delta distillation for a third of the training, and for all of it;
- *search*: the student that a gate search finds at the FLOPs of that fixed student, trained like it.

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
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

OFF = {"feature": {"weight": 0}, "delta": {"weight": 0}}
OBJECTIVES = {
    "none": ObjectiveConfig.model_validate(OFF),
    "feature": ObjectiveConfig.model_validate({**OFF, "feature": {"weight": 1}}),
    "delta, first third": ObjectiveConfig.model_validate({**OFF, "delta": {"weight": 1}}),
    "delta, all along": ObjectiveConfig.model_validate({**OFF, "delta": {"weight": 1, "active_share": 1}}),
}
Scores = dict[str, dict[str, float]]


def fixed_student(context: CampaignContext, interval: int, candidate: str) -> ArchSpec:
    """The same candidate in every layer that can have it, and the cheapest linear one below its cost in the others."""
    choices = {
        name: candidate if candidate in values else next(v for v in values if str(v).startswith("pointwise"))
        for name, values in context.space.variables.items()
    }
    return context.space.arch({"keyframe_interval": interval, **choices})


def search(context: CampaignContext, config: CampaignConfig, interval: int, max_flops: int, seed: int) -> ArchSpec:
    """What a gate search finds for the budget."""
    torch.manual_seed(seed)
    supernet = Supernet(context.space, {"keyframe_interval": interval}, seed=seed).to(context.device)
    with closing(Learner(context, supernet, config.search.objective, supernet.knobs, cached=False)) as learner:
        learner.search(BudgetController(max_flops), config.search, seed=seed)
    return supernet.arch(max_flops)


def train(
    context: CampaignContext, config: CampaignConfig, arch: ArchSpec, objective: ObjectiveConfig, seed: int
) -> Scores:
    """Metrics of the student, trained from the weights that its candidates start with."""
    torch.manual_seed(seed)
    student = context.space.student(arch).to(context.device)
    knobs = context.space.knobs_of(arch)
    with closing(Learner(context, student, objective, knobs, cached=False)) as learner:
        learner.fit(context.splits.retrain, config.retrain, seed=seed)
    splits = {"val": context.splits.val, "test": context.splits.test}
    return {name: context.evaluate_student(student, split, knobs) for name, split in splits.items()}


def main() -> None:
    """Run the comparisons and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--campaign", type=Path, default=Path("examples/streams.yaml"))
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="dotted.path=value, repeatable")
    parser.add_argument("--run", type=Path, default=Path("runs/bench-delta"), help="folder that keeps the teacher")
    parser.add_argument("--interval", type=int, default=3, help="key-frame interval; one of the space's")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--fixed", default="split4", help="candidate of the fixed student")
    parser.add_argument("--only", nargs="*", choices=[*OBJECTIVES, "searched"], default=[*OBJECTIVES, "searched"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console = Console(width=140)
    config = load_config(options.campaign, options.overrides)
    options.run.mkdir(parents=True, exist_ok=True)
    known = prepare_teacher(build_context(config, options.device), options.run.resolve())
    context = load_context(config.model_dump_json(), options.run.resolve(), options.device)
    metric, began = context.task.metric, time.perf_counter()
    fixed = fixed_student(context, options.interval, options.fixed)
    flops = context.space.cost(fixed)
    console.print(f"teacher: {known['flops']:,} FLOPs a frame, test {metric} {known[f'test/{metric}']:.3f}")
    console.print(f"{options.fixed} everywhere, K = {options.interval}: {flops:,} FLOPs a frame, amortised")

    def told(name: str, seed: int, scores: Scores, arch: ArchSpec) -> Scores:
        cost, minutes = context.space.cost(arch), (time.perf_counter() - began) / 60
        values = ", ".join(f"{split} {values[metric]:.4f}" for split, values in scores.items())
        console.print(f"{name}, seed {seed}: {values}, {cost:,} FLOPs ({minutes:.1f} min)")
        return scores

    results: dict[str, list[Scores]] = {}
    for name in [n for n in OBJECTIVES if n in options.only]:
        results[name] = [
            told(name, seed, train(context, config, fixed, OBJECTIVES[name], seed), fixed)
            for seed in range(options.seeds)
        ]
    if "searched" in options.only:
        results["searched"] = []
        for seed in range(options.seeds):
            arch = search(context, config, options.interval, flops, seed)
            scores = train(context, config, arch, OBJECTIVES["delta, all along"], seed)
            results["searched"].append(told("searched", seed, scores, arch))

    last = f"{metric}@{options.interval - 1}"
    table = Table("student", *(f"{split} {name}" for split in ("val", "test") for name in (metric, last)), "seeds")
    figures: dict[str, object] = {}
    for name, runs in results.items():
        cells = []
        for split in ("val", "test"):
            for key in (metric, last):
                mean = estimate_mean([run[split][key] for run in runs])
                half = None if mean.low is None or mean.high is None else (mean.high - mean.low) / 2
                cells.append(f"{mean.mean:.4f}" + ("" if half is None else f" ± {half:.4f}"))
        table.add_row(name, *cells, str(len(runs)))
        figures[name] = {split: [run[split] for run in runs] for split in ("val", "test")}
    console.print(table)
    gains: dict[str, dict[str, float | None]] = {}
    for name, baseline in (("delta, first third", "feature"), ("delta, all along", "feature"),
                         ("searched", "delta, all along")):  # fmt: skip
        if name in results and baseline in results:
            for split in ("val", "test"):
                gain = paired_difference(*([run[split][last] for run in results[arm]] for arm in (name, baseline)))
                gains[f"{name} − {baseline}, {split} {last}"] = {"mean": gain.mean, "low": gain.low, "high": gain.high}
                span = "" if gain.low is None else f" ({gain.low:+.4f} … {gain.high:+.4f})"
                console.print(f"{name} − {baseline}, {split} {last}: {gain.mean:+.4f}{span}")
    print(json.dumps({"device": options.device, "flops": flops, "teacher": known, "runs": figures, "gains": gains}))


if __name__ == "__main__":
    main()
