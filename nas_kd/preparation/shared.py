"""The search that trials share, done once before them: what it proposes, and what it leaves for the report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nas_kd.callbacks import OnProgress, no_progress
from nas_kd.files import check_tensors, read_json, write_text_atomically
from nas_kd.preparation.prior import GateTable, gate_table
from nas_kd.search_spaces import ArchSpec, SearchSpace
from nas_kd.training.log import log_epoch
from nas_kd.trial import CampaignContext, SharedSearch
from nas_kd.trial.shared import FOLDER, WEIGHTS_NAME
from nas_kd.trial.study_values import study_values
from nas_kd.trials import KnobValue

TRAINING_SHARE = 0.8  # of the stage's time, roughly; the rest goes into comparing derived architectures


@dataclass(frozen=True)
class SearchFound:
    """What a finished search leaves to the study.

    Attributes:
        derived: for each budget the values of the study for the derived architecture; each architecture once.
        compared: values of the study for every compared architecture, with its metric with inherited weights.
        gates: probabilities of all choices.
    """

    derived: list[dict[str, KnobValue]]
    compared: list[tuple[dict[str, KnobValue], float]]
    gates: GateTable


def prepare_search(context: CampaignContext, run_dir: Path, progress: OnProgress = no_progress) -> SearchFound:
    """Search, or read what an earlier run of the same campaign found.

    Writes `search/` into the run's folder: `supernet.safetensors`, `log.jsonl` with the mean terms of each epoch,
    `gates.jsonl` with the probabilities of all gates at each knot after each epoch, and `search.json` with the final
    ones, and at each budget the expected cost and the compared architectures. `nas_kd.analysis.search_files` reads
    them.

    Raises:
        ValueError: the folder holds the search of another campaign file, or `search.json` is damaged.
    """
    folder, config = run_dir / FOLDER, context.config
    manifest = folder / "search.json"
    digest = config.digest("data", "teacher", "task", "space", "search", "budget")
    if not manifest.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        search = SharedSearch(context)
        search.train(
            checkpoint=folder / "checkpoint.pt",
            progress=lambda share, words: progress(TRAINING_SHARE * share, words),
            log=partial(_log, search, folder),
        )
        search.save(folder)
        left = {
            "digest": digest,
            "cost_unit": "ns" if config.budget.is_latency else "FLOPs",
            "variables": {
                name: {"choices": choices, "layers": context.space.layers(name)}
                for name, choices in context.space.variables.items()
            },
            "budgets": _derived(search, progress),
            "gate_table": gate_table(search),
        }
        write_text_atomically(manifest, json.dumps(left, indent=1) + "\n")
        (folder / "checkpoint.pt").unlink(missing_ok=True)
    way_out = f"delete the folder {folder}, and the same command searches anew"
    check_tensors(folder / WEIGHTS_NAME, way_out)
    known = read_json(manifest, way_out)
    try:
        same = known["digest"] == digest
        found = _found(known, context.space) if same else None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"{manifest} is damaged ({type(error).__name__}); {way_out}") from error
    if found is None:
        raise ValueError(
            f"{run_dir} was begun with another search, space or budget; give the campaign another name, or restore "
            "the sections space, search and budget"
        )
    return found


def _found(known: Mapping[str, Any], space: SearchSpace) -> SearchFound:
    """From the content of `search.json`."""
    derived: dict[str, dict[str, KnobValue]] = {}
    compared: dict[str, tuple[dict[str, KnobValue], float]] = {}
    for entry in known["budgets"]:
        arch = ArchSpec.from_dict(entry["arch"])
        derived.setdefault(arch.arch_id, study_values(arch, space))
        for other in entry["compared"]:
            arch = ArchSpec.from_dict(other["arch"])
            compared.setdefault(arch.arch_id, (study_values(arch, space), float(other["inherited"])))
    return SearchFound(list(derived.values()), list(compared.values()), GateTable.of(space, known["gate_table"]))


def _log(search: SharedSearch, folder: Path, epoch: int, means: Mapping[str, float]) -> None:
    """Append the mean terms of an epoch to `log.jsonl`, and the gates after it to `gates.jsonl`."""
    log_epoch(folder, "search", epoch, means)
    for budget in search.supernets[0].knots:
        line = {"epoch": epoch + 1, "budget": budget, "gates": search.mean_probabilities(budget)}
        with (folder / "gates.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")


def _derived(search: SharedSearch, progress: OnProgress) -> list[dict[str, object]]:
    """What is kept of each budget."""
    entries: list[dict[str, object]] = []
    budgets, config = search.budgets, search.context.config
    for i, value in enumerate(budgets):
        cost = config.budget.cost(value)

        def on_share(share: float, i: int = i) -> None:
            done = TRAINING_SHARE + (1 - TRAINING_SHARE) * (i + share) / len(budgets)
            progress(done, f"deriving students, budget {i + 1}/{len(budgets)}")

        compared = search.compare(cost, config.search.candidates, on_share)
        arch, score = compared[0]
        knobs = search.context.space.knobs_of(arch)
        with search.at(knobs, cost) as supernet:
            gates = {name: p.tolist() for name, p in supernet.probabilities().items()}
            expected = float(supernet.expected_cost().detach())
        entries.append(
            {
                "budget": cost,
                "arch": arch.as_dict(),
                "arch_id": arch.arch_id,
                "cost": search.context.table(knobs).cost(arch.choices),
                "inherited": score,
                "compared": [{"arch": other.as_dict(), "inherited": metric} for other, metric in compared],
                "expected_cost": expected,
                "knobs": search.knob_probabilities(cost),
                "gates": gates,
                "effect": search.context.space.effect_probabilities(knobs, gates),
            }
        )
    return entries
