"""Numbers of a shared search: idle layers, changes and entropy of gates, and how inherited metrics relate to trained
ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from nas_kd.analysis.search_files import Search, SearchedBudget, SearchResult, Variable
from nas_kd.analysis.statistics import Estimate, seed_estimate
from nas_kd.trials.record import KnobValue, TrialRecord

Curve = dict[KnobValue, list[float]]  # choice -> probability at each place


@dataclass(frozen=True)
class IdleShares:
    """Shares of layers that compute nothing, at one budget; None where the space has no such choice.

    Attributes:
        operators: of the operators that have an effect, those that are idle (`identity`, `zero`), expected.
        chosen_operators: the same share in the derived architecture.
        skipped: of all layers that depths decide on, those that are left out, expected.
        chosen_skipped: the same share in the derived architecture.
    """

    operators: float | None
    chosen_operators: float | None
    skipped: float | None
    chosen_skipped: float | None


def idle_shares(result: SearchResult, entry: SearchedBudget) -> IdleShares:
    """The shares of idle operators and of layers left out at one budget.

    An operator counts by the probability that it has an effect: those of cells that are left out do not count.
    """
    operators = _without(result.variables, is_depth=False)
    depths = _without(result.variables, is_depth=True)
    return IdleShares(
        operators=_expected(operators, entry),
        chosen_operators=_chosen(operators, entry),
        skipped=_expected(depths, entry),
        chosen_skipped=_chosen(depths, entry),
    )


def _without(variables: Mapping[str, Variable], *, is_depth: bool) -> dict[str, tuple[Variable, list[int]]]:
    """The variables of one kind, with the number of layers that each choice lacks; empty if no choice lacks one."""
    found: dict[str, tuple[Variable, list[int]]] = {}
    for name, variable in variables.items():
        if variable.layers is not None and variable.is_depth is is_depth:
            found[name] = variable, [_most(variable) - number for number in variable.layers]
    return found if any(any(lacking) for _, lacking in found.values()) else {}


def _most(variable: Variable) -> int:
    return max(variable.layers or (0,)) if variable.is_depth else 1


def _expected(kind: Mapping[str, tuple[Variable, list[int]]], entry: SearchedBudget) -> float | None:
    idle = total = 0.0
    for name, (variable, lacking) in kind.items():
        weight = entry.effect[name]
        idle += weight * sum(p * number for p, number in zip(entry.gates[name], lacking, strict=True))
        total += weight * _most(variable)
    return idle / total if total else None


def _chosen(kind: Mapping[str, tuple[Variable, list[int]]], entry: SearchedBudget) -> float | None:
    idle = total = 0
    for name, (variable, lacking) in kind.items():
        choice = entry.arch.choices.get(name)  # an architecture lacks the choices without effect
        if choice in variable.choices:
            idle += lacking[variable.choices.index(choice)]
            total += _most(variable)
    return idle / total if total else None


def idle_names(result: SearchResult) -> list[str]:
    """The operators that compute nothing, such as `identity` and `zero`."""
    names: dict[str, None] = {}
    for variable in result.variables.values():
        if variable.layers is not None and not variable.is_depth:
            pairs = zip(variable.choices, variable.layers, strict=True)
            names |= {str(choice): None for choice, number in pairs if number == 0}
    return list(names)


def entropy(gates: Mapping[str, Sequence[float]]) -> float:
    """Mean entropy of the gates, each as a share of its largest; gates with one choice do not count."""
    shares = []
    for p in gates.values():
        if len(p) > 1:
            shares.append(-sum(x * math.log(x) for x in p if x > 0) / math.log(len(p)))
    return sum(shares) / max(len(shares), 1)


def largest_change(rows: Sequence[Sequence[float]]) -> float:
    """The largest total variation, in [0, 1], between two of these distributions."""
    changes = [
        sum(abs(a - b) for a, b in zip(first, second, strict=True)) / 2
        for i, first in enumerate(rows)
        for second in rows[:i]
    ]
    return max(changes, default=0.0)


def by_change(rows_of: Mapping[str, Sequence[Sequence[float]]]) -> list[str]:
    """Names of the gates with several choices, those whose probabilities change most first."""
    names = [name for name, rows in rows_of.items() if rows and len(rows[0]) > 1]
    return sorted(names, key=lambda name: -largest_change(rows_of[name]))


def gates_by_budget(result: SearchResult) -> dict[str, list[tuple[float, ...]]]:
    """Gate -> its probabilities at each budget."""
    return {name: [entry.gates[name] for entry in result.budgets] for name in result.variables}


def interpolated(low: Sequence[float], high: Sequence[float], share: float) -> list[float]:
    """Probabilities between two budgets, with logits that are linear in the log of the budget, as gates have them.

    Args:
        low: probabilities at the lower budget.
        high: at the higher one.
        share: of the way between both, in the log of the budget.
    """
    products = [max(a, 1e-12) ** (1 - share) * max(b, 1e-12) ** share for a, b in zip(low, high, strict=True)]
    total = sum(products)
    return [product / total for product in products]


def retrained(entry: SearchedBudget, records: Sequence[TrialRecord]) -> tuple[TrialRecord, Estimate] | None:
    """The first trained trial with the derived architecture, and its validation metric; None where there is none."""
    for record in records:
        if record.arch_id == entry.arch_id and record.state == "complete":
            estimate = seed_estimate(record)
            if estimate is not None:
                return record, estimate
    return None


# Tables


def budget_table(search: Search, records: Sequence[TrialRecord]) -> pd.DataFrame:
    """One row a budget: costs, inherited and retrained metric, shares of idle layers."""
    rows, result = [], search.result
    for entry in result.budgets:
        shares, trained = idle_shares(result, entry), retrained(entry, records)
        trial, estimate = trained if trained else (None, None)
        rows.append(
            {
                "budget": result.scaled(entry.budget),
                "unit": result.axis.unit,
                "expected_cost": result.scaled(entry.expected_cost),
                "derived_cost": result.scaled(entry.cost),
                "arch_id": entry.arch_id,
                "inherited_metric": entry.inherited,
                "trial": trial.number if trial else None,
                "retrained_metric": estimate.mean if estimate else None,
                "retrained_low": estimate.low if estimate else None,
                "retrained_high": estimate.high if estimate else None,
                "num_seeds": estimate.num_values if estimate else None,
                "idle_operators_expected": shares.operators,
                "idle_operators_derived": shares.chosen_operators,
                "skipped_layers_expected": shares.skipped,
                "skipped_layers_derived": shares.chosen_skipped,
            }
        )
    return pd.DataFrame(rows).astype({"trial": "Int64", "num_seeds": "Int64"})


def probability_table(search: Search) -> pd.DataFrame:
    """Probabilities of gates and knobs: one row for each budget, name and choice; after each epoch where kept.

    Rows with an epoch are of the knots of the gates, the mean over knobs; those without are of the budgets of the
    result, at the knobs of the derived architecture.
    """
    rows: list[tuple[str, int | None, float, str, KnobValue, float]] = []
    result = search.result

    def add_gates(epoch: int | None, budget: float, gates: Mapping[str, Sequence[float]]) -> None:
        for name, shares in gates.items():
            for choice, p in zip(result.variables[name].choices, shares, strict=True):
                rows.append(("gate", epoch, budget, name, choice, p))

    for entry in result.budgets:
        budget = result.scaled(entry.budget)
        for name, values in entry.knob_probabilities().items():
            rows += [("knob", None, budget, name, value, p) for value, p in values.items()]
        add_gates(None, budget, entry.gates)
    for epoch, knots in search.history.items():
        for knot, after in knots.items():
            add_gates(epoch, result.scaled(knot), after.gates)
    table = pd.DataFrame(rows, columns=["kind", "epoch", "budget", "name", "choice", "probability"])
    return table.astype({"epoch": "Int64", "choice": object})


def epoch_table(search: Search) -> pd.DataFrame:
    """One row an epoch: mean losses, and the mean entropy of the gates at each knot."""
    epochs = sorted({*search.losses, *search.history})
    rows = []
    for epoch in epochs:
        knots = search.history.get(epoch, {})
        entropies = {
            f"entropy@{search.result.scaled(budget):.6g}": entropy(after.gates) for budget, after in knots.items()
        }
        rows.append({"epoch": epoch, **search.losses.get(epoch, {}), **entropies})
    return pd.DataFrame(rows) if rows else pd.DataFrame({"epoch": []})
