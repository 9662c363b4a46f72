"""Checks of a campaign file against its data, teacher, space and machine.

All of it is checked before anything is trained.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import product
from typing import cast

import torch
from torch import Tensor, nn

from nas_kd.config import CampaignConfig, ConfigError
from nas_kd.config.budget import BudgetRange
from nas_kd.config.grid import Cell, Value, distinct
from nas_kd.data import DataInfo, OwnConfig
from nas_kd.data.brightness import describe_darkness
from nas_kd.inputs import InputType
from nas_kd.objectives import DistillationLoss, ModuleNameError, ObjectiveConfig
from nas_kd.preflight.idle_keys import idle_keys
from nas_kd.preflight.start_checks import check_start
from nas_kd.preflight.view_checks import check_views
from nas_kd.preparation.nets import TrialNets, build_nets, build_objective, num_batches, supports_batch_size_1
from nas_kd.preparation.pairs import describe_left_out_terms, keep_pairs
from nas_kd.preparation.proposals import Proposal, corner_knobs, proposals, structure_key
from nas_kd.preparation.teacher import check_outputs, check_teacher
from nas_kd.search_spaces import SearchSpace
from nas_kd.search_spaces.arch import Choice
from nas_kd.search_spaces.knapsack import InfeasibleBudgetError, Knapsack, cost_range
from nas_kd.settings.mistakes import choose
from nas_kd.teachers import is_precomputed
from nas_kd.training.settings import FitConfig
from nas_kd.trial import CampaignContext


def grid_cells(config: CampaignConfig, knobs: Mapping[str, Sequence[Choice]]) -> list[Cell]:
    """The cells of the campaign's grid with everything that the study proposes.

    Args:
        config: of the campaign.
        knobs: of its space.

    Raises:
        ConfigError: a cell names a knob or a value that there is not, or leaves out one of several.
    """
    budget, options = config.budget.knob, config.budget.options
    choices: dict[str, Sequence[Choice | float] | BudgetRange] = {budget: options}
    choices |= {name: values for name, values in knobs.items() if len(values) > 1}
    cells = []
    for cell in config.cells:
        for name, value in cell.items():
            if name in choices:
                _check_value(name, value, choices[name], f"budget.{name}" if name == budget else f"space.{name}")
            elif name in knobs:
                raise ConfigError(
                    f"grid: {name} has one value only, {knobs[name][0]!r}; list several at space.{name}, or drop it "
                    "from the grid"
                )
            elif "." not in name:
                raise ConfigError(
                    f"grid: there is no knob {name!r}; {choose(name, list(choices))}, or give a dotted path into "
                    "objective, search or retrain"
                )
        full: Cell = {}
        for name, values in choices.items():
            if name in cell:
                full[name] = cell[name]
            elif isinstance(values, BudgetRange) or len(values) > 1:
                raise ConfigError(
                    f"grid: {name} has several values, but a block of the grid does not say which; name it in every "
                    "block"
                )
            else:
                full[name] = values[0]
        cells.append(full | cell)
    return distinct(cells)


def _check_value(name: str, value: Value, allowed: Sequence[Choice | float] | BudgetRange, where: str) -> None:
    if not isinstance(allowed, BudgetRange):
        if value not in allowed:
            raise ConfigError(
                f"grid: {name} must be one of {', '.join(map(str, allowed))}, but a cell has {value!r}; add it to "
                f"{where}, or drop it from the grid"
            )
    elif isinstance(value, bool | str) or not allowed.low <= value <= allowed.high:
        raise ConfigError(
            f"grid: {name} must be from {allowed.low} to {allowed.high}, as at {where}, but a cell has {value!r}"
        )


def check_fit(config: CampaignConfig, context: CampaignContext) -> list[str]:
    """`check_nets` and `check_items`."""
    return [*check_nets(config, context), *check_items(context)]


def check_items(context: CampaignContext) -> list[str]:
    """Raise where the items of a split do not have what the task needs.

    Returns:
        Sentences about what can be used, but may not be meant.

    Raises:
        DataError: the split, what its items lack, and the way out.
    """
    context.task.check_splits(context.splits)
    return [*context.task.hints(context.splits), *describe_darkness(context.splits)]


def check_nets(config: CampaignConfig, context: CampaignContext) -> list[str]:
    """Raise where data, teacher, space, budget and objective do not go together. Reads no item of the data.

    Returns:
        Sentences about what works, but may not be meant.

    Raises:
        ConfigError: the value, the rule and the way out.
    """
    try:
        context.space.check_operators()
    except ValueError as error:
        raise ConfigError(f"space: {error}") from error
    check_teacher(context)
    info = context.splits.info
    _check_frames(context.input_type, context.space, info)
    mixed = check_views(config, context)
    if not is_precomputed(context.teacher_model):
        _check_maps(config, info)
    for knobs in corner_knobs(context.space):
        try:
            context.input_type.check_space(context.space, knobs)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    if config.budget.max_latency_ms is None:  # latencies are measured when nothing else can be wrong
        check_budget(config, context)
    left_out = _check_objective(config, context)
    start = check_start(config, context)
    idle = idle_keys(config, len(context.splits.retrain))
    return [*context.notes, *left_out, *mixed, *start, *_enlarged(context.space, info), *idle]


def nets_depend_on(context: CampaignContext) -> tuple[DataInfo, int, int]:
    """What `check_nets` reads of the data: what is known of them, and how many items train weights and gates."""
    splits = context.splits
    return splits.info, len(splits.weights), len(splits.gates)


def _enlarged(space: SearchSpace, info: DataInfo) -> list[str]:
    """More pixels than the data have hold no more of the scene; that scale alone may help, so it is allowed."""
    longest = max(info.height, info.width)  # 0 of frame features
    sentences = []
    for knob in ("resolution", "side"):
        sides = [value for value in space.knobs.get(knob, ()) if isinstance(value, int)]
        if longest and sides and max(sides) > longest:
            sentences.append(
                f"space.{knob}: students at {max(sides)} see clips enlarged from the data's {longest} pixels, which "
                "hold no more; leave it out unless that is meant"
            )
    return sentences


def _check_frames(input_type: InputType, space: SearchSpace, info: DataInfo) -> None:
    have = info.frames
    for knob, what in input_type.frame_knobs.items():
        wanted = max((int(f) for f in space.knobs.get(knob, ())), default=0)
        if wanted > have:
            raise ConfigError(
                f"space.{knob}: {what} at most data.frames = {have} frames, but {wanted} is asked for; lower it or "
                "raise data.frames"
            )


def check_budget(config: CampaignConfig, context: CampaignContext) -> None:
    """The lowest budget must allow a student at all values of the space's knobs; in a grid, the budget of each cell.

    Of the input type's fallback knob the last value is enough: a trial takes the next one with which it meets its
    budget.
    """
    budget, space, tried = config.budget, context.space, budget_knobs(context)
    what = "the lowest budget is"
    asked = [(budget.cost(budget.lowest), values) for values in product(*tried.values())]
    cells = grid_cells(config, space.knobs) if config.grid else []
    if cells and config.trials <= len(cells):  # the sampler proposes nothing beside them
        what = "a cell of the grid has the budget"
        asked = []
        for cell in cells:
            chosen = [values[0] if len(values) == 1 else cell[name] for name, values in tried.items()]
            asked.append((budget.cost(float(cell[budget.knob])), tuple(cast(list[Choice], chosen))))
    least: dict[tuple[Choice, ...], int] = {}
    for _, values in asked:
        if values not in least:
            table = context.table(dict(zip(tried, values, strict=True)))
            least[values] = cost_range(table)[0]
    cost, knobs = max(asked, key=lambda item: least[item[1]] - item[0])
    if cost < least[knobs]:
        at = ", ".join(f"{name} {value}" for name, value in zip(tried, knobs, strict=True))
        raise ConfigError(
            f"budget.{budget.knob}: {what} {budget.text(cost)}, but the cheapest student{' at ' if at else ''}{at} "
            f"costs {budget.text(least[knobs])}; raise the budget, or drop values of the space's knobs"
        )
    if budget.limits:
        for cost, values in asked:
            _check_limits(context, cost, dict(zip(tried, values, strict=True)))


def budget_knobs(context: CampaignContext) -> dict[str, tuple[Choice, ...]]:
    """The values of the space's knobs at which every budget must allow a student: see `check_budget`."""
    tried = dict(context.space.knobs)
    fallback = context.input_type.fallback_knob
    if fallback is not None:
        tried[fallback] = tried[fallback][-1:]
    return tried


