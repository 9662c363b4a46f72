"""The mismatch study of ResKD (Ma et al., NeurIPS 2022, arXiv 2209.12797): why do low-resolution clips cost accuracy?

The paper's claim: mainly because net and input scale mismatch, not because information is lost, and a high-resolution
teacher makes up for it. The arms, one student architecture throughout, all at the same epochs and seeds:

    teacher      the teacher at high resolution
    high         the student at high resolution
    low          the student at low resolution
    low + KD     the same with cross-resolution distillation, weight 100
    resampled    the student at high resolution, trained and tested on clips that went high → low → high
    high + KD    a control: what distillation gains without any mismatch

There is one resize path: the loader yields one crop; low resolution is that normalised crop, resampled bilinearly, and
`resampled` is that, resampled back. `resampled` has no more information than `low`, but the scale of `high`. The claim
predicts resampled ≫ low, and low + KD → resampled. Whether it held is decided by `sentence`, from 95 % intervals.

    python examples/mismatch.py --seeds 5 --epochs 12 --out runs/mismatch
    python examples/mismatch.py --data FOLDER_WITH_LABELS_CSV --high 64 --low 16 --set retrain.batch_size=8

The same command goes on where it was stopped; more seeds may be asked for later.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
import yaml
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor, nn

from nas_kd.analysis import Estimate, estimate_mean, paired_difference
from nas_kd.config import CampaignConfig, set_path, validate
from nas_kd.files import write_text_atomically
from nas_kd.objectives import ObjectiveConfig
from nas_kd.objectives.maps import resample
from nas_kd.preparation.teacher import prepare_teacher
from nas_kd.search_spaces import ArchSpec
from nas_kd.trial import CampaignContext, Learner, build_context, load_context

WIDTHS, DEPTHS = (12, 24, 48), (1, 1, 1)
EDGE_OPS = {"0_1": "separable3d_k3_e1", "0_2": "zero", "1_2": "conv2d_k3"}
"""The student, declared and not searched. Its last map has the teacher's channels, so no adapter is needed."""

NO_KD = ObjectiveConfig.model_validate({"feature": {"weight": 0}})
KD = ObjectiveConfig.model_validate({"feature": {"weight": 0}, "cross_resolution": {"weight": 100}})


@dataclass(frozen=True)
class Arm:
    """A student that is trained: what it sees, and under which objective."""

    label: str
    sees: Literal["high", "low", "resampled"]
    objective: ObjectiveConfig = NO_KD


ARMS = {
    "high": Arm("student, high", "high"),
    "low": Arm("student, low", "low"),
    "low_kd": Arm("student, low + KD", "low", KD),
    "resampled": Arm("student, high → low → high", "resampled"),
    "high_kd": Arm("student, high + KD (control)", "high", KD),
}
TEACHER = "teacher"
TEACHER_COST = 2.0  # of a teacher, in trainings of the student at high resolution; roughly, for the remaining time
DIFFERENCES = {
    "mismatch": ("resampled", "low", "the mismatch: resampled − low"),
    "gain": ("low_kd", "low", "the gain: low + KD − low"),
    "left": ("resampled", "low_kd", "what is left: resampled − (low + KD)"),
    "loss": ("high", "resampled", "information loss: high − resampled"),
    "control": ("high_kd", "high", "the control: high + KD − high"),
}
CAUTION = "Intervals: Student's t over seeds, which vary weights and order; the clips are the same throughout."
Scores = Mapping[str, Sequence[float]]
"""Arm -> test accuracy by seed."""


class Resampled(nn.Module):
    """A net that sees its input enlarged bilinearly, frame by frame."""

    def __init__(self, net: nn.Module, side: int) -> None:
        super().__init__()
        self.net, self.side = net, side

    def forward(self, clip: Tensor) -> Tensor:
        """(N, 3, T, h, w) -> what the net gives for (N, 3, T, side, side)."""
        return cast(Tensor, self.net(resample(clip, (self.side, self.side))))


