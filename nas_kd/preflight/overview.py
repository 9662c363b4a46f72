"""What a campaign file means, before anything is decoded or trained: data, classes, teacher, students, taps, memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import torch
from torch import Tensor, nn

from nas_kd.config import CampaignConfig
from nas_kd.data.sample import clip_bytes
from nas_kd.objectives import DistillationLoss
from nas_kd.preflight.checks import check_nets, grid_cells
from nas_kd.preflight.file_checks import check_file
from nas_kd.preparation.nets import TrialNets, build_nets, build_objective
from nas_kd.preparation.output_checks import describe_classes
from nas_kd.preparation.pairs import describe_left_out_layers
from nas_kd.preparation.proposals import proposals
from nas_kd.preparation.ranking import check_costs, describe_ranking
from nas_kd.preparation.study import study_knobs
from nas_kd.preparation.teacher_outputs import bytes_on_disk
from nas_kd.search_spaces import count_params
from nas_kd.search_spaces.arch import Choice
from nas_kd.search_spaces.knapsack import cost_range
from nas_kd.settings.sizes import bytes_text
from nas_kd.teachers import is_precomputed
from nas_kd.training.measure import step_bytes
from nas_kd.training.settings import FitConfig
from nas_kd.trial import CampaignContext, build_context

ALL_KNOBS = 64  # combinations of knobs whose costs are counted; of more, each value is with the first of the others
NAMED_PAIRS = 8
SAVING = 1.5  # students that cannot be cheaper by more than this are remarked upon


def overview(config: CampaignConfig) -> list[str]:
    """Lines about a campaign that could be started.

    Decodes no file, trains nothing and writes nothing.

    Args:
        config: of the campaign.

    Raises:
        ConfigError, ValueError: the campaign cannot work; what `nas-kd search` would say too.
    """
    check_file(config)
    context = build_context(config, "cpu", decode=False)
    notes = check_nets(config, context)
    study_knobs(context)  # what they check are ranges and choices
    grid_cells(config, context.space.knobs)
    check_costs(context)
    lines = [_splits(context), *_stored(context), *context.splits.remarks]
    if context.splits.skipped:
        lines.append(f"{len(context.splits.skipped)} rows of the data are left out")
    if not (config.data.decodes and context.task.hints_read):
        lines += context.task.hints(context.splits)
    if context.task.class_names:
        lines.append(describe_classes(context.task.class_names))
    flops, uncounted = _teacher_flops(context)
    lines += [*notes, _teacher(context, flops, uncounted), *_costs(context, flops if not uncounted else None)]
    lines += describe_left_out_layers(context.space.left_out)
    nets = build_nets(context, proposals(config, context.space)[0].knobs[-1])
    lines.append(describe_ranking(config))
    return [*lines, *_taps(context, nets), *describe_disk(context), *_memory(context, nets)]


def describe_disk(context: CampaignContext) -> list[str]:
    """What the caches take: decoded files, and the teacher's outputs."""
    config, parts = context.config, []
    if decoded := config.data.decoded_bytes(context.splits):
        parts.append(f"decoded files {bytes_text(decoded)}")
    if outputs := sum(bytes_on_disk(context).values()):
        most = config.teacher.cache.max_bytes
        limit = f", more than teacher.cache.max_bytes {bytes_text(most)}, so not all are kept" if outputs > most else ""
        parts.append(f"the teacher's outputs {bytes_text(outputs)}{limit}")
    return [f"caches on disk, at most: {', '.join(parts)}"] if parts else []


def _splits(context: CampaignContext) -> str:
    splits = context.splits
    parts = [f"train {len(splits.retrain)} (weights {len(splits.weights)}, gates {len(splits.gates)})"]
    for name in ("val", "test"):
        groups = splits.groups.get(name)
        of = f" of {len(set(groups))} groups" if groups else ""
        parts.append(f"{name} {len(getattr(splits, name))}{of}")
    return f"data: {splits.info.name}, {', '.join(parts)}"


def _stored(context: CampaignContext) -> list[str]:
    """What clips take, where more of them is stored than nets see."""
    splits = context.splits
    if splits.info.seen == splits.info.stored:
        return []
    if not splits.info.height:
        return [f"items: {splits.info.stored[0]} frames are kept, of which nets see {splits.info.frames}"]
    (frames, height, width), (seen_frames, seen_height, seen_width) = splits.info.stored, splits.info.seen
    size, number = clip_bytes(splits.info), len(splits.retrain) + len(splits.val) + len(splits.test)
    return [
        f"clips: {frames} frames of {height} × {width} pixels are stored, of which nets see {seen_frames} of "
        f"{seen_height} × {seen_width}; {size / 1e6:.3g} MB a clip, {size * number / 1e9:.3g} GB in all"
    ]


def _teacher_flops(context: CampaignContext) -> tuple[int | None, tuple[str, ...]]:
    """FLOPs of the teacher's net, where it has one, and what they miss."""
    model = context.teacher_model
    if is_precomputed(model):
        return None, ()
    return context.input_type.teacher_flops(model, context.teacher_example(), context.space)


