"""What ranks the trials of a campaign, checked before anything is trained, and what of it is known before a trial."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from fnmatch import fnmatchcase

from nas_kd.config import CampaignConfig, ConfigError
from nas_kd.preparation.proposals import corner_knobs
from nas_kd.search_spaces import CostTable, count_params
from nas_kd.search_spaces.arch import Choice
from nas_kd.settings.mistakes import choose
from nas_kd.trial.context import CampaignContext, all_knobs
from nas_kd.trial.study_values import study_choices
from nas_kd.trials import COSTS, Cost, KnobValue, Objective

_OF_ALL_STUDENTS = ("flops", "params", "latency_ms", "predicted_latency_ms")  # fields of a cost


def describe_ranking(config: CampaignConfig) -> str:
    """What ranks the trials, in one line."""
    return f"ranked by {config.ranking}"


def check_costs(context: CampaignContext) -> None:
    """Raise where students have no such cost.

    Raises:
        ConfigError: the objective and the way out.
    """
    asked = [
        each for each in context.config.ranking.objectives if each.cost and each.cost.field not in _OF_ALL_STUDENTS
    ]
    if not asked:
        return
    space = context.space
    arch = space.widest(corner_knobs(space)[0])
    student, example = space.student(arch).eval(), space.example_input(arch.choices)
    cost = Cost.model_validate(
        context.input_type.student_cost(student, example, space.cost(arch), count_params(student))
    )
    for objective in asked:
        if objective.cost is not None and getattr(cost, objective.cost.field) is None:
            raise ConfigError(
                f"objectives: students of space {space.name!r} have no {objective.name}, which only those with key "
                "frames have; name flops, parameters or latency_ms"
            )


def check_metrics(config: CampaignConfig, names: Collection[str]) -> None:
    """Raise where the task does not measure what ranks the trials.

    Args:
        config: of the campaign.
        names: of the metrics that were measured of a net, or may be; `*` stands for any letters.

    Raises:
        ConfigError: the metric and those that there are.
    """
    for name in config.ranking.names:
        if name not in COSTS and not any(fnmatchcase(name.partition("@")[0], known) for known in names):
            raise ConfigError(
                f"objectives, constraints: task {config.task} measures no {name!r}; {choose(name, [*names, *COSTS])}"
            )


def known_objectives(context: CampaignContext) -> Callable[[Mapping[str, KnobValue]], tuple[float, ...]] | None:
    """Values of the study -> those of all objectives after the first, NaN where they are not known before a trial.

    None where there is one, which is the cost that the budget limits.
    """
    objectives, space = context.config.ranking.objectives[1:], context.space
    if [each.name for each in objectives] == [context.config.budget.cost_field]:
        return None
    tables = {
        tuple(knobs.values()): [_tables(context, objective, knobs) for objective in objectives]
        for knobs in all_knobs(space)
    }

    def values(proposed: Mapping[str, KnobValue]) -> tuple[float, ...]:
        choices = study_choices(proposed, space)
        own = tables[tuple(choices[name] for name in space.knobs)]
        return tuple(max((table.cost(choices) * factor for table, factor in each), default=math.nan) for each in own)

    return values


def _tables(
    context: CampaignContext, objective: Objective, knobs: Mapping[str, Choice]
) -> list[tuple[CostTable, float]]:
    """The tables of which the largest cost is the objective, with the factor to its unit; none where there are none."""
    space, kind = context.space, objective.cost
    if kind is None or not kind.known_before_training:
        return []
    if kind.field == "predicted_latency_ms":
        return [(context.latency_table(knobs), 1e-6)]
    if kind.field != "flops" and kind.field not in space.figures(knobs):
        return []
    return [(table, 1.0) for table in space.figure_tables(kind.field, knobs)]