def campaign(options: argparse.Namespace) -> CampaignConfig:
    """The campaign file that the study's trainings share; `--set` goes over everything."""
    generated = options.data == "generated"
    where = {"source": "generated"} if generated else {"source": "folder", "root": options.data}
    content: dict[str, Any] = {
        "name": "mismatch",
        "data": {**where, "frames": options.frames, "size": options.high},
        "teacher": {
            "settings": {"widths": [16, 32, WIDTHS[-1]], "blocks": [1, 1, 1]},
            "fit": {"epochs": options.epochs},
        },
        "space": {
            "name": "clip_cell",
            "widths": [[width] for width in WIDTHS],
            "depths": [[depth] for depth in DEPTHS],
            "ops": sorted(set(EDGE_OPS.values())),
            "resolution": [options.low, options.high],
            "frames": [options.frames],
        },
        "objective": KD.model_dump(mode="json"),
        "search": {"objective": KD.model_dump(mode="json")},
        "retrain": {"epochs": options.epochs, "init": "fresh"},
    }
    for override in options.set:
        path, equals, text = override.partition("=")
        if not equals:
            raise ValueError(f"--set takes dotted.path=value, but got {override!r}")
        set_path(content, path, yaml.safe_load(text))
    return validate(content, source="mismatch")


def student_spec(context: CampaignContext, side: int) -> ArchSpec:
    """The study's architecture at a resolution."""
    choices = {name: values[-1] for name, values in context.space.variables.items()}
    choices |= {name: EDGE_OPS[name.rpartition(".")[2]] for name in choices if ".edges." in name}
    knobs = {"resolution": side, "frames": context.splits.info.frames}
    return context.space.arch({**choices, **knobs})


def train(
    context: CampaignContext,
    arm: Arm,
    low: int,
    high: int,
    seed: int,
    folder: Path,
    progress: Callable[[float, str], None],
) -> float:
    """Test accuracy of an arm's student, trained from fresh weights that all arms of the seed share."""
    arch = student_spec(context, high if arm.sees == "high" else low)
    knobs = {name: arch.choices[name] for name in context.space.knobs}
    torch.manual_seed(seed)
    student = context.space.student(arch)
    if arm.sees == "resampled":
        student = Resampled(student, high)
    student = student.to(context.device)
    checkpoint = folder / "checkpoint.pt"
    with closing(
        Learner(context, student, arm.objective, knobs, cached=True, augment=context.config.retrain.augment)
    ) as learner:
        learner.fit(
            context.splits.retrain,
            context.config.retrain,
            seed=seed,
            checkpoint=checkpoint,
            tag=f"{arm.label}, seed {seed}",
            progress=progress,
        )
    score = context.evaluate_student(student, context.splits.test, knobs)["accuracy"]
    checkpoint.unlink(missing_ok=True)
    return score