def _check_limits(context: CampaignContext, cost: int, knobs: Mapping[str, Choice]) -> None:
    """Raise where no student at some knobs meets a budget and all limits."""
    try:
        Knapsack(context.table(knobs), context.limits(knobs)).check(cost)
    except InfeasibleBudgetError as error:
        at = ", ".join(f"{name} {value}" for name, value in knobs.items())
        raise ConfigError(f"budget: {f'at {at}, ' if at else ''}{error}; raise the limit") from error
    except ValueError as error:
        raise ConfigError(f"budget: {error}") from error


def _check_maps(config: CampaignConfig, info: DataInfo) -> None:
    """Maps of the data must be such as a term or the teacher reads; data of the user may come with others."""
    if isinstance(config.data, OwnConfig):
        return
    readers = {term: section.map_names for term, section in config.objective.terms.items() if section.map_names}
    known = [name for names in readers.values() for name in names]
    for name in info.map_names:
        if name not in known:
            raise ConfigError(
                f"data.maps: nothing reads the map {name!r}; {choose(name, known)} for {', '.join(readers)} "
                "distillation, or leave it out, or take teacher.model maps"
            )


def _check_objective(config: CampaignConfig, context: CampaignContext) -> list[str]:
    """Students must give what the task reads, whatever a trial may distil must exist and be comparable, and batches
    must be large enough for the nets.

    Returns:
        Sentences on terms that are left out. The pairs of modules that the others compare are kept in the context.
    """
    sentences: dict[str, None] = {}
    asked: dict[str, tuple[Mapping[str, Choice], list[Proposal]]] = {}
    for proposal in proposals(config, context.space):
        for knobs in proposal.knobs:
            asked.setdefault(str(knobs), (knobs, []))[1].append(proposal)
    for knobs in corner_knobs(context.space):
        asked.setdefault(str(knobs), (knobs, []))
    seen: set[tuple[str, ...]] = set()
    for knobs, proposed in asked.values():
        nets = build_nets(context, knobs)
        if not context.input_type.students_give_what_the_teacher_gives:
            nets.supernet.eval()
            with torch.no_grad():
                try:
                    outputs = nets.supernet(nets.example)
                    who = f"students of space {context.space.name!r}"
                    check_outputs(context.task, context.input_type, who, outputs, nets.example)
                except ValueError as error:
                    raise ConfigError(f"space.name: {error}") from error
        for proposal in proposed:
            for section, objective, over in (
                ("search.objective", proposal.config.search.objective, (nets.supernet,)),
                ("objective", proposal.config.objective, nets.students),
            ):
                batches = num_batches(context, proposal.config.retrain) if section == "objective" else None
                key = (section, str(knobs), structure_key(objective), str(batches))
                if key in seen:
                    continue
                seen.add(key)
                try:
                    for built in _check_terms(context, nets, objective, over, batches):
                        keep_pairs(context.pairs, section, built)
                        sentences |= dict.fromkeys(describe_left_out_terms(section, built))
                except ValueError as error:
                    raise ConfigError(f"{proposal.error_prefix(section)}{_at(section, str(error))}") from error
        _check_batches(context, nets, proposed)
    return list(sentences)


