"""What each part of the shared search is for: `python benchmarks/search_ablation.py [options]`.

The search of a setting of `benchmarks/search.py` is run as it is, and with one part changed at a time:

    uniform start     gates start uniform, and not at distributions whose expected cost is the budget
    fixed penalty     λ · log(expected cost) at every budget, in place of a penalty that holds the cost at the budget
    no warm-up        gates train from the first step
    no finish         gates train to the end, and drawn architectures do
    two paths         a step of the weights trains two drawn architectures on the same batch

Of each, over seeds: compute in trainings of a mean student, the metric that derived students inherit (mean over
budgets), and at the lowest and highest budget the expected and the derived share of idle operators (identity, zero),
the share of layers left out, and how far the expected cost is from the budget. With `--trainings`, derived students
are trained too, from the search's weights. Results are kept in `--work`; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from search_lab import SETTINGS, Lab, count_supernets
from torch import Tensor

from nas_kd.analysis.search_files import read_search
from nas_kd.analysis.search_numbers import idle_shares
from nas_kd.preparation.shared import prepare_search
from nas_kd.search_spaces import ArchSpec
from nas_kd.search_spaces.shared import SharedSupernet
from nas_kd.training.budget import BudgetPenalty
from nas_kd.trial import SharedSearch
from nas_kd.trial.shared import FOLDER

FIXED_WEIGHT = 2.0  # λ of the fixed penalty


@contextmanager
def uniform_start() -> Iterator[None]:
    """Gates are left as they are made."""
    with mock.patch.object(SharedSupernet, "start_gates", return_value=None):
        yield


@contextmanager
def fixed_penalty() -> Iterator[None]:
    """The same pressure at every budget."""

    def penalty(self: BudgetPenalty, expected: Tensor) -> Tensor:
        return FIXED_WEIGHT * expected.log()

    with mock.patch.object(BudgetPenalty, "penalty", penalty):
        yield


VARIANTS: Mapping[str, tuple[Mapping[str, Any], Callable[[], Any]]] = {
    "as it is": ({}, nullcontext),
    "uniform start": ({}, uniform_start),
    "fixed penalty": ({}, fixed_penalty),
    "no warm-up": ({"gates": {"warmup": 0.0}}, nullcontext),
    "no finish": ({"finish": 0.0}, nullcontext),
    "two paths": ({"paths": 2}, nullcontext),
}


def measure(lab: Lab, name: str, seed: int, trains: bool) -> dict[str, Any]:
    """The figures of one search; read where they are known."""
    folder = lab.folder / "ablation" / f"{name.replace(' ', '-')}-{lab.config.search.epochs}-{seed}"
    path = folder / f"figures-{'trained' if trains else 'derived'}.json"
    if path.is_file():
        return dict(json.loads(path.read_text()))
    keys, patch = VARIANTS[name]
    own = lab.setting.campaign["search"]
    merged = {k: {**own.get(k, {}), **v} if isinstance(v, dict) else v for k, v in keys.items()}
    context = lab.searching(seed, **merged)
    with patch(), count_supernets() as meter:
        prepare_search(context, folder)
    found = read_search(folder / FOLDER)
    assert found is not None
    entries = found.result.budgets
    figures: dict[str, Any] = {
        "trainings": meter.total * lab.setting.num_trainings / lab.compute,
        "inherited": float(np.mean([entry.inherited for entry in entries])),
    }
    for place, entry in (("lowest", entries[0]), ("highest", entries[-1])):
        shares = idle_shares(found.result, entry)
        figures[place] = {
            "idle": shares.operators,
            "idle_derived": shares.chosen_operators,
            "left_out": shares.skipped,
            "expected_over_budget": entry.expected_cost / entry.budget,
        }
    if trains:
        search = SharedSearch.load(context, folder / FOLDER)
        left = json.loads((folder / FOLDER / "search.json").read_text())
        archs = [ArchSpec.from_dict(entry["arch"]) for entry in left["budgets"]]
        results = [lab.train(a, seed, search.student(a), search.adapters_of(a), f"{name}-{seed}") for a in archs]
        figures["retrained"] = float(np.mean([result.test for result in results]))
    path.write_text(json.dumps(figures))
    return figures


def describe(figures: list[dict[str, Any]], *keys: str) -> str:
    """Mean and range over seeds of one figure."""
    values = []
    for entry in figures:
        value: Any = entry
        for key in keys:
            value = None if value is None else value.get(key)
        if value is not None:
            values.append(float(value))
    if not values:
        return "-"
    return f"{np.mean(values):.2f}" + (f" ({min(values):.2f}..{max(values):.2f})" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/bench-search"))
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder that holds the real data sets")
    parser.add_argument("--settings", nargs="+", default=["generated"], choices=list(SETTINGS))
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, help="of each search, in place of the setting's")
    parser.add_argument("--trainings", action="store_true", help="train the derived students, too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    outcome: dict[str, Any] = {}
    for setting in options.settings:
        chosen = SETTINGS[setting].at(options.data)
        if options.epochs:
            changed = {**chosen.campaign["search"], "epochs": options.epochs}
            chosen = replace(chosen, campaign={**chosen.campaign, "search": changed})
        lab = Lab(chosen, options.work / setting)
        outcome[setting] = {}
        for name in options.variants:
            figures = [measure(lab, name, seed, options.trainings) for seed in range(options.seeds)]
            outcome[setting][name] = figures
            ends = []
            for place in ("lowest", "highest"):
                idle, derived, left_out, cost = (
                    describe(figures, place, key)
                    for key in ("idle", "idle_derived", "left_out", "expected_over_budget")
                )
                ends.append(f"{place}: idle {idle}, derived {derived}, left out {left_out}, cost/budget {cost}")
            print(
                f"{setting}, {name}: {describe(figures, 'trainings')} trainings, inherited "
                f"{describe(figures, 'inherited')}, retrained {describe(figures, 'retrained')}; {'; '.join(ends)}",
                flush=True,
            )
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
