"""What the study is given: the knobs that it proposes, and what is known of their values before a training."""

from __future__ import annotations

from collections.abc import Mapping

from nas_kd.config import CampaignConfig
from nas_kd.config.budget import BudgetRange
from nas_kd.preparation.prior import LEAST_COMPARED, InheritedPrior
from nas_kd.preparation.ranking import known_objectives
from nas_kd.preparation.shared import SearchFound
from nas_kd.search_spaces import SearchSpace
from nas_kd.trial import CampaignContext
from nas_kd.trial.context import all_knobs
from nas_kd.trial.study_values import CHOICE_PREFIX, study_choices
from nas_kd.trials import ChoiceKnob, FloatKnob, Knob, KnobValue, KnownCosts, Work, parse_knobs

CHEAPEST_SHARE = 0.5  # of the lowest budget: what the sampler proposes costs at least that


def study_knobs(context: CampaignContext) -> dict[str, Knob]:
    """Everything that the study proposes: the budget, or with a shared search the choices of an architecture; the
    space's knobs with several values, and the dotted knobs."""
    config, space = context.config, context.space
    options = config.budget.options
    knobs: dict[str, Knob] = {}
    if context.shares_search:
        knobs |= searched_knobs(space)
    else:
        if isinstance(options, BudgetRange):
            knobs[config.budget.knob] = FloatKnob(low=options.low, high=options.high, log=True)
        else:
            knobs[config.budget.knob] = ChoiceKnob(values=options)
        knobs |= space_knobs(space)
    return {**knobs, **parse_knobs(config.knobs)}


def space_knobs(space: SearchSpace) -> dict[str, Knob]:
    """The knobs of the space as knobs of the study; those with one choice are left out."""
    return {name: ChoiceKnob(values=values) for name, values in space.knobs.items() if len(values) > 1}


def searched_knobs(space: SearchSpace) -> dict[str, Knob]:
    """The variables and knobs of the space as knobs of the study; those with one choice are left out."""
    knobs: dict[str, Knob] = {CHOICE_PREFIX + n: ChoiceKnob(values=v) for n, v in space.variables.items() if len(v) > 1}
    return knobs | space_knobs(space)


def trial_work(config: CampaignConfig, costs: KnownCosts | None) -> Work:
    """What the time of a trial grows with: the cost of its student, or the budget, times the epochs of retraining.

    Args:
        config: of the campaign.
        costs: known before the trials; None where each trial searches by itself.
    """

    def work(values: Mapping[str, KnobValue]) -> float | None:
        try:
            cost = values[config.budget.knob] if costs is None else costs.cost(values)
        except KeyError:  # a cell of a grid leaves it to the sampler
            return None
        dotted = {name: value for name, value in values.items() if name.startswith("retrain.")}
        retrain = config.with_knobs(dotted).retrain if dotted else config.retrain
        return float(cost) * retrain.epochs * retrain.num_seeds

    return work


def known_costs(context: CampaignContext, found: SearchFound | None = None) -> KnownCosts:
    """What is known of an architecture before it is trained: the cost of the budget, in its unit, and objectives.

    Args:
        context: of the campaign.
        found: by the search; where it has compared enough architectures, they give a prior of the metric.
    """
    budget = context.config.budget
    space, factor = context.space, 1e-6 if budget.is_latency else 1.0
    tables = {tuple(knobs.values()): context.table(knobs) for knobs in all_knobs(space)}
    limits = {tuple(knobs.values()): context.limits(knobs) for knobs in all_knobs(space)}

    def cost(values: Mapping[str, KnobValue]) -> float:
        choices = study_choices(values, space)
        return tables[tuple(choices[name] for name in space.knobs)].cost(choices) * factor

    def within_limits(values: Mapping[str, KnobValue]) -> bool:
        choices = study_choices(values, space)
        own = limits[tuple(choices[name] for name in space.knobs)]
        return all(table.cost(choices) <= limit.high for limit in own for table in limit.tables)

    def canonical(values: Mapping[str, KnobValue]) -> dict[str, KnobValue]:
        choices = study_choices(values, space)
        active = space.active(choices)
        result = dict(values)
        for name, options in space.variables.items():
            if name not in active and CHOICE_PREFIX + name in result:
                result[CHOICE_PREFIX + name] = options[0]
        return result

    prior = None
    judged = context.config.ranking.objectives[0].name  # the prior is one of the main metric
    if found is not None and len(found.compared) >= LEAST_COMPARED and judged == context.task.metric:
        prior = InheritedPrior(
            found.compared,
            searched_knobs(space),
            lambda values: cost(values) / factor,
            found.gates,
            gain=context.task.gain,
        )
    return KnownCosts(
        cost=cost,
        canonical=canonical,
        prior=prior,
        within_limits=within_limits if budget.limits else None,
        objectives=known_objectives(context),
        # Students far below the lowest budget widen the front where nobody asked for it.
        min_cost=CHEAPEST_SHARE * float(budget.lowest) if budget.lowest < budget.highest else 0.0,
        max_cost=float(budget.highest),
    )
