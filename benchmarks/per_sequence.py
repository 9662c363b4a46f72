"""Compare the streaming students on a campaign's front with their teacher, sequence by sequence, on the test split.

A test split of a few sequences says little, however many frames they have. Here each sequence is one observation: the
difference to the teacher is paired by sequence, with a Student-t interval over sequences. The students were chosen on
the validation split. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from nas_kd.analysis import paired_difference
from nas_kd.data import ClipDataset, Subset
from nas_kd.data.sequence_items import WindowDataset
from nas_kd.deploy.bundle import load_bundle
from nas_kd.runs import load_run
from nas_kd.trial import load_context


def by_sequence(dataset: ClipDataset) -> dict[str, Subset]:
    """The windows of each sequence."""
    if not isinstance(dataset, WindowDataset):
        raise SystemExit("this comparison needs real windows: data.source sequences, no camera in the split")
    positions = defaultdict(list)
    for index, start in enumerate(dataset.starts):
        positions[dataset.store.frames[start].sequence].append(index)
    return {name: Subset(dataset, indices) for name, indices in positions.items()}


def main() -> None:
    """Evaluate and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("--trials", type=int, nargs="*", help="instead of the front's")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    run = load_run(options.run)
    context = load_context(run.config.model_dump_json(), options.run.resolve(), options.device)
    parts = by_sequence(getattr(context.splits, options.split))
    metrics = (context.task.metric, "temporal_consistency", "label_stability")
    teacher = {name: context.evaluate_teacher(part) for name, part in parts.items()}
    known = json.loads((options.run / "teacher" / "teacher.json").read_text())
    chosen = options.trials if options.trials is not None else sorted(run.pareto.numbers)
    table = Table("trial", "K", "teacher / FLOPs", *(f"{m}, difference (95 %)" for m in metrics), *parts)
    figures = {}
    for number in chosen:
        student, info = load_bundle(options.run / "trials" / f"{number:04d}", context.space)
        knobs = {"keyframe_interval": int(info.arch["choices"]["keyframe_interval"])}
        scores = {name: context.evaluate_student(student, part, knobs) for name, part in parts.items()}
        gains = {
            m: paired_difference([s[m] for s in scores.values()], [t[m] for t in teacher.values()]) for m in metrics
        }
        table.add_row(
            str(number),
            str(knobs["keyframe_interval"]),
            f"{known['flops'] / info.flops:.2f}×",
            *(f"{g.mean:+.4f} ({g.low:+.4f} … {g.high:+.4f})" for g in gains.values()),
            *(f"{scores[name][metrics[0]]:.3f} ({teacher[name][metrics[0]]:.3f})" for name in parts),
        )
        figures[number] = {m: {"mean": g.mean, "low": g.low, "high": g.high} for m, g in gains.items()}
    Console(width=200).print(table)
    print(json.dumps({"split": options.split, "sequences": list(parts), "teacher": teacher, "differences": figures}))


if __name__ == "__main__":
    main()