def _teacher(context: CampaignContext, flops: int | None, uncounted: Sequence[str]) -> str:
    config, model = context.config.teacher, context.teacher_model
    if flops is None:
        return f"teacher: {config.model}, whose answers come with the data"
    least = "at least " if uncounted else ""
    origins = [f"weights of {config.weights}"] if config.weights else []
    origins.append(f"trained for {config.fit.epochs} epochs" if config.trains else "taken as it is")
    origin = ", ".join(origins)
    missing = f" (uncounted: {', '.join(uncounted)})" if uncounted else ""
    return (
        f"teacher: {config.model}, {count_params(model):,} parameters, {least}{flops:,} FLOPs a "
        f"{context.input_type.unit}{missing}, {origin}"
    )


def _costs(context: CampaignContext, of_teacher: int | None) -> list[str]:
    """The cheapest and the most expensive student at each value of each knob, in FLOPs.

    Args:
        context: of the campaign.
        of_teacher: its FLOPs; None where they are not known.
    """
    space, unit = context.space, context.input_type.unit
    ranges = {tuple(knobs.values()): cost_range(space.cost_table(knobs)) for knobs in _knobs(space.knobs)}
    low, high = min(low for low, _ in ranges.values()), max(high for _, high in ranges.values())
    lines = [f"students: {low:,} to {high:,} FLOPs a {unit}"]
    for place, (name, values) in enumerate(space.knobs.items()):
        if len(values) < 2:
            continue
        for value in values:
            mine = [costs for key, costs in ranges.items() if key[place] == value]
            lines.append(
                f"  {name} {value}: cheapest {min(costs[0] for costs in mine):,}, most expensive "
                f"{max(costs[1] for costs in mine):,}"
            )
    budget = context.config.budget
    if not budget.is_latency:
        lines.append(f"budgets: {budget.lowest:,.0f} to {budget.highest:,.0f} FLOPs a {unit}")
        if of_teacher is not None and budget.highest > of_teacher:
            lines.append(
                f"budget.{budget.knob}: {budget.highest:,.0f} is more than the {of_teacher:,} FLOPs of the teacher, so "
                "students may cost more than it; lower it unless that is meant"
            )
        if budget.lowest >= high:
            lines.append(f"the lowest budget allows every student; lower budget.{budget.knob} to below {high:,}")
    if of_teacher is not None and low * SAVING > of_teacher:
        lines.append(
            f"the cheapest student has {of_teacher / max(low, 1):.2f} times fewer FLOPs than the teacher"
            if low < of_teacher
            else "no student has fewer FLOPs than the teacher"
        )
    return lines


def _knobs(knobs: Mapping[str, tuple[Choice, ...]]) -> list[dict[str, Choice]]:
    number = 1
    for values in knobs.values():
        number *= len(values)
    if number <= ALL_KNOBS:
        return [dict(zip(knobs, values, strict=True)) for values in product(*knobs.values())]
    first = {name: values[0] for name, values in knobs.items()}
    return [{**first, name: value} for name, values in knobs.items() for value in values]


def _taps(context: CampaignContext, nets: TrialNets) -> list[str]:
    """What is distilled: the modules of both nets."""
    config = context.config
    lines = []
    for section, objective, net in (
        ("search.objective", config.search.objective, nets.supernet),
        ("objective", config.objective, nets.students[0]),
    ):
        built = build_objective(context, objective, nets, net)
        labels = ["task"] if objective.task.weight > 0 or not objective.distils else []
        terms = ", ".join([*labels, *objective.active_terms])
        lines.append(f"{section}: {terms}{_pairs(built)}")
    return lines


def _pairs(objective: DistillationLoss) -> str:
    student, teacher = objective.student_taps, objective.teacher_taps
    if not student and not teacher:
        return ""
    if len(student) == len(teacher):
        pairs = [f"{mine} from {theirs}" for mine, theirs in zip(student, teacher, strict=True)]
        more = f", … ({len(pairs)})" if len(pairs) > NAMED_PAIRS else ""
        return f"; student's modules from the teacher's: {', '.join(pairs[:NAMED_PAIRS])}{more}"
    return f"; {len(student)} modules of the student, {len(teacher)} of the teacher"


def _memory(context: CampaignContext, nets: TrialNets) -> list[str]:
    """Roughly what a step takes: what autograd keeps of a batch, weights, gradients and the optimizer's state."""
    config = context.config
    steps: list[tuple[str, FitConfig, nn.Module, Tensor]] = [
        ("search", config.search, nets.supernet, nets.example),
        ("retrain", config.retrain, nets.students[0], nets.example),
    ]
    if config.teacher.trains and not is_precomputed(context.teacher_model):
        steps.insert(0, ("teacher.fit", config.teacher.fit, context.teacher_model, context.teacher_example()))
    parts = []
    for name, fit, net, example in steps:
        with torch.random.fork_rng(devices=[]):
            found = step_bytes(net, example, fit.batch_size)
        parts.append(f"{name} {bytes_text(found)} at batch_size {fit.batch_size}")
    return [f"memory of a step, roughly: {', '.join(parts)}"]
