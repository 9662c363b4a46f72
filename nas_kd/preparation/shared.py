"""The search that trials share, done once before them: what it proposes, and what it leaves for the report."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nas_kd.callbacks import Note, OnProgress, no_note, no_progress
from nas_kd.config import CampaignConfig
from nas_kd.files import check_tensors, read_json, write_text_atomically
from nas_kd.preparation.prior import GateTable, gate_table
from nas_kd.search_spaces import ArchSpec, SearchSpace
from nas_kd.training.checkpoint import load_checkpoint
from nas_kd.training.log import log_epoch
from nas_kd.trial import CampaignContext, SharedSearch
from nas_kd.trial.shared import FOLDER, WEIGHTS_NAME, knots_of, trained_by
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


def prepare_search(
    context: CampaignContext, run_dir: Path, progress: OnProgress = no_progress, note: Note = no_note
) -> SearchFound:
    """Search, or read what an earlier run of this campaign found.

    Writes `search/` into the run's folder: `supernet.safetensors`, `log.jsonl` with the mean terms of each epoch,
    `gates.jsonl` with the probabilities of all gates at each knot after each epoch, and `search.json` with the final
    ones, and at each budget the expected cost and the compared architectures. `nas_kd.analysis.search_files` reads
    them.

    Other budgets within the range that was searched get their students from the same supernet. Where anything else
    has changed that decides the search, the folder is kept as `search-1`, `search-2`, ..., and the search is done anew.

    Args:
        context: of the campaign.
        run_dir: the run's folder.
        progress: called with the share that is done and a text.
        note: called with a sentence where an earlier search is not used as it is.

    Raises:
        ValueError: a file of the search is damaged.
    """
    folder, config = run_dir / FOLDER, context.config
    manifest = folder / "search.json"
    way_out = f"delete the folder {folder}, and the same command searches anew"
    known = read_json(manifest, way_out) if manifest.is_file() else None
    if known is not None:
        with _damage_named(manifest, way_out):
            reason = _outdated(known, config)
        if reason:
            kept = _set_aside(folder)
            note(f"search: it was done with {reason}; it is kept in {kept}, and the search is done anew")
            known = None
    if known is None:
        search = SharedSearch(context)
        _train(search, folder, progress)
        search.save(folder)
        _write(manifest, search, progress)
        (folder / "checkpoint.pt").unlink(missing_ok=True)
    check_tensors(folder / WEIGHTS_NAME, way_out)
    if known is not None and known.get("derived_for") != config.digest("budget"):
        note("search: the budgets are others, within the range that was searched; its supernet gives their students")
        _write(manifest, SharedSearch.load(context, folder), progress)
    known = read_json(manifest, way_out)
    with _damage_named(manifest, way_out):
        return _found(known, context.space)


@contextmanager
def _damage_named(manifest: Path, way_out: str) -> Iterator[None]:
    """Errors at the content of a manifest, in a sentence."""
    try:
        yield
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"{manifest} is damaged ({type(error).__name__}); {way_out}") from error


def _outdated(known: Mapping[str, Any], config: CampaignConfig) -> str:
    """What a search was done with that is not so any more, in words; empty where it can be used."""
    sections = [name for name, digest in trained_by(config).items() if known["trained_by"][name] != digest]
    if sections:
        return f"other settings ({', '.join(sections)})"
    searched, wanted = known["knots"], knots_of(config)
    if known["cost_unit"] != _cost_unit(config):
        return f"budgets in {known['cost_unit']}"
    if wanted[0] < searched[0] or wanted[-1] > searched[-1]:
        text = config.budget.text
        return f"budgets from {text(searched[0])} to {text(searched[-1])}, and now they go beyond"
    return ""


def _set_aside(folder: Path) -> Path:
    """Rename the folder of a search; returns the new path."""
    number = 1
    while (kept := folder.with_name(f"{folder.name}-{number}")).exists():
        number += 1
    folder.rename(kept)
    return kept


def _train(search: SharedSearch, folder: Path, progress: OnProgress) -> None:
    """Train, or continue from the checkpoint; the logs of a search that is not continued go."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint.pt"
    if load_checkpoint(checkpoint, tag=search.tag) is None:
        for name in ("log.jsonl", "gates.jsonl"):
            (folder / name).unlink(missing_ok=True)
    search.train(
        checkpoint=checkpoint,
        progress=lambda share, words: progress(TRAINING_SHARE * share, words),
        log=partial(_log, search, folder),
    )


def _write(manifest: Path, search: SharedSearch, progress: OnProgress) -> None:
    """Derive students for the budgets of the campaign, and write what the search has found."""
    context = search.context
    left = {
        "trained_by": trained_by(context.config),
        "derived_for": context.config.digest("budget"),
        "knots": search.knots,
        "cost_unit": _cost_unit(context.config),
        "variables": {
            name: {"choices": choices, "layers": context.space.layers(name)}
            for name, choices in context.space.variables.items()
        },
        "budgets": _derived(search, progress),
        "gate_table": gate_table(search),
    }
    write_text_atomically(manifest, json.dumps(left, indent=1) + "\n")


def _cost_unit(config: CampaignConfig) -> str:
    return "ns" if config.budget.is_latency else "FLOPs"


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