def _check_terms(
    context: CampaignContext,
    nets: TrialNets,
    objective: ObjectiveConfig,
    over: Sequence[nn.Module],
    batches: int | None,
) -> list[DistillationLoss]:
    objectives = []
    for net in over:
        try:
            built = build_objective(context, objective, nets, net)
        except ModuleNameError as error:
            if error.who == "teacher":
                raise
            each = [set(nets.shapes(other)) for other in (nets.supernet, *nets.students)]
            raise error.among(set.intersection(*each)) from error
        if batches is not None:
            built.check_batches(batches)
        objectives.append(built)
    return objectives


def _at(section: str, sentence: str) -> str:
    """The sentence about a term, with the section before the key that it begins with."""
    key = re.match(r"([\w.]+:\w+|\w+)(\.\w+)*:? ", sentence)
    names_key = key is not None and (":" in key[1] or key[1] in ObjectiveConfig.model_fields)
    joined = key is not None and names_key and (key[2] or ":" in key[0])
    return f"{section}.{sentence}" if joined else f"{section}: {sentence}"


def _check_batches(context: CampaignContext, nets: TrialNets, proposed: Sequence[Proposal]) -> None:
    """A net that normalises over its batch cannot train on one item with a single value a channel."""
    splits, of_student = context.splits, nets.example
    for proposal in proposed:
        config = proposal.config
        trained: list[tuple[str, FitConfig, int, Sequence[nn.Module], Tensor]] = [
            ("search", config.search, min(len(splits.weights), len(splits.gates)), [nets.supernet], of_student),
            ("retrain", config.retrain, len(splits.retrain), nets.students, of_student),
        ]
        if config.teacher.trains:
            of_teacher = context.teacher_example()
            trained.append(
                ("teacher.fit", config.teacher.fit, len(splits.retrain), [context.teacher_model], of_teacher)
            )
        for path, fit, num_items, over, example in trained:
            if min(fit.batch_size, num_items) == 1 and not all(supports_batch_size_1(net, example) for net in over):
                way_out = "raise it to 2 or more" if num_items > 1 else "give more data"
                raise ConfigError(
                    f"{path}.batch_size: a BatchNorm of this net has one value a channel for each item, so it needs "
                    f"batches of at least 2, but they have 1; {way_out}"
                )
