"""Proposals that a campaign may make, reduced to those that differ in distilled modules or in numbers of steps."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any, cast

from nas_kd.config import CampaignConfig, ConfigError, read_path
from nas_kd.objectives import ObjectiveConfig
from nas_kd.search_spaces import SearchSpace
from nas_kd.search_spaces.arch import Choice

ALL_TOGETHER = 64  # combinations of knobs; of more, each value is tried on its own
_FIT_KEYS = ("batch_size", "epochs", "augment")


@dataclass(frozen=True)
class Proposal:
    """Values of dotted knobs that a trial may have together.

    Attributes:
        config: of the campaign, with the values filled in.
        source: `grid` or `knobs`.
        values: dotted path -> value, where it differs from the campaign file's own.
        knobs: of the space, which the trials with these values may have.
    """

    config: CampaignConfig
    source: str
    values: Mapping[str, Any]
    knobs: tuple[Mapping[str, Choice], ...]

    def error_prefix(self, section: str) -> str:
        """The words with which an error about `objective` or `search.objective` begins."""
        own = [f"{path} = {value!r}" for path, value in self.values.items() if path.startswith(f"{section}.")]
        return f"{self.source} may not propose {' with '.join(own)}: " if own else ""


def proposals(config: CampaignConfig, space: SearchSpace) -> list[Proposal]:
    """Everything that differs in objectives, batches, epochs, augmentation or mixing.

    Of ranges both ends are looked at, of choices all values: all combinations of all knobs where these are few, else
    each value with the others as in the campaign file. Where there is nothing but a grid, its cells alone.

    Raises:
        ConfigError: values that the sections do not take together.
    """
    cells = [dict(cell) for cell in config.cells] if config.grid else []
    found: dict[str, tuple[str, dict[str, Any], list[Mapping[str, Choice]]]] = {}

    def add(source: str, values: Mapping[str, Any], knobs: list[Mapping[str, Choice]]) -> None:
        chosen = {path: value for path, value in values.items() if _counts(path)}
        found.setdefault(json.dumps(chosen, sort_keys=True), (source, chosen, []))[2].extend(knobs)

    for cell in cells:
        own = {n: values[0] if len(values) == 1 else cell.get(n, values[-1]) for n, values in space.knobs.items()}
        add("grid", cell, [cast(Mapping[str, Choice], own)])
    if not cells or config.trials > len(cells):  # a sampler proposes too
        for values in _sampled(config):
            add("knobs", values, corner_knobs(space))
    return [
        Proposal(_filled(config, source, values), source, _changed(config, values), tuple(_corners(knobs)))
        for source, values, knobs in found.values()
    ]


def _counts(path: str) -> bool:
    section, _, key = path.rpartition(".")
    of_fit = section in ("search", "retrain") and key in _FIT_KEYS
    of_views = path.startswith(("search.augment.", "retrain.augment.", "search.mix.", "retrain.mix."))
    return of_fit or of_views or path.startswith(("objective.", "search.objective."))


def _sampled(config: CampaignConfig) -> Iterator[dict[str, Any]]:
    options = {
        path: list(definition["values"]) if "values" in definition else [definition["low"], definition["high"]]
        for path, definition in config.knobs.items()
        if _counts(path)
    }
    if prod(map(len, options.values())) <= ALL_TOGETHER:
        for values in product(*options.values()):
            yield dict(zip(options, values, strict=True))
    else:
        for path, listed in options.items():
            yield from ({path: value} for value in listed)


def _filled(config: CampaignConfig, source: str, values: Mapping[str, Any]) -> CampaignConfig:
    if not values:
        return config
    try:
        return config.with_knobs(values)
    except ConfigError as error:
        listed = " with ".join(f"{path} = {value!r}" for path, value in values.items())
        raise ConfigError(f"{source} may not propose {listed}: {str(error).removeprefix('knobs: ')}") from error


def _changed(config: CampaignConfig, values: Mapping[str, Any]) -> dict[str, Any]:
    changed = {}
    for path, value in values.items():
        if read_path(config, path) != value:
            changed[path] = value
    return changed


def corner_knobs(space: SearchSpace) -> list[Mapping[str, Choice]]:
    """The first and the last values of all knobs together: of those that ascend, the smallest and the largest. Besides,
    each other value of a knob of words, which stands for another net, with the last ones of the others."""
    first, last = ({name: values[i] for name, values in space.knobs.items()} for i in (0, -1))
    words = {name: values[1:-1] for name, values in space.knobs.items() if isinstance(values[0], str)}
    return [first, last, *({**last, name: value} for name, values in words.items() for value in values)]


def _corners(knobs: list[Mapping[str, Choice]]) -> list[Mapping[str, Choice]]:
    """Of knobs that differ in numbers alone, those with the smallest and with the largest ones."""
    groups: dict[str, list[Mapping[str, Choice]]] = {}
    for values in knobs:
        words = {name: value for name, value in values.items() if isinstance(value, str)}
        groups.setdefault(json.dumps(words), []).append(values)
    corners: list[Mapping[str, Choice]] = []
    for group in groups.values():
        group.sort(key=lambda values: [value for value in values.values() if not isinstance(value, str)])
        corners += [group[0], *(group[-1:] if group[-1] != group[0] else [])]
    return corners


def structure_key(objective: ObjectiveConfig) -> str:
    """What decides whether an objective fits: equal for two that differ in sizes of weights or in free options."""
    content: dict[str, Any] = {"task": objective.task.weight > 0, "finetune_share": objective.finetune_share}
    for name, term in objective.active_terms.items():
        content[name] = term.model_dump(mode="json", exclude={"weight", *term.free_options})
    return json.dumps(content)
