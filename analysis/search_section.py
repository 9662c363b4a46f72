"""The section of the report on the search that trials share, as plain data, which `templates/search.html` lays out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from nas_kd.analysis.cells import Cell, Table, interval_text, number_cell
from nas_kd.analysis.page import Chart, chart
from nas_kd.analysis.search_figures import (
    MOST_SHOWN,
    cost_chart,
    entropy_chart,
    gate_order,
    gates_chart,
    idle_chart,
    knobs_chart,
    losses_chart,
    metric_chart,
    trajectories_chart,
)
from nas_kd.analysis.search_files import Search, SearchResult
from nas_kd.analysis.search_numbers import idle_names, idle_shares, retrained
from nas_kd.analysis.text import MISSING, count, metric_text
from nas_kd.trials.record import Metric, TrialRecord

_GATES_A_CHART = 12  # of those that are shown on demand


@dataclass(frozen=True)
class SearchSection:
    """The shared search in numbers and pictures.

    Attributes:
        headline: budgets, inherited metric and idle layers; empty where the search could not be read.
        problems: a sentence for each file that could not be read.
        gates: probabilities over the budget of those that change most.
        other_gates: those of all other gates.
        other_heading: above them.
        by_budget: knobs, costs, metrics and idle layers over the budget.
        table: the same numbers.
        note: on the table.
        by_epoch: losses, and entropy of the gates.
        trajectories: probabilities over the epochs.
    """

    headline: str = ""
    problems: tuple[str, ...] = ()
    gates: Chart | None = None
    other_gates: tuple[Chart, ...] = ()
    other_heading: str = ""
    by_budget: tuple[Chart, ...] = ()
    table: Table | None = None
    note: str = ""
    by_epoch: tuple[Chart, ...] = ()
    trajectories: Chart | None = None


def search_section(search: Search, records: Sequence[TrialRecord], picture: bytes | None) -> SearchSection:
    """The section for a search.

    Args:
        search: what it left.
        records: of the campaign's trials.
        picture: `search.png`, for readers without scripts.
    """
    result, metric = search.result, records[0].metric if records else None
    names = gate_order(result)
    others = names[MOST_SHOWN:]
    chunks = [others[i : i + _GATES_A_CHART] for i in range(0, len(others), _GATES_A_CHART)]
    by_budget = (
        ("search-knobs", knobs_chart(result), "Probabilities of the knobs over the budget."),
        (
            "search-cost",
            cost_chart(result),
            "Cost over the budget: expected under the gates, and of the derived choice.",
        ),
        ("search-metric", metric_chart(result, records, metric), _METRIC_CAPTION),
        ("search-idle", idle_chart(result), _idle_caption(result)),
    )
    by_epoch = (
        ("search-losses", losses_chart(search), "Mean losses of an epoch, over all budgets that were drawn."),
        (
            "search-entropy",
            entropy_chart(search),
            "Mean entropy of the gates after each epoch, by budget; 1 is a uniform choice.",
        ),
    )
    trajectories = trajectories_chart(search)
    return SearchSection(
        headline=headline(search, metric),
        problems=search.problems,
        gates=chart(
            "search-gates",
            gates_chart(result, names[:MOST_SHOWN]),
            f"Probabilities over the budget ({result.axis.unit}), at the knobs of the architecture derived there: "
            f"{_gates_text(len(names))}. Marks are the campaign's budgets. Idle choices are grey.",
            fallback_png=picture,
            is_sized=True,
        ),
        other_gates=tuple(
            chart(f"search-others-{i}", gates_chart(result, chunk), "Other gates, as above.", is_sized=True)
            for i, chunk in enumerate(chunks)
        ),
        other_heading=f"{count(len(others), 'more gate')}",
        by_budget=_charts(by_budget),
        table=budgets_table(search, records, metric),
        note=_note(search),
        by_epoch=_charts(by_epoch),
        trajectories=None
        if trajectories is None
        else chart(
            "search-trajectories",
            trajectories,
            "Probabilities after each epoch of the gates that change most, at the lowest, a middle and the highest "
            "budget; the mean over knobs.",
            is_sized=True,
        ),
    )


_METRIC_CAPTION = (
    "The metric of the derived architectures: with the supernet's weights on the gates' split, and trained as trials, "
    "on validation, with 95 % intervals where there are several seeds."
)


def _idle_caption(result: SearchResult) -> str:
    parts = ["Layers that compute nothing, expected under the gates and in the derived architecture."]
    if idle_names(result):
        parts.append(f"Idle: operators that are {' or '.join(idle_names(result))}.")
    return " ".join([*parts, "Left out: layers above the depth of a stage."])


def _charts(made: Sequence[tuple[str, go.Figure | None, str]]) -> tuple[Chart, ...]:
    return tuple(chart(name, figure, caption) for name, figure, caption in made if figure is not None)


def _gates_text(number: int) -> str:
    return "all gates" if number <= MOST_SHOWN else f"the {MOST_SHOWN} gates that change most, of {number}"


def headline(search: Search, metric: Metric | None) -> str:
    """The search in one sentence."""
    result = search.result
    axis, first, last = result.axis, result.budgets[0], result.budgets[-1]
    inherited = [entry.inherited for entry in result.budgets]
    texts = [metric_text(value, metric) if metric else f"{value:.4g}" for value in (min(inherited), max(inherited))]
    span = axis.text(result.scaled(first.budget))
    if first is not last:
        span = f"{axis.number(result.scaled(first.budget))} to {axis.text(result.scaled(last.budget))}"
    name = metric.name if metric else "metric"
    parts = [f"One search for {count(len(result.budgets), 'budget')} ({span})"]
    parts.append(f"inherited {name} {texts[0]} to {texts[1]}" if first is not last else f"inherited {name} {texts[0]}")
    lowest, highest = idle_shares(result, first), idle_shares(result, last)
    idle = []
    for words, low, high in (
        (f"{' or '.join(idle_names(result))} is", lowest.chosen_operators, highest.chosen_operators),
        ("layers left out by depths are", lowest.chosen_skipped, highest.chosen_skipped),
    ):
        if low is not None and high is not None:
            idle.append(f"{words} {low * 100:.0f} %" + (f" and {high * 100:.0f} %" if first is not last else ""))
    if idle:
        at = " at the lowest and the highest budget" if first is not last else ""
        parts.append(f"of the derived layers, {', '.join(idle)}{at}")
    return "; ".join(parts) + "."


def budgets_table(search: Search, records: Sequence[TrialRecord], metric: Metric | None) -> Table:
    """One row a budget."""
    result = search.result
    axis = result.axis
    headers = [
        f"budget, {axis.unit}",
        "expected cost",
        "derived cost",
        "inherited",
        "retrained",
        "95 % interval (n seeds)",
    ]
    idle = " or ".join(idle_names(result))
    shares_of = [idle_shares(result, entry) for entry in result.budgets]
    with_operators = shares_of[0].operators is not None
    with_depths = shares_of[0].skipped is not None
    if with_operators:
        headers += [f"{idle}, expected", "derived"]
    if with_depths:
        headers += ["left out by depths, expected", "derived"]
    headers.append("trial")
    rows = []
    for entry, shares in zip(result.budgets, shares_of, strict=True):
        trained = retrained(entry, records)
        costs = (entry.budget, entry.expected_cost, entry.cost)
        cells = [number_cell(axis.number(result.scaled(cost), trim=False)) for cost in costs]
        cells.append(number_cell(metric_text(entry.inherited, metric) if metric else f"{entry.inherited:.4g}"))
        if trained:
            record, estimate = trained
            cells.append(number_cell(metric_text(estimate.mean, record.metric)))
            cells.append(number_cell(interval_text(estimate, record.metric)))
        else:
            cells += [number_cell(MISSING), number_cell(MISSING)]
        if with_operators:
            cells += [_share_cell(shares.operators), _share_cell(shares.chosen_operators)]
        if with_depths:
            cells += [_share_cell(shares.skipped), _share_cell(shares.chosen_skipped)]
        cells.append(Cell(trial=trained[0].number) if trained else Cell(MISSING))
        rows.append(cells)
    return Table(headers, rows)


def _share_cell(share: float | None) -> Cell:
    return number_cell(MISSING if share is None else f"{share * 100:.1f} %")


def _note(search: Search) -> str:
    parts = [
        "Expected: under the probabilities of the gates at this budget and at the knobs of the derived architecture. "
        "Inherited: with the weights of the supernet, on the gates' split."
    ]
    names = idle_names(search.result)
    if names:
        parts.append(
            f"The share of {' or '.join(names)} is that of operators which compute nothing; an operator counts by the "
            "probability that its cell is there."
        )
    return " ".join(parts)