def claim_file(out: Path, identity: Mapping[str, Any]) -> None:
    """Keep what the folder's results are results of.

    Raises:
        ValueError: the folder holds the results of another study.
    """
    path, text = out / "study.json", json.dumps(identity, indent=2, sort_keys=True) + "\n"
    if path.is_file() and path.read_text() != text:
        raise ValueError(f"{out} holds the results of other settings, see {path.name}; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_text_atomically(path, text)


def result_path(out: Path, arm: str, seed: int) -> Path:
    """Where the result of an arm and a seed is kept."""
    return out / "results" / f"{arm}-seed{seed}.json"


def run(options: argparse.Namespace, console: Console) -> dict[str, list[float]]:
    """Train whatever has no result yet; returns the test accuracies of all arms by seed."""
    config, out = campaign(options), options.out
    identity = {"config": config.model_dump(mode="json", exclude={"seed", "runs"}), "teachers": options.teachers}
    claim_file(out, {**identity, "low": options.low, "high": options.high, "edge_ops": EDGE_OPS})
    arms = {name: arm for name, arm in ARMS.items() if options.control or name != "high_kd"}
    missing = {
        seed: [name for name in arms if not result_path(out, name, seed).is_file()] for seed in range(options.seeds)
    }
    area = (options.low / options.high) ** 2
    costs = {name: area if arm.sees == "low" else 1.0 for name, arm in arms.items()}
    teacher_seeds = range(options.seeds) if options.teachers == "per-seed" else range(1)
    untaught = [seed for seed in teacher_seeds if not result_path(out, TEACHER, seed).is_file()]
    total = sum(costs[name] for names in missing.values() for name in names) + TEACHER_COST * len(untaught)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("to go"))
    shown = Progress(*columns, TimeRemainingColumn(), console=console, speed_estimate_period=600, disable=total == 0)
    with shown as bar:
        task, done = bar.add_task("mismatch study", total=total), 0.0

        def told(of: str, cost: float) -> Callable[[float, str], None]:
            before = done
            return lambda share, words: bar.update(task, completed=before + cost * share, description=f"{of}: {words}")

        def keep(arm: str, seed: int, accuracy: float, began: float, **more: Any) -> None:
            result = {"arm": arm, "seed": seed, "accuracy": accuracy, "seconds": time.monotonic() - began, **more}
            path = result_path(out, arm, seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text_atomically(path, json.dumps(result) + "\n")

        for seed, names in missing.items():
            taught = seed if options.teachers == "per-seed" else 0
            if not names and taught not in untaught:
                continue
            own, folder = config.model_copy(update={"seed": taught}), out / "work" / f"teacher-seed{taught}"
            began, fresh = time.monotonic(), taught in untaught
            known = prepare_teacher(
                build_context(own, options.device), folder, told(f"seed {taught}", TEACHER_COST * fresh)
            )
            if fresh:
                keep(TEACHER, taught, float(known["test/accuracy"]), began, flops=known["flops"])
                untaught.remove(taught)
                done += TEACHER_COST
            context = load_context(own.model_dump_json(), folder, options.device)
            for name in names:
                began, words = time.monotonic(), told(f"seed {seed}, {arms[name].label}", costs[name])
                score = train(context, arms[name], options.low, options.high, seed, out / "work", words)
                side = options.low if arms[name].sees == "low" else options.high
                keep(name, seed, score, began, flops=context.space.cost(student_spec(context, side)))
                done += costs[name]
                console.print(f"seed {seed}, {arms[name].label}: {score:.3f}", highlight=False)
    scores = {TEACHER: [read(out, TEACHER, seed)["accuracy"] for seed in teacher_seeds]}
    return scores | {name: [read(out, name, seed)["accuracy"] for seed in range(options.seeds)] for name in arms}


def read(out: Path, arm: str, seed: int) -> dict[str, Any]:
    """The kept result of an arm and a seed."""
    return cast(dict[str, Any], json.loads(result_path(out, arm, seed).read_text()))


def differences(scores: Scores) -> dict[str, Estimate]:
    """The paired differences of `DIFFERENCES`, as far as their arms were trained."""
    return {
        name: paired_difference(scores[first], scores[second])
        for name, (first, second, _) in DIFFERENCES.items()
        if first in scores and second in scores
    }


Standing = Literal["held", "failed", "open"]


def standing(start: Sequence[float], middle: Sequence[float], end: Sequence[float]) -> Standing:
    """Whether `middle` lies above `start`, and nearer to `end`, by 95 % t-intervals over paired seeds.

    Held where the whole interval of middle − start lies above 0 and so does that of (middle − start) − (end − middle);
    failed where either lies at or below 0; open otherwise, and with a single seed.
    """
    step = paired_difference(middle, start)
    steps = [m - s for m, s in zip(middle, start, strict=True)]
    rest = [e - m for e, m in zip(end, middle, strict=True)]
    beyond_half = paired_difference(steps, rest)
    if step.interval is None or beyond_half.interval is None:
        return "open"
    if step.interval[0] > 0 and beyond_half.interval[0] > 0:
        return "held"
    return "failed" if step.interval[1] <= 0 or beyond_half.interval[1] <= 0 else "open"


def standings(scores: Scores) -> tuple[Standing, Standing]:
    """Of both parts of the claim.

    Mismatch and not information: resampled lies above low, more than half of the way to high. Distillation makes up for
    it: low + KD lies above low, more than half of the way to resampled; this cannot hold where there was no mismatch.
    """
    first = standing(scores["low"], scores["resampled"], scores["high"])
    second = standing(scores["low"], scores["low_kd"], scores["resampled"])
    mismatch = paired_difference(scores["resampled"], scores["low"]).interval
    if second == "held" and (mismatch is None or mismatch[0] <= 0):
        second = "open"
    return first, second


def sentence(scores: Scores) -> str:
    """Whether the claim held, in one sentence, by the rule of `standings`."""
    first, second = standings(scores)
    words = {"held": "held", "failed": "failed", "open": "is open"}
    if first == second:
        whole = {"held": "held", "failed": "did not hold", "open": "is not settled"}[first]
    else:
        whole = "held in part" if "held" in (first, second) else "did not hold"
    found = differences(scores)
    num_seeds = len(scores["low"])
    return (
        f"The claim {whole} here ({num_seeds} {'seed' if num_seeds == 1 else 'seeds'}): that resampled ≫ low without "
        f"KD {words[first]} (resampled − low {span(found['mismatch'])}, high − resampled {span(found['loss'])}), and "
        f"that low with KD → resampled {words[second]} (gain {span(found['gain'])}, left {span(found['left'])})."
    )


def span(value: Estimate) -> str:
    """A difference with its interval."""
    interval = "no interval" if value.interval is None else f"{value.interval[0]:+.3f} … {value.interval[1]:+.3f}"
    return f"{value.mean:+.3f} ({interval})"


def rows(scores: Scores) -> list[tuple[str, str, str, str]]:
    """(arm, accuracies by seed, mean, 95 % interval)."""
    labels = {TEACHER: "teacher, high", **{name: arm.label for name, arm in ARMS.items()}}
    table = []
    for name, values in scores.items():
        mean = estimate_mean(values)
        interval = "" if mean.interval is None else f"{mean.interval[0]:.3f} … {mean.interval[1]:.3f}"
        table.append((labels[name], ", ".join(f"{v:.3f}" for v in values), f"{mean.mean:.3f}", interval))
    return table


def report(scores: Scores, out: Path, console: Console) -> None:
    """Print tables and the sentence, and write results.md, results.csv and results.json."""
    found = differences(scores)
    arms = Table("arm", "test accuracy by seed", "mean", "95 % interval")
    pairs = Table("paired difference", "mean and 95 % interval", "seeds")
    lines = ["| arm | test accuracy by seed | mean | 95 % interval |", "|---|---|---|---|"]
    for row in rows(scores):
        arms.add_row(*row)
        lines.append(f"| {' | '.join(row)} |")
    lines += ["", "| paired difference | mean and 95 % interval |", "|---|---|"]
    for name, value in found.items():
        pairs.add_row(DIFFERENCES[name][2], span(value), str(value.num_values))
        lines.append(f"| {DIFFERENCES[name][2]} | {span(value)} |")
    verdict = sentence(scores)
    console.print(arms, pairs)
    console.print(f"{CAUTION}\n{verdict}", highlight=False)
    write_text_atomically(out / "results.md", "\n".join([*lines, "", CAUTION, "", verdict, ""]))
    listed = [f"{arm},{seed},{value!r}" for arm, values in scores.items() for seed, value in enumerate(values)]
    write_text_atomically(out / "results.csv", "\n".join(["arm,seed,test_accuracy", *listed, ""]))
    content = {
        "scores": {name: list(values) for name, values in scores.items()},
        "means": {name: as_json(estimate_mean(values)) for name, values in scores.items()},
        "differences": {name: as_json(value) for name, value in found.items()},
        "standings": dict(zip(("mismatch", "distillation"), standings(scores), strict=True)),
        "sentence": verdict,
    }
    write_text_atomically(out / "results.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def as_json(value: Estimate) -> dict[str, float | int | None]:
    """An estimate as JSON."""
    return {"mean": value.mean, "low": value.low, "high": value.high, "num_values": value.num_values}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing of the study, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="generated", help="generated, or a folder with labels.csv (docs/data.md)")
    parser.add_argument("--high", type=int, default=32, help="side of the clips, in pixels")
    parser.add_argument("--low", type=int, default=16, help="side at low resolution")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12, help="of every training, the teacher's included")
    parser.add_argument(
        "--teachers", choices=["per-seed", "once"], default="per-seed", help="once: cheaper, but one draw"
    )
    parser.add_argument("--no-control", dest="control", action="store_false", help="leave out high + KD")
    parser.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="any key of the campaign (docs/campaign.md)"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/mismatch"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    if not 1 <= options.low < options.high:
        parser.error(f"--low must be at least 1 and below --high, but they are {options.low} and {options.high}")
    if options.seeds < 1:
        parser.error(f"--seeds must be at least 1, but is {options.seeds}")
    torch.set_num_threads(options.threads)
    console = Console()
    try:
        scores = run(options, console)
    except ValueError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        console.print(f"stopped; what is done is kept in {options.out}, and the same command goes on")
        sys.exit(130)
    report(scores, options.out, console)


if __name__ == "__main__":
    main()
