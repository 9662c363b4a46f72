"""What a campaign file alone cannot tell: whether it fits the data, the teacher, the space and the machine.

All of it is checked before anything is trained.
"""

from __future__ import annotations

import os
from itertools import product

import torch

from nas_kd.config import CampaignConfig, ConfigError
from nas_kd.objectives import Objective
from nas_kd.workbench import Workbench, check_logits, weighed
from search_spaces import Supernet
from search_spaces.arch import Choice
from search_spaces.knapsack import cost_range


def check_machine(config: CampaignConfig) -> None:
    """Raise where a trial asks for more than this machine has; a cluster is asked by Ray itself.

    Raises:
        ConfigError: the value and what there is.
    """
    resources = config.resources
    if resources.address is not None:
        return
    cores = os.cpu_count() or 1
    if resources.cpus_per_trial > cores:
        raise ConfigError(
            f"resources.cpus_per_trial: this machine has {cores} cores, but got {resources.cpus_per_trial}; lower it"
        )
    if resources.gpus_per_trial > torch.cuda.device_count():
        raise ConfigError(
            f"resources.gpus_per_trial: torch finds {torch.cuda.device_count()} GPUs on this machine, but got "
            f"{resources.gpus_per_trial:g}; lower it, or give the address of a cluster"
        )


def check_fit(config: CampaignConfig, bench: Workbench) -> None:
    """Raise where data, teacher, space, budget and objective do not go together.

    Raises:
        ConfigError: the value, the rule and the way out.
    """
    check_logits(bench)
    _check_frames(bench)
    _check_flips(config, bench)
    if config.budget.max_latency_ms is None:  # latencies are measured when nothing else can be wrong
        check_budget(config, bench)
    _check_objective(config, bench)


def _check_frames(bench: Workbench) -> None:
    have = bench.splits.info.frames
    for knob, what in (("frames", "a student may see"), ("keyframe_interval", "an interval between key frames takes")):
        wanted = max((int(f) for f in bench.space.knobs.get(knob, ())), default=0)
        if wanted > have:
            raise ConfigError(
                f"space.{knob}: {what} at most data.frames = {have} frames, but {wanted} is asked for; lower it or "
                "raise data.frames"
            )


def _check_flips(config: CampaignConfig, bench: Workbench) -> None:
    if bench.splits.info.flip_safe:
        return
    used = [
        ("teacher.fit.augment", config.teacher.fit.augment),
        ("search.augment", config.search.augment),
        ("retrain.augment", config.retrain.augment),
        *((f"knobs.{path}", value) for path, d in config.knobs.items() for value in d.get("values", ())),
    ]
    for path, value in used:
        if path.endswith(".augment") and "flip" in str(value):
            raise ConfigError(
                f"{path}: {value!r} mirrors clips, but in this data a mirrored clip may change its class; use none"
            )


def _knob_values(bench: Workbench) -> list[dict[str, Choice]]:
    names = list(bench.space.knobs)
    return [dict(zip(names, values, strict=True)) for values in product(*bench.space.knobs.values())]


def check_budget(config: CampaignConfig, bench: Workbench) -> None:
    """The lowest budget must allow a student at all values of the space's knobs.

    Of key-frame intervals the longest one is enough: a trial takes the next one with which it meets its budget.
    """
    budget = config.budget
    longest = max(bench.space.knobs.get("keyframe_interval", (0,)))
    values = [k for k in _knob_values(bench) if k.get("keyframe_interval", longest) == longest]
    least, knobs = max(((cost_range(bench.table(knobs))[0], knobs) for knobs in values), key=lambda item: item[0])
    if budget.cost(budget.lowest) < least:
        at = ", ".join(f"{name} {value}" for name, value in knobs.items())
        raise ConfigError(
            f"budget.{budget.knob}: the lowest budget is {budget.text(budget.cost(budget.lowest))}, but the cheapest "
            f"student{' at ' if at else ''}{at} costs {budget.text(least)}; raise the budget, or drop values of the "
            "space's knobs"
        )


def _check_objective(config: CampaignConfig, bench: Workbench) -> None:
    """Maps that a trial may distil must exist and be comparable, for the student's smallest input and its largest."""
    values = _knob_values(bench)
    for (path, objective), knobs in product(weighed(config).items(), (values[0], values[-1])):
        teacher = bench.teacher_model if objective.distils else None
        supernet = Supernet(bench.space, knobs).to(bench.device)
        example = bench.student_example(supernet.knobs)
        try:
            with supernet.pinned(bench.space.widest(supernet.knobs)):
                Objective(objective, bench.task, supernet, teacher, example, bench.example(), varying_width=True)
        except ValueError as error:
            raise ConfigError(f"{path}: {error}") from error
